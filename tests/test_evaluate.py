"The evaluation command: what may be a checkpoint, tokens kept on the disk, the table, one sentence for every mistake."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timet.backbone import create_backbone, export_backbone, open_backbone
from timet.core import TimetError
from timet.data.find import find_sources
from timet.data.frames import cache_folder
from timet.eval import cache as room
from timet.eval.cache import cached_arrays, content_key, fingerprint
from timet.eval.clustering import evaluate
from timet.eval.tokens import Clips
from timet.evaluate import EvaluateConfig, format_table, load_tokens, main

TINY = "timet_tiny_patch8_96"


def make_davis(root, names=("cow", "dog", "fox"), frames=5, meta=True, masks=True):
    "A small set in DAVIS's layout: a bright square that walks over noise."
    rng = np.random.default_rng(0)
    for v, name in enumerate(names):
        pictures, labels = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
        pictures.mkdir(parents=True)
        if masks:
            labels.mkdir(parents=True)
        for t in range(frames):
            mask = np.zeros((48, 64), np.uint8)
            mask[8 + 4 * v : 32 + 4 * v, 6 * t : 6 * t + 20] = 1
            picture = rng.integers(0, 90, (48, 64, 3)) + mask[..., None] * (100 + 20 * v)
            Image.fromarray(picture.astype(np.uint8)).save(pictures / f"{t:05d}.jpg")
            if masks:
                image = Image.fromarray(mask, "P")
                image.putpalette([0, 0, 0, 200, 0, 0])
                image.save(labels / f"{t:05d}.png")
    if meta:
        videos = {n: {"objects": {"1": {"category": c}}} for n, c in zip(names, ("beast", "pet", "beast"))}
        (root / "meta.json").write_text(json.dumps({"videos": videos}))
    return root


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    return make_davis(tmp_path_factory.mktemp("davis"))


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return create_backbone(TINY, weights="none", tuned_blocks=0)


def command(davis, cache, *words):
    return [
        "random",
        "--backbone",
        TINY,
        "--data",
        str(davis),
        "--cache",
        str(cache),
        "--num-frames",
        "3",
        "--no-floors",
        *words,
    ]


# -- checkpoints


def test_every_kind_of_checkpoint_gives_the_same_weights(tiny, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    export_backbone(tiny, run / "backbone.safetensors")
    plain = tmp_path / "net.pth"
    torch.save(tiny.model.state_dict(), plain)
    want = fingerprint(tiny)
    for checkpoint, backbone in ((run, None), (run / "backbone.safetensors", None), (plain, TINY)):
        assert fingerprint(open_backbone(str(checkpoint), backbone=backbone)) == want
    assert fingerprint(open_backbone("random", backbone=TINY, seed=3)) != want
    assert fingerprint(open_backbone("random", backbone=TINY)) == fingerprint(open_backbone("random", backbone=TINY))


def test_checkpoints_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "net.pth").write_bytes(b"no checkpoint")
    (tmp_path / "alone.safetensors").write_bytes(b"")
    for checkpoint, backbone, words in [
        ("runs/gone.pt", None, "there is no checkpoint runs/gone.pt"),
        (tmp_path / "empty", None, "no finished run"),
        (tmp_path / "net.pth", None, "--backbone"),
        (tmp_path / "alone.safetensors", None, "--backbone"),
        (tmp_path / "net.pth", TINY, "net.pth"),
        ("vit_smal_patch16_224", None, "no backbone"),
        ("random", "nothing", "no backbone"),
    ]:
        with pytest.raises(TimetError) as caught:
            open_backbone(str(checkpoint), backbone=backbone)
        assert words in str(caught.value)


# -- the cache


