"Labelled pictures: trees laid out as the downloads are, and what must be read out of them."

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timet.core import TimetError, samples_dir
from timet.data.find import find_sources
from timet.data.images import VOC_CLASSES, find_images, frames_as_images

SIZES = {"2007_000033": (30, 50), "2007_000042": (40, 20), "2008_000001": (24, 24), "2008_000002": (24, 36)}
NAMES = list(SIZES)


def ids_of(name: str) -> np.ndarray:
    "The mask of a picture: background, two classes, the band."
    h, w = SIZES[name]
    ids = np.zeros((h, w), np.uint8)
    ids[2:10, 3:12], ids[12:20, 5:15], ids[11] = 15, NAMES.index(name) + 1, 255
    return ids


def save(folder: Path, name: str, ids: np.ndarray, mode: str = "P") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids, mode="L")
    if mode == "P":
        values, picture = picture, Image.new("P", picture.size)
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        picture.putdata(list(values.tobytes()))
    picture.save(folder / f"{name}.png")


def make_voc(base: Path, pictures="JPEGImages", lists="ImageSets/Segmentation") -> Path:
    "Two pictures for validation, one for training, and one with an additional mask alone."
    (base / pictures).mkdir(parents=True)
    (base / lists).mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.fromarray(np.full((*SIZES[name], 3), 40 * i, np.uint8)).save(base / pictures / f"{name}.jpg")
        if i < 3:
            save(base / "SegmentationClass", name, ids_of(name))
    for part, names in {"val": NAMES[:2], "train": NAMES[2:3], "trainval": NAMES[:3]}.items():
        (base / lists / f"{part}.txt").write_text("\n".join(names) + "\n")
    return base


def add_augmented(base: Path, names=NAMES) -> None:
    for name in names:
        save(base / "SegmentationClassAug", name, np.where(ids_of(name) == 255, 0, ids_of(name)).astype(np.uint8), "L")


def test_names_of_the_classes():
    assert len(VOC_CLASSES) == 21 == len(set(VOC_CLASSES)) and VOC_CLASSES[0] == "background"
    assert list(VOC_CLASSES[1:]) == sorted(VOC_CLASSES[1:])


@pytest.mark.parametrize("given", ["VOCdevkit/VOC2012", "VOCdevkit", "."])
def test_the_official_layout_from_wherever_it_is_looked_at(tmp_path, given):
    make_voc(tmp_path / "VOCdevkit" / "VOC2012")
    found = find_images(tmp_path / given)
    assert found.names == NAMES[:2] and found.split == "val" and found.layout == "Pascal VOC" and found.has_masks
    assert found.classes[20] == "tvmonitor" and len(found.classes) == 21 and found.semantic
    for i, name in enumerate(found.names):
        assert found.image(i).shape == (*SIZES[name], 3) and found.image(i).dtype == np.uint8
        np.testing.assert_array_equal(found.mask(i), ids_of(name))
    assert found.mask(0).dtype.kind == "i"
    assert find_images(tmp_path / given, "trainval").names == NAMES[:3]
    assert "2 images (Pascal VOC, val, masks)" in repr(found)


def test_the_download_with_a_folder_of_its_own(tmp_path):
    make_voc(tmp_path / "VOCtrainval_11-May-2012" / "VOCdevkit" / "VOC2012")
    assert len(find_images(tmp_path)) == 2


@pytest.mark.parametrize(
    "place", ["ImageSets/Segmentation/trainaug.txt", "ImageSets/SegmentationAug/train_aug.txt", None]
)
@pytest.mark.parametrize("split", ["trainaug", "train_aug"])
def test_trainaug_with_and_without_a_list(tmp_path, place, split):
    base = make_voc(tmp_path)
    add_augmented(base)
    if place:
        (base / place).parent.mkdir(exist_ok=True)
        lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" if "Aug/" in place else n for n in NAMES[2:]]
        (base / place).write_text("\n".join(lines))
    found = find_images(tmp_path, split)
    assert found.names == NAMES[2:]  # never a validation picture
    assert 255 not in found.mask(0) and 15 in found.mask(0)  # from SegmentationClassAug
    assert 255 in find_images(tmp_path, "train").mask(0)  # from SegmentationClass


