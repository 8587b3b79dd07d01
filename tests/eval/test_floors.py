"Floors: what stands beside a score, computed once, and never silently missing."

import json
import os
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from timet.backbone import create_backbone, export_backbone, open_backbone
from timet.core import TimetError
from timet.data.find import find_sources
from timet.eval import floors as room
from timet.eval.cache import fingerprint
from timet.eval.floors import (
    MeanColour,
    find_start,
    floor_networks,
    format_floors,
    random_weights,
    score_floors,
    show_values,
)
from timet.evaluate import EvaluateConfig, main

TINY = "timet_tiny_patch8_96"


@pytest.fixture(scope="module")
def tuned():
    torch.manual_seed(5)
    return create_backbone(TINY, weights="none", tuned_blocks=0)


@pytest.fixture
def clips(tmp_path):
    "Two videos of four frames with an object each."
    rng = np.random.default_rng(0)
    for name in "ab":
        for t in range(4):
            mask = np.zeros((48, 48), np.uint8)
            mask[8:32, 6 * t : 6 * t + 20] = 1
            picture = rng.integers(0, 90, (48, 48, 3)) + mask[..., None] * 150
            for part, array in (("JPEGImages", picture.astype(np.uint8)), ("Annotations", mask)):
                folder = tmp_path / "set" / part / "480p" / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{t:05d}.{'jpg' if part == 'JPEGImages' else 'png'}")
    return tmp_path / "set"


def run_folder(folder, backbone, **settings):
    "What a finished run leaves, as far as it matters here."
    export_backbone(backbone, folder / "backbone.safetensors")
    said = {"backbone": TINY, "weights": "none", "seed": 0, "image_size": 96} | settings
    (folder / "config.json").write_text(json.dumps(said))
    return str(folder)


