"""Data sets and loaders: what a run sees follows from its seed, whoever makes it, and nobody is waited for."""

import gc
import os
import signal
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from timet.core import TimetError
from timet.data.clips import ClipAugment, EvalTransform, clip_index
from timet.data.find import find_sources
from timet.data.frames import FramesInMemory
from timet.data.loader import ClipDataset, make_loader, on_device
from timet.data.source import FolderSource
from timet.data.video import VideoError, take_fresh_scans


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    "Five videos and five folders of frames, all different."
    root = tmp_path_factory.mktemp("clips")
    for k in range(5):
        with av.open(str(root / f"v{k}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=24, options={"threads": "1", "preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 24)
            for n in range(30 + k):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * k + 4 * n, dtype=np.uint8), "rgb24")
                frame.pts, frame.time_base = n, Fraction(1, 24)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        (root / f"f{k}").mkdir()
        for n in range(3 + 10 * k):
            Image.fromarray(np.full((30, 40, 3), 20 * k + 3 * n, dtype=np.uint8)).save(root / f"f{k}" / f"{n}.png")
    return find_sources(root)


def batches(dataset, **kwargs) -> list[dict]:
    return list(make_loader(dataset, **kwargs))


def same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert torch.equal(x["clip"], y["clip"]) and torch.equal(x["index"], y["index"]) and x["bad"] == y["bad"]


def test_workers_change_nothing(sources):
    dataset = ClipDataset(sources, transform=ClipAugment(16), delta_t=0.2, seed=3)
    alone = batches(dataset, batch_size=3, epoch=4)
    assert len(alone) == 3 and alone[0]["clip"].shape == (3, 4, 3, 16, 16) and alone[0]["clip"].dtype == torch.float32
    same(alone, batches(dataset, batch_size=3, epoch=4))
    same(alone, batches(dataset, batch_size=3, epoch=4, num_workers=2))
    same(
        alone,
        batches(
            ClipDataset(sources, transform=ClipAugment(16), delta_t=0.2, seed=3, store=FramesInMemory(50, 10)),
            batch_size=3,
            epoch=4,
        ),
    )
    for other in (dict(epoch=5), dict(epoch=4, shuffle=False)):
        assert not torch.equal(alone[0]["clip"], batches(dataset, batch_size=3, **other)[0]["clip"])


def test_a_resumed_epoch_goes_on_where_it_was(sources):
    dataset = ClipDataset(sources, transform=ClipAugment(16))
    whole = batches(dataset, batch_size=2, epoch=1)
    for step in range(6):
        loader = make_loader(dataset, batch_size=2, epoch=1, start_step=step)
        assert len(loader) == 5 - step
        same(whole[step:], list(loader))
    same(whole[3:], batches(dataset, batch_size=2, epoch=1, start_step=3, num_workers=2))


def test_ranks_share_the_global_batch(sources):
    dataset = ClipDataset(sources, transform=EvalTransform(8))
    whole = batches(dataset, batch_size=4)
    ranks = [batches(dataset, batch_size=2, rank=r, world_size=2) for r in (0, 1)]
    for i, batch in enumerate(whole):
        assert torch.equal(batch["clip"], torch.cat([ranks[0][i]["clip"], ranks[1][i]["clip"]]))


def test_the_last_batch(sources):
    dataset = ClipDataset(sources, transform=EvalTransform(8))
    assert [len(b["clip"]) for b in batches(dataset, batch_size=4)] == [4, 4]
    kept = batches(dataset, batch_size=4, drop_last=False)
    assert [len(b["clip"]) for b in kept] == [4, 4, 2]
    assert sorted(torch.cat([b["index"] for b in kept]).tolist()) == list(range(10))
    ranks = [batches(dataset, batch_size=2, drop_last=False, rank=r, world_size=3) for r in range(3)]
    assert [[len(b["clip"]) for b in rank] for rank in ranks] == [[2, 2]] * 3
    assert set(torch.cat([b["index"] for rank in ranks for b in rank]).tolist()) == set(range(10))
    tiny = ClipDataset(sources[:1], transform=EvalTransform(8))
    assert [len(batches(tiny, batch_size=4, drop_last=False, rank=r, world_size=3)) for r in range(3)] == [1, 1, 1]


def test_each_source_comes_once_an_epoch_and_repeats_differ(sources):
    dataset = ClipDataset(sources, transform=EvalTransform(8), delta_t=0.1, repeats=3)
    assert len(dataset) == 30
    index = torch.cat([b["index"] for b in batches(dataset, batch_size=5)])
    assert Counter(index.tolist()) == Counter({i: 3 for i in range(10)})
    assert not torch.equal(dataset[9]["clip"], dataset[19]["clip"])
    orders = [tuple(torch.cat([b["index"] for b in batches(dataset, batch_size=5, epoch=e)]).tolist()) for e in (0, 1)]
    assert orders[0] != orders[1]