def test_trainaug_takes_the_first_masks_where_there_are_no_later_ones(tmp_path):
    base = make_voc(tmp_path)
    add_augmented(base, NAMES[3:])
    (base / "ImageSets/Segmentation/trainaug.txt").write_text("\n".join(NAMES[2:]))
    found = find_images(tmp_path, "trainaug")
    assert [255 in found.mask(i) for i in range(2)] == [True, False]


def test_leoparts_packing(tmp_path):
    base = make_voc(tmp_path / "voc_data", "images", "sets")
    add_augmented(base, NAMES[2:])
    (base / "sets/trainaug.txt").write_text("\n".join(NAMES[2:]))
    for given in (base, tmp_path):
        assert find_images(given).names == NAMES[:2]
        assert find_images(given, "trainaug").names == NAMES[2:]
    assert find_images(base).layout == "Pascal VOC, Leopart's packing"


def test_pictures_without_masks_and_a_list_of_ones_own(tmp_path):
    base = make_voc(tmp_path)
    (base / "ImageSets/Segmentation/test.txt").write_text(NAMES[3])
    found = find_images(base, "test")
    assert not found.has_masks and found.image(0).shape == (24, 36, 3)
    with pytest.raises(TimetError, match=r"2008_000002 .* has no mask"):
        found.mask(0)
    (tmp_path / "few.txt").write_text(f"{NAMES[2]}\n\n{NAMES[0]}\n")
    assert find_images(base, str(tmp_path / "few.txt")).names == [NAMES[2], NAMES[0]]


def test_what_is_missing_is_said(tmp_path):
    base = make_voc(tmp_path)
    for split, words in {
        "test": "no list for split 'test'; looked for ImageSets/Segmentation/test.txt.* there are train, trainval, val",
        "trainaug": "needs the masks in SegmentationClassAug",
    }.items():
        with pytest.raises(TimetError, match=words):
            find_images(base, split)
    (base / "SegmentationClass" / f"{NAMES[1]}.png").unlink()
    with pytest.raises(TimetError, match=f"1 of 2 pictures .* have no mask in SegmentationClass, first {NAMES[1]}"):
        find_images(base)
    (base / "JPEGImages" / f"{NAMES[1]}.jpg").unlink()
    with pytest.raises(TimetError, match=f"lacks 1 of the 2 pictures asked for, first {NAMES[1]}"):
        find_images(base)
    with pytest.raises(TimetError, match="it is not there; give the folder of Pascal VOC"):
        find_images(base / "nowhere")
    with pytest.raises(TimetError, match="is an address, and URLs are not read"):
        find_images("https://example.org/VOC2012")
    (tmp_path / "VOC.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(TimetError, match="is a zip archive; unpack it and give the folder"):
        find_images(tmp_path / "VOC.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        TimetError, match=r"looked for JPEGImages with SegmentationClass .* images with .* labelled videos"
    ):
        find_images(tmp_path / "empty")
    (base / "ImageSets/Segmentation/val.txt").unlink()
    add_augmented(base)
    with pytest.raises(TimetError, match="no list for split 'val'"):  # nothing tells what must be kept out
        find_images(base, "trainaug")


def test_coloured_masks_are_refused(tmp_path):
    base = make_voc(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)).save(
        base / "SegmentationClass" / f"{NAMES[0]}.png"
    )
    with pytest.raises(TimetError, match="palette or grey PNG"):
        find_images(base).mask(0)


def plain(root: Path, names, mode="P", values=(0, 1, 2)) -> None:
    for name in names:
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 12, 3), 9, np.uint8)).save(root / "images" / f"{name}.png")
        ids = np.resize(np.array(values, np.uint8), (8, 12))
        save((root / "masks" / name).parent, Path(name).name, ids, mode)


