"Forwarding, flow, J and F against loops written from the definitions."

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import nn

from timet.core import TimetError, samples_dir
from timet.data.find import find_sources
from timet.eval.carried import carried, frame_scores
from timet.eval.davis import boundary, contour_accuracy, davis_j_f, mean_recall_decay, region_similarity, summarize
from timet.eval.flow import flow_estimator, flow_masks
from timet.eval.forwarding import ForwardingConfig, main, read_words
from timet.eval.propagate import enlarge, forward_masks, frame_tokens, mask_map
from timet.eval.tracker import VARIANTS, Rules, object_masks, step_index
from timet.feature_forwarder import forward_maps, forward_stream
from timet.settings import Forwarder


def blobs(seed, size=(40, 60)):
    "A few random ellipses."
    rng, (h, w) = np.random.default_rng(seed), size
    y, x = np.mgrid[:h, :w]
    out = np.zeros(size, bool)
    for _ in range(rng.integers(0, 4)):
        cy, cx, ry, rx = rng.uniform(0, h), rng.uniform(0, w), rng.uniform(2, 14), rng.uniform(2, 14)
        out |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    return out


def brute_f(pred, truth, void, radius):
    "Boundary pixels by the definition of the toolkit, each compared with each."

    def outline(mask):
        mask = mask & ~void
        h, w = mask.shape
        found = []
        for r in range(h):
            for c in range(w):
                down, right = min(r + 1, h - 1), min(c + 1, w - 1)
                if mask[r, c] != mask[r, right] or mask[r, c] != mask[down, c] or mask[r, c] != mask[down, right]:
                    found.append((r, c))
        return np.array(found).reshape(-1, 2)

    ours, theirs = outline(pred), outline(truth)
    if len(ours) == 0 or len(theirs) == 0:
        return float(len(ours) == len(theirs))
    close = ((ours[:, None] - theirs[None]) ** 2).sum(-1) <= radius**2
    p, r = close.any(1).mean(), close.any(0).mean()
    return 2 * p * r / (p + r) if p + r else 0.0


@pytest.mark.parametrize("seed", range(12))
def test_contours_and_regions_by_brute_force(seed):
    pred, truth = blobs(seed), blobs(seed + 100)
    void = blobs(seed + 200) if seed % 2 else np.zeros_like(pred)
    for tolerance in (0.008, 0.05, 3):
        radius = tolerance if tolerance >= 1 else int(np.ceil(tolerance * np.sqrt(40**2 + 60**2)))
        assert contour_accuracy(pred, truth, void, tolerance) == pytest.approx(brute_f(pred, truth, void, radius))
    hits = sum(bool(p and t) for p, t, v in zip(pred.ravel(), truth.ravel(), void.ravel()) if not v)
    union = sum(bool(p or t) for p, t, v in zip(pred.ravel(), truth.ravel(), void.ravel()) if not v)
    assert region_similarity(pred, truth, void) == pytest.approx(hits / union if union else 1.0)


