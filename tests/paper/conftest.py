"""Folders that look like the paper's data."""

from pathlib import Path

import pytest
from PIL import Image


def _tree(root: Path, *folders: str, **files: str) -> Path:
    "Folders, and files as `path=content` with `__` for `/`."
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_txt", ".txt").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def tree():
    return _tree


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    "Two pictures of 8 x 8 pixels to score and one to learn from, with masks."
    lists = {"val": ("2007_000033", "2007_000042"), "train": ("2008_000008",), "trainaug": ("2008_000008",)}
    files = {f"ImageSets__Segmentation__{part}_txt": "\n".join(names) + "\n" for part, names in lists.items()}
    root = _tree(
        tmp_path / "sets/VOCdevkit/VOC2012", "JPEGImages", "SegmentationClass", "SegmentationClassAug", **files
    )
    for name in {name for names in lists.values() for name in names}:
        Image.new("RGB", (8, 8)).save(root / f"JPEGImages/{name}.jpg")
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            Image.new("L", (8, 8), 1).save(root / f"{folder}/{name}.png")
    return root


@pytest.fixture
def ytvos(tmp_path: Path) -> Path:
    return _tree(tmp_path / "sets/ytvos/train", "JPEGImages/003234408d", "JPEGImages/0043f083b5", "Annotations/003234408d",
                 meta_json='{"videos": {}}', val_txt="003234408d\n", train_txt="0043f083b5\n")  # fmt: skip