def test_the_global_generators_are_left_alone(sources):
    dataset = ClipDataset(sources, transform=ClipAugment(8))
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches(dataset, batch_size=4, num_workers=1)
    batches(dataset, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    assert torch.get_num_threads() >= 1


def test_bad_files_are_replaced_and_named(sources, tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    broken = find_sources(tmp_path)
    dataset = ClipDataset([*broken, *sources[:4]], transform=ClipAugment(8))
    for epoch in range(3):
        alone = batches(dataset, batch_size=2, epoch=epoch)
        same(alone, batches(dataset, batch_size=2, epoch=epoch, num_workers=2))
        same(alone, batches(dataset, batch_size=2, epoch=epoch))
        named = Counter(name for b in alone for name, _ in b["bad"])
        assert set(named) == {"text", "empty"}
        assert all(int(i) >= 2 for b in alone for i in b["index"])
        assert all("\n" not in reason for b in alone for _, reason in b["bad"])


def test_nothing_usable_stops_with_one_sentence(sources, tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.mp4").write_text("hello")
    dataset = ClipDataset(find_sources(tmp_path), transform=ClipAugment(8))
    for workers in (0, 1):
        with pytest.raises(TimetError, match="none of the 3 clips tried of 3 can be read; the first: ") as caught:
            batches(dataset, batch_size=1, num_workers=workers)
        assert "\n" not in str(caught.value)


def test_the_cache_keeps_what_fits(sources):
    dataset = ClipDataset(
        sources, transform=ClipAugment(8), store=FramesInMemory(1.5, 10)
    )  # 150 kB each: small folders only
    kept = dataset.store.preload(sources)
    assert 0 < kept < 10 and all(x.frames.nbytes <= 150_000 for x in dataset.store.kept.values())
    assert ClipDataset(sources, transform=ClipAugment(8)).store.preload(sources) == 0
    import pickle

    assert pickle.loads(pickle.dumps(dataset)).store.kept == {}


def test_workers_bring_their_scans_home(sources, tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    fresh = tmp_path / "new.mp4"
    fresh.write_bytes(Path(sources[-1].path).read_bytes())
    dataset = ClipDataset(find_sources(fresh), transform=EvalTransform(8))
    from timet.data import video

    take_fresh_scans()
    assert not any(key[0] == str(fresh) for key in video._scans)
    (batch,) = batches(dataset, batch_size=1, num_workers=1)
    assert set(batch) == {"clip", "index", "plans", "bad"}
    assert any(key[0] == str(fresh) for key in video._scans)


class _Deadly(FolderSource):
    def frames(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_sentence(sources):
    folder = next(s for s in sources if isinstance(s, FolderSource))
    dataset = ClipDataset([_Deadly("x", folder.path)], transform=EvalTransform(8))
    with pytest.raises(TimetError, match="loader worker died"):
        batches(dataset, batch_size=1, num_workers=1)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda s: ClipDataset([], transform=EvalTransform(8)), "no sources"),
        (lambda s: ClipDataset(s, transform=EvalTransform(8), seed=-1), "seed"),
        (lambda s: ClipDataset(s, transform=EvalTransform(8), delta_t=0), "above 0"),
        (lambda s: ClipDataset(s, transform=EvalTransform(8), sampling="x"), "regular or uniform"),
        (lambda s: ClipDataset(s, transform=EvalTransform(8), num_frames=0), "at least 1 frame"),
        (lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=0), "batch_size"),
        (lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=11), "cannot be filled from 10"),
        (lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=4, start_step=3), "0 to 2"),
        (lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=4, rank=1), "rank below"),
        (
            lambda s: make_loader(ClipDataset(s, transform=EvalTransform(8)), batch_size=4, num_workers=-1),
            "num_workers",
        ),
    ],
)
def test_wrong_settings(sources, call, words):
    with pytest.raises(TimetError, match=words):
        call(sources)


class _Broken(ClipAugment):
    def cut(self, *args):
        raise ZeroDivisionError


def test_mistakes_in_the_code_are_not_taken_for_bad_files(sources):
    with pytest.raises(ZeroDivisionError):
        batches(ClipDataset(sources, transform=_Broken(8)), batch_size=1)
    with pytest.raises(VideoError):
        sources[0].masks([0])


def test_real_clips(real_clips):
    for name, step in (("davis16", {12}), ("videos", {10, 12, 13, 15})):
        found = find_sources(real_clips / name)
        for source in found:
            assert set(np.diff(clip_index(source.starts, 4, rng=rng(0))).tolist()) <= step
        batch = batches(ClipDataset(found, transform=ClipAugment(64)), batch_size=2)[0]
        assert batch["clip"].shape == (2, 4, 3, 64, 64) and batch["bad"] == []


