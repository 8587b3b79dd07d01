"""What an image-pretrained start is worth, and what time-tuning adds: `python benchmarks/start.py --data DAVIS --start FILE`.

Three networks of one architecture, over five seeds:

- *random weights*: network seed and k-means seed s;
- *start*: the exported backbone in FILE; k-means seed s;
- *time-tuned*: the start tuned on clips with training seed s, k-means seed s;

and beside them *patch colour*, no network at all: the mean colour of each patch. Every flag of `python -m timet.train` that is not
one of this command's own sets the tuning: `--delta-t 0.25 --tuned-blocks all --max-steps 400`.

The sequences of DAVIS, sorted by name, are dealt into two halves. A network that was tuned on one half is measured on the other,
both ways round; a seed's score is the mean of the two halves. `--set samples` tunes on the clips of the rendered sample world and
measures on its held-out clips. Frames spread evenly over each sequence are read once, and every network makes its tokens of them
once; all scores are computed from these tokens.

The table goes to `OUT/start.md` and `.json` after every seed; `--record NAME` also writes it to `benchmarks/results/NAME.md` and
`.json`. What was finished before is not computed again, and a tuning that was broken off goes on. The same command with other flags
of the tuning and the same `--out` computes the tuned networks alone and lists what each tuning gained. Runs, scores and pictures of
a tuning lie in `OUT/SET/TUNING`, which is named after what differs from the defaults.
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from einops import rearrange
from PIL import Image

from timet.backbone import create_backbone, load_backbone
from timet.core import TimetError, atomic_write, pick_device, progress, samples_dir, seed_everything, write_json
from timet.data.find import Sources, find_sources
from timet.data.source import Source
from timet.data.video import frame_at
from timet.eval.clustering import evaluate
from timet.eval.davis import region_similarity
from timet.eval.kmeans import kmeans, standardize_pca
from timet.eval.propagate import forward_masks
from timet.eval.temporal import temporal_consistency
from timet.eval.tokens import Tokens, resize_labels
from timet.eval.tracker import object_masks
from timet.lab.compare import Clip, clip_tokens, read_clip, same_colours
from timet.run.check import flat
from timet.run.command import parse, run_command
from timet.train import train
from timet.training.config import FREE, TrainConfig, preset_config
from timet.viz.charts import to_png
from timet.viz.paint import overlay
from timet.viz.strips import film_strip

HERE = Path(__file__).resolve().parent
NETWORKS = ("patch colour", "random weights", "start", "time-tuned")
SAME = ("patch colour", "start")  # the seed changes the clustering alone
GAINS = (("start", "random weights"), ("time-tuned", "start"))
FORWARDED = "J, forwarded masks"
LATER = 0.5  # seconds, of the temporal consistency
GROUNDS = ("meadow", "sand", "sky", "water")  # of the sample world: no objects to be forwarded
SHOWN = 6  # frames of a picture
# where tuning starts from, beside the defaults of `timet.train`: the clips are few and the time is short
TUNING = {"max_steps": 200, "tuned_blocks": 2, "lr_backbone": 1e-4, "clips_per_source": 16, "cache_mb": 1000.0}
SETS: dict[str, dict[str, Any]] = {"davis": TUNING | {"delta_t": 0.5}, "samples": TUNING | {"delta_t": 0.25}}


class PatchColour(torch.nn.Module):
    "What stands in for a backbone: the mean colour of each patch."

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, self.patch_size).flatten(2).mT


@dataclass(frozen=True)
class Settings:
    "How networks are measured."

    frames: int  # Of a sequence, spread evenly over it
    patches: int  # Along the short side of a frame
    clusters: int  # Of the over-clustering
    consistency_clusters: int  # Of the clusters that are followed in time


@dataclass(eq=False)
class Half:
    "Sequences to measure on, and those to tune on."

    set: str
    name: str
    measured: Sources
    tuned: Path  # Folder of clips
    rate: float | None  # Frames a second, where it is a folder of frames
    tuning: str  # What the tuning is called
    settings: Settings
    # of networks that are the same for every seed
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    regions: dict[str, list[float]] = field(default_factory=dict)

    @cached_property
    def clips(self) -> list[Clip]:
        "Frames, motion and classes, read when they are first wanted."
        bar = progress(self.measured, f"{self.set}, half {self.name}: reading", "sequence")
        clips = [read_evenly(source, self.settings, self.measured.classes) for source in bar]
        if len({clip.frames.shape for clip in clips}) > 1:
            raise TimetError(f"all sequences of {self.measured.root} must have one size and enough frames for --frames")
        return clips

    @cached_property
    def objects(self) -> list[np.ndarray]:
        "Ids of the objects to be forwarded, in the clips' frames `(t H W)` each."
        found = []
        for source, clip in zip(self.measured, self.clips):
            index = frame_at(source.starts, clip.seconds + source.starts[0])
            ids = object_masks(source, index, classes=self.measured.classes, background=GROUNDS)
            found.append(resize_labels(ids, clip.frames.shape[1:3]))
        return found


def read_evenly(source: Source, settings: Settings, classes: Mapping[int, str]) -> Clip:
    "Frames from the first to the last of a sequence, as many as wanted."
    step = float(source.starts[-1] - source.starts[0]) / (settings.frames - 1)
    return read_clip(source, num_frames=settings.frames, delta_t=step, patches=settings.patches, classes=classes)


def deal(names: Sequence[str]) -> dict[str, tuple[list[str], list[str]]]:
    "Two halves of a set by the order of the names: half -> what is measured, what is tuned on."
    ordered = sorted(names)
    a, b = ordered[0::2], ordered[1::2]
    if not b:
        raise TimetError(f"two halves need at least two sequences, found {len(ordered)}")
    return {"a": (a, b), "b": (b, a)}


def shrink(sources: Sequence[Source], folder: Path, side: int) -> Path:
    "Copies of the frames with a short side of `side` pixels, so that tuning need not decode and shrink large ones again and again."
    for source in progress(sources, f"frames of {side} pixels", "sequence"):
        height, width = source.size
        scale = min(side / min(height, width), 1.0)
        size = round(width * scale), round(height * scale)
        for i in range(source.num_frames):
            path = folder / source.name / f"{i:05d}.jpg"
            if not path.exists():
                picture = Image.fromarray(source.frames([i])[0]).resize(size, Image.Resampling.LANCZOS)
                with atomic_write(path) as part:
                    picture.save(part, quality=95)
    return folder


def pick(sources: Sources, names: Sequence[str]) -> Sources:
    "Some of the sequences."
    chosen = [source for source in sources if source.name in names]
    return Sources(chosen, sources.root, sources.layout, sources.classes, sources.semantic)


def tuning_settings(config: TrainConfig) -> dict[str, Any]:
    "What a tuned network depends on, beside its start, its clips and its seed."
    known = FREE | {"preset", "backbone", "weights", "seed", "fps", "split", "val_data", "val_split"}
    return {k: v for k, v in flat(config).items() if k not in known and not k.startswith("eval")}


def label(config: TrainConfig, default: TrainConfig) -> str:
    "A name for a tuning, from what differs from the default."
    before, words = tuning_settings(default), []
    for name, value in tuning_settings(config).items():
        if value != before[name]:
            words.append(f"{name}={'x'.join(map(str, value)) if isinstance(value, tuple) else value}")
    return ",".join(words) or "default"


def halves(name: str, data: Path | None, config: TrainConfig, tuning: str, settings: Settings, out: Path) -> list[Half]:
    "What is measured on what."
    if name == "samples":
        root = samples_dir()
        return [Half(name, "held-out", find_sources(root / "heldout"), root / "train", None, tuning, settings)]
    if data is None:
        raise TimetError("the set davis needs its folder: --data PATH; or take --set samples")
    sources = find_sources(data)
    if not all(source.has_masks for source in sources):
        raise TimetError(f"{data} holds {sources} and not all of them have masks; give labelled sequences")
    # the smallest crop that training takes is then about as large as its input
    side, found = round(1.5 * config.image_size), []
    for half, (measured, tuned) in deal(sources.names).items():
        others = pick(sources, tuned)
        folder = shrink(others, out / name / f"frames-{side}" / f"not-{half}", side)
        found.append(Half(name, half, pick(sources, measured), folder, others[0].fps, tuning, settings))
    return found


def tune(half: Half, config: TrainConfig, seed: int, out: Path) -> Path:
    "The tuned backbone of one seed; a run that was broken off goes on, and one that is finished is not repeated."
    folder = out / half.set / half.tuning / f"run_{half.name}_{seed}"
    if not (folder / "report.html").exists():
        begun = (folder / "config.json").exists()
        train(replace(config, data=half.tuned, fps=half.rate, seed=seed, out=folder, resume=begun))
    return folder / "backbone.safetensors"


def network(kind: str, half: Half, config: TrainConfig, seed: int, out: Path) -> torch.nn.Module:
    "One of the things compared."
    start = load_backbone(config.weights, tuned_blocks=0)
    if kind == "patch colour":
        return PatchColour(start.patch_size)
    if kind == "random weights":
        seed_everything(seed)
        return create_backbone(
            start.name, weights="none", tuned_blocks=0, image_size=start.image_size, model_args=start.made.model_args
        )
    return start if kind == "start" else load_backbone(tune(half, config, seed, out), tuned_blocks=0)


def tokens_of(kind: str, half: Half, config: TrainConfig, seed: int, out: Path) -> np.ndarray:
    "Tokens of all measured clips `(b t n d)`, made once for what does not depend on the seed."
    if kind in half.tokens:
        return half.tokens[kind]
    net = network(kind, half, config, seed, out)
    bar = progress(half.clips, f"{kind}: tokens", "clip")
    tokens = np.stack([clip_tokens(net, clip, device=config.device) for clip in bar])
    if kind in SAME:
        half.tokens[kind] = tokens
    return tokens


def cluster_clip(tokens: np.ndarray, grid: tuple[int, int], k: int, seed: int) -> np.ndarray:
    "Clusters of the tokens of one clip `(t h w)`, found as in Section 4.1."
    labels, _ = kmeans(standardize_pca(rearrange(tokens, "t n d -> (t n) d")), k, seed=seed)
    return rearrange(labels, "(t h w) -> t h w", t=len(tokens), h=grid[0])


def kept(maps: np.ndarray, clip: Clip) -> tuple[float, float]:
    "Share of patches that are in the same cluster half a second later, as it is and beyond chance."
    steps = clip.steps(LATER)
    index = clip.successors[steps]
    pairs = [(maps[[i, i + steps]], index[i : i + 1]) for i in range(len(index))]
    plain, adjusted = ([temporal_consistency(*pair, adjusted=a) for pair in pairs] for a in (False, True))
    return float(np.nanmean(plain)), float(np.nanmean(adjusted))


def carried(
    tokens: np.ndarray, objects: np.ndarray, grid: tuple[int, int], device: torch.device
) -> Iterator[np.ndarray]:
    "The first frame's masks in the other frames; shares of patches are carried, since an object may be smaller than one."
    frames = (torch.from_numpy(frame).to(device) for frame in tokens)
    return forward_masks(frames, objects[0], grid, context=7, soft=True)


def region(masks: Iterable[np.ndarray], objects: np.ndarray) -> float:
    "J of the first frame's objects, mean over frames and objects; the first and the last frame are left out, as in DAVIS."
    ids = [int(i) for i in np.unique(objects[0]) if i not in (0, 255)]
    if not ids:
        return float("nan")
    pairs = zip(masks, objects[1:-1])
    return float(np.mean([[region_similarity(m == i, true == i, true == 255) for i in ids] for m, true in pairs]))


def measure(kind: str, tokens: np.ndarray, half: Half, seed: int, device: torch.device) -> dict[str, Any]:
    "Every score of one network on one half, in percent, and what the clips contribute."
    settings, grid = half.settings, half.clips[0].grid
    # at half the size of the frames: the clusters are patches anyway
    masks = np.stack([resize_labels(clip.masks, (8 * grid[0], 8 * grid[1])) for clip in half.clips])
    scores = {}
    asked = {"per frame": ("frame", "gt"), "per clip": ("clip", "gt"), "whole set": ("dataset", "gt")}
    asked[f"over-clustering, {settings.clusters} clusters"] = ("dataset", settings.clusters)
    for name, (protocol, k) in asked.items():
        video = Tokens(tokens, masks, grid, semantic=half.measured.semantic)
        found = evaluate(video, protocol=protocol, k=k, seeds=[seed])
        scores[name] = 100 * found.mean
    regions = half.regions.get(kind)
    if regions is None:
        pairs = progress(list(zip(tokens, half.objects)), "forwarding", "clip")
        regions = [100 * region(carried(part, objects, grid, device), objects) for part, objects in pairs]
        half.regions |= {kind: regions} if kind in SAME else {}
    by_clip = {}
    for clip, part, j in zip(half.clips, tokens, regions):
        plain, adjusted = kept(cluster_clip(part, grid, settings.consistency_clusters, seed), clip)
        by_clip[clip.name] = {"consistency": 100 * plain, "consistency beyond chance": 100 * adjusted, FORWARDED: j}
    for name in next(iter(by_clip.values())):
        scores[name] = float(np.nanmean([row[name] for row in by_clip.values()]))
    return {"scores": scores, "by_clip": by_clip}


def copied(half: Half) -> float:
    "J in percent of leaving the first masks where they are."
    return 100 * float(np.nanmean([region([m[0]] * (len(m) - 2), m) for m in half.objects]))


def result_file(out: Path, half: Half, kind: str, seed: int) -> Path:
    "Where one result is kept."
    folder = out / half.set / (half.tuning if kind == "time-tuned" else "untuned")
    return folder / f"{kind.replace(' ', '-')}_{half.name}_{seed}.json"


def one_result(kind: str, half: Half, config: TrainConfig, seed: int, out: Path) -> None:
    "Make one result, unless it is there."
    path = result_file(out, half, kind, seed)
    if path.exists():
        return
    start = time.perf_counter()
    tokens = tokens_of(kind, half, config, seed, out)
    made = time.perf_counter()
    found = measure(kind, tokens, half, seed, pick_device(config.device))
    seconds = {"network and tokens": made - start, "scores": time.perf_counter() - made}
    write_json(path, found | {"seconds": seconds, "copied J": copied(half)})
    said = ", ".join(f"{name} {value:.1f}" for name, value in found["scores"].items())
    print(f"{half.set} {half.name}, {kind}, seed {seed}, {sum(seconds.values()):.0f} s: {said}", flush=True)


def collect(out: Path, parts: Sequence[Half], seeds: int) -> dict[str, dict[str, list[float]]]:
    "Network -> score -> one value a seed, the mean over the halves; only seeds that are complete."
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        files = {kind: [result_file(out, half, kind, seed) for half in parts] for kind in NETWORKS}
        if not all(path.exists() for paths in files.values() for path in paths):
            continue
        for kind, paths in files.items():
            both = [json.loads(path.read_text(encoding="utf-8"))["scores"] for path in paths]
            for name in both[0]:
                value = float(np.mean([one[name] for one in both]))
                found.setdefault(kind, {}).setdefault(name, []).append(value)
    return found


def spread(values: Sequence[float], sign: str = "") -> str:
    "Mean and standard deviation over seeds."
    return f"{np.mean(values):{sign}.1f} ± {np.std(values):.1f}"


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    "Rows are scores, columns networks, then the gains, seed by seed."
    head = ["score", *NETWORKS, *(f"{after} − {before}" for after, before in GAINS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in found[NETWORKS[0]]:
        cells = [name, *(spread(found[kind][name]) for kind in NETWORKS)]
        cells += [spread(np.subtract(found[after][name], found[before][name]), "+") for after, before in GAINS]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(half: Half, name: str, config: TrainConfig, out: Path) -> None:
    "Two strips of one sequence, for the networks of seed 0: the clusters, in colours that can be compared, and the carried masks."
    folder, stem = out / half.set / half.tuning / "pictures", name.replace("/", "_")
    paths = [folder / f"{stem}_{what}.png" for what in ("clusters", "masks")]
    if all(path.exists() for path in paths):
        return
    where, device = half.measured.names.index(name), pick_device(config.device)
    clip, objects = half.clips[where], half.objects[where]
    index = np.linspace(0, len(clip.frames) - 1, SHOWN).round().astype(int)
    frames, size = clip.frames[index], clip.frames.shape[1:3]
    # the colours laid over a frame must not be mixed with its own
    grey = np.broadcast_to(frames.mean(-1, keepdims=True).astype(np.uint8), frames.shape)
    tokens = {
        kind: half.tokens[kind][where]
        if kind in half.tokens
        else clip_tokens(network(kind, half, config, 0, out), clip, device=config.device)
        for kind in NETWORKS[1:]
    }
    maps = {kind: cluster_clip(t, clip.grid, half.settings.consistency_clusters, 0) for kind, t in tokens.items()}
    clusters, masks = {"frames": frames}, {"true masks": overlay(frames, objects[index], background=True, ignore=255)}
    for kind, ids in maps.items():
        same = same_colours(maps["start"], ids)[0 if kind == "start" else 1]
        said = f"{kind}\n{100 * kept(ids, clip)[0]:.0f} % kept"
        clusters[said] = overlay(grey, resize_labels(same[index], size), alpha=0.65, edges=False)
        found = [objects[0], *carried(tokens[kind], objects, clip.grid, device)]
        said = f"{kind}\nJ {100 * region(found[1:], objects):.0f}"
        masks[said] = overlay(frames, np.stack(found)[index], background=True)
    for path, rows in zip(paths, (clusters, masks)):
        figure = film_strip(rows, titles=[f"{clip.seconds[i]:.1f} s" for i in index], width=13.0)
        with atomic_write(path) as part:
            part.write_bytes(to_png(figure))


def claim(folder: Path, facts: dict[str, Any]) -> None:
    "Write down what the results in a folder are made with, and refuse to mix them with others."
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, facts)
    before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(facts))
    changed = [f"{k} {before.get(k)!r} and not {now.get(k)!r}" for k in before | now if before.get(k) != now.get(k)]
    if changed:
        raise TimetError(f"{folder} holds results made with {', '.join(changed)}; choose another --out")


def tunings(out: Path, parts: Sequence[Half], seeds: int) -> list[str]:
    "What each tuning tried so far adds to the start, where there are several; only seeds that are complete."
    names = sorted(path.parent.name for path in (out / parts[0].set).glob("*/settings.json"))
    found = {name: collect(out, [replace(half, tuning=name) for half in parts], seeds) for name in names}
    found = {name: one for name, one in found.items() if one}
    if len(found) < 2:
        return []
    scores = list(next(iter(found.values()))["start"])
    lines = ["", "What the tunings add to the start:", ""]
    lines += ["| tuning | seeds | " + " | ".join(scores) + " |", "|" + "---|" * (len(scores) + 2)]
    for name, one in found.items():
        gains = [spread(np.subtract(one["time-tuned"][k], one["start"][k]), "+") for k in scores]
        lines.append("| " + " | ".join([name, str(len(one["start"][scores[0]])), *gains]) + " |")
    return lines


def report(out: Path, data: Mapping[str, tuple[TrainConfig, Sequence[Half]]], args: argparse.Namespace) -> str:
    "The tables of all sets, as far as they are known; also written as JSON."
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{psutil.cpu_count(logical=False)} cores, {platform.machine()}"
    lines = [
        "# What the start is worth, and what time-tuning adds",
        "",
        f"In percent, mean ± standard deviation over the seeds. Start: `{args.start.name}`. "
        f"{device}, torch {torch.__version__}, {date.today()}. `python benchmarks/start.py`",
    ]
    numbers = {}
    for name, (config, parts) in data.items():
        found = collect(out, parts, args.seeds)
        if not found:
            continue
        seeds = len(found["start"][next(iter(found["start"]))])
        files = [result_file(out, half, kind, s) for half in parts for kind in NETWORKS for s in range(args.seeds)]
        made = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.exists()]
        copy = float(np.mean([one["copied J"] for one in made]))
        dealt = "two halves, each measured with networks tuned on the other" if len(parts) > 1 else "held-out clips"
        clips = sum(len(half.measured) for half in parts)
        numbers[name] = {
            "seeds": seeds,
            "copied J": copy,
            "scores": found,
            "settings": measuring(args) | tuning_settings(config),
        }
        lines += [
            "",
            f"## {name}",
            "",
            f"{clips} sequences ({dealt}), {args.frames} frames each, {args.patches} patches along the short side; seeds: "
            f"{seeds}. Tuning: {config.max_steps} steps of {config.batch_size} clips of {config.num_frames} frames "
            f"{config.delta_t} s apart, {config.image_size} pixels, {config.loss.num_prototypes} prototypes, tuned blocks: "
            f"{config.tuned_blocks}, learning rates {config.lr_backbone:g} and {config.lr_head:g}.",
            "",
            *table(found),
            "",
            f"The first masks left where they are: J {copy:.1f}.",
            *tunings(out, parts, args.seeds),
        ]
    lines += [
        "",
        "*Per frame*, *per clip* and *whole set* cluster the tokens of a frame, a sequence or all sequences into as many clusters "
        "as there are classes, matched one to one; *over-clustering* maps each of many clusters of the whole set to its commonest "
        f"class (mIoU). *Consistency*: patches that are in the same of {args.consistency_clusters} clusters half a second later, "
        "along the true motion where it is known and the optical flow elsewhere; *beyond chance* takes off what clusters of these "
        "sizes reach by chance. *J*: the first frame's masks carried through the sequence by the Feature Forwarder.",
        "",
    ]
    write_json(out / "start.json", numbers)
    text = "\n".join(lines)
    targets = [out / "start.md"]
    if args.record:
        targets.append(HERE / "results" / f"{args.record}.md")
        write_json(targets[-1].with_suffix(".json"), numbers)
    for target in targets:
        with atomic_write(target) as part:
            part.write_text(text, encoding="utf-8")
    return text


def measuring(args: argparse.Namespace) -> dict[str, Any]:
    "What all results depend on."
    own = {name: getattr(args, name) for name in ("frames", "patches", "clusters", "consistency_clusters")}
    return {**own, "start": hashlib.sha256(args.start.read_bytes()).hexdigest()[:16]}


def run(args: argparse.Namespace, rest: list[str]) -> None:
    "Measure everything, seed by seed."
    if args.frames < 3 or args.seeds < 1:
        raise TimetError(f"--frames must be at least 3 and --seeds at least 1, got {args.frames} and {args.seeds}")
    args.start = args.start.with_suffix(".safetensors")
    if not args.start.is_file():
        raise TimetError(f"there is no exported backbone {args.start}; give one with --start FILE.safetensors")
    name, sets = load_backbone(args.start).name, tuple(SETS) if args.set == "both" else (args.set,)
    settings = Settings(args.frames, args.patches, args.clusters, args.consistency_clusters)
    data = {}
    for chosen in sets:
        default = preset_config("demo", backbone=name, weights=str(args.start), eval=False, **SETS[chosen])
        config = parse(TrainConfig, rest, prog="start.py", default=default)
        tuning = label(config, default)
        claim(args.out / chosen, measuring(args))
        claim(args.out / chosen / tuning, tuning_settings(config))
        data[chosen] = config, halves(chosen, args.data, config, tuning, settings, args.out)
    jobs = [
        (kind, half, config, seed)
        for config, parts in data.values()
        for seed in range(args.seeds)
        for half in parts
        for kind in NETWORKS
    ]
    for kind, half, config, seed in progress(jobs, "start.py", "result"):
        one_result(kind, half, config, seed, args.out)
        if kind == NETWORKS[-1]:
            report(args.out, data, args)
    config, parts = data.get("davis") or next(iter(data.values()))
    names = sorted(n for half in parts for n in half.measured.names)
    shown = args.show or [names[i] for i in np.unique(np.linspace(0, len(names) - 1, 3).astype(int))]
    for half in parts:
        for one in sorted({*half.measured.names} & {*shown}):
            draw(half, one, config, args.out)
    print(report(args.out, data, args))
    print(f"pictures: {args.out / parts[0].set / parts[0].tuning / 'pictures'}")


def main() -> None:
    "Read the command line."
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Every other flag is a setting of the tuning: see python -m timet.train --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, help="DAVIS, or other labelled sequences of one size")
    parser.add_argument("--start", type=Path, default=samples_dir() / "weights/timet_small_patch8_64.safetensors")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", choices=("davis", "samples", "both"), default="both")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/start"), help="where results, runs and pictures are kept"
    )
    parser.add_argument("--record", metavar="NAME", help="also write benchmarks/results/NAME.md and .json")
    parser.add_argument("--frames", type=int, default=20, help="frames of a sequence that are measured")
    parser.add_argument("--patches", type=int, default=18, help="patches along the short side of a measured frame")
    parser.add_argument("--clusters", type=int, default=50, help="of the over-clustering")
    parser.add_argument("--consistency-clusters", type=int, default=6, help="of the clusters that are followed in time")
    parser.add_argument("--show", nargs="+", metavar="SEQUENCE", help="sequences to draw; otherwise three")
    args, rest = parser.parse_known_args()
    run_command(lambda: run(args, rest), "start.py")


if __name__ == "__main__":
    main()
