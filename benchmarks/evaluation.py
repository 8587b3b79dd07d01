"""Evaluation at the paper's size on made-up tokens, stage by stage: `python benchmarks/evaluation.py`.

| set | tokens | clusters | classes |
|---|---|---|---|
| VOC | 1,449 images x 784 patches x 384 | 500 (niter 100, nredo 5) | 21, masks 100 x 100 |
| DAVIS | 30 clips x 16 frames x 196 patches x 384 | 200 (niter 50, nredo 5) | 52, masks 224 x 224 |
| YouTube-VOS | 695 clips x 4 frames x 196 patches x 384 | 500 (niter 50, nredo 5) | 66, masks 224 x 224 |

The tokens lie in a temporary folder as a memory map (bf16 bits unless `--store fp32`), written slice by slice: groups of patches
with a centre of their own, an offset for each image, and noise. All are scored over the whole set, five seeds of k-means each,
with the functions of `timet.eval.clustering`; the dataset-wise protocol of videos is made of the same parts.

Each set has a process of its own. Seconds are on the clock and, beside them, of the processor (both cores together): where other
work shared the machine, half the latter is what two free cores would need at least. Memory is the highest resident set during
a stage, which counts the pages of the memory map that happen to be held.

The reference, from the same run: scoring by one full pass over the labels for each pair of cluster and class, as the released code
does. A few passes are timed and multiplied.

Writes `benchmarks/results/evaluation_cpu.md` and `.json`, anew after every seed: a run that is broken off leaves what it
had, and sets that are not measured this time stay as they were.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import psutil

from timet.eval.clustering import count_maps, reduce_tokens
from timet.eval.kmeans import assign, load_faiss, train_kmeans
from timet.eval.score import match_many_to_one, miou
from timet.eval.tokens import as_float, resize_labels

HERE = Path(__file__).resolve().parent
FEATURES, GOAL_SECONDS, GOAL_GB = 384, 180, 4
SETS = {  # images or frames, side of the grid, side of the masks, classes, clusters, steps of k-means
    "VOC": (1449, 28, 100, 21, 500, 100),
    "DAVIS": (480, 14, 224, 52, 200, 50),
    "YouTube-VOS": (2780, 14, 224, 66, 500, 50),
}


def make_up(folder: Path, name: str, store: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    "Write tokens `(b n d)` and masks `(b H W)` into a folder, 32 images at a time, and open them as memory maps."
    images, side, mask, classes, _, _ = SETS[name]
    images, rng = max(round(images * scale), 2), np.random.default_rng(0)
    centres = rng.standard_normal((classes, 1, FEATURES)) + 0.7 * rng.standard_normal((classes, 40, FEATURES))
    loud = 10 ** rng.uniform(-1, 0.5, FEATURES)  # features differ in scale and are correlated, as real ones
    mix = (rng.standard_normal((FEATURES, FEATURES)) / FEATURES**0.5 * loud).astype(np.float32)
    paths = [folder / f"{name}_tokens.npy", folder / f"{name}_masks.npy"]
    kind = np.uint16 if store == "bf16" else np.float32
    tokens = np.lib.format.open_memmap(paths[0], "w+", kind, (images, side * side, FEATURES))
    masks = np.lib.format.open_memmap(paths[1], "w+", np.uint8, (images, mask, mask))
    for i in range(0, images, 32):
        b = min(32, images - i)
        # a few blobs an image: the background and three classes of its own
        own = np.concatenate([np.zeros((b, 2), int), rng.integers(1, classes, (b, 3))], 1)
        coarse = own[np.arange(b)[:, None, None], rng.integers(0, 5, (b, 7, 7))]
        label = resize_labels(coarse, side).reshape(b, -1)
        part = centres[label, rng.integers(0, 40, label.shape)].astype(np.float32)
        part += 0.3 * rng.standard_normal((b, 1, FEATURES), np.float32)
        part += rng.standard_normal(part.shape, np.float32)
        part = part @ mix
        tokens[i : i + b] = part.view(np.uint32) >> 16 if store == "bf16" else part
        truth = resize_labels(coarse, mask).astype(np.uint8)
        truth[rng.random(truth.shape) < 0.05] = 255
        masks[i : i + b] = truth
    del tokens, masks
    return np.load(paths[0], mmap_mode="r"), np.load(paths[1], mmap_mode="r")


def high_water(reset: bool = False) -> float:
    "Highest resident set of this process in GB, since the last reset where the system can forget."
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    if reset:
        clear.write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


class Stages:
    "Seconds and memory of named stages; a stage that comes again is added up."

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        high_water(reset=True)
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        row = self.rows.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0, "peak_gb": 0.0, "times": 0})
        row["seconds"] += time.perf_counter() - wall
        row["cpu_seconds"] += time.process_time() - cpu
        row["peak_gb"] = max(row["peak_gb"], high_water())
        row["times"] += 1


def passes(labels: np.ndarray, masks: np.ndarray, k: int, g: int, count: int = 6) -> float:
    "Seconds that `k * g` full passes over the labels would take, from a few."
    large = resize_labels(labels.astype(np.int32), masks.shape[1:])
    known = masks != 255
    pred, gt = large[known], masks[known].astype(np.int32)
    start = time.perf_counter()
    for i in range(count):
        hit, true = pred == i, gt == i % g
        (hit & true).sum() / max((hit | true).sum(), 1)
    return (time.perf_counter() - start) / count * k * g


def measure(name: str, store: str, seeds: int, scale: float) -> Iterator[dict]:
    "All stages of one set, as they stand after each seed."
    _, side, _, g, k, niter = SETS[name]
    stage, means, reference = Stages(), [], 0.0
    load_faiss()
    with tempfile.TemporaryDirectory(prefix="timet-benchmark-") as folder:
        tokens, masks = make_up(Path(folder), name, store, scale)
        libraries = high_water(reset=True)
        b, n, _ = tokens.shape
        k = min(k, b * n)
        with stage("token read"):
            for i in range(0, b, 64):
                as_float(tokens[i : i + 64]).sum()
        with stage("standardise and PCA"):
            features = reduce_tokens(tokens, 50)
        rows = features.reshape(-1, features.shape[2])
        count = min(len(rows), 256 * k)
        for seed in range(seeds):
            with stage("k-means"):
                chosen = np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))
                centroids = train_kmeans(
                    rows[chosen], k, niter=niter, nredo=5, seed=seed, max_points_per_centroid=count
                )
            with stage("assignment"):
                labels = assign(rows, centroids).reshape(b, side, side)
            with stage("scoring"):
                counts = count_maps(labels, masks, k, g)
                means.append(miou(counts, match_many_to_one(counts))[0])
            reference = reference if seed else passes(labels, masks, k, g)
            yield {
                "set": name, "images": b, "patches": n, "features": FEATURES, "k": k, "classes": g, "niter": niter, "nredo": 5,
                "seeds": seed + 1, "store": store, "rows": len(rows), "trained_on": count, "miou": float(np.mean(means)),
                "before_gb": libraries, "stages": stage.rows, "passes_seconds": reference,
                "seconds": sum(r["seconds"] for r in stage.rows.values()),
                "cpu_seconds": sum(r["cpu_seconds"] for r in stage.rows.values()),
                "peak_gb": max(r["peak_gb"] for r in stage.rows.values()),
            }  # fmt: skip


def table(found: dict) -> list[str]:
    "The rows of one set."
    seeds, scoring = found["seeds"], found["stages"]["scoring"]
    one = scoring["seconds"] / seeds
    lines = [
        f"## {found['set']}: {found['images']:,} x {found['patches']} x {found['features']} ({found['store']}), K = {found['k']}, "
        f"{seeds} seed{'s' * (seeds > 1)}",
        "",
        f"{found['machine']}.",
        "",
        f"k-means trained on {found['trained_on']:,} of {found['rows']:,} rows, niter {found['niter']}, nredo {found['nredo']}.",
        "",
        "| stage | times | seconds | processor seconds | peak memory, GB |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {row['times']} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['peak_gb']:.2f} |"
              for name, row in found["stages"].items()]  # fmt: skip
    lines += [
        f"| **all** | | **{found['seconds']:.1f}** | **{found['cpu_seconds']:.1f}** | **{found['peak_gb']:.2f}** |",
        "",
        f"Scoring one seed: {one:.2f} s. The same by {found['k']} x {found['classes']} full passes over the labels: "
        f"{found['passes_seconds']:.0f} s (6 passes timed, the rest multiplied), {found['passes_seconds'] / one:.0f} times as long.",
        "",
    ]
    return lines


def report(found: list[dict]) -> str:
    "The page of all sets measured so far."
    lines = [
        "# Evaluation at the paper's size, made-up tokens",
        "",
        "`python benchmarks/evaluation.py`",
        "",
    ]
    for one in found:
        lines += table(one)
        if one["set"] == "VOC":
            # the first two stages are done once, the others for each seed
            rows = one["stages"].values()
            five = {key: sum(r[key] * (5 / one["seeds"] if i > 1 else 1) for i, r in enumerate(rows))
                    for key in ("seconds", "cpu_seconds")}  # fmt: skip
            lines += [
                f"Goal for five seeds from cached tokens on two free cores: {GOAL_SECONDS} s and {GOAL_GB} GB. "
                f"Here five seeds {'take' if one['seeds'] == 5 else 'would take'} {five['seconds']:.0f} s on the clock; shared evenly "
                f"by two cores, the processor seconds are {five['cpu_seconds'] / 2:.0f} s. Peak {one['peak_gb']:.1f} GB.",
                "",
            ]
    return "\n".join(lines)


def main() -> None:
    "Measure the sets one after the other, print and keep the tables."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--store", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the images, for a trial; nothing is written")
    parser.add_argument("--one", choices=SETS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        for state in measure(args.one, args.store, args.seeds, args.scale):
            print(json.dumps(state), flush=True)
        return
    kept, found = HERE / "results" / "evaluation_cpu.json", {}
    if args.scale == 1.0 and kept.exists():
        found = {one["set"]: one for one in json.loads(kept.read_text())}
    cores, load = os.cpu_count(), os.getloadavg()[0]
    threads = int(os.environ.get("OMP_NUM_THREADS", cores or 1))
    shared = " (shared with other work)" if load > 0.5 else ""
    machine = (
        f"{cores} cores{shared}, load {load:.1f} at the start, {threads} threads, {platform.machine()}, "
        f"{psutil.virtual_memory().total / 1e9:.0f} GB, faiss {load_faiss().__version__}, {date.today()}"
    )
    for name in args.sets:
        words = ["--one", name, "--store", args.store, "--seeds", str(args.seeds), "--scale", str(args.scale)]
        with subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout or []:
                found[name] = json.loads(line) | {"machine": machine}
                sets = [found[known] for known in SETS if known in found]
                if args.scale == 1.0:
                    kept.parent.mkdir(exist_ok=True)
                    kept.with_suffix(".md").write_text(report(sets), encoding="utf-8")
                    kept.write_text(json.dumps(sets, indent=1) + "\n", encoding="utf-8")
        if child.returncode:
            raise SystemExit(f"measuring {name} failed")
    print(report(sets))


if __name__ == "__main__":
    main()
