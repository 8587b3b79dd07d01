"Tokens of pictures on the disk: found again by content, in several processes, after a kill."

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from timet.core import TimetError, samples_dir
from timet.data.find import find_sources
from timet.data.images import Images, frames_as_images, image_file
from timet.eval.cache import cache_limit, cached_arrays, content_key, kept_tokens, say_size
from timet.eval.tokens import as_float, extract_tokens


class Patches(nn.Module):
    "Mean colours of 8 x 8 pixels; counts the pictures that passed."

    embed_dim = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = 0

    def grid(self, height, width):
        return height // 8, width // 8

    def tokens(self, images):
        self.seen += len(images)
        return (nn.functional.avg_pool2d(images, 8) * self.weight).flatten(2).transpose(1, 2)


def find(root) -> Images:
    return Images([image_file(f"{i}", f"{root}/{i}.png", f"{root}/m{i}.png") for i in range(9)])


HEAD = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from test_cache import SIZES, Patches, find
from timet.eval.cache import cached_arrays, kept_arrays, kept_tokens
from timet.core import TimetError
from timet.run.processes import this_shard
"""
SIZES = {"image_size": 16, "mask_size": 5, "batch_size": 2, "device": "cpu"}


@pytest.fixture
def root(tmp_path) -> Path:
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(9):
        Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(rng.choice([0, 1, 255], (16, 24)).astype(np.uint8)).save(folder / f"m{i}.png")
    return folder


def touch(file: Path) -> None:
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def test_the_second_time_nothing_runs(root, tmp_path):
    model, images = Patches(), find(root)
    want = extract_tokens(Patches(), images, **SIZES)
    first = kept_tokens(model, images, folder=tmp_path / "c", **SIZES)[0]
    again = kept_tokens(model, images, folder=tmp_path / "c", **SIZES)[0]
    assert model.seen == 9
    for got in (first, again, kept_tokens(Patches(), images, **SIZES)[0]):
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_array_equal(got.masks, want.masks)
        assert got.grid == (2, 2) and got.names == images.names
    assert isinstance(again.tokens, np.memmap) and not again.tokens.flags.writeable
    # the same tokens with masks of another size; another precision of what is kept is another entry
    assert kept_tokens(model, images, folder=tmp_path / "c", **SIZES | {"mask_size": 7})[0].masks.shape == (9, 7, 7)
    assert model.seen == 9
    small = kept_tokens(model, images, folder=tmp_path / "c", store="bf16", **SIZES)[0]
    assert model.seen == 18 and small.tokens.dtype == np.uint16
    np.testing.assert_allclose(as_float(small.tokens), want.tokens, rtol=2**-8)


def test_what_changes_the_tokens_and_what_only_the_masks(root, tmp_path):
    model = Patches()

    def passes() -> int:
        before = model.seen
        kept_tokens(model, find(root), folder=tmp_path / "c", **SIZES)[0]
        return model.seen - before

    assert (passes(), passes()) == (9, 0)
    touch(root / "3.png")
    assert (passes(), passes()) == (9, 0)
    Image.fromarray(np.full((16, 24), 1, np.uint8)).save(root / "m3.png")
    touch(root / "m3.png")
    assert passes() == 0
    assert (kept_tokens(model, find(root), folder=tmp_path / "c", **SIZES)[0].masks[3] == 1).all()
    keys = [content_key(model, find(root), {}), content_key(None, find(root), {})]
    keys += [content_key(model, find(root).subset([1, 0]), {}), content_key(None, find(root).subset([1, 0]), {})]
    white = Images([image_file(i.name, *i.files, *i.mask_files, white=True) for i in find(root).items])
    keys.append(content_key(None, white, {}))
    assert len(set(keys)) == len(keys) and content_key(model, white, {}) == keys[0]


def test_frames_of_videos_are_cached_too(tmp_path):
    videos = find_sources(samples_dir() / "heldout")[:2]
    model = Patches()
    for per_video, seen in ((2, 4), (2, 4), (1, 6)):
        kept_tokens(model, frames_as_images(videos, per_video), folder=tmp_path, **SIZES)[0]
        assert model.seen == seen


def test_clips_of_videos_and_their_masks_are_kept_apart(tmp_path):
    videos, model = find_sources(samples_dir() / "heldout")[:3], Patches()
    clips = {"num_frames": 2, "image_size": 16, "batch_size": 4, "device": "cpu", "folder": tmp_path}
    for mask_size, more, seen, kept in (
        (5, {}, 6, False),
        (5, {}, 6, True),
        (7, {}, 6, True),
        (5, {"seed": 1}, 12, False),
    ):
        found, there = kept_tokens(model, videos, mask_size=mask_size, **clips, **more)
        assert (model.seen, there) == (seen, kept) and found.masks.shape == (3, 2, mask_size, mask_size)
        assert found.tokens.shape == (3, 2, 4, 3) and found.index.shape == (3, 2) and found.names == videos.names
        want = extract_tokens(
            Patches(), videos, mask_size=mask_size, **{k: v for k, v in clips.items() if k != "folder"}, **more
        )
        for name in ("tokens", "masks", "index"):
            np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
    assert len(list(tmp_path.iterdir())) == 5  # two of tokens, three of masks
    half, _ = kept_tokens(model, videos, mask_size=5, store="bf16", keep_frames=True, **clips)
    assert half.tokens.dtype == np.uint16 and half.frames.shape == (3, 2, 16, 16, 3) and half.frames.dtype == np.uint8


def test_a_damaged_entry_is_made_anew(root, tmp_path):
    model = Patches()
    kept_tokens(model, find(root), folder=tmp_path / "c", **SIZES)[0]
    for file in (tmp_path / "c").glob("*/tokens.npy"):
        file.write_bytes(b"\x93NUMPY")
    kept_tokens(model, find(root), folder=tmp_path / "c", **SIZES)[0]
    assert model.seen == 18 and not list((tmp_path / "c").glob(".part-*"))
    assert sorted(p.name for p in (tmp_path / "c").glob("*/*")) == ["masks.npy", "tokens.npy"]


def test_the_size_is_said_in_advance(root, tmp_path, capsys, monkeypatch):
    say_size((1449, 784, 384), "bf16", Path("x"))
    assert capsys.readouterr().err == "tokens: 1,449 x 784 x 384 in bf16, 0.87 GB in x\n"
    kept_tokens(Patches(), find(root), folder=tmp_path / "c", **SIZES)[0]
    assert capsys.readouterr().err == ""  # too small for a word
    from timet.eval import cache

    monkeypatch.setattr(cache, "say_size", lambda *a: say_size(*a, worth=0))
    for said in ("tokens: 9 x 4 x 3 in bf16, 0.00 GB in ", ""):
        kept_tokens(Patches(), find(root), folder=tmp_path / "c", store="bf16", **SIZES)[0]
        assert capsys.readouterr().err.startswith(said) and (said or not capsys.readouterr().err)
    kept_tokens(Patches(), find(root), **SIZES)[0]
    assert "in memory" in capsys.readouterr().err


def test_how_much_may_be_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("TIMET_CACHE_GB", raising=False)
    assert cache_limit() == 30e9
    monkeypatch.setenv("TIMET_CACHE_GB", "0.5")
    assert cache_limit() == 0.5e9
    monkeypatch.setenv("TIMET_CACHE_GB", "much")
    with pytest.raises(TimetError, match="TIMET_CACHE_GB must be a number"):
        cache_limit()
    monkeypatch.setenv("TIMET_CACHE_GB", "0")
    for key in "ab":  # what was used within the hour stays: a run may need both
        cached_arrays(tmp_path, key, lambda allocate: allocate("tokens", (9,), np.uint8), names=("tokens",))
    assert (tmp_path / "a").exists()
    os.utime(tmp_path / "a", (0, 0))
    cached_arrays(tmp_path, "c", lambda allocate: allocate("tokens", (9,), np.uint8), names=("tokens",))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c"]


def run_pair(code: str, *words: str) -> list[subprocess.CompletedProcess]:
    "Two processes of one run, as `torchrun` starts them."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    running = []
    for rank in range(2):
        env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *words], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    done = []
    for child in running:
        out, err = child.communicate(timeout=100)
        done.append(subprocess.CompletedProcess(code, child.returncode, out, err))
    return done


def test_two_processes_of_one_run_fill_one_entry(root, tmp_path):
    code = (
        HEAD
        + """
