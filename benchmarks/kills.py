"""Kill a training run at any write and at any moment, go on, and compare: `python benchmarks/kills.py`.

A tiny run (eight steps on squares that move over noise, scored before and after, with its report) is left alone once, and its
writes are listed. Then it is started again and again, each time to be killed with `kill -9`, and taken up with `--resume` to the
end. *Aimed* kills hit one write each: when its file has just been made, when half of it is written, when it is whole and not
renamed yet, when it is renamed; before and after the checkpoint before gets its second name; and inside and after each line of the
log. The others come at a random moment, and a third of them twice. The kills are put in from here: the package knows nothing of them.

The losses of all steps, the weights of the last checkpoint, the exported backbone and the scores have to be those of the run that
was left alone, to the bit, and no half file may stay. Writes `benchmarks/results/kills.md` and `.json`; ends with status 1 where
anything differs. All runs are forks of one process, which has paid for the imports; their reports are written without pictures,
which would take most of the time and are one write all the same.
"""

import argparse
import importlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import timet.run.folder as room
import timet.training.report as pictures
from timet.run.folder import RunLog, load_checkpoint, read_log
from timet.train import main as command

HERE = Path(__file__).resolve().parent
FLAGS = """--preset demo --image-size 32 --num-frames 3 --fps 8 --batch-size 4 --clips-per-source 1 --num-prototypes 8 --head 16 8
    --radius 2 --topk 3 --device cpu --workers 0 --save-every 2 --max-steps 8 --eval-clusters 4 --eval-clips 4 --eval-seeds 1""".split()
PHASES = {
    "made": "the file has been made, and is empty",
    "half": "half of it is written",
    "whole": "it is whole, and not renamed yet",
    "renamed": "it has its name",
}
Aim = tuple[str, int, str]  # what is hit, the how-many-eth of its kind, and when