def test_contours_match_a_dilation_with_a_disk():
    cv2 = pytest.importorskip("cv2")
    pred = blobs(3, (120, 200)) | blobs(5, (120, 200)) | blobs(7, (120, 200))
    truth = np.roll(pred, 2, axis=1) | blobs(2, (120, 200))
    radius = int(np.ceil(0.008 * np.hypot(120, 200)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    ours, theirs = (boundary(m).astype(np.uint8) for m in (pred, truth))
    p = (ours & cv2.dilate(theirs, disk)).sum() / ours.sum()
    r = (theirs & cv2.dilate(ours, disk)).sum() / theirs.sum()
    assert contour_accuracy(pred, truth) == pytest.approx(2 * p * r / (p + r))


def test_hand_made_frames():
    a, empty = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    a[2:5, 2:5] = True
    assert region_similarity(a, a) == contour_accuracy(a, a) == 1
    assert region_similarity(empty, empty) == contour_accuracy(empty, empty) == 1
    assert region_similarity(a, empty) == contour_accuracy(a, empty) == contour_accuracy(empty, a) == 0
    b = np.roll(a, 1, 1)
    assert region_similarity(a, b) == pytest.approx(6 / 12)
    assert contour_accuracy(a, b, tolerance=1) == 1
    with pytest.raises(TimetError, match="tolerance"):
        contour_accuracy(a, b, tolerance=-1)


def test_decay_is_the_first_quarter_less_the_last():
    assert mean_recall_decay(np.arange(9) / 8) == pytest.approx((0.5, 4 / 9, 1 / 8 - 7 / 8))
    assert mean_recall_decay(np.ones(300))[2] == 0  # more than 255 frames
    # 10 frames: quarters end at 1, 3.25, 5.5, 7.75, 10
    v = np.random.default_rng(0).random(10)
    assert mean_recall_decay(v)[2] == pytest.approx(v[0:3].mean() - v[7:10].mean())


def test_several_objects_first_and_last_left_out_and_vanishing():
    masks = np.zeros((5, 20, 30), int)
    masks[:, 2:8, 2:8], masks[:3, 12:18, 10:20] = 1, 3
    pred = masks.copy()
    pred[0], pred[4] = 7, 7  # the ends do not count
    assert davis_j_f(pred, masks).j.tolist() == [[1, 1, 1], [1, 1, 1]]
    pred[3, 0, 29] = 3  # one pixel of an object that has left
    scores = davis_j_f(iter(pred), iter(masks))
    assert scores.ids == (1, 3) and scores.j[1].tolist() == [1, 1, 0]
    assert davis_j_f(pred[:, :, :], masks, ends=True).j.shape == (2, 5)
    table = summarize([scores])
    assert table["J-Mean"] == pytest.approx((1 + 2 / 3) / 2) and table["J-Recall"] == pytest.approx((1 + 2 / 3) / 2)
    masks[1, 2:8, 2:8] = 255
    assert davis_j_f(pred, masks, ignore=255).j[0, 0] == 1  # nothing left that counts
    assert davis_j_f(pred, masks).j[0, 0] == 0  # the semi-supervised task takes 255 as background
    assert davis_j_f(pred, masks).ids == (1, 3)  # and never as an object
    for bad, word in ((masks[:2], "3 or more"), (masks[:1], "3 or more"), (masks * 0, "no object")):
        with pytest.raises(TimetError, match=word):
            davis_j_f(bad, bad)


def moving(times, large=1):
    "Masks of objects, each in a row of its own, 8 wide and a step further in each of 6 frames; `times`: object -> first."
    masks = np.zeros((6, 20, 30), int)
    for row, (i, start) in enumerate(times.items()):
        for t in range(start, 6):
            masks[t, 6 * row + 1 : 6 * row + 5, 2 + t : 10 + t] = i
    return masks.repeat(large, 1).repeat(large, 2)


def test_every_object_is_scored_after_its_first_mask():
    masks = moving({1: 0, 2: 2, 9: 5})
    scores = davis_j_f(masks, masks)
    assert scores.ids == (1, 2) and np.isnan(scores.j).tolist() == [[False] * 4, [True, True, False, False]]
    assert scores.mean == 1 and scores.left == ("the video: no mask to score after the first of object 9",)
    lazy = np.where(masks == 2, 0, masks)  # never heard of object 2
    table = summarize([davis_j_f(lazy, masks)])
    assert table["J-Mean"] == table["F-Mean"] == 0.5 and davis_j_f(lazy, masks).each[0].tolist() == [1, 0]
    assert davis_j_f(masks, masks, ids=[1]).ids == (1,)


def test_a_mask_of_newcomers_says_nothing_about_the_others():
    masks = moving({1: 0, 2: 2})
    sparse = [np.where(m == 2, 2, 0) if t == 2 else m for t, m in enumerate(masks)]
    scores = davis_j_f(masks, sparse, name="v")
    assert np.isnan(scores.j).tolist() == [[False, True, False, False], [True, True, False, False]] and scores.mean == 1
    assert scores.left == ("v: 1 masks show new objects alone, and are not scored for those before them",)
    begins = [sparse[0], sparse[2], np.where(masks[3] > 0, 3, 0)]
    with pytest.raises(TimetError, match="the masks of v show each object only where it begins"):
        davis_j_f(begins, begins, name="v")


@pytest.mark.parametrize("grid, context", [((5, 6), 2), ((11, 13), 0), ((9, 9), 50)])
def test_stream_is_forward_maps(grid, context):
    n = grid[0] * grid[1]
    tokens, maps = torch.randn(1, 8, n, 5), torch.rand(1, n, 4)
    for radius, topk in ((2, 5), (1, None), (20, 3)):
        want = forward_maps(tokens, maps, grid, radius=radius, topk=topk, context=context)[0]
        got = torch.stack(list(forward_stream(tokens[0], maps[0], grid, radius=radius, topk=topk, context=context)))
        torch.testing.assert_close(got, want)


def test_stream_pulls_one_frame_at_a_time():
    pulled = []

    def frames():
        for t in range(5):
            pulled.append(t)
            yield torch.randn(16, 4)

    stream = forward_stream(frames(), torch.rand(16, 2), (4, 4), radius=1)
    assert pulled == []
    next(stream)
    assert pulled == [0, 1]


def test_perfect_features_carry_a_mask_exactly():
    "Every patch has its own direction, and the picture moves by whole patches."
    rng = np.random.default_rng(0)
    eye = torch.eye(80)
    cells = np.arange(80).reshape(8, 10)
    shifted = [np.roll(cells, t, axis=1) for t in range(4)]
    mask = rng.integers(0, 3, (8, 10))
    tokens = [eye[torch.from_numpy(s.ravel())] for s in shifted]
    found = list(forward_masks(tokens, mask, (8, 10), radius=10, topk=1, temperature=0.01))
    for t, labels in enumerate(found, 1):
        assert (labels == np.roll(mask, t, axis=1)).all()
    assert list(forward_masks(tokens[:1], mask, (8, 10))) == []


def test_masks_on_the_grid():
    mask = np.zeros((8, 8), int)
    mask[:4, :4], mask[4:, 4:], mask[0, 7] = 2, 255, 5
    soft = mask_map(mask, [2, 5], (2, 2), soft=True)
    assert soft.tolist() == [[0, 1, 0], [15 / 16, 0, 1 / 16], [1, 0, 0], [0, 0, 0]]
    hard = mask_map(mask, [2, 5], (2, 2))
    assert hard.tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    corner = mask_map(mask, [2, 5], (2, 2), corner=True)  # pixels (0, 0), (0, 4), (4, 0), (4, 4)
    assert corner.tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    mask[1:4, 1:4] = 0
    assert mask_map(mask, [2, 5], (2, 2)).tolist()[0] == [1, 0, 0]
    assert mask_map(mask, [2, 5], (2, 2), corner=True).tolist()[0] == [0, 1, 0]
    assert mask_map(np.eye(7, dtype=int), [1], (3, 3), corner=True)[:, 1].tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert mask_map(mask, [], (2, 2)).shape == (4, 1)
    tiny = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.9, 0.1]])
    assert enlarge(tiny, (2, 2), (2, 2)).sum() == 0  # never the strongest
    assert enlarge(tiny, (2, 2), (2, 2), rescale=True).tolist() == [[0, 1], [0, 0]]


