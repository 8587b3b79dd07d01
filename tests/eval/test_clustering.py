"Video protocols, token extraction and temporal consistency against loops written from the equations."

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from timet.core import TimetError
from timet.eval.clustering import VARIANTS, Scoring, cluster_maps, cluster_pixels, evaluate, reduce_tokens
from timet.eval.kmeans import kmeans
from timet.eval.score import match_hungarian, match_many_to_one
from timet.eval.temporal import follow, pixel_tokens, survival, temporal_consistency, track_tokens
from timet.eval.tokens import Tokens, extract_tokens, resize_labels


class Clip:
    "A source as `timet.data.find` promises it: random pictures, moving masks."

    def __init__(self, name, frames=20, size=(24, 40), masked=range(0, 20, 2), fail=False):
        self.name, self.num_frames, self.size, self.fail = name, frames, size, fail
        self.starts, self.fps = np.arange(frames) / 10, 10.0
        self.annotated = np.array([i for i in masked if i < frames], np.int64)
        self.has_masks = len(self.annotated) > 0

    def frames(self, index):
        if self.fail:
            raise TimetError(f"cannot read {self.name}")
        seed = sum(self.name.encode())
        return np.stack(
            [np.random.default_rng([seed, int(i)]).integers(0, 255, (*self.size, 3)) for i in index]
        ).astype(np.uint8)

    def masks(self, index):
        out = np.zeros((len(index), *self.size), np.int64)
        for row, i in enumerate(index):
            assert i in self.annotated
            out[row, :, : 1 + int(i)] = 3
        return out


class Patches(nn.Module):
    "Mean colours of 8 x 8 pixels, and a weight, so that there is something to move to a device."

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = []

    def grid(self, height, width):
        if height % 8 or width % 8:
            raise TimetError(f"{height} x {width} does not divide into patches of 8")
        return height // 8, width // 8

    def tokens(self, images):
        assert not torch.is_grad_enabled() and not self.training
        self.calls.append(len(images))
        return (nn.functional.avg_pool2d(images, 8) * self.weight).flatten(2).transpose(1, 2)


def test_extract_tokens_takes_one_clip_a_video_in_batches():
    clips, model = [Clip(f"clip {i}") for i in range(5)], Patches().train()
    got = extract_tokens(
        model, clips, num_frames=3, image_size=(16, 32), mask_size=(12, 20), batch_size=7, device="cpu"
    )
    assert got.tokens.shape == (5, 3, 8, 3) and got.tokens.dtype == np.float32
    assert got.masks.shape == (5, 3, 12, 20) and got.index.shape == (5, 3) and got.grid == (2, 4)
    assert sum(model.calls) == 15 and max(model.calls) <= 7 and model.training
    assert got.names == [c.name for c in clips]
    for clip, index, masks in zip(clips, got.index, got.masks):
        assert set(index) <= set(clip.annotated) and (np.diff(index) > 0).all()
        np.testing.assert_array_equal(masks, resize_labels(clip.masks(index), (12, 20)))
    # the same clip whatever the list, the batch and the number of threads; another one for another seed
    one = extract_tokens(
        Patches(), clips[3:4], num_frames=3, image_size=(16, 32), batch_size=1, workers=1, device="cpu"
    )
    np.testing.assert_array_equal(one.index[0], got.index[3])
    np.testing.assert_allclose(one.tokens[0], got.tokens[3], atol=1e-5)
    other = extract_tokens(Patches(), clips, num_frames=3, image_size=16, seed=1, device="cpu")
    assert (other.index != got.index).any()


