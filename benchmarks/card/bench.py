"""Where things run, how they are timed, where the numbers go, and what is measured on."""

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

FRAMES, PROTOTYPES = 4, 200
VIDEOS, FRAMES_OF_A_VIDEO, STEPS = 2776, 27, 630  # of the paper's whole training, about as many as YouTube-VOS has
WORK = 5.56e12  # floating-point operations of the paper's step, counted without a card


@dataclass(frozen=True)
class Scale:
    "How large everything is: as in the paper."

    clips: int = 128
    size: int = 224
    network: str = "vit_small_patch16_224"
    picture: tuple[int, int] = (720, 1280)  # Height and width of a frame on the disk
    rounds: int = 7
    flags: tuple[str, ...] = ()  # Of `timet.train`
    photographs: int = 512
    pretraining: tuple[tuple[str, Any], ...] = (("backbone", "timet_small_patch8_64"),)


TINY = Scale(
    clips=2,
    size=64,
    network="timet_tiny_patch8_64",
    picture=(72, 128),
    rounds=2,
    flags=tuple("--backbone timet_tiny_patch8_64 --image-size 64 --num-prototypes 8 --radius 2".split()),
    photographs=4,
    pretraining=(("backbone", "timet_tiny_patch8_64"), ("hidden_dim", 32), ("output_dim", 64)),
)


class OutOfTimeError(BaseException):
    "The time of a section is over; nothing but the section's end may catch it."


class Bench:
    "Where things run, how they are timed and where the numbers go."

    def __init__(self, out: Path, tiny: bool) -> None:
        self.start, self.tiny, self.scale, self.section = time.time(), tiny, TINY if tiny else Scale(), ""
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.name = torch.cuda.get_device_name() if self.cuda else "cpu"
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.log = out, open(out / "gpu.jsonl", "a", buffering=1, encoding="utf-8")
        self.files = Path(tempfile.mkdtemp(prefix="timet_gpu_"))  # pictures and runs
        self.matmul = 790e12  # Operations/s; section A measures it
        self.failures = 0
        self.say("device", device=self.name, tiny=tiny)

    @property
    def seconds(self) -> float:
        "Since the start."
        return time.time() - self.start

    @property
    def cores(self) -> int:
        "Processes that read."
        return 2 if self.tiny else os.cpu_count() or 1

    def say(self, name: str, **values: Any) -> None:
        "Print a line and keep it."
        short = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in values.items()}
        self.log.write(json.dumps({"section": self.section, "name": name, **short}) + "\n")
        words = ", ".join(f"{key}={value}" for key, value in short.items())
        print(f"[{self.seconds:5.0f}] {self.section} {name}: {words}", flush=True)

    def finish(self) -> None:
        "Wait for the card."
        if self.cuda:
            torch.cuda.synchronize()

    def autocast(self) -> AbstractContextManager:
        "bf16 products, as the package takes them on a card."
        return torch.autocast(self.device.type, torch.bfloat16)

    def time(self, action: Callable[[], object], rounds: int | None = None, warm: int = 2) -> dict[str, float]:
        "Median milliseconds until the card is done, and until the host is free again."
        for _ in range(warm):
            action()
        whole, host = [], []
        for _ in range(rounds or self.scale.rounds):
            self.finish()
            start = time.perf_counter()
            action()
            host.append(time.perf_counter() - start)
            self.finish()
            whole.append(time.perf_counter() - start)
        return {"ms": statistics.median(whole) * 1e3, "host_ms": statistics.median(host) * 1e3}

    def first(self, action: Callable[[], object]) -> float:
        "Seconds of a first call."
        start = time.perf_counter()
        action()
        self.finish()
        return time.perf_counter() - start

    def measure(self, name: str, action: Callable[[], object], rounds: int | None = None, **more: Any) -> float:
        "Time an action, say it, give its milliseconds."
        took = self.time(action, rounds)
        self.say(name, **took, **more)
        return took["ms"]

    def measure_step(self, name: str, step: Callable[[], object], **more: Any) -> None:
        "Time a training step and say how much of the card it uses."
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        took = self.time(step, warm=3)
        rate = WORK * self.scale.clips / Scale.clips / took["ms"] * 1e3
        memory = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else 0.0
        speed = {
            "clips_s": self.scale.clips / took["ms"] * 1e3,
            "TFLOP_s": rate / 1e12,
            "of_matmul": rate / self.matmul,
        }
        self.say(name, **took, **({} if self.tiny else speed), peak_GB=memory, **more)

    def attempt(self, name: str, action: Callable[[], Any]) -> Any:
        "What an action gives; where it cannot be done, say so and go on."
        try:
            return action()
        except Exception as error:  # the alarm of a section is none and passes
            self.say(name, not_possible=f"{type(error).__name__}: {str(error)[:200]}")
            return None