def test_frame_scores_by_loops():
    rng = np.random.default_rng(1)
    pred, true = rng.integers(0, 4, (6, 9, 11)), rng.choice([0, 1, 3, 2, 255], (6, 9, 11))
    true[2] = 0
    ids = [1, 3]  # object 2 came later: background
    for matching in ("direct", "hungarian"):
        want = []
        for p, t in zip(pred, true):
            p, t = p[t != 255], t[t != 255]
            p, t = np.where(p == 2, 0, p), np.where(t == 2, 0, t)
            classes = [0, 1, 3]
            iou = np.array(
                [[(p[t == g] == k).sum() / max(((p == k) | (t == g)).sum(), 1) for g in classes] for k in classes]
            )
            there = [g for g in range(3) if (t == classes[g]).any()]
            name = dict(zip(range(3), range(3)))
            if matching == "hungarian":
                rows, columns = linear_sum_assignment(iou[:, there], maximize=True)
                name = dict.fromkeys(range(3), 0) | {r: there[c] for r, c in zip(rows, columns)}
            scores = []
            for g in (1, 2):
                if g in there:
                    mine = np.isin(p, [classes[k] for k in range(3) if name[k] == g])
                    scores.append((mine & (t == classes[g])).sum() / (mine | (t == classes[g])).sum())
            want.append(np.mean(scores) if scores else np.nan)
        np.testing.assert_allclose(frame_scores(pred, true, ids, matching=matching), want)
    assert np.isnan(frame_scores(pred[:1], true[:1] * 0 + 255, ids)).all()
    only = np.where(true[:1] == 3, 0, true[:1])  # object 3 is away: the released code counts it 0
    assert frame_scores(pred[:1], only, ids, absent=0.0)[0] == pytest.approx(frame_scores(pred[:1], only, ids)[0] / 2)