def test_the_key_changes_with_everything_that_matters(tiny, tmp_path):
    root = make_davis(tmp_path / "set", frames=2)
    keys = [content_key(tiny, find_sources(root), {"seed": 0})]
    assert content_key(tiny, find_sources(root), {"seed": 0}) == keys[0]
    keys.append(content_key(tiny, find_sources(root), {"seed": 1}))
    keys.append(content_key(tiny, find_sources(root)[:2], {"seed": 0}))
    keys.append(content_key(tiny, find_sources(root, fps=3), {"seed": 0}))
    for file in ("JPEGImages/480p/cow/00000.jpg", "Annotations/480p/dog/00001.png"):
        stat = (root / file).stat()
        os.utime(root / file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
        keys.append(content_key(tiny, find_sources(root), {"seed": 0}))
    meta = json.loads((root / "meta.json").read_text())
    meta["videos"]["cow"]["objects"]["1"]["category"] = "aaa"
    (root / "meta.json").write_text(json.dumps(meta))
    keys.append(content_key(tiny, find_sources(root), {"seed": 0}))
    other = create_backbone(TINY, weights="none", tuned_blocks=0)
    other.load_state_dict(tiny.state_dict())
    assert content_key(other, find_sources(root), {"seed": 0}) == keys[-1]
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    keys.append(content_key(other, find_sources(root), {"seed": 0}))
    assert len(set(keys)) == len(keys)


def fill_with(value, calls=None):
    def fill(allocate):
        if calls is not None:
            calls.append(value)
        for name in ("tokens", "masks", "index"):
            allocate(name, (2, 5), np.float32)[:] = value

    return fill


def test_entries_are_whole_or_absent(tmp_path):
    calls = []
    for value in (1, 2):
        arrays, there = cached_arrays(tmp_path, "a", fill_with(value, calls))
        assert there == (value == 2) and (arrays["tokens"] == 1).all()
    assert calls == [1] and not arrays["tokens"].flags.writeable
    # damaged entries are made anew
    (tmp_path / "a" / "masks.npy").write_bytes(b"\x93NUMPY")
    assert (cached_arrays(tmp_path, "a", fill_with(3))[0]["masks"] == 3).all()
    (tmp_path / "a" / "index.npy").unlink()
    assert (cached_arrays(tmp_path, "a", fill_with(4))[0]["tokens"] == 4).all()

    def breaks(allocate):
        allocate("tokens", (2, 5), np.float32)
        raise TimetError("no")

    with pytest.raises(TimetError, match="no"):
        cached_arrays(tmp_path, "b", breaks)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_faster_of_two_wins(tmp_path):
    def slow(allocate):
        cached_arrays(tmp_path, "a", fill_with(1))  # another process, meanwhile
        fill_with(2)(allocate)

    arrays, there = cached_arrays(tmp_path, "a", slow)
    assert not there and (arrays["tokens"] == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_cache_is_bounded_and_sweeps_up(tmp_path):
    for i, key in enumerate("abc"):
        cached_arrays(tmp_path, key, fill_with(i))
        os.utime(tmp_path / key, (i, i))
    stale, fresh = tmp_path / ".part-old", tmp_path / ".part-new"
    stale.mkdir()
    fresh.mkdir()
    os.utime(stale, (0, 0))
    cached_arrays(tmp_path, "b", fill_with(9))  # used just now
    cached_arrays(tmp_path, "d", fill_with(9), limit=1200)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".part-new", "b", "d"]
    assert cached_arrays(tmp_path, "e", fill_with(9), limit=1)[1] is False  # the one in use always stays
    assert (tmp_path / "e").exists()


def test_a_kill_leaves_nothing_that_looks_like_an_answer(tmp_path):
    code = f"""
import time, numpy as np
from pathlib import Path
from timet.eval.cache import cached_arrays
def fill(allocate):
    allocate("tokens", (2, 5), np.float32)[:] = 1
    print("half", flush=True)
    time.sleep(60)
cached_arrays(Path({str(tmp_path)!r}), "a", fill)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline().strip() == "half"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "a").exists()
    arrays, there = cached_arrays(tmp_path, "a", fill_with(2))
    assert not there and (arrays["tokens"] == 2).all()


def test_a_full_disk_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(TimetError, match="--no-cache"):
        cached_arrays(file / "cache", "a", fill_with(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(TimetError, match="No space left"):
        cached_arrays(tmp_path / "cache", "a", fill_with(1))
    assert not list((tmp_path / "cache").iterdir())


def test_where_tokens_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("TIMET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "timet"
    monkeypatch.setenv("TIMET_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


# -- the command


def test_one_pass_for_all_protocols_and_none_the_second_time(davis, tmp_path, capsys, monkeypatch):
    calls = []
    real = room.read_tokens
    monkeypatch.setattr(room, "read_tokens", lambda *a, **k: calls.append(1) or real(*a, **k))
    before = {p: p.stat().st_mtime_ns for p in davis.rglob("*")}
    main(command(davis, tmp_path / "cache", "--seeds", "2", "--k", "gt", "6", "--out", str(tmp_path / "out.json")))
    first = capsys.readouterr().out
    assert "one pass of the backbone" in first and "3 clips of 3 frames" in first
    main(command(davis, tmp_path / "cache", "--seeds", "2", "--k", "gt", "6", "--out", str(tmp_path / "again.json")))
    second = capsys.readouterr().out
    assert "kept from before" in second and len(calls) == 1
    assert first.split("one pass")[0] == second.split("tokens were")[0]
    assert {p: p.stat().st_mtime_ns for p in davis.rglob("*")} == before  # the user's data is only read

    one, two = (json.loads((tmp_path / f).read_text()) for f in ("out.json", "again.json"))
    assert one["scores"] == two["scores"] and one["fingerprint"] == two["fingerprint"]
    assert [(s["protocol"], s["k"]) for s in one["scores"]] == [
        (p, k) for p in ("frame", "clip", "dataset") for k in ("gt", "6")
    ]
    # the same numbers as from Python
    config = EvaluateConfig("random", davis, backbone=TINY, clips=Clips(3), no_cache=True)
    sources = find_sources(davis)
    video, there = load_tokens(config, open_backbone("random", backbone=TINY), sources)
    assert not there and video.semantic and video.classes == {0: "background", 1: "beast", 2: "pet"}
    for row in one["scores"]:
        k = row["k"] if row["k"] == "gt" else int(row["k"])
        score = evaluate(video, protocol=row["protocol"], k=k, seeds=2)
        np.testing.assert_allclose(row["values"], score.values, atol=1e-6)
        assert set(row["per_class"]) == {"background", "beast", "pet"}
        assert f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" in first


def test_length_of_clips_follows_the_dataset(davis, tiny):
    config = EvaluateConfig("random", davis, backbone=TINY, no_cache=True, clips=Clips(image_size=48, mask_size=32))
    video, _ = load_tokens(config, tiny, find_sources(davis))
    assert video.tokens.shape == (3, 16, 36, 128) and video.masks.shape == (3, 16, 32, 32)


def test_more_clusters_than_patches(davis, tmp_path, capsys):
    words = command(davis, tmp_path, "--seeds", "1", "--image-size", "24", "--protocol", "frame", "clip")
    main([*words, "--k", "gt", "20"])
    out = capsys.readouterr().out
    assert "- frame, K = 20: a frame has only 9 patches" in out
    with pytest.raises(SystemExit) as stop:
        main([*words, "--k", "20"])
    assert stop.value.code == 2 and "1 to 9 clusters" in capsys.readouterr().err


def test_ids_of_single_videos(tmp_path, capsys):
    root = make_davis(tmp_path / "set", meta=False)
    words = ["random", "--backbone", TINY, "--data", str(root), "--no-cache", "--num-frames", "2", "--seeds", "1"]
    main(words)
    out = capsys.readouterr().out
    assert "clip " in out and "dataset" not in out
    with pytest.raises(SystemExit):
        main([*words, "--protocol", "dataset"])
    assert "objects of one video each" in capsys.readouterr().err
    main([*words, "--protocol", "dataset", "--force"])
    assert "dataset" in capsys.readouterr().out


def test_videos_without_masks_are_left_out_or_refused(tmp_path, capsys):
    import shutil

    root = make_davis(tmp_path / "set")
    shutil.rmtree(root / "Annotations" / "480p" / "fox")
    words = ["random", "--backbone", TINY, "--data", str(root), "--no-cache", "--num-frames", "2", "--seeds", "1"]
    main([*words, "--protocol", "frame"])
    assert "1 videos without masks were left out" in capsys.readouterr().out
    bare = make_davis(tmp_path / "bare", meta=False, masks=False)
    with pytest.raises(SystemExit) as stop:
        main(["random", "--backbone", TINY, "--data", str(bare), "--no-cache"])
    assert stop.value.code == 2 and "no masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        (["--k", "many"], "--k takes gt and numbers from 1"),
        (["--k", "0"], "--k takes gt and numbers from 1"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--num-frames", "0"], "--num-frames must be at least 1"),
        (["--image-size", "30"], "does not divide"),
        (["--device", "gpu"], "device must be"),
        (["--split", "nothing"], "nothing"),
        (["--sampling", "regular", "--delta-t", "-1"], "--delta-t must be above 0"),
        (["--fps", "0"], "fps must be"),
        (["--data", "nowhere"], "cannot find nowhere"),
        (["--backbone", "nothing"], "no backbone"),
    ],
)
def test_mistakes_get_one_sentence(davis, tmp_path, capsys, change, words):
    with pytest.raises(SystemExit) as stop:
        main(command(davis, tmp_path / "cache", *change))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and words in err and "Traceback" not in err
    assert err.strip().count("\n") == 0


def test_an_unwritable_result(davis, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(
            command(
                davis, tmp_path / "cache", "--seeds", "1", "--protocol", "clip", "--out", str(tmp_path / "file" / "x")
            )
        )
    assert stop.value.code == 2 and "cannot write" in capsys.readouterr().err


def test_a_diverged_checkpoint(davis, tiny, tmp_path):
    broken = create_backbone(TINY, weights="none", tuned_blocks=0)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    export_backbone(broken, tmp_path / "backbone.safetensors")
    config = EvaluateConfig(str(tmp_path), davis, cache=tmp_path / "cache", clips=Clips(2))
    with pytest.raises(TimetError, match="no finite numbers"):
        load_tokens(config, open_backbone(config.checkpoint), find_sources(davis))
    assert not list((tmp_path / "cache").glob("*/tokens.npy"))  # the masks are right, and stay


def test_table():
    rng = np.random.default_rng(0)
    tokens, masks = rng.standard_normal((2, 2, 16, 4)), rng.integers(0, 3, (2, 2, 8, 8))
    scores = {("frame", "gt"): evaluate(tokens, masks, seeds=1), ("frame", "99"): "too many"}
    lines = format_table(scores).split("\n")
    assert lines[0].split() == ["K", "=", "GT", "K", "=", "99"] and lines[1].split() == ["hungarian"]
    assert lines[2].startswith("frame") and lines[2].endswith("-") and lines[3] == "- frame, K = 99: too many"


def test_module_and_help():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "timet.evaluate", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "CHECKPOINT" in done.stdout and "--protocol" in done.stdout
    assert time.perf_counter() - start < 60


@pytest.mark.skipif("TIMET_CLIPS" not in os.environ, reason="TIMET_CLIPS names no folder with real clips")
def test_real_clips(tmp_path, capsys):
    root = Path(os.environ["TIMET_CLIPS"]) / "davis16"
    if not root.is_dir():
        pytest.skip("no davis16 there")
    main(
        [
            "random",
            "--backbone",
            TINY,
            "--data",
            str(root),
            "--cache",
            str(tmp_path),
            "--num-frames",
            "4",
            "--seeds",
            "1",
        ]
    )
    assert "10 clips of 4 frames" in capsys.readouterr().out
