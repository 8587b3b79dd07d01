"""What all commands have in common: where `--data` leads, and that each of their options is explained."""

import argparse
import importlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from timet import core
from timet.core import data_folder, samples_dir
from timet.eval import foreground, forwarding, image, incontext, probe
from timet.evaluate import EvaluateConfig
from timet.run.command import parse
from timet.training.config import TrainConfig, held_out, read_command

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
    looked_at = held_out(read_command(["--preset", "demo", "--data", "mine", "--val-data", "samples"]))
    assert [s.name for s in looked_at] == [s.name for s in held_out(TrainConfig())] and looked_at[0].has_masks
    (tmp_path / "samples").mkdir()
    assert read_command(["--preset", "demo", "--data", "samples"]).data == Path("samples")
    assert data_folder(None) == samples_dir()


# -- help --------------------------------------------------------------------------------------------------------------

PACKAGE = Path(core.__file__).parent
COMMANDS = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if re.search(r"^(def main\(|main = command\()", path.read_text(encoding="utf-8"), re.M)
)


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    "What a command would read its line with."
    asked = []

    def catch(typ: object, args: object = None, **options: object) -> None:
        asked.append((typ, options))
        raise SystemExit

    monkeypatch.setattr(tyro, "cli", catch)
    with pytest.raises(SystemExit):
        importlib.import_module(command).main([])
    config, options = asked[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return tyro.extras.get_parser(config, **options)


def unexplained(parser: argparse.ArgumentParser) -> list[str]:
    "Options and arguments of a command and its parts whose help says no more than the default."
    found = []
    for action in parser._actions:
        if isinstance(action.choices, dict):  # parts, such as verify and show
            found += [name for part in {*action.choices.values()} for name in unexplained(part)]
        elif not re.sub(r"\((default|required|repeatable|fixed)[^()]*\)", "", action.help or "").strip():
            found.append("/".join(action.option_strings) or action.dest)
    return found


def test_commands_are_found() -> None:
    "Those of settings.ini among them."
    assert {
        "timet.train",
        "timet.evaluate",
        "timet.data.verify",
        "timet.samples",
        "timet.reproduce",
        "timet.segment",
    } < {*COMMANDS}
    assert len([name for name in COMMANDS if name.startswith("timet.eval.")]) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(command, monkeypatch)
    assert len(parser._actions) > 1 and unexplained(parser) == []


def test_an_option_without_help_is_noticed() -> None:
    "What happened to `--order` when its comment stood on another line."

    # fmt: off
    @dataclass
    class Config:
        good: int = 1  # Explained
        bad: int = (
            2  # Not where tyro looks
        )
    # fmt: on

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert unexplained(tyro.extras.get_parser(Config)) == ["--bad"]
