"""Folders that look like the paper's data."""

from pathlib import Path

import pytest


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
    return _tree(tmp_path / "sets/VOCdevkit/VOC2012", "JPEGImages", "SegmentationClass", "SegmentationClassAug",
                 ImageSets__Segmentation__val_txt="2007_000033\n2007_000042\n")  # fmt: skip


@pytest.fixture
def ytvos(tmp_path: Path) -> Path:
    return _tree(tmp_path / "sets/ytvos/train", "JPEGImages/003234408d", "JPEGImages/0043f083b5", "Annotations/003234408d",
                 meta_json='{"videos": {}}', val_txt="003234408d\n", train_txt="0043f083b5\n")  # fmt: skip
