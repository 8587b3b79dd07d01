"The sample world: drawing, files, true motion, the command."

import json
import math

import numpy as np
import pytest
from PIL import Image

from timet.core import TimetError, samples_dir
from timet.data.find import find_sources
from timet.data.video import read_frames, scan
from timet.samples import SamplesConfig, main, render, true_motion
from timet.viz.write import write_mask, write_video
from timet.world import scene as world
from timet.world import shapes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return render(SamplesConfig(str(tmp_path_factory.mktemp("samples") / "world"), train=1, heldout=2, frames=5))


def test_colour_is_the_formula():
    for hue, s, v in [(0, 0.8, 0.5), (123.0, 0.3, 0.4), (300.0, 1.0, 0.5)]:
        want = [v * (1 + s * math.cos(math.radians(hue) - i * 2 * math.pi / 3)) for i in range(3)]
        np.testing.assert_allclose(shapes.colour(np.array(hue), s, v), want, atol=1e-6)


def test_noise_is_seamless_and_of_unit_variance():
    tile = shapes.noise_tile(np.random.default_rng(1), 6)
    assert abs(tile.mean()) < 1e-5 and abs(tile.std() - 1) < 1e-5
    inner = np.abs(np.diff(tile, axis=0)).max()
    assert np.abs(tile[0] - tile[-1]).max() <= inner * 1.01


def test_look_up_is_bilinear_and_repeats():
    rng = np.random.default_rng(0)
    tile = rng.standard_normal((8, 8)).astype(np.float32)
    for _ in range(50):
        x, y = rng.uniform(-20, 20, 2)
        i, j, fx, fy = math.floor(x), math.floor(y), x - math.floor(x), y - math.floor(y)
        want = sum(
            tile[(j + b) % 8, (i + a) % 8] * (fx if a else 1 - fx) * (fy if b else 1 - fy)
            for a in (0, 1)
            for b in (0, 1)
        )
        assert abs(float(shapes.look_up(tile, np.array(x), np.array(y))) - want) < 1e-5


@pytest.mark.parametrize("category", shapes.THINGS)
def test_a_thing_is_one_body_of_about_the_same_size(category):
    from scipy.ndimage import label

    y, x = np.mgrid[-1.3:1.3:261j, -1.3:1.3:261j]
    inside = shapes.outline(category, x, y) < 0
    assert label(inside)[1] == 1
    assert 1.9 < inside.mean() * 2.6**2 < 2.4
    assert not (inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any())
    assert np.isfinite(shapes.marks(category, x, y, 0.2)).all()


def test_similarity_and_its_inverse():
    rng = np.random.default_rng(0)
    motion = world.similarity(*rng.uniform(1, 3, (5, 4)))
    for affine in motion:
        px = rng.uniform(0, 100, (20, 2))
        body = np.stack(world.to_body(affine, px[:, 0], px[:, 1]), 1)
        np.testing.assert_allclose(body @ affine[:, :2].T + affine[:, 2], px, atol=1e-9)


def test_mask_is_the_front_most_body_at_the_pixel_centre():
    scene = world.make_scene(0, 3, part=1)
    mask = world.draw_mask(scene, 20)
    rng = np.random.default_rng(0)
    for row, column in zip(rng.integers(0, world.HEIGHT, 300), rng.integers(0, world.WIDTH, 300)):
        front = 0
        for i, body in enumerate(scene.bodies, 1):
            u, v = world.to_body(body.motion[20], np.array([float(column)]), np.array([float(row)]))
            front = i if world.inside(body, u, v)[0] > 0 else front
        assert mask[row, column] == front > 0


def test_frames_depend_on_seed_part_and_index_alone():
    frames = {
        key: world.draw_frame(world.make_scene(key[0], key[1], part=key[2]), 7, 1) for key in [(0, 0, 0), (0, 0, 1)]
    }
    again = world.draw_frame(world.make_scene(0, 0), 7, 1)
    assert (again == frames[0, 0, 0]).all() and (frames[0, 0, 1] != again).any()
    # a longer clip starts with the same frames
    assert (world.draw_frame(world.make_scene(0, 0, frames=12), 7, 1) == again).all()


def test_a_drawn_frame_agrees_with_its_mask():
    scene = world.make_scene(0, 1)
    frame, mask = world.draw_frame(scene, 10).astype(float), world.draw_mask(scene, 10)
    edges = (np.diff(mask.astype(int), axis=1) != 0)[:-1]
    jump = np.abs(np.diff(frame, axis=1)).sum(-1)[:-1]
    assert jump[edges].mean() > 1.5 * jump[~edges].mean()


