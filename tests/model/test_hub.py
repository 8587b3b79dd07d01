"""Weights from the hub: the cache, one question with a patience, one sentence."""

import time

import pytest

from timet.core import TimetError
from timet.model.hub import cached_file, hub_file


class Answer:
    def __init__(self, code: int):
        self.status_code = code


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A hub client with an empty cache that must not download."
    import huggingface_hub

    def forbidden(*args, **kwargs):
        raise AssertionError("the slow download was tried")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", forbidden)
    return huggingface_hub


def answering(monkeypatch, hub, reply):
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            return reply()

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: Session())
    return asked


def test_offline_is_one_question_and_one_sentence(hub, monkeypatch):
    def offline():
        raise ConnectionError("Name or service not known")

    asked = answering(monkeypatch, hub, offline)
    with pytest.raises(TimetError) as said:
        hub_file("vit_small_patch16_224.dino")
    assert len(asked) == 1 and asked[0][1] <= 10
    for words in ("model.safetensors", "huggingface.co/timm/vit_small_patch16_224.dino", "--weights FILE",
                  f"is not in the cache {hub.constants.HF_HUB_CACHE}"):  # fmt: skip
        assert words in str(said.value)


def test_nobody_waits_for_a_name_server(hub, monkeypatch):
    answering(monkeypatch, hub, lambda: time.sleep(3))
    began = time.monotonic()
    with pytest.raises(TimetError, match=r"does not answer within 0\.2 s"):
        hub_file("vit_small_patch16_224.dino", patience=0.2)
    assert time.monotonic() - began < 2


def test_a_line_that_breaks_is_told(hub, monkeypatch):
    answering(monkeypatch, hub, lambda: Answer(200))
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: open("/dev/null/x"))
    with pytest.raises(TimetError, match=r"fetching it failed \(NotADirectoryError\).*--weights FILE"):
        hub_file("vit_small_patch16_224.dino")


def test_the_cache_is_enough(hub, monkeypatch, tmp_path):
    asked = answering(monkeypatch, hub, lambda: Answer(200))
    assert cached_file("vit_small_patch16_224.dino") is None
    held = tmp_path / "hub/models--timm--vit_small_patch16_224.dino"
    (held / "refs").mkdir(parents=True)
    (held / "refs/main").write_text("0" * 40)
    (held / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (held / "snapshots" / ("0" * 40) / "model.safetensors").write_bytes(b"x")
    assert hub_file("vit_small_patch16_224.dino").read_bytes() == b"x" and not asked


def test_a_refusal_of_the_hub_is_told(hub, monkeypatch):
    asked = answering(monkeypatch, hub, lambda: Answer(404))
    with pytest.raises(TimetError, match="the hub answers 404"):
        hub_file("vit_small_patch16_224.dino")
    assert [url.rsplit("/")[-1] for url, _ in asked] == ["model.safetensors", "pytorch_model.bin"]


def test_the_file_that_the_hub_has_is_fetched(hub, monkeypatch, tmp_path):
    answering(monkeypatch, hub, lambda: Answer(302))
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, file, revision: str(tmp_path / file))
    assert hub_file("vit_small_patch16_224.dino") == tmp_path / "model.safetensors"


def test_names_without_weights(hub):
    with pytest.raises(TimetError, match="timm has no weights"):
        hub_file("vit_base_patch16_plus_240")
    with pytest.raises(TimetError, match=r"not on the hub; get https://.*--weights FILE"):
        hub_file("vit_huge_patch14_gap_224.in1k_ijepa")
