"""Which pretraining recipe is worth a GPU: `python benchmarks/recipe.py --photos TRAIN.zip --check OTHERS.zip --data DAVIS`.

A tiny network learns from photographs of some classes (never told) by each recipe, with **equal computing**: as many steps as
the multiplications of `--epochs` passes of DINO allow, counted by torch and not by a clock, so that a busy machine changes
nothing. Then it is asked

- which class a photograph is of that it never saw (nearest neighbours);
- for masks forwarded from the first frame, over-clustering and consistency on two labelled videos that it never saw.

Random weights and patch colour stand beside it. Every result is a file below `--out`, and what is there is not computed again:
several processes may share the work (`--seeds 0`, `--seeds 1`). The table goes to `OUT/recipe.md`, and with `--record` into
`benchmarks/results/`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from start import FORWARDED, HERE, Half, PatchColour, Settings, measure, pick
from torch.utils.flop_counter import FlopCounterMode

import timet.backbone
from timet.backbone import create_backbone
from timet.core import TimetError, atomic_write, progress, seed_everything, write_json
from timet.data.find import find_sources
from timet.lab.compare import clip_tokens
from timet.pretraining.config import PretrainConfig
from timet.pretraining.loop import Pretraining, batches, pretrain_step, start_pretraining
from timet.pretraining.neighbours import check_networks
from timet.pretraining.photos import Photos, read_photos
from timet.run.check import adjust
from timet.run.command import run_command

RECIPES: dict[str, dict[str, Any]] = {
    "DINO": {"local_views": 6, "patch_weight": 0.0},
    "DINO, hidden patches": {"local_views": 6, "patch_weight": 1.0},
    "DINO, 2 small views": {"local_views": 2, "patch_weight": 0.0},
    "DINO, 2 small views, hidden patches": {"local_views": 2, "patch_weight": 1.0},
}
FLOORS = ("patch colour", "random weights")
# small enough for two cores to train it eight times in an evening
TINY = (
    "timet_micro_patch8_32",
    ("vit_tiny_patch16_224", dict(img_size=32, patch_size=8, embed_dim=96, depth=4, num_heads=3)),
)
BASE = PretrainConfig(
    backbone=TINY[0], image_size=32, local_size=16, hidden_dim=256, output_dim=1024, batch_size=128, lr=2e-3,
    device="cpu", precision="fp32", compile="off",
)  # fmt: skip
NEIGHBOURS, CLUSTERS = "nearest neighbours", 50
SHOWN = (NEIGHBOURS, FORWARDED, f"over-clustering, {CLUSTERS} clusters", "whole set", "consistency beyond chance")


def some_classes(photos: Photos, count: int) -> Photos:
    "The photographs of some classes, evenly spaced over the sorted names."
    kept = [i * len(photos.classes) // count for i in range(count)]
    at = torch.isin(photos.labels, torch.tensor(kept))
    labels = torch.searchsorted(torch.tensor(kept), photos.labels[at])
    return Photos(photos.pixels[at], labels, tuple(photos.classes[i] for i in kept))


def work(config: PretrainConfig, photos: Photos) -> int:
    "Multiplications and additions of a step."
    run = start_pretraining(config, photos)
    with FlopCounterMode(display=False) as counter:
        pretrain_step(run, next(batches(run, photos.pixels)))
    return counter.get_total_flops()


def learn(config: PretrainConfig, photos: Photos, steps: int, words: str) -> Pretraining:
    "Take so many steps, over which the schedules are spread."
    run = start_pretraining(config, photos)
    run.total = steps
    run.distiller.train()
    parts = batches(run, photos.pixels)
    for _ in progress(range(steps), words, "step"):
        last = pretrain_step(run, next(parts))
    if not float(last["loss"]) < float("inf"):
        raise TimetError(f"{words}: the loss is {float(last['loss'])} after {steps} steps; choose a smaller --lr")
    return run


def score(kind: str, net: torch.nn.Module, half: Half, known: Photos, asked: Photos, seed: int) -> dict[str, float]:
    "What a network knows, in percent."
    tokens = np.stack([clip_tokens(net, clip, device="cpu") for clip in half.clips])
    scores = measure(kind, tokens, half, seed, torch.device("cpu"))["scores"]
    if isinstance(net, PatchColour):
        return scores
    return {NEIGHBOURS: 100 * check_networks({kind: net.model}, known, asked)[kind], **scores}


def result(name: str, seed: int, half: Half, known: Photos, asked: Photos, args: argparse.Namespace) -> dict[str, Any]:
    "One network, made and measured."
    config = replace(BASE, seed=seed, lr=args.lr)
    if name == "patch colour":
        return {"scores": score(name, PatchColour(8), half, known, asked, seed)}
    if name == "random weights":
        seed_everything(seed)
        return {"scores": score(name, create_backbone(TINY[0], weights="none"), half, known, asked, seed)}
    told = adjust(config, RECIPES[name])
    a_pass = len(known) // config.batch_size
    budget = args.epochs * a_pass * work(config, known)
    steps, began = round(budget / work(told, known)), time.process_time()
    run = learn(told, known, steps, f"{name}, seed {seed}")
    took = time.process_time() - began
    scores = score(name, run.distiller.teacher, half, known, asked, seed)
    return {"scores": scores, "steps": steps, "epochs": steps / a_pass, "cpu_seconds": took}


def jobs(args: argparse.Namespace) -> Iterator[tuple[str, int, Path]]:
    "Name, seed and file of every result."
    for seed in args.seeds:
        for name in (*FLOORS, *RECIPES):
            yield name, seed, args.out / f"{name.replace(', ', '_').replace(' ', '-')}_{seed}.json"


def table(args: argparse.Namespace) -> str:
    "All results that are there, as Markdown."
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(args.out.glob("*_*.json")):
        row = json.loads(file.read_text())
        found.setdefault(row["name"], []).append(row)
    lines = [f"| | seeds | epochs | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 3) + "|"]
    for name in (n for n in (*FLOORS, *RECIPES) if n in found):
        rows, cells = found[name], []
        for what in SHOWN:
            values = [row["scores"][what] for row in rows if what in row["scores"]]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}" if values else "")
        epochs = f"{rows[0]['epochs']:.1f}" if "epochs" in rows[0] else ""
        lines.append(f"| {name} | {len(rows)} | {epochs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    "Make what is missing and write the table."
    torch.set_num_threads(args.threads)
    timet.backbone.ALIASES.update([TINY])
    args.out.mkdir(parents=True, exist_ok=True)
    known, asked = (some_classes(read_photos(p, size=BASE.image_size), args.classes) for p in (args.photos, args.check))
    sources = find_sources(args.data)
    videos = pick(sources, args.videos)
    if len(videos) < len(args.videos):
        raise TimetError(
            f"{args.data} holds {', '.join(sources.names)}; --videos names others: {', '.join(args.videos)}"
        )
    settings = Settings(frames=20, patches=18, clusters=CLUSTERS, consistency_clusters=6)
    half = Half("davis", "two", videos, Path(), None, "none", settings)
    for name, seed, file in jobs(args):
        if not file.exists():
            half.regions.clear()  # `measure` remembers those that do not depend on the seed
            found = {"name": name, "seed": seed, **result(name, seed, half, known, asked, args)}
            write_json(file, found)
            print(json.dumps(found), flush=True)
    said = (
        f"Equal computing, that of {args.epochs} epochs of DINO; {len(known):,} photographs of {args.classes} classes at "
        f"{BASE.image_size} x {BASE.image_size}, {len(asked)} others; videos {', '.join(args.videos)}. Percent, mean and "
        f"standard deviation over seeds; chance of a neighbour {100 / args.classes:.0f}.\n\n{table(args)}\n"
    )
    places = [args.out / "recipe.md", *([HERE / "results" / f"{args.record}.md"] if args.record else [])]
    for place in places:
        with atomic_write(place) as part:
            part.write_text(said)
    print(said)


def main() -> None:
    "Read the command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--photos", type=Path, required=True, help="photographs to learn from, in folders by class")
    parser.add_argument("--check", type=Path, required=True, help="others of the same classes")
    parser.add_argument("--data", type=Path, required=True, help="labelled videos in DAVIS's layout")
    parser.add_argument("--videos", nargs="+", default=["blackswan", "dog"], help="sequences to measure on")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10, help="of DINO, whose computing all recipes get")
    parser.add_argument("--lr", type=float, default=BASE.lr, help="for a batch of 512")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--record", metavar="NAME", help="also write benchmarks/results/NAME.md")
    args = parser.parse_args()
    run_command(lambda: run(args), "recipe.py")


if __name__ == "__main__":
    main()
