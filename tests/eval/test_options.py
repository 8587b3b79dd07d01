"What the evaluation commands share: the same options in the same words, and one sentence for the same mistake."

import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from typing import get_type_hints

import numpy as np
import pytest
from PIL import Image

from timet.core import TimetError
from timet.eval.options import ImagesConfig, NetworkConfig, TokensConfig
from timet.run.check import check, flat
from timet.run.command import parse

COMMANDS = {"evaluate": "EvaluateConfig", "eval.image": "ImageConfig", "eval.probe": "ProbeConfig",
            "eval.foreground": "ForegroundConfig", "eval.incontext": "IncontextConfig", "eval.forwarding": "ForwardingConfig"}  # fmt: skip


ZERO = {"seed", "full_size", "classes", "memory_size", "radius", "context"}  # may be 0


def config_of(name):
    return getattr(import_module(f"timet.{name}"), COMMANDS[name])


def numbers(config):
    "Names of the whole numbers among the settings, with those of settings inside."
    for name, kind in get_type_hints(config).items():
        if is_dataclass(kind):
            yield from numbers(kind)
        elif kind in (int, int | None) or name in ("image_size", "mask_size"):
            yield name, kind


def changed(config, name, value):
    "The same settings with another value in them, wherever it is; not checked yet."
    parts = {f.name: getattr(config, f.name) for f in fields(config)}
    if name in parts:
        return replace(config, **{name: value})
    part = next(key for key, inner in parts.items() if is_dataclass(inner) and name in flat(inner))
    return replace(config, **{part: changed(parts[part], name, value)})


def allowed(config, name, value):
    try:
        check(changed(config, name, value))
    except TimetError:
        return False
    return True


@pytest.mark.parametrize("name", list(COMMANDS))
def test_common_options_stand_first_and_mean_the_same(name):
    config = config_of(name)
    base = next(b for b in (ImagesConfig, TokensConfig, NetworkConfig) if issubclass(config, b))
    assert [f.name for f in fields(config)][: len(fields(base))] == [f.name for f in fields(base)]
    made = parse(config, ["net", "--data", "here", "--backbone", "vit", "--seed", "3", "--precision", "bf16", "--out", "a.json"])  # fmt: skip
    assert (made.checkpoint, str(made.data), made.backbone, made.seed) == ("net", "here", "vit", 3)
    assert (made.precision, str(made.out), made.device) == ("bf16", "a.json", "auto")
    check(made, flags=True)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_numbers_that_are_too_small(name, capsys):
    config = config_of(name)("net", "here")
    for field in flat(config):
        # the smallest that is taken, found by asking: 0 or 1, of a clip that is forwarded 2
        if field in dict(numbers(type(config))):
            flag = f"--{field.replace('_', '-')}"
            low = next(n for n in range(-1, 3) if allowed(config, field, n))
            assert low in (0, 1, 2) and (low == 0) == (field in ZERO)
            with pytest.raises(TimetError, match=f"{flag} must be at least {low}.*, got {low - 1}"):
                check(changed(config, field, low - 1), flags=True)
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


def ends(name, *words):
    "Status of a command that is not meant to begin."
    with pytest.raises(SystemExit) as stop:
        import_module(f"timet.{name}").main(["random", "--data", "nowhere", *map(str, words)])
    return stop.value.code


@pytest.mark.parametrize("name", list(COMMANDS))
def test_what_is_there_is_not_replaced(name, tmp_path, capsys):
    ours, diary, broken = (tmp_path / n for n in ("ours.json", "diary.json", "broken.json"))
    ours.write_text(json.dumps({"checkpoint": "a", "fingerprint": "b", "versions": {}, "miou": 1}))
    diary.write_text('{"today": "rain"}')
    broken.write_bytes(b"\xff\x00[")
    (tmp_path / "link.json").symlink_to(diary)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").mkdir()
    for out, said in [
        (diary, "diary.json is there and is no report of an evaluation; choose another --out, or add --overwrite"),
        (broken, "broken.json is there and is no report"),
        (tmp_path / "link.json", "link.json is there and is no report"),
        (tmp_path / "deep", f"--out takes a JSON file, and {tmp_path / 'deep'} is a folder; name a file in it"),
        (tmp_path / "pipe", "is no plain file; choose another name"),
        (diary / "x" / "y.json", f"{diary} is no folder that can be written; choose another --out"),
        (tmp_path / ("x" * 300), "File name too long; choose another --out"),
        (tmp_path / "gone" / ".." / "diary.json", "diary.json is there and is no report"),
    ]:
        before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
        assert ends(name, "--out", out) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
        assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    for words in (["--out", ours], ["--out", diary, "--overwrite"], ["--out", tmp_path / "new" / "x.json"]):
        assert ends(name, *words) == 2 and "nowhere" in capsys.readouterr().err  # the next mistake


