"Sinkhorn against a double loop in float64, at every scale of scores, alone and with two processes."

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from timet.core import TimetError
from timet.run.check import flat
from timet.run.processes import across
from timet.settings import Sinkhorn
from timet.sinkhorn import SAFE_SPAN, sinkhorn


@pytest.fixture(autouse=True)
def one_thread():
    "Tiny products: more threads only wait for each other."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def oracle(scores: torch.Tensor, epsilon: float = 0.05, iterations: int = 10) -> torch.Tensor:
    "Row and column logarithms, one entry at a time, in float64; columns first, rows last (Eq. 7 and 8)."
    m, k = scores.shape
    logits = [[float(x) / epsilon for x in row] for row in scores.double()]

    def log_sum(values: list[float]) -> float:
        peak = max(values)
        return peak + math.log(math.fsum(math.exp(v - peak) for v in values))

    row, column = [0.0] * m, [0.0] * k
    for _ in range(iterations):
        for j in range(k):
            column[j] = math.log(m / k) - log_sum([logits[i][j] + row[i] for i in range(m)])
        for i in range(m):
            row[i] = -log_sum([logits[i][j] + column[j] for j in range(k)])
    return torch.tensor(
        [[math.exp(logits[i][j] + row[i] + column[j]) for j in range(k)] for i in range(m)], dtype=torch.float64
    )


def make(m: int, k: int, scale: float, seed: int = 0) -> torch.Tensor:
    return scale * (2 * torch.rand(m, k, generator=torch.Generator().manual_seed(seed)) - 1)


