"What the evaluation commands share: the same options in the same words, and one sentence for the same mistake."

from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from timet.core import TimetError
from timet.eval.options import ImagesConfig, NetworkConfig, TokensConfig
from timet.run.command import parse

COMMANDS = {"evaluate": "EvaluateConfig", "eval.image": "ImageConfig", "eval.probe": "ProbeConfig",
            "eval.foreground": "ForegroundConfig", "eval.incontext": "IncontextConfig", "eval.forwarding": "ForwardingConfig"}  # fmt: skip


def config_of(name):
    return getattr(import_module(f"timet.{name}"), COMMANDS[name])


@pytest.mark.parametrize("name", list(COMMANDS))
def test_common_options_stand_first_and_mean_the_same(name):
    config = config_of(name)
    base = next(b for b in (ImagesConfig, TokensConfig, NetworkConfig) if issubclass(config, b))
    assert [f.name for f in fields(config)][: len(fields(base))] == [f.name for f in fields(base)]
    made = parse(config, ["net", "--data", "here", "--backbone", "vit", "--seed", "3", "--precision", "bf16", "--out", "a.json"])  # fmt: skip
    assert (made.checkpoint, str(made.data), made.backbone, made.seed) == ("net", "here", "vit", 3)
    assert (made.precision, str(made.out), made.device) == ("bf16", "a.json", "auto")
    made.check()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_numbers_that_are_too_small(name, capsys):
    config = config_of(name)
    for field in fields(config):
        low = config.least.get(field.name, 1)
        if field.type in (int, int | None):
            flag = f"--{field.name.replace('_', '-')}"
            with pytest.raises(TimetError, match=f"{flag} must be at least {low}, got {low - 1}"):
                config("net", "here", **{field.name: low - 1}).check()
            config("net", "here", **{field.name: low}).check()
    with pytest.raises(SystemExit) as stop:
        import_module(f"timet.{name}").main(["random", "--data", "nowhere", "--seed", "-1"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said == f"timet.{name}: --seed must be at least 0, got -1\n"


@pytest.mark.parametrize("name", ["eval.image", "eval.foreground"])
def test_images_without_masks_are_refused(name, tmp_path, capsys):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as stop:
        import_module(f"timet.{name}").main(["random", "--backbone", "timet_tiny_patch8_96", "--data", str(tmp_path)])
    assert stop.value.code == 2 and "without masks; a score needs masks" in capsys.readouterr().err
