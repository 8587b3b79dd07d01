"""Every number is a question that some protocol answers."""

from importlib import import_module

import pytest

from timet.core import samples_dir
from timet.paper.networks import NETWORKS, UNAVAILABLE
from timet.paper.places import LOOKED_FOR
from timet.paper.plan import SAMPLE_WARNING, describe_plan, make_plan
from timet.paper.questions import EXPERIMENTS, PROTOCOLS, ask, find_experiment, for_samples
from timet.paper.tables import FIGURES, TABLES
from timet.run.check import flat


@pytest.mark.parametrize("name", [*TABLES, *FIGURES])
def test_every_experiment_has_all_it_needs(name: str) -> None:
    e = find_experiment(name)
    assert e.cells
    for (row, column), (network, question) in e.cells.items():
        assert question.protocol in PROTOCOLS and question.data in LOOKED_FOR
        assert not network or network in NETWORKS or network in UNAVAILABLE
        ours = (name, row) == ("table6", "DINO, CBFE")  # reported beside the paper's row, by the protocol of the others
        assert name not in TABLES or (e.printed(row, column) is None) == ours
    made = make_plan(e, samples_dir())
    assert made.state == "ready"
    assert SAMPLE_WARNING in describe_plan(made)


def test_k21_is_two_questions() -> None:
    cells = EXPERIMENTS["table5"].cells
    assert cells["TimeT", "K=21"][1].protocol == "foreground" and cells["DINO", "K=21"][1].protocol == "image"
    assert EXPERIMENTS["table1a"].cells["200", "K=21"][1] == ask("image", "voc", k=("21",))


def test_every_setting_is_a_field_of_its_protocol() -> None:
    for e in EXPERIMENTS.values():
        for _, question in e.cells.values():
            module, name = PROTOCOLS[question.protocol]
            known = flat(getattr(import_module(module), name)("random"))
            for asked in (question, for_samples(question)):
                assert dict(asked.settings).keys() <= known.keys(), (e.name, str(asked))


def test_settings_are_cut_for_the_samples_alone() -> None:
    over = ask("image", "voc", k=("500",))
    small = dict(for_samples(over).settings)
    assert dict(over.settings)["k"] == ("500",) and int(small["k"][0]) < 100 and small["image_size"] == 96
    assert dict(for_samples(ask("video", "davis", k=("gt",), num_frames=16)).settings)["num_frames"] == 4


def test_dino_of_table_6_is_its_attention_and_both_are_reported() -> None:
    cells = EXPERIMENTS["table6"].cells
    for column in TABLES["table6"].columns:
        assert (
            cells["DINO", column][1].protocol == "attention" and cells["DINO, CBFE", column][1].protocol == "foreground"
        )
        assert cells["DINO", column][0] == cells["DINO, CBFE", column][0] == "DINO S/16"
    assert list(EXPERIMENTS["table6"].rows) == ["DINO", "DINO, CBFE", "Leopart", "STEGO", "TimeT"]


def test_figures_have_the_sets_and_methods_of_the_paper() -> None:
    assert [c for _, c in EXPERIMENTS["figure3"].cells] == ["YTVOS", "DAVIS", "VISOR", "VOC"]
    assert EXPERIMENTS["figure3"].cells["TimeT", "VOC"] == EXPERIMENTS["figure8"].cells["TimeT", "VOC"]
    assert EXPERIMENTS["figure7"].rows == ["DINO", "STEGO", "TimeT"]
    for name, (_, sets) in FIGURES.items():
        assert {question.data for _, question in EXPERIMENTS[name].cells.values()} == set(sets)
