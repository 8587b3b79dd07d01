"Segmenting films: frames in order, borders along edges, time and sound kept, killed and resumed, nothing of the user's touched."

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from timet.backbone import create_backbone
from timet.core import TimetError
from timet.data.find import find_sources
from timet.data.source import frames_in_order, read_mask
from timet.data.video import VideoError, read_frames, scan
from timet.eval.kmeans import standardize_pca
from timet.film import parts as room
from timet.film import stream
from timet.film.jobs import Settings, plan_jobs, read_note
from timet.film.movie import PART, aspect_of, join_parts, paint_frame, ticks_of
from timet.film.stream import (
    Clusters,
    fit_clusters,
    sample_frames,
    stream_labels,
    upscale_bilinear,
    upscale_edges,
    working_size,
)
from timet.run.check import adjust, flat
from timet.segment import SegmentConfig, main, segment
from timet.viz.paint import cluster_colors
from timet.viz.write import write_video

SMALL = dict(clusters=3, image_size=32, frames=6, device="cpu")


def make_film(path, count=12, size=(48, 32), base=Fraction(1, 10), ticks=None, sound=None, codec="libx264", **options):
    "A square that walks over a ground; `sound` names an audio codec."
    with av.open(str(path), "w") as film:
        video = film.add_stream(codec, rate=10)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base, video.options = base, {str(k): str(v) for k, v in options.items()}
        audio = film.add_stream(sound, rate=48000) if sound else None
        if audio is not None:
            name = next(f.name for f in audio.codec.audio_formats if f.name in ("fltp", "flt", "s16", "s16p"))
            audio.codec_context.format = name
        for i in range(count):
            pixels = np.full((size[1], size[0], 3), (40, 90, 160), np.uint8)
            pixels[8:24, 2 * i : 2 * i + 14] = (220, 120, 30)
            image = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
            image.pts, image.time_base = int(i if ticks is None else ticks[i]), base
            film.mux(video.encode(image))
        film.mux(video.encode(None))
        if audio is not None:
            kind = np.float32 if name.startswith("flt") else np.int16
            for at in range(0, 48000 * count // 10, 1024):
                wave = (np.sin((at + np.arange(1024)) * 0.05) * (0.3 if kind is np.float32 else 9000)).astype(kind)
                frame = av.AudioFrame.from_ndarray(wave[None], name, "mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, at, Fraction(1, 48000)
                film.mux(audio.encode(frame))
            film.mux(audio.encode(None))
    return path


def make_frames(folder, count=6, size=(48, 32)):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((size[1], size[0], 3), (40, 90, 160), np.uint8)
        pixels[8:24, 3 * i : 3 * i + 14] = (220, 120, 30)
        Image.fromarray(pixels).save(folder / f"shot_{i:03d}.png")
    return folder


def sound_of(path):
    "Bytes of the audio packets, and their seconds after the first frame is due."
    with av.open(str(path)) as film:
        first = min(p.pts * p.time_base for p in film.demux(video=0) if p.size)
    with av.open(str(path)) as film:
        return [(bytes(p), round(float(p.pts * p.time_base - first), 4)) for p in film.demux(audio=0) if p.size]


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return create_backbone("timet_tiny_patch8_96", weights="none", tuned_blocks=0)


@pytest.fixture
def film(tmp_path):
    return make_film(tmp_path / "in.mp4")


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", ["keyint=4:open-gop=0", "keyint=5:open-gop=1:bframes=2:b-adapt=0:scenecut=0"])
def test_sequential_frames_are_the_exact_ones(tmp_path, params):
    path = make_film(tmp_path / "x.mp4", 23, **{"x264-params": params})
    source, exact = find_sources(path)[0], read_frames(path)
    for start, stop in ((0, 23), (3, 9), (5, 6), (10, 23), (22, 23)):
        got = list(frames_in_order(source, start, stop))
        assert [i for i, _ in got] == list(range(start, stop))
        assert np.array_equal(np.stack([f for _, f in got]), exact[start:stop])


def test_variable_rate_and_late_start(tmp_path):
    ticks = np.cumsum([20, 1, 5, 2, 9, 1, 30])
    source = find_sources(make_film(tmp_path / "x.mkv", 7, base=Fraction(1, 1000), ticks=ticks * 10))[0]
    got, base, _ = ticks_of(source)
    assert np.allclose(np.diff(got) * float(base), np.diff(ticks) / 100)
    assert len(list(frames_in_order(source))) == 7


def test_damaged_frames_are_replaced_and_named(tmp_path):
    path = make_film(tmp_path / "x.mp4", 40, size=(160, 120), **{"x264-params": "keyint=10:bframes=0:scenecut=0"})
    whole = path.read_bytes()
    with av.open(str(path)) as opened:
        places = [p.pos for p in opened.demux(video=0) if p.size]
    hole = places[20]  # a keyframe: what follows cannot be decoded
    path.write_bytes(whole[: hole + 4] + bytes(60) + whole[hole + 64 :])
    lost = []
    got = list(frames_in_order(find_sources(path)[0], 0, None, lost))
    assert [i for i, _ in got] == list(range(40))
    assert lost and min(lost) == 20
    part = []
    assert len(list(frames_in_order(find_sources(path)[0], 30, 40, part))) == 10 and not part


def test_frame_folder_is_read_in_order(tmp_path):
    source = find_sources(make_frames(tmp_path / "shots"))[0]
    assert np.array_equal(np.stack([f for _, f in frames_in_order(source, 2)]), source.frames([2, 3, 4, 5]))
    ticks, base, last = ticks_of(source)
    assert (ticks * float(base)).tolist() == pytest.approx(source.starts.tolist()) and last == 3750


@pytest.mark.parametrize("counts, frames", [([5], 5), ([5], 99), ([1, 40, 3], 8), ([7, 7], 1)])
def test_sampled_frames_exist_and_are_spread(counts, frames):
    plan = sample_frames([type("S", (), {"num_frames": n}) for n in counts], frames)
    for chosen, n in zip(plan, counts):
        assert len(chosen) >= 1 and chosen.min() >= 0 and chosen.max() < n and (np.diff(chosen) > 0).all()


# --- clusters --------------------------------------------------------------------------------------------------------


def test_one_matrix_is_standardise_pca_and_nearest_centroid():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12)) + 3).astype(np.float32)
    x[:, 4] = 7.0  # a constant feature
    clusters = fit_clusters(x, 5, dim=6)
    labels = clusters.scores(torch.tensor(x)).argmax(1).numpy()
    z = standardize_pca(x, 6)
    centres = np.stack([z[labels == j].mean(0) for j in range(5)])
    nearest = ((z[:, None] - centres[None]) ** 2).sum(-1).argmin(1)  # k-means has come to rest: each is in its own
    assert (nearest == labels).mean() > 0.99
    assert (np.diff(np.bincount(labels, minlength=5)) <= 0).all()


