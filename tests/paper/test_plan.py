"""What a table needs, said before it starts."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from timet.paper.networks import Found
from timet.paper.places import find_data
from timet.paper.plan import describe_plan, make_plan, needed_tokens
from timet.paper.questions import EXPERIMENTS, ask, find_experiment


def test_missing_data_is_one_sentence(tmp_path: Path, tree) -> None:
    made = make_plan(find_experiment("table7"), tmp_path)
    assert made.state == "missing"
    assert re.search(r"visor: no folder with .*; get VISOR", made.missing[0])
    half = make_plan(find_experiment("table4"), tree(tmp_path, "JPEGImages/480p/bear", "Annotations/480p/bear"))
    assert half.state == "in part" and not any(key[1].startswith("YTVOS") for key in half.cells)


def test_probes_need_the_augmented_masks(voc: Path) -> None:
    shutil.rmtree(voc / "SegmentationClassAug")
    made = make_plan(find_experiment("table2"), voc, given={"TimeT, 12 epochs": "x"})
    assert ("SK", "K=500") in made.cells and ("SK", "LC") not in made.cells
    assert any("SegmentationClassAug" in text for text in made.missing)


def test_tokens_are_counted_by_the_formula(voc: Path) -> None:
    place, asked = replace(find_data(voc)["voc"], count=1449), ask("image", "voc", k=("500",))
    needed = needed_tokens(Found("TimeT", "hub"), asked, place)
    assert [*needed.values()] == [(1449, 1449 * (784 * 384 * 2 + 100 * 100))]
    eight = needed_tokens(Found("DINO S/8", "hub"), asked, replace(place, count=2))
    assert [*eight.values()] == [(2, 2 * (56 * 56 * 384 * 2 + 100 * 100))]
    probe = needed_tokens(Found("TimeT", "hub"), ask("probe", "voc", head="linear"), place)
    assert [count for count, _ in probe.values()] == [1449, 10582] and needed.items() <= probe.items()
    assert needed_tokens(Found(), asked, place) == {}


def test_tokens_are_counted_once(voc: Path, tmp_path: Path) -> None:
    plan = make_plan(find_experiment("table5"), voc, given={"TimeT": "x.pth"}, rows=("TimeT",))
    assert len(plan.cells) == 4 and f"4 of {len(EXPERIMENTS['table5'].cells)} numbers" in describe_plan(plan)
    # bf16 for K=500, LC and FCN, of val and trainaug; fp32 with attention for CBFE, of val and train
    assert sorted(count for count, _ in plan.tokens.values()) == [2, 2, 1464, 10582]
    assert "12,050 pictures, by 1 network" in describe_plan(plan) and "GB of tokens" in describe_plan(plan, tmp_path)
