"""What a segmented film waits for: `python benchmarks/segment.py [--video FILM]`.

A film of 720p (the one given, enlarged; or the sample clips) is segmented. Timed are, a frame:

- reading alone: decoding, and shrinking to what the network gets;
- seeing alone: the network, and from patches to pixels;
- writing alone: painting and x264, from frames and labels in memory;
- a part of a film, with the three **in turn** (no thread at all), with **reading ahead** only, and **at once**, as `timet.segment` does it.

`timet.segment` looks at two frames first, and writes in turn where the network leaves no core free (`worth_threads`); here all are forced.

On a machine with a core for each, at once takes as long as the slowest alone. On a card seeing is the smallest. On two cores the
network alone keeps both busy, and the sum of the processor's work over two is the limit: that is the last column.

The last network only sleeps, 5 ms a frame, and its labels cost nothing: it stands for a card, which leaves the processor to reading and
writing. It says what the threads are worth there, and nothing about any card.

Rounds of all that is compared alternate, so that a slow moment of the machine hits all of them; the median is shown. All three ways
must give the same bytes. Writes `benchmarks/results/segment_<device>.md`.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av
import torch

from timet.backbone import create_backbone, load_backbone
from timet.core import pick_device, samples_dir
from timet.data.find import find_sources
from timet.data.source import Source, frames_in_order
from timet.film import parts, stream
from timet.film.jobs import Job, Settings
from timet.film.movie import PART, paint_frame
from timet.run.check import adjust
from timet.viz.paint import cluster_colors
from timet.viz.write import write_video

HERE = Path(__file__).resolve().parent


class Sleeper:
    "A network that takes 5 ms a frame and no processor."

    name, patch_size, image_size = "sleeper", 16, (224, 224)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 16, width // 16

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005 * len(images))
        rows, columns = self.grid(*images.shape[2:])
        return torch.randn(len(images), rows * columns, 8, generator=torch.Generator().manual_seed(0))


NETWORKS = {
    "the sample network (ViT 128 x 5, patch 8)": lambda: load_backbone(
        samples_dir() / "weights/timet_tiny.safetensors", tuned_blocks=0
    ),
    "ViT-S/16, random": lambda: create_backbone("vit_small_patch16_224", weights="none", tuned_blocks=0),
    "asleep for 5 ms a frame": Sleeper,
}


def enlarge(source: Source, path: Path, count: int, height: int = 720) -> Source:
    "A film of `count` frames of another height; where there are fewer, it starts over."
    width = round(height * source.size[1] / source.size[0] / 2) * 2
    again = (frame for _ in cycle([0]) for _, frame in frames_in_order(source))
    with av.open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=Fraction(source.fps).limit_denominator(1001))
        video.width, video.height, video.pix_fmt, video.options = width, height, "yuv420p", {"crf": "18"}
        for frame in islice(again, count):
            image = av.VideoFrame.from_ndarray(frame, "rgb24")
            film.mux(video.encode(image.reformat(width, height, "yuv420p", interpolation="BICUBIC")))
        film.mux(video.encode(None))
    return find_sources(path)[0]


@contextmanager
def in_turn(items: Iterator, count: int = 1) -> Iterator[Iterator]:
    "What `ahead` would be without a thread."
    yield items


@contextmanager
def threads(reading: bool, writing: bool) -> Iterator[None]:
    "Leave out threads of the product."
    kept = stream.ahead
    stream.ahead, parts.ahead = kept if reading else in_turn, kept if writing else in_turn
    try:
        yield
    finally:
        stream.ahead = parts.ahead = kept


def actions(film: Source, net: Any, settings: Settings, room: Path) -> dict[str, Callable[[], object]]:
    "All that is timed, for one network and one way from patches to pixels."
    clusters = stream.fit_clusters(stream.sample_tokens(net, [film], settings.sight, frames=16), settings.clusters)
    size, colors = stream.working_size(net, *film.size), cluster_colors(settings.clusters)
    device = pick_device(settings.sight.device)
    frames = list(frames_in_order(film))
    kept, how = stream._batches, (settings.sight.batch_size, size, device.type == "cuda")
    batches = list(kept(iter(frames), len(frames), *how))
    labels = [found for *_, found in stream.stream_labels(film, net, clusters, settings.sight)]

    def see() -> None:
        stream._batches = lambda *_: (item for item in batches)
        try:
            with threads(False, False):
                for _ in stream.stream_labels(film, net, clusters, settings.sight):
                    pass
        finally:
            stream._batches = kept

    def write() -> None:
        painted = (paint_frame(frame, found, colors) for (_, frame), found in zip(frames, labels))
        write_video(room / "alone.mp4", painted, 25, PART)

    def whole(name: str, **how: bool) -> Callable[[], None]:
        job = Job(film, room / "out.mp4", name, room / name, len(frames))

        def run() -> None:
            with threads(**how):
                parts.do_part(job, 0, net, clusters, settings)

        return run

    return {
        "reading alone": lambda: deque(kept(frames_in_order(film), len(frames), *how), 0),
        "seeing alone": see,
        "writing alone": write,
        "in turn": whole("turn", reading=False, writing=False),
        "reading ahead only": whole("before", reading=True, writing=False),
        "at once": whole("once", reading=True, writing=True),
    }


def timed(todo: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    "Median seconds on the clock and of the processor, over alternating rounds."
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in todo}
    for _ in range(rounds):
        for name, action in todo.items():
            clock, processor = time.perf_counter(), time.process_time()
            action()
            took[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {name: tuple(statistics.median(column) for column in zip(*rows)) for name, rows in took.items()}


def table(took: dict[str, tuple[float, float]], count: int) -> list[str]:
    "Rows of one comparison."
    base = took["reading ahead only"][0]
    lines = ["| | ms a frame | frames/s | times as fast as before | processor, ms a frame |", "|---|---|---|---|---|"]
    for name, (clock, processor) in took.items():
        ratio = "" if "alone" in name else f"{base / clock:.2f}"
        lines.append(
            f"| {name} | {1000 * clock / count:.1f} | {count / clock:.1f} | {ratio} | {1000 * processor / count:.1f} |"
        )
    return [*lines, ""]


def main() -> None:
    "Measure all networks and both ways from patches to pixels, print and keep the tables."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", help="a film; the sample clips where none is given")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", type=int, nargs="+", default=list(range(len(NETWORKS))))
    args = parser.parse_args()
    device, load = pick_device(args.device), os.getloadavg()[0]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    shared = " (shared with other work)" if load > 0.5 else ""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        source = find_sources(args.video or samples_dir() / "heldout")[0]
        film = enlarge(source, room / "film.mp4", args.frames)
        lines = [
            "# A film of 720p: reading, seeing and writing",
            "",
            f"`python benchmarks/segment.py{' --video FILM' * bool(args.video)}`: {film.num_frames} frames of "
            f"{film.size[1]} x {film.size[0]}, 8 clusters, median of {args.rounds} alternating rounds. {os.cpu_count()} cores{shared}, "
            f"load {load:.1f} at the start, {where}, {platform.machine()}, torch {torch.__version__}, {date.today()}.",
            "",
            '"At once" is forced here; `timet.segment` writes in turn where the network leaves no core free.',
            "",
        ]
        for name, made in [list(NETWORKS.items())[i] for i in args.networks]:
            torch.manual_seed(0)
            net = made()
            if isinstance(net, Sleeper):
                fixed = (torch.arange(film.size[0])[:, None] + torch.arange(film.size[1])) // 97 % 8
                stream.upscale_bilinear = lambda maps, size, fixed=fixed: fixed
            for way in ("bilinear", "edges")[: 1 if isinstance(net, Sleeper) else 2]:
                settings = adjust(replace(Settings(), part=args.frames), {"device": str(device), "upscale": way})
                took = timed(actions(film, net, settings, room), args.rounds)
                films = {(room / key / film.name / "part-00000.mp4").read_bytes() for key in ("turn", "before", "once")}
                if len(films) > 1:
                    raise SystemExit(f"{name}, {way}: the films differ")
                lines += [f"## {name}, {way}", "", *table(took, film.num_frames)]
                print("\n".join(lines[-9:]), flush=True)
    out = HERE / "results" / f"segment_{device.type}.md"
    out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