@pytest.mark.parametrize("text, whole, said", [
    ('{"preset": "demo", "backbone": "x"}', True, "but holds the settings of a run; give the run folder"),
    ('{"preset": "demo"}', False, "but holds the settings of a run; give a run folder, a file of weights"),
    ("not json", False, "does not describe an exported network"),
    ("[" * 100_000, False, "does not describe an exported network"),
    ("[1, 2]", True, "give the run folder"),
])  # fmt: skip
def test_the_json_of_a_run_is_no_checkpoint(tmp_path, capsys, text, whole, said):
    (tmp_path / "config.json").write_text(text)
    if whole:
        (tmp_path / "backbone.safetensors").write_bytes(b"")
    for words in ([], ["--backbone", "timet_tiny_patch8_96"]):
        with pytest.raises(SystemExit) as stop:
            import_module("timet.evaluate").main([str(tmp_path / "config.json"), *words])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and said in err and "--weights" not in err and err.count("\n") == 1


def test_no_message_advises_a_flag_of_training(tmp_path):
    (tmp_path / "alone.json").write_text('{"name": "x", "model_args": {}}')  # an export without image_size
    (tmp_path / "alone.safetensors").write_bytes(b"")
    with pytest.raises(TimetError) as caught:
        NetworkConfig(str(tmp_path / "alone.safetensors")).open()
    assert "--weights" not in str(caught.value) and "--backbone" in str(caught.value)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_sample_clips_are_a_quick_try(name, capsys, tmp_path):
    room = import_module(f"timet.{name}")
    room_read = getattr(room, "read_words", None) or next(
        cell.cell_contents for cell in room.main.__closure__ if getattr(cell.cell_contents, "__name__", "") == "read"
    )
    small = flat(room_read([]))
    said = capsys.readouterr().out
    assert small["image_size"] in (96, (96, 96)) and small["checkpoint"].endswith("timet_tiny.safetensors")
    assert said.count("\n") == 1 and "quick try" in said and "--image-size 96" in said
    own = flat(room_read(["random", "--image-size", "192", "--no-floors"]))
    assert own["image_size"] == 192 and own["checkpoint"] == "random" and own["no_floors"] is True
    assert "--image-size" not in capsys.readouterr().out
    for words in (["--mask-size", "50"], ["--background", "sky"], ["--no-cache"]):
        field = words[0][2:].replace("-", "_")
        if field in small:
            want = {"mask_size": 50, "background": ("sky",), "no_cache": True}[field]
            assert flat(room_read(words))[field] == want
    capsys.readouterr()
    elsewhere = flat(room_read(["random", "--data", str(tmp_path)]))
    usual = flat(config_of(name)("random", tmp_path))
    assert elsewhere == usual and capsys.readouterr().out == ""


@pytest.mark.parametrize("words", [["~no-such-user/run"], ["random", "--data", "~no-such-user/clips"]])
def test_the_home_of_nobody(words, capsys):
    with pytest.raises(SystemExit) as stop:
        import_module("timet.evaluate").main(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "write the path out" in err


def test_without_a_checkpoint_only_the_samples_can_be_tried(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        import_module("timet.evaluate").main(["--data", str(tmp_path)])
    assert stop.value.code == 2 and "name what is evaluated: a run folder" in capsys.readouterr().err


HEAVY = ("torch", "timm", "faiss", "scipy", "matplotlib", "accelerate", "av", "decord", "torchvision")
MISTAKES = {
    "--help": (0, "CHECKPOINT"),
    "--protocoll frame": (2, "protocoll"),
    "random --data nowhere": (2, "nowhere"),
    "runs/gone.pt": (2, "there is no checkpoint runs/gone.pt"),
    "random --k many": (2, "--k takes gt"),
}


@pytest.mark.parametrize("name", ["evaluate", "eval.image"])
def test_help_and_mistakes_load_nothing_heavy(name):
    code = f"""
import sys
from timet.{name} import main
for words in {list(MISTAKES)!r}:
    try:
        main(words.split())
    except SystemExit as stop:
        print("status", stop.code, [m for m in {HEAVY!r} if m in sys.modules], words, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    said = [line for line in done.stdout.splitlines() if line.startswith("status")]
    assert said == [f"status {status} [] {words}" for words, (status, _) in MISTAKES.items()], done.stdout + done.stderr
    assert all(words in done.stdout + done.stderr for _, words in MISTAKES.values())