@pytest.mark.parametrize("patch", [8, 16])
def test_mean_colour_is_the_mean_of_a_patch(patch):
    like = types.SimpleNamespace(grid=lambda h, w: (h // patch, w // patch), image_size=(32, 48), patch_size=patch)
    images = torch.randn(2, 3, 32, 48)
    got = MeanColour(like).tokens(images)
    want = [
        images[b, :, y : y + patch, x : x + patch].mean((1, 2))
        for b in range(2)
        for y in range(0, 32, patch)
        for x in range(0, 48, patch)
    ]
    torch.testing.assert_close(got, torch.stack(want).reshape(2, -1, 3))
    other = MeanColour(types.SimpleNamespace(**(vars(like) | {"patch_size": patch + 1})))
    assert fingerprint(other) != fingerprint(MeanColour(like))


def test_random_weights_are_those_of_the_word_random(tuned):
    same = open_backbone("random", backbone=TINY, seed=3)
    assert fingerprint(random_weights(tuned, 3)) == fingerprint(same) != fingerprint(tuned)


def test_each_floor_stands_there_once(tuned, tmp_path):
    def names(checkpoint, backbone=tuned):
        return list(floor_networks(EvaluateConfig(checkpoint), backbone))

    (tmp_path / "run").mkdir()
    plain = tmp_path / "net.safetensors"
    export_backbone(tuned, plain)
    assert names(str(plain)) == ["random weights", "mean patch colour"]
    run = run_folder(tmp_path / "run", tuned)
    assert names(run) == names(f"{run}/backbone.safetensors") == ["mean patch colour", "random weights, the start"]
    run_folder(tmp_path / "run", tuned, seed=7)
    assert names(run) == ["random weights", "mean patch colour", "the start (random weights)"]
    run_folder(tmp_path / "run", tuned, weights=str(plain))
    found = floor_networks(EvaluateConfig(run), tuned)  # nothing was learned
    assert found["the start (net.safetensors)"] == "that is this network itself, weight for weight"
    run_folder(tmp_path / "run", tuned, weights="gone.pth")
    found = floor_networks(EvaluateConfig(run), tuned)
    assert "there is no file gone.pth" in found["the start (gone.pth)"]
    assert "itself" in floor_networks(EvaluateConfig("random"), random_weights(tuned))["random weights"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"backbone": 1}', '{"backbone": "a", "weights": 3, "seed": 0, "image_size": 9}']
)
def test_a_folder_that_does_not_say_its_start(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert find_start(str(tmp_path)) is None and find_start("vit_small_patch16_224.dino") is None


def test_floors_are_computed_once_and_again_when_something_changes(tuned, clips, tmp_path, capsys):
    asked = []

    def score(network):
        asked.append(network.name)
        return {"a": [0.25, 0.75], "b": [float("nan")]}

    def count(config, data=None):
        asked.clear()
        rows = score_floors(config, tuned, [data or find_sources(clips)], score)
        assert rows["random weights"]["a"] == [0.25, 0.75] and list(rows) == ["random weights", "mean patch colour"]
        return len(asked)

    config = EvaluateConfig("net", clips, cache=tmp_path / "cache")
    assert [count(config), count(config)] == [2, 0]
    assert capsys.readouterr().err.count("floor: ") == 2
    # another checkpoint of the same network, another file to write: the same floors
    assert count(replace(config, checkpoint="other", out=tmp_path / "x.json", workers=2)) == 0
    assert [count(replace(config, seeds=2)), count(replace(config, seeds=2))] == [2, 0]
    file = next((tmp_path / "cache/floors").iterdir())
    file.write_text("{")
    os.utime(file)
    assert [count(config) + count(replace(config, seeds=2)), count(config)] == [1, 0]
    stat = (mask := clips / "Annotations/480p/a/00001.png").stat()
    os.utime(mask, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert [count(config), count(config)] == [2, 0]
    nothing_kept = replace(config, no_cache=True)
    assert [count(nothing_kept), count(nothing_kept)] == [2, 2]
    assert score_floors(replace(config, no_floors=True), tuned, [], score) == {}


def test_a_new_code_is_a_new_floor(tuned, clips, tmp_path, monkeypatch):
    config, asked = EvaluateConfig("net", clips, cache=tmp_path / "cache"), []
    for code in ("one", "one", "two"):
        monkeypatch.setattr(room, "source_digest", lambda code=code: code)
        score_floors(config, tuned, [find_sources(clips)], lambda network: asked.append(network.name) or {"a": [0.5]})
        asked.append(code)
    assert [asked.index("one"), len(asked), asked[-1], asked[-4]] == [2, 7, "two", "one"]


def test_what_cannot_be_computed_says_why(tuned, clips, tmp_path, monkeypatch):
    def score(network):
        if isinstance(network, MeanColour):
            raise TimetError("colours have no class token")
        return {"a": [0.5]}

    config = EvaluateConfig("net", clips, cache=tmp_path / "cache")
    monkeypatch.setattr(room, "this_shard", lambda: (0, 2))  # the others have gone home
    rows = score_floors(config, tuned, [find_sources(clips)], score)
    assert all("as one process" in row for row in rows.values()) and len(rows) == 2
    monkeypatch.setattr(room, "this_shard", lambda: (0, 1))
    rows = score_floors(config, tuned, [find_sources(clips)], score)
    text = format_floors({"a": [0.6, 0.8]}, rows)
    assert text.splitlines()[1:] == [
        "what it is worth, %             a",
        "this network          70.0 ± 10.0",
        "random weights               50.0",
        "- mean patch colour: colours have no class token",
    ]
    monkeypatch.setattr(room, "this_shard", lambda: (0, 2))
    assert score_floors(config, tuned, [find_sources(clips)], score)["random weights"] == {"a": [0.5]}
    assert (show_values([0.5]), show_values([float("nan")]), show_values([None]), show_values(None)) == ("50.0", *"---")


def test_evaluate_prints_its_floors(tuned, clips, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    run, out = run_folder(tmp_path / "run", tuned), tmp_path / "out.json"
    words = [run, "--data", str(clips), "--cache", str(tmp_path / "cache"), "--seeds", "1", "--num-frames", "2"]
    main([*words, "--protocol", "frame", "--out", str(out)])
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    lines = said[said.index("what it is worth") :].splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "what it is worth, %", "this network", "mean patch colour", "random weights, the start",
    ]  # fmt: skip
    assert list(found["floors"]) == ["mean patch colour", "random weights, the start"]
    main(["random", "--backbone", TINY, *words[1:], "--protocol", "frame", "--no-floors", "--out", str(out)])
    capsys.readouterr()
    alone = json.loads(out.read_text())["scores"][0]["values"]
    assert found["floors"]["random weights, the start"]["frame, K = GT"] == pytest.approx(alone)