def test_steps_in_time():
    starts = np.arange(69) / 24
    assert len(step_index(starts, 0.1)) == 25 and step_index(starts, 0.1)[:4].tolist() == [0, 2, 4, 7]
    assert step_index(starts, 0.8).tolist() == [0, 19, 38, 57]
    assert step_index(starts[:1], 0.1).tolist() == [0]
    for bad in (0, -1, float("nan")):
        with pytest.raises(TimetError, match="above 0"):
            step_index(starts, bad)


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_flow_follows_a_moving_picture(method):
    pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (16, 20, 3), dtype=np.uint8)).resize((160, 128), Image.BICUBIC)
    picture = np.asarray(coarse)
    frames = [np.roll(picture, 2 * t, axis=1) for t in range(6)]
    mask = np.zeros((128, 160), int)
    mask[40:90, 50:100] = 4
    estimate = flow_estimator(method)
    assert np.median(estimate(frames[1], frames[0])[30:-30, 30:-30], (0, 1)) == pytest.approx([-2, 0], abs=0.2)
    last = list(flow_masks(frames, mask, estimate))[-1]
    assert frame_scores([last], [np.roll(mask, 10, axis=1)], [4])[0] > 0.9


def test_flow_out_of_the_picture_is_background_for_ever():
    mask, frame = np.ones((6, 8), int), np.zeros((6, 8, 3), np.uint8)
    there_and_back = iter([3.0, -3.0])

    def estimate(new, old):
        return np.full((6, 8, 2), (next(there_and_back), 0.0))

    out = list(flow_masks([frame] * 3, mask, estimate))
    assert (out[0][:, 5:] == 0).all() and (out[0][:, :5] == 1).all()
    assert (out[1][:, :3] == 0).all() and (out[1][:, 3:] == 1).all()
    nan = list(flow_masks([frame] * 2, mask, lambda new, old: np.full((6, 8, 2), np.nan)))
    assert (nan[0] == 0).all()


def test_raft_needs_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(TimetError, match=r"raft_large_C_T_SKHT_V2-ff5fadd5\.pth.*--raft-weights"):
        flow_estimator("raft")
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(TimetError, match=r"other\.pth holds no weights"):
        flow_estimator("raft", raft_weights=tmp_path / "other.pth")
    from torchvision.models.optical_flow import raft_small

    torch.save(raft_small(weights=None).state_dict(), tmp_path / "small.pth")
    estimate = flow_estimator("raft", raft_weights=tmp_path / "small.pth")
    frame = np.zeros((40, 60, 3), np.uint8)
    assert estimate(frame, frame).shape == (40, 60, 2)


class Colours(nn.Module):
    "Mean colours of 8 x 8 pixels."

    name, source, patch_size, image_size = "colours", "no weights", 8, (64, 64)

    def grid(self, height, width):
        return height // 8, width // 8

    def tokens(self, images):
        return nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)