model, images, folder = Patches(), find(sys.argv[1]), Path(sys.argv[2])
shard = this_shard()
kept = kept_tokens(model, images, folder=folder, **SIZES)[0]
shares = model.seen
again = kept_tokens(model, images, folder=folder, **SIZES)[0]
bare = kept_tokens(model, images, **SIZES)[0]
assert (bare.tokens == kept.tokens).all() and (bare.masks == kept.masks).all() and bare.tokens.sum() != 0
print(shard, shares, model.seen, flush=True)

def breaks(allocate):
    a = allocate("tokens", (2,), np.float32)
    if shard[0] == 1:
        raise TimetError("picture 5 is broken")

def cannot(allocate):
    if shard[0] == 1:
        raise TimetError("no room")
    allocate("tokens", (2,), np.float32)

for folder, fill in ((folder, breaks), (None, cannot)):
    try:
        kept_arrays(folder, lambda: "broken", fill, names=("tokens",), shard=shard)
    except TimetError as error:
        print(error, flush=True)

from timet.evaluate import main
main(sys.argv[3:])
"""
    )
    words = [
        "random",
        "--backbone",
        "timet_tiny_patch8_96",
        "--data",
        str(samples_dir() / "heldout"),
        "--device",
        "cpu",
    ]
    words += [
        "--image-size",
        "48",
        "--mask-size",
        "24",
        "--num-frames",
        "1",
        "--protocol",
        "clip",
        "--seeds",
        "1",
        "--no-floors",
    ]
    done = run_pair(code, str(root), str(tmp_path / "c"), *words, "--cache", str(tmp_path / "videos"))
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    first, second = (d.stdout.splitlines() for d in done)
    assert first[0] == "(0, 2) 4 8" and second[0] == "(1, 2) 5 10"  # five groups of two: two and three of them
    said = ["picture 5 is broken", "no room"]
    assert first[1:3] == [f"another process of this run failed: {s}" for s in said] and second[1:] == said
    assert "12 clips of 1 frames" in first[3] and "one pass of the backbone" in first[-1]  # the first scores and prints
    assert len(list((tmp_path / "c").iterdir())) == 2  # tokens, masks, and no remains
    model = Patches()
    kept = kept_tokens(model, find(root), folder=tmp_path / "c", **SIZES)[0]
    want = extract_tokens(Patches(), find(root), **SIZES)
    assert model.seen == 0
    np.testing.assert_array_equal(kept.tokens, want.tokens)
    np.testing.assert_array_equal(kept.masks, want.masks)


def test_two_runs_at_once_and_a_killed_one(root, tmp_path):
    code = (
        HEAD
        + """
class Slow(Patches):
    def tokens(self, images):
        print("running", flush=True)
        sys.stdin.readline()
        return super().tokens(images)

kept = kept_tokens(Slow(), find(sys.argv[1]), folder=Path(sys.argv[2]), **SIZES)[0]
print("sum", float(kept.tokens.sum()), flush=True)
"""
    )
    folder = tmp_path / "c"
    words = [sys.executable, "-c", code, str(root), str(folder)]
    killed, slower = (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    for child in (killed, slower):
        assert child.stdout.readline().strip() == "running"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    mine = kept_tokens(Patches(), find(root), folder=folder, **SIZES)[0]  # finishes while the other is at work
    said = slower.communicate("\n" * 9, timeout=100)[0].splitlines()[-1]
    assert slower.returncode == 0 and said == f"sum {float(mine.tokens.sum())}"
    left = list(folder.glob(".part-*"))
    assert len(left) == 1 and len(list(folder.iterdir())) == 3
    os.utime(left[0], (time.time() - 90_000,) * 2)
    model = Patches()
    kept_tokens(model, find(root), folder=folder, **SIZES | {"mask_size": 3})[0]  # a day later it is swept up
    assert model.seen == 0 and not left[0].exists()