def test_bilinear_equals_a_loop_over_pixels():
    maps = torch.rand(4, 3, 5)
    got = upscale_bilinear(maps, (7, 11)).numpy()
    for y in range(7):
        for x in range(11):
            v, u = np.clip((y + 0.5) * 3 / 7 - 0.5, 0, 2), np.clip((x + 0.5) * 5 / 11 - 0.5, 0, 4)
            r, c = min(int(v), 1), min(int(u), 3)
            a, b = v - r, u - c
            m = maps.numpy()
            mix = (1 - a) * ((1 - b) * m[:, r, c] + b * m[:, r, c + 1]) + a * (
                (1 - b) * m[:, r + 1, c] + b * m[:, r + 1, c + 1]
            )
            assert mix.argmax() == got[y, x] or np.sort(mix)[-1] - np.sort(mix)[-2] < 1e-6


def test_guided_filter_equals_least_squares_in_each_window():
    torch.manual_seed(0)
    rng, (h, w), epsilon, r = np.random.default_rng(0), (6, 7), 1e-2, 1
    frame, p = rng.integers(0, 256, (h, w, 3), dtype=np.uint8), rng.random((2, h, w))
    picture, lines = frame / 255, np.zeros((2, h, w, 4))

    def near(y, x):
        rows, columns = (range(max(c - r, 0), min(c + r + 1, n)) for c, n in ((y, h), (x, w)))
        return [(i, j) for i in rows for j in columns]

    for y in range(h):
        for x in range(w):
            window = near(y, x)
            colours, values = np.array([picture[i] for i in window]), np.array([[m[i] for i in window] for m in p])
            centred = colours - colours.mean(0)
            a = np.linalg.solve(centred.T @ centred / len(window) + epsilon * np.eye(3),
                                centred.T @ (values - values.mean(1, keepdims=True)).T / len(window)).T  # fmt: skip
            lines[:, y, x] = np.concatenate([a, (values.mean(1) - a @ colours.mean(0))[:, None]], 1)
    want = np.zeros((2, h, w))
    for y in range(h):
        for x in range(w):
            a = np.mean([lines[:, i, j] for i, j in near(y, x)], axis=0)
            want[:, y, x] = a[:, :3] @ picture[y, x] + a[:, 3]
    got = upscale_edges(torch.tensor(p, dtype=torch.float32), frame, detail=1, radius=r, epsilon=epsilon).numpy()
    sure = np.abs(want[0] - want[1]) > 1e-4
    assert (got == want.argmax(0))[sure].all()


