"""The feature forwarder against plain loops in float64, written from Eq. 3 to 5 and Listing 1."""

import math

import numpy as np
import pytest
import torch

from timet.core import TimetError
from timet.feature_forwarder import (
    CHUNK_BYTES,
    ORDERS,
    affinity,
    carry,
    cut_tiles,
    forward_maps,
    neighborhood,
    similarity,
    source_weights,
    strongest,
    tile_side,
)


def loops(tokens, maps, grid, radius=6, topk=5, temperature=0.1, context=7, order="mask_first"):
    "Maps at frames 1 to t-1, one number at a time."
    tokens, (b, t, n), w = np.asarray(tokens, np.float64), tokens.shape[:3], grid[1]
    done = np.zeros((b, t, n, maps.shape[-1]))
    done[:, 0] = np.asarray(maps, np.float64)
    for clip in range(b):
        for j in range(1, t):
            frames = [0] + [f for f in range(1, j) if f >= j - context]
            for target in range(n):
                weights, near = {}, {}
                for f in frames:
                    for source in range(n):
                        x, y = tokens[clip, f, source], tokens[clip, j, target]
                        cosine = float(x @ y) / (math.sqrt(float(x @ x)) * math.sqrt(float(y @ y)))
                        rows = abs(target // w - source // w)
                        columns = abs(target % w - source % w)
                        near[f, source] = max(rows, columns) <= radius
                        weights[f, source] = cosine / temperature
                if order == "mask_first":
                    weights = {at: math.exp(v) if near[at] else 0.0 for at, v in weights.items()}
                if order == "eq4":
                    weights = {at: math.exp(v if near[at] else 0.0) for at, v in weights.items()}
                if order == "listing1":
                    weights = {at: math.exp(v) for at, v in weights.items()}
                    total = sum(weights.values())
                    weights = {at: v / total if near[at] else 0.0 for at, v in weights.items()}
                # of equals the earlier frame wins, then the earlier patch: sorting keeps the order they were put in
                kept = sorted(weights.items(), key=lambda item: -item[1])[:topk]
                total = 1.0 if order == "listing1" else sum(v for _, v in kept)
                for (f, source), v in kept:
                    done[clip, j, target] += v / total * done[clip, f, source]
    return done[:, 1:]


def clip(b=2, t=4, grid=(4, 5), d=6, k=3, seed=0):
    "Random tokens of one sign here and there, and a random map."
    make = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]
    return torch.randn(b, t, n, d, generator=make), torch.rand(b, n, k, generator=make)


