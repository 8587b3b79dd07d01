"""The forwarder on whole frames (dense) and in tiles (windowed): `python benchmarks/forwarder.py`.

Random tokens of 384 numbers and maps of 200 channels, clips of 4 frames, radius 6, the five best sources. Rounds of the two
methods alternate and the median is shown, so that a slow moment of the machine hits both; the memory of each case is
measured in a process of its own, beside the tokens and maps given to it, and compared with what the formula says.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from timet.feature_forwarder import CHUNK_BYTES, cut_tiles, forward_maps, tile_side

FRAMES, FEATURES, CHANNELS, RADIUS = 4, 384, 200, 6
CASES = {14: 4, 28: 4, 64: 1}  # patches a side: clips
METHODS = ("dense", "windowed")


def inputs(side: int, clips: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    "Tokens and maps of a batch."
    torch.manual_seed(0)
    tokens = torch.randn(clips, FRAMES, side * side, FEATURES, device=device)
    return tokens, torch.rand(clips, side * side, CHANNELS, device=device)


def predicted(side: int, clips: int, method: str, device: str) -> float:
    "Megabytes: normalised tokens, all maps and one new one, and one round over clips and tiles with its masks."
    tiles = cut_tiles((side, side), tile_side((side, side), RADIUS, method), RADIUS)
    (g, i), m = tiles.targets.shape, (FRAMES - 1) * tiles.around.shape[1]
    pairs = min(clips * g, max(1, CHUNK_BYTES.get(device, 2**29) // (4 * m * (FEATURES + 2 * i))))
    kept = 4 * clips * side * side * (FRAMES * (FEATURES + CHANNELS) + 2 * CHANNELS)
    # a round holds its sources, the affinities, and a byte for each of them where the cut at the best five is checked
    return (kept + pairs * m * (4 * FEATURES + 5 * i)) / 1e6


def peak(side: int, clips: int, method: str, device: str) -> float:
    "Megabytes that one call takes at most, beside what it is given."
    tokens, maps = inputs(side, clips, device)
    forward_maps(tokens[:1, :2, :4], maps[:1, :4], (2, 2))  # libraries load their own things at the first call
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_maps(tokens, maps, (side, side), method=method)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        forward_maps(tokens, maps, (side, side), method=method)
        unit = 1 if sys.platform == "darwin" else 1024
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 1e6

    def high_water() -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])

    clear.write_text("5")  # sets the high-water mark back to what is held now
    before = high_water()
    forward_maps(tokens, maps, (side, side), method=method)
    return (high_water() - before) * 1024 / 1e6


def seconds(side: int, clips: int, device: str, rounds: int) -> dict[str, float]:
    "Median seconds of both methods over alternating rounds, after a warm-up."
    tokens, maps = inputs(side, clips, device)
    taken: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(rounds + 1):
        for method in METHODS:
            start = time.perf_counter()
            done = forward_maps(tokens, maps, (side, side), method=method)
            done[0, 0, 0, 0].item()  # waits for the device
            if turn:
                taken[method].append(time.perf_counter() - start)
    return {method: statistics.median(values) for method, values in taken.items()}


def table(device: str, rounds: int) -> list[str]:
    "The rows of one device."
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rows = [
        f"## Forwarder: dense and windowed ({name})",
        "",
        "| patches | clips | dense, ms | windowed, ms | dense / windowed | `auto` takes "
        "| dense, MB (of the formula) | windowed, MB (of the formula) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, clips in CASES.items():
        took, memory = seconds(side, clips, device, rounds), []
        for method in METHODS:
            words = [sys.executable, __file__, "--one", str(side), str(clips), method, device]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"measuring {method} at {side} x {side} failed:\n{done.stderr[-2000:]}")
            used = float(done.stdout)
            memory.append(f"{used:.0f} ({used / predicted(side, clips, method, device):.2f})")
        auto = "dense" if tile_side((side, side), RADIUS) == (side, side) else "windowed"
        dense, windowed = took["dense"], took["windowed"]
        cells = [f"{side} x {side}", clips, f"{dense * 1e3:.1f}", f"{windowed * 1e3:.1f}", f"{dense / windowed:.2f}"]
        rows.append(f"| {' | '.join(map(str, [*cells, auto, *memory]))} |")
    return rows


def main() -> None:
    "Print one table for the CPU and one for the GPU, where there is one."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds; the median is shown")
    parser.add_argument("--one", nargs=4, metavar=("SIDE", "CLIPS", "METHOD", "DEVICE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        side, clips, method, device = args.one
        print(peak(int(side), int(clips), method, device))
        return
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        print("\n".join(table(device, args.rounds)), "\n")


if __name__ == "__main__":
    main()
