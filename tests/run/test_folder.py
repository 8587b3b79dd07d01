"""What a user calls a checkpoint, told apart by looking at paths."""

import pytest
import torch

from timet.core import TimetError
from timet.run.folder import find_checkpoint, previous, save_checkpoint, take_up


def touch(path):
    path.touch()
    return path


@pytest.mark.parametrize(
    "make, backbone, words",
    [
        (lambda p: p / "gone.pth", None, "there is no checkpoint"),
        (lambda p: p, None, "is no finished run"),
        (lambda p: touch(p / "net.pth"), None, "does not say which network it is"),
    ],
)
def test_checkpoints_refused_by_their_paths(make, backbone, words, tmp_path):
    with pytest.raises(TimetError, match=words):
        find_checkpoint(str(make(tmp_path)), backbone)


def test_checkpoints_found_by_their_paths(tmp_path):
    weights = tmp_path / "backbone.safetensors"
    weights.touch()
    assert find_checkpoint(str(tmp_path)) == find_checkpoint(str(weights), "resnet50") == weights
    weights.with_suffix(".json").touch()
    assert find_checkpoint(str(weights)) == weights
    assert find_checkpoint("random") is find_checkpoint("vit_small_patch16_224.dino") is None


def test_a_checkpoint_whose_numbers_are_spoilt_is_not_used(tmp_path, capsys):
    path, used = tmp_path / "checkpoints/last.pt", []
    save_checkpoint(path, {"weights": {"w": torch.ones(3)}, "n": 1}, keep=True)
    save_checkpoint(path, {"weights": {"w": torch.tensor([1.0, float("nan")])}, "n": 2}, keep=True)
    assert take_up(path, lambda state: used.append(state["n"])) and used == [1]
    assert "last.pt holds numbers that are not finite" in capsys.readouterr().err
    save_checkpoint(path, {"weights": [torch.tensor(float("inf"))]})
    previous(path).unlink()
    with pytest.raises(TimetError, match="not finite; the run has no other that can be used"):
        take_up(path, used.append)