def test_edges_follow_the_frame():
    frame = np.full((48, 48, 3), 40, np.uint8)
    frame[:, 21:] = 220  # the edge lies inside a patch
    maps = torch.zeros(2, 6, 6)
    maps[0, :, :3], maps[1, :, 3:] = 1, 1
    truth = np.arange(48)[None] >= 21
    wrong = [(m.numpy() != truth).mean() for m in (upscale_bilinear(maps, (48, 48)), upscale_edges(maps, frame))]
    assert wrong[1] < wrong[0] / 2


@pytest.mark.parametrize("k", [1, 2, 500])
def test_any_number_of_clusters(tiny, film, k):
    rng = np.random.default_rng(0)
    clusters = fit_clusters(rng.normal(size=(600, 128)).astype(np.float32), k)
    for upscale in ("bilinear", "edges"):
        _, frame, labels = next(
            stream_labels(find_sources(film)[0], tiny, clusters, image_size=32, upscale=upscale, device="cpu")
        )
        assert labels.shape == frame.shape[:2] and labels.max() < k


def test_smoothing_is_a_triangle_in_time(tiny, film):
    source, seen = find_sources(film)[0], {}
    clusters = fit_clusters(np.random.default_rng(0).normal(size=(600, 128)).astype(np.float32), 4)
    size = working_size(tiny, *source.size, image_size=32)
    from timet.data.clips import EvalTransform

    with torch.inference_mode():
        maps = clusters.maps(tiny.tokens(EvalTransform(size)(source.frames(range(12)))), tiny.grid(*size))
    for i in range(12):
        weights = np.maximum(1 - np.abs(source.starts - source.starts[i]) / 0.25, 0)
        mean = sum(w * m for w, m in zip(weights, maps)) / weights.sum()
        seen[i] = upscale_bilinear(mean, source.size).numpy()
    for start, stop in ((0, 12), (4, 9)):
        got = list(
            stream_labels(source, tiny, clusters, image_size=32, temporal=0.25, start=start, stop=stop, device="cpu")
        )
        assert [i for i, *_ in got] == list(range(start, stop))
        assert np.mean([(m == seen[i]).mean() for i, _, m in got]) > 0.999


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, sound", [("in.mp4", "aac"), ("in.mkv", "libopus"), ("in.mov", "pcm_s16le"), ("in.avi", None)]
)
@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_times_size_and_sound_are_kept(tmp_path, tiny, name, sound, ending):
    path = make_film(tmp_path / name, 20, sound=sound, codec="mpeg4" if name.endswith("avi") else "libx264")
    (done,) = segment(path, tmp_path / f"out{ending}", tiny, **SMALL, part=7)
    before, after = scan(path), scan(done.path)
    assert len(after.pts) == len(before.pts) == done.frames
    assert (after.height, after.width) == (before.height, before.width)
    assert np.abs(after.starts - before.starts).max() < (1e-9 if ending == ".mp4" else 1.1e-3)
    assert abs(after.duration - before.duration) < 2e-3
    assert done.sound is (True if sound else None)
    if sound:
        (a, at), (b, bt) = zip(*sound_of(path)), zip(*sound_of(done.path))
        assert a == b and np.abs(np.array(at) - bt).max() < 2e-3


def test_sound_that_a_container_cannot_hold_is_left_out_and_said(tmp_path, tiny):
    path = make_film(tmp_path / "in.mkv", 10, sound="tta")
    (done,) = segment(path, tmp_path / "out.mp4", tiny, **SMALL)
    assert done.sound is False and "SOUND LEFT OUT" in str(done) and done.frames == 10
    (done,) = segment(path, tmp_path / "out.mkv", tiny, **SMALL)
    assert done.sound is True


@pytest.mark.parametrize("size", [(64, 48), (63, 48), (63, 47)])
def test_odd_sizes_and_colours(tmp_path, size):
    frames = [np.full((size[1], size[0], 3), c, np.uint8) for c in ((200, 40, 40), (40, 180, 60))]
    write_video(tmp_path / "p.mp4", frames, 25, PART)
    got = read_frames(tmp_path / "p.mp4")
    assert got.shape == (2, size[1], size[0], 3) and np.abs(got.astype(int) - np.stack(frames)).max() < 4


def test_pixels_that_are_no_squares(tmp_path, tiny):
    path = tmp_path / "tv.mp4"
    write_video(path, [np.zeros((32, 48, 3), np.uint8)] * 3, 25, replace(PART, aspect=Fraction(16, 11)))
    source = find_sources(path)[0]
    assert aspect_of(source) == Fraction(16, 11)
    (done,) = segment(path, tmp_path / "out.mp4", tiny, **SMALL)
    assert aspect_of(find_sources(done.path)[0]) == Fraction(16, 11)


