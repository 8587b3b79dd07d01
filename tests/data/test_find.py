"""Layouts: small trees laid out as the downloads are, and what must be read out of them."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import SIZE, frames, ids, masks, meta, video

from timet.core import TimetError
from timet.data.find import Sources, draw_split, find_sources, listed_names
from timet.data.source import VideoSource, read_image
from timet.data.video import VideoError


@pytest.mark.parametrize(
    "path, layout, names, fps",
    [
        ("DAVIS16", "DAVIS", ["dog", "swan"], 24),
        ("DAVIS17", "DAVIS", ["dog", "swan"], 24),
        ("DAVIS17/JPEGImages/480p", "DAVIS", ["dog", "swan"], 24),
        ("DAVIS17/JPEGImages/480p/dog", "DAVIS", ["dog"], 24),
        ("YTVOS/train", "YouTube-VOS", ["dog", "swan"], 6),
        ("YTVOS/valid", "YouTube-VOS", ["dog", "swan"], 6),
        ("YTVOS_nested", "YouTube-VOS", ["train1/all/dog", "train1/all/swan"], 6),
        ("YTVOS_nested/train1", "YouTube-VOS", ["all/dog", "all/swan"], 6),
        ("MOSE", "JPEGImages", ["train/dog", "train/swan"], 24),
        ("Kinetics", "Kinetics", ["walking dogs/dog", "walking dogs/swan"], 30),
        ("EPIC", "EPIC", ["P01/P01_01", "P01/P01_103"], 60_000 / 1001),
        ("VISOR", "VISOR", ["P01_01_seq_00001", "P01_103_seq_00001"], 60_000 / 1001 / 95),
        ("videos_tree", "video tree", ["dog/clip", "swan/clip"], 24),
        ("videos_tree/dog/clip.mp4", "video file", ["clip"], 24),
    ],
)
def test_layouts_are_told_apart_by_looking(sets, path, layout, names, fps):
    found = find_sources(sets / path)
    assert found.layout == layout and found.names == names
    assert found[0].fps == pytest.approx(fps)
    if layout in ("EPIC", "VISOR"):
        assert found[1].fps == pytest.approx(50 / found[1].step)
    has = layout not in ("Kinetics", "EPIC", "video tree", "video file")
    assert [source.has_masks for source in found] == [has] * len(found)
    assert found[0].frames([0]).shape == (1, *SIZE, 3)
    if has:
        assert found[0].masks(found[0].annotated).shape == (len(found[0].annotated), *SIZE)


def test_classes_of_davis16(sets):
    found = find_sources(sets / "DAVIS16")
    assert found.semantic and found.classes == {0: "background", 1: "bird", 2: "dog"}
    assert [np.unique(s.masks([0])).tolist() for s in found] == [[0, 2], [0, 1]]


def test_classes_of_youtube_vos(sets):
    for path in ("YTVOS/train", "YTVOS_nested"):
        found = find_sources(sets / path)
        assert found.classes == {0: "background", 1: "bird", 2: "dog", 3: "person"} and found.semantic
        # dog: object 1 -> 2, object 2 -> 3; in place, 1 -> 2 -> 3 would merge them
        np.testing.assert_array_equal(found[0].masks(found[0].annotated[:1])[0], ids([0, 2, 3]))
        np.testing.assert_array_equal(found[1].masks(found[1].annotated[:1])[0], ids([0, 3, 1]))
    plain = find_sources(sets / "YTVOS/valid")
    assert not plain.semantic and plain.classes == {0: "background"} and plain[0].objects is None
    np.testing.assert_array_equal(plain[0].masks([0])[0], ids([0, 1, 2]))


def test_more_categories_keep_two_parts_in_step(tmp_path):
    for part, table in (("a", {"x": {1: "dog"}}), ("b", {"y": {1: "bird"}})):
        video(tmp_path / part / "videos" / f"{next(iter(table))}.mp4")
        meta(tmp_path / part / "meta.json", table, categories=["dog", "bird", "cow"])
    a, b = find_sources(tmp_path / "a"), find_sources(tmp_path / "b")
    assert a.classes == b.classes == {0: "background", 1: "bird", 2: "cow", 3: "dog"}


def test_an_object_without_a_category_is_ignored(tmp_path):
    frames(tmp_path / "JPEGImages/v", range(2))
    masks(tmp_path / "Annotations/v", range(2), [0, 1, 5])
    meta(tmp_path / "meta.json", {"v": {1: "dog"}})
    np.testing.assert_array_equal(find_sources(tmp_path)[0].masks([0])[0], ids([0, 1, 255]))


def test_parts_of_a_set(sets):
    with pytest.raises(TimetError, match=r"several parts of a set: train \(2 clips\), valid \(2 clips\)"):
        find_sources(sets / "YTVOS")
    assert find_sources(sets / "YTVOS", split="train").names == ["dog", "swan"]
    assert find_sources(sets / "DAVIS16", split="val").names == ["swan"]
    assert find_sources(sets / "DAVIS17", split="2017/val").names == ["swan"]
    with pytest.raises(TimetError, match="found 2; there are 2016/val, 2017/val"):
        find_sources(sets / "DAVIS17", split="val")
    with pytest.raises(TimetError, match="found 0; there are train, valid"):
        find_sources(sets / "YTVOS", split="test")
    names = sets / "mine.txt"
    names.write_text("swan\n\n")
    assert find_sources(sets / "MOSE", split=str(names)).names == ["train/swan"]
    names.write_text("swan\nunicorn\n")
    with pytest.raises(TimetError, match=r"1 sequences that .*, first unicorn"):
        find_sources(sets / "MOSE", split=str(names))


def test_a_list_of_ids_beside_the_data(sets):
    "The authors' lists for YouTube-VOS: ids in a file of the user's; the classes stay those of the whole `meta.json`."
    (sets / "val.txt").write_text("dog\n")
    found = find_sources(sets / "YTVOS/train", split=str(sets / "val.txt"))
    assert found.names == ["dog"] and found.classes == {0: "background", 1: "bird", 2: "dog", 3: "person"}
    assert find_sources(sets / "YTVOS_nested", split=str(sets / "val.txt")).names == ["train1/all/dog"]


def test_a_drawn_split_goes_by_the_names_alone(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{n:08x}" for n in rng.integers(0, 2**32, 3471)]
    val = {names[i] for i in draw_split(names, "val20")}
    train = {names[i] for i in draw_split(names, "train80")}
    assert (len(train), len(val)) == (2776, 695) and not train & val  # the sizes of the paper's own draw
    # by the definition: the smallest hashes are train
    largest_of_train = max(hashlib.sha256(f"0/{n}".encode()).hexdigest() for n in train)
    assert all(hashlib.sha256(f"0/{n}".encode()).hexdigest() > largest_of_train for n in val)
    shuffled = [f"train1/all/{names[i]}" for i in rng.permutation(len(names))]
    assert {shuffled[i].split("/")[-1] for i in draw_split(shuffled, "val20")} == val
    fewer = names[:100] + names[101:]
    assert len({fewer[i] for i in draw_split(fewer, "val20")} - val) <= 1
    assert {names[i] for i in draw_split(names, "val20", seed=1)} != val
    for split, words in {"val00": "is empty", "val": "trainNN or valNN", "test20": "trainNN or valNN"}.items():
        with pytest.raises(TimetError, match=words):
            draw_split(names, split)


def test_a_drawn_split_of_a_tree(tmp_path):
    for i in range(10):
        frames(tmp_path / "JPEGImages" / f"v{i}", [0, 5])
    meta(tmp_path / "meta.json", {"v0": {1: "dog"}, "v1": {1: "bird"}})
    train, val = find_sources(tmp_path, split="train80"), find_sources(tmp_path, split="val20")
    assert (len(train), len(val)) == (8, 2) and not set(train.names) & set(val.names)
    assert train.classes == val.classes == {0: "background", 1: "bird", 2: "dog"} and val.semantic
    (tmp_path / "val20.txt").write_text("v3\n")  # a list of that name comes first
    assert find_sources(tmp_path, split="val20").names == ["v3"]


def test_davis_2017_as_downloaded(tmp_path):
    "`DAVIS/` of the trainval archive: several objects, lists of sequence names, two years of lists."
    root = tmp_path / "DAVIS"
    for name in ("bike-packing", "blackswan", "bear"):
        frames(root / "JPEGImages/480p" / name, range(5))
        masks(root / "Annotations/480p" / name, range(5), [0, 1, 2, 3])
    for year in ("2016", "2017"):
        (root / "ImageSets" / year).mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("bike-packing\nblackswan\n")
    (root / "ImageSets/2017/train.txt").write_text("bear\n")
    (root / "ImageSets/2016/val.txt").write_text("blackswan\n")
    found = find_sources(root, split="2017/val")
    assert found.layout == "DAVIS" and found.names == ["bike-packing", "blackswan"] and not found.semantic
    assert found[0].fps == 24 and len(found[0].annotated) == 5
    assert np.unique(found[0].instances([0, 4])).tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(found[0].masks([2])[0], ids([0, 1, 2, 3]))
    assert find_sources(root, split="train").names == ["bear"]
    with pytest.raises(TimetError, match="found 2; there are 2016/val, 2017/train, 2017/val"):
        find_sources(root, split="val")


def test_visor_in_davis_form(tmp_path, capsys):
    "What `visor_to_davis` writes: sparse frames, ids local to a sequence, sequences of two frames."
    from timet.evaluate import main as evaluate

    root = tmp_path / "VISOR_2022"
    for name, numbers in {"P01_01_seq_00001": [140, 200, 330], "P01_103_seq_00002": [7, 9]}.items():
        video = name[: name.index("_seq")]
        frames(root / "JPEGImages/480p" / name, numbers, video + "_frame_{:010d}.jpg")
        masks(root / "Annotations/480p" / name, numbers, [0, 1, 2], video + "_frame_{:010d}.png")
    (root / "ImageSets/2022").mkdir(parents=True)
    (root / "ImageSets/2022/val.txt").write_text("P01_01_seq_00001\nP01_103_seq_00002\n")
    found = find_sources(root, split="val")
    assert found.layout == "VISOR" and len(found) == 2 and not found.semantic
    np.testing.assert_allclose(found[0].starts, np.array([0, 60, 190]) / (60_000 / 1001))
    assert np.unique(found[1].masks([0, 1])).tolist() == [0, 1, 2]
    words = ["random", "--backbone", "timet_tiny_patch8_96", "--data", str(root), "--split", "val", "--no-cache"]
    words += ["--image-size", "48", "--mask-size", "24", "--seeds", "1", "--device", "cpu"]
    evaluate(words)  # four frames a clip, also of a sequence that has two
    said = capsys.readouterr().out
    assert "VISOR: 2 clips of 4 frames" in said and "clip" in said and "dataset" not in said
    with pytest.raises(SystemExit):
        evaluate([*words, "--protocol", "dataset"])
    said = capsys.readouterr().err
    assert "name the objects of one video each, not classes" in said and "meta.json with categories" in said


def test_epic_and_kinetics_as_downloaded(tmp_path):
    for group, name in (("P01", "P01_01"), ("P02", "P02_101")):
        frames(tmp_path / "EPIC/train/480p" / group / name, range(1, 61, 3), "frame_{:010d}.jpg")
    for kind in ("abseiling", "air drumming"):
        frames(tmp_path / "kinetics" / kind / "0wR5jVB-WPk", range(1, 5), "img_{:05d}.jpg")
    epic = find_sources(tmp_path / "EPIC", split="train")
    assert epic.layout == "EPIC" and epic.names == ["P01/P01_01", "P02/P02_101"] and not any(s.has_masks for s in epic)
    assert epic[0].fps == pytest.approx(60_000 / 1001 / 3) and epic[1].fps == pytest.approx(50 / 3)
    assert Path(epic[0].path).name == "P01_01" and epic[0].frames([0, 19]).shape == (2, *SIZE, 3)
    np.testing.assert_array_equal(epic[0].frames([1])[0], read_image(Path(epic[0].path) / "frame_0000000004.jpg"))
    kinetics = find_sources(tmp_path / "kinetics")
    assert kinetics.layout == "Kinetics" and kinetics[0].fps == 30 and kinetics[0].num_frames == 4
    assert kinetics.names == ["abseiling/0wR5jVB-WPk", "air drumming/0wR5jVB-WPk"]  # the same id twice


def test_videos_with_masks(tmp_path):
    for name in ("b", "a"):
        video(tmp_path / "videos" / f"{name}.mp4", 6)
    masks(tmp_path / "masks/a", range(6), [1, 2])
    masks(tmp_path / "masks/b", [0, 4], [0, 1])
    (tmp_path / "motion").mkdir()
    (tmp_path / "motion/a.json").write_text("{}")
    meta(tmp_path / "meta.json", {"a": {1: "sky", 2: "fish"}, "b": {1: "sky"}})
    for path in (tmp_path, tmp_path / "videos"):
        found = find_sources(path)
        assert found.layout == "videos with masks" and found.names == ["a", "b"]
        assert found.classes == {0: "background", 1: "fish", 2: "sky"}
        np.testing.assert_array_equal(found[0].masks([3])[0], ids([2, 1]))
        assert found[1].annotated.tolist() == [0, 4] and (found[1].masks([2]) == 255).all()
    single = find_sources(tmp_path / "videos/a.mp4")
    assert single.layout == "videos with masks" and single[0].has_masks and single.semantic
    beside = video(tmp_path / "flat/c.mp4")
    masks(tmp_path / "flat/masks/c", range(3))
    assert find_sources(beside.parent)[0].annotated.tolist() == [0, 1, 2]


def test_odd_trees(tmp_path):
    video(tmp_path / "t/deep/er/a.MP4")
    video(tmp_path / "t/a.mp4")
    Path(tmp_path / "t/a.webm").write_bytes((tmp_path / "t/a.mp4").read_bytes())
    frames(tmp_path / "t/shots", range(3), "{}.png")
    frames(tmp_path / "t", [1], "poster.jpg")
    video(tmp_path / "t/.trash/b.mp4")
    video(tmp_path / "t/__MACOSX/c.mp4")
    frames(tmp_path / "t/dir.mp4", range(2), "{}.png")
    (tmp_path / "t/loop").symlink_to(tmp_path / "t")
    (tmp_path / "elsewhere").mkdir()
    video(tmp_path / "elsewhere/linked.mp4")
    (tmp_path / "t/link").symlink_to(tmp_path / "elsewhere")
    found = find_sources(tmp_path / "t")
    assert found.names == ["a.mp4", "a.webm", "deep/er/a", "dir.mp4", "link/linked", "shots"]
    assert found.layout == "video tree and frame folders"
    assert [type(s) for s in found].count(VideoSource) == 4
    assert isinstance(found[1:3], Sources) and found[1:3].names == found.names[1:3] and found[-1].name == "shots"


@pytest.mark.parametrize(
    "make, kwargs, words",
    [
        (lambda p: p / "none", {}, "cannot find"),
        (lambda p: p, {}, "holds no videos"),
        (lambda p: frames(p / "f", [1]) / "00001.jpg", {}, "is one picture"),
        (lambda p: frames(p / "f", [1]), {"fps": 0}, "fps must be"),
        (lambda p: frames(p / "f", [1]), {"fps": float("nan")}, "fps must be"),
        (lambda p: frames(p / "f", [1]), {"split": "val"}, "there are none"),
        (lambda p: [frames(p / "JPEGImages/v", [1]), (p / "meta.json").write_text("{")][0].parents[1], {}, "as JSON"),
    ],
)
def test_wrong_paths(tmp_path, make, kwargs, words):
    with pytest.raises(TimetError, match=words) as caught:
        find_sources(make(tmp_path), **kwargs)
    assert "\n" not in str(caught.value)


def test_a_foreign_meta_json_does_no_harm(tmp_path):
    frames(tmp_path / "v", range(2))
    for text in (
        "[]",
        "{}",
        '{"videos": []}',
        '{"videos": {"v": {"objects": []}}}',
        '{"videos": {"v": 3}}',
        '{"categories": ["x"]}',
    ):
        (tmp_path / "meta.json").write_text(text)
        assert not find_sources(tmp_path).semantic


# masks are masks, and frames stay frames


def found_in(root: Path) -> dict[str, list[int]]:
    "Clip -> numbers of its frames with a mask."
    return {source.name: source.annotated.tolist() for source in find_sources(root)}


@pytest.mark.parametrize(
    "frames_in, masks_in, layout",
    [
        ("JPEGImages/480p/{}", "Annotations/480p/{}", "DAVIS"),
        ("JPEGImages/{}", "Annotations/{}", "JPEGImages"),
        ("{}/origin", "{}/mask", "VSPW"),
        ("data/{}/origin", "data/{}/mask", "VSPW"),
        ("{}", "{}/GroundTruth", "frame folders"),
        ("{}", "GroundTruth/{}", "frame folders"),
        ("JPEGImages/{}", "GroundTruth/{}", "JPEGImages"),
        ("images/{}", "labels/{}", "frame folders"),
        ("{}/rgb", "{}/Ground-Truth", "frame folders"),
        ("{}", "{}", "frame folders"),
    ],
)
def test_masks_of_a_set_are_masks_wherever_they_lie(tmp_path, frames_in, masks_in, layout):
    for name in ("bear", "dog"):
        frames(tmp_path / frames_in.format(name), range(4))
        masks(tmp_path / masks_in.format(name), [0, 2], [0, 3])
    found = find_sources(tmp_path)
    assert (found.layout, [n.split("/")[-1] for n in found.names]) == (layout, ["bear", "dog"])
    for source in found:
        assert (source.num_frames, source.annotated.tolist()) == (4, [0, 2])
        np.testing.assert_array_equal(source.masks([2])[0], ids([0, 3]))
        np.testing.assert_array_equal(source.frames([2])[0], read_image(tmp_path / frames_in.format(source.name.split("/")[-1]) / "00002.jpg"))  # fmt: skip
    assert str(found.passed) == ""


def test_vspw_knows_its_rate(tmp_path):
    frames(tmp_path / "v/origin", range(4))
    assert find_sources(tmp_path)[0].fps == find_sources(tmp_path / "v/origin")[0].fps == 15


def test_masks_with_a_word_behind_the_name_of_their_frame(tmp_path):
    frames(tmp_path / "cars", range(1, 5), "cars_{:02d}.jpg")
    masks(tmp_path / "cars/GroundTruth", [1, 4], pattern="cars_{:02d}_gt.png")
    assert found_in(tmp_path) == {"cars": [0, 3]}


@pytest.mark.parametrize("inside", ["depth", "optical_flow", "normals", "dpt_large"])
def test_a_folder_of_frames_stays_one_whatever_lies_below(tmp_path, inside):
    for name in ("bear", "dog"):
        frames(tmp_path / name, range(4))
        frames(tmp_path / name / inside, range(4), "{:05d}.png")
    found = find_sources(tmp_path)
    assert found.names == ["bear", "dog"] and [s.num_frames for s in found] == [4, 4]
    assert f"folders of pictures that go with frames: depth, flow and the like: 2 (first: bear/{inside})" in str(
        found.passed
    )


def test_what_lies_beside_frames_in_folders_of_its_own(tmp_path):
    for part, ending in {"rgb": "jpg", "depth": "png", "flow": "jpg", "Labels": "png"}.items():
        (masks if part == "Labels" else frames)(tmp_path / "v" / part, range(4), pattern="{:05d}." + ending)
    found = find_sources(tmp_path)
    assert found_in(tmp_path) == {
        "v": [0, 1, 2, 3]
    } and "folders of pictures that go with frames: depth, flow and the like: 2" in str(found.passed)


def test_a_word_alone_makes_no_mask(tmp_path):
    "Somebody's classes are called mask and no_mask, depth and normal."
    for kind in ("mask", "no_mask", "depth", "normal"):
        video(tmp_path / kind / f"{kind}_1.mp4", 2)
        frames(tmp_path / kind / f"{kind}_2", range(2))
    assert len(find_sources(tmp_path)) == 8


@pytest.mark.parametrize(
    "frames_in, beside, mode",
    [
        ("imgs/{}", "panomasks/{}", "P"),
        ("imgs/{}", "panomasksRGB/{}", "RGB"),
        ("training/image_02/{}", "panoptic_maps/val/{}", "RGB"),
        ("{}/image_left", "{}/seg_left", "RGB"),
        ("{}/image_left", "{}/depth_left", "L"),
        ("clean/{}", "flow_viz/{}", "RGB"),
        ("clean/{}", "occlusions/{}", "L"),
        ("{}/color", "{}/label-filt", "L"),
        ("{}/frames/rgb/Camera_0", "{}/frames/classSegmentation/Camera_0", "RGB"),
        ("{}/com", "{}/alpha", "L"),
        ("{}/a", "{}/b", "P"),  # no word at all
    ],
)
def test_what_repeats_a_clip_and_looks_like_masks_is_none(tmp_path, frames_in, beside, mode):
    for name in ("bear", "dog"):
        frames(tmp_path / frames_in.format(name), range(3))
        other = tmp_path / beside.format(name)
        frames(other, range(3), "x_{:05d}.png") if mode == "RGB" else masks(other, range(3), mode=mode)
    found = find_sources(tmp_path)
    assert sorted(s.path for s in found) == sorted(str(tmp_path / frames_in.format(n)) for n in ("bear", "dog"))
    assert "look like their masks, depth or flow; call a folder masks to use it: 2" in str(found.passed)


def test_films_of_masks_beside_films(tmp_path):
    for part in ("image_left", "seg_left"):
        video(tmp_path / part / "x.mp4", 2)
    found = find_sources(tmp_path)
    assert found.names == ["image_left/x"]
    assert "look like their masks" in str(found.passed)


@pytest.mark.parametrize("name", ["river_flow", "no_mask", "cliff-edge", "overflow", "segment_1", "with_mask"])
def test_a_clip_may_have_a_word_for_masks_in_its_name(tmp_path, name):
    frames(tmp_path / name, range(3))
    frames(tmp_path / "dog", range(3))
    assert len(find_sources(tmp_path)) == 2


def test_masks_that_cannot_be_used_are_named(tmp_path):
    for i in (1, 2):  # SegTrack v2: a folder for each object
        masks(tmp_path / f"a/GroundTruth/bear/{i}", range(4))
    frames(tmp_path / "a/JPEGImages/bear", range(4))
    frames(tmp_path / "b/leftImg8bit/train/ulm", range(4), "ulm_{:06d}_leftImg8bit.png")
    masks(tmp_path / "b/gtFine/train/ulm", range(4), pattern="ulm_{:06d}_gtFine_labelIds.png")
    video(tmp_path / "c/videos/x.mp4", 3)
    video(tmp_path / "c/masks/x.mp4", 3)
    masks(tmp_path / "d/masks/x", range(3))
    for root, first in {"a": "GroundTruth/bear/1", "b": "gtFine/train/ulm", "c": "masks"}.items():
        found = find_sources(tmp_path / root)
        assert len(found) == 1 and not found[0].has_masks
        assert f"by their names: {1 + (root == 'a')} (first: {first}" in str(found.passed)
        with pytest.raises(TimetError, match=r"and no masks; .*go with no clip"):
            found.labelled()
    with pytest.raises(TimetError, match="passed over: folders of masks without frames: 1"):
        find_sources(tmp_path / "d")


def test_the_folder_of_masks_is_not_taken_for_frames(sets):
    for inside in ("Annotations", "Annotations/480p", "Annotations/480p/dog"):
        frames_in = sets / "DAVIS17" / inside.replace("Annotations", "JPEGImages")
        with pytest.raises(TimetError, match=f"holds masks, and their frames are in {frames_in}; give that folder"):
            find_sources(sets / "DAVIS17" / inside)
    frames(sets / "fbms/cars", range(3))
    masks(sets / "fbms/cars/GroundTruth", range(3))
    with pytest.raises(TimetError, match=r"their frames are in .*/fbms/cars; give"):
        find_sources(sets / "fbms/cars/GroundTruth")


def test_two_sizes_with_masks_in_both(sets):
    found = find_sources(sets / "DAVIS17")
    assert [s.size for s in found] == [SIZE, SIZE] and str(found.passed) == ""
    assert any("folders of frames that are there in another size" in line for line in found.passed.lines())


@pytest.mark.parametrize("second", ["{:05d}.png", "{:05d}.webp", "flow_x_{:05d}.jpg", "{:05d}_depth.png"])
def test_two_pictures_for_one_frame_are_refused(tmp_path, second):
    frames(tmp_path / "v", range(4))
    frames(tmp_path / "v", range(4), second)
    source = find_sources(tmp_path)[0]
    with pytest.raises(VideoError, match=r"holds several pictures for one frame, such as .* and .*; keep frames"):
        source.frames([0])


@pytest.mark.parametrize(
    "first, second, numbers",
    [
        ("{:05d}_leftImg8bit.png", "{:05d}_gtFine_labelIds.png", [0, 1, 2, 3]),
        ("{:05d}_leftImg8bit.png", "{:05d}_gtFine_labelIds.png", [0, 2]),
        ("{:04d}.png", "{:04d}_alpha2.png", [0, 1, 2, 3]),
        ("{:04d}.png", "{:04d}_gt8.png", [2]),
        ("{:04d}.jpg", "{:04d} (1).jpg", [0, 1, 2, 3]),
        ("{:04d}.jpg", "{:04d} (1).jpg", [3]),
    ],
)
def test_numbers_that_count_no_frames(tmp_path, first, second, numbers):
    frames(tmp_path / "v", range(4), first)
    frames(tmp_path / "v", numbers, second)
    source = find_sources(tmp_path)[0]
    with pytest.raises(VideoError, match=r"holds several pictures for one frame, such as .* and .*; keep frames"):
        source.frames([0])


@pytest.mark.parametrize("pattern", ["cam{}_{:05d}.jpg", "x_{:06d}_{:06d}_leftImg8bit.png"])
def test_two_shots_in_one_folder_are_refused(tmp_path, pattern):
    for shot in (0, 1):
        (tmp_path / "v").mkdir(exist_ok=True)
        for i in range(3 + shot):
            Image.new("RGB", (8, 8)).save(tmp_path / "v" / pattern.format(shot, i))
    with pytest.raises(VideoError, match=r"several shots, such as .* and .*; give each its own folder"):
        find_sources(tmp_path)[0].frames([0])


@pytest.mark.parametrize("pattern", ["10-{:02d}-{:02d}.jpg", "T1000{:02d}_{:d}00.jpg", "P01_{}_{:02d}.jpg"])
def test_times_in_names_are_one_shot(tmp_path, pattern):
    (tmp_path / "v").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / "v" / pattern.format(i // 3, 5 * (i % 3)))
    assert find_sources(tmp_path)[0].frames([5]).shape == (1, 8, 8, 3)


def test_a_mask_with_a_number_in_its_last_word(tmp_path):
    frames(tmp_path / "v", range(3))
    masks(tmp_path / "v", range(3), pattern="{:05d}_gt8.png")
    assert found_in(tmp_path) == {"v": [0, 1, 2]}


def test_loose_pictures_of_two_cameras_are_one_folder(tmp_path):
    for pattern in ("IMG_{:04d}.jpg", "_DSC{:04d}.JPG", "@{:04d}.png"):
        frames(tmp_path / "v", {"I": [1, 2, 7], "_": [1, 3], "@": [4, 5]}[pattern[0]], pattern)
    assert find_sources(tmp_path)[0].num_frames == 7


def test_pictures_above_clips(tmp_path):
    frames(tmp_path / "clips/bear", range(3))
    frames(tmp_path / "clips", [1, 2], "poster.jpg")
    found = find_sources(tmp_path / "clips")
    assert found.names == ["bear"] and found.passed.lines() == ["pictures beside clips: 1 (first: poster.jpg)"]
    frames(tmp_path / "clips", range(10, 13))  # numbered: a clip of its own
    assert find_sources(tmp_path / "clips").names == ["bear", "clips"]
    for name in ("a1", "a2"):
        video(tmp_path / f"films/{name}.mp4", 2)
        frames(tmp_path / "films", [1], f"{name}.jpg")  # previews, as downloaders write them
    found = find_sources(tmp_path / "films")
    assert found.names == ["a1", "a2"] and found.passed.lines() == ["pictures beside clips: 2 (first: a1.jpg)"]


def test_parts_below_a_word_for_frames(tmp_path):
    for part in ("train", "val"):
        frames(tmp_path / "leftImg8bit" / part / "ulm", range(2))
    with pytest.raises(TimetError, match=r"leftImg8bit/train \(1 clips\), leftImg8bit/val \(1 clips\)"):
        find_sources(tmp_path)
    assert find_sources(tmp_path, split="val").names == ["ulm"]


# numbers of masks


@pytest.mark.parametrize("numbers", [range(1, 13), [1, 5, 9], [5, 10], [12]])
def test_masks_of_a_film_that_are_not_counted_from_0(tmp_path, numbers):
    video(tmp_path / "videos/a.mp4", 12)
    masks(tmp_path / "masks/a", numbers, pattern="{:06d}.png")
    found = find_sources(tmp_path)
    with pytest.raises(VideoError, match=rf'numbered from {min(numbers)} and the frames of .* write {{"first_mask": 1}} into .*meta.json'):  # fmt: skip
        found.labelled()
    assert found[0].frames([0]).shape == (1, *SIZE, 3)  # training needs no masks
    (tmp_path / "meta.json").write_text('{"first_mask": 1}')
    source = find_sources(tmp_path)[0]
    assert source.annotated.tolist() == [n - 1 for n in numbers]
    assert find_sources(tmp_path / "videos/a.mp4")[0].annotated.tolist() == [n - 1 for n in numbers]
    (tmp_path / "meta.json").write_text('{"first_mask": 0}')
    source = find_sources(tmp_path)[0]
    if max(numbers) < 12:
        assert source.annotated.tolist() == list(numbers)
    else:
        with pytest.raises(VideoError, match="belongs to frame 12, the last frame is 11"):
            source.masks([0])


def test_other_counts_of_masks(tmp_path):
    video(tmp_path / "videos/a.mp4", 4)
    masks(tmp_path / "masks/a", [0, 1], pattern="{:03d}_1.png")
    with pytest.raises(VideoError, match=r"several masks for one frame, 000_1.png and 001_1.png"):
        (tmp_path / "meta.json").write_text('{"first_mask": 1}')
        find_sources(tmp_path)[0].masks([0])
    for text in ('{"first_mask": -1}', '{"first_mask": "1"}', '{"first_mask": true}'):
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(TimetError, match="first_mask must be a whole number from 0"):
            find_sources(tmp_path)
    frames(tmp_path / "x/frames/b", range(1, 5))
    masks(tmp_path / "x/masks/b", range(4))
    with pytest.raises(
        VideoError, match=r"as many masks as .* 00000.png has no frame .*00001.jpg.* counted differently"
    ):
        find_sources(tmp_path / "x")[0].masks([0])


# files as they come


def test_names_that_are_no_text(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    video(tmp_path / "v/videos/good.mp4", 4).rename(tmp_path / "v/videos" / f"{odd}.mp4")
    video(tmp_path / "v/videos/good.mp4", 4)
    frames(tmp_path / "v" / odd, range(2))
    masks(tmp_path / "v/masks" / odd, range(4))
    (tmp_path / "v/list.txt").write_bytes(b"caf\xe9\n")
    found = find_sources(tmp_path / "v")
    assert sorted(found.names) == sorted(["good", r"caf\udce9", r"videos/caf\udce9.mp4"])
    for source in found:
        assert source.frames([0, 1]).shape == (2, *SIZE, 3)
    assert sum(source.has_masks for source in found) == 2
    "".join(found.names).encode()
    assert len(find_sources(tmp_path / "v", split="train67")) == 2


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_lists_with_spaces_in_any_coding(tmp_path, coding):
    for name in ("a", "a b", "größe 2"):
        frames(tmp_path / "JPEGImages" / name, range(2))
    text = "a b\r\n\r\n größe 2 \r\na\r\n"
    mark = "\ufeff".encode(coding) if coding == "utf-16-be" else b""
    (tmp_path / "mine.txt").write_bytes(mark + text.encode(coding))
    assert find_sources(tmp_path, split="mine").names == ["a b", "größe 2", "a"]


def test_lines_of_lists(tmp_path):
    def said(text: str) -> list[str]:
        (tmp_path / "l.txt").write_text(text)
        return listed_names(tmp_path / "l.txt", lambda file: file.parent.name)

    assert said("/JPEGImages/480p/a b/00000.jpg /Annotations/480p/a b/00000.png\n/JPEGImages/480p/a b/00001.jpg x") == [
        "a b"
    ]
    assert said("Apply Eye/v 1.avi 3\nb.mp4") == ["Apply Eye/v 1", "b"]
    with pytest.raises(TimetError, match="is empty; give one name a line"):
        said(" \n\n")
    for name in ("a", "b"):
        video(tmp_path / "v" / f"{name}.avi".replace("avi", "mp4"), 2)
    (tmp_path / "l.txt").write_text("b 7\na.mp4 3\n")
    assert find_sources(tmp_path / "v", split=str(tmp_path / "l.txt")).names == ["b", "a"]


@pytest.mark.parametrize("split", ["", "x" * 5000, "../..", "/nowhere", "**", "[", "a\0b"])
def test_splits_that_name_nothing(tmp_path, split):
    frames(tmp_path / "d/JPEGImages/v", range(2))
    with pytest.raises(TimetError, match=r"must name one folder or list|several parts"):
        find_sources(tmp_path / "d/JPEGImages/v", split=split)


def test_files_in_place_of_a_video(tmp_path):
    film = video(tmp_path / "a.mp4", 3)
    picture = frames(tmp_path / "f", [0, 1]) / "00000.jpg"
    moving = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (0, 99, 200)]
    moving[0].save(tmp_path / "a.webp", save_all=True, append_images=moving[1:])
    moving[0].save(tmp_path / "a.png", save_all=True, append_images=moving[1:])
    moving[0].save(tmp_path / "a.gif", save_all=True, append_images=moving[1:])
    (tmp_path / "b.jpg").write_bytes(film.read_bytes())
    (tmp_path / "b.mp4").write_bytes(picture.read_bytes())
    for name, words in {
        "a.webp": "is an animated WebP picture",
        "a.png": "is an animated PNG picture",
        "b.jpg": "holds an MP4 film and is named .jpg",
        "b.mp4": "holds a JPEG picture and is named .mp4",
        "f/00001.jpg": "is one picture",
    }.items():
        with pytest.raises(TimetError, match=words):
            find_sources(tmp_path / name)
    assert find_sources(tmp_path / "a.gif")[0].num_frames == 3
    with pytest.raises(TimetError, match="is a device or a pipe"):
        find_sources("/dev/null")
    with pytest.raises(TimetError, match="is an address"):
        find_sources("https://example.org/film.mp4")


@pytest.mark.parametrize(
    "text, words",
    [
        ("[" * 100_000, "cannot be read as JSON"),
        (
            '{"videos": {"v": {"objects": {"500000000": {"category": "x"}}}}}',
            "has the object '500000000' in v; objects are numbered as in the masks, 1 to 65535",
        ),
        ("\0{}", "zero bytes"),
    ],
)
def test_a_meta_json_that_is_too_much(tmp_path, text, words):
    frames(tmp_path / "v", range(2))
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(TimetError, match=words):
        find_sources(tmp_path)


@pytest.mark.parametrize("number", ["²", "0", "-1", "one", "65536"])
def test_objects_that_no_mask_can_hold(tmp_path, number):
    frames(tmp_path / "JPEGImages/v", range(2))
    meta(tmp_path / "meta.json", {"v": {number: "dog"}})
    with pytest.raises(TimetError, match="objects are numbered as in the masks"):
        find_sources(tmp_path)


@pytest.mark.parametrize("category", [None, 7, ["cat"]])
def test_a_category_that_is_no_text(tmp_path, category):
    frames(tmp_path / "JPEGImages/v", range(2))
    meta(tmp_path / "meta.json", {"v": {1: category}})
    with pytest.raises(TimetError, match="the category of object 1 in v must be text, got"):
        find_sources(tmp_path)


def test_a_meta_json_with_a_mark_in_front(tmp_path):
    frames(tmp_path / "JPEGImages/v", range(2))
    text = meta(tmp_path / "meta.json", {"v": {1: "dog"}}).read_text()
    for coding in ("utf-8-sig", "utf-16"):
        (tmp_path / "meta.json").write_text(text, encoding=coding)
        assert find_sources(tmp_path).classes == {0: "background", 1: "dog"}


# real clips


def test_real_davis(real_clips):
    found = find_sources(real_clips / "davis16")
    assert found.layout == "DAVIS" and found.semantic and len(found) == 10
    for source in found:
        assert source.fps == 24 and len(source.annotated) == source.num_frames
        label = next(iter(source.objects.values()))
        assert set(np.unique(source.masks([0, source.num_frames - 1]))) == {0, label}
    assert find_sources(real_clips / "davis16", split="val").names == found.names


def test_real_videos(real_clips):
    found = find_sources(real_clips / "videos")
    assert {s.name: (s.num_frames, round(s.fps)) for s in found} == {
        "bear": (82, 30),
        "cat": (87, 20),
        "example": (117, 25),
        "paragliding": (70, 30),
    }
    assert os.path.isabs(found[0].path)
