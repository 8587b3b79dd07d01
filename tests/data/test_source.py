"""Sequences: pictures and masks as they are stored, folders of frames, and their clocks."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from trees import SIZE, frames, ids, masks, picture

from timet.core import TimetError
from timet.data.find import find_sources
from timet.data.source import FolderSource, assumed_rate, natural_key, picture_size, read_image, read_mask, to_classes
from timet.data.video import VideoError
from timet.pretraining.photos import read_photos

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


def deep_pictures(folder):
    "Pictures of which nothing says what is white, and files of several pictures."
    values = 6700 + np.arange(24 * 40).reshape(24, 40)
    for name, kind in (
        ("u.png", np.uint16),
        ("u.tif", np.uint16),
        ("b.tif", ">u2"),
        ("i.tif", np.int32),
        ("f.tif", np.float32),
    ):
        Image.fromarray(values.astype(kind)).save(folder / name)
    (folder / "p.pgm").write_bytes(b"P5 40 24 65535\n" + values.astype(">u2").tobytes())
    first, *others = [Image.fromarray(picture(n)) for n in (3, 9, 20)]
    for name in ("many.png", "many.webp", "many.tif"):
        first.save(folder / name, save_all=True, append_images=others)
    return 6, 3


def test_pictures_without_a_white_and_stacks_are_refused_by_every_reader(tmp_path):
    deep, stacks = deep_pictures(tmp_path)
    said = []
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(VideoError) as caught:
            read_image(file)
        said.append(str(caught.value))
        assert str(file) in said[-1]
        with pytest.raises(VideoError):
            FolderSource("x", str(tmp_path)).frames([FolderSource("x", str(tmp_path)).files.index(file.name)])
    assert sum("nothing says which value is white; write it with 8 bits" in s for s in said) == deep
    assert sum("holds 3 pictures, where one is wanted" in s for s in said) == stacks
    (tmp_path / "p.pgm").rename(tmp_path / "p.ppm")
    Image.fromarray(picture(5)).save(tmp_path / "good.jpg")
    photos = read_photos(tmp_path, size=8)
    assert len(photos) == 1 and len(photos.lost) == deep + stacks
    assert sum("nothing says which value is white" in s for s in photos.lost) == deep


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_frames_and_photographs_are_upright_as_exif_says(tmp_path, ending):
    pixels = np.full((48, 80, 3), 30, np.uint8)
    pixels[:16, :24] = (250, 200, 60)
    ways = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(pixels),
    }
    for way, expected in ways.items():
        (tmp_path / f"{way}").mkdir()
        exif = Image.Exif()
        exif[0x0112] = way
        file = tmp_path / f"{way}" / f"1.{ending}"
        Image.fromarray(pixels).save(file, exif=exif, **({"lossless": True} if ending == "webp" else {}))
        got = read_image(file)
        assert got.shape == expected.shape and np.abs(got.astype(int) - expected).mean() < 3
        source = FolderSource("x", str(file.parent))
        assert picture_size(file) == source.size == expected.shape[:2]
        np.testing.assert_array_equal(source.frames([0])[0], got)
        photo = read_photos(file.parent, size=16).pixels[0].numpy()
        corner = (
            np.abs(photo[0, ::15, ::15].astype(int) - expected[8::31, 8::63][:2, :2, 0].astype(int)) if way < 5 else 0
        )
        assert np.max(corner) < 60


def test_what_has_no_time_is_known_and_an_assumed_rate_is_said(tmp_path):
    one, loose = frames(tmp_path / "one", [3]), frames(tmp_path / "loose", range(3), "beach{}.jpg")
    (loose / "beach1.jpg").rename(loose / "dog.jpg")
    good = frames(tmp_path / "good", range(3))
    by_name = {s.name: s for s in find_sources(tmp_path)}
    assert by_name["one"].timeless == "is a single picture" and by_name["good"].timeless == ""
    assert by_name["loose"].timeless == "holds pictures that no number puts in order (dog.jpg)"
    assert "pictures of good and 2 other folders follow" in assumed_rate(sorted(by_name.values(), key=lambda s: s.name))
    said = assumed_rate(find_sources(good))
    assert "good" in said and "24 a second are assumed, give --fps" in said
    assert assumed_rate(find_sources(good, fps=12)) == "" and one.is_dir()
    shots = frames(tmp_path / "shots", (1234, 1250, 1251), "IMG_{:04d}.jpg")
    assert find_sources(shots)[0].timeless == "holds photographs, by the names that a camera gave them (IMG_1234.jpg)"
    assert [s.timeless for s in find_sources(tmp_path, fps=12) if s.name in ("shots", "loose")] == ["", ""]
    assert find_sources(frames(tmp_path / "k", range(3), "img_{:05d}.jpg"))[0].timeless == ""
    frames(tmp_path / "DAVIS/JPEGImages/480p/dog", range(3))
    assert assumed_rate(find_sources(tmp_path / "DAVIS")) == ""


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


def test_a_smoothly_resized_mask_is_refused_and_ids_are_not(tmp_path):
    "Grey levels beside 0 and 255 would pass for objects along the edge."
    white, file = np.zeros((40, 60), np.uint8), tmp_path / "m.png"
    white[10:30, 15:45] = 255
    for size in ((30, 20), (90, 70), (200, 130)):
        for how in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
            for mode in ("L", "RGB"):
                Image.fromarray(white).resize(size, how).convert(mode).save(file)
                with pytest.raises(TimetError, match=r"smooth resize.*nearest neighbour"):
                    read_mask(file)
        Image.fromarray(white).resize(size, Image.Resampling.NEAREST).save(file)
        assert set(np.unique(read_mask(file))) == {0, 255}
    named = white.copy()
    named[10:20, 15:30], named[12:15, 32:40], named[0] = 170, 3, 255  # ids beside "ignore": areas, not edges
    Image.fromarray(named).save(file)
    np.testing.assert_array_equal(read_mask(file), named)


def test_masks_of_one_sequence_are_all_white_or_none(tmp_path):
    frames(tmp_path / "f", range(2))
    masks(tmp_path / "m", [0], [0, 255], mode="L")
    masks(tmp_path / "m", [1], [0, 7], mode="L")
    source = FolderSource("a", str(tmp_path / "f"), mask_folder=str(tmp_path / "m"))
    with pytest.raises(TimetError, match=r"00001.png has the ids \[7\] beside masks of a with 0 and 255 alone"):
        source.instances([0, 1])


def test_large_ids_cost_nothing_and_too_large_ones_are_refused(tmp_path):
    np.testing.assert_array_equal(to_classes(np.array([0, 3, 255]), {3: 1, 5 * 10**8: 2}), [0, 1, 255])
    for value in (-1, 65536):
        Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / "m.tif")
        with pytest.raises(TimetError, match="the ids of a mask are 0 to 65535"):
            read_mask(tmp_path / "m.tif")
    Image.fromarray(np.full((4, 4), 33001, np.uint16)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").max() == 33001


def test_colours_of_16_bits_are_no_mask(tmp_path):
    "Pillow reads them with 8 bits: the id 1001 would be 3."

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head, row = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0), b"\0" + struct.pack(">6H", *[1001] * 6)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(TimetError, match="16 bits, of which 8 would be lost"):
        read_mask(tmp_path / "m.png")
