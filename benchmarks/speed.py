"""How fast a training step is, beside the plain forward of the same frames: `python benchmarks/speed.py`.

One run prints, and writes to `benchmarks/results/speed_<device>.md`:

- the step (forward, backward, AdamW, prototypes) as a ratio of the ViT's plain forward without gradient, ViT-S/16, 4 clips of 4 frames;
- the shares of the forwarder, of Sinkhorn and of data loading in that step, and the peak memory of each;
- the windowed against the dense forwarder at 14x14, 28x28 and 64x64 tokens (`benchmarks/forwarder.py`);
- on a GPU also clips a second in bf16 at batch 128, with and without `torch.compile`, the TFLOP/s reached and their share of what a
  large bf16 matrix product reaches on the same card.

Rounds of the things compared alternate, so that a slow moment of the machine hits all of them; the median is shown.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import psutil
import torch
from torch import Tensor

from timet.backbone import create_backbone
from timet.core import samples_dir, seed_everything
from timet.data.clips import ClipAugment
from timet.data.find import find_sources
from timet.data.loader import ClipDataset, make_loader
from timet.feature_forwarder import forward_maps
from timet.loss import TimeT, parameter_groups
from timet.sinkhorn import sinkhorn

HERE = Path(__file__).resolve().parent
CLIPS, FRAMES, SIZE = 4, 4, 224
# on Linux a child's ru_maxrss starts at what its parent held; VmHWM is the child's own
PEAK = """
import resource, sys
from pathlib import Path
own = Path("/proc/self/status")
kilobytes = (int(own.read_text().split("VmHWM:")[1].split()[0]) if own.exists()
             else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1))
print(kilobytes / 2**20)
"""


def timed(actions: dict[str, Callable[[], object]], rounds: int, sync: Callable[[], None]) -> dict[str, float]:
    "Median seconds of each action over alternating rounds, after one warm-up each."
    for action in actions.values():
        action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            sync()
            start = time.perf_counter()
            action()
            sync()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def training(device: torch.device, clips: int, compiled: bool = False) -> tuple[TimeT, Callable[[Tensor], Tensor]]:
    "A model with the paper's settings and its training step, bf16 on a GPU and fp32 on the CPU."
    model = TimeT(create_backbone("vit_small_patch16_224.dino", weights="none")).to(device)
    groups = parameter_groups(model, lr_backbone=1e-5, lr_head=1e-4)
    optimizer = torch.optim.AdamW([{k: g[k] for k in ("params", "lr")} for g in groups], fused=device.type == "cuda")
    run = torch.compile(model) if compiled else model

    def step(clip: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = run(clip)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.normalize_prototypes()
        return loss.detach()

    return model, step


def peak_memory(code: str) -> float:
    "Peak resident memory in GB of a fresh process that runs this code."
    done = subprocess.run([sys.executable, "-c", code + PEAK], capture_output=True, text=True, check=True, cwd=HERE)
    return float(done.stdout.split()[-1])


def on_cpu(rounds: int) -> list[str]:
    "The rows of the CPU table."
    seed_everything(0)
    device = torch.device("cpu")
    model, step = training(device, CLIPS)
    clip = torch.randn(CLIPS, FRAMES, 3, SIZE, SIZE)
    vit = create_backbone("vit_small_patch16_224.dino", weights="none").model.eval()
    grid = model.backbone.grid(SIZE, SIZE)
    tokens = torch.randn(CLIPS, FRAMES, grid[0] * grid[1], 384)
    scores = torch.rand(CLIPS * grid[0] * grid[1], 200) * 2 - 1
    maps = torch.softmax(scores.unflatten(0, (CLIPS, -1)) * 5, -1)

    def plain() -> None:
        with torch.no_grad():
            vit.forward_features(clip.flatten(0, 1))

    seconds = timed(
        {
            "plain forward of the same 16 frames, no gradient (reference)": plain,
            "training step": lambda: step(clip),
            "forwarder": lambda: forward_maps(tokens, maps, grid),
            "Sinkhorn": lambda: sinkhorn(scores),
        },
        rounds,
        lambda: None,
    )
    sources = find_sources(samples_dir() / "train")
    data = ClipDataset(sources, num_frames=FRAMES, delta_t=0.5, transform=ClipAugment(SIZE), seed=0)
    loader = iter(make_loader(data, batch_size=CLIPS, epoch=0))
    next(loader)
    start = time.perf_counter()
    batches = sum(1 for _ in zip(range(4), loader))
    seconds["data loading in the same process (sample clips)"] = (time.perf_counter() - start) / batches
    floor, whole = list(seconds.values())[:2]
    rows = ["| part | seconds | of the plain forward | of the step |", "|---|---|---|---|"]
    rows += [f"| {name} | {s:.3f} | {s / floor:.2f} | {s / whole:.1%} |" for name, s in seconds.items()]
    setup = "import sys; sys.path.insert(0, '.'); import torch, speed\n"
    base = peak_memory(setup)
    one = peak_memory(
        setup + "m, s = speed.training(torch.device('cpu'), 4); c = torch.randn(4, 4, 3, 224, 224)\ns(c); s(c)"
    )
    rows += ["", f"Peak memory of a process that takes two steps: {one:.2f} GB, {base:.2f} GB of it the libraries."]
    return rows


def on_gpu(rounds: int, clips: int) -> list[str]:
    "The rows of the GPU table: clips a second and the share of the card's own matrix product."
    device = torch.device("cuda")
    size = 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = timed({"matmul": lambda: a @ b}, 20, torch.cuda.synchronize)["matmul"]
    ceiling = 2 * size**3 / best / 1e12
    rows = [
        f"An {size} x {size} x {size} bf16 matrix product reaches {ceiling:.0f} TFLOP/s on this card.",
        "",
        f"| training step, bf16, {clips} clips of {FRAMES} frames | ms | clips/s | TFLOP/s | of the matrix product | peak memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for compiled in (False, True):
        torch.cuda.reset_peak_memory_stats()
        model, step = training(device, clips, compiled)
        clip = torch.randn(clips, FRAMES, 3, SIZE, SIZE, device=device)
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            training(device, clips)[1](clip[:2])
        work = counter.get_total_flops() / 2 * clips
        s = timed({"step": lambda step=step, clip=clip: step(clip)}, rounds, torch.cuda.synchronize)["step"]
        rate = work / s / 1e12
        memory = torch.cuda.max_memory_allocated() / 2**30
        name = "with `torch.compile`" if compiled else "eager"
        rows.append(f"| {name} | {s * 1e3:.0f} | {clips / s:.0f} | {rate:.0f} | {rate / ceiling:.0%} | {memory:.1f} |")
        del model, step, clip
    return rows


def main() -> None:
    "Measure, print and keep the table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds; the median is shown")
    parser.add_argument("--clips", type=int, default=128, help="clips in a batch on the GPU")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{psutil.cpu_count(logical=False)} cores, {platform.machine()}"
    rows = [
        "# Speed of a training step",
        "",
        f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {date.today()}. `python benchmarks/speed.py`",
        "",
        *on_cpu(args.rounds),
    ]
    if cuda:
        rows += ["", *on_gpu(args.rounds, args.clips)]
    done = subprocess.run([sys.executable, HERE / "forwarder.py"], capture_output=True, text=True, check=True)
    rows += ["", done.stdout.strip()]
    text = "\n".join(rows) + "\n"
    print(text)
    target = HERE / "results" / f"speed_{'gpu' if cuda else 'cpu'}.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
