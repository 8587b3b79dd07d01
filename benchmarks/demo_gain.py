"""What time-tuning gains on the sample world, over five seeds: `python benchmarks/demo_gain.py`.

Each seed is one run of `python -m timet.train` (seed of the weights, the order of the clips and the crops), scored on the
held-out clips before and after. `--control` adds the same runs without time (`--forwarded none`: the loss compares each frame
with itself), which shows how much of the gain is owed to time and how much to clustering alone. The column "patch colour"
scores no network at all: the mean colour of each patch as its token.

Writes `benchmarks/results/demo_gain.md` and `.json`. A run that was finished before is not repeated (`--out` keeps the runs).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import torch

from timet.core import samples_dir
from timet.data.find import find_sources
from timet.training.config import preset_config
from timet.training.report import Look, look

HERE = Path(__file__).resolve().parent


class PatchColour(torch.nn.Module):
    "What stands in for a backbone: the mean colour of each patch."

    name = "patch colour"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 8, width // 8

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 8).flatten(2).mT


ARMS = {"time-tuned": [], "without time": ["--forwarded", "none"]}


def run(folder: Path, seed: int, flags: list[str], jobs: int) -> dict[str, dict[str, float]]:
    "Train with one seed and return the scores before and after, means over the k-means seeds, and the seconds."
    if not (folder / "report.html").exists():
        words = ["--seed", str(seed), *flags]
        words = ["--resume", str(folder)] if (folder / "config.json").exists() else [*words, "--out", str(folder)]
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-m", "timet.train", *words], check=True, env=environment)
    scores = {
        when: {k: float(np.mean(v)) for k, v in json.loads((folder / f"{when}.json").read_text())["scores"].items()}
        for when in ("before", "after")
    }
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    config = json.loads((folder / "config.json").read_text())
    clips = config["batch_size"] * len(log) * config["log_every"]
    rate = len(log) / sum(1 / entry["clips_per_second"] for entry in log)
    return {**scores, "seconds": clips / rate}


def spread(values: np.ndarray) -> str:
    "Mean and standard deviation over seeds."
    return f"{values.mean():.1f} ± {values.std():.1f}"


def main() -> None:
    "Run both arms over the seeds, print and keep the table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/demo_gain"), help="where the runs are kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores")
    parser.add_argument("--control", action="store_true", help="also train without time")
    args = parser.parse_args()
    arms = ARMS if args.control else {"time-tuned": ARMS["time-tuned"]}
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = {
            arm: [
                pool.submit(run, args.out / f"{arm.replace(' ', '_')}_{seed}", seed, flags, args.jobs)
                for seed in range(args.seeds)
            ]
            for arm, flags in arms.items()
        }
        found = {arm: [one.result() for one in runs] for arm, runs in waiting.items()}
    questions = list(found["time-tuned"][0]["before"])
    config = preset_config("demo")
    colour = look(
        PatchColour(),
        find_sources(samples_dir() / "heldout"),
        Look(config.num_frames, config.delta_t, "regular", config.image_size, config.eval_clusters, config.eval_seeds),
    ).scores

    def column(arm: str, when: str, question: str) -> np.ndarray:
        return np.array([one[when][question] for one in found[arm]])

    rows = [
        "# What time-tuning gains on the sample world",
        "",
        f"mIoU in percent on the held-out clips, mean ± standard deviation over {args.seeds} training seeds. "
        f"{psutil.cpu_count(logical=False)} cores, {platform.machine()}, torch {torch.__version__}, {date.today()}. "
        "`python benchmarks/demo_gain.py`",
        "",
        "| score | patch colour | before |" + "".join(f" {arm} | gain |" for arm in arms),
        "|---|---|---|" + "---|---|" * len(arms),
    ]
    for question in questions:
        cells = [question, spread(np.array(colour[question])), spread(column("time-tuned", "before", question))]
        for arm in arms:
            after = column(arm, "after", question)
            cells += [spread(after), f"{(after - column(arm, 'before', question)).mean():+.1f}"]
        rows.append("| " + " | ".join(cells) + " |")
    seconds = {arm: np.array([one["seconds"] for one in found[arm]]) for arm in arms}
    rows += [
        "",
        "Training took "
        + " and ".join(f"{spread(s)} s ({arm})" for arm, s in seconds.items())
        + " a run, by the runs' own logs (several runs at a time share the cores).",
        "",
        "The scores: *over-clustering* groups the tokens of all clips at once and maps each cluster to its commonest class; "
        "*whole set*, *per clip* and *per frame* use as many clusters as there are classes, matched one to one. *Patch colour* is "
        "no network at all: the mean colour of each patch; its spread is over k-means seeds.",
        "",
    ]
    text = "\n".join(rows)
    print(text)
    target = HERE / "results"
    target.mkdir(exist_ok=True)
    (target / "demo_gain.md").write_text(text, encoding="utf-8")
    (target / "demo_gain.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
