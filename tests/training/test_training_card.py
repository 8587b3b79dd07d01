"""What a card is spared, tried on a CPU: frozen blocks in bf16, numbers read late, colours changed elsewhere, and full memory."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from timet.backbone import create_backbone
from timet.core import TimetError
from timet.run.check import adjust
from timet.run.loop import Later
from timet.train import main, train
from timet.training import session as room
from timet.training.card import enough_memory, frozen_gap, mend_memory, prepared
from timet.training.config import load_config, preset_config
from timet.training.session import share_news, start_accelerator, start_session, step_batches, train_step
from timet.training.steps import Lines, fit

SMALL = preset_config(
    "demo", max_steps=3, batch_size=4, image_size=48, num_prototypes=16, head=(32, 16), radius=3, device="cpu",
    tuned_blocks=2, eval=False,
)  # fmt: skip


def started(**values):
    config = adjust(SMALL, values)
    return start_session(config, start_accelerator(config))


def losses(session) -> list[float]:
    return [train_step(session, parts)[0]["loss"] for parts in step_batches(session)]


# the frozen part


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "resnet18"])
def test_a_frozen_part_in_bf16_is_no_part_of_the_network(name):
    backbone = create_backbone(name, weights="none", image_size=64)
    before, images = {k: v.clone() for k, v in backbone.state_dict().items()}, torch.randn(2, 3, 64, 64)
    plain = backbone.tokens(images).detach()
    assert 0 <= frozen_gap(backbone, images) < 0.03  # a ResNet is bf16 throughout under autocast, too
    assert len(backbone._quick) == 1 and next(backbone._quick[0].parameters()).dtype == torch.bfloat16
    quick = backbone.tokens(images)
    assert quick.dtype == torch.float32 and quick.requires_grad
    assert 0 < float((quick.detach() - plain).norm() / plain.norm()) < 0.03
    after = backbone.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    backbone.quicken(None)
    assert torch.equal(backbone.tokens(images), plain)


def test_where_all_is_tuned_nothing_is_frozen():
    backbone = create_backbone("timet_tiny_patch8_64", weights="none", tuned_blocks="all")
    backbone.quicken(torch.bfloat16)
    assert backbone._quick == ()


def test_the_copy_is_made_of_the_weights_of_the_checkpoint_and_ends_with_the_steps():
    session = started(frozen_precision="bf16")
    with torch.no_grad():
        for weight in session.inner.backbone.parameters():
            weight.add_(0.01)  # what a checkpoint might bring
    with prepared(session):
        (quick,) = session.inner.backbone._quick
        for mine, its in zip(session.inner.backbone.model.parameters(), quick.parameters(), strict=True):
            assert torch.equal(mine.bfloat16(), its)
    assert session.inner.backbone._quick == ()


# where colours are changed, and where frames come from


def test_colours_changed_on_the_device_train_the_same(tmp_path):
    one, other = (losses(started(augment="full", augment_on=place)) for place in ("cpu", "device"))
    assert one == pytest.approx(other, abs=1e-4)


def test_a_run_from_a_frame_cache(tmp_path, capsys):
    cache = tmp_path / "cache"
    words = ["--max-steps", "2", "--batch-size", "4", "--num-prototypes", "8", "--head", "16", "8", "--no-eval", "--device", "cpu",
             "--radius", "2", "--workers", "2", "--image-size", "48", "--frame-cache", str(cache)]  # fmt: skip
    main([*words, "--out", str(tmp_path / "run")])
    assert f"in {cache}" in capsys.readouterr().out and list(cache.rglob("*.frames"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(0 <= row["waiting"] <= 1 for row in rows)
    again = train(replace(load_config(tmp_path / "run"), out=tmp_path / "again", workers=0))
    rows_again = [json.loads(line) for line in (again / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [row["loss"] for row in rows_again]
    with pytest.raises(SystemExit):
        main(["--resume", str(tmp_path / "run"), "--frame-cache", "off"])
    assert "go on with --frame-cache" in capsys.readouterr().err


# numbers that are read late, with a device that says it is a card


class Card:
    "What `share_news` and `Lines` look at, on a device that is called a card."

    def __init__(self, session):
        self.__dict__.update(session.accelerator.__dict__)
        self.device, self.num_processes = SimpleNamespace(type="cuda"), 1
        self.is_main_process, self.reduce = True, lambda x, how: x


def test_a_loss_that_is_no_number_is_found_one_step_later():
    session = started()
    session.accelerator = Card(session)
    for step, value in enumerate((1.0, float("nan")), 1):
        loss, wishes = share_news(session, torch.tensor(value), (False, True))
        assert isinstance(loss, torch.Tensor) and wishes == [False, True]
        session.step = step
    with pytest.raises(TimetError, match="the loss became nan at step 2"):
        share_news(session, torch.tensor(1.0), (False, False))


def test_wishes_of_several_processes_are_answered_once(monkeypatch):
    session = started()
    session.accelerator = card = Card(session)
    card.num_processes = 2
    monkeypatch.setattr(room, "place_values", lambda values, device: torch.tensor(values))
    answers = [share_news(session, torch.tensor(1.0), (due, False))[1] for due in (True, True, False, False)]
    assert answers == [[False, False], [True, False], [False, False], [False, False]]


def test_lines_are_written_when_their_numbers_have_come():
    session, rows = started(), []
    session.accelerator = Card(session)
    lines = Lines(session, on_step=rows.append)
    session.inner(torch.randn(2, 4, 3, 48, 48))
    for step in (1, 2, 3):
        session.step = step
        lines.add({"loss": torch.tensor(float(step))}, rate=1.0)
    assert [row["step"] for row in rows] == [1, 2] and [row["loss"] for row in rows] == [1.0, 2.0]
    lines.write()
    assert [row["loss"] for row in rows] == [1.0, 2.0, 3.0] and set(session.usage) == {"first", "latest"}


def test_later_gives_plain_numbers_and_tensors():
    got = Later(loss=torch.tensor(0.25), step=3, usage=torch.ones(2)).read()
    assert got["loss"] == 0.25 and type(got["loss"]) is float and got["step"] == 3 and got["usage"].tolist() == [1, 1]


# a card that is full


def test_the_sentence_about_memory_names_what_fits():
    paper = preset_config("paper", weights="none")
    said = mend_memory(paper, 128, total=8 * 2**30, kept=2**29, peak=7.9 * 2**30)
    assert "it has 8.0 GB" in said and "128 clips at once" in said and "--accumulate 2" in said
    narrow = mend_memory(paper, 128, total=8 * 2**30, kept=7.5 * 2**30, peak=7.9 * 2**30)
    assert "--accumulate" not in narrow and "--batch-size 64" in narrow
    exact = mend_memory(replace(paper, precision="fp32"), 128, total=2**34, kept=2**29, peak=2**34)
    assert "--precision bf16" in exact
    assert "--image-size" in mend_memory(replace(paper, batch_size=1), 1, total=1, kept=1, peak=1)


def test_full_memory_is_one_sentence_and_the_checkpoint_stays(tmp_path, monkeypatch):
    session = started(save_every=1)
    session.folder = Path(tmp_path)

    def full(session, parts, flags):
        if session.step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return train_step(session, parts, flags)

    monkeypatch.setattr("timet.training.steps.train_step", full)
    with pytest.raises(TimetError, match="not enough memory for 4 clips at once") as caught:
        fit(session)
    assert "\n" not in str(caught.value) and (tmp_path / "checkpoints" / "last.pt").exists()
    with pytest.raises(ZeroDivisionError), enough_memory(session):
        raise ZeroDivisionError
