"""Our numbers beside the paper's."""

import json

import pytest

from timet.core import samples_dir
from timet.paper.answers import Answer
from timet.paper.plan import make_plan
from timet.paper.questions import find_experiment
from timet.paper.results import Compared, as_json, as_markdown, grid_of
from timet.paper.tables import TABLES


def test_a_cell_as_text() -> None:
    assert str(Compared("r", "c", "n", "", 5.0, Answer((4.0, 6.0)))) == "5.0 ± 1.0 (5.0, +0.0)"
    assert str(Compared("r", "c", "n", "", None, Answer((4.0,)))) == "4.0"
    assert str(Compared("r", "c", "n", "", 5.0)) == "- (5.0)" and str(Compared("r", "c", "n", "", None)) == "-"
    stood_in = Compared("r", "c", "n", "stand-in", 5.0, Answer((4.0, 6.0)), stand_in=True)
    assert str(stood_in) == "5.0 ± 1.0" and stood_in.difference is None and grid_of([stood_in]).startswith("| ours |")
    twelve = [Compared("r", c, "n", "", 1.0) for c in TABLES["table4"].columns]
    assert grid_of(twelve).count("| ours (paper") == 4


def test_a_report_says_what_must_be_known() -> None:
    made = make_plan(find_experiment("table8"), samples_dir())
    cells = [Compared("DINO S/16", "mIoU", "DINO S/16", "hub", 47.9, Answer((48.7,)))]
    text = as_markdown(made, cells)
    assert "48.7" in text and "wrong axis" in text and "took these rows from other papers" in text
    assert json.loads(json.dumps(as_json(made, cells)))["numbers"][0]["difference"] == pytest.approx(0.8)
