"""What all commands have in common: where `--data` leads, and that each of their options is explained."""

from pathlib import Path

import pytest

from timet.config import TrainConfig, read_command
from timet.core import data_folder, parse, samples_dir
from timet.eval import foreground, forwarding, image, incontext, probe
from timet.evaluate import EvaluateConfig
from timet.train import held_out

SCORES = [EvaluateConfig, image.ImageConfig, probe.ProbeConfig, foreground.ForegroundConfig, incontext.IncontextConfig,
          forwarding.ForwardingConfig]  # fmt: skip


# -- the sample clips, by name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SCORES, ids=lambda c: c.__name__)
def test_scores_take_the_sample_clips_by_name(config: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "From any folder, with `--data samples` or without `--data`; a folder of that name is not hidden, nor any other path."
    monkeypatch.chdir(tmp_path)
    held = samples_dir() / "heldout"
    assert held.is_dir()
    assert parse(config, ["random"]).data == parse(config, ["random", "--data", "samples"]).data == held
    assert parse(config, ["random", "--data", "other/samples"]).data == Path("other/samples")
    (tmp_path / "samples").mkdir()
    assert parse(config, ["random", "--data", "samples"]).data == Path("samples")


def test_training_takes_the_sample_clips_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "`--data samples` is the default; `--val-data samples` scores one's own training on the sample clips."
    monkeypatch.chdir(tmp_path)
    assert read_command(["--data", "samples"]) == TrainConfig()
    looked_at = held_out(read_command(["--data", "mine", "--val-data", "samples"]))
    assert [s.name for s in looked_at] == [s.name for s in held_out(TrainConfig())] and looked_at[0].has_masks
    (tmp_path / "samples").mkdir()
    assert read_command(["--data", "samples"]).data == Path("samples")
    assert data_folder(None) == samples_dir()