def test_files_are_what_readers_expect(small):
    sources = find_sources(small / "heldout")
    assert len(sources) == 2 and sources.semantic
    assert [sources.classes[i] for i in range(1, len(sources.classes))] == sorted(
        {body.category for i in range(2) for body in _held(i).bodies}
    )
    info = scan(small / "train/videos/clip_00.mp4")
    assert (info.width, info.height, info.fps, info.open_gop, info.codec) == (192, 144, 24.0, False, "h264")
    assert len(info.starts) == 5
    assert not (small / "train/masks").exists()


def _held(i, frames=5):
    return world.make_scene(0, i, part=1, frames=frames, story={0: "returns", 1: "hides"}[i])


def test_video_and_masks_hold_what_was_drawn(small):
    scene = _held(1)
    frames = read_frames(small / "heldout/videos/clip_01.mp4")
    assert frames.shape == (5, 144, 192, 3)
    for i in (0, 4):
        mask = Image.open(small / f"heldout/masks/clip_01/{i:05d}.png")
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.array(mask), world.draw_mask(scene, i))
        error = frames[i].astype(float) - world.draw_frame(scene, i)
        assert 10 * math.log10(255**2 / (error**2).mean()) > 27


def test_classes_are_complete(small):
    for source in find_sources(small / "heldout"):
        assert source.masks([0, 4]).min() > 0


def test_true_motion_is_affine_by_instance(small):
    "An independent loop over pixels, from the equation."
    flow, visible = true_motion("clip_01", 0, 4, root=small / "heldout")
    scene = _held(1)
    source, target = world.draw_mask(scene, 0), world.draw_mask(scene, 4)
    rng = np.random.default_rng(0)
    for row, column in zip(rng.integers(0, 144, 200), rng.integers(0, 192, 200)):
        affine = [np.vstack([scene.bodies[source[row, column] - 1].motion[f], [0, 0, 1]]) for f in (0, 4)]
        x, y, _ = affine[1] @ np.linalg.inv(affine[0]) @ [column, row, 1]
        np.testing.assert_allclose(flow[row, column], [x - column, y - row], atol=1e-4)
        i, j = round(y), round(x)
        there = 0 <= i < 144 and 0 <= j < 192 and target[i, j] == source[row, column]
        assert visible[row, column] == there


def test_true_motion_there_and_back():
    flow, visible = true_motion("clip_03", 5, 15)
    back, _ = true_motion("clip_03", 15, 5)
    y, x = np.mgrid[:144, :192]
    column, row = np.rint(x + flow[..., 0]).astype(int)[visible], np.rint(y + flow[..., 1]).astype(int)[visible]
    # rounding to a pixel moves the place by half a pixel at most, times the growth of the body
    assert np.abs(flow[visible] + back[row, column]).max() < 1.0
    still, seen = true_motion("clip_03", 9, 9)
    assert np.abs(still).max() < 1e-3 and seen.all()


def test_what_left_the_frame_is_not_visible():
    name, ident, gone = "clip_00", 6, 24
    masks = [np.array(Image.open(samples_dir() / f"heldout/masks/{name}/{f:05d}.png")) for f in (0, gone, 47)]
    assert (masks[0] == ident).any() and not (masks[1] == ident).any() and (masks[2] == ident).any()
    _, visible = true_motion(name, 0, gone)
    assert not visible[masks[0] == ident].any()
    _, visible = true_motion(name, 0, 47)
    assert visible[masks[0] == ident].any()


def test_what_is_hidden_is_not_visible():
    name, ident = "clip_01", 5
    masks = [np.array(Image.open(samples_dir() / f"heldout/masks/{name}/{f:05d}.png")) for f in range(48)]
    gone = [f for f, mask in enumerate(masks) if not (mask == ident).any()]
    assert gone and gone[0] > 0 and gone[-1] < 47
    flow, visible = true_motion(name, 0, gone[0])
    mine = masks[0] == ident
    assert not visible[mine].any()
    y, x = np.mgrid[:144, :192][:, mine] + flow[mine][:, ::-1].T
    assert (x > 0).all() and (x < 192).all() and (y > 0).all() and (y < 144).all()


