"""The dense forwarder written anew, to be timed beside the package's: in plain PyTorch, and in two Triton kernels.

Both take what `forward_maps` of `timet.feature_forwarder` takes, with the window first (`mask_first`), and give the
same maps: of equals the first wins.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from timet.feature_forwarder import neighborhood
from timet.settings import Forwarder

try:
    import triton
    import triton.language as tl
except ImportError:  # the plain version needs no Triton
    triton = None


def first_best(affinity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    "The largest of every row, of equals the first, in rounds of `max` that nobody waits for. Overwrites its input."
    values, places = [], []
    for _ in range(count):
        value, place = affinity.max(-1, keepdim=True)
        affinity.scatter_(-1, place, -math.inf)
        values.append(value)
        places.append(place)
    return torch.cat(values, -1), torch.cat(places, -1)


def any_best(affinity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    "The largest of every row; of equals any."
    return affinity.topk(count)


@torch.no_grad()
@torch.autocast("cuda", enabled=False)
@torch.autocast("cpu", enabled=False)
def forward_torch(
    tokens: Tensor,  # Backbone tokens of all frames `(b t n d)`
    maps: Tensor,  # Map of frame 0 `(b n k)`
    grid: tuple[int, int],  # Rows and columns of patches
    settings: Forwarder = Forwarder(),
    best: Callable[[Tensor, int], tuple[Tensor, Tensor]] = first_best,
) -> Tensor:  # Maps at frames 1 to t-1 `(b t-1 n k)`
    "One product a frame with the window added to it as minus infinity."
    b, t, n, _ = tokens.shape
    unit = F.normalize(tokens.float(), dim=-1, eps=1e-12)
    window = torch.where(neighborhood(grid, settings.radius, tokens.device), 0.0, -math.inf)
    done = unit.new_empty(b, t, n, maps.shape[-1])
    done[:, 0] = maps
    start_of_clip = torch.arange(b, device=tokens.device)[:, None, None] * (t * n)
    for target in range(1, t):
        first = max(1, target - settings.context)
        sources = torch.cat([unit[:, :1], unit[:, first:target]], 1)
        count = sources.shape[1]
        scores = torch.baddbmm(
            window.repeat(1, count)[None], unit[:, target], sources.flatten(1, 2).mT, alpha=1 / settings.temperature
        )
        value, place = best(scores, min(settings.topk or count * n, count * n))
        frame, patch = place // n, place % n
        frame = torch.where(frame > 0, frame + first - 1, 0)
        rows = (start_of_clip + frame * n + patch).flatten(0, 1)
        weights = value.softmax(-1).flatten(0, 1)
        carried = F.embedding_bag(rows, done.flatten(0, 2), mode="sum", per_sample_weights=weights)
        done[:, target] = carried.view(b, n, -1)
    return done[:, 1:]


if triton is not None:

    @triton.jit
    def best_of_frame(
        unit, value, index, target, frames, first, width, scale,
        PATCHES: tl.constexpr, FEATURES: tl.constexpr, RADIUS: tl.constexpr, TOPK: tl.constexpr,
        TARGETS: tl.constexpr, SOURCES: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        "The most alike patches of one source frame, in the window, for some patches of the target frame."
        clip, slot, slots = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
        frame = tl.where(slot == 0, 0, first + slot - 1)
        rows = tl.program_id(0) * TARGETS + tl.arange(0, TARGETS)
        columns, features = tl.arange(0, SOURCES), tl.arange(0, CHUNK)
        here = unit + (clip * frames + target).to(tl.int64) * PATCHES * FEATURES
        there = unit + (clip * frames + frame).to(tl.int64) * PATCHES * FEATURES
        scores = tl.zeros((TARGETS, SOURCES), tl.float32)
        for start in range(0, FEATURES, CHUNK):
            left = here + rows[:, None] * FEATURES + start + features[None, :]
            right = there + columns[None, :] * FEATURES + start + features[:, None]
            left = tl.load(left, mask=rows[:, None] < PATCHES, other=0.0)
            right = tl.load(right, mask=columns[None, :] < PATCHES, other=0.0)
            scores = tl.dot(left, right, scores, input_precision=PRECISION)
        near = tl.abs(rows[:, None] // width - columns[None, :] // width) <= RADIUS
        near &= tl.abs(rows[:, None] % width - columns[None, :] % width) <= RADIUS
        scores = tl.where(near & (columns[None, :] < PATCHES), scores * scale, float("-inf"))
        out = ((clip * PATCHES + rows) * slots + slot) * TOPK
        for k in tl.static_range(TOPK):
            top, place = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
            tl.store(value + out + k, top, mask=rows < PATCHES)
            tl.store(index + out + k, place, mask=rows < PATCHES)
            scores = tl.where(columns[None, :] == place[:, None], float("-inf"), scores)

    @triton.jit
    def carry_patch(
        value, index, done, target, frames, first, candidates,
        PATCHES: tl.constexpr, CHANNELS: tl.constexpr, TOPK: tl.constexpr, SLOTS: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        "The best of all candidates, their softmax, and the weighted sum of their maps, for one target patch."
        patch = tl.program_id(0)
        clip = patch // PATCHES
        slots, channels = tl.arange(0, SLOTS), tl.arange(0, WIDE)
        scores = tl.load(value + patch * candidates + slots, mask=slots < candidates, other=float("-inf"))
        places = tl.load(index + patch * candidates + slots, mask=slots < candidates, other=0)
        highest = tl.max(scores, 0)
        weights = tl.zeros((SLOTS,), tl.float32)
        for _ in tl.static_range(TOPK):
            top, slot = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
            weights += tl.where(slots == slot, tl.exp(top - highest), 0.0)
            scores = tl.where(slots == slot, float("-inf"), scores)
        weights = weights / tl.sum(weights, 0)
        carried = tl.zeros((WIDE,), tl.float32)
        for slot in range(0, candidates):
            weight = tl.sum(tl.where(slots == slot, weights, 0.0), 0)
            if weight > 0:
                place = tl.sum(tl.where(slots == slot, places, 0), 0)
                frame = tl.where(slot // TOPK == 0, 0, first + slot // TOPK - 1)
                row = ((clip * frames + frame).to(tl.int64) * PATCHES + place) * CHANNELS
                carried += weight * tl.load(done + row + channels, mask=channels < CHANNELS, other=0.0)
        row = ((clip * frames + target).to(tl.int64) * PATCHES + patch % PATCHES) * CHANNELS
        tl.store(done + row + channels, carried, mask=channels < CHANNELS)


@torch.no_grad()
def forward_triton(
    tokens: Tensor,  # Backbone tokens of all frames `(b t n d)`, `d` a multiple of 32
    maps: Tensor,  # Map of frame 0 `(b n k)`
    grid: tuple[int, int],  # Rows and columns of patches
    settings: Forwarder = Forwarder(),
    *,
    precision: str = "tf32x3",  # Of the products: `tf32x3` and `ieee` are fp32
    targets: int = 32,  # Target patches of one program
    warps: int = 4,
) -> Tensor:  # Maps at frames 1 to t-1 `(b t-1 n k)`
    "Two kernels a frame: candidates of every source frame, then the best of them and what they carry."
    b, t, n, d = tokens.shape
    k, topk = maps.shape[-1], settings.topk
    unit = F.normalize(tokens.float(), dim=-1, eps=1e-12).contiguous()
    done = unit.new_empty(b, t, n, k)
    done[:, 0] = maps
    for target in range(1, t):
        first = max(1, target - settings.context)
        sources = 1 + target - first
        value = unit.new_empty(b, n, sources, topk)
        index = torch.empty(value.shape, dtype=torch.int32, device=unit.device)
        best_of_frame[(triton.cdiv(n, targets), b, sources)](
            unit, value, index, target, t, first, grid[1], 1 / settings.temperature,
            PATCHES=n, FEATURES=d, RADIUS=settings.radius, TOPK=topk, TARGETS=targets,
            SOURCES=triton.next_power_of_2(n), CHUNK=32, PRECISION=precision, num_warps=warps,
        )  # fmt: skip
        carry_patch[(b * n,)](
            value, index, done, target, t, first, sources * topk, PATCHES=n, CHANNELS=k, TOPK=topk,
            SLOTS=triton.next_power_of_2(sources * topk), WIDE=triton.next_power_of_2(k), num_warps=2,
        )  # fmt: skip
    return done[:, 1:]