@pytest.mark.parametrize("m, k", [(1, 1), (1, 4), (7, 1), (5, 9), (40, 6)])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_equals_the_loop(m, k, scale):
    scores = make(m, k, scale)
    got = sinkhorn(scores)
    assert got.dtype == torch.float32 and got.shape == (m, k)
    torch.testing.assert_close(got.double(), oracle(scores), atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(got, sinkhorn(scores, bound=scale), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("epsilon, iterations", [(0.02, 10), (0.05, 1), (0.05, 3), (0.3, 50)])
def test_equals_the_loop_at_other_settings(epsilon, iterations):
    scores = make(30, 5, 0.4)
    got = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(got.double(), oracle(scores, epsilon, iterations), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.05 * SAFE_SPAN / 2, 1.2, 8 * 0.05 * SAFE_SPAN / 2, 9.0, 1000.0])
@pytest.mark.parametrize("iterations", [1, 10, 200])
def test_any_scale(scale, iterations):
    scores = make(24, 6, scale, seed=3)
    got = sinkhorn(scores, iterations=iterations)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got.sum(1), torch.ones(24))
    torch.testing.assert_close(got.double(), oracle(scores, iterations=iterations), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("low", [-1.0, -1000.0])
def test_a_prototype_nobody_likes(low):
    "Its whole column underflows beside the others, yet it gets its share."
    scores = make(30, 5, 0.1)
    scores[:, 2] += low
    got = sinkhorn(scores, iterations=60)
    torch.testing.assert_close(got.double(), oracle(scores, iterations=60), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(got.sum(0), torch.full((5,), 6.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("corner", range(6))
def test_hard_corners_of_the_fast_way(corner):
    "Scores of -1 and 1 only, at the widest spans that plain exponentials must bear in both precisions."
    g = torch.Generator().manual_seed(corner)
    scores = (torch.rand(20, 6, generator=g) < (0.05, 0.2, 0.5, 0.8, 0.95, 0.99)[corner]).float() * 2 - 1
    scores[0], scores[1], scores[:, 3], scores[:, 4] = -1, 1, -1, 1
    for epsilon in (2 / SAFE_SPAN, 2 / (8 * SAFE_SPAN)):
        for iterations in (1, 10, 100):
            got = sinkhorn(scores, epsilon=epsilon, iterations=iterations, bound=1.0)
            want = oracle(scores, epsilon, iterations)
            torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("shift", [-500.0, 3.0, 500.0])
def test_a_constant_changes_nothing(shift):
    scores = make(20, 4, 0.5)
    torch.testing.assert_close(sinkhorn(scores + shift), sinkhorn(scores), atol=1e-2, rtol=0)


def test_marginals():
    got = sinkhorn(make(784, 200, 0.3), iterations=10)
    torch.testing.assert_close(got.sum(1), torch.ones(784))
    assert (got.sum(0) / (784 / 200) - 1).abs().max() < 0.02
    assert got.min() >= 0


def test_more_turns_come_closer():
    scores = make(100, 8, 0.3)
    error = [float((sinkhorn(scores, iterations=n).sum(0) - 12.5).abs().max()) for n in (1, 3, 10, 30)]
    assert error == sorted(error, reverse=True)


def test_defaults_are_the_released_ones():
    given = flat(Sinkhorn())
    assert given == {"epsilon": 0.05, "iterations": 10}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_works_in_single_precision(dtype):
    scores = make(30, 5, 1.0).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = sinkhorn(scores)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), oracle(scores), atol=2e-6, rtol=1e-4)


def test_no_gradient_and_input_untouched():
    scores = make(10, 3, 1.0).requires_grad_()
    before = scores.detach().clone()
    assert not sinkhorn(scores).requires_grad
    sinkhorn(1000 * scores)
    assert torch.equal(scores, before)


def test_repeats_exactly():
    scores = make(784, 50, 1.0)
    assert torch.equal(sinkhorn(scores), sinkhorn(scores))


@pytest.mark.parametrize(
    "scores, settings, words",
    [
        (torch.zeros(5), {}, "(m k), got (5,)"),
        (torch.zeros(2, 5, 3), {}, "(m k), got (2, 5, 3)"),
        (torch.zeros(5, 3, dtype=torch.long), {}, "floating-point"),
        (torch.full((5, 3), math.nan), {}, "NaN or infinity"),
        (torch.tensor([[0.0, math.inf]]), {}, "NaN or infinity"),
        (torch.tensor([[0.0, -math.inf]]), {}, "NaN or infinity"),
        (torch.zeros(0, 3), {}, "at least one row"),
        (torch.zeros(3, 0), {}, "at least one row and one prototype"),
        (torch.zeros(5, 3), {"epsilon": 0}, "epsilon must be above 0 and at most"),
        (torch.zeros(5, 3), {"epsilon": -0.1}, "epsilon must be above 0"),
        (torch.zeros(5, 3), {"epsilon": math.nan}, "epsilon must be above 0"),
        (torch.zeros(5, 3), {"iterations": 0}, "iterations must be at least 1, got 0"),
        (torch.zeros(5, 3), {"iterations": 2.5}, "iterations must be at least 1, got 2.5"),
        (torch.zeros(5, 3), {"iterations": math.nan}, "iterations must be at least 1, got nan"),
    ],
)
def test_wrong_input(scores, settings, words):
    with pytest.raises(TimetError) as caught:
        sinkhorn(scores, **settings)
    assert words in str(caught.value)


def test_across_does_nothing_alone():
    x = torch.ones(3)
    assert across(x) is x


CASES = {"cosines": make(21, 6, 0.7), "wide": make(21, 6, 300.0, seed=1), "one empty": make(21, 6, 0.7, seed=2)}


def two_processes(rank: int, folder: str) -> None:
    "One of two processes: its rows of every case, and what it says to a bad score of the other."
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    out = {}
    for name, scores in CASES.items():
        mine = scores.split([0, 21] if name == "one empty" else [8, 13])[rank]
        out[name] = sinkhorn(mine)
        out[name + " bound"] = sinkhorn(mine, bound=float(scores.abs().max()))
    out["alone"] = sinkhorn(CASES["cosines"][:5] + rank, group="local")
    out["group"] = sinkhorn(CASES["cosines"].split([8, 13])[rank], group=dist.new_group([0, 1]))
    bad = CASES["cosines"].clone()
    bad[0, 0] = math.nan
    try:
        sinkhorn(bad.split([8, 13])[rank])
    except TimetError as error:
        out["said"] = str(error)
    torch.save(out, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    assert dist.is_available()
    mp.spawn(two_processes, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, scores in CASES.items():
        for way in (name, name + " bound"):
            together = torch.cat([first[way], second[way]])
            torch.testing.assert_close(together, sinkhorn(scores), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat([first["group"], second["group"]]), sinkhorn(CASES["cosines"]))
    torch.testing.assert_close(first["alone"], sinkhorn(CASES["cosines"][:5]))
    assert "NaN or infinity" in first["said"] and first["said"] == second["said"]