def make_clips(root: Path) -> None:
    "Ten clips with masks: a square of one of two classes moves over noise."
    rng, videos = np.random.default_rng(0), {}
    for i in range(10):
        frames, masks = root / f"JPEGImages/clip_{i}", root / f"Annotations/clip_{i}"
        frames.mkdir(parents=True)
        masks.mkdir(parents=True)
        ground = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        for t in range(6):
            picture, mask = ground.copy(), np.zeros((40, 40), np.uint8)
            picture[12:28, 2 * t : 2 * t + 16] = (250, 200, 30) if i % 2 else (60, 80, 250)
            mask[12:28, 2 * t : 2 * t + 16] = 1
            Image.fromarray(picture).save(frames / f"{t:05d}.png")
            Image.fromarray(mask).save(masks / f"{t:05d}.png")
        videos[f"clip_{i}"] = {"objects": {"1": {"category": "sun" if i % 2 else "sea"}}}
    (root / "meta.json").write_text(json.dumps({"videos": videos}))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(out: Path, aim: Aim | None, seen: list[tuple[str, str]] | None = None) -> None:
    "In a child: see every write of its run, and die where it is aimed at."
    open_, fsync, replace, link, write = os.open, os.fsync, os.replace, os.link, RunLog.write
    counts = {"write": 0, "link": 0, "line": 0}

    def hit(kind: str, phase: str) -> bool:
        return aim == (kind, counts[kind], phase)

    def begin(kind: str, name: str) -> None:
        counts[kind] += 1
        if seen is not None:
            seen.append((kind, name))

    def part(path: object) -> bool:
        return isinstance(path, (str, Path)) and Path(path).name.startswith(".") and out in Path(path).parents

    def opened(path, flags, *more, **options):
        handle = open_(path, flags, *more, **options)
        if flags & os.O_EXCL and part(path):
            name = Path(path).name
            begin("write", name[1:].rsplit("-", 1)[0] + Path(path).suffix)
            if hit("write", "made"):
                die()
        return handle

    def synced(handle):
        if hit("write", "half"):
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die()
        fsync(handle)

    def replaced(old, new, **options):
        if part(old) and hit("write", "whole"):
            die()
        replace(old, new, **options)
        if part(old) and hit("write", "renamed"):
            die()

    def linked(old, new, **options):
        begin("link", Path(new).name)
        if hit("link", "before"):
            die()
        link(old, new, **options)
        if hit("link", "after"):
            die()

    def line(log, record):
        begin("line", "log.jsonl")
        if hit("line", "half"):
            text = (json.dumps(record) + "\n").encode()
            os.write(log.file.fileno(), text[: len(text) // 2])
            die()
        write(log, record)
        if hit("line", "after"):
            die()

    os.open, os.fsync, os.replace, os.link, room.RunLog.write = opened, synced, replaced, linked, line
    for name in ("bars", "curves", "film_strip", "legend", "_picture"):
        setattr(pictures, name, lambda *_, **__: "")


def start(words: list[str], out: Path, aim: Aim | None = None, tell: Callable[[list], object] | None = None) -> int:
    "Fork a run; gives its process."
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with open(out.with_suffix(".said"), "a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        seen: list[tuple[str, str]] = []
        arm(out, aim, seen if tell else None)
        command(words)
        if tell:
            tell(seen)
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(process: int, within: float | None = None) -> int | None:
    "Wait for a run, or kill it after some seconds; gives its status, `None` where it was killed."
    end = time.monotonic() + (within or 600)
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)


def words_for(data: Path, out: Path) -> list[str]:
    "How the run goes on: the first command again, where it was killed before its settings were there."
    if (out / "config.json").exists():
        return ["--resume", str(out)]
    return [*FLAGS, "--data", str(data), "--val-data", str(data), "--out", str(out)]


def result(out: Path) -> dict[str, object]:
    "What has to be the same."
    state = load_checkpoint(out / "checkpoints/last.pt")
    scores = json.loads((out / "after.json").read_text())
    return {
        "losses": [(row["step"], row["loss"]) for row in read_log(out / "log.jsonl")],
        "weights": {name: value.numpy().tobytes() for name, value in state["model"].items()},
        "backbone": (out / "backbone.safetensors").read_bytes(),
        "scores": scores["scores"],
        "files": sorted(p.name for p in out.iterdir()) + sorted(p.name for p in (out / "checkpoints").iterdir()),
    }


def one(data: Path, out: Path, want: dict, aim: Aim | None, seconds: tuple[float, ...]) -> dict[str, object]:
    "Kill a run once or more, let it go on to the end, compare."
    shutil.rmtree(out, ignore_errors=True)
    kills = 0
    for moment in [None] if aim else seconds:
        kills += finish(start(words_for(data, out), out, aim), moment) is None
    left = out / "checkpoints/last.pt"
    at = load_checkpoint(left)["step"] if left.exists() else 0
    status = finish(start(words_for(data, out), out))
    wrong = [f"status {status}"] if status else []
    try:
        got = result(out)
        wrong += [name for name in want if got[name] != want[name]]
    except (OSError, ValueError, KeyError) as error:
        wrong.append(f"{type(error).__name__}: {error}")
    if wrong:
        wrong += out.with_suffix(".said").read_text(errors="replace").splitlines()[-3:]
    out.with_suffix(".said").unlink(missing_ok=True)
    return {"aim": aim, "kills": kills, "step": at, "wrong": wrong}


def table(rows: list[dict]) -> str:
    "Kills by what they hit, in Markdown."
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["what"], []).append(row)
    lines = ["| killed | kills | went on from step | losses, weights, scores, files |", "|---|---|---|---|"]
    for what, found in groups.items():
        steps = sorted({row["step"] for row in found})
        bad = sum(bool(row["wrong"]) for row in found)
        same = "all the same" if not bad else f"**{bad} differ**"
        lines.append(f"| {what} | {sum(r['kills'] for r in found)} | {', '.join(map(str, steps))} | {same} |")
    return "\n".join(lines)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--kills", type=int, default=200, help="how many at least, the aimed ones included")
    ask.add_argument("--seed", type=int, default=0, help="of the random moments")
    ask.add_argument("--results", type=Path, default=HERE / "results", help="folder of kills.md and kills.json")
    asked = ask.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(tmp).resolve()
        data, out = home / "clips", home / "run"
        make_clips(data)
        notes = home / "notes.json"

        def tell(seen: list) -> None:
            notes.write_text(json.dumps([seen, sorted(sys.modules)]))

        if finish(start(words_for(data, out), out, tell=tell)) != 0:
            raise SystemExit("the run that was left alone failed:\n" + out.with_suffix(".said").read_text())
        writes, modules = json.loads(notes.read_text())
        want = result(out)
        for name in modules:  # what a run imports on its way is paid for once
            with suppress(Exception):
                importlib.import_module(name)
        shutil.rmtree(out)
        clock = time.monotonic()
        finish(start(words_for(data, out), out))
        assert result(out) == want, "two runs that were left alone differ"
        length = time.monotonic() - clock
        print(f"a run takes {length:.2f} s and writes {len(writes)} times", flush=True)

        aims, count = [], {"write": 0, "link": 0, "line": 0}
        for kind, name in writes:
            count[kind] += 1
            for phase in {"write": PHASES, "link": ("before", "after"), "line": ("half", "after")}[kind]:
                what = {"write": f"`{name}`: {PHASES.get(phase)}", "link": f"`{name}`: {phase} it gets its name",
                        "line": "`log.jsonl`: " + ("inside a line" if phase == "half" else "after a line")}[kind]  # fmt: skip
                aims.append(((kind, count[kind], phase), what))
        rng, rows = random.Random(asked.seed), []
        while aims or sum(row["kills"] for row in rows) < asked.kills:
            aim, what = aims.pop(0) if aims else (None, "at a random moment")
            moments = tuple(rng.uniform(0, length) for _ in range(1 + (rng.random() < 1 / 3)))
            row = one(data, out, want, aim, moments)
            if row["kills"]:
                rows.append(row | {"what": what if row["kills"] == 1 else "at a random moment, and again on the way"})
            elif aim:
                rows.append(row | {"what": what, "wrong": ["was not hit"]})
            if rows and rows[-1]["wrong"]:
                print(rows[-1], flush=True)
            if len(rows) % 20 == 0:
                print(f"{sum(r['kills'] for r in rows)} kills in {time.monotonic() - begun:.0f} s", flush=True)
    wrong = [row for row in rows if row["wrong"]]
    total, aimed = sum(row["kills"] for row in rows), sum(row["aim"] is not None for row in rows)
    head = (
        "# A run that is killed\n\n"
        f"{total} times `kill -9`, {aimed} of them aimed at single writes, each followed by `--resume` to the end: "
        f"{len(rows) - len(wrong)} of {len(rows)} runs ended with the losses, weights, scores and files of the run that was left "
        f"alone, to the bit. One thread, {platform.machine()}, torch {torch.__version__}, {date.today()}, "
        f"{(time.monotonic() - begun) / 60:.0f} minutes. `python benchmarks/kills.py`\n\n"
    )
    asked.results.mkdir(parents=True, exist_ok=True)
    (asked.results / "kills.md").write_text(head + table(rows) + "\n", encoding="utf-8")
    facts = {"kills": total, "aimed": aimed, "runs": len(rows), "differ": len(wrong), "seed": asked.seed, "rows": rows}
    (asked.results / "kills.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    print(head + table(rows))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