@pytest.fixture
def davis(tmp_path):
    "Two videos in DAVIS's own layout: a red and a green square, moving; the second loses its object."
    for name, frames in (("pair", 9), ("leaves", 7)):
        pictures, masks = (tmp_path / part / "480p" / name for part in ("JPEGImages", "Annotations"))
        pictures.mkdir(parents=True), masks.mkdir(parents=True)
        for t in range(frames):
            picture, mask = np.full((64, 96, 3), 90, np.uint8), np.zeros((64, 96), np.uint8)
            if name == "pair" or t < 4:
                picture[16:32, 8 + 4 * t : 24 + 4 * t], mask[16:32, 8 + 4 * t : 24 + 4 * t] = (250, 0, 0), 1
            if name == "pair":
                picture[40:56, 60:76], mask[40:56, 60:76] = (0, 250, 0), 2
            Image.fromarray(picture).save(pictures / f"{t:05d}.jpg", quality=95)
            image = Image.fromarray(mask, "P")
            image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0] + [0] * 759)
            image.save(masks / f"{t:05d}.png")
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("pair\nleaves\n")
    return tmp_path


def test_command_on_davis_layout(davis, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("timet.backbone.open_backbone", lambda *a, **k: Colours())
    monkeypatch.setattr("timet.eval.options.fingerprint", lambda model: "colours")
    before = sorted(str(p) for p in davis.rglob("*"))
    common = [
        "colours",
        "--data",
        str(davis),
        "--split",
        "2017/val",
        "--image-size",
        "64",
        "--method",
        "copy",
        "ff",
        "--no-floors",
    ]
    main([*common, "--delta-t", "0.05", "0.2", "9.0", "--out", str(tmp_path / "out" / "t.json")])
    text = capsys.readouterr().out
    assert "0.05 s" in text and "left out" in text and "objects as one foreground" in text
    rows = json.loads((tmp_path / "out" / "t.json").read_text())["scores"]
    value = {(r["method"], r["delta_t"]): r["mean"] for r in rows}
    assert value["ff", 0.05] > value["copy", 0.05] and value["copy", 9.0] is None
    main([*common, "--davis", "--save", str(tmp_path / "saved"), "--out", str(tmp_path / "out" / "j.json")])
    assert "J&F-Mean" in capsys.readouterr().out
    scores = {r["method"]: r for r in json.loads((tmp_path / "out" / "j.json").read_text())["scores"]}
    assert scores["ff"]["J-Mean"] > scores["copy"]["J-Mean"]
    assert scores["ff"]["videos"]["pair"]["ids"] == [1, 2] and scores["ff"]["videos"]["leaves"]["ids"] == [1]
    saved = np.asarray(Image.open(tmp_path / "saved" / "ff" / "pair" / "00008.png"))
    assert saved.shape == (64, 96) and set(np.unique(saved)) <= {0, 1, 2}
    given = np.asarray(Image.open(tmp_path / "saved" / "ff" / "pair" / "00000.png"))
    assert (given == np.asarray(Image.open(davis / "Annotations/480p/pair/00000.png"))).all()
    # the saved masks, scored again
    masks = find_sources(davis)[1]
    truth = masks.instances(np.arange(9))
    pred = [np.asarray(Image.open(tmp_path / "saved" / "ff" / "pair" / f"{t:05d}.png")) for t in range(9)]
    again = davis_j_f(pred, truth)
    assert again.j.mean(1) == pytest.approx(scores["ff"]["videos"]["pair"]["J"])
    with pytest.raises(SystemExit) as stop:  # what is there stays there
        main([*common, "--davis", "--save", str(tmp_path / "saved")])
    assert stop.value.code == 2 and "not empty; choose another --save, or add --overwrite" in capsys.readouterr().err
    main([*common, "--davis", "--save", str(tmp_path / "saved"), "--overwrite"])
    capsys.readouterr()
    main([*common, "--variant", "released", "--num-frames", "5"])
    assert "random" in capsys.readouterr().out
    assert [p for p in sorted(str(p) for p in davis.rglob("*")) if "/out" not in p and "/saved" not in p] == before


def write_vos(root, name, masks, given, kind=np.uint8):
    "A video in YouTube-VOS's layout: frames 0, 5, 10, ...; `given`: frame -> the mask that is written."
    pictures, folder = root / "JPEGImages" / name, root / "Annotations" / name
    pictures.mkdir(parents=True), folder.mkdir(parents=True)
    for t, mask in enumerate(masks):
        picture = np.full((*mask.shape, 3), 90, np.uint8)
        for i in np.unique(mask[mask > 0]):
            picture[mask == i] = np.array([250, 0, 0]) if i % 2 else np.array([0, 250, 0])
        Image.fromarray(picture).save(pictures / f"{5 * t:05d}.jpg", quality=95)
    for t, mask in given.items():
        Image.fromarray(mask.astype(kind)).save(folder / f"{5 * t:05d}.png")


def forwarded(monkeypatch, tmp_path, root, *flags):
    "What the command writes."
    monkeypatch.setattr("timet.backbone.open_backbone", lambda *a, **k: Colours())
    monkeypatch.setattr("timet.eval.options.fingerprint", lambda model: "colours")
    out = tmp_path / "said" / "out.json"
    main(["colours", "--data", str(root), "--image-size", "64", *flags, "--out", str(out)])
    return json.loads(out.read_text())


def test_validation_form_of_youtube_vos(tmp_path, monkeypatch, capsys):
    "Masks only where an object begins, holding that object alone: nothing is scored, everything can be written."
    masks = moving({1: 0, 2: 2, 3: 5}, large=4)
    given = {t: np.where(masks[t] == i, i, 0) for i, t in ((1, 0), (2, 2), (3, 5))}
    write_vos(tmp_path / "set", "a", masks, given)
    with pytest.raises(SystemExit) as stop:
        forwarded(monkeypatch, tmp_path, tmp_path / "set", "--davis", "--method", "copy")
    assert stop.value.code == 2 and "masks only where objects begin" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        forwarded(monkeypatch, tmp_path, tmp_path / "set", "--method", "copy", "--delta-t", "0.4")
    assert "masks only where objects begin" in capsys.readouterr().err
    flags = ["--davis", "--method", "copy", "ff", "--save", str(tmp_path / "saved")]
    found = forwarded(monkeypatch, tmp_path, tmp_path / "set", *flags)
    assert found["left_out"] == ["a: written; masks only where objects begin"]
    assert "nothing to score" in capsys.readouterr().out
    for method in ("copy", "ff"):
        files = sorted((tmp_path / "saved" / method / "a").glob("*.png"))
        assert [f.name for f in files] == [f"{5 * t:05d}.png" for t in range(6)]  # every frame, under its own name
        assert {Image.open(f).mode for f in files} == {"P"}
        assert [np.unique(np.asarray(Image.open(f))).tolist() for f in files] == [[0, 1]] * 2 + [[0, 1, 2]] * 3 + [
            [0, 1, 2, 3]
        ]
    with pytest.raises(SystemExit):
        forwarded(monkeypatch, tmp_path, tmp_path / "set", *flags)
    assert "is there and not empty; choose another --save" in capsys.readouterr().err


def test_a_later_object_is_told_of_and_scored(tmp_path, monkeypatch):
    masks = moving({1: 0, 2: 2}, large=4)
    write_vos(tmp_path / "set", "a", masks, dict(enumerate(masks)))
    found = forwarded(monkeypatch, tmp_path, tmp_path / "set", "--davis", "--method", "copy")
    video, apart = found["scores"][0]["videos"]["a"], [(8 - s) / (8 + s) for s in range(1, 5)]
    assert video["ids"] == [1, 2] and video["J"] == pytest.approx([np.mean(apart), np.mean(apart[:2])])
    merged = forwarded(monkeypatch, tmp_path, tmp_path / "set", "--davis", "--method", "copy", "--objects", "merged")
    assert merged["scores"][0]["videos"]["a"]["ids"] == [1]
    steps = forwarded(monkeypatch, tmp_path, tmp_path / "set", "--method", "copy", "--delta-t", "0.2")
    assert steps["left_out"][0].startswith("1 objects that come after the first frame: nobody is told of them")


def test_only_the_first_frame_has_a_mask_and_ids_are_high(tmp_path, monkeypatch):
    "The form of DAVIS test-dev, and ids as MOTS has them."
    masks = moving({256: 0, 1001: 0, 10000: 0}, large=4)
    write_vos(tmp_path / "set", "a", masks, {0: masks[0]}, np.uint16)
    flags = ["--davis", "--method", "copy", "ff", "--save", str(tmp_path / "saved")]
    forwarded(monkeypatch, tmp_path, tmp_path / "set", *flags)
    for method in ("copy", "ff"):
        files = sorted((tmp_path / "saved" / method / "a").glob("*.png"))
        assert len(files) == 6
        assert all(np.unique(np.asarray(Image.open(f))).tolist() == [0, 256, 1001, 10000] for f in files)
    assert np.array_equal(find_sources(tmp_path / "set")[0].instances([0])[0], masks[0])


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--num-frames", "1"], "at least 2"),
        (["--delta-t", "-1"], "above 0"),
        (["--save", "x"], "--davis"),
        (["--davis", "--variant", "released"], "--corner"),
        (["--variant", "released", "--soft"], "leave --soft out"),
        (["--soft", "--corner"], "take one"),
        (["--background", "ocean"], "the categories are"),
        (["--method", "raft", "--raft-weights", "none.pth"], "raft"),
        (["--data", "nowhere"], "cannot find"),
    ],
)
def test_wrong_input_is_one_sentence(flags, word, capsys):
    data = [] if "--data" in flags else ["--data", str(samples_dir() / "heldout")]
    with pytest.raises(SystemExit) as stop:
        main(["random", "--backbone", "timet_tiny_patch8_96", *data, *flags])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and word in lines[-1] and "Traceback" not in "".join(lines)


