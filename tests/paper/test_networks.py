"""Where weights are looked for, and how they are trained."""

from pathlib import Path

import pytest
import torch

from timet.backbone import create_backbone, open_backbone
from timet.core import TimetError, samples_dir
from timet.paper.answers import Compute, open_plan
from timet.paper.networks import NETWORKS, UNAVAILABLE, Found, find_network, run_name, stand_in, training_words
from timet.paper.plan import make_plan
from timet.paper.questions import find_experiment
from timet.training.config import read_command


def test_networks_are_looked_for_in_order(tmp_path: Path) -> None:
    assert "leopart_vits16.ckpt" in find_network("Leopart", weights=tmp_path).missing
    (tmp_path / "TimeT.pth").write_bytes(b"")
    assert find_network("TimeT", weights=tmp_path).source.endswith("TimeT.pth")
    run = tmp_path / run_name("TimeT")
    run.mkdir()
    (run / "backbone.safetensors").write_bytes(b"")
    assert find_network("TimeT", weights=tmp_path, runs=tmp_path).source == str(run)
    assert find_network("TimeT", runs=tmp_path, given={"TimeT": "x"}).source == "x"
    assert find_network("DINO S/16").source == "hub"
    assert not find_network("Motion Grp").source and not find_network("nonsense").source
    with pytest.raises(TimetError, match="not on this machine"):
        print(find_network("Leopart").checkpoint)


def test_a_checkpoint_says_which_network_it_is_where_the_file_does_not(tmp_path: Path) -> None:
    tuned = samples_dir() / "weights/timet_tiny.safetensors"
    assert Found("TimeT", str(tuned)).checkpoint == (str(tuned), None)
    assert open_backbone(str(tuned)).embed_dim == 128
    (tmp_path / "x.pth").write_bytes(b"")
    assert Found("SwAV", str(tmp_path / "x.pth")).checkpoint == (str(tmp_path / "x.pth"), "resnet50")
    assert Found("TimeT", str(tmp_path)).checkpoint == (str(tmp_path), None)
    assert Found("MAE B/16", "hub").checkpoint == ("vit_base_patch16_224.mae", None)
    assert stand_in("DINO S/16").checkpoint == Found().checkpoint == ("random", "timet_tiny_patch8_96")


def test_training_lines_are_understood(tmp_path: Path) -> None:
    for name, network in NETWORKS.items():
        if network.train:
            for start in NETWORKS[network.start].files[:1] if network.start else ():
                (tmp_path / start).write_bytes(b"")
            words = training_words(name, "videos", split="train", weights=tmp_path, runs=tmp_path)
            config = read_command(words)
            assert (config.data, config.split, config.out) == (Path("videos"), "train", tmp_path / run_name(name))
    assert read_command(training_words("TimeT, 8 frames", "v")).delta_t * 8 == 2.0
    assert read_command(training_words("DINO*", "v")).loss.labels.forwarded == "none"
    with pytest.raises(TimetError, match="not trained on video"):
        training_words("SwAV", "videos")


def test_stego_is_not_dino_under_another_name(tmp_path: Path) -> None:
    "Its file is read as the DINO inside it, so that no row of STEGO may come out of it."
    dino = create_backbone("vit_small_patch16_224", weights="none", tuned_blocks=0)
    torch.save(
        {"state_dict": {f"net.model.{k}": v for k, v in dino.model.state_dict().items()}}, tmp_path / "stego.ckpt"
    )
    plan = make_plan(find_experiment("figure7"), samples_dir(), given={"STEGO": str(tmp_path / "stego.ckpt")})
    with pytest.raises(
        TimetError, match=r"STEGO: stego\.ckpt .STEGO, its frozen DINO. would be DINO under the name of STEGO"
    ):
        open_plan(plan, Compute(device="cpu"), ["STEGO"])


def test_no_network_is_both_there_and_not() -> None:
    assert set(NETWORKS) & set(UNAVAILABLE) == set()
