"""Frames that are decoded once: the same pixels whoever decodes them, whole or absent, and no larger than they must be."""

import fcntl
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timet.core import TimetError
from timet.data.clips import ClipAugment, EvalTransform, shrink_box
from timet.data.find import find_sources
from timet.data.frames import (
    FrameCache,
    FramesInMemory,
    fill,
    listing,
    make_kept,
    make_room,
    read_kept,
    reserve,
    shrink,
)
from timet.data.loader import ClipDataset, make_loader
from timet.data.source import FolderSource, Source
from timet.data.verify import main


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    "Four folders of frames, the last with a damaged one."
    rng = np.random.default_rng(0)
    for k in range(4):
        (tmp_path / "films" / f"f{k}").mkdir(parents=True)
        for n in range(8 + k):
            small = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
            Image.fromarray(small).resize((120, 90), Image.BICUBIC).save(tmp_path / "films" / f"f{k}" / f"{n:03}.png")
    (tmp_path / "films" / "f3" / "005.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    return tmp_path / "films"


AUGMENT = ClipAugment(32, scale=(0.5, 1.0))


def cache_of(folder: Path, transform=AUGMENT, **options) -> FrameCache:
    return FrameCache(folder / "cache", transform, **options)


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (1.0, 1.0), (0.5, 3.0)])
def test_no_crop_of_a_kept_frame_is_too_small(ratio):
    rng = np.random.default_rng(1)
    for _ in range(2000):
        size, wanted = tuple(int(x) for x in rng.integers(30, 700, 2)), tuple(int(x) for x in rng.integers(8, 90, 2))
        augment = ClipAugment(wanted, scale=(0.3, 0.6), ratio=ratio)
        kept = augment.kept_size(*size)
        top, left, height, width = shrink_box(augment.draw(*size, rng).box, size, kept)
        assert kept[0] <= size[0] and kept[1] <= size[1] and 0 <= top and 0 <= left
        assert top + height <= kept[0] and left + width <= kept[1]
        if kept != size:
            assert height >= wanted[0] and width >= wanted[1]


def test_a_box_stays_where_it_is():
    assert shrink_box((3, 5, 20, 30), (90, 120), (90, 120)) == (3, 5, 20, 30)
    top, left, height, width = shrink_box((30, 40, 31, 41), (90, 120), (45, 60))
    assert (top, left, height, width) == (15, 20, 16, 21)  # 15.0 to 30.5, 20.0 to 40.5


def test_a_cache_changes_no_pixel_of_a_clip(folders, tmp_path):
    sources = find_sources(folders)[:3]
    sizes = {}

    class Noted(FrameCache):
        def get(self, source: Source):
            found = super().get(source)
            sizes[source.name] = found is not None
            return found

    def clips(store, workers=0):
        dataset = ClipDataset(sources, transform=AUGMENT, repeats=4, store=store)
        return torch.cat([batch["clip"] for batch in make_loader(dataset, batch_size=4, num_workers=workers)])

    nothing = cache_of(tmp_path / "a")
    nothing.share = 0.0  # all are decoded every time
    want = clips(nothing)
    assert torch.equal(want, clips(Noted(tmp_path / "b", AUGMENT))) and all(sizes.values())
    assert torch.equal(want, clips(cache_of(tmp_path / "c"), workers=2))
    assert not list((tmp_path / "a").rglob("*.frames")) and len(list((tmp_path / "c").rglob("*.frames"))) == 3


def test_frames_that_are_small_enough_are_kept_as_they_are(folders, tmp_path):
    source = find_sources(folders)[0]
    kept = cache_of(tmp_path, ClipAugment(88, scale=(0.5, 1.0))).get(source)
    assert kept.full == (90, 120) and kept.frames.shape == (8, 90, 120, 3)
    np.testing.assert_array_equal(kept.frames, source.frames(np.arange(8)))
    np.testing.assert_array_equal(kept.starts, source.starts)
    squashed = cache_of(tmp_path, EvalTransform((20, 24))).get(source)
    want = EvalTransform((20, 24)).cut(None, source.frames(np.arange(8)))
    np.testing.assert_array_equal(squashed.frames, want.permute(0, 2, 3, 1))


def test_a_changed_file_is_decoded_anew(folders, tmp_path):
    source, cache = find_sources(folders)[0], cache_of(tmp_path)
    before = np.array(cache.get(source).frames)
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(folders / "f0" / "000.png")
    after = cache.get(FolderSource(source.name, source.path)).frames
    assert not after[0].any() and (after[1:] == before[1:]).all()
    assert listing(None) == [] and [name for name, *_ in listing(source.path)] == [f"{n:03}.png" for n in range(8)]


def test_a_damaged_source_is_not_kept_and_still_used(folders, tmp_path):
    sources, cache = find_sources(folders), cache_of(tmp_path)
    assert cache.get(sources[3]) is None and cache.get(sources[3]) is None
    dataset = ClipDataset(sources, transform=AUGMENT, delta_t=0.04, store=cache, repeats=20)
    made = [dataset[0, 4 * i + 3] for i in range(20)]  # of the damaged one, where it can be
    assert {item["index"] == 3 for item in made} == {True, False}
    assert all(item["bad"] for item in made if item["index"] != 3)


class Slow(FolderSource):
    "A source whose frames come slowly."

    def frames(self, index):
        if len(np.atleast_1d(index)) > 4:
            time.sleep(1.5)
        return super().frames(index)