def test_grounds_are_background_and_objects_merge():
    sources = find_sources(samples_dir() / "heldout")
    facts = {"classes": sources.classes, "background": ("meadow", "sand", "sky", "water")}
    masks, merged = (object_masks(sources[4], [0], merge=m, **facts)[0] for m in (False, True))
    assert set(np.unique(merged)) == {0, 1} and ((masks > 0) == (merged == 1)).all()
    assert len(np.unique(masks)) > 3


def test_settings_of_the_variants():
    assert VARIANTS["paper"].matching == "direct" and VARIANTS["paper"].shift == 0
    released = Rules("uniform", "hungarian", shift=1, wrapped=True, smooth=False, corner=True, absent=0.0)
    assert VARIANTS["released"] == released and not VARIANTS["paper"].corner and np.isnan(VARIANTS["paper"].absent)
    config = ForwardingConfig("x", Path("y"))
    assert (config.delta_t, config.num_frames) == ((0.1, 0.2, 0.4, 0.8), 25)
    assert config.tracker.forwarder == Forwarder(radius=12, topk=5, temperature=0.1, context=4)
    assert read_words(["x", "--davis"]).tracker.forwarder == Forwarder(radius=12, topk=5, temperature=0.1, context=7)
    assert config.merge and not ForwardingConfig("x", Path("y"), davis=True).merge


