"""Where would the host wait for a card? `tests/pretend_card/run.sh count.py MODE`, and the mode is one of these:

- `step`: the loss of a batch of clips, backward, AdamW, prototypes, and the teacher where there is one;
- `train`: the `train_step` of `timet.training.session`, with a real Accelerator, and what a logged step asks beside;
- `evaluate`: tokens, streams, forwarded masks, probes, neighbours, attention, and networks of other kinds;
- `pretrain`: a step of `timet.pretrain` on photographs.

The first step and a later one are counted apart, for the first makes what is kept.

No card is needed; see `fakegpu.py` for what is counted. The default is the paper's size: 128 clips of 4 frames, with
ViT-S/16. Seconds by the roofline are a model, no measurement.
Exits 1 where a device is mixed up with another.
"""

import argparse
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from fakegpu import CARD, Audit, built, on_card, pretend_card

FRAMES, SIZE = 4, 224


@dataclass
class Case:
    "What was counted in one case."

    name: str
    audit: Audit = field(default_factory=Audit)
    failed: str = ""  # Why it could not be finished: a device mixed up with another, most of all

    def run(self, action: Callable[[], Any]) -> "Case":
        "Count what an action does."
        try:
            with self.audit:
                action()
        except Exception as error:
            steps = [s for s in traceback.extract_tb(error.__traceback__) if "/timet/" in s.filename][-2:]
            where = " <- ".join(f"{Path(s.filename).name}:{s.lineno} {s.line}" for s in reversed(steps))
            self.failed = f"{type(error).__name__}: {str(error)[:300]} ({where})"
        return self

    def row(self) -> dict[str, Any]:
        "For machines."
        audit, total = self.audit, self.audit.total
        counts = {name: listed(getattr(audit, name)) for name in ("waits", "blocking", "copies", "mixed")}
        parts = {name: asdict(work) for name, work in audit.parts.items()}
        return {"name": self.name, "failed": self.failed, **asdict(total), "parts": parts, **counts}


def listed(counter: Counter) -> list[dict[str, Any]]:
    "A counter as rows."
    return [{"times": n, "what": what, "lines": list(lines)} for (what, *lines), n in counter.most_common()]


def show(case: Case, parts: bool, lines: int) -> None:
    "For people."
    row = case.row()
    times = {name: sum(x["times"] for x in row[name]) for name in ("waits", "blocking", "copies", "mixed")}
    print(f"\n{case.name}{': FAILED ' + case.failed if case.failed else ''}")
    print(
        f"  {row['operations']} operations, {row['bytes'] / 1e9:.2f} GB, {row['flops'] / 1e12:.3f} TFLOP; "
        f"{times['waits']} waits, {times['blocking']} blocking copies, {times['copies']} free copies, "
        f"{times['mixed']} devices mixed up"
    )
    if parts:
        print(f"  {'part':<34}{'operations':>10}{'GB':>9}{'TFLOP':>9}{'ms by roofline':>16}")
        for name, work in [*case.audit.parts.items(), ("all", case.audit.total)]:
            counts = f"{work.operations:>10}{work.bytes / 1e9:>9.2f}{work.flops / 1e12:>9.3f}"
            print(f"  {name:<34}{counts}{work.seconds * 1e3:>16.2f}")
    told = {"waits": "wait", "blocking": "blocking copy", "mixed": "MIXED UP"} | (
        {"copies": "free copy"} if lines else {}
    )
    for name, title in told.items():
        for found in row[name]:
            print(f"  {found['times']:>4} x {title}, {found['what']}: {' <- '.join(found['lines'])}")
    for line, work in sorted(case.audit.lines.items(), key=lambda pair: -pair[1].bytes)[:lines]:
        print(f"  {work.bytes / 1e9:8.2f} GB {work.operations:>5} x {line}")