def test_extract_tokens_regular_and_short_and_unlabelled():
    model = Patches()
    regular = extract_tokens(
        model, [Clip("a", masked=range(20))], num_frames=3, delta_t=0.4, sampling="regular", image_size=16, device="cpu"
    )
    assert np.diff(regular.index[0]).tolist() == [4, 4]
    short = extract_tokens(model, [Clip("b", frames=2)], num_frames=4, image_size=16, device="cpu")
    assert short.tokens.shape[:2] == (1, 4) and short.index.max() <= 1
    bare = extract_tokens(model, [Clip("c", masked=[])], num_frames=2, image_size=16, device="cpu", keep_frames=True)
    assert (bare.masks == 255).all() and bare.frames.shape == (1, 2, 16, 16, 3) and bare.frames.dtype == np.uint8


def test_extract_tokens_into_arrays_of_the_caller():
    made = {}

    def allocate(name, shape, dtype):
        made[name] = np.zeros(shape, dtype)
        return made[name]

    got = extract_tokens(
        Patches(), [Clip("a"), Clip("b")], num_frames=2, image_size=16, device="cpu", allocate=allocate
    )
    assert got.tokens is made["tokens"] and set(made) == {"tokens", "masks", "index"} and made["tokens"].any()


class Broken(Patches):
    def tokens(self, images):
        return super().tokens(images) * float("nan")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: extract_tokens(Patches(), []), "at least one video"),
        (lambda: extract_tokens(Patches(), [Clip("a")], num_frames=0), "num_frames must be at least 1"),
        (lambda: extract_tokens(Patches(), [Clip("a")], image_size=20), "does not divide"),
        (lambda: extract_tokens(Patches(), [Clip("a")], image_size=16, device="cpu", sampling="often"), "sampling"),
        (lambda: extract_tokens(Patches(), [Clip("a", fail=True)], image_size=16, device="cpu"), "cannot read a"),
        (lambda: extract_tokens(Broken(), [Clip("a"), Clip("b")], image_size=16, device="cpu"), "a are not finite"),
        (lambda: extract_tokens(Patches(), [Clip("a")], image_size=16, precision="int8"), "precision must be"),
        (lambda: Tokens(np.zeros((1, 2, 4, 3)), np.zeros((1, 2, 5, 5)), (3, 2)), "n=6"),
        (lambda: Tokens(np.zeros((1, 2, 4, 3)), np.zeros((1, 3, 5, 5)), (2, 2)), "masks must have"),
    ],
)
def test_extract_tokens_explains(call, words):
    with pytest.raises(TimetError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize("h, w, height, width", [(14, 14, 56, 57), (12, 12, 100, 37), (7, 5, 3, 2), (3, 3, 3, 3)])
def test_resize_labels(h, w, height, width):
    ids = np.random.default_rng(0).integers(0, 99, (2, h, w))
    got = resize_labels(ids, (height, width))
    for y in range(height):
        for x in range(width):
            np.testing.assert_array_equal(got[:, y, x], ids[:, int((y + 0.5) * h / height), int((x + 0.5) * w / width)])


# -- the protocols


def toy(seed=0, b=3, t=4, side=6, d=8, scale=5, g=4):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, g, (b, t, side, side))
    label[0] = np.where(label[0] == 3, 0, label[0])  # an absent class in one clip
    tokens = 2 * rng.standard_normal((g, d))[label.reshape(b, t, -1)] + rng.standard_normal((b, t, side * side, d))
    masks = label.repeat(scale, -1).repeat(scale, -2).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.1] = 255
    masks[1, 2] = 255  # a frame without a label
    return tokens.astype(np.float32), masks


