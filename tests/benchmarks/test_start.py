"The benchmark of the start: how a set is dealt, what a table says, and one tiny run that is done once and not again."

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timet.core import TimetError, samples_dir
from timet.lab.compare import Clip

PATH = Path(__file__).resolve().parents[2] / "benchmarks/start.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("benchmark_start", PATH)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_halves_share_nothing_and_hold_all(bench):
    dealt = bench.deal(["d", "a", "c", "b", "e"])
    assert dealt == {"a": (["a", "c", "e"], ["b", "d"]), "b": (["b", "d"], ["a", "c", "e"])}
    with pytest.raises(TimetError, match="two sequences"):
        bench.deal(["alone"])


def test_gains_are_taken_seed_by_seed(bench):
    found = {kind: {"score": [10.0 + i, 20.0 + i]} for i, kind in enumerate(bench.NETWORKS)}
    found["time-tuned"]["score"] = [13.0, 27.0]
    row = bench.table(found)[-1]
    assert row == "| score | 15.0 ± 5.0 | 16.0 ± 5.0 | 17.0 ± 5.0 | 20.0 ± 7.0 | +1.0 ± 0.0 | +3.0 ± 2.0 |"


def test_region_leaves_out_the_ends(bench):
    objects = np.zeros((4, 2, 2), int)
    objects[:, 0] = 1
    assert bench.region([objects[1], 0 * objects[2], 0 * objects[3]], objects) == 0.5
    assert np.isnan(bench.region([], 0 * objects))


def test_what_stands_still_is_kept(bench):
    still = np.broadcast_to(np.arange(4).reshape(2, 2), (3, 2, 2))
    clip = Clip("c", np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) / 2, (2, 2), {1: still}, "made")
    maps = np.broadcast_to(np.array([[0, 1], [1, 0]]), (4, 2, 2))
    assert bench.kept(maps, clip) == (1.0, 1.0)


def test_one_small_run_and_its_settings(bench, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for v, name in enumerate(("cow", "dog")):
        for part in ("JPEGImages", "Annotations"):
            (tmp_path / "set" / part / "480p" / name).mkdir(parents=True)
        for t in range(6):
            mask = np.zeros((32, 48), np.uint8)
            mask[8:24, 4 * t : 4 * t + 16] = 255
            picture = (rng.integers(0, 90, (32, 48, 3)) + (mask[..., None] > 0) * (100 + 20 * v)).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / f"set/JPEGImages/480p/{name}/{t:05d}.jpg")
            Image.fromarray(mask).save(tmp_path / f"set/Annotations/480p/{name}/{t:05d}.png")
    videos = {name: {"objects": {"1": {"category": "beast"}}} for name in ("cow", "dog")}
    bench.write_json(tmp_path / "set/meta.json", {"videos": videos})
    start, out = samples_dir() / "weights/timet_tiny.safetensors", tmp_path / "out"
    own = (
        f"start.py --data {tmp_path / 'set'} --start {start} --set davis --seeds 1 --frames 4 --patches 5 --clusters 6"
    )
    tuning = (
        f"--out {out} --max-steps 1 --image-size 32 --batch-size 2 --num-frames 2 --clips-per-source 2 --delta-t 0.1"
    )
    monkeypatch.setattr(sys, "argv", [*own.split(), *tuning.split()])
    bench.main()
    text = (out / "start.md").read_text(encoding="utf-8")
    assert text.count("±") > 30 and "nan" not in text and capsys.readouterr().out.count("time-tuned, seed 0") == 2
    assert len(list(out.glob("davis/*max_steps=1*/pictures/*.png"))) == 4
    assert not set((out / "davis/frames-48/not-a").iterdir()) & set((out / "davis/frames-48/not-b").iterdir())
    monkeypatch.setattr(bench, "train", None)
    bench.main()
    assert "time-tuned, seed 0" not in capsys.readouterr().out  # nothing is computed again
    monkeypatch.setattr(sys, "argv", [*own.replace("--frames 4", "--frames 5").split(), *tuning.split()])
    with pytest.raises(SystemExit):
        bench.main()
    assert "frames 4 and not 5" in capsys.readouterr().err


def test_tunings_have_names_of_their_own(bench):
    default = bench.preset_config("demo")
    assert bench.label(default, default) == "default"
    changed = bench.preset_config("demo", delta_t=0.5, head=(8, 4), seed=3, device="cpu")
    assert bench.label(changed, default) == "delta_t=0.5,head=8x4"