def test_painting_leaves_the_frame_alone():
    frame, labels = np.full((4, 6, 3), 100, np.uint8), np.zeros((4, 6), int)
    labels[:, 3:] = 1
    side = paint_frame(frame, labels, cluster_colors(2), form="side", alpha=1.0, edges=False)
    assert (side[:, :6] == frame).all() and (side[:, 6:] == cluster_colors(2)[labels]).all()
    assert (paint_frame(frame, labels, cluster_colors(2), alpha=0.0, edges=False) == frame).all()


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["overlay", "side", "masks"])
def test_every_form(tmp_path, tiny, film, form):
    (done,) = segment(film, tmp_path / ("out" if form == "masks" else "out.mp4"), tiny, **SMALL, form=form, part=5)
    assert sum(done.shares) == pytest.approx(1, abs=1e-5)
    if form == "masks":
        about = json.loads((done.path / "segment.json").read_text())
        assert [m["file"] for m in about["masks"]] == [f"{i:06d}.png" for i in range(12)]
        masks = np.stack([read_mask(done.path / m["file"]) for m in about["masks"]])
        assert masks.shape == (12, 32, 48) and masks.max() < 3
        assert np.bincount(masks.ravel(), minlength=3) / masks.size == pytest.approx(done.shares, abs=1e-5)
    else:
        assert scan(done.path).width == (96 if form == "side" else 48)
    assert not list(tmp_path.glob("*.parts"))


def test_masks_of_a_frame_folder_have_its_names(tmp_path, tiny):
    folder = make_frames(tmp_path / "shots")
    before = snapshot(folder)
    (done,) = segment(folder, tmp_path / "out", tiny, **SMALL, form="masks")
    assert sorted(p.stem for p in done.path.glob("*.png")) == sorted(p.stem for p in folder.glob("*.png"))
    (done,) = segment(folder, tmp_path / "out.mp4", tiny, **SMALL, fps=12.5)
    assert scan(done.path).fps == pytest.approx(12.5) and snapshot(folder) == before


def test_shared_clusters_mean_the_same(tmp_path, tiny):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        make_film(tmp_path / "in" / f"{name}.mp4")
    before = snapshot(tmp_path / "in")
    for shared in (True, False):
        done = segment(tmp_path / "in", tmp_path / f"out{shared}", tiny, **SMALL, shared=shared, form="masks")
        assert [d.path.name for d in done] == ["a", "b"]
    first, second = (np.stack([read_mask(p) for p in sorted((tmp_path / "outTrue" / n).glob("*.png"))]) for n in "ab")
    assert np.array_equal(first, second)
    assert snapshot(tmp_path / "in") == before


def test_one_broken_film_does_not_stop_the_others(tmp_path, tiny, capsys):
    (tmp_path / "in").mkdir()
    make_film(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "b.mp4").write_bytes(b"not a film at all")
    done = segment(tmp_path / "in", tmp_path / "out.mp4", tiny, **SMALL)
    assert len(done) == 1 and "left out" in capsys.readouterr().err


def test_again_is_nothing_and_foreign_files_stay(tmp_path, tiny, film):
    out = tmp_path / "out.mp4"
    (done,) = segment(film, out, tiny, **SMALL)
    stamp = out.stat().st_mtime_ns
    assert segment(film, out, tiny, **SMALL) == [done] and out.stat().st_mtime_ns == stamp
    with pytest.raises(TimetError, match="is there already"):
        segment(film, out, tiny, **{**SMALL, "clusters": 2})
    segment(film, out, tiny, **{**SMALL, "clusters": 2}, force=True)
    assert len(read_note(out)["shares"]) == 2
    diary = tmp_path / "diary"
    diary.mkdir()
    (diary / "monday.txt").write_text("rain")
    with pytest.raises(TimetError, match="is there already"):
        segment(film, diary, tiny, **SMALL, form="masks")
    segment(film, diary, tiny, **SMALL, form="masks", force=True)
    assert (diary / "monday.txt").read_text() == "rain"


def test_every_setting_that_changes_a_pixel_changes_the_key(tiny, film, tmp_path):
    source, plain = find_sources(film), adjust(Settings(), SMALL)
    key = plan_jobs(source, tiny, tmp_path / "o.mp4", plain)[0].key
    other = dict(clusters=9, form="side", shared=True, upscale="edges", temporal=0.5, image_size=48, grid=5, frames=3, alpha=0.1,
                 quality=30, seed=4, fps=3.0, part=9, batch_size=2)  # fmt: skip
    assert set(other) == set(flat(plain)) - {"device", "precision", "force"}
    for name, value in other.items():
        assert plan_jobs(source, tiny, tmp_path / "o.mp4", adjust(plain, {name: value}))[0].key != key, name


