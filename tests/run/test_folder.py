"""What a user calls a checkpoint, told apart by looking at paths."""

import pytest

from timet.core import TimetError
from timet.run.folder import find_checkpoint


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
