"""Sources and layouts: small trees laid out as the downloads are, and what must be read out of them."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from timet.core import TimetError
from timet.data.find import Sources, draw_split, find_sources, main, verify
from timet.data.source import FolderSource, VideoSource, check_source, natural_key, read_image, read_mask, to_classes
from timet.data.video import VideoError

SIZE = (24, 40)


def picture(n: int, size=SIZE) -> np.ndarray:
    pixels = np.full((*size, 3), 60, dtype=np.uint8)
    pixels[:, : n % 40] = 200
    return pixels


def frames(folder: Path, numbers, pattern="{:05d}.jpg", size=SIZE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        Image.fromarray(picture(n, size)).save(folder / pattern.format(n))
    return folder


def ids(values, size=SIZE) -> np.ndarray:
    "A mask of upright stripes, one a value."
    return np.repeat(np.resize(np.array(values), size[1])[None], size[0], axis=0)


def masks(folder: Path, numbers, values=(0, 1), pattern="{:05d}.png", mode="P", size=SIZE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        mask = Image.fromarray(ids(values, size).astype(np.uint8), mode="L")
        if mode == "P":
            palette = mask
            mask = Image.new("P", (size[1], size[0]))
            mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
            mask.putdata(list(palette.tobytes()))
        mask.save(folder / pattern.format(n))
    return folder


def video(path: Path, count=12, noisy=False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24, options={"threads": "1", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for n in range(count):
            noise = np.random.default_rng(n).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise if noisy else picture(n), "rgb24")))
        out.mux(stream.encode())
    return path


def meta(path: Path, table: dict[str, dict[int, str]], **more) -> Path:
    videos = {v: {"objects": {str(i): {"category": c, "frames": []} for i, c in o.items()}} for v, o in table.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos} | more))
    return path


# pictures and masks


def test_images_are_read_as_pillow_reads_them(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    for name, mode in (
        ("a.jpg", "RGB"),
        ("b.png", "RGB"),
        ("c.png", "L"),
        ("d.png", "RGBA"),
        ("e.jpg", "CMYK"),
        ("f.webp", "RGB"),
    ):
        Image.fromarray(pixels).convert(mode).save(tmp_path / name)
        expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)


def test_masks_are_integers(tmp_path):
    values = ids([0, 1, 2, 7, 255])
    masks(tmp_path, [0], [0, 1, 2, 7, 255])
    masks(tmp_path, [1], [0, 1, 2, 7, 255], mode="L")
    np.testing.assert_array_equal(read_mask(tmp_path / "00000.png"), values)
    np.testing.assert_array_equal(read_mask(tmp_path / "00001.png"), values)
    Image.fromarray((ids([0, 300, 70]) * 100).astype(np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png"), ids([0, 300, 70]) * 100)
    Image.fromarray(ids([0, 1]).astype(bool)).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "one.png"), ids([0, 1]))
    Image.fromarray(np.repeat(values[..., None], 3, -1).astype(np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), values)
    assert read_mask(tmp_path / "one.png").dtype == np.int64


@pytest.mark.parametrize("name, words", [("colour.png", "coloured"), ("mask.jpg", "is a JPEG"), ("cut.png", "cannot be read"), ("text.png", "no picture"), ("empty.png", "is empty"), ("none.png", "no such file")])  # fmt: skip
def test_wrong_masks(tmp_path, name, words):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(ids([0, 1]).astype(np.uint8)).save(tmp_path / "mask.jpg")
    (tmp_path / "cut.png").write_bytes((tmp_path / "colour.png").read_bytes()[:600])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    with pytest.raises(VideoError, match=words):
        read_mask(tmp_path / name)


def test_to_classes_is_a_table():
    rng = np.random.default_rng(0)
    for _ in range(20):
        instances = rng.choice([0, 1, 2, 3, 4, 300, 255], size=(5, 6))
        objects = dict(zip([1, 2, 3, 300], rng.permutation(4) + 1))
        expected = np.empty_like(instances)
        for at in np.ndindex(instances.shape):  # pixel by pixel
            i = int(instances[at])
            expected[at] = 0 if i == 0 else objects.get(i, 255)
        np.testing.assert_array_equal(to_classes(instances, objects), expected)


def test_natural_order():
    names = [f"img_{i}.jpg" for i in range(1, 12)]
    assert sorted(np.random.default_rng(0).permutation(names).tolist(), key=natural_key) == names
    assert sorted(["b1", "a10", "a9", "10", "9"], key=natural_key) == ["9", "10", "a9", "a10", "b1"]


# folders of frames


def test_frames_in_natural_order_past_hidden_and_foreign_files(tmp_path):
    folder = frames(tmp_path / "clip", range(1, 12), "img_{}.png")
    for name in (".hidden.png", "._img_1.png", "Thumbs.db", "notes.txt", ".DS_Store", "@eaDir"):
        (folder / name).touch()
    source = find_sources(folder)[0]
    assert source.files == [f"img_{i}.png" for i in range(1, 12)]
    np.testing.assert_array_equal(source.frames([9, 0, 9]), np.stack([picture(10), picture(1), picture(10)]))
    assert source.size == SIZE and source.fps == 24 and source.num_frames == 11


@pytest.mark.parametrize(
    "numbers, kwargs, starts",
    [
        ([0, 5, 10, 20], dict(numbering=30.0), [0, 5 / 30, 10 / 30, 20 / 30]),
        ([3, 4, 5], dict(numbering=24.0), [0, 1 / 24, 2 / 24]),
        ([0, 5, 10, 20], dict(rate=6.0), [0, 1 / 6, 2 / 6, 4 / 6]),
        ([7], dict(), [0]),
        ([0, 10, 20], dict(), [0, 1 / 24, 2 / 24]),
    ],
)
def test_starts_come_from_the_numbers_in_the_names(tmp_path, numbers, kwargs, starts):
    source = FolderSource("a", str(frames(tmp_path / "a", numbers)), **kwargs)
    np.testing.assert_allclose(source.starts, starts, atol=1e-12)


def test_names_without_usable_numbers_are_counted(tmp_path):
    for folder, names in (
        ("words", ["a", "b", "c"]),
        ("twice", ["left_1", "right_1", "z_0"]),
        ("long", ["9" * 30 + "1", "9" * 30 + "2", "x"]),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(picture(1)).save(tmp_path / folder / f"{name}.png")
        np.testing.assert_allclose(FolderSource("a", str(tmp_path / folder)).starts, np.arange(3) / 24)


def test_sparse_masks_go_by_name(tmp_path):
    frames(tmp_path / "f", [0, 5, 10, 15])
    masks(tmp_path / "m", [10], [0, 3])
    source = FolderSource("a", str(tmp_path / "f"), mask_folder=str(tmp_path / "m"), objects={3: 2})
    assert source.has_masks and source.annotated.tolist() == [2]
    found = source.masks([0, 2, 3])
    assert found.dtype == np.int64 and found.shape == (3, *SIZE)
    assert (found[[0, 2]] == 255).all()
    np.testing.assert_array_equal(found[1], ids([0, 2]))
    np.testing.assert_array_equal(source.instances([2])[0], ids([0, 3]))
    assert (source.masks([1]) == 255).all()


def test_white_means_object_in_grey_masks_only(tmp_path):
    frames(tmp_path / "f", range(3))
    make = lambda name, **k: FolderSource("a", str(tmp_path / "f"), mask_folder=str(masks(tmp_path / name, **k)))  # noqa: E731
    assert set(np.unique(make("white", numbers=range(3), values=[0, 255], mode="L").instances([0, 1]))) == {0, 1}
    assert set(np.unique(make("void", numbers=range(3), values=[0, 1, 255], mode="L").instances([0]))) == {0, 1, 255}
    assert set(np.unique(make("palette", numbers=range(3), values=[0, 255]).instances([0]))) == {0, 255}
    late = masks(tmp_path / "late", [0], [0], mode="L")
    masks(late, [2], [0, 255], mode="L")
    source = FolderSource("a", str(tmp_path / "f"), mask_folder=str(late))
    assert [set(np.unique(m)) for m in source.instances([0, 1, 2])] == [{0}, {255}, {0, 1}]


def test_faults_of_a_folder(tmp_path):
    folder = frames(tmp_path / "f", range(3))
    Image.fromarray(picture(1, (12, 12))).save(folder / "00003.jpg")
    source = FolderSource("a", str(folder))
    with pytest.raises(VideoError, match="differ in size"):
        source.frames([0, 3])
    with pytest.raises(VideoError, match="has no masks"):
        source.masks([0])
    with pytest.raises(TimetError, match="numbered 0 to 3"):
        source.frames([4])
    stray = FolderSource("a", str(folder), mask_folder=str(masks(tmp_path / "m", [90])))
    with pytest.raises(VideoError, match="must share their names"):
        stray.masks([0])
    masks(tmp_path / "n", [0])
    masks(tmp_path / "n", [1], size=(12, 12))
    with pytest.raises(VideoError, match="differ in size"):
        FolderSource("a", str(folder), mask_folder=str(tmp_path / "n")).masks([0, 1])
    (tmp_path / "void").mkdir()
    with pytest.raises(VideoError, match="holds no frames"):
        _ = FolderSource("a", str(tmp_path / "void")).num_frames
    (folder / "00002.jpg").write_bytes(b"")
    with pytest.raises(VideoError, match="is empty"):
        source.frames([2])
    assert source.frames([1]).shape == (1, *SIZE, 3)


def test_sources_travel_light(tmp_path):
    source = FolderSource("a", str(frames(tmp_path / "f", range(200))))
    _ = source.starts, source.files
    assert len(pickle.dumps(source)) < 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).frames([3])[0], source.frames([3])[0])


# layouts


@pytest.fixture
def sets(tmp_path) -> Path:
    "The usual sets, two sequences each."
    root = tmp_path / "sets"
    for name in ("dog", "swan"):
        for part, values in (("DAVIS16", [0, 255]), ("DAVIS17", [0, 1, 2])):
            frames(root / part / "JPEGImages/480p" / name, range(4))
            masks(root / part / "Annotations/480p" / name, range(4), values, mode="L" if values[-1] == 255 else "P")
        frames(root / "DAVIS17/JPEGImages/Full-Resolution" / name, range(4), size=(48, 80))
        masks(root / "DAVIS17/Annotations/Full-Resolution" / name, range(4), size=(48, 80))
        for part in ("train", "valid"):
            frames(root / "YTVOS" / part / "JPEGImages" / name, range(0, 20, 5))
            masks(root / "YTVOS" / part / "Annotations" / name, [0, 15] if part == "train" else [0], [0, 1, 2])
        frames(root / "YTVOS_nested/train1/JPEGImages/all" / name, range(0, 20, 5))
        masks(root / "YTVOS_nested/train1/Annotations/all" / name, [5], [0, 1, 2])
        frames(root / "MOSE/train/JPEGImages" / name, range(4))
        masks(root / "MOSE/train/Annotations" / name, range(4))
        frames(root / "Kinetics/walking dogs" / name, range(1, 5), "img_{:05d}.jpg")
        video(root / "videos_tree" / name / "clip.mp4")
    table = {"dog": {1: "dog", 2: "person"}, "swan": {1: "person", 2: "bird"}}
    meta(root / "DAVIS16/meta.json", {"dog": {1: "dog"}, "swan": {1: "bird"}})
    meta(root / "YTVOS/train/meta.json", table)
    (root / "YTVOS/valid/meta.json").write_text(json.dumps({"videos": {"dog": {"objects": {"1": {"frames": []}}}}}))
    meta(root / "YTVOS_nested/train1/meta.json", table)
    (root / "DAVIS16/ImageSets/480p").mkdir(parents=True)
    (root / "DAVIS16/ImageSets/480p/val.txt").write_text(
        "/JPEGImages/480p/swan/00000.jpg /Annotations/480p/swan/00000.png\n/JPEGImages/480p/swan/00001.jpg x\n"
    )
    (root / "DAVIS17/ImageSets/2017").mkdir(parents=True)
    (root / "DAVIS17/ImageSets/2016").mkdir(parents=True)
    (root / "DAVIS17/ImageSets/2017/val.txt").write_text("swan\n")
    (root / "DAVIS17/ImageSets/2016/val.txt").write_text("dog\n")
    for v in ("P01_01", "P01_103"):
        frames(root / "EPIC" / v[:3] / v, range(1, 5), "frame_{:010d}.jpg")
        frames(root / "VISOR/JPEGImages/480p" / f"{v}_seq_00001", [140, 200, 330], v + "_frame_{:010d}.jpg")
        masks(root / "VISOR/Annotations/480p" / f"{v}_seq_00001", [140, 330], pattern=v + "_frame_{:010d}.png")
    return root


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
    for group, video in (("P01", "P01_01"), ("P02", "P02_101")):
        frames(tmp_path / "EPIC/train/480p" / group / video, range(1, 61, 3), "frame_{:010d}.jpg")
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


def test_nothing_is_written(sets):
    def state() -> dict:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(sets.rglob("*"))}

    before = state()
    for child in sorted(sets.iterdir()):
        split = "train" if child.name == "YTVOS" else None
        for source in find_sources(child, split=split):
            source.frames([0])
        verify(child, split=split, workers=1)
    assert state() == before


# verify


def test_verify_lists_what_is_damaged(sets, tmp_path, capsys):
    assert verify(sets / "DAVIS17").problems == ()
    root = sets / "DAVIS16"
    dog, swan = (root / "JPEGImages/480p" / n for n in ("dog", "swan"))
    (dog / "00001.jpg").write_bytes((dog / "00001.jpg").read_bytes()[:-100])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(dog / "00002.jpg")
    rotten = bytearray((dog / "00002.jpg").read_bytes())
    rotten[-300:-200] = bytes(100)
    (dog / "00002.jpg").write_bytes(rotten)
    (swan / "00003.jpg").write_text("text")
    Image.fromarray(picture(1, (12, 12))).save(swan / "00002.jpg")
    masks(root / "Annotations/480p/dog", [0], size=(12, 12))
    cut = root / "Annotations/480p/swan/00001.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    report = verify(root)
    said = "\n".join(reason for _, reason in report.problems)
    for words in ("00001.jpg cannot be read", "00002.jpg is damaged", "00003.jpg cannot be read", "differ in size", "the mask is (12, 12)", "00001.png cannot be read"):  # fmt: skip
        assert words in said
    assert (report.clips, report.damaged, len(report.problems)) == (2, 2, 6)
    assert report.frames == 5 and report.masks == 7

    with pytest.raises(SystemExit) as stop:
        main(["verify", str(root), "--json", str(tmp_path / "r.json"), "--workers", "1"])
    out = capsys.readouterr().out
    assert stop.value.code == 1 and "2 of 2 clips have faults" in out and "frames/s" in out
    assert json.loads((tmp_path / "r.json").read_text())["damaged"] == 2


def test_verify_of_videos(tmp_path, capsys):
    video(tmp_path / "v/good.mp4", 30, noisy=True)
    data = bytearray((tmp_path / "v/good.mp4").read_bytes())
    begin = data.index(b"mdat")
    for place in range(begin + 800, len(data) - 2500, 37):
        data[place] ^= 0x5A
    (tmp_path / "v/rot.mp4").write_bytes(data)
    (tmp_path / "v/text.mp4").write_text("hello")
    (tmp_path / "v/empty.webm").touch()
    report = verify(tmp_path / "v")
    assert {name for name, _ in report.problems} == {"rot", "text", "empty"}
    assert "of 30 frames are damaged or lost" in dict(report.problems)["rot"]
    assert report.clips == 4 and 30 <= report.frames <= 60
    main(["verify", str(tmp_path / "v/good.mp4")])
    assert "nothing is damaged" in capsys.readouterr().out


def test_a_mask_beyond_the_video_is_told(tmp_path):
    video(tmp_path / "videos/a.mp4", 4)
    masks(tmp_path / "masks/a", [0, 9])
    assert "belongs to frame 9, the last frame is 3" in check_source(find_sources(tmp_path)[0])[2][0]


@pytest.mark.parametrize(
    "words, status", [(["verify", "nowhere"], 2), (["show", "nowhere"], 2), (["show"], 2), (["walk", "x"], 2)]
)
def test_command_line_mistakes(words, status, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == status
    assert "Traceback" not in capsys.readouterr().err


def test_show(sets, capsys):
    main(["show", str(sets / "YTVOS/train")])
    out = capsys.readouterr().out
    assert "2 clips (YouTube-VOS, 3 classes)" in out and "6.00 fps  40x24, 2 masks" in out and "1 bird" in out
    (sets / "videos_tree/dog/broken.mp4").write_text("x")
    main(["show", str(sets / "videos_tree"), "--most", "2"])
    out = capsys.readouterr().out
    assert "is not a video" in out and "... and 1 more" in out


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
    assert verify(real_clips / "videos").problems == ()
    assert os.path.isabs(found[0].path)
