"The whole step against loops in float64, who gets gradient, and what is computed how often."

import copy
import inspect
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timet.core import TimetError
from timet.labels import HEADS, cosine_scores, embed, make_head, make_labels
from timet.loss import TimeT, check_clip, cluster_loss, diagnose, parameter_groups
from timet.model.teacher import QUEUE_PUSH, Queue, Teacher
from timet.run.check import flat, unique
from timet.settings import Loss
from timet.training.config import TrainConfig

GRID, PATCH, D, K, WIDTHS = (3, 4), 2, 6, 5, (7, 4)


@pytest.fixture(autouse=True)
def one_thread():
    "Tiny products: more threads only wait for each other."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Small(nn.Module):
    "A backbone of three linear layers with the interface of `timet.backbone.Backbone`; counts the frames it sees."

    embed_dim = D

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * PATCH**2, D).requires_grad_(False), nn.Linear(D, D)
        self.norm = nn.LayerNorm(D).requires_grad_(False)
        self.seen = {"frozen": [], "gradient": [], "no gradient": []}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if height % PATCH or width % PATCH:
            raise TimetError(f"{height} x {width} does not divide")
        return height // PATCH, width // PATCH

    def frozen_part(self, images: Tensor) -> Tensor:
        self.seen["frozen"].append(len(images))
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)
        return F.pad(self.first(patches), (0, 0, 1, 0))  # a prefix token of zeros

    def tuned_part(self, hidden: Tensor) -> Tensor:
        self.seen["gradient" if torch.is_grad_enabled() else "no gradient"].append(len(hidden))
        return self.norm(torch.tanh(self.second(hidden)))[:, 1:]


def clips(b: int = 2, t: int = 3, seed: int = 0) -> Tensor:
    "A smooth scene that moves one patch a frame, with noise."
    g = torch.Generator().manual_seed(seed)
    wide = 1.5 * torch.randn(b, 3, GRID[0] * PATCH, (GRID[1] + t) * PATCH, generator=g)
    moved = [wide[..., PATCH * i : PATCH * (i + GRID[1])] for i in range(t)]
    return torch.stack(moved, 1) + 0.2 * torch.randn(b, t, 3, GRID[0] * PATCH, GRID[1] * PATCH, generator=g)


def build(seed: int = 0, **settings) -> TimeT:
    torch.manual_seed(seed)
    return TimeT(Small(), **{"num_prototypes": K, "head": WIDTHS, "radius": 1, "topk": 3, **settings})