def naive_score(features, masks, protocol, k, seed, side, background=True):
    "Eq. 11, 13 and 15, and nothing else: loops over units, clusters, classes."
    b, t = features.shape[:2]
    units = {
        "frame": [[(i, j)] for i in range(b) for j in range(t)],
        "clip": [[(i, j) for j in range(t)] for i in range(b)],
        "dataset": [[(i, j) for i in range(b) for j in range(t)]],
    }[protocol]
    scores = []
    for unit in units:
        gt = np.concatenate([masks[i, j].ravel() for i, j in unit])
        ids = sorted(set(gt.tolist()) - {255})
        if not ids:
            continue
        clusters = len(ids) if k == "gt" else k
        labels = kmeans(np.concatenate([features[i, j] for i, j in unit]), clusters, seed=seed)[0]
        scale = masks.shape[-1] // side
        pred = np.concatenate([m.repeat(scale, 0).repeat(scale, 1).ravel() for m in labels.reshape(-1, side, side)])
        pred, gt = pred[gt != 255], gt[gt != 255]
        counts = np.array([[np.sum((pred == c) & (gt == i)) for i in ids] for c in range(clusters)])
        match = match_hungarian if k == "gt" else match_many_to_one
        named = np.array(ids)[match(counts)[pred]]
        scores.append(
            np.mean(
                [np.sum((named == i) & (gt == i)) / np.sum((named == i) | (gt == i)) for i in ids if background or i]
            )
        )
    return np.mean(scores)


@pytest.mark.parametrize("protocol", ["frame", "clip", "dataset"])
@pytest.mark.parametrize("k", ["gt", 2, 9])
@pytest.mark.parametrize("background", [True, False])
def test_evaluate_against_the_equations(protocol, k, background):
    tokens, masks = toy()
    masks[0, 0, :5] = 0  # background occurs everywhere it could be the unmatched class
    got = evaluate(tokens, masks, protocol, k, seeds=[0, 3], background=background)
    features = reduce_tokens(tokens)
    want = [naive_score(features, masks, protocol, k, seed, 6, background) for seed in (0, 3)]
    np.testing.assert_allclose(got.values, want)
    assert got.mean == pytest.approx(np.mean(want)) and got.std == pytest.approx(np.std(want))
    assert got.per_class.shape == (4,) and got.per_unit.shape[0] == 2
    assert got.settings["matching"] == ("hungarian" if k == "gt" else "many-to-one")
    if protocol == "frame":
        assert np.isnan(got.per_unit[:, 6]).all()  # the frame without a label does not count
    if not background:
        assert np.isnan(got.per_class[0])


def test_order_of_the_protocols_where_the_answer_is_known():
    rng = np.random.default_rng(0)
    b, t, d = 4, 3, 12
    label = np.zeros((6, 6), int)
    label[1:3, 1:3], label[4:] = 1, 2
    base = (4 * np.eye(3, d)[label.ravel()] + 0.1 * rng.standard_normal((b, t, 36, d))).astype(np.float32)
    masks = np.broadcast_to(label.repeat(4, 0).repeat(4, 1), (b, t, 24, 24))

    def turned(*lead):
        turn = np.broadcast_to(np.linalg.qr(rng.standard_normal((*lead, d, d)))[0], (b, t, d, d))
        return np.einsum("btnd,btde->btne", base, turn).astype(np.float32)

    score = {
        (name, p): evaluate(x, masks, p, seeds=2, nredo=30).mean
        for name, x in {"steady": turned(1, 1), "clip": turned(b, 1), "frame": turned(b, t)}.items()
        for p in ("frame", "clip", "dataset")
    }
    assert all(score[m, "frame"] == pytest.approx(1) for m in ("steady", "clip", "frame"))
    assert score["steady", "clip"] == score["clip", "clip"] == pytest.approx(1) and score["frame", "clip"] < 0.8
    assert score["steady", "dataset"] == pytest.approx(1) and score["clip", "dataset"] < 0.8