def test_killed_and_resumed_is_the_same(tmp_path):
    path = make_film(tmp_path / "in.mp4", 600, sound="aac")
    words = [str(path), "--clusters", "3", "--image-size", "32", "--frames", "6", "--part", "20", "--device", "cpu",
             "--upscale", "edges", "--temporal", "0.3", "--out"]  # fmt: skip
    quiet, killed = tmp_path / "quiet.mp4", tmp_path / "killed.mp4"
    run = subprocess.Popen([sys.executable, "-m", "timet.segment", *words, str(killed)], stdout=-3, stderr=-3)
    parts = tmp_path / "killed.mp4.parts"
    while run.poll() is None and len(list(parts.rglob("part-*.json"))) < 3:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not killed.exists() and 3 <= len(list(parts.rglob("part-*.json"))) < 30
    main([*words, str(killed)])
    main([*words, str(quiet)])
    assert killed.read_bytes() == quiet.read_bytes() and not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("stage", ["write_mask", "write_json"])
def test_masks_go_on_after_a_failure(tmp_path, tiny, film, monkeypatch, stage):
    settings, kept, calls = dict(**SMALL, form="masks", part=5), getattr(room, stage), []
    segment(film, tmp_path / "quiet", tiny, **settings)

    def failing(*args):
        calls.append(args)
        if len(calls) == (8 if stage == "write_mask" else 4):  # amid the second part; between the moves and the JSON
            raise KeyboardInterrupt
        return kept(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(room, stage, failing)
        segment(film, tmp_path / "killed", tiny, **settings)
    assert not (tmp_path / "killed" / "segment.json").exists()
    segment(film, tmp_path / "killed", tiny, **settings)
    first, second = ([b for _, b in snapshot(tmp_path / n).values()] for n in ("quiet", "killed"))
    assert first == second and len(first) == 13


@contextmanager
def in_turn(items, count=1):
    yield items


@pytest.mark.parametrize("form", ["side", "masks"])
def test_threads_change_no_byte(tmp_path, tiny, monkeypatch, form):
    path = make_film(tmp_path / "in.mp4", 30)
    settings = dict(**SMALL, form=form, part=20, batch_size=4, upscale="edges", temporal=0.2)
    ending = ".mp4" if form == "side" else ""
    segment(path, tmp_path / f"threads{ending}", tiny, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(stream, "ahead", in_turn)
        patch.setattr(room, "ahead", in_turn)
        segment(path, tmp_path / f"turns{ending}", tiny, **settings)
    first, second = (
        [p.read_bytes() for p in (sorted(out.iterdir()) if out.is_dir() else [out])]
        for out in (tmp_path / f"threads{ending}", tmp_path / f"turns{ending}")
    )
    assert first == second


@pytest.mark.parametrize(
    "place, name, error",
    [
        (stream, "frames_in_order", VideoError("a stage failed")),
        (stream, "run_batches", TimetError("a stage failed")),
        (stream, "upscale_bilinear", MemoryError("a stage failed")),
        (room, "paint_frame", RuntimeError("a stage failed")),
        (room, "write_video", KeyboardInterrupt("a stage failed")),
        (room, "write_json", OSError("a stage failed")),
    ],
)
def test_what_fails_in_a_thread_is_told_and_all_threads_end(tmp_path, tiny, monkeypatch, place, name, error):
    film, kept, before = make_film(tmp_path / "in.mp4", 40), getattr(place, name), threading.active_count()
    segment(film, tmp_path / "quiet.mp4", tiny, **SMALL, part=10, batch_size=2)

    def failing(*args, **options):
        if name != "write_video":
            raise error
        next(iter(args[1]))
        raise error

    def later(*args, **options):  # a generator: it fails at its fifth item
        for i, item in enumerate(kept(*args, **options)):
            if i == 4:
                raise error
            yield item

    with monkeypatch.context() as patch, pytest.raises(type(error), match="a stage failed"):
        patch.setattr(place, name, later if name in ("frames_in_order", "run_batches") else failing)
        segment(film, tmp_path / "out.mp4", tiny, **SMALL, part=10, batch_size=2)
    assert threading.active_count() == before
    assert not list((tmp_path / "out.mp4.parts").rglob("part-00000.json"))
    assert not list((tmp_path / "out.mp4.parts").rglob(".*"))  # nothing half-written stays
    segment(film, tmp_path / "out.mp4", tiny, **SMALL, part=10, batch_size=2)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "quiet.mp4").read_bytes()


def test_the_reader_takes_one_core_and_the_network_all(tmp_path, tiny, monkeypatch):
    seen, kept = {"read": set(), "network": set()}, stream.EvalTransform.__call__
    before = torch.get_num_threads()

    class Counting(torch.nn.Module):
        def __getattr__(self, name):
            return getattr(tiny, name)

        def tokens(self, images):
            seen["network"].add(torch.get_num_threads())
            return tiny.tokens(images)

    def counted(*args):
        seen["read"].add(torch.get_num_threads())
        return kept(*args)

    clusters = Clusters(torch.randn(128, 3), torch.zeros(3), 1.0)
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(stream.EvalTransform, "__call__", counted)
        labels = stream.stream_labels(
            find_sources(make_film(tmp_path / "x.mp4", 20))[0],
            Counting(),
            clusters,
            image_size=32,
            batch_size=2,
            device="cpu",
        )
        with stream.ahead(labels, 2) as streamed:
            assert len(list(streamed)) == 20
        assert seen == {"read": {1}, "network": {3}} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_what_a_card_is_sent_is_what_the_transform_makes(film, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # no card here: the same steps on the processor
    source, size = find_sources(film)[0], (16, 24)
    here, there = (
        list(stream._sent(stream._batches(frames_in_order(source), 12, 5, size, card), size, torch.device("cpu")))
        for card in (False, True)
    )
    assert [len(some) for some, _ in here] == [5, 5, 2]
    for (some, images), (sent, shrunk) in zip(here, there, strict=True):
        assert torch.equal(images, shrunk)
        for (i, frame, _), (j, same, shown) in zip(some, sent, strict=True):
            assert i == j and np.array_equal(frame, same) and np.array_equal(shown.numpy(), frame)


def test_labels_of_a_card_are_read_a_batch_later(monkeypatch):
    order = []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            order.append(("waited", self.number))

    class OnCard:
        is_cuda, device = True, "cuda:1"

        def __init__(self, number):
            self.number = number

        def to(self, where, non_blocking):
            assert (where, non_blocking) == ("cpu", True)
            order.append(("sent", self.number))
            return torch.full((2, 2), self.number)

    events = iter(range(9))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: type("S", (), {"record_event": lambda self: Event(next(events))})()
    )
    items = ((i, np.full(1, i), OnCard(i)) for i in range(5))
    got = [(i, int(frame[0]), int(labels[0, 0])) for i, frame, labels in stream._fetched(items, 2)]
    assert got == [(i, i, i) for i in range(5)]
    assert order[:4] == [("sent", 0), ("sent", 1), ("sent", 2), ("waited", 0)] and order[-2:] == [
        ("waited", 3),
        ("waited", 4),
    ]


def test_a_slow_disk_does_not_fill_the_memory(tmp_path, tiny, monkeypatch):
    film, read, most = make_film(tmp_path / "in.mp4", 60), [], []
    kept, paint = stream.frames_in_order, room.paint_frame

    def counted(*args):
        for item in kept(*args):
            read.append(item[0])
            yield item

    def slow(*args, **options):
        time.sleep(0.01)
        painted.append(1)
        most.append(len(read) - len(painted))
        return paint(*args, **options)

    painted = []
    monkeypatch.setattr(stream, "frames_in_order", counted)
    monkeypatch.setattr(room, "paint_frame", slow)
    segment(film, tmp_path / "out.mp4", tiny, **SMALL, batch_size=4)
    assert (
        len(painted) == 60 and max(most) <= 4 * 4
    )  # a batch read, a batch waiting, one at the network, one to be written


def test_interrupted_by_the_keyboard_and_resumed_is_the_same(tmp_path):
    path = make_film(tmp_path / "in.mp4", 400)
    words = [
        str(path),
        "--clusters",
        "3",
        "--image-size",
        "32",
        "--frames",
        "6",
        "--part",
        "20",
        "--device",
        "cpu",
        "--out",
    ]
    quiet, stopped = tmp_path / "quiet.mp4", tmp_path / "stopped.mp4"
    run = subprocess.Popen([sys.executable, "-m", "timet.segment", *words, str(stopped)], stdout=-3, stderr=-3)
    while run.poll() is None and len(list((tmp_path / "stopped.mp4.parts").rglob("part-*.json"))) < 2:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    assert run.wait(30) != 0 and not stopped.exists()
    assert not list((tmp_path / "stopped.mp4.parts").rglob(".*"))
    main([*words, str(stopped)])
    main([*words, str(quiet)])
    assert stopped.read_bytes() == quiet.read_bytes()


def test_rate_is_told_once_it_means_something(tmp_path, tiny, film, monkeypatch):
    (quick,) = segment(film, tmp_path / "a.mp4", tiny, **SMALL)
    monkeypatch.setattr(room, "LEAST", 0)
    (slow,) = segment(film, tmp_path / "b.mp4", tiny, **SMALL)
    (again,) = segment(film, tmp_path / "b.mp4", tiny, **SMALL)
    assert "frames/s" not in str(quick) and str(slow).endswith(f", {slow.rate:.1f} frames/s")
    assert again == slow and again.rate is None


def test_two_processes_make_what_one_makes(tmp_path):
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("a", "b")):
        make_film(tmp_path / "in" / f"{name}.mp4", 30 + i)
    words = [str(tmp_path / "in"), "--clusters", "3", "--image-size", "32", "--frames", "6", "--part", "8", "--shared",
             "--device", "cpu", "--out"]  # fmt: skip
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "timet.segment",
    ]
    done = subprocess.run(
        [*launch, *words, str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    main([*words, str(tmp_path / "one")])
    for name in ("a.mp4", "b.mp4"):
        assert np.array_equal(read_frames(tmp_path / "one" / name), read_frames(tmp_path / "two" / name))
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize(
    "words, says",
    [
        (["{tmp}/nothing.mp4"], "cannot find"),
        (["{tmp}/text.mp4"], "not a video that FFmpeg can read"),
        (["{tmp}/in.mp4", "--clusters", "0"], "--clusters must be at least 1 and at most 4096"),
        (["{tmp}/in.mp4", "--clusters", "4000"], "clusters need as many tokens"),
        (["{tmp}/in.mp4", "--temporal", "7"], "--temporal must be at least 0 and at most 1"),
        (["{tmp}/in.mp4", "--image-size", "48", "--grid", "6"], "got both"),
        (["{tmp}/in.mp4", "--image-size", "5"], "needs 16 pixels"),
        (["{tmp}/in.mp4", "--checkpoint", "{tmp}/no.pth"], "there is no checkpoint"),
        (["{tmp}/in.mp4", "--out", "{tmp}/in.mp4", "--force"], "never changed"),
        (["{tmp}/in.mp4", "--out", "{tmp}/out.gif"], "a film ends in"),
        (["{tmp}/in.mp4", "--form", "masks", "--out", "{tmp}/out.mp4"], "need a folder"),
        (["{tmp}/in.mp4", "--device", "cuda:99"], "is not on this machine"),
        (["{tmp}/in.mp4", "--out", "{tmp}/text.mp4/deep.mp4"], "cannot write"),
    ],
)
def test_one_sentence_for_every_mistake(tmp_path, capsys, words, says):
    make_film(tmp_path / "in.mp4")
    (tmp_path / "text.mp4").write_text("hello")
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(
            [w.replace("{tmp}", str(tmp_path)) for w in [*words, "--frames", "4"]]
            + ([] if "--out" in words else ["--out", str(tmp_path / "o.mp4")])
        )
    said = capsys.readouterr().err
    assert caught.value.code == 2 and says in said and "Traceback" not in said
    assert {p: v for p, v in snapshot(tmp_path).items() if p in before} == before


def test_help_is_honest_and_command_names_its_network(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "drawn clips" in " ".join(capsys.readouterr().out.split())
    monkeypatch.chdir(tmp_path)
    path = make_film(tmp_path / "walk.mp4")
    main([str(path), "--clusters", "3", "--frames", "4", "--device", "cpu", "--image-size", "32"])
    assert "the sample network" in capsys.readouterr().out and (tmp_path / "walk_segmented.mp4").exists()
    assert SegmentConfig(video=path).checkpoint is None


def test_one_frame_and_a_gif(tmp_path, tiny):
    (done,) = segment(make_film(tmp_path / "one.mp4", 1), tmp_path / "a.mp4", tiny, **SMALL)
    assert done.frames == 1
    pictures = [Image.fromarray(np.full((32, 48, 3), 40 * i, np.uint8)) for i in range(4)]
    pictures[0].save(tmp_path / "x.gif", save_all=True, append_images=pictures[1:], duration=[100, 50, 200, 100])
    (done,) = segment(tmp_path / "x.gif", tmp_path / "b.mp4", tiny, **SMALL)
    assert done.frames == 4 and np.allclose(scan(done.path).starts, scan(tmp_path / "x.gif").starts)


def test_saved_clusters_come_back(tmp_path):
    clusters = fit_clusters(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32), 3)
    clusters.save(tmp_path / "c.safetensors")
    again = Clusters.load(tmp_path / "c.safetensors")
    assert torch.equal(again.weight, clusters.weight) and again.spread == clusters.spread
    with pytest.raises(TimetError, match="at least one frame"):
        write_video(tmp_path / "p.mp4", [], 25, PART)
    with pytest.raises(TimetError, match="ends in"):
        join_parts(tmp_path / "x.avi", [], None)


def test_two_runs_never_fill_one_result(tmp_path, tiny, film):
    out, work = tmp_path / "out.mp4", tmp_path / "out.mp4.parts"
    with room.alone(work):
        with pytest.raises(TimetError, match=r"another timet.segment is at work on .*out\.mp4; wait for it"):
            segment(film, out, tiny, **SMALL)
        segment(film, tmp_path / "other.mp4", tiny, **SMALL)
    assert not work.exists() and not out.exists()
    work.mkdir()
    holder = f"import fcntl, time; f = open({str(work / 'lock')!r}, 'ab'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE)
    other.stdout.read(1)
    with pytest.raises(TimetError, match="is at work"):
        segment(film, out, tiny, **SMALL)
    other.kill()
    other.wait()
    assert (work / "lock").exists()  # a kill leaves the file, and the kernel lets go of the lock
    segment(film, out, tiny, **SMALL)
    assert out.exists() and not work.exists()


def test_what_a_kill_left_is_swept_and_nothing_of_the_users(tmp_path, tiny, film, monkeypatch):
    out, work = tmp_path / "out.mp4", tmp_path / "out.mp4.parts"
    with monkeypatch.context() as patch:
        patch.setattr(room, "_finish", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            segment(film, out, tiny, **SMALL)
    (mine,) = work.glob("timet-*")
    half = [mine / "in" / ".whole-abc12345.mp4", mine / ".clusters-abc12345.safetensors"]
    others = [work / "timet-notes" / ".x", work / ".hidden", work / "notes.txt", tmp_path / ".out-abc12345.mp4"]
    for file in [*half, *others]:
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    with room.alone(work):
        assert not any(file.exists() for file in half) and mine.exists()
    segment(film, out, tiny, **SMALL)
    assert out.exists() and not mine.exists() and all(file.read_text() == "x" for file in others)


@pytest.mark.parametrize("ending", ["mkv", "mp4", "mov"])
def test_the_same_video_gives_the_same_bytes(tmp_path, tiny, ending):
    path = make_film(tmp_path / "in.mp4", sound="aac")
    for out in (tmp_path / "one", tmp_path / "two"):
        out.mkdir()
        segment(path, out / f"out.{ending}", tiny, **SMALL)
    assert (tmp_path / f"one/out.{ending}").read_bytes() == (tmp_path / f"two/out.{ending}").read_bytes()


def test_joined_recordings_become_one_film_with_all_its_sound(tmp_path, tiny):
    for name in "ab":
        make_film(tmp_path / f"{name}.ts", 20, sound="aac", base=Fraction(1, 10))
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    (done,) = segment(both, tmp_path / "out.mp4", tiny, **SMALL)
    assert done.frames == 40 and done.sound and not done.lost
    assert np.allclose(scan(done.path).starts, np.arange(40) / 10, atol=1e-3)
    one, out = len(sound_of(tmp_path / "a.ts")), [second for _, second in sound_of(done.path)]
    assert len(out) == 2 * one and (np.diff(out) > 0).all() and np.diff(out).max() < 0.1


def test_names_that_are_no_text(tmp_path, tiny):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    make_film(tmp_path / "x.mp4").rename(folder / os.fsdecode(b"\xff.mp4"))
    (done,) = segment(folder / os.fsdecode(b"\xff.mp4"), folder / os.fsdecode(b"\xfe.mp4"), tiny, **SMALL)
    assert done.path.exists() and len(scan(done.path).starts) == 12
    (masks,) = segment(folder / os.fsdecode(b"\xff.mp4"), folder / os.fsdecode(b"\xfd"), tiny, **SMALL, form="masks")
    assert json.loads((masks.path / "segment.json").read_text())["frames"] == 12


def test_a_guessed_rate_is_said(tmp_path, capsys):
    words = ["--clusters", "3", "--frames", "4", "--device", "cpu", "--image-size", "32", "--out"]
    folder = make_frames(tmp_path / "walk")
    main([str(folder), *words, str(tmp_path / "a.mp4")])
    assert "pictures of walk follow each other: 24 a second are assumed, give --fps" in capsys.readouterr().out
    main([str(folder), *words, str(tmp_path / "b.mp4"), "--fps", "12"])
    assert "are assumed" not in capsys.readouterr().out


def test_real_films(real_clips, tmp_path, tiny):
    for path in sorted((real_clips / "videos").glob("*.mp4"))[1:2]:
        (done,) = segment(path, tmp_path / path.name, tiny, **SMALL)
        before, after = scan(path), scan(done.path)
        assert np.abs(before.starts - after.starts).max() < 1e-9 and before.duration == pytest.approx(after.duration)