SECTIONS: dict[str, tuple[Callable[[Bench], None], int]] = {}  # Letter -> function, seconds


def section(letter: str, seconds: int) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    "Register a section and its time limit."

    def keep(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        SECTIONS[letter] = (function, seconds)
        return function

    return keep


def apart(one: Tensor, other: Tensor) -> float:
    "How far two tensors differ, in units of the second."
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    "JPEG files about as large as those of a film: soft shapes with a little noise."
    folder.mkdir(parents=True, exist_ok=True)
    rng, (height, width), files = np.random.default_rng(0), size, []
    for i in range(count):
        shapes = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8))
        soft = np.asarray(shapes.resize((width, height), Image.BICUBIC)).astype(np.int16)
        noisy = (soft + rng.integers(-6, 7, soft.shape)).clip(0, 255).astype(np.uint8)
        files.append(folder / f"{i}.jpg")
        Image.fromarray(noisy).save(files[-1], quality=85)
    return files


def frame_folders(bench: Bench, name: str, videos: int, frames: int, size: tuple[int, int] | None = None) -> Path:
    "Folders of JPEG frames: a few pictures, linked many times."
    folder = bench.files / name
    shutil.rmtree(folder, ignore_errors=True)
    files = write_pictures(bench.files / f"{name}_pictures", 12, size or bench.scale.picture)
    for video in range(videos):
        place = folder / f"v{video:04d}"
        place.mkdir(parents=True)
        for frame in range(frames):
            os.link(files[(7 * video + frame) % len(files)], place / f"{frame:05d}.jpg")
    return folder


def make_backbone(bench: Bench, tuned_blocks: int = 2) -> nn.Module:
    "The paper's network with random weights."
    from timet.backbone import create_backbone

    return create_backbone(bench.scale.network, weights="none", tuned_blocks=tuned_blocks, image_size=bench.scale.size)


def make_model(bench: Bench) -> nn.Module:
    "The paper's model."
    from timet.loss import TimeT

    torch.manual_seed(0)
    return TimeT(make_backbone(bench)).to(bench.device).train()


def make_optimizer(model: nn.Module, **kind: bool) -> torch.optim.Optimizer:
    "AdamW with the paper's rates."
    from timet.loss import parameter_groups

    return torch.optim.AdamW([{k: g[k] for k in ("params", "lr")} for g in parameter_groups(model)], **kind)


def make_clips(bench: Bench, clips: int | None = None) -> Tensor:
    "A batch of noise on the device."
    return torch.randn(clips or bench.scale.clips, FRAMES, 3, bench.scale.size, bench.scale.size, device=bench.device)


def train_settings(bench: Bench, clips: int, data: Path) -> Any:
    "Settings of the paper's training, on these frames."
    from timet.training.config import preset_config

    small = {"backbone": bench.scale.network, "image_size": bench.scale.size} if bench.tiny else {}
    batches = {"batch_size": clips, "clips_per_source": clips}
    return preset_config("paper", data=data, fps=6, eval=False, weights="none", **batches, **small)


def open_session(bench: Bench, clips: int) -> tuple[Any, list[dict[str, Any]]]:
    "The package's training as `timet.train` starts it, and the parts of its first batch."
    from timet.training.session import start_accelerator, start_session, step_batches

    data = frame_folders(bench, "session", 4, 20, (72, 128) if bench.tiny else (360, 640))
    config = train_settings(bench, clips, data)
    session = start_session(config, start_accelerator(config))
    session.model.train()
    return session, next(step_batches(session))