# a loader for a whole run


def test_one_loader_goes_through_all_epochs(sources):
    dataset = ClipDataset(sources, transform=ClipAugment(16), seed=2)
    apart = [batch for epoch in range(4) for batch in batches(dataset, batch_size=3, epoch=epoch)]
    for workers in (0, 2, 7):
        whole = make_loader(dataset, batch_size=3, count=12, num_workers=workers)
        assert len(whole) == 12
        same(apart, list(whole))
    same(apart[4:10], batches(dataset, batch_size=3, epoch=1, start_step=1, count=6, num_workers=2))


def test_an_epoch_holds_whole_steps(sources):
    dataset = ClipDataset(sources, transform=EvalTransform(8))
    loader = make_loader(dataset, batch_size=2, parts=2, count=6)
    assert len(make_loader(dataset, batch_size=2, parts=2)) == 4  # two steps of two parts, and two clips left out
    same(list(loader)[4:], batches(dataset, batch_size=2, parts=2, epoch=1)[:2])
    with pytest.raises(TimetError, match="a batch of 12 clips cannot be filled from 10"):
        make_loader(dataset, batch_size=3, parts=4)


def test_what_lies_in_the_ring_is_good_until_the_next_but_one(sources):
    dataset = ClipDataset(sources, transform=ClipAugment(16), seed=2)
    want = batches(dataset, batch_size=2, count=15)
    before = None
    for view, batch in zip(make_loader(dataset, batch_size=2, count=15, num_workers=3).views(), want, strict=True):
        assert torch.equal(view["clip"], batch["clip"])
        if before is not None:
            assert torch.equal(before[0], before[1])
        before = view["clip"], batch["clip"]


@pytest.mark.parametrize("workers", [0, 2])
def test_bytes_are_coloured_on_the_device(sources, workers):
    dataset = ClipDataset(sources, transform=ClipAugment(16), seed=5)
    want = batches(dataset, batch_size=5, count=4)
    loader = make_loader(dataset, batch_size=5, count=4, num_workers=workers, paint=False)
    raw = next(iter(loader))
    assert raw["clip"].dtype == torch.uint8 and len(raw["plans"]) == 5
    for a, b in zip(want, on_device(loader, torch.device("cpu")), strict=True):
        torch.testing.assert_close(a["clip"], b["clip"], atol=1e-5, rtol=0)
        assert torch.equal(a["index"], b["index"]) and a["bad"] == b["bad"]


def test_a_loader_needs_no_shared_memory_file_system(sources):
    if sys.platform != "linux":
        pytest.skip("looks at /proc")
    dataset = ClipDataset(sources, transform=ClipAugment(64), seed=5)
    loader = make_loader(dataset, batch_size=5, count=4, num_workers=2)
    for _ in loader.views():
        held = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/torch" in line]
        assert held == []


def test_a_loader_that_is_left_early_ends_its_workers(sources):
    import multiprocessing

    dataset = ClipDataset(sources, transform=ClipAugment(16))
    made = make_loader(dataset, batch_size=2, count=50, num_workers=2).views()
    next(made)
    assert len(multiprocessing.active_children()) >= 2
    made.close()
    gc.collect()
    assert multiprocessing.active_children() == []


def test_workers_learn_what_others_have_scanned(sources, monkeypatch):
    from timet.data import loader as room

    seen = []
    monkeypatch.setattr(room, "remember_scans", lambda scans: seen.append(len(scans)))
    films = [s for s in sources if not isinstance(s, FolderSource)]
    dataset = ClipDataset(films, transform=EvalTransform(8))
    take_fresh_scans()
    from timet.data import video

    video._scans.clear()
    tasks = make_loader(dataset, batch_size=5, count=3, num_workers=0)
    list(tasks)
    assert sorted(tasks.tasks.scans) == [0, 1, 2, 3, 4] and all(tasks.tasks.scans.values())
    # two calls a clip: what its task carries, from the second epoch on, and what it has found out, in the first
    assert (len(seen), sum(seen)) == (30, 15)


def test_what_has_no_time_makes_no_clip(sources, tmp_path):
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "1.png")
    single = FolderSource("single", str(tmp_path))
    alone = ClipDataset([single], transform=EvalTransform(16))
    with pytest.raises(TimetError, match="is a single picture, and a clip needs time"):
        alone[0]
    mixed = ClipDataset([single, sources[5]], transform=EvalTransform(16))
    made = mixed[(0, 0)]
    assert made["index"] == 1 and [name for name, _ in made["bad"]] == ["single"]
    assert ClipDataset([single], num_frames=1, transform=EvalTransform(16))[0]["clip"].shape == (1, 3, 16, 16)