def test_released_order_clusters_pixels_of_enlarged_features():
    tokens, masks = toy(side=6, scale=4)
    features = reduce_tokens(tokens, 5)
    got = cluster_pixels(features[:1, :2], (6, 6), 3, (24, 24), seed=1)
    assert got.shape == (1, 2, 24, 24)
    # 2 * 576 pixels are fewer than 256 a cluster would allow, so k-means sees some of them and labels all
    large = nn.functional.interpolate(
        torch.from_numpy(features[0, :2]).reshape(2, 6, 6, -1).permute(0, 3, 1, 2), (24, 24), mode="bilinear"
    )
    flat = large.permute(0, 2, 3, 1).reshape(-1, features.shape[-1]).numpy()
    chosen = np.sort(np.random.default_rng(1).choice(len(flat), min(len(flat), 768), replace=False))
    centroids = kmeans(flat[chosen], 3, seed=1)[1]
    np.testing.assert_array_equal(got.ravel(), ((flat[:, None] - centroids) ** 2).sum(-1).argmin(1))
    score = evaluate(tokens, masks, "clip", order="released", seeds=1)
    assert score.settings["order"] == "released" and 0 < score.mean <= 1
    assert evaluate(tokens, masks, "dataset", variant="released", size=30, seeds=1).settings["size"] == [30, 30]
    assert VARIANTS["released"]["dataset"].size == 112 and VARIANTS["released"]["clip"].pca_scope == 16


def test_scope_of_the_pca():
    tokens, _ = toy()
    for scope, groups in {"frame": 12, "clip": 3, "dataset": 1, 2: 2}.items():
        got = reduce_tokens(tokens, 4, scope)
        flat = tokens.reshape(12, 36, 8)
        for part in np.array_split(np.arange(12), groups) if scope != 2 else (np.arange(8), np.arange(8, 12)):
            x = flat[part].reshape(-1, 8).astype(np.float64)
            z = (x - x.mean(0)) / x.std(0)
            want = np.abs(z @ np.linalg.svd(z, full_matrices=False)[2][:4].T)
            np.testing.assert_allclose(np.abs(got.reshape(12, 36, 4)[part].reshape(-1, 4)), want, atol=1e-3)
    np.testing.assert_array_equal(reduce_tokens(tokens, None), tokens)


def test_dataset_scores_need_ids_that_are_classes():
    tokens, masks = toy()
    video = Tokens(tokens, masks, (6, 6), semantic=False)
    with pytest.raises(TimetError, match="objects of one video each"):
        evaluate(video, protocol="dataset")
    assert evaluate(video, protocol="dataset", force=True, seeds=1).mean > 0
    assert evaluate(video, protocol="clip", seeds=1).mean > 0


def test_a_picture_is_a_clip_of_one_frame():
    tokens, masks = (x[:, :1] for x in toy())
    pictures = Tokens(tokens[:, 0], masks[:, 0], (6, 6))
    for protocol, k in (("frame", "gt"), ("clip", 3), ("dataset", "gt")):
        one, two = evaluate(pictures, protocol=protocol, k=k, seeds=2), evaluate(tokens, masks, protocol, k, seeds=2)
        np.testing.assert_array_equal(one.values, two.values)
    np.testing.assert_array_equal(
        evaluate(pictures, protocol="frame", seeds=1).values, evaluate(pictures, protocol="clip", seeds=1).values
    )


def test_settings_as_a_whole_and_by_name():
    tokens, masks = toy()
    whole = Scoring(order="released", size=12, seeds=(3,), nredo=1, pca=4)
    by_name = evaluate(tokens, masks, "clip", order="released", size=12, seeds=[3], nredo=1, pca=4)
    np.testing.assert_array_equal(evaluate(tokens, masks, "clip", settings=whole).values, by_name.values)
    assert by_name.settings["seeds"] == [3] and by_name.settings["size"] == [12, 12]
    with pytest.raises(TimetError, match="no setting 'sizes'"):
        evaluate(tokens, masks, sizes=12)
    with pytest.raises(TimetError, match="frame, clip or dataset"):
        evaluate(tokens, masks, "video", settings=whole)