def test_the_committed_clips_come_from_this_program():
    scene = world.make_scene(0, 5, part=1)
    np.testing.assert_array_equal(
        np.array(Image.open(samples_dir() / "heldout/masks/clip_05/00030.png")), world.draw_mask(scene, 30)
    )
    stored = json.loads((samples_dir() / "heldout/motion/clip_05.json").read_text())["instances"]
    for i, body in enumerate(scene.bodies, 1):
        assert stored[str(i)]["category"] == body.category
        np.testing.assert_array_equal(np.array(stored[str(i)]["affine"]).reshape(-1, 2, 3), body.motion)
    for part, key, name in ((0, "train", "clip_07"), (1, "heldout", "clip_05")):
        shown = read_frames(samples_dir() / key / f"videos/{name}.mp4", index=[30])[0].astype(float)
        error = shown - world.draw_frame(world.make_scene(0, int(name[-2:]), part=part), 30)
        assert 10 * math.log10(255**2 / (error**2).mean()) > 27


def test_samples_in_the_repository():
    root = samples_dir()
    assert len(find_sources(root / "train")) == 26
    held = find_sources(root / "heldout")
    assert len(held) == 12 and list(held.classes.values())[1:] == shapes.CATEGORIES
    shares = np.bincount(np.concatenate([s.masks([0, 24, 47]).ravel() for s in held]), minlength=9) / (
        12 * 3 * 144 * 192
    )
    assert shares[0] == 0 and shares[1:].min() > 0.03 and shares.max() < 0.3
    assert sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) < 12e6


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TimetError, match="is not empty"):
        render(SamplesConfig(str(tmp_path), train=1, heldout=0, frames=2))
    assert [p.name for p in tmp_path.rglob("*")] == ["thesis.txt"]
    render(SamplesConfig(str(tmp_path), train=1, heldout=0, frames=2, overwrite=True))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_clips_of_another_set_stop_a_render(tmp_path):
    (tmp_path / "train/videos").mkdir(parents=True)
    (tmp_path / "train/videos/holiday.mp4").write_bytes(b"x")
    with pytest.raises(TimetError, match="another set"):
        render(SamplesConfig(str(tmp_path), train=1, heldout=0, frames=2, overwrite=True))
    assert (tmp_path / "train/videos/holiday.mp4").read_bytes() == b"x"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--out", "{file}"], "is a file; choose a folder"),
        (["--out", "{file}/below"], "cannot write"),
        (["--out", "{new}", "--frames", "1"], "--frames must be at least 2, got 1"),
        (["--out", "{new}", "--train", "-1"], "--train must be at least 0 and at most 100, got -1"),
        (["--out", "{new}", "--train", "0", "--heldout", "0"], "nothing to draw"),
        (["--out", "{new}", "--seed", "-4"], "--seed must be at least 0, got -4"),
    ],
)
def test_wrong_commands_get_one_sentence(tmp_path, capsys, words, message):
    (tmp_path / "file").write_text("")
    names = {"file": str(tmp_path / "file"), "new": str(tmp_path / "new")}
    with pytest.raises(SystemExit) as stop:
        main([word.format(**names) for word in words] + ["--heldout", "1"] * ("--heldout" not in words))
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert stop.value.code == 2 and message in error and "Traceback" not in error
    assert not (tmp_path / "new").exists()


def test_the_command_draws(tmp_path, capsys):
    main(["--out", str(tmp_path / "x"), "--train", "1", "--heldout", "0", "--frames", "2", "--seed", "5"])
    assert "1 clips to learn from, 0 held out" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "x").rglob("*.*")] == ["clip_00.mp4"]


def test_mask_and_video_writers(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_mask(tmp_path / "m.png", mask)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "m.png")), mask)
    frames = [np.full((32, 48, 3), 40 * i, np.uint8) for i in range(4)]
    write_video(tmp_path / "a.mp4", frames, 24)
    assert np.abs(read_frames(tmp_path / "a.mp4").astype(int)[:, 0, 0, 0] - [0, 40, 80, 120]).max() < 4


def test_the_same_frames_give_the_same_bytes(tmp_path):
    scene = world.make_scene(0, 2)
    frames = [world.draw_frame(scene, i, 1) for i in range(12)]
    seen = set()
    for i in range(6):
        write_video(tmp_path / f"{i}.mp4", frames, 24)
        seen.add((tmp_path / f"{i}.mp4").read_bytes())
    assert len(seen) == 1


def test_true_motion_wrong_input():
    for words, message in [
        (("clip_77", 0, 1), "known clips: clip_00"),
        (("clip_00", -1, 0), "frames 0 to 47"),
        (("clip_00", 0, 48), "frames 0 to 47"),
    ]:
        with pytest.raises(TimetError, match=message):
            true_motion(*words)