def _make(path: str, source: Source) -> None:
    make_kept(Path(path), source, (45, 60))


def test_one_process_makes_a_file_and_the_others_do_not_wait(folders, tmp_path):
    found, path = find_sources(folders)[0], tmp_path / "aa" / "x.frames"
    slow = Slow(found.name, found.path)
    maker = multiprocessing.get_context("fork").Process(target=_make, args=(str(path), slow))
    maker.start()
    while not path.with_suffix(".part").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    start = time.perf_counter()
    assert make_kept(path, slow, (45, 60)) is False and time.perf_counter() - start < 0.5
    maker.join()
    assert make_kept(path, slow, (45, 60)) is True and read_kept(path).frames.shape == (8, 45, 60, 3)
    assert not path.with_suffix(".part").exists()


def test_a_killed_process_leaves_nothing_that_looks_whole(folders, tmp_path):
    found, path = find_sources(folders)[0], tmp_path / "aa" / "x.frames"
    maker = multiprocessing.get_context("fork").Process(target=_make, args=(str(path), Slow(found.name, found.path)))
    maker.start()
    while not path.with_suffix(".part").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(maker.pid, signal.SIGKILL)
    maker.join()
    assert path.with_suffix(".part").exists() and read_kept(path) is None
    assert make_kept(path, found, (45, 60)) and not path.with_suffix(".part").exists()
    np.testing.assert_array_equal(read_kept(path).frames, shrink(found.frames(np.arange(8)), (45, 60)))


def test_a_full_disk_ends_the_keeping_and_not_the_run(folders, tmp_path, monkeypatch, capsys):
    sources, cache = find_sources(folders)[:3], cache_of(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("timet.data.frames._write_kept", full)
    assert cache.get(sources[0]) is None and cache.get(sources[1]) is None
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.frames"))
    with pytest.raises(TimetError, match="No space left on device; what is whole stays"):
        fill(cache_of(tmp_path / "other"), sources, workers=1)


def test_room_is_made_by_age_and_what_is_new_stays(folders, tmp_path):
    sources, cache = find_sources(folders)[:3], cache_of(tmp_path)
    fill(cache, sources, workers=1)
    files = [cache.path(source) for source in sources]
    size = sum(file.stat().st_size for file in files)
    assert make_room(cache.folder, 0) == size  # all of them were used within the hour
    for age, file in zip((9000, 8000, 7000), files):
        os.utime(file, (time.time() - age,) * 2)
    oldest = files[0].stat().st_size
    assert make_room(cache.folder, size - 1) == size - oldest
    assert [file.exists() for file in files] == [False, True, True]
    cache.get(sources[1])  # used: its time is now
    make_room(cache.folder, 0)
    assert [file.exists() for file in files] == [False, True, False]


def test_what_does_not_fit_is_said_and_chosen_by_name(folders, tmp_path):
    for file in folders.rglob("*.*"):
        os.utime(file, (1e9, 1e9))  # which are chosen follows from names and times
    sources = find_sources(folders)[:3]
    cache = cache_of(tmp_path, gigabytes=1.2e-4)
    said = reserve(cache, sources)
    assert 0 < cache.share < 1 and "only 0.1 MB more may be kept" in said and "are decoded every time" in said
    there, wrong = fill(cache, sources, workers=1)
    assert there < 3 and wrong == []
    whole = cache_of(tmp_path / "whole")
    assert "frames of 3 videos are kept at" in reserve(whole, sources) and whole.share == 1.0
    fill(whole, sources, workers=2)
    assert reserve(whole, sources).endswith("are there")


def test_memory_is_shared_out_and_does_not_travel(folders):
    sources = find_sources(folders)[:3]
    memory = FramesInMemory(1.0, 3)  # 333 kB each: 8, 9 and 10 frames of 32 kB
    assert memory.preload(sources) == 3 and FramesInMemory(0.8, 3).preload(sources) == 1
    assert FramesInMemory().get(sources[0]) is None
    np.testing.assert_array_equal(memory.clip(sources[0], [2, 3]), sources[0].frames([2, 3]))


def test_the_command(folders, tmp_path, capsys):
    words = ["cache", str(folders), "--frame-cache", str(tmp_path / "kept"), "--image-size", "32", "--workers", "1"]
    main(words)
    out = capsys.readouterr().out
    height, width = ClipAugment(32, scale=(0.4, 1.0)).kept_size(90, 120)
    assert f"frames of 4 videos are kept at {height} x {width} in {tmp_path / 'kept'}" in out
    assert "3 of 4 videos are kept" in out and "f3" in out and "005.png" in out
    main(words)
    assert "are there" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["cache", str(tmp_path / "nowhere")])
    assert "cannot find" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(folders, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TimetError, match="choose another --frame-cache"):
        reserve(FrameCache(tmp_path / "file" / "x", AUGMENT), find_sources(folders))


def test_half_files_of_killed_processes_are_swept_and_those_that_grow_stay(folders, tmp_path):
    cache = cache_of(tmp_path)
    grows, left, foreign = cache.folder / "ab/grows.part", cache.folder / "ab/left.part", cache.folder / "mine.part"
    left.parent.mkdir(parents=True)
    for file in (grows, left, foreign):
        file.write_text("half")
    with open(grows, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        reserve(cache, find_sources(folders)[:1])
        assert grows.exists() and foreign.exists() and not left.exists()
    reserve(cache, find_sources(folders)[:1])
    assert not grows.exists()
