"The benchmark of a GPU, as far as no GPU is needed: forwarders written anew, sections that fail, and its table."

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from timet.feature_forwarder import forward_maps
from timet.settings import Forwarder

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    before = set(sys.modules)
    yield importlib.import_module("gpu")
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("gpu", "card", "forwarder_triton"):
            del sys.modules[name]


def clips(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randn(2, 1 if kind == "static" else 4, 16, 32).expand(2, 4, 16, 32).contiguous()
    return tokens, torch.rand(2, 16, 6).softmax(-1)


@pytest.mark.parametrize("kind", ["random", "static"])
@pytest.mark.parametrize("settings", [Forwarder(radius=2), Forwarder(radius=1, topk=3, context=1)])
def test_the_plain_forwarder_is_the_package_s(gpu, kind, settings):
    tokens, maps = clips(kind)
    written_anew = importlib.import_module("forwarder_triton")
    with torch.autocast("cpu", torch.bfloat16):  # as in a training step
        made = written_anew.forward_torch(tokens, maps, (4, 4), settings)
    torch.testing.assert_close(made, forward_maps(tokens, maps, (4, 4), settings), atol=1e-6, rtol=1e-5)


def test_the_triton_forwarder_is_the_package_s():
    pytest.importorskip("triton")
    code = """if True:
        import torch
        from forwarder_triton import forward_triton
        from timet.feature_forwarder import forward_maps
        from timet.settings import Forwarder
        torch.manual_seed(0)
        settings = Forwarder(radius=1, topk=3, context=1)
        for frames in (3, 1):
            tokens = torch.randn(1, frames, 9, 32).expand(1, 3, 9, 32).contiguous()
            maps = torch.rand(1, 9, 6).softmax(-1)
            want = forward_maps(tokens, maps, (3, 3), settings)
            torch.testing.assert_close(forward_triton(tokens, maps, (3, 3), settings), want, atol=1e-6, rtol=1e-5)
    """
    path = os.pathsep.join((str(FOLDER), str(FOLDER.parent)))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=80, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_section_that_fails_or_takes_too_long_stops_no_other(gpu, tmp_path, monkeypatch, capsys):
    def fails(bench):
        raise ModuleNotFoundError("No module named 'nothing'")

    def sleeps(bench):
        bench.attempt("sleep", lambda: time.sleep(30))

    sections = {"A": (fails, 9), "B": (sleeps, 1), "C": (lambda bench: bench.say("was here", ms=1.23456), 9)}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    monkeypatch.setattr(gpu, "ORDER", "ABC")
    bench = gpu.Bench(tmp_path, tiny=True)
    gpu.measure_all(bench, "", 60)
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [(row["section"], row["name"]) for row in rows[1:]] == [("A", "FAILED"), ("B", "FAILED"), ("C", "was here")]
    assert bench.failures == 2 and rows[-1]["ms"] == 1.235
    assert "took too long" in capsys.readouterr().out


def test_a_later_call_replaces_a_section(gpu, tmp_path):
    def call(name: str, rows: list[tuple[str, str, float]]) -> Path:
        lines = [{"section": "", "name": "device", "device": "A Card", "tiny": False}]
        lines += [{"section": letter, "name": what, "ms": ms} for letter, what, ms in rows]
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    first = call("first.jsonl", [("D", "frozen part", 20.0), ("D", "FAILED", 0.0), ("A", "copy on the card", 1.0)])
    second = call("second.jsonl", [("D", "frozen part", 18.0)])
    rows = gpu.read_rows([first, second])
    assert [(row["section"], row.get("ms")) for row in rows] == [("", None), ("A", 1.0), ("D", 18.0)]
    assert gpu.is_result(rows)
    path = gpu.write_table(rows, tmp_path)
    assert path.name == "gpu_a_card.md"
    assert "| D | frozen part | ms 18.0 | 16.6-24 ms |" in path.read_text()


def test_the_rehearsal_knows_the_package_as_it_is(tmp_path):
    command = [sys.executable, str(FOLDER / "gpu.py"), "--tiny", "--only", "A,B,C,D,F", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=FOLDER.parent, check=False)
    assert "FAILED" not in done.stdout, done.stdout[-3000:]
    assert "the package's loader" in done.stdout and done.returncode == 0, done.stderr[-2000:]
