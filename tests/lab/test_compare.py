"""Two networks on one clip: successors, colours, curves, pictures, films."""

import io
import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timet.backbone import create_backbone, load_backbone
from timet.core import TimetError, samples_dir
from timet.data.find import find_sources
from timet.data.video import read_frames, scan
from timet.lab import compare as C
from timet.lab import sidebyside as F
from timet.lab.compare import Clip, Comparison, carry, clip_tokens, read_clip, same_colours, start_of
from timet.lab.sidebyside import free_path, save_film, side_by_side, strip
from timet.viz.charts import to_png
from timet.viz.paint import TEXT

HEAD = TEXT + 10  # above the panels


def made(t=6, grid=(3, 4), k=3, masks=True, seed=0) -> Comparison:
    "A comparison of random maps, in which nothing moves."
    rng, (h, w) = np.random.default_rng(seed), grid
    frames = rng.integers(0, 255, (t, 16 * h, 16 * w, 3), dtype=np.uint8)
    still = np.broadcast_to(np.arange(h * w).reshape(h, w), (t, h, w))
    classes = {0: "background", 1: "cat"} if masks else {}
    mask = rng.integers(0, 2, (t, 16 * h, 16 * w)) if masks else None
    successors = {n: still[n:] for n in (1, 2) if n < t}
    clip = Clip("made", frames, np.arange(t) / 4, grid, successors, "true motion", mask, classes)
    maps = rng.integers(0, k, (2, t, h, w))
    return Comparison(clip, ("a", "b"), {k: maps}, {k: maps % 2} if masks else {})


@pytest.fixture(scope="module")
def tuned():
    return load_backbone(samples_dir() / "weights/timet_tiny.safetensors", tuned_blocks=0)


@pytest.fixture(scope="module")
def sample():
    sources = find_sources(samples_dir() / "heldout")
    return sources, read_clip(sources[5], num_frames=8, classes=sources.classes)