def test_folders_of_ones_own(tmp_path):
    plain(tmp_path / "a", ["x10", "x2"])
    (tmp_path / "a" / "classes.txt").write_text("background\ncat\ndog\n")
    found = find_images(tmp_path / "a")
    assert found.names == ["x2", "x10"] and found.split == "all" and found.classes[2] == "dog"
    assert np.unique(found.mask(0)).tolist() == [0, 1, 2]
    with pytest.raises(TimetError, match="no part 'train'; there are no parts"):
        find_images(tmp_path / "a", "train")
    (tmp_path / "a" / "train.txt").write_text("x10\n")
    assert find_images(tmp_path / "a", "train").names == ["x10"]
    with pytest.raises(TimetError, match="no part 'val'; there are train"):
        find_images(tmp_path / "a")
    plain(tmp_path / "b", ["train/p", "val/q"])
    assert find_images(tmp_path / "b").names == ["q"] and find_images(tmp_path / "b", "train").has_masks
    plain(tmp_path / "c" / "val", ["r"])
    assert find_images(tmp_path / "c").names == ["r"]


@pytest.mark.parametrize(
    "mode, values, want", [("L", (0, 255), [0, 1]), ("P", (0, 255), [0, 255]), ("L", (0, 3, 255), [0, 3, 255])]
)
def test_white_means_object_where_nothing_else_is_there(tmp_path, mode, values, want):
    plain(tmp_path, ["a", "b"], mode, values)
    found = find_images(tmp_path)
    assert np.unique(found.subset([1]).mask(0)).tolist() == want


def test_frames_of_videos(tmp_path):
    sources = find_sources(samples_dir() / "heldout")
    found = frames_as_images(sources, 3)
    assert len(found) == 36 and found.classes == sources.classes and found.semantic and found.has_masks
    source, last = sources[1], sources[1].annotated[-1]
    assert found.names[3:6] == [f"clip_01/{i:05d}" for i in (0, round(last / 2), last)]
    np.testing.assert_array_equal(found.image(5), source.frames([last])[0])
    np.testing.assert_array_equal(found.mask(5), source.masks([last])[0])
    again = pickle.loads(pickle.dumps(found.subset([5, 0])))
    np.testing.assert_array_equal(again.mask(0), found.mask(5))
    assert find_images(samples_dir() / "heldout", per_video=3).names == found.names
    assert find_images(samples_dir(), "heldout", per_video=1).split == "heldout"
    drawn = find_images(samples_dir() / "heldout", "val20", per_video=1)
    assert drawn.split == "val20" and len(drawn) == 3


def test_only_labelled_frames_are_taken(tmp_path):
    for i in range(0, 50, 5):
        (tmp_path / "JPEGImages/v").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 24, 3), i, np.uint8)).save(tmp_path / f"JPEGImages/v/{i:05d}.jpg")
        if i in (10, 25, 40):
            save(tmp_path / "Annotations/v", f"{i:05d}", ids_of("2008_000001"))
    found = frames_as_images(find_sources(tmp_path), 4)
    assert found.names == ["v/00002", "v/00005", "v/00008"] and not found.semantic
    for i in range(3):
        assert found.items[i].files[0].endswith(f"{(10, 25, 40)[i]:05d}.jpg")


def test_nothing_is_written(tmp_path):
    make_voc(tmp_path)
    add_augmented(tmp_path)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    for split in ("val", "train", "trainaug"):
        found = find_images(tmp_path, split)
        found.image(0), found.mask(0)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_real_davis(real_clips):
    found = find_images(real_clips / "davis16", per_video=2)
    assert found.has_masks and found.layout == "frames of DAVIS"
    assert found.image(0).shape[:2] == found.mask(0).shape


def test_lists_and_classes_in_utf_16(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for name in ("a b", "c"):
            Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / part / f"{name}.png")
    (tmp_path / "val.txt").write_text("a b\r\n", encoding="utf-16")
    (tmp_path / "classes.txt").write_text("ground\nsky\n", encoding="utf-8-sig")
    found = find_images(tmp_path, "val")
    assert [item.name for item in found] == ["a b"] and found.classes == {0: "ground", 1: "sky"}
