"""Every kind of question is answered by its protocol."""

from pathlib import Path

import numpy as np
import pytest

from timet.core import samples_dir
from timet.data.find import find_sources
from timet.data.images import find_images
from timet.paper.answers import Compute, answer, configure, read_report
from timet.paper.networks import UNAVAILABLE, Found
from timet.paper.places import Place, find_data
from timet.paper.plan import make_plan
from timet.paper.questions import EXPERIMENTS, ask
from timet.reproduce import ask_one
from timet.run.check import check

KINDS = {
    f"{q.protocol} {dict(q.settings).get('head', '')}": (name, key)
    for name, e in EXPERIMENTS.items() for key, (n, q) in e.cells.items() if n not in UNAVAILABLE
}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS])
def test_every_kind_of_question_is_answered(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if kind.startswith("forwarding"):
        pytest.importorskip("cv2")
    name, key = KINDS[kind]
    found, question, place = make_plan(EXPERIMENTS[name], samples_dir()).cells[key]
    got = ask_one(found, question, place, Compute(seeds=1, device="cpu", cache=tmp_path))
    assert got.settings and all(0 < v < 100 for v in got.values) and not capsys.readouterr().out
    if question.protocol in ("maps", "overlay"):
        frames, maps = got.pictures["frames"], got.pictures["maps"]
        assert frames.ndim == 5 and maps.shape[:2] == frames.shape[:2] and len(got.pictures["names"]) == len(frames)
    elif question.protocol == "counts":
        assert sum(got.per_class.values()) == sum(len(s.objects) for s in find_sources(place.path))
    else:
        assert got.values and np.isfinite(got.mean)


def test_foreground_with_and_without_classes(tmp_path: Path) -> None:
    def ask_for(name: str, row: str, column: str):
        cell = make_plan(EXPERIMENTS[name], samples_dir()).cells[row, column]
        return answer(*cell, Compute(seeds=2, device="cpu", cache=tmp_path))

    jaccard, cbfe = ask_for("table6", "TimeT", "VOC"), ask_for("table10", "+CBFE", "mIoU")
    assert len(jaccard.values) == 1 and not jaccard.per_class and jaccard.settings["ground_truth"] == "its own"
    assert len(cbfe.values) == 2 and "beetle" in cbfe.per_class and cbfe.settings["matching"] == "hungarian"


def test_a_report_is_read_as_it_is_written() -> None:
    rows = [
        {"k": 21, "mean": 0.5, "std": 0.1, "values": np.array([0.4, 0.6]), "per_class": {"cat": 0.5, "dog": np.nan}}
    ]
    for report in ({"scores": rows}, {"scores": {"checkpoint": rows}}, {"jaccard": 0.3, "classes": rows[0]}):
        got = read_report(report | {"counts": np.eye(2), "network": "vit"})
        assert got.values == (40.0, 60.0) and got.per_class == {"cat": 50.0}
        assert got.settings == {"network": "vit", "k": 21}
    assert read_report({"scores": [{"method": "ff", "mean": 0.25}]}).values == (25.0,)


def test_configs_find_the_papers_folders(voc: Path, ytvos: Path, tmp_path: Path, tree) -> None:
    "The part that is scored and the part that is learned from are those of the place, in every config."
    davis = tree(tmp_path / "sets/DAVIS", "JPEGImages/480p/camel", "Annotations/480p/camel",
                 ImageSets__2017__val_txt="camel\n", ImageSets__2017__train_txt="bear\n")  # fmt: skip
    places, compute = find_data(tmp_path / "sets"), Compute(seeds=3, batch_size=7, precision="fp32")
    for e in EXPERIMENTS.values():
        for name, question in e.cells.values():
            if question.data != "visor":
                config = configure(Found(name, "hub" if name else ""), question, places[question.data], compute)
                check(config)
                assert config.data == places[question.data].path and getattr(config, "seeds", 3) == 3
                assert config.batch_size == 7 if question.protocol not in ("probe", "incontext") else True
    foreground = {
        d: configure(Found("TimeT", "hub"), ask("foreground", d), places[d], compute) for d in ("voc", "davis", "ytvos")
    }
    assert [(c.split, c.train_split) for c in foreground.values()] == [
        ("val", "train"), ("2017/val", "2017/train"), (str(ytvos / "val.txt"), str(ytvos / "train.txt"))]  # fmt: skip
    assert foreground["davis"].data == davis


def test_pictures_of_davis_are_frames_of_its_scored_part(tmp_path: Path, tree) -> None:
    from PIL import Image

    root = tree(tmp_path / "DAVIS", ImageSets__2017__val_txt="camel\n", ImageSets__2017__train_txt="bear\n")
    for video in ("bear", "camel"):
        for kind, end in (("JPEGImages", "jpg"), ("Annotations", "png")):
            (root / kind / "480p" / video).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB" if end == "jpg" else "L", (16, 16), 0).save(
                    root / kind / "480p" / video / f"{i:05d}.{end}"
                )
    place: Place = find_data(root)["davis"]
    config = configure(Found("TimeT", "hub"), ask("foreground", "davis", per_video=2), place, Compute())
    for split, video in ((config.split, "camel"), (config.train_split, "bear")):
        assert {n.split("/")[0] for n in find_images(config.data, split, per_video=2).names} == {video}
