"""`timet.train` itself: short runs, the whole training of the paper, and a run that is resumed."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from card.bench import FRAMES_OF_A_VIDEO, STEPS, VIDEOS, Bench, frame_folders, section
from torch import Tensor


def train_command(bench: Bench, data: Path, out: Path, *flags: str) -> list[str]:
    "`timet.train` with the paper's preset on frame folders."
    words = "--preset paper --weights none --fps 6 --no-eval".split()
    return [
        sys.executable,
        "-m",
        "timet.train",
        *words,
        "--data",
        str(data),
        "--out",
        str(out),
        *bench.scale.flags,
        *flags,
    ]


def logged(out: Path) -> list[dict[str, Any]]:
    "What a run has written down of its steps."
    log = out / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@section("G", 170)
def training(bench: Bench) -> None:
    "The command with its loader: a short run for each number of workers."
    data = frame_folders(bench, "train", 4 if bench.tiny else 256, FRAMES_OF_A_VIDEO)
    every = ["--workers", str(bench.cores)]
    plans = {"train, default workers": ([], 14), "train, a worker for each core": (every, 18)}
    if not bench.cuda:
        plans = {"train, no workers": (["--workers", "0"], 2)}
    for number, (name, (flags, steps)) in enumerate(plans.items()):
        train_once(bench, name, data, bench.files / f"run{number}", [*flags, "--max-steps", str(steps)])


def train_once(bench: Bench, name: str, data: Path, out: Path, flags: list[str]) -> None:
    "One short run, and how its seconds are spread over its steps."
    flags = [*flags, "--clips-per-source", "10", "--log-every", "1", "--batch-size", str(bench.scale.clips)]
    start = time.time()
    done = subprocess.run(train_command(bench, data, out, *flags), capture_output=True, text=True, timeout=110)
    rows, clips = logged(out), bench.scale.clips
    if done.returncode or len(rows) < 2:
        raise RuntimeError(f"{name}: {done.stderr[-600:]}")
    gaps = [clips / max(row["clips_per_second"], 1e-9) for row in rows]
    speed = {
        "clips_s": clips * len(rows) / sum(gaps),
        "clips_s_after_the_first": clips * (len(rows) - 1) / sum(gaps[1:]),
    }
    steps = {"first_step_s": gaps[0], "step_s": [round(gap, 2) for gap in gaps]}
    bench.say(
        name,
        seconds=time.time() - start,
        steps=len(rows),
        **speed,
        **steps,
        loss=[r["loss"] for r in rows[:: len(rows) - 1]],
    )


@section("W", 230)
def whole_training(bench: Bench) -> None:
    "The paper's whole training; stopped when its time is over."
    data = frame_folders(bench, "whole", 6 if bench.tiny else VIDEOS, 8 if bench.tiny else FRAMES_OF_A_VIDEO)
    out, flags = bench.files / "whole_run", ["--log-every", "10", *shlex.split(os.environ.get("EXTRA", ""))]
    if bench.tiny:
        flags += "--batch-size 2 --epochs 2 --log-every 1".split()
    start = time.time()
    said = open(bench.out / "whole.txt", "w", encoding="utf-8")
    job = subprocess.Popen(train_command(bench, data, out, *flags), stdout=said, stderr=subprocess.STDOUT)
    try:
        job.wait(float(os.environ.get("WHOLE_S", "190")))
    except BaseException:  # also where the section's own time is over
        job.terminate()
        job.wait(20)
    rows, took = logged(out), time.time() - start
    said.close()
    if not rows:
        raise RuntimeError(f"no step was logged in {took:.0f} s: {(bench.out / 'whole.txt').read_text()[-600:]}")
    steps, losses = rows[-1]["step"], [rows[0]["loss"], rows[-1]["loss"]]
    expected = took * STEPS / steps
    bench.say(
        "whole training",
        seconds=took,
        steps=steps,
        of=STEPS,
        loss=losses,
        seconds_for_all=expected,
        flags=shlex.join(flags),
    )


@section("H", 60)
def resuming(bench: Bench) -> None:
    "Is a run that was broken off and resumed the same as one that was not?"
    from timet.train import train
    from timet.training.config import load_config, preset_config

    data, runs = frame_folders(bench, "small", 8, 20, (96, 128)), bench.files / "resume"
    runs.mkdir(parents=True, exist_ok=True)
    settings = {"data": data, "fps": 8, "eval": False, "max_steps": 8, "save_every": 4, "batch_size": 8}
    settings["workers"] = 2 if bench.cuda else 0

    def take(name: str, keep_at_5: Path | None = None) -> None:
        def on_step(numbers: dict[str, float]) -> None:
            if keep_at_5 and numbers["step"] == 5:
                shutil.copytree(runs / name, keep_at_5, dirs_exist_ok=True)

        train(preset_config("demo", out=runs / name, **settings), on_step)

    def weights(name: str) -> dict[str, Tensor]:
        return torch.load(runs / name / "checkpoints/last.pt", map_location="cpu", weights_only=True)["model"]

    def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return max(float((one[key].float() - other[key].float()).abs().max()) for key in one)

    take("once", runs / "broken off")
    take("again")
    train(replace(load_config(runs / "broken off"), resume=True, out=runs / "broken off"))
    once, again, resumed = map(weights, ("once", "again", "broken off"))
    bench.say("weights apart", same_run_twice=furthest(once, again), resumed_after_step_4=furthest(once, resumed))