def loops_sinkhorn(rows: list[list[float]], epsilon: float = 0.05, iterations: int = 10) -> list[list[float]]:
    "Columns, then rows, in plain Python (Eq. 7 and 8)."
    m, k = len(rows), len(rows[0])
    table = [[math.exp(x / epsilon) for x in row] for row in rows]
    for _ in range(iterations):
        for j in range(k):
            total = sum(table[i][j] for i in range(m))
            for i in range(m):
                table[i][j] *= m / k / total
        for i in range(m):
            total = sum(table[i])
            table[i] = [x / total for x in table[i]]
    return table


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def loops_forward(
    tokens: list, first: list, *, radius: int = 1, topk: int | None = 3, temperature: float = 0.1, context: int = 7
) -> list:
    "Maps of frames 1.. of one clip, patch by patch: exp, window, top-k over frames and places, divide (Eq. 3 to 5)."
    h, w = GRID
    maps = [first]
    for t in range(1, len(tokens)):
        out = []
        for j in range(h * w):
            weights = []
            for s in [0, *range(max(1, t - context), t)]:
                for i in range(h * w):
                    if abs(i // w - j // w) <= radius and abs(i % w - j % w) <= radius:
                        weights.append((math.exp(cosine(tokens[s][i], tokens[t][j]) / temperature), s, i))
            weights = sorted(weights, reverse=True)[:topk]
            total = sum(a for a, _, _ in weights)
            out.append([sum(a / total * maps[s][i][c] for a, s, i in weights) for c in range(len(first[0]))])
        maps.append(out)
    return maps


def oracle(
    model: TimeT, clip: Tensor, forwarded: str = "sk", target: str = "hard", rows: str = "first"
) -> tuple[Tensor, list, dict[str, Tensor]]:
    "Loss with its graph, label or shares of every patch, and the weights in float64 that the graph starts from."
    double = copy.deepcopy(model).double()
    b, t = clip.shape[:2]
    tokens = torch.stack(
        [double.backbone.tuned_part(double.backbone.frozen_part(clip[:, i].double())) for i in range(t)], 1
    )
    z = double.head(tokens)
    scores = [
        [[[cosine(v, p) for p in double.prototypes.tolist()] for v in frame] for frame in one] for one in z.tolist()
    ]
    source = t - 1 if forwarded == "none" else 0
    frames = [t - 1] if forwarded == "none" else list(range(t)) if rows == "all" else [source]
    plain = tokens.tolist()
    if forwarded == "logits":
        maps = [loops_forward(plain[c], scores[c][0]) for c in range(b)]
        pooled = [row for c in range(b) for f in (range(t) if rows == "all" else [t - 1]) for row in maps[c][f]]
        shares = loops_sinkhorn(pooled)
        n, step = len(scores[0][0]), t if rows == "all" else 1
        last = [shares[(c * step + step - 1) * n : (c * step + step) * n] for c in range(b)]
    else:
        shares = loops_sinkhorn([row for c in range(b) for f in frames for row in scores[c][f]])
        n = len(scores[0][0])
        first = [shares[c * len(frames) * n :][:n] for c in range(b)]
        last = [loops_forward(plain[c], first[c])[-1] for c in range(b)] if forwarded == "sk" else first
    loss, count = 0.0, 0
    for c in range(b):
        for i in range(n):
            zi = z[c, -1, i]
            logits = torch.stack([(zi * p).sum() / zi.norm() / p.norm() / 0.1 for p in double.prototypes])
            log_probs = logits - logits.exp().sum().log()
            share = last[c][i]
            if target == "hard":
                loss = loss - log_probs[max(range(K), key=lambda j: share[j])]
            else:
                loss = loss - sum(share[j] * log_probs[j] for j in range(K))
            count += 1
    return loss / count, last, dict(double.named_parameters())


@pytest.mark.parametrize("rows", ["first", "all"])
@pytest.mark.parametrize("target", ["hard", "soft"])
@pytest.mark.parametrize("forwarded", ["sk", "logits", "identity", "none"])
def test_equals_the_loops(forwarded, target, rows):
    model, clip = build(forwarded=forwarded, target=target, sinkhorn_rows=rows), clips()
    step = model.step(clip)
    want, shares, weights = oracle(model, clip, forwarded, target, rows)
    torch.testing.assert_close(step.forwarded.double(), torch.tensor(shares).double(), atol=2e-5, rtol=1e-3)
    torch.testing.assert_close(step.loss.double(), want, atol=1e-5, rtol=1e-5)
    step.loss.backward()
    want.backward()  # the loops' labels are plain numbers: the graph holds the last frame alone
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad.double(), weights[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["backbone.second.weight", "head.0.weight", "head.2.bias", "prototypes"])
def test_gradient_is_the_slope_of_the_loops(name):
    "Hard labels do not move with a small step of a weight, so the slope of the whole loss is the gradient."
    model, clip = build(), clips()
    model(clip).backward()
    got = dict(model.named_parameters())[name].grad.flatten()
    place, h = int(got.abs().argmax()), 1e-4
    slopes = []
    for sign in (1, -1):
        moved = copy.deepcopy(model).double()
        dict(moved.named_parameters())[name].data.view(-1)[place] += sign * h
        slopes.append(float(oracle(moved, clip)[0].detach()))
    assert (slopes[0] - slopes[1]) / (2 * h) == pytest.approx(float(got[place]), rel=1e-3)


def test_only_tuned_head_and_prototypes_learn():
    model = build()
    model(clips()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    tuned = {"backbone.second.weight", "backbone.second.bias"}
    head = {f"head.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    assert reached == tuned | head | {"prototypes"}


@pytest.mark.parametrize("target", ["hard", "soft"])
@pytest.mark.parametrize("forwarded", ["sk", "logits", "identity", "none"])
@pytest.mark.parametrize("extra", [{}, {"sinkhorn_rows": "all"}, {"ema_decay": 0.9}, {"logits_clustering": "softmax"}])
def test_source_frames_get_no_gradient(forwarded, target, extra):
    model, pixels = build(forwarded=forwarded, target=target, **extra), clips().requires_grad_()
    model(pixels).backward()
    assert pixels.grad[:, :-1].abs().max() == 0
    assert pixels.grad[:, -1].abs().max() > 0
    assert model.teacher is None or all(p.grad is None for p in model.teacher.parameters())


@pytest.mark.parametrize(
    "settings, frozen, gradient, free, headed",
    [
        ({}, 8, 2, [6], [2, 2]),  # all frames once; last with gradient, the others without; head on last and frame 0
        ({"forwarded": "logits"}, 8, 2, [6], [2, 2]),
        ({"forwarded": "identity"}, 4, 2, [2], [2, 2]),  # middle frames are not needed
        ({"forwarded": "none"}, 2, 2, [], [2]),  # the last frame alone, everything once
        ({"sinkhorn_rows": "all"}, 8, 2, [6], [2, 6]),  # the last frame's head output is used again
        ({"ema_decay": 0.9}, 8, 2, [6], [2]),  # frame 0 goes through the teacher's blocks and head instead
    ],
)
def test_nothing_twice(settings, frozen, gradient, free, headed):
    model, heads = build(**settings), []
    model.head.register_forward_hook(lambda _m, x, _y: heads.append(x[0].shape[:-2].numel()))
    model(clips(b=2, t=4))
    assert model.backbone.seen == {"frozen": [frozen], "gradient": [gradient], "no gradient": free}
    assert heads == headed
    if model.teacher is not None:
        assert model.teacher.backbone.seen == {"frozen": [], "gradient": [], "no gradient": [2]}


def test_every_constant_equals_its_table():
    assert flat(Loss()) == {
        "num_prototypes": 200, "head": "released", "forwarded": "sk", "target": "hard", "radius": 6, "topk": 5,
        "temperature": 0.1, "context": 7, "order": "mask_first", "epsilon": 0.05, "iterations": 10,
        "loss_temperature": 0.1, "sinkhorn_rows": "first", "ema_decay": None, "queue_size": 0,
        "logits_clustering": "sinkhorn",
    }  # fmt: skip
    assert unique(Loss()) and unique(TrainConfig())
    assert HEADS == {"released": (1024, 1024, 512, 256), "paper": (2048, 2048, 256)}
    assert QUEUE_PUSH == 10
    rates = {name: p.default for name, p in inspect.signature(parameter_groups).parameters.items()}
    assert (rates["lr_backbone"], rates["lr_head"]) == (1e-5, 1e-4)
    assert inspect.signature(make_labels).parameters["temperature"].default == Loss().loss_temperature


def test_settings_reach_the_label_maker():
    settings = dict(
        forwarded="logits", sinkhorn_rows="all", logits_clustering="softmax", radius=2, topk=None, temperature=0.2,
        context=3, order="eq4", epsilon=0.1, iterations=4, loss_temperature=0.3,
    )  # fmt: skip
    made = build(**settings).settings
    assert flat(made.labels) | {"loss_temperature": made.loss_temperature} == settings


@pytest.mark.parametrize(
    "head, widths", [("released", [1024, 1024, 512, 256]), ("paper", [2048, 2048, 256]), ((8,), [8])]
)
def test_heads(head, widths):
    layers = make_head(12, head)
    assert [x.out_features for x in layers if isinstance(x, nn.Linear)] == widths
    assert layers[0].in_features == 12 and sum(isinstance(x, nn.GELU) for x in layers) == len(widths) - 1
    assert isinstance(layers[-1], nn.Linear)


def test_scores_are_cosines():
    model = build()
    tokens = torch.randn(2, 12, D)
    want = F.cosine_similarity(model.head(tokens)[:, :, None], model.prototypes[None, None], dim=-1)
    torch.testing.assert_close(model.scores(tokens), want)
    model.prototypes.data.mul_(torch.rand(K, 1) + 0.5)
    torch.testing.assert_close(model.scores(tokens), want)
    model.normalize_prototypes()
    torch.testing.assert_close(model.prototypes.norm(dim=-1), torch.ones(K))


def test_soft_labels_keep_the_mass_they_have():
    log_probs, shares = torch.randn(2, 3, 5).log_softmax(-1), torch.rand(2, 3, 5)
    torch.testing.assert_close(cluster_loss(log_probs, shares), -(shares * log_probs).sum() / 6)
    torch.testing.assert_close(cluster_loss(log_probs, 0 * shares), torch.tensor(0.0))


def test_single_frames():
    model, clip = build(forwarded="none"), clips()
    torch.testing.assert_close(model(clip), model(clip[:, -1:]))
    for forwarded in ("sk", "identity", "logits"):
        with pytest.raises(TimetError, match="at least 2 frames"):
            build(forwarded=forwarded)(clip[:, :1])


def test_two_frames():
    assert torch.isfinite(build()(clips(t=2)))
    torch.testing.assert_close(build(forwarded="identity")(clips(t=3)), build(forwarded="identity")(clips(t=3)[:, ::2]))


def test_logits_by_softmax():
    model, clip = build(forwarded="logits", logits_clustering="softmax"), clips()
    step = model.step(clip)
    maps = [loops_forward(t, s)[-1] for t, s in zip(step.tokens.tolist(), step.assignments.tolist())]
    torch.testing.assert_close(step.forwarded, (torch.tensor(maps) / 0.1).softmax(-1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(step.assignments, model.scores(step.tokens[:, 0]))


def test_batch_is_clustered_as_a_whole():
    model, clip = build(), clips(b=4)
    whole = model.step(clip).assignments
    alone = torch.cat([model.step(one[None]).assignments for one in clip])
    assert (whole.sum((0, 1)) / whole.sum() - 1 / K).abs().max() < 0.02
    assert (whole - alone).abs().max() > 0.05


# Teacher


def test_teacher_moves_towards_the_student():
    model = build(ema_decay=0.75)
    before = {n: p.clone() for n, p in model.teacher.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(1.0)
    model.update_teacher()
    for name, p in model.teacher.named_parameters():
        moved = 0.25 if not name.startswith(("backbone.first", "backbone.norm")) else 0.0
        torch.testing.assert_close(p, before[name] + moved)
    model.update_teacher(decay=1.0)
    torch.testing.assert_close(model.teacher.prototypes, before["prototypes"] + 0.25)
    model.update_teacher(decay=0.0)
    torch.testing.assert_close(model.teacher.prototypes, model.prototypes)


def test_teacher_makes_the_labels():
    model, clip = build(ema_decay=0.9), clips()
    other = build(seed=5)
    model.teacher = Teacher(other.backbone, other.head, other.prototypes)
    got = model.step(clip)
    other.backbone.first.load_state_dict(model.backbone.first.state_dict())
    torch.testing.assert_close(got.assignments, other.step(clip).assignments)
    # the forwarder still looks with the student's eyes
    torch.testing.assert_close(got.tokens, build().step(clip).tokens)
    plain = build()
    torch.testing.assert_close(build(ema_decay=0.9).step(clip).forwarded, plain.step(clip).forwarded)


def test_teacher_has_buffers_and_stays_in_evaluation():
    backbone = Small()
    backbone.register_buffer("mean", torch.zeros(2))
    model = TimeT(backbone, num_prototypes=K, head=WIDTHS, ema_decay=0.5)
    backbone.mean += 3
    model.update_teacher()
    assert model.teacher.backbone.mean.tolist() == [3, 3]
    model.train()
    assert model.training and not model.teacher.training


# Queue


def test_queue_replaces_the_oldest():
    queue = Queue(6, 2)
    for value in range(1, 5):
        assert len(queue.rows()) == (6 if value == 4 else 0)
        queue.push(torch.full((3, 2), float(value)), 2)
    assert sorted(queue.rows()[:, 0].tolist()) == [2, 2, 3, 3, 4, 4]
    queue.push(torch.full((20, 2), 9.0), 20)
    assert queue.rows()[:, 0].tolist() == [9.0] * 6


def test_queue_is_used_once_full_and_only_filled_in_training():
    size = 2 * QUEUE_PUSH
    model, plain = build(queue_size=2 * size), build()
    model.eval()(clips())
    assert int(model.queue.seen) == 0
    model.train()
    first = model(clips())
    assert int(model.queue.seen) == size
    torch.testing.assert_close(first, plain(clips()))
    model(clips(seed=1))
    kept = model.queue.rows().clone()
    assert len(kept) == 2 * size
    step = model.step(clips(seed=2))
    scores = model.scores(step.tokens[:, 0]).flatten(0, 1).tolist()
    queued = cosine_scores(kept, model.prototypes).tolist()
    want = torch.tensor(loops_sinkhorn(scores + queued)[: len(scores)]).view_as(step.assignments)
    torch.testing.assert_close(step.assignments, want, atol=1e-4, rtol=1e-3)
    assert (step.assignments - plain.step(clips(seed=2)).assignments).abs().max() > 1e-3


def test_state_is_saved_whole():
    model = build(ema_decay=0.9, queue_size=20)
    model(clips())
    again = build(seed=7, ema_decay=0.9, queue_size=20)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    assert int(again.queue.seen) == 20
    assert torch.equal(again(clips(seed=3)), model(clips(seed=3)))


# Groups, diagnostics, precision


def test_parameter_groups():
    model = build(ema_decay=0.9)
    groups = {g["name"]: g for g in parameter_groups(model, lr_backbone=2e-5, lr_head=3e-4)}
    named = {id(p): name for name, p in model.named_parameters()}
    inside = {name: {named[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert inside == {
        "backbone": {"backbone.second.weight"},
        "backbone, no decay": {"backbone.second.bias"},
        "head": {"head.0.weight", "head.2.weight", "prototypes"},
        "head, no decay": {"head.0.bias", "head.2.bias"},
    }
    assert {name: (g["lr"], g["decay"]) for name, g in groups.items()} == {
        "backbone": (2e-5, True), "backbone, no decay": (2e-5, False), "head": (3e-4, True), "head, no decay": (3e-4, False),
    }  # fmt: skip
    optimizer = torch.optim.AdamW(parameter_groups(model), weight_decay=0.04)
    assert {g["name"]: g["weight_decay"] for g in optimizer.param_groups} == {
        "backbone": 0.04, "backbone, no decay": 0.0, "head": 0.04, "head, no decay": 0.0,
    }  # fmt: skip


def test_diagnostics():
    model = build()
    step = model.step(clips())
    got = diagnose(step)
    label = step.target.flatten().tolist()
    usage = [label.count(j) / len(label) for j in range(K)]
    assert got["usage"].tolist() == pytest.approx(usage)
    assert float(got["perplexity"]) == pytest.approx(math.exp(-sum(u * math.log(u) for u in usage if u)))
    assert float(got["agreement"]) == pytest.approx(float((step.scores.argmax(-1) == step.target).float().mean()))
    assert float(got["mass"]) == pytest.approx(1, abs=1e-5)
    rows = (step.forwarded / step.forwarded.sum(-1, keepdim=True)).flatten(0, 1).tolist()
    entropy = sum(-x * math.log(x) for row in rows for x in row if x > 0) / len(rows)
    assert float(got["target_entropy"]) == pytest.approx(entropy, rel=1e-4)
    model(clips())
    assert all(not x.requires_grad and torch.equal(x, got[name]) for name, x in model.diagnostics.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_every_gradient(dtype):
    model, clip = build(), clips()
    want = model(clip)
    with torch.autocast("cpu", dtype):
        loss = model(clip)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(loss, want, atol=0.1, rtol=0.1)


def test_repeats_exactly():
    assert torch.equal(build()(clips()), build()(clips()))


def test_it_learns():
    model, clip = build(), clips(b=4)
    optimizer = torch.optim.AdamW(parameter_groups(model, lr_backbone=1e-3, lr_head=1e-2))
    losses = []
    for _ in range(30):
        loss = model(clip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.normalize_prototypes()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0] and model.diagnostics["perplexity"] > 3


# Wrong input


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"forwarded": "flow"}, "forwarded must be sk, logits, identity or none, got 'flow'"),
        ({"target": "medium"}, "target must be hard or soft"),
        ({"order": "last"}, "order must be mask_first, eq4 or listing1"),
        ({"sinkhorn_rows": "none"}, "sinkhorn_rows must be first or all"),
        ({"logits_clustering": "kmeans"}, "logits_clustering must be sinkhorn or softmax"),
        ({"num_prototypes": 1}, "num_prototypes must be at least 2, got 1"),
        ({"loss_temperature": 0}, "loss_temperature must be above 0"),
        ({"ema_decay": 1.5}, "ema_decay must be from 0"),
        ({"queue_size": -1}, "queue_size must be at least 0"),
        ({"head": "huge"}, "head must be released or paper, or widths"),
        ({"head": ()}, "head must be"),
        ({"head": (16, 0)}, "head must be"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(TimetError) as caught:
        build(**settings)
    assert words in str(caught.value)


def test_wrong_backbone_and_teacher():
    with pytest.raises(TimetError, match="create_backbone, got Linear"):
        TimeT(nn.Linear(3, 3))
    with pytest.raises(TimetError, match="no teacher"):
        build().update_teacher()
    with pytest.raises(TimetError, match="between 0 and 1, got 2"):
        build(ema_decay=0.9).update_teacher(decay=2)


@pytest.mark.parametrize(
    "clip, words",
    [
        (torch.zeros(2, 3, 6, 8), "(b t 3 h w), got (2, 3, 6, 8)"),
        (torch.zeros(2, 3, 4, 6, 8), "(b t 3 h w)"),
        (torch.zeros(2, 3, 3, 6, 8, dtype=torch.uint8), "normalised floats, got torch.uint8"),
        ([[1.0]], "normalised floats, got list"),
        (torch.zeros(0, 3, 3, 6, 8), "at least one clip"),
        (torch.zeros(2, 1, 3, 6, 8), "at least 2 frames to forward labels in time, got 1"),
        (torch.zeros(2, 3, 3, 7, 8), "7 x 8 does not divide"),
        (torch.zeros(2, 3, 3, 6, 8).index_fill(1, torch.tensor(2), math.nan), "NaN or infinity in frame 2 of clip 0"),
        (torch.zeros(2, 3, 3, 6, 8).index_fill(0, torch.tensor(1), math.inf), "NaN or infinity in frame 0 of clip 1"),
    ],
)
def test_wrong_clips(clip, words):
    with pytest.raises(TimetError) as caught:
        build()(clip)
    assert words in str(caught.value)


def test_the_look_for_nan_can_be_chosen():
    bad = torch.full((1, 2, 3, 6, 8), math.nan)
    assert check_clip(bad, finite=False) == (1, 2, 6, 8)
    with pytest.raises(TimetError, match="NaN"):
        check_clip(bad, finite=True)


# Two processes


def two_processes(rank: int, folder: str) -> None:
    "One of two processes with half the clips: loss, gradients after averaging, and its queue."
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    out = {}
    for name, settings in VARIANTS.items():
        model = DistributedDataParallel(build(**settings))
        for seed in range(2):
            model.zero_grad()
            loss = model(clips(b=4, seed=seed).split(2)[rank])
            loss.backward()
        out[name] = {
            "loss": loss.detach(),
            "gradient": {n: p.grad for n, p in model.module.named_parameters() if p.requires_grad},
        }
        if model.module.queue is not None:
            out[name]["queue"] = model.module.queue.vectors
    torch.save(out, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


VARIANTS = {"plain": {}, "soft, all rows": {"target": "soft", "sinkhorn_rows": "all"}, "queue": {"queue_size": 40}}


def test_two_processes_equal_one(tmp_path):
    mp.spawn(two_processes, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in ("plain", "soft, all rows"):
        model = build(**VARIANTS[name])
        loss = model(clips(b=4, seed=1))
        loss.backward()
        torch.testing.assert_close(
            (ranks[0][name]["loss"] + ranks[1][name]["loss"]) / 2, loss.detach(), atol=1e-5, rtol=1e-4
        )
        for n, p in model.named_parameters():
            if p.requires_grad:
                for one in ranks:
                    torch.testing.assert_close(one[name]["gradient"][n], p.grad, atol=1e-5, rtol=1e-3)
    # both keep the same queue, filled by both
    queue = ranks[0]["queue"]["queue"]
    assert torch.equal(queue, ranks[1]["queue"]["queue"]) and len(queue.unique(dim=0)) > 20


# The real backbone


@pytest.mark.parametrize("tuned", [1, "all"])
def test_with_the_demo_backbone(tuned):
    from timet.backbone import create_backbone

    torch.manual_seed(0)
    backbone = create_backbone("timet_tiny_patch8_96", weights="none", tuned_blocks=tuned)
    model, clip = TimeT(backbone, num_prototypes=16, head=(32, 16)), torch.randn(2, 3, 3, 32, 48)
    step = model.step(clip)
    assert step.grid == (4, 6) and step.tokens.shape == (2, 3, 24, 128) and step.forwarded.shape == (2, 24, 16)
    torch.testing.assert_close(step.tokens, torch.stack([backbone.tokens(c) for c in clip]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(step.scores, model.scores(backbone.tokens(clip[:, -1])), atol=1e-4, rtol=1e-3)
    step.loss.backward()
    reached = {id(p) for p in model.parameters() if p.grad is not None}
    wanted = {id(p) for p in [*backbone.tuned_parameters(), *model.head.parameters(), model.prototypes]}
    assert reached <= wanted
    unused = [n for n, p in model.named_parameters() if id(p) in wanted - reached]
    assert not unused, unused


def test_with_a_resnet():
    from timet.backbone import create_backbone

    torch.manual_seed(0)
    backbone = create_backbone("resnet18", weights="none", tuned_blocks=1)
    model = TimeT(backbone, num_prototypes=8, head=(16,), ema_decay=0.99)
    loss = model(torch.randn(2, 2, 3, 64, 64))
    loss.backward()
    model.update_teacher()
    assert torch.isfinite(loss)


def test_embeddings_are_unit_vectors():
    got = embed(make_head(6, (5,)), torch.randn(2, 3, 6))
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(2, 3))
