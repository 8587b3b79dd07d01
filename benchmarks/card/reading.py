"""Frames and clips a second: processes on the CPU, the decoder of the card, the loader of the package."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card.bench import FRAMES, FRAMES_OF_A_VIDEO, Bench, frame_folders, section, train_settings, write_pictures
from PIL import Image
from torch import Tensor


def one_thread() -> None:
    "A process of many has one thread."
    torch.set_num_threads(1)


def decode_pil(path: str) -> int:
    "As the package reads a frame."
    from timet.data.source import read_image

    return read_image(path).nbytes


def decode_pil_small(path: str) -> int:
    "Half as high and wide, without the work for the rest."
    with Image.open(path) as picture:
        picture.draft("RGB", (picture.width // 2, picture.height // 2))
        return np.asarray(picture.convert("RGB")).nbytes


def decode_torchvision(path: str) -> int:
    "As torchvision reads a frame on the CPU."
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return decode_jpeg(read_file(path), mode=ImageReadMode.RGB).numel()


def augment_once(job: tuple[int, int, tuple[int, int]]) -> float:
    "Seconds that one clip takes to be cut and coloured on the CPU."
    from timet.data.clips import ClipAugment

    seed, size, (height, width) = job
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES, height, width, 3), np.uint8)
    augment, rounds = ClipAugment(size), 6
    start = time.perf_counter()
    for i in range(rounds):
        augment(frames, rng=np.random.default_rng(seed + i))
    return (time.perf_counter() - start) / rounds


@section("F", 75)
def reading(bench: Bench) -> None:
    "Frames and clips a second: processes on the CPU, the card's decoder, the package's loader."
    files = write_pictures(bench.files / "frames", 12, bench.scale.picture)
    bench.say("a JPEG frame", kB=files[0].stat().st_size / 1e3)
    decode_in_processes(bench, files)
    if bench.cuda:
        bench.attempt("nvJPEG", lambda: decode_on_card(bench, files))
    load_clips(bench)


def decode_in_processes(bench: Bench, files: Sequence[Path]) -> None:
    "As many processes as cores."
    many = [str(file) for file in files] * bench.cores * (1 if bench.tiny else 4)
    ways = {"PIL": decode_pil, "PIL at half size": decode_pil_small, "torchvision": decode_torchvision}
    with multiprocessing.get_context("fork").Pool(bench.cores, one_thread) as pool:
        for name, decode in ways.items():

            def run(name: str = name, decode: Callable[[str], int] = decode) -> None:
                pool.map(decode, many[: bench.cores], chunksize=1)
                start = time.perf_counter()
                pool.map(decode, many, chunksize=6)
                rate = len(many) / (time.perf_counter() - start)
                bench.say(f"decode with {name}, a process for each core", frames_s=rate, processes=bench.cores)

            bench.attempt(f"decode with {name}", run)
        jobs = [(seed, bench.scale.size, bench.scale.picture) for seed in range(bench.cores)]
        took = statistics.mean(pool.map(augment_once, jobs, chunksize=1))
        rate = FRAMES * bench.cores / took
        bench.say(f"augment a clip of {FRAMES}, a process for each core", ms=took * 1e3, frames_s=rate)


def decode_on_card(bench: Bench, files: Sequence[Path]) -> None:
    "nvJPEG, many frames at once."
    from torchvision.io import ImageReadMode, decode_jpeg

    raw = [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files]
    for count in (64, 256):
        some = [raw[i % len(raw)] for i in range(count)]

        def decode(some: list[Tensor] = some) -> object:
            return decode_jpeg(some, mode=ImageReadMode.RGB, device="cuda")

        took = bench.time(decode, 3, warm=1)["ms"]
        bench.say(f"nvJPEG, {count} frames", ms=took, frames_s=count / took * 1e3)


def package_loader(bench: Bench, dataset: Any, epochs: int) -> Iterator[Any]:
    "The package's own loader, as `timet.training.session` uses it: one for all epochs, bytes, coloured on the card."
    from timet.data.loader import make_loader, on_device

    count = len(dataset) // bench.scale.clips * epochs
    loader = make_loader(
        dataset, batch_size=bench.scale.clips, num_workers=bench.cores, count=count, paint=not bench.cuda
    )
    yield from on_device(loader, bench.device)


def load_clips(bench: Bench) -> None:
    "Clips a second from the package's loader, on frame folders."
    from timet.training.config import videos
    from timet.training.session import make_dataset

    data = frame_folders(bench, "loader", 8 if bench.tiny else 1024, FRAMES_OF_A_VIDEO)
    config = replace(train_settings(bench, bench.scale.clips, data), clips_per_source=1)
    batches = package_loader(bench, make_dataset(config, videos(config)), epochs=2)
    start = time.perf_counter()
    next(batches)
    first, count, limit = time.perf_counter() - start, 0, 1 if bench.tiny else 15
    for _ in batches:
        count += 1
        if time.perf_counter() - start - first > limit:
            break
    rate = count * bench.scale.clips / (time.perf_counter() - start - first)
    bench.say("the package's loader, a worker for each core", clips_s=rate, first_batch_s=first, batches=count)