def test_unlike_grids_and_mask_sizes():
    rng = np.random.default_rng(0)
    tokens, masks = rng.standard_normal((2, 2, 15, 4)), rng.integers(0, 3, (2, 2, 31, 17))
    score = evaluate(tokens, masks, "clip", 4, grid=(5, 3), seeds=2)
    maps = cluster_maps(reduce_tokens(tokens)[:1], (5, 3), 4, seed=0)
    assert maps.shape == (1, 2, 5, 3) and 0 < score.mean < 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"protocol": "video"}, "frame, clip or dataset"),
        ({"k": "all"}, "k must be gt"),
        ({"k": 0}, "from 1"),
        ({"k": 2.5}, "from 1"),
        ({"k": 37, "protocol": "frame"}, "1 to 36 clusters for 36 rows"),
        ({"matching": "best"}, "matching must be"),
        ({"variant": "mine"}, "variant must be"),
        ({"order": "both"}, "order must be"),
        ({"pca_scope": "video"}, "scope of the PCA"),
        ({"pca": 0}, "at least one"),
        ({"grid": (5, 7)}, "holds 36 patches"),
        ({"masks": None}, "needs masks"),
        ({"masks": np.zeros((3, 4, 9))}, "(b t H W)"),
        ({"masks": np.full((3, 4, 6, 6), 255)}, "not one pixel"),
        ({"masks": np.full((3, 4, 6, 6), -1)}, "0..-1"),
        ({"tokens": np.full((3, 4, 36, 8), np.nan)}, "finite"),
    ],
)
def test_evaluate_explains(change, words):
    tokens, masks = toy()
    with pytest.raises(TimetError) as caught:
        evaluate(**({"tokens": tokens, "masks": masks, "seeds": 1} | change))
    assert words in str(caught.value)


# -- consistency over time


def naive_consistency(labels, flow, visible):
    t, h, w = labels.shape
    height, width = flow.shape[1:3]
    kept = total = 0
    for i in range(t - 1):
        for r in range(h):
            for c in range(w):
                y, x = (r + 0.5) * height / h, (c + 0.5) * width / w
                dx, dy = flow[i, int(y), int(x)]
                if not visible[i, int(y), int(x)] or not (0 <= x + dx < width and 0 <= y + dy < height):
                    continue
                total += 1
                kept += labels[i, r, c] == labels[i + 1, int((y + dy) * h / height), int((x + dx) * w / width)]
    return kept / total


@pytest.mark.parametrize("seed", range(4))
def test_consistency_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (4, 5, 7))
    flow, visible = 6 * rng.standard_normal((3, 30, 44, 2)), rng.random((3, 30, 44)) < 0.7
    assert temporal_consistency(labels, flow, visible) == pytest.approx(naive_consistency(labels, flow, visible))


def test_consistency_follows_things_that_move():
    labels = np.stack([np.roll(np.arange(12).reshape(3, 4), t, axis=1) for t in range(3)])
    flow = np.zeros((2, 6, 8, 2))
    flow[..., 0] = 2  # one patch to the right
    assert temporal_consistency(labels, flow) == 1.0
    assert temporal_consistency(labels, 0 * flow) == 0.0
    assert temporal_consistency(labels, follow(flow, (3, 4))) == 1.0
    kept = survival(labels, follow(flow, (3, 4)))
    assert (kept[:, :, -1] == -1).all() and (kept[:, :, :-1] == 1).all()


def test_consistency_beyond_chance():
    rng = np.random.default_rng(0)
    still = np.arange(400).reshape(1, 20, 20)
    noise = rng.integers(0, 2, (2, 20, 20))
    assert temporal_consistency(noise, still) == pytest.approx(0.5, abs=0.1)
    assert temporal_consistency(noise, still, adjusted=True) == pytest.approx(0, abs=0.15)
    same = noise[[0, 0]]
    assert temporal_consistency(same, still, adjusted=True) == pytest.approx(1)
    assert np.isnan(temporal_consistency(0 * same, still, adjusted=True))
    assert np.isnan(temporal_consistency(same, 0 * still - 1))
    assert temporal_consistency(same * 10**9, still, adjusted=True) == pytest.approx(1)  # any ids


