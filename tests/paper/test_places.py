"""The data are recognised by what lies in a folder."""

from pathlib import Path

import pytest

from timet.core import TimetError
from timet.paper.places import find_data


def test_sets_are_found_where_they_lie(voc: Path, ytvos: Path, tmp_path: Path, tree) -> None:
    tree(tmp_path / "sets/DAVIS", "JPEGImages/480p/bear", "JPEGImages/480p/camel", "Annotations/480p/bear",
         ImageSets__2017__val_txt="camel\n", ImageSets__2017__train_txt="bear\n")  # fmt: skip
    tree(tmp_path / "sets/visor", "JPEGImages/480p/P01_107_seq_00001", "Annotations/480p/P01_107_seq_00001")
    tree(tmp_path / "sets/epic/train/480p", "P01/P01_01", "P02/P02_01")
    found = find_data(tmp_path / "sets")
    assert {k: (p.path.relative_to(tmp_path / "sets").as_posix(), p.count) for k, p in found.items()} == {
        "voc": ("VOCdevkit/VOC2012", 2), "ytvos": ("ytvos/train", 1), "davis": ("DAVIS", 1), "visor": ("visor", 1),
        "epic": ("epic/train/480p", 2)}  # fmt: skip
    assert (found["davis"].split, found["davis"].train, found["voc"].train) == ("2017/val", "2017/train", "trainaug")
    assert Path(found["ytvos"].split).read_text() == "003234408d\n" and not found["ytvos"].note
    assert (found["davis"].learn, found["ytvos"].learn) == (1, 1)


def test_sets_that_only_look_right_are_left(tmp_path: Path, tree) -> None:
    tree(tmp_path / "valid", "JPEGImages/a", "Annotations/a", meta_json="{}")
    tree(tmp_path / "VOC", "JPEGImages", "SegmentationClass")  # without a list
    assert find_data(tmp_path) == {}
    with pytest.raises(TimetError, match="no folder"):
        find_data(tmp_path / "gone")


def test_a_fifth_is_drawn_where_no_list_names_it(tmp_path: Path, tree) -> None:
    tree(tmp_path, *(f"{kind}/v{i}" for kind in ("JPEGImages", "Annotations") for i in range(10)), meta_json="{}")
    place = find_data(tmp_path)["ytvos"]
    assert (place.split, place.train, place.count) == ("val20", "train80", 2) and "drawn" in place.note


def test_leoparts_packing(tmp_path: Path, tree) -> None:
    tree(tmp_path, "images", "SegmentationClass", sets__val_txt="a\n")
    assert find_data(tmp_path)["voc"].train is None
