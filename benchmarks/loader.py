"""How many clips a second the loader gives: `python benchmarks/loader.py [--data FILMS|FOLDERS ...] [--before REVISION]`.

Nothing uses the clips: what is timed is decoding, cutting and colouring clips of four frames of 224 x 224, in as many processes as cores, over
some epochs of the data that is given (the sample clips, where none is). For each data set:

- **bare decoder**: as many processes that read the frames of the same clips and do nothing else;
- **before**: the loader of an earlier revision of this repository, in a checkout of its own (`--before`, left out where none is named);
- **coloured in the workers**, float32: what a CPU trains from;
- **bytes**: what a card is given, which colours them itself;
- **bytes from the cache**: the same with `--frame-cache`, filled beforehand, and how long that took.

Also: seconds to the first batch, and the pause between two epochs beyond the usual time between two batches. Rounds alternate; the median is
shown. Writes `benchmarks/results/loader_cpu.md`.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SIZE = 224
KINDS = {
    "bare": "bare decoder",
    "before": "before",
    "float": "coloured in the workers",
    "bytes": "bytes",
    "cache": "bytes from the cache",
}


def find(data: str, repeats: int, **options: Any) -> Any:
    "The clips of a data set."
    from timet.data.clips import ClipAugment
    from timet.data.find import find_sources

    try:
        from timet.data.loader import ClipDataset
    except ImportError:  # before
        from timet.data.clips import ClipDataset
    return ClipDataset(find_sources(data), transform=ClipAugment(SIZE), repeats=repeats, **options)


_DATASET = None


def read_clip(item: int) -> int:
    "Decode the frames of a clip, and nothing else."
    import numpy as np

    from timet.data.clips import clip_index

    source = _DATASET.sources[item % len(_DATASET.sources)]
    index = clip_index(source.starts, 4, delta_t=0.5, rng=np.random.default_rng([0, item, 0]))
    return len(source.frames(index))


def decode_only(dataset: Any, epochs: int, size: int, workers: int) -> Iterator[int]:
    "Batches of clips that were decoded by as many processes as the loader has."
    global _DATASET
    import torch

    _DATASET = dataset
    items = [int(i) for _ in range(epochs) for i in range(len(dataset) // size * size)]
    with multiprocessing.get_context("fork").Pool(workers, torch.set_num_threads, (1,)) as pool:
        for number, _ in enumerate(pool.imap(read_clip, items), 1):
            if number % size == 0:
                yield number


def batches(kind: str, args: argparse.Namespace) -> Iterator[Any]:
    "The batches of some epochs."
    options = {"batch_size": args.batch, "num_workers": args.workers}
    if kind == "bare":
        yield from decode_only(find(args.one, args.repeats), args.epochs, args.batch, args.workers)
    elif kind == "before":
        from timet.data.clips import make_loader

        dataset = find(args.one, args.repeats)
        for epoch in range(args.epochs):
            yield from make_loader(dataset, epoch=epoch, **options)
    else:
        from timet.data.clips import ClipAugment
        from timet.data.frames import FrameCache
        from timet.data.loader import make_loader

        store = {"store": FrameCache(args.cache, ClipAugment(SIZE))} if kind == "cache" else {}
        dataset = find(args.one, args.repeats, **store)
        count = len(dataset) // args.batch * args.epochs
        loader = make_loader(dataset, count=count, paint=kind == "float", **options)
        yield from loader if kind == "float" else loader.views()


def measure(kind: str, args: argparse.Namespace) -> dict[str, float]:
    "Clips a second after the first batch, seconds to that, and the pause between epochs."
    start, times = time.perf_counter(), []
    for _ in batches(kind, args):
        times.append(time.perf_counter())
    each = len(times) // args.epochs
    gaps = [b - a for a, b in pairwise(times)]
    between = [gap for i, gap in enumerate(gaps, 1) if i % each == 0]
    usual = statistics.mean([gap for i, gap in enumerate(gaps, 1) if i % each])
    rate = args.batch * len(gaps) / (times[-1] - times[0])
    return {"rate": rate, "first": times[0] - start, "pause": statistics.mean(between) - usual}


def run_one(kind: str, data: str, cache: str, args: argparse.Namespace, tree: Path) -> dict[str, float]:
    "One measurement in a process of its own."
    words = [sys.executable, str(HERE), "--one", data, "--kind", kind, "--cache", cache]
    for name in ("batch", "epochs", "repeats", "workers"):
        words += [f"--{name}", str(getattr(args, name))]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tree, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def table(data: str, args: argparse.Namespace, before: Path | None, folder: str) -> Iterator[str]:
    "The lines for one data set."
    kinds = [kind for kind in KINDS if kind != "before" or before]
    filled = run_fill(data, folder)
    rounds = [
        {kind: run_one(kind, data, folder, args, before if kind == "before" else HERE.parents[1]) for kind in kinds}
        for _ in range(args.rounds)
    ]
    found = {
        kind: {name: statistics.median(r[kind][name] for r in rounds) for name in ("rate", "first", "pause")}
        for kind in kinds
    }
    bare = found["bare"]["rate"]
    yield "| | clips/s | beside the bare decoder | first batch, s | between epochs, s |"
    yield "|---|---|---|---|---|"
    for kind in kinds:
        row = found[kind]
        yield f"| {KINDS[kind]} | {row['rate']:.1f} | {row['rate'] / bare:.2f} | {row['first']:.2f} | {row['pause']:+.2f} |"
    yield ""
    if before:
        yield f"Bytes against before: **{found['bytes']['rate'] / found['before']['rate']:.2f} times** as many clips a second."
    yield f"The cache was filled in {filled:.1f} s."


def run_fill(data: str, folder: str) -> float:
    "Seconds that the cache takes to be filled."
    start = time.perf_counter()
    command = [sys.executable, "-m", "timet.data", "cache", data, "--frame-cache", folder]
    subprocess.run(command, check=True, capture_output=True, cwd=HERE.parents[1])
    return time.perf_counter() - start


def parse() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", help="films or frame folders; the sample clips, where none are named")
    parser.add_argument("--before", help="a revision of this repository to compare with")
    parser.add_argument("--batch", type=int, default=16, help="clips")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=16, help="clips from each video an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "loader_cpu.md")
    for hidden in ("--one", "--kind", "--cache"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    "Measure one thing, or everything."
    args = parse()
    if args.one:
        print(json.dumps(measure(args.kind, args)))
        return
    from timet.core import samples_dir

    lines = ["# Clips a second from the loader", ""]
    lines += [
        f"`python benchmarks/loader.py{f' --before {args.before}' if args.before else ''}`: {args.workers} processes on "
        f"{os.cpu_count()} cores, batches of {args.batch} clips of 4 frames at {SIZE} pixels, {args.epochs} epochs of {args.repeats} "
        f"clips a video, median of {args.rounds} rounds, {platform.machine()}, {date.today()}."
    ]
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before" if args.before else None
        if before:
            words = ["git", "worktree", "add", "--detach", str(before), args.before]
            subprocess.run(words, check=True, capture_output=True, cwd=HERE.parents[1])
        try:
            for number, data in enumerate(args.data or [str(samples_dir() / "train")]):
                lines += ["", f"## {Path(data).name}", ""]
                for line in table(data, args, before, f"{folder}/cache{number}"):
                    print(line, flush=True)
                    lines.append(line)
        finally:
            if before:
                words = ["git", "worktree", "remove", "--force", str(before)]
                subprocess.run(words, check=False, capture_output=True, cwd=HERE.parents[1])
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
