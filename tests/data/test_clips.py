"""Sampling, augmentation and loaders: against plain loops, against torchvision, and against their own promises."""

import math
import os
import signal
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from timet.core import TimetError
from timet.data.clips import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipAugment,
    ClipDataset,
    ClipPlan,
    EvalTransform,
    blur,
    clip_index,
    denormalize,
    make_loader,
    normalize,
    turn_hue,
)
from timet.data.find import find_sources
from timet.data.source import FolderSource
from timet.data.video import VideoError, take_fresh_scans


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
        torch.testing.assert_close(blur(x, sigma), F.gaussian_blur(x, [size] * 2, [sigma] * 2), atol=1e-5, rtol=0)
    assert blur(torch.rand(3, 1, 1), 2.0).shape == (3, 1, 1)


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


# data sets and loaders


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    "Five videos and five folders of frames, all different."
    root = tmp_path_factory.mktemp("clips")
    for k in range(5):
        with av.open(str(root / f"v{k}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=24, options={"threads": "1", "preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 24)
            for n in range(30 + k):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * k + 4 * n, dtype=np.uint8), "rgb24")
                frame.pts, frame.time_base = n, Fraction(1, 24)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        (root / f"f{k}").mkdir()
        for n in range(3 + 10 * k):
            Image.fromarray(np.full((30, 40, 3), 20 * k + 3 * n, dtype=np.uint8)).save(root / f"f{k}" / f"{n}.png")
    return find_sources(root)


def batches(dataset, **kwargs) -> list[dict]:
    return list(make_loader(dataset, **kwargs))


def same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert torch.equal(x["clip"], y["clip"]) and torch.equal(x["index"], y["index"]) and x["bad"] == y["bad"]


def test_workers_change_nothing(sources):
    dataset = ClipDataset(sources, transform=ClipAugment(16), delta_t=0.2, seed=3)
    alone = batches(dataset, batch_size=3, epoch=4)
    assert len(alone) == 3 and alone[0]["clip"].shape == (3, 4, 3, 16, 16) and alone[0]["clip"].dtype == torch.float32
    same(alone, batches(dataset, batch_size=3, epoch=4))
    same(alone, batches(dataset, batch_size=3, epoch=4, num_workers=2))
    same(
        alone,
        batches(
            ClipDataset(sources, transform=ClipAugment(16), delta_t=0.2, seed=3, cache_mb=50), batch_size=3, epoch=4
        ),
    )
    for other in (dict(epoch=5), dict(epoch=4, shuffle=False)):
        assert not torch.equal(alone[0]["clip"], batches(dataset, batch_size=3, **other)[0]["clip"])


def test_a_resumed_epoch_goes_on_where_it_was(sources):
    dataset = ClipDataset(sources, transform=ClipAugment(16))
    whole = batches(dataset, batch_size=2, epoch=1)
    for step in range(6):
        loader = make_loader(dataset, batch_size=2, epoch=1, start_step=step)
        assert len(loader) == 5 - step
        same(whole[step:], list(loader))
    same(whole[3:], batches(dataset, batch_size=2, epoch=1, start_step=3, num_workers=2))


def test_ranks_share_the_global_batch(sources):
    dataset = ClipDataset(sources, transform=EvalTransform(8))
    whole = batches(dataset, batch_size=4)
    ranks = [batches(dataset, batch_size=2, rank=r, world_size=2) for r in (0, 1)]
    for i, batch in enumerate(whole):
        assert torch.equal(batch["clip"], torch.cat([ranks[0][i]["clip"], ranks[1][i]["clip"]]))


def test_the_last_batch(sources):
    dataset = ClipDataset(sources, transform=EvalTransform(8))
    assert [len(b["clip"]) for b in batches(dataset, batch_size=4)] == [4, 4]
    kept = batches(dataset, batch_size=4, drop_last=False)
    assert [len(b["clip"]) for b in kept] == [4, 4, 2]
    assert sorted(torch.cat([b["index"] for b in kept]).tolist()) == list(range(10))
    ranks = [batches(dataset, batch_size=2, drop_last=False, rank=r, world_size=3) for r in range(3)]
    assert [[len(b["clip"]) for b in rank] for rank in ranks] == [[2, 2]] * 3
    assert set(torch.cat([b["index"] for rank in ranks for b in rank]).tolist()) == set(range(10))
    tiny = ClipDataset(sources[:1], transform=EvalTransform(8))
    assert [len(batches(tiny, batch_size=4, drop_last=False, rank=r, world_size=3)) for r in range(3)] == [1, 1, 1]