def test_lost_flow_counts_as_unseen():
    flow = np.full((1, 6, 8, 2), np.nan)
    assert (follow(flow, (3, 4)) == -1).all()
    assert (follow(np.full((1, 6, 8, 2), 1e30), (3, 4)) == -1).all()


def test_tracking():
    rng = np.random.default_rng(0)
    world = rng.standard_normal((9, 30, 16)).astype(np.float32)
    frames = np.stack([world[:, 2 * t : 2 * t + 12] for t in range(3)]).reshape(3, 108, 16)  # things move 2 to the left
    index = track_tokens(torch.from_numpy(frames), (9, 12), radius=3)
    for c in range(2, 12):
        np.testing.assert_array_equal(index[:, :, c] % 12, c - 2)
    assert (index[:, :, :2] == -1).mean() > 0.5  # what left has no successor, whatever resembles it
    assert (track_tokens(frames, (9, 12), radius=3, slack=None) >= 0).all()
    far = track_tokens(frames, (9, 12), radius=1, slack=None)
    assert (np.abs(far % 12 - np.arange(12)) <= 1).all()
    assert track_tokens(frames[:1], (9, 12)).shape == (0, 9, 12)


def test_pixel_tokens_follow_a_moving_texture():
    rng = np.random.default_rng(0)
    wall = rng.integers(0, 255, (64, 160, 3)).astype(np.uint8)
    frames = np.stack([wall[:, 8 * t : 8 * t + 96] for t in range(3)])
    tokens = pixel_tokens(frames, (8, 12))
    assert tokens.shape == (3, 96, 3 * 12 * 12) and tokens.dtype == np.float32
    index = track_tokens(tokens, (8, 12), radius=2)
    inner = index[:, :, 2:-1]
    assert ((inner % 12 == np.arange(1, 10)) | (inner == -1)).mean() > 0.9


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: temporal_consistency(np.zeros((1, 2, 2), int), np.zeros((0, 4, 4, 2))), "two frames"),
        (lambda: temporal_consistency(np.zeros((2, 2, 2), int), np.zeros((1, 4, 4, 3))), "(t H W 2)"),
        (lambda: temporal_consistency(np.zeros((2, 2, 2), int), np.zeros((2, 4, 4, 2))), "successors"),
        (lambda: follow(np.zeros((1, 4, 4, 2)), (2, 2), np.ones((1, 4, 5))), "visible"),
        (lambda: survival(np.zeros((2, 2, 2), int), np.full((1, 2, 2), 4)), "0..3 or -1"),
        (lambda: survival(np.zeros((2, 2, 2), int), np.zeros((1, 2, 2))), "0..3 or -1"),
        (lambda: track_tokens(np.zeros((2, 4, 3)), (3, 2)), "n=6"),
        (lambda: pixel_tokens(np.zeros((2, 4, 4), np.uint8), (2, 2)), "(t H W 3)"),
        (lambda: pixel_tokens(np.zeros((2, 4, 4, 3), np.uint8), (2, 2), context=2), "odd"),
    ],
)
def test_temporal_explains(call, words):
    with pytest.raises(TimetError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.skipif("TIMET_CLIPS" not in os.environ, reason="TIMET_CLIPS names no folder with real clips")
def test_real_clips():
    from timet.data.find import find_sources

    root = Path(os.environ["TIMET_CLIPS"]) / "davis16"
    if not root.is_dir():
        pytest.skip("no davis16 there")
    sources = find_sources(root)
    video = extract_tokens(Patches(), sources[:3], num_frames=4, image_size=112, mask_size=112, device="cpu")
    assert sources.semantic and set(np.unique(video.masks)) - {0}
    for protocol in ("frame", "clip", "dataset"):
        assert 0.1 < evaluate(video, protocol=protocol, seeds=1).mean < 1