def close(got, want, rtol=2e-5):
    np.testing.assert_allclose(got.numpy(), want, rtol=rtol, atol=2e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topk", [1, 5, None])
@pytest.mark.parametrize("radius", [0, 1, 9])
def test_against_loops(order, topk, radius):
    tokens, maps = clip()
    got = forward_maps(tokens, maps, (4, 5), radius=radius, topk=topk, order=order)
    close(got, loops(tokens, maps, (4, 5), radius, topk, order=order))


@pytest.mark.parametrize("method", ["dense", "windowed"])
@pytest.mark.parametrize("context", [0, 1, 2, 3, 7])
def test_context_keeps_frame_0(context, method):
    tokens, maps = clip(b=1, t=6, grid=(2, 7))
    got = forward_maps(tokens, maps, (2, 7), radius=1, topk=4, context=context, method=method)
    close(got, loops(tokens, maps, (2, 7), 1, 4, context=context))


@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_temperature(temperature):
    tokens, maps = clip(b=1)
    got = forward_maps(tokens, maps, (4, 5), radius=2, temperature=temperature)
    close(got, loops(tokens, maps, (4, 5), 2, 5, temperature), rtol=1e-4)


def test_defaults_are_those_of_the_released_code():
    tokens, maps = clip(b=1, t=3, grid=(9, 10), d=16)
    close(forward_maps(tokens, maps, (9, 10)), loops(tokens, maps, (9, 10), 6, 5, 0.1, 7, "mask_first"))


@pytest.mark.parametrize("topk", [5, None])
@pytest.mark.parametrize("grid", [(1, 1), (1, 40), (9, 31), (26, 20)])
@pytest.mark.parametrize("radius", [0, 2, 6])
def test_windowed_is_dense(grid, radius, topk):
    tokens, maps = clip(b=3, t=4, grid=grid, d=8, k=4)
    settings = {"grid": grid, "radius": radius, "topk": topk}
    dense = forward_maps(tokens, maps, method="dense", **settings)
    windowed = forward_maps(tokens, maps, method="windowed", **settings)
    torch.testing.assert_close(windowed, dense, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(forward_maps(tokens, maps, **settings), dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dense", "windowed"])
@pytest.mark.parametrize("topk", [5, None])
def test_rounds_do_not_change_the_answer(monkeypatch, method, topk):
    tokens, maps = clip(b=5, grid=(9, 11))
    settings = {"grid": (9, 11), "radius": 2, "topk": topk, "method": method}
    whole = forward_maps(tokens, maps, **settings)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1)
    torch.testing.assert_close(forward_maps(tokens, maps, **settings), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "grid,side,radius", [((5, 7), (2, 3), 1), ((8, 8), (4, 4), 6), ((6, 1), (4, 1), 0), ((3, 4), (3, 4), 2)]
)
def test_tiles_hold_every_window(grid, side, radius):
    tiles = cut_tiles(grid, side, radius)
    n, inside = grid[0] * grid[1], neighborhood(grid, radius)
    assert torch.equal(tiles.targets.flatten()[tiles.place], torch.arange(n))
    for targets, around, outside in zip(tiles.targets, tiles.around, tiles.outside):
        assert len(around.unique()) == len(around)
        for target, out in zip(targets, outside):
            assert set(around[~out].tolist()) == set(inside[target].nonzero()[:, 0].tolist())


def test_auto_cuts_only_where_it_pays():
    assert tile_side((14, 14), 6) == (14, 14)
    assert tile_side((64, 64), 6) != (64, 64)
    assert tile_side((64, 64), 60) == (64, 64)


@pytest.mark.parametrize("topk", [5, None])
def test_rows_sum_to_1_and_nothing_comes_from_outside(topk):
    tokens, _ = clip(t=5, grid=(6, 7))
    weights = affinity(tokens, (6, 7), radius=2, topk=topk)
    assert weights.shape == (2, 42, 4, 42)
    torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(2, 42))
    assert (weights[~neighborhood((6, 7), 2)[None, :, None].expand_as(weights)] == 0).all()
    if topk:
        assert ((weights > 0).sum((-2, -1)) == topk).all()


def test_masses_of_the_printed_orders():
    tokens, _ = clip(t=3, grid=(6, 7))
    outside = ~neighborhood((6, 7), 1)[None, :, None].expand(2, 42, 2, 42)
    leak = affinity(tokens, (6, 7), radius=1, topk=None, order="eq4")
    torch.testing.assert_close(leak.sum((-2, -1)), torch.ones(2, 42))
    assert (leak[outside] > 0).all()
    loss = affinity(tokens, (6, 7), radius=1, topk=None, order="listing1")
    assert (loss[outside] == 0).all()
    assert (loss.sum((-2, -1)) < 1).all()


def test_every_piece_is_the_whole():
    tokens, maps = clip(b=2, t=2)
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    logits = similarity(unit[:, 1], unit[:, 0], 0.1)[:, :, None]
    weights = source_weights(logits, neighborhood((4, 5), 2))
    torch.testing.assert_close(carry(weights, maps[:, None]), forward_maps(tokens, maps, (4, 5), radius=2)[:, 0])
    torch.testing.assert_close(weights, affinity(tokens, (4, 5), radius=2))


def test_a_moving_square_takes_its_label_along():
    h, w, codes = 8, 9, torch.eye(72)
    frames = [codes.view(h, w, 72).roll((step, 2 * step), (0, 1)).reshape(72, 72) for step in range(4)]
    square = torch.zeros(h, w, 2)
    square[2:4, 1:3, 1] = 1
    square[..., 0] = 1 - square[..., 1]
    got = forward_maps(torch.stack(frames)[None], square.view(1, 72, 2), (h, w), topk=1)
    for step in range(1, 3):
        want = square.roll((step, 2 * step), (0, 1)).view(72, 2)
        torch.testing.assert_close(got[0, step - 1], want)


def test_a_standing_clip_keeps_its_map():
    tokens, maps = clip(b=1, t=1, grid=(4, 5), d=64)
    got = forward_maps(tokens.expand(-1, 5, -1, -1), maps, (4, 5), temperature=0.005)
    torch.testing.assert_close(got, maps[:, None].expand_as(got), rtol=1e-3, atol=1e-3)


def test_a_hidden_thing_is_found_again_through_frame_0():
    codes = torch.eye(12)
    shown, hidden = codes.clone(), codes.clone()
    hidden[5] = codes[0]
    thing = torch.zeros(1, 12, 2)
    thing[..., 0], thing[0, 5] = 1, torch.tensor([0.0, 1.0])
    tokens = torch.stack([shown, hidden, hidden, hidden, shown])[None]
    got = forward_maps(tokens, thing, (3, 4), radius=2, context=2, temperature=0.02)
    assert got[0, :3, 5, 1].max() < 0.3
    assert got[0, 3, 5, 1] > 0.99


def test_ties_are_broken_by_frame_then_by_reading_order():
    value, index = strongest(torch.tensor([[1.0, 3, 3, 0, 3, 3], [5, 4, 3, 2, 1, 0]]), 3)
    assert index.tolist() == [[1, 2, 4], [0, 1, 2]]
    assert value.tolist() == [[3, 3, 3], [5, 4, 3]]
    weights = torch.full((50, 700), 2.0)
    weights[:, 100] = 1.0
    assert strongest(weights, 5)[1].sort().values.tolist() == [[0, 1, 2, 3, 4]] * 50
    many = torch.randint(0, 9, (50, 700)).float()  # both ways, few and many, agree with a stable sort
    for topk in (1, 5, 16, 17, 40, 699):
        value, index = strongest(many, topk)
        want = many.sort(dim=-1, descending=True, stable=True)
        assert torch.equal(value, want.values[:, :topk]) and torch.equal(index, want.indices[:, :topk])
    few = torch.full((4, 9), -math.inf)
    few[:, 7] = 0.0
    value, index = strongest(few, 5)
    assert (value[:, 0] == 0).all() and (index[:, 0] == 7).all() and (value[:, 1:] == -math.inf).all()


@pytest.mark.parametrize("method", ["dense", "windowed"])
def test_equal_patches_everywhere(method):
    tokens, maps = torch.ones(1, 3, 20, 4), torch.rand(1, 20, 3)
    got = forward_maps(tokens, maps, (4, 5), radius=1, topk=2, method=method)
    close(got, loops(tokens, maps, (4, 5), 1, 2))


def test_the_same_answer_every_time():
    tokens, maps = clip(b=4, grid=(14, 14), d=32)
    first = forward_maps(tokens, maps, (14, 14))
    assert all(torch.equal(first, forward_maps(tokens, maps, (14, 14))) for _ in range(3))


def test_clips_do_not_touch_each_other():
    tokens, maps = clip(b=3)
    whole = forward_maps(tokens, maps, (4, 5), radius=1)
    for i in range(3):
        torch.testing.assert_close(forward_maps(tokens[i : i + 1], maps[i : i + 1], (4, 5), radius=1), whole[i : i + 1])


def test_no_gradient_and_no_change_of_what_came_in():
    tokens, maps = clip()
    tokens.requires_grad_(), maps.requires_grad_()
    before = tokens.detach().clone(), maps.detach().clone()
    got = forward_maps(tokens, maps, (4, 5))
    assert not got.requires_grad and got.grad_fn is None
    assert torch.equal(tokens, before[0]) and torch.equal(maps, before[1])


def test_fp32_whatever_comes_in_and_whatever_the_autocast():
    tokens, maps = clip(d=32)
    half = tokens.bfloat16()
    want = forward_maps(half.float(), maps, (4, 5))
    assert torch.equal(forward_maps(half, maps, (4, 5)), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(forward_maps(half, maps, (4, 5)), want)
        assert torch.equal(forward_maps(half, maps, (4, 5), topk=None), forward_maps(half, maps, (4, 5), topk=None))
    labels = (maps > 0.5).long()
    got = forward_maps(tokens.double(), labels, (4, 5))
    assert got.dtype == torch.float32
    close(got, loops(tokens, labels, (4, 5)))


def test_a_token_of_zeros_is_no_error():
    tokens, maps = clip(b=1)
    tokens[0, 1, 3] = 0
    assert forward_maps(tokens, maps, (4, 5)).isfinite().all()


def test_a_very_low_temperature_does_not_overflow():
    tokens, maps = clip(b=1)
    got = forward_maps(tokens, maps, (4, 5), temperature=1e-6)
    close(got, loops(tokens, maps, (4, 5), topk=1, temperature=1.0))


@pytest.mark.parametrize(
    "change,words",
    [
        ({"tokens": torch.zeros(2, 20, 6)}, "(b t n d), got (2, 20, 6)"),
        ({"tokens": np.zeros((2, 4, 20, 6))}, "must be a tensor (b t n d), got ndarray"),
        ({"tokens": torch.zeros(2, 1, 20, 6)}, "at least 2 frames, got 1"),
        ({"tokens": torch.full((2, 4, 20, 6), math.nan)}, "tokens must be finite, got NaN"),
        ({"maps": torch.zeros(3, 20, 3)}, "with b=2, n=20, got (3, 20, 3)"),
        ({"maps": torch.zeros(2, 21, 3)}, "with b=2, n=20, got (2, 21, 3)"),
        ({"maps": torch.full((2, 20, 3), math.inf)}, "maps must be finite"),
        ({"grid": (4, 4)}, "hold the 20 tokens of a frame, got (4, 4)"),
        ({"grid": 20}, "hold the 20 tokens of a frame, got 20"),
        ({"grid": (-4, -5)}, "hold the 20 tokens of a frame, got (-4, -5)"),
        ({"radius": -1}, "radius must be at least 0, got -1"),
        ({"radius": 1.5}, "radius must be at least 0, got 1.5"),
        ({"topk": 0}, "topk must be at least 1, or None, got 0"),
        ({"temperature": 0}, "temperature must be at least 1e-06, got 0"),
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": "0.1"}, "temperature must be"),
        ({"context": -1}, "context must be at least 0, got -1"),
        ({"order": "listing 1"}, "order must be mask_first, eq4 or listing1, got 'listing 1'"),
        ({"method": "sparse"}, "method must be auto, dense or windowed, got 'sparse'"),
        ({"method": "windowed", "order": "eq4"}, "use dense or auto"),
    ],
)  # fmt: skip
def test_wrong_input_gets_one_sentence(change, words):
    tokens, maps = clip()
    given = {"tokens": tokens, "maps": maps, "grid": (4, 5), **change}
    with pytest.raises(TimetError) as error:
        forward_maps(**given)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_wrong_order_of_the_pieces():
    with pytest.raises(TimetError, match="order must be one of"):
        source_weights(torch.zeros(1, 4, 1, 4), torch.ones(4, 4, dtype=torch.bool), order="eq5")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", ["dense", "windowed"])
def test_gpu_gives_what_the_cpu_gives(method):
    tokens, maps = clip(b=3, grid=(20, 21), d=32, k=7)
    want = forward_maps(tokens, maps, (20, 21), radius=4)
    got = forward_maps(tokens.cuda(), maps.cuda(), (20, 21), radius=4, method=method)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-5)
