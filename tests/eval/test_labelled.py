"""Labelled sets for probes and memories: Pascal VOC from end to end, what is refused, several processes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from timet.core import TimetError, samples_dir
from timet.data.images import VOC_CLASSES
from timet.eval import incontext, options, probe, recall, recipe
from timet.eval.labelled import count_classes, image_pair, need_classes, read_batch
from timet.eval.memory import IncontextSettings

ROOMS = {"probe": probe, "incontext": incontext}
TINY = "--image-size 48 --device cpu --no-cache".split()
OPTIONS = {"probe": ["--head", "linear", "--epochs", "1", "--batch-size", "2"], "incontext": ["--memory-size", "400"]}
SIZES = {"2007_000032": (40, 56), "2007_000033": (50, 36), "2007_000039": (44, 44), "2008_000002": (36, 60)}


def palette_mask(ids, file):
    "A PNG whose pixels are numbers of colours, as VOC's are."
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids, mode="L")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    assert picture.mode == "P"
    picture.save(file)


@pytest.fixture
def voc(tmp_path):
    "Four pictures of persons and trains as the download has them: two train, one val, one with an additional mask alone."
    base, rng = tmp_path / "VOCdevkit" / "VOC2012", np.random.default_rng(1)
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    names = list(SIZES)
    for name, (h, w) in SIZES.items():
        ids = np.zeros((h, w), np.uint8)
        ids[: h // 2, : w // 2], ids[h // 2 :, w // 2 :], ids[h // 2] = 15, 19, 255
        pixels = np.where(ids[..., None] == 15, (220, 60, 40), np.where(ids[..., None] == 19, (30, 60, 220), 128))
        pixels = (pixels + rng.integers(-9, 10, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(base / "JPEGImages" / f"{name}.jpg")
        palette_mask(ids, base / "SegmentationClassAug" / f"{name}.png")
        if name != names[3]:
            palette_mask(ids, base / "SegmentationClass" / f"{name}.png")
    for part, chosen in {"train": names[:2], "val": names[2:3], "trainaug": [*names[:2], names[3]]}.items():
        (base / "ImageSets/Segmentation" / f"{part}.txt").write_text("\n".join(chosen) + "\n")
    return tmp_path / "VOCdevkit"


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("name", list(ROOMS))
def test_command_on_pascal_voc(voc, tmp_path, capsys, name, augmented):
    weights, out = samples_dir() / "weights/timet_tiny.safetensors", tmp_path / "report.json"
    how = {"probe": ["--variant", "neco" if augmented else "paper"],
           "incontext": [] if augmented else ["--no-augment"]}[name]  # fmt: skip
    files = sorted(voc.rglob("*"))
    ROOMS[name].main([str(weights), "--data", str(voc), "--out", str(out), *TINY, *OPTIONS[name], *how])
    said, report = capsys.readouterr().out, json.loads(out.read_text())
    assert list(report["per_class"]) == ["background", "person", "train"]
    assert "3 images" in said and "person" in said and "1 " in said
    counts = np.array(report["counts"])
    assert counts.shape == (21, 21) and set(np.flatnonzero(counts.sum(0))) == {0, 15, 19}
    assert report["settings"]["train"] == 3 and report["settings"]["val"] == 1
    assert sorted(voc.rglob("*")) == files
    if name == "probe":
        # the second score is at 448, where the middle line does not count
        assert report["settings"]["epochs"] == 1 and 0 < np.sum(report["full_counts"]) < 448 * 448
    else:
        # three colours that are easily told apart
        assert report["direct"] > 0.5


def test_pascal_voc_without_the_additional_masks(voc):
    train, val = image_pair(voc, "train", "val")
    assert (len(train), len(val), train.classes[15], count_classes(train)) == (2, 1, "person", 21)
    assert dict(enumerate(VOC_CLASSES)) == val.classes
    with pytest.raises(TimetError, match="1 are in both"):
        image_pair(voc, "val", "val")
    shutil.rmtree(voc / "VOC2012" / "SegmentationClassAug")
    with pytest.raises(TimetError, match="SegmentationClassAug"):
        image_pair(voc, "trainaug", "val")


@pytest.mark.parametrize("name", list(ROOMS))
def test_only_the_first_process_scores(voc, tmp_path, monkeypatch, capsys, name):
    made, room, out = [], ROOMS[name], tmp_path / "report.json"
    monkeypatch.setattr(room, "this_shard", lambda: (1, 2))
    tokens = options.stored_tokens
    monkeypatch.setattr(room, "stored_tokens", lambda *a: made.append(len(a[2])) or tokens(*a))
    extra = ["--no-augment"] if name == "incontext" else []
    weights = str(samples_dir() / "weights/timet_tiny.safetensors")
    room.main([weights, "--data", str(voc), "--out", str(out), *TINY, *OPTIONS[name], *extra])
    assert made == [3, 1] and not out.exists() and capsys.readouterr().out == ""


@pytest.fixture
def objects(tmp_path):
    "Two videos whose ids are objects of their own, as DAVIS has them."
    root = tmp_path / "DAVIS"
    for video in ("bear", "boat"):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / video).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(root / "JPEGImages/480p" / video / f"{i:05d}.jpg")
            palette_mask(np.eye(24, 32, dtype=np.uint8), root / "Annotations/480p" / video / f"{i:05d}.png")
    (root / "ImageSets/2017").mkdir(parents=True)
    for part in ("train", "val"):
        (root / "ImageSets/2017" / f"{part}.txt").write_text("bear\n" if part == "train" else "boat\n")
    return root


@pytest.mark.parametrize("split", [[], ["--train-split", "train", "--val-split", "val"]])
@pytest.mark.parametrize("name", list(ROOMS))
def test_ids_that_are_no_classes_are_refused(objects, capsys, name, split):
    with pytest.raises(SystemExit) as stop:
        ROOMS[name].main(["random", "--data", str(objects), *split, *TINY])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "not classes" in said and "Traceback" not in said


def test_tokens_of_such_sets_are_refused_too():
    data = SimpleNamespace(
        tokens=np.zeros((2, 4, 3), np.float32), masks=np.zeros((2, 2, 2), int), grid=(2, 2), semantic=False
    )
    for call in (
        lambda: recipe.train_probe(data, data),
        lambda: recall.incontext(data, data, variant=IncontextSettings(memory_size=None)),
        lambda: need_classes(data, of="DAVIS"),
    ):
        with pytest.raises(TimetError, match="not classes"):
            call()


def test_bits_of_bf16_are_read_as_numbers():
    data = SimpleNamespace(tokens=np.full((2, 1, 1), 0x3FC0, np.uint16), masks=np.zeros((2, 2, 2), int))
    assert read_batch(data, [1])[0].tolist() == [[[1.5]]]
