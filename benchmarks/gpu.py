"""What a GPU makes of this project, measured in two short calls: `python benchmarks/gpu.py --out OUT --budget 395`.

Each section has a time limit of its own, one that fails does not stop the next, and each line is printed at once and
kept in `OUT/gpu.jsonl`. The sections, in `benchmarks/card/`:

- A the machine, B its results beside the CPU's, C where a training step waits (`results.py`);
- D the step as the package does it, by hand, by parts and by kernels (`step.py`);
- E what could be gained beyond the package: bf16 throughout, Triton, one CUDA graph, compiled blocks (`beyond.py`);
- F reading and augmenting clips, on the CPU and with nvJPEG (`reading.py`);
- G `timet.train --preset paper` on folders of JPEG frames, H resuming (`training.py`);
- I tokens and streams, K pretraining (`others.py`);
- W, only where `--only` names it: the paper's whole training, 2,776 videos of 27 frames and 30 epochs, with the flags
  in `$EXTRA`, stopped after `$WHOLE_S` seconds.

At the end comes a table of what was measured beside what was predicted before there was a card: `OUT/gpu_DEVICE.md`,
and, measured on a card at full size, `benchmarks/results/gpu_DEVICE.md`. `--table A.jsonl B.jsonl` makes that of
several calls; a later one replaces what an earlier one says of a section. `--tiny` rehearses all that needs no card, in
about a minute; it must end with `done`, and no line may say `FAILED`.

A machine without a network that has torch, torchvision, timm and accelerate needs the wheels of the rest (19 MB), for
its Python; the frames are JPEG files, so neither `av` nor `decord2` is among them:

    pip download -d wheels --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        annotated-types==0.7.0 tyro==1.0.17 docstring-parser==0.18.0 typeguard==4.6.1 faiss-cpu==1.15.1 lightly==1.6.0

Call 1, 430 s; `--target` leaves the machine's own packages as they are:

    pip install -q --no-index --no-deps --target extra wheels/*.whl
    PYTHONPATH=extra python benchmarks/gpu.py --out $OUT --budget 395

Call 2, 240 s, or `--only` with the letters of what failed:

    PYTHONPATH=extra WHOLE_S=190 EXTRA="--workers 16" python benchmarks/gpu.py --out $OUT --only W
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))

import torch  # noqa: E402
from card import beyond, others, reading, results, step, training  # noqa: E402, F401, they register their sections
from card.bench import SECTIONS, Bench, OutOfTimeError  # noqa: E402

ORDER = "ABCDEFGIKH"  # and W, where it is asked for

# written down before there was a card: from counted bytes and operations, and what an H100 reaches elsewhere
PREDICTED = {
    "matmul bf16, square": "790 TFLOP/s",
    "matmul bf16, qkv": "600-650 TFLOP/s",
    "matmul bf16, fc2": "650-700 TFLOP/s",
    "copy on the card": "2.7 TB/s",
    "waits in a train_step": "10-11 when written down; counted since without a card: 1, for an event of the step before",
    "train_step, as the package does it": "27-40 ms; peak 3-5 GB",
    "step by hand, AdamW foreach, diagnosed": "27-40 ms; by the roofline 26.7, at least 7.0",
    "step by hand, AdamW fused, not diagnosed": "0.5 ms less",
    "frozen part": "16.6-24 ms",
    "tuned part, past frames": "2.5 ms by the roofline",
    "tuned part, last frame and backward": "3 ms by the roofline",
    "forwarder": "3-6 ms",
    "Sinkhorn": "0.3 ms by the roofline",
    "AdamW foreach": "0.3-0.6 ms",
    "AdamW fused": "0.05 ms",
    "kernels of a step": "772-790, 27 ms",
    "frozen part in bf16": "12 ms",
    "frozen part in bf16, GELU in the product": "10 ms",
    "frozen part in bf16, blocks compiled": "2.3 ms less than in bf16",
    "forward_triton tf32x3, 32 targets, 4 warps": "0.4-0.8 ms",
    "step from the fast parts, one CUDA graph": "14.5-17 ms",
    "decode with PIL, a process for each core": "1,000-1,600 frames/s on 16 cores",
    "decode with PIL at half size, a process for each core": "1.5-3 times as fast",
    "nvJPEG, 256 frames": "2,000-5,000 frames/s",
    "train, default workers": "60-150 clips/s with 8 workers; first step 8-12 s",
    "pretraining step, compile off": "25-35 ms, 15,000-20,000 photographs/s; by the roofline 24.6, with 1,583 operations",
    "  of it the views, compile off": "1.3 ms by the roofline, 154 operations",
    "pretraining step, compile on": "17-25 ms, 20,000-30,000 photographs/s",
    "whole training": "16 minutes with a new loader each epoch; 7 with one loader and a worker a core; 1-2 at best",
}


def read_rows(files: Sequence[Path]) -> list[dict[str, Any]]:
    "What was measured; where several calls have the same section, what the last one says of it."
    sections: dict[str, list[dict[str, Any]]] = {}
    fresh: set[str] = set()
    for line in (line for file in files for line in file.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        if row["name"] == "device":  # a call begins
            fresh = set()
        if row["section"] not in fresh:
            fresh.add(row["section"])
            sections[row["section"]] = []
        sections[row["section"]].append(row)
    return [row for letter in ("", *ORDER, "W") for row in sections.get(letter, [])]


def table(rows: Sequence[dict[str, Any]]) -> str:
    "What was measured, and what had been predicted beside it."
    lines = [
        f"# Measured on a device: {rows[0]['device']}",
        "",
        f"{date.today()}, `python benchmarks/gpu.py`. Times are medians; `ms` ends when the card is done, `host_ms` when "
        "the host is free again. Predictions were written down before there was a card, for an H100.",
        "",
        "| section | what | measured | predicted |",
        "|---|---|---|---|",
    ]
    for row in rows[1:]:
        values = {key: value for key, value in row.items() if key not in ("section", "name")}
        told = ", ".join(f"{key} {value}" for key, value in values.items()).replace("|", "/")
        what = row["name"].strip().replace("|", "/")
        lines.append(f"| {row['section']} | {what} | {told} | {PREDICTED.get(row['name'], '')} |")
    return "\n".join(lines) + "\n"


def write_table(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    "Keep the table in a folder, under the name of the device."
    name = re.sub(r"[^a-z0-9]+", "_", rows[0]["device"].lower()).strip("_")
    path = folder / f"gpu_{name}.md"
    path.write_text(table(rows), encoding="utf-8")
    return path


def is_result(rows: Sequence[dict[str, Any]]) -> bool:
    "Was it measured on a card and at full size?"
    return rows[0]["device"] != "cpu" and not rows[0]["tiny"]


def run_section(bench: Bench, letter: str, seconds: float) -> None:
    "A section within its time; what goes wrong in it is said and does not stop the others."
    bench.section = letter
    signal.alarm(max(1, int(seconds)))
    try:
        SECTIONS[letter][0](bench)
    except (Exception, SystemExit, OutOfTimeError) as error:
        signal.alarm(0)
        bench.failures += 1
        print(traceback.format_exc()[-1800:], flush=True)
        bench.say("FAILED", error=f"{type(error).__name__}: {str(error)[:300]}")
    finally:
        signal.alarm(0)
    if bench.cuda:
        torch.cuda.empty_cache()


def too_late(*_: Any) -> None:
    "What the alarm does."
    raise OutOfTimeError("this section took too long")


def measure_all(bench: Bench, only: str, budget: float) -> None:
    "The sections that are wanted, or all but W, as long as there is time."
    signal.signal(signal.SIGALRM, too_late)
    for letter in only or ORDER:
        seconds = SECTIONS[letter][1]
        left = budget - bench.seconds
        if left < 15:
            bench.section = letter
            bench.say("left out", seconds_left=left)
            continue
        run_section(bench, letter, min(seconds, left))


def main() -> None:
    "Measure, or write the table of what was measured."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_out"), help="folder for gpu.jsonl and the table")
    parser.add_argument("--budget", type=float, default=420, help="seconds for everything")
    parser.add_argument("--only", default="", help="letters of sections, as A,D; W runs only where it is named")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at a small size, which needs no card")
    parser.add_argument("--table", type=Path, nargs="+", metavar="JSONL", help="write the table of these and stop")
    args = parser.parse_args()
    if unknown := set(args.only) - {",", *SECTIONS}:
        parser.error(f"--only takes the letters {','.join(ORDER)},W, got {', '.join(sorted(unknown))}")
    if args.table:
        rows = read_rows(args.table)
        if not is_result(rows):
            parser.error("these were not measured on a card at full size; their table lies beside them")
        print(write_table(rows, HERE / "results"))
        return
    warnings.simplefilter("ignore")
    bench = Bench(args.out, args.tiny)
    try:
        measure_all(bench, args.only.replace(",", ""), args.budget)
    finally:
        shutil.rmtree(bench.files, ignore_errors=True)
    rows = read_rows([args.out / "gpu.jsonl"])
    for folder in [args.out, *([HERE / "results"] if is_result(rows) else [])]:
        print(write_table(rows, folder))
    print(
        f"done in {bench.seconds:.0f} s, {bench.failures} sections failed"
        if bench.failures
        else f"done in {bench.seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