def test_carry_is_a_loop_over_patches():
    rng = np.random.default_rng(0)
    flow, seen = rng.normal(0, 6, (4, 24, 32, 2)), rng.random((4, 24, 32)) > 0.1
    for steps in (1, 2, 4):
        found = carry(flow, seen, (3, 4), steps)
        assert found.shape == (5 - steps, 3, 4)
        for t, r, c in itertools.product(range(len(found)), range(3), range(4)):
            x, y, alive = (c + 0.5) * 8, (r + 0.5) * 8, True
            for s in range(steps):
                if alive:
                    alive = seen[t + s, int(y), int(x)]
                    x, y = np.array([x, y]) + flow[t + s, int(y), int(x)]
                    alive = alive and 0 <= x < 32 and 0 <= y < 24
            assert found[t, r, c] == (int(y // 8) * 4 + int(x // 8) if alive else -1)


def test_flow_that_is_not_finite_leads_nowhere():
    flow = np.full((2, 16, 16, 2), np.nan)
    assert (carry(flow, np.ones((2, 16, 16), bool), (2, 2), 2) == -1).all()


def test_colours_are_paired_by_overlap():
    before = np.array([[[0, 0, 0, 1, 1, 2]]])
    for order in itertools.permutations(range(3)):
        assert (same_colours(before, np.array(order)[before])[1] == before).all()
    # more clusters before than after, and the other way round: every id stays one cluster
    for first, second in ((before, before * 0), (before * 0, before)):
        pair = same_colours(first, second)
        for old, new in zip((first, second), pair):
            assert len({*zip(old.ravel(), new.ravel())}) == len(np.unique(old)) == len(np.unique(new))


def test_the_curve_is_a_count():
    both = made()
    maps, still = both.maps[3], both.clip.successors[2]
    for later, steps in ((0.25, 1), (0.5, 2), (9, 2)):
        want = (maps[:, :-steps] == maps[:, steps:]).mean((2, 3))
        assert np.allclose(both.kept(3, later), want)
    assert still.shape[0] == 4
    hidden = Clip(**{**vars(both.clip), "successors": {1: np.full((5, 3, 4), -1)}})
    lost = Comparison(hidden, both.names, both.maps, {})
    assert np.isnan(lost.kept(3)).all() and lost.differ(3) == []
    side_by_side(lost, 5, clusters=3)
    side_by_side(lost, 0, clusters=3, show="lost patches", adjusted=True)


def test_the_frames_that_differ_most_come_first_and_apart():
    both = made(t=30)
    gap = np.abs(np.subtract(*both.kept(3, 0.25)))
    places = both.differ(3, 0.25)
    assert places[0] == gap.argmax() and len(places) == 5
    assert min(abs(a - b) for a, b in itertools.combinations(places, 2)) >= 3
    assert (np.diff(gap[places]) <= 0).all()


def test_a_picture_shows_the_frame_and_the_curve_moves():
    both = made()
    h, w = both.clip.frames.shape[1:3]
    plain = side_by_side(both, 2, clusters=3, opacity=0)
    inside = plain[HEAD + 2 : HEAD + h, 2:w]
    same = (inside == both.clip.frames[2][2:, 2:]).all(-1)
    assert same.mean() > 0.5  # all but the lines where clusters meet
    pictures = [side_by_side(both, 2, clusters=3, show=show, dark=dark) for show in F.SHOW for dark in (False, True)]
    assert len({p.tobytes() for p in pictures}) == 6
    assert pictures[0].shape == pictures[1].shape
    first, last = (side_by_side(both, i, clusters=3)[HEAD + h :] for i in (0, 1))
    assert (first != last).any()


@pytest.mark.parametrize("t, grid, k", [(2, (3, 4), 1), (3, (18, 18), 300), (2, (1, 1), 1), (4, (30, 18), 5)])
def test_edge_cases_are_drawn(t, grid, k):
    both = made(t, grid, k)
    for show in F.SHOW:
        picture = side_by_side(both, t - 1, clusters=k, show=show, adjusted=True)
        assert picture.dtype == np.uint8 and picture.shape[1] == 2 * 16 * grid[1] + F.GAP
    assert len(to_png(strip(both, clusters=k, columns=2))) > 100


def test_wrong_input_is_one_sentence():
    both = made(masks=False)
    for wrong in ({"frame": 6}, {"frame": -1}, {"clusters": 4}, {"show": "dreams"}):
        with pytest.raises(TimetError, match="frame must be 0 to 5, clusters one of 3 and show"):
            side_by_side(both, **{"frame": 0, "clusters": 3, **wrong})
    with pytest.raises(TimetError, match="no masks"):
        side_by_side(both, 0, clusters=3, show="classes")


def test_motion_true_estimated_and_unknown(sample, monkeypatch):
    sources, clip = sample
    assert clip.motion == "true motion" and clip.grid == (18, 24) and clip.frames.shape == (8, 288, 384, 3)
    colours = read_clip(sources[5], num_frames=8, motion="colours")
    both = (clip.successors[1] >= 0) & (colours.successors[1] >= 0)
    apart = np.abs(np.stack(np.divmod(clip.successors[1], 24)) - np.stack(np.divmod(colours.successors[1], 24))).max(0)
    assert colours.motion == "matched colours" and (apart[both] <= 1).mean() > 0.95
    with pytest.raises(TimetError, match="motion must be"):
        read_clip(sources[5], num_frames=3, motion="guess")
    train = find_sources(samples_dir() / "train")[0]
    with pytest.raises(TimetError, match="true motion of clip_00 is not known"):
        read_clip(train, num_frames=3, motion="true")

    def missing(frames):
        raise ImportError("cv2")

    monkeypatch.setattr(C, "_flow", missing)
    assert read_clip(train, num_frames=3).motion == "matched colours"
    with pytest.raises(TimetError, match="needs OpenCV"):
        read_clip(train, num_frames=3, motion="flow")
    with pytest.raises(TimetError, match="at least two frames"):
        read_clip(train, start=9.0)


def test_optical_flow_finds_the_true_motion(sample):
    pytest.importorskip("cv2")
    sources, clip = sample
    flow = read_clip(sources[5], num_frames=8, motion="flow")
    both = (clip.successors[1] >= 0) & (flow.successors[1] >= 0)
    apart = np.abs(np.stack(np.divmod(clip.successors[1], 24)) - np.stack(np.divmod(flow.successors[1], 24))).max(0)
    assert flow.motion == "optical flow" and both.mean() > 0.8 and (apart[both] <= 1).mean() > 0.95


def test_networks_with_other_patches_meet_on_one_grid(sample, tuned):
    small = create_backbone("vit_tiny_patch16_224", weights="none", tuned_blocks=0)
    clip = Clip(**{**vars(sample[1]), "frames": sample[1].frames[:2]})
    assert [clip_tokens(net, clip).shape[:2] for net in (small, tuned)] == [(2, 432)] * 2


def test_the_start_is_the_same_every_time_and_moves_no_random_number(tuned):
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    one, two = start_of(tuned), start_of(tuned)
    assert torch.rand(1) == want
    assert all((a == b).all() for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    torch.manual_seed(0)
    same = create_backbone(tuned.name, weights="none").state_dict()
    assert all((same[key] == value).all() for key, value in one.state_dict().items())
    other = create_backbone(tuned.name, weights="none")
    other.source = "backbone.safetensors, started from mine.pth (plain weights)"
    with pytest.raises(TimetError, match=r"tuned from mine\.pth"):
        start_of(other)


def test_time_tuning_keeps_clusters_on_a_sample_clip(sample, tuned):
    told = []
    both = C.compare(
        start_of(tuned), tuned, sample[1], clusters=(6,), tell=lambda done, total: told.append((done, total))
    )
    before, after = both.kept(6).mean(1)
    assert after > before + 0.1
    assert told[-1] == (18, 18) and told == sorted(told)
    assert both.class_maps[6].max() <= max(sample[1].classes)
    quick = []
    for i in range(7):
        start = time.perf_counter()
        to_png(side_by_side(both, i), fast=True)
        quick.append(time.perf_counter() - start)
    assert min(quick) < 0.1


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_film_has_every_frame_and_overwrites_nothing(kind, tmp_path: Path):
    both = made(t=5)
    path = save_film(both, tmp_path / "new" / f"pair.{kind}", clusters=3)
    assert len(scan(path).starts) == 5
    assert abs(scan(path).fps - 4) < 0.05
    seen, want = read_frames(path)[3].astype(int), side_by_side(both, 3, clusters=3).astype(int)
    assert np.abs(seen - want[: seen.shape[0], : seen.shape[1]]).mean() < 6
    size = path.stat().st_size
    with pytest.raises(TimetError, match="left as it is"):
        save_film(both, path, clusters=3)
    assert path.stat().st_size == size and free_path(path).name == f"pair-2.{kind}"
    with pytest.raises(TimetError, match=r"\.mp4 or \.gif"):
        save_film(both, tmp_path / "pair.avi")
    with pytest.raises(TimetError, match="cannot write"):
        save_film(both, path / "inside.mp4", clusters=3)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_wrong_look_leaves_no_file(tmp_path: Path):
    with pytest.raises(TimetError, match="clusters one of 3"):
        save_film(made(), tmp_path / "pair.mp4", clusters=7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["videos/cat.mp4", "davis16/JPEGImages/480p/goat"])
def test_real_clips(name, real_clips: Path, tuned):
    source = find_sources(real_clips / name)[0]
    clip = read_clip(source, num_frames=8)
    both = C.compare(start_of(tuned), tuned, clip, clusters=(4,))
    assert np.isfinite(both.kept(4)).all() and clip.motion != "true motion"
    picture = Image.open(io.BytesIO(to_png(side_by_side(both, 1, clusters=4))))
    assert picture.width == 2 * clip.frames.shape[2] + F.GAP
