"""Sampling, augmentation and loaders: against plain loops, against torchvision, and against their own promises."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from timet.core import TimetError
from timet.data.clips import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipAugment,
    ClipPlan,
    EvalTransform,
    blur,
    clip_index,
    denormalize,
    normalize,
    turn_hue,
)


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(t=4, h=40, w=60, seed=0) -> np.ndarray:
    return rng(seed).integers(0, 256, (t, h, w, 3), dtype=np.uint8)


# sampling


def on_screen(starts, t) -> int:
    return max(i for i, s in enumerate(starts) if s <= t + 1.5e-3)


def test_regular_clips_are_delta_t_apart():
    general = rng(1)
    for _ in range(100):
        starts = np.concatenate([[0], np.cumsum(general.uniform(0.02, 0.15, general.integers(40, 90)))])
        delta, frames = general.uniform(0.1, 0.4), int(general.integers(2, 6))
        index = clip_index(starts, frames, delta_t=delta, rng=general)
        assert index.tolist() == [on_screen(starts, starts[index[0]] + j * delta) for j in range(frames)]
        assert starts[index[0]] + (frames - 1) * delta <= starts[-1] + 1e-2


def test_regular_at_a_constant_rate_is_the_step_of_the_paper():
    for fps, delta, step in ((24, 0.5, 12), (30, 0.5, 15), (6, 0.5, 3), (6, 1.0, 6), (25, 0.2, 5), (6, 0.2, 1)):
        starts = np.arange(200) / fps
        for seed in range(20):
            assert set(np.diff(clip_index(starts, 4, delta_t=delta, rng=rng(seed))).tolist()) <= {
                step,
                step + (fps * delta != step),
            }


def test_every_start_that_has_room_is_drawn():
    starts = np.arange(20) / 10
    seen = Counter(int(clip_index(starts, 4, delta_t=0.5, rng=general)[0]) for general in [rng(3)] for _ in range(3000))
    assert sorted(seen) == [0, 1, 2, 3, 4] and min(seen.values()) > 450


@pytest.mark.parametrize("count", range(1, 40))
@pytest.mark.parametrize("sampling", ["regular", "uniform"])
def test_short_sequences(count, sampling):
    for general in (None, rng(0)):
        index = clip_index(np.arange(count) / 24, 4, sampling=sampling, rng=general)
        assert index.shape == (4,) and index.dtype == np.int64
        assert (np.diff(index) >= 0).all() and index.min() >= 0 and index.max() < count
        assert len(set(index.tolist())) == min(count, 4)
        if sampling == "regular" and count < 37:
            assert index[0] == 0 and index[-1] == count - 1


def test_uniform_covers_the_whole_video():
    starts = np.arange(100) / 24
    drawn = np.stack(
        [clip_index(starts, 4, sampling="uniform", rng=general) for general in [rng(0)] for _ in range(500)]
    )
    assert (np.diff(drawn, axis=1) > 0).all() and drawn.min() == 0 and drawn.max() == 99
    assert clip_index(starts, 4, sampling="uniform").tolist() == [0, 33, 66, 99]
    assert clip_index(starts, 1, rng=rng(0)).shape == (1,)


@pytest.mark.parametrize(
    "starts, frames, kwargs, words",
    [
        ([], 4, {}, "at least 1 frame"),
        ([0, 1], 0, {}, "at least 1 frame"),
        ([0, 1], 4, {"delta_t": -0.5}, "above 0"),
        ([0, 1], 4, {"delta_t": float("nan")}, "above 0"),
        ([0, 1], 4, {"sampling": "dense"}, "regular or uniform"),
    ],
)
def test_wrong_sampling(starts, frames, kwargs, words):
    with pytest.raises(TimetError, match=words):
        clip_index(np.array(starts), frames, **kwargs)


# colours


def test_normalisation():
    assert IMAGENET_STD == (0.229, 0.224, 0.225) and IMAGENET_MEAN == (0.485, 0.456, 0.406)
    x = torch.from_numpy(noise()).permute(0, 3, 1, 2)
    expected = (x.double() / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(normalize(x).double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(normalize(x.float() / 255), normalize(x))
    torch.testing.assert_close(denormalize(normalize(x)), x / 255, atol=1e-6, rtol=0)


def test_own_hue_and_blur_are_torchvisions():
    x = torch.rand(3, 3, 30, 40)
    x[0, :, :4] = 0.5  # grey has no hue
    x[0, :, 4:6] = torch.tensor([0.7, 0.7, 0.2])[:, None, None]  # two channels alike
    for turn in np.linspace(-0.5, 0.5, 11):
        torch.testing.assert_close(turn_hue(x, turn), F.adjust_hue(x, turn), atol=2e-5, rtol=0)
    for sigma in (0.2, 0.7, 1.3, 2.0):
        size = 2 * math.ceil(3 * sigma) + 1
        for products in (False, True):
            out = blur(x[None], [sigma], products)[0]
            torch.testing.assert_close(out, F.gaussian_blur(x, [size] * 2, [sigma] * 2), atol=1e-5, rtol=0)
    assert blur(torch.rand(1, 2, 3, 1, 1), [2.0]).shape == (1, 2, 3, 1, 1)


def test_every_clip_of_a_batch_has_its_own_blur():
    x, sigmas = torch.rand(3, 2, 3, 20, 26, generator=torch.Generator().manual_seed(0)), [0.3, 2.1, 0.9]
    alone = torch.cat([blur(clip[None], [sigma]) for clip, sigma in zip(x, sigmas)])
    for products in (False, True):
        torch.testing.assert_close(blur(x, sigmas, products), alone, atol=1e-6, rtol=0)


def test_a_batch_is_painted_as_its_clips_are():
    augment, frames = ClipAugment((20, 28)), [noise(3, seed=s) for s in range(24)]
    plans = [augment.draw(40, 60, rng(s)) for s in range(24)]
    cuts = torch.stack([augment.cut(p, f, (40, 60)) for p, f in zip(plans, frames)])
    assert cuts.dtype == torch.uint8
    alone = torch.stack([augment.apply(p, f) for p, f in zip(plans, frames)])
    torch.testing.assert_close(augment.paint(cuts, plans), alone, atol=1e-5, rtol=0)
    kinds = {name for p in plans for name, _ in p.jitter}
    assert len(kinds) == 4 and any(p.grey for p in plans) and any(not p.jitter for p in plans)


def test_painting_is_what_torchvision_does_one_after_the_other():
    augment = ClipAugment((20, 28))
    for seed in range(30):
        plan, frames = augment.draw(40, 60, rng(seed)), noise(2, seed=seed)
        x = augment.cut(plan, frames, (40, 60)) / 255
        for name, amount in plan.jitter:
            x = getattr(F, f"adjust_{name}")(x, amount)
        x = F.rgb_to_grayscale(x, num_output_channels=3) if plan.grey else x
        sigma = plan.sigma * math.sqrt(20 * 28 / (plan.box[2] * plan.box[3]))
        if sigma > 0.1:
            x = F.gaussian_blur(x, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma] * 2)
        torch.testing.assert_close(
            augment.apply(plan, frames), normalize(x), atol=4e-4, rtol=0
        )  # a tenth of a grey level: 0.0017


# augmentation


def plan(**changes) -> ClipPlan:
    whole = dict(box=(0, 0, 40, 60), flip=False, jitter=(), grey=False, sigma=0.0)
    return ClipPlan(**(whole | changes))


def test_the_plan_that_does_nothing_is_the_evaluation():
    frames = noise()
    torch.testing.assert_close(ClipAugment(24).apply(plan(), frames), EvalTransform(24)(frames))


def test_all_four_colour_changes_act_in_their_order():
    frames, jitter = noise(), (("contrast", 1.4), ("hue", 0.1), ("brightness", 0.7), ("saturation", 1.5))
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    for name, amount in jitter:
        x = getattr(F, f"adjust_{name}")(x, amount)
    out = ClipAugment((40, 60)).apply(plan(jitter=jitter), frames)
    torch.testing.assert_close(out, normalize(x), atol=2e-4, rtol=0)
    for left_out in range(4):
        fewer = ClipAugment((40, 60)).apply(plan(jitter=jitter[:left_out] + jitter[left_out + 1 :]), frames)
        assert (fewer - out).abs().mean() > 0.01


def test_masks_follow_the_frames():
    values = rng(0).integers(0, 4, (5, 8)).repeat(12, 0).repeat(12, 1)
    frames = np.repeat((values * 60).astype(np.uint8)[None, ..., None], 3, axis=0).repeat(3, -1)
    masks = np.repeat(values[None], 3, axis=0)
    augment = ClipAugment(64, jitter_p=0, grey_p=0, blur_p=0)
    for seed in range(20):
        clip, ids = augment(frames, masks, rng=rng(seed))
        assert ids.dtype == torch.int64 and ids.shape == (3, 64, 64)
        seen = (denormalize(clip)[:, 0] * 255 / 60).round()
        inner = (seen == ids).float().mean()
        assert inner > 0.85  # bilinear mixes along edges only
    _, ids = ClipAugment((60, 96)).apply(plan(box=(0, 0, 60, 96), flip=True), frames, masks)
    np.testing.assert_array_equal(ids.numpy(), masks[..., ::-1])


def test_one_plan_for_the_whole_clip():
    still = np.repeat(noise(1), 4, axis=0)
    for seed in range(30):
        clip = ClipAugment(24)(still, rng=rng(seed))
        torch.testing.assert_close(clip, clip[:1].expand_as(clip), atol=1e-6, rtol=0)


def test_how_often_and_how_much():
    augment, general = ClipAugment(24), rng(0)
    plans = [augment.draw(480, 854, general) for _ in range(4000)]
    share = lambda f: sum(map(f, plans)) / len(plans)  # noqa: E731
    assert share(lambda p: p.flip) == pytest.approx(0.5, abs=0.03)
    assert share(lambda p: p.grey) == pytest.approx(0.2, abs=0.03)
    assert share(lambda p: p.sigma > 0) == pytest.approx(0.5, abs=0.03)
    assert share(lambda p: len(p.jitter) == 4) == pytest.approx(0.8, abs=0.03)
    assert share(lambda p: len(p.jitter) == 0) == pytest.approx(0.2, abs=0.03)
    orders = Counter(tuple(n for n, _ in p.jitter) for p in plans if p.jitter)
    assert len(orders) == 24 and min(orders.values()) > 80
    for name, low, high in (
        ("brightness", 0.2, 1.8),
        ("contrast", 0.2, 1.8),
        ("saturation", 0.2, 1.8),
        ("hue", -0.2, 0.2),
    ):
        amounts = [a for p in plans for n, a in p.jitter if n == name]
        assert low <= min(amounts) < low + 0.01 and high - 0.01 < max(amounts) <= high
    sigmas = [p.sigma for p in plans if p.sigma]
    assert min(sigmas) >= 0.1 and max(sigmas) <= 2.0 and np.mean(sigmas) == pytest.approx(1.05, abs=0.05)
    for p in plans:
        top, left, h, w = p.box
        assert 0 <= top <= top + h <= 480 and 0 <= left <= left + w <= 854
        assert 0.39 < h * w / (480 * 854) <= 1 and 0.74 < w / h < 1.35
    areas = np.array([p.box[2] * p.box[3] for p in plans]) / (480 * 854)
    assert areas.min() < 0.42 and 0.7 < areas.max()


def test_odd_shapes_of_frames():
    for h, w in ((1, 1), (1, 50), (50, 1), (3, 200), (224, 224), (7, 5)):
        for seed in range(5):
            assert ClipAugment(16)(noise(2, h, w), rng=rng(seed)).isfinite().all()
    top, _, h, w = ClipAugment(16).draw(10, 1000, rng(0)).box
    assert (top, h) == (0, 10) and w <= 14


def test_the_blur_is_scaled_with_the_frame():
    frames = noise(1, 120, 120)
    out = ClipAugment(60).apply(plan(box=(0, 0, 120, 120), sigma=2.0), frames)
    x = (
        F.resize(torch.from_numpy(frames).permute(0, 3, 1, 2), [60, 60], InterpolationMode.BILINEAR, antialias=True)
        / 255
    )
    torch.testing.assert_close(out, normalize(F.gaussian_blur(x, [7, 7], [1.0, 1.0])), atol=1e-4, rtol=0)


def test_chance_comes_from_the_generator_alone():
    frames, augment = noise(), ClipAugment(24)
    state = torch.get_rng_state()
    first = augment(frames, rng=rng(5))
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(first, augment(frames, rng=rng(5)))
    torch.set_rng_state(state)
    augment(frames, rng=rng(6))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: ClipAugment(0), "whole number"),
        (lambda: ClipAugment((3, 4, 5)), "whole number"),
        (lambda: ClipAugment(2.5), "whole number"),
        (lambda: ClipAugment(8, scale=(0.5, 1.5)), "scale must"),
        (lambda: ClipAugment(8, ratio=(2.0, 1.0)), "scale must"),
        (lambda: ClipAugment(8, flip_p=1.5), "chances"),
        (lambda: ClipAugment(8, jitter=(0.1, 0.1, 0.1, 0.7)), "hue up to 0.5"),
        (lambda: ClipAugment(8, blur=(2.0, 0.1)), "blur must rise"),
        (lambda: ClipAugment(8)(noise()), "default_rng"),
        (lambda: ClipAugment(8)(noise()[0], rng=rng()), "frames must have the shape"),
        (lambda: ClipAugment(8)(noise().astype(float), rng=rng()), "uint8"),
        (lambda: ClipAugment(8)(noise(), np.zeros((4, 20, 30), int), rng=rng()), "masks must have the shape"),
        (lambda: EvalTransform(8)(noise(), np.zeros((3, 40, 60), int)), "masks must have the shape"),
        (lambda: EvalTransform(-1), "whole number"),
        (lambda: EvalTransform(8, mask_size=0), "mask_size"),
    ],
)
def test_wrong_transforms(call, words):
    with pytest.raises(TimetError, match=words):
        call()


def test_eval_transform_squashes():
    frames, masks = noise(2, 40, 60), rng(0).integers(0, 5, (2, 20, 30))
    clip, ids = EvalTransform((16, 32), mask_size=(20, 30))(frames, masks)
    assert clip.shape == (2, 3, 16, 32) and clip.is_contiguous()
    np.testing.assert_array_equal(ids.numpy(), masks)
    assert EvalTransform(16)(frames, masks)[1].shape == (2, 16, 16)