def follow_step(audit: Audit, model: Any) -> None:
    "The parts of a training step."
    import timet.labels
    import timet.loss

    backbone = model.backbone
    tuned = backbone.tuned_part

    def tuned_part(hidden: torch.Tensor) -> torch.Tensor:
        with audit.within("tuned part, last frame" if torch.is_grad_enabled() else "tuned part, no gradient"):
            return tuned(hidden)

    audit.follow(backbone, "frozen_part", "frozen part")
    backbone.tuned_part = tuned_part
    audit.follow(timet.labels, "forward_maps", "forwarder")
    audit.follow(timet.labels, "sinkhorn", "Sinkhorn")
    audit.follow(timet.loss, "diagnose", "diagnose")
    audit.follow(timet.loss, "embed", "head")
    audit.follow(timet.loss, "cosine_scores", "cosines")


def loss_changes(args: argparse.Namespace) -> dict[str, Any]:
    "The settings of the loss that were asked for, by name."
    return {"ema_decay": args.ema, "queue_size": args.queue}


def count_step(args: argparse.Namespace) -> Iterator[Case]:
    "`TimeT.step`, backward, AdamW."
    from timet.backbone import create_backbone
    from timet.loss import TimeT, parameter_groups

    def make() -> TimeT:
        return TimeT(create_backbone(args.backbone, weights="none"), **loss_changes(args)).to(CARD)

    model = built(make).train()
    groups = [{name: g[name] for name in ("params", "lr")} for g in parameter_groups(model)]
    optimizer = torch.optim.AdamW(groups)
    parts = [torch.empty(args.clips // args.accumulate, FRAMES, 3, SIZE, SIZE, device=CARD)] * args.accumulate
    case = Case("")

    def step() -> None:
        for clip in parts:
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(clip)
            with case.audit.within("backward"):
                (loss / len(parts)).backward()
        with case.audit.within("AdamW"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with case.audit.within("prototypes, teacher"):
            model.normalize_prototypes()
            if args.ema is not None:
                model.update_teacher()

    sizes = f"{args.clips} clips in {args.accumulate} parts, ema {args.ema}, queue {args.queue}"
    for number in range(args.steps):
        case = Case(f"step: {'a later one' if number else 'the first'}, {sizes}")
        if number == args.steps - 1:
            follow_step(case.audit, model)
        yield case.run(step)
        if case.failed:
            return


def count_train(args: argparse.Namespace) -> Iterator[Case]:
    "`train_step` with a real Accelerator."
    from timet.core import samples_dir
    from timet.data.find import find_sources
    from timet.run.loop import Later
    from timet.training.config import preset_config
    from timet.training.session import start_accelerator, start_session, train_step
    from timet.training.steps import measure_usage

    config = preset_config(
        "paper", backbone=args.backbone, weights="none", device="cuda", precision=args.precision,
        batch_size=args.clips, accumulate=args.accumulate, clips_per_source=args.clips, **loss_changes(args),
    )  # fmt: skip
    sources = find_sources(samples_dir() / "train")
    session = built(lambda: start_session(config, start_accelerator(config), sources))
    session.model.train()
    clip = torch.empty(args.clips // args.accumulate, FRAMES, 3, SIZE, SIZE)
    parts = [{"clip": clip, "bad": []} for _ in range(args.accumulate)]

    def step() -> None:
        train_step(session, parts, (False, False))

    sizes = f"{args.clips} clips in {args.accumulate} parts, {args.precision}, ema {args.ema}, queue {args.queue}"

    def answer(tensor: torch.Tensor) -> int:
        "Under fp16, `was anything infinite?` is asked of the card: 0 is no."
        return 0 if args.precision == "fp16" and on_card(tensor) else 1

    for number in range(args.steps):
        case = Case(f"train: {'a later' if number else 'the first'} train_step, {sizes}", Audit(answer))
        if number == args.steps - 1:
            follow_step(case.audit, session.inner)
            case.audit.follow(session.accelerator, "backward", "backward")
            case.audit.follow(session.optimizer, "step", "AdamW")
        yield case.run(step)
        if case.failed:
            return
    yield Case("train: what a line of the log asks beside").run(lambda: Later(measured=measure_usage(session)))


def network(name: str, tuned: int | str = 0, size: int | None = None) -> Any:
    "A backbone on the card."
    from timet.backbone import create_backbone

    return built(lambda: create_backbone(name, weights="none", tuned_blocks=tuned, image_size=size).to(CARD))


def evaluated(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any]]]:
    "What the evaluation does on a card, piece by piece: name and action."
    from timet.core import samples_dir
    from timet.data.find import find_sources
    from timet.eval.attention import WithAttention
    from timet.eval.head import Probe, score_probe
    from timet.eval.propagate import forward_masks, frame_tokens
    from timet.eval.recipe import probe_settings, train_probe
    from timet.eval.temporal import track_tokens
    from timet.eval.tokens import Tokens, extract_tokens
    from timet.film.stream import Clusters, sample_tokens, stream_labels
    from timet.pretraining.neighbours import features, nearest_neighbours

    films, net = find_sources(samples_dir() / "heldout"), network(args.backbone)
    many = [films[i % len(films)] for i in range(args.clips)]
    film, how = films[0], {"device": "cuda:0", "precision": args.precision}
    dim, grid = net.embed_dim, net.grid(SIZE, SIZE)
    sizes = {"num_frames": FRAMES, "image_size": SIZE, "mask_size": SIZE}
    yield f"extract_tokens, {len(many)} clips", lambda: extract_tokens(net, many, keep_frames=True, **sizes, **how)
    yield "sample_tokens, 16 frames of 2 films", lambda: sample_tokens(net, films[:2], frames=16, **how)
    clusters = Clusters(torch.zeros(dim, 8), torch.zeros(8), 1.0)
    for upscale in ("bilinear", "edges"):
        for temporal in (0.0, 0.2):
            sight = {"upscale": upscale, "temporal": temporal, **how}
            yield (
                f"stream_labels, 20 frames, {upscale}, temporal {temporal}",
                lambda sight=sight: list(stream_labels(film, net, clusters, stop=20, **sight)),
            )
    frames, mask = film.frames(range(4)), film.instances([0])[0]
    yield (
        "forward_masks of frame_tokens, 4 frames",
        lambda: list(forward_masks(frame_tokens(net, list(frames), (SIZE, SIZE), **how), mask, grid)),
    )
    values, ids = (
        np.random.default_rng(0).random((4, grid[0] * grid[1], dim), np.float32),
        np.zeros((4, 100, 100), np.uint8),
    )
    data = Tokens(values, ids, grid, classes={0: "a", 1: "b"})
    for head in ("linear", "fcn"):
        recipe = replace(probe_settings(head, "paper"), epochs=1, batch_size=2)
        yield (
            f"train_probe, {head}, 4 images",
            lambda head=head, recipe=recipe: train_probe(data, data, head=head, variant=recipe, device="cuda:0"),
        )
        probe = built(lambda head=head: Probe(head, dim, 2).to(CARD))
        yield f"score_probe, {head}, 4 images", lambda probe=probe: score_probe(probe, data, 2)
    photos = torch.zeros(6, 3, SIZE, SIZE, dtype=torch.uint8)
    yield "features, 6 photographs", lambda: features(net.model, photos, device="cuda:0", precision=args.precision)
    bank, classes = torch.zeros(50, 2 * dim, device=CARD), torch.zeros(50, dtype=torch.long)
    yield "nearest_neighbours, 6 of 50", lambda: nearest_neighbours(bank, classes, bank[:6], classes[:6])

    def attention() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            WithAttention(net).tokens(torch.zeros(2, 3, SIZE, SIZE, device=CARD))

    yield "WithAttention.tokens, 2 images", attention
    yield "track_tokens, 3 frames", lambda: track_tokens(torch.zeros(3, grid[0] * grid[1], dim, device=CARD), grid)
    yield from other_networks()


def other_networks() -> Iterator[tuple[str, Callable[[], Any]]]:
    "A training step of networks that are built otherwise: name and action."
    from timet.loss import TimeT

    networks = {
        "ResNet-50": ("resnet50", 3, None),
        "a network with all blocks tuned, positions of another size": ("timet_small_patch8_64", "all", 96),
        "ViT-B (MAE)": ("vit_base_patch16_224.mae", 2, None),
        "a network for images normalised otherwise": ("vit_small_patch16_224.augreg_in1k", 2, None),
    }
    for said, (name, tuned, size) in networks.items():
        model = built(lambda made=(name, tuned, size): TimeT(network(*made), radius=4).to(CARD)).train()
        clip = torch.zeros(2, FRAMES, 3, size or SIZE, size or SIZE, device=CARD)

        def step(model: TimeT = model, clip: torch.Tensor = clip) -> None:
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(clip)
            loss.backward()

        yield f"a step of {said}", step


def count_evaluate(args: argparse.Namespace) -> Iterator[Case]:
    "Tokens, streams, masks, probes, neighbours."
    for name, action in evaluated(args):
        yield Case(f"evaluate: {name}").run(action)


def count_pretrain(args: argparse.Namespace) -> Iterator[Case]:
    "One step of distillation, with its views."
    from timet.pretraining import loop
    from timet.pretraining.config import PretrainConfig
    from timet.pretraining.photos import Photos

    many = args.clips
    pixels = torch.zeros(2 * many, 3, 64, 64, dtype=torch.uint8)
    photos = Photos(pixels, torch.zeros(2 * many, dtype=torch.long), ("a",))
    config = PretrainConfig(
        batch_size=many, epochs=10, compile="off", device="cuda", precision="bf16", patch_weight=args.patch_weight
    )
    with mock.patch.object(Photos, "fingerprint", lambda self: ""):
        run = built(lambda: loop.start_pretraining(config, photos))
    run.distiller.train()
    parts = loop.batches(run, pixels.to(CARD))
    case = Case("")

    def step() -> None:
        loop.pretrain_step(run, next(parts))

    for number in range(args.steps):
        case = Case(f"pretrain: {'a later' if number else 'the first'} step, {many} photographs")
        if number == args.steps - 1:
            case.audit.follow(run, "views", "views")
            case.audit.follow(run.distiller, "see", "networks")
            case.audit.follow(run.distiller, "follow", "teacher follows")
            case.audit.follow(run.optimizer, "step", "AdamW")
            for name in ("head", "teacher_head", "loss", "patches"):
                if getattr(run.distiller, name):
                    case.audit.follow(getattr(run.distiller, name), "forward", name)
        yield case.run(step)
        if case.failed:
            return


def count_input(args: argparse.Namespace) -> Iterator[Case]:
    "A batch of clips on its way: sent as bytes, coloured on the card."
    import numpy as np

    from timet.data.clips import ClipAugment, send

    augment = ClipAugment(SIZE)
    plans = [augment.draw(360, 640, np.random.default_rng(i)) for i in range(args.clips)]
    clips = torch.empty(args.clips, FRAMES, 3, SIZE, SIZE, dtype=torch.uint8)
    for number in range(args.steps):
        case = Case(f"input: {'a later' if number else 'the first'} batch, {args.clips} clips")
        yield case.run(lambda: augment.paint(send(clips, CARD), plans))


MODES = {
    "input": count_input,
    "step": count_step,
    "train": count_train,
    "evaluate": count_evaluate,
    "pretrain": count_pretrain,
}


def main() -> None:
    "Count and print."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modes", choices=MODES, nargs="+", metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--clips", type=int, help="clips of a batch (128), or photographs (512)")
    parser.add_argument("--steps", type=int, default=2, help="steps taken, each counted; the last also by its parts")
    parser.add_argument("--accumulate", type=int, default=1, help="parts a batch is computed in")
    parser.add_argument("--ema", type=float, help="a teacher with this memory, such as 0.995")
    parser.add_argument("--queue", type=int, default=0, help="tokens kept for Sinkhorn; 1 is full at once")
    parser.add_argument("--patch-weight", type=float, default=1.0, help="of pretraining's loss of hidden patches")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp16", "fp32"))
    parser.add_argument("--backbone", default="vit_small_patch16_224.dino", help="of the steps and the evaluation")
    parser.add_argument(
        "--lines", type=int, default=0, help="also free copies, and so many lines that move the most bytes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    with pretend_card():
        for mode in args.modes:
            clips = args.clips or (512 if mode == "pretrain" else 128)
            for case in MODES[mode](argparse.Namespace(**{**vars(args), "clips": clips})):
                cases.append(case)
                if not args.json:
                    show(case, parts=mode != "evaluate" and len(case.audit.parts) > 1, lines=args.lines)
    if args.json:
        print(json.dumps([case.row() for case in cases]))
    sys.exit(any(case.failed or case.audit.mixed for case in cases))


if __name__ == "__main__":
    main()