def test_each_source_comes_once_an_epoch_and_repeats_differ(sources):
    dataset = ClipDataset(sources, transform=EvalTransform(8), delta_t=0.1, repeats=3)
    assert len(dataset) == 30
    index = torch.cat([b["index"] for b in batches(dataset, batch_size=5)])
    assert Counter(index.tolist()) == Counter({i: 3 for i in range(10)})
    assert not torch.equal(dataset[9]["clip"], dataset[19]["clip"])
    orders = [tuple(torch.cat([b["index"] for b in batches(dataset, batch_size=5, epoch=e)]).tolist()) for e in (0, 1)]
    assert orders[0] != orders[1]


def test_the_global_generators_are_left_alone(sources):
    dataset = ClipDataset(sources, transform=ClipAugment(8))
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches(dataset, batch_size=4, num_workers=1)
    batches(dataset, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    assert torch.get_num_threads() >= 1


def test_bad_files_are_replaced_and_named(sources, tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    broken = find_sources(tmp_path)
    dataset = ClipDataset([*broken, *sources[:4]], transform=ClipAugment(8))
    for epoch in range(3):
        alone = batches(dataset, batch_size=2, epoch=epoch)
        same(alone, batches(dataset, batch_size=2, epoch=epoch, num_workers=2))
        same(alone, batches(dataset, batch_size=2, epoch=epoch))
        named = Counter(name for b in alone for name, _ in b["bad"])
        assert set(named) == {"text", "empty"}
        assert all(int(i) >= 2 for b in alone for i in b["index"])
        assert all("\n" not in reason for b in alone for _, reason in b["bad"])


def test_nothing_usable_stops_with_one_sentence(sources, tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.mp4").write_text("hello")
    dataset = ClipDataset(find_sources(tmp_path), transform=ClipAugment(8))
    for workers in (0, 1):
        with pytest.raises(TimetError, match="none of the 3 clips tried of 3 can be read; the first: ") as caught:
            batches(dataset, batch_size=1, num_workers=workers)
        assert "\n" not in str(caught.value)


def test_the_cache_keeps_what_fits(sources):
    dataset = ClipDataset(sources, transform=ClipAugment(8), cache_mb=1.5)  # 150 kB each: small folders only
    kept = dataset.preload()
    assert 0 < kept < 10 and all(x.nbytes <= 150_000 for x in dataset.cache.values())
    assert ClipDataset(sources, transform=ClipAugment(8)).preload() == 0
    import pickle

    assert pickle.loads(pickle.dumps(dataset)).cache == {}


def test_workers_bring_their_scans_home(sources, tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    fresh = tmp_path / "new.mp4"
    fresh.write_bytes(Path(sources[-1].path).read_bytes())
    dataset = ClipDataset(find_sources(fresh), transform=EvalTransform(8))
    from timet.data import video

    take_fresh_scans()
    assert not any(key[0] == str(fresh) for key in video._scans)
    (batch,) = batches(dataset, batch_size=1, num_workers=1)
    assert set(batch) == {"clip", "index", "bad"}
    assert any(key[0] == str(fresh) for key in video._scans)


class _Deadly(FolderSource):
    def frames(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_sentence(sources):
    folder = next(s for s in sources if isinstance(s, FolderSource))
    dataset = ClipDataset([_Deadly("x", folder.path)], transform=EvalTransform(8))
    with pytest.raises(TimetError, match="loader worker died"):
        batches(dataset, batch_size=1, num_workers=1)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda s: ClipDataset([], transform=EvalTransform(8)), "no sources"),
        (lambda s: ClipDataset(s, transform=EvalTransform(8), seed=-1), "seed"),
        (lambda s: ClipDataset(s, transform=EvalTransform(8), delta_t=0), "above 0"),
        (lambda s: ClipDataset(s, transform=EvalTransform(8), sampling="x"), "regular or uniform"),
        (lambda s: ClipDataset(s, transform=EvalTransform(8), num_frames=0), "at least 1 frame"),
        (lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=0), "batch_size"),
        (lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=11), "cannot be filled from 10"),
        (lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=4, start_step=3), "0 to 2"),
        (lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=4, rank=1), "rank below"),
        (
            lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=4, num_workers=-1),
            "num_workers",
        ),
    ],
)
def test_wrong_settings(sources, call, words):
    with pytest.raises(TimetError, match=words):
        call(sources)


def test_mistakes_in_the_code_are_not_taken_for_bad_files(sources):
    def transform(frames, rng):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        batches(ClipDataset(sources, transform=transform), batch_size=1)
    with pytest.raises(VideoError):
        sources[0].masks([0])


def test_real_clips(real_clips):
    for name, step in (("davis16", {12}), ("videos", {10, 12, 13, 15})):
        found = find_sources(real_clips / name)
        for source in found:
            assert set(np.diff(clip_index(source.starts, 4, rng=rng(0))).tolist()) <= step
        batch = batches(ClipDataset(found, transform=ClipAugment(64)), batch_size=2)[0]
        assert batch["clip"].shape == (2, 4, 3, 64, 64) and batch["bad"] == []