def test_released_starts_at_the_corners():
    "Only in Table 11; and the first mask of a method that needs no grid stays as it is."
    rng, mask = np.random.default_rng(0), moving({1: 0}, large=4)[0, :64, :64]
    frames = rng.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    made = {}
    for variant in ("paper", "released"):
        config = ForwardingConfig("x", Path("y"), variant=variant, device="cpu")
        made[variant] = np.stack(list(carried(config, "ff", Colours(), {}, frames, mask, (64, 64))))
    tokens = list(frame_tokens(Colours(), frames, (64, 64)))
    for variant, corner in (("paper", False), ("released", True)):
        want = np.stack(list(forward_masks(tokens, mask, (8, 8), corner=corner)))
        np.testing.assert_array_equal(made[variant], want)
    assert (made["paper"] != made["released"]).any()


def test_real_davis(real_clips, monkeypatch):
    "Masks of 0 and 255 are one object; the first mask, carried nowhere, scores 1 in frame 0."
    source = find_sources(real_clips / "davis16")[0]
    masks = object_masks(source, [0, 1, 2])
    assert set(np.unique(masks)) == {0, 1}
    scores = davis_j_f(masks, masks)
    assert scores.mean == 1.0
    assert 0.5 < davis_j_f(np.repeat(masks[:1], 3, 0), masks).mean < 1
