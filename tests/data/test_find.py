"""Layouts: small trees laid out as the downloads are, and what must be read out of them."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from trees import SIZE, frames, ids, masks, meta, video

from timet.core import TimetError
from timet.data.find import Sources, draw_split, find_sources
from timet.data.source import VideoSource, read_image


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


@pytest.mark.parametrize("number", ["²", "500000000", "0", "-1", "one", "65536"])
def test_objects_are_numbered_as_in_masks(tmp_path, number):
    frames(tmp_path / "v", range(2))
    (tmp_path / "meta.json").write_text(json.dumps({"videos": {"v": {"objects": {number: {"category": "dog"}}}}}))
    with pytest.raises(TimetError, match=r"meta.json has the object .* in v; objects are numbered .* 1 to 65535"):
        find_sources(tmp_path)


def test_a_meta_json_nested_too_deeply_is_named(tmp_path):
    frames(tmp_path / "v", range(2))
    (tmp_path / "meta.json").write_text('{"videos": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(TimetError, match="cannot be read as JSON"):
        find_sources(tmp_path)


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
