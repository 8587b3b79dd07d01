"""In-context segmentation: labels of patches, sampling, the memory and the vote against plain loops; the named faults."""

import importlib.util
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from timet.core import TimetError, samples_dir
from timet.eval import incontext as room
from timet.eval.fresh import BlueShift, FreshTokens, MemoryAugment
from timet.eval.incontext import format_incontext
from timet.eval.kmeans import load_faiss
from timet.eval.memory import (
    INCONTEXT,
    IncontextSettings,
    build_memory,
    memory_bytes,
    patch_histograms,
    sample_patches,
    unit,
)
from timet.eval.recall import incontext, predict_shares, vote

ALL = IncontextSettings(memory_size=None)


def world(b=4, grid=(3, 4), d=6, classes=4, size=(9, 16), seed=0, noise=0.2):
    "Images whose tokens say the class of each patch, with noise."
    rng = np.random.default_rng(seed)
    looks = np.random.default_rng(99).standard_normal((classes, d))
    ids = rng.integers(0, classes, (b, *grid))
    tokens = looks[ids].reshape(b, -1, d) + noise * rng.standard_normal((b, grid[0] * grid[1], d))
    masks = ids.repeat(size[0] // grid[0], 1).repeat(size[1] // grid[1], 2).astype(np.uint8)
    return SimpleNamespace(tokens=tokens.astype(np.float32), masks=masks, grid=grid, classes=None)


def slow_histograms(masks, grid, classes, ignore_as=None):
    "Pixel by pixel; a pixel belongs to the patch that holds its centre."
    b, height, width = masks.shape
    out = np.zeros((b, grid[0] * grid[1], classes))
    for i in range(b):
        for y in range(height):
            for x in range(width):
                c = int(masks[i, y, x])
                if c == 255:
                    if ignore_as is None:
                        continue
                    c = ignore_as
                cell = int((y + 0.5) * grid[0] / height) * grid[1] + int((x + 0.5) * grid[1] / width)
                out[i, cell, c] += 1
    return out / np.maximum(out.sum(-1, keepdims=True), 1)


@pytest.mark.parametrize("size", [(9, 16), (10, 13), (3, 4), (2, 5)])
@pytest.mark.parametrize("ignore_as", [None, 0])
def test_histograms(size, ignore_as):
    rng = np.random.default_rng(1)
    masks = rng.integers(0, 4, (3, *size)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.3] = 255
    masks[2] = 255
    got = patch_histograms(masks, (3, 4), 4, ignore_as)
    assert np.allclose(got, slow_histograms(masks, (3, 4), 4, ignore_as), atol=1e-6)
    assert got[2].sum() == (0 if ignore_as is None else (got[2].sum(-1) > 0).sum())


def test_histograms_refuse_other_ids():
    for masks in (np.full((1, 3, 4), 4), np.full((1, 3, 4), -1)):
        with pytest.raises(TimetError, match=r"0\.\.3"):
            patch_histograms(masks, (3, 4), 4)


def test_sampling_is_the_lowest_score():
    rng = np.random.default_rng(2)
    shares = patch_histograms(rng.integers(0, 3, (1, 8, 8)), (4, 4), 3)[0]
    shares[3] = 0
    u = np.random.default_rng(5).random(16)
    frequency = [sum(shares[i, c] > 0 for i in range(16)) for c in range(3)]
    score = [sum(frequency[c] for c in range(3) if shares[i, c] > 0) * u[i] for i in range(16)]
    expected = [i for i in np.argsort(score) if shares[i].sum() > 0][:6]
    assert sample_patches(shares, 6, np.random.default_rng(5)).tolist() == expected
    assert sorted(sample_patches(shares, None, rng)) == [i for i in range(16) if i != 3]
    assert len(sample_patches(np.zeros((5, 3)), 4, rng)) == 0


def slow_vote(queries, keys, labels, k, temperature):
    "Full sort in float64; equal cosines in the order of the rows."
    queries, keys, labels = (np.asarray(x, np.float64) for x in (queries, keys, labels))
    out = []
    for q in queries:
        cosine = keys @ q / np.maximum(np.linalg.norm(keys, axis=1), 1e-12) / np.linalg.norm(q)
        near = np.argsort(-cosine, kind="stable")[:k]
        weight = np.exp((cosine[near] - cosine[near].max()) / temperature)
        out.append(weight @ labels[near] / weight.sum())
    return np.array(out)


def rows_of(memory, data):
    "Keys and labels of a memory, from its own account of where they came from."
    keys = data.tokens[memory.origin[:, 0], memory.origin[:, 1]]
    labels = patch_histograms(data.masks, data.grid, memory.labels.shape[1])
    return keys, labels[memory.origin[:, 0], memory.origin[:, 1]]


@pytest.mark.parametrize("k,temperature", [(1, 0.02), (5, 0.02), (30, 0.02), (30, 1.0), (1000, 0.1)])
def test_vote_against_a_full_sort(k, temperature):
    data, queries = world(), np.random.default_rng(3).standard_normal((20, 6))
    data.masks[:, 4:7] = 255
    memory = build_memory(data, 4, ALL)
    assert len(memory) == 48
    keys, labels = rows_of(memory, data)
    assert np.allclose(memory.labels, labels)
    got = vote(memory, queries, k, temperature)
    assert np.allclose(got, slow_vote(queries, keys, labels, k, temperature), atol=2e-4)
    assert np.allclose(got.sum(1), 1, atol=1e-5)
    # the length of a query says nothing
    assert np.allclose(vote(memory, 7 * queries, k, temperature), got, atol=1e-5)


def test_ties_share_the_vote():
    data = world(b=1)
    data.tokens[:] = 1.0
    data.masks = np.arange(144).reshape(1, 9, 16).astype(np.uint8) % 4
    memory = build_memory(data, 4, ALL)
    shares = vote(memory, np.ones((2, 6)), 12, 0.02)
    assert np.allclose(shares, memory.labels.mean(0), atol=1e-6)
    assert np.allclose(vote(memory, np.ones((1, 6)), 5, 0.02).sum(), 1)


def test_patches_without_a_label_are_not_remembered():
    data = world()
    data.masks[1] = 255
    data.masks[2, :3] = 255
    memory = build_memory(data, 4, ALL)
    assert len(memory) == 48 - 12 - 4
    assert (memory.labels.sum(1) > 0.999).all()
    faulty = build_memory(data, 4, replace(ALL, ignored_as_background=True))
    assert len(faulty) == 48
    data.masks[:] = 255
    with pytest.raises(TimetError, match="not one pixel"):
        build_memory(data, 4, ALL)


def test_memory_size_and_its_bytes(capsys):
    data = world()
    memory = build_memory(data, 4, IncontextSettings(memory_size=30), announce=True)
    assert len(memory) == 28 and np.bincount(memory.origin[:, 0]).tolist() == [7] * 4
    assert "7 patches of each image, 28 x 6 in fp32" in capsys.readouterr().out
    build_memory(data, 4, ALL)
    assert capsys.readouterr().out == ""
    assert len({tuple(row) for row in memory.origin.tolist()}) == 28
    assert 10_240_000 // (10_582 * 2) == 483
    assert memory_bytes(10_240_000, 384, 21) == 10_240_000 * (384 * 4 + 21 * 4 + 12)
    assert memory_bytes(1, 384, 21, "fp16") == 384 * 2 + 21 * 4 + 12
    with pytest.raises(TimetError, match="too small for 4 images"):
        build_memory(data, 4, IncontextSettings(memory_size=3))


def test_stored_tokens_are_remembered_once():
    assert len(build_memory(world(), 4, replace(ALL, epochs=5))) == 48


def test_flat_fp16_is_nearly_flat():
    data, queries = world(b=8), np.random.default_rng(3).standard_normal((20, 6))
    a, b = (vote(build_memory(data, 4, replace(ALL, store=s)), queries, 10, 0.1) for s in ("fp32", "fp16"))
    assert np.abs(a - b).max() < 0.02


@pytest.mark.parametrize("store", ["fp32", "fp16"])
def test_ivf_that_looks_everywhere_is_exact(store):
    data, queries = world(b=40, seed=4), np.random.default_rng(3).standard_normal((20, 6))
    flat = build_memory(data, 4, replace(ALL, store=store))
    ivf = build_memory(data, 4, replace(ALL, index="ivf", cells=8, probes=8, store=store))
    assert len(ivf) == len(flat) == 480
    assert np.array_equal(ivf.origin, flat.origin)
    assert np.allclose(vote(ivf, queries, 9, 0.1), vote(flat, queries, 9, 0.1), atol=2e-3)
    few = build_memory(data, 4, replace(ALL, index="ivf", cells=12, probes=1, store=store))
    rows = few.search(unit(queries), 300)[1]
    assert (rows == -1).any()
    shares = vote(few, queries, 300, 0.1)
    assert np.isfinite(shares).all() and np.allclose(shares.sum(1), 1, atol=1e-5)


def test_ivf_smaller_than_its_map():
    memory = build_memory(world(b=1), 4, replace(ALL, index="ivf"))
    assert memory.index.nlist == 1 and np.allclose(vote(memory, np.ones((1, 6)), 30, 0.02).sum(), 1)


def direct_miou(pred, gt, classes):
    hits = [((pred == c) & (gt == c)).sum() for c in range(classes)]
    union = [(((pred == c) | (gt == c)) & (gt != 255)).sum() for c in range(classes)]
    return float(np.mean([h / u for h, u, c in zip(hits, union, range(classes)) if (gt == c).any()]))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_whole_protocol_against_plain_steps(batch_size):
    train, val = world(seed=1), world(seed=2, size=(12, 24))
    val.masks[0, :5] = 255
    settings = replace(ALL, k=5, temperature=0.1)
    got = incontext(train, val, variant=settings, num_classes=4, batch_size=batch_size)
    keys, labels = train.tokens.reshape(-1, 6), patch_histograms(train.masks, train.grid, 4).reshape(-1, 4)
    shares = slow_vote(val.tokens.reshape(-1, 6), keys, labels, 5, 0.1).reshape(4, 3, 4, 4).transpose(0, 3, 1, 2)
    maps = nn.functional.interpolate(torch.from_numpy(shares), (12, 24), mode="bilinear").argmax(1).numpy()
    assert np.isclose(got.direct, direct_miou(maps, val.masks, 4), atol=2e-3)
    assert got.miou == got.direct and got.rows == 48 and got.counts.sum() == (val.masks != 255).sum()


def test_full_masks_class_names_and_absent_classes():
    train, val = world(seed=1), world(seed=2)
    train.classes = {0: "background", 1: "cat", 2: "dog", 3: "cow", 4: "ox"}
    val.classes = train.classes
    native = SimpleNamespace(mask=lambda i: np.full((20, 30 + i), 3))
    got = incontext(train, val, full=native)
    assert (
        got.counts.sum() == 20 * (30 + 31 + 32 + 33) and list(got.per_class) == ["cow"] and got.counts.shape == (5, 5)
    )
    assert incontext(train, val, full=native, full_size=6).counts.sum() == 4 * 36
    val.masks[:] = 255
    assert np.isnan(incontext(train, val).direct)
    assert "mean, matched" in format_incontext(got)


def test_hungarian_forgives_what_direct_does_not():
    train, val = world(b=8, seed=1, noise=0.05), world(b=8, seed=2, noise=0.05)
    right = incontext(train, val, variant=ALL)
    train.masks = (train.masks + 1) % 4
    wrong = incontext(train, val, variant=ALL)
    assert right.direct > 0.7 and wrong.direct < 0.1
    assert np.isclose(wrong.hungarian, right.direct, atol=0.02)
    assert incontext(train, val, variant=replace(ALL, hungarian=True)).miou == wrong.hungarian


def test_paper_is_the_corrected_protocol_with_named_faults():
    right, paper = asdict(INCONTEXT["corrected"]), asdict(INCONTEXT["paper"])
    changed = {name: paper[name] for name in paper if paper[name] != right[name]}
    assert changed == {
        "wrong_axis": True, "zero_rows": True, "ignored_as_background": True, "hungarian": True, "blue_std": 0.255,
        "hue": 0.5,
    }  # fmt: skip
    assert (right["memory_size"], right["k"], right["temperature"], right["epochs"]) == (10_240_000, 30, 0.02, 2)
    assert (right["cells"], right["probes"]) == (512, 32)


def test_wrong_axis_finds_by_product_and_weighs_by_cosine():
    data, queries = world(), np.random.default_rng(3).standard_normal((9, 6))
    memory = build_memory(data, 4, replace(ALL, wrong_axis=True))
    keys = np.empty((48, 6))
    for row, (i, p) in enumerate(memory.origin):
        keys[row] = data.tokens[i, p] / np.linalg.norm(data.tokens[i].astype(np.float64), axis=0)
    labels = rows_of(memory, data)[1]
    for q, got in zip(queries, vote(memory, queries, 7, 0.1)):
        near = np.argsort(-(keys @ q))[:7]
        cosine = keys[near] @ q / np.linalg.norm(keys[near], axis=1) / np.linalg.norm(q)
        weight = np.exp(cosine / 0.1)
        assert np.allclose(got, weight @ labels[near] / weight.sum(), atol=1e-4)


def test_zero_rows_say_nothing_but_can_be_found():
    data = world()
    memory = build_memory(data, 4, IncontextSettings(memory_size=31, zero_rows=True))
    assert len(memory) == 31 and (memory.origin[28:] == -1).all() and (memory.labels[28:] == 0).all()
    shares = vote(memory, -data.tokens[0], 30, 1.0)
    assert (shares.sum(1) < 0.999).any()
    # where the memory takes every patch, nothing is left over
    assert len(build_memory(data, 4, IncontextSettings(zero_rows=True))) == 48


def test_blue_shift_is_another_normalisation():
    class Sum(nn.Module):
        name, image_size = "sum", (4, 4)

        def grid(self, height, width):
            return height, width

        def tokens(self, x):
            return x.flatten(2).transpose(1, 2)

    rgb = torch.rand(1, 3, 4, 4)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    right = (rgb - mean) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    wrong = (rgb - mean) / torch.tensor([0.229, 0.224, 0.255])[:, None, None]
    shifted = BlueShift(Sum())
    assert torch.allclose(shifted.tokens(right), Sum().tokens(wrong), atol=1e-6)
    assert shifted.name != "sum" and shifted.grid(4, 4) == (4, 4)


class Pictures:
    classes = None

    def __len__(self):
        return 3

    def image(self, i):
        return np.random.default_rng(i).integers(0, 256, (32, 40, 3), dtype=np.uint8)

    def mask(self, i):
        return (self.image(i)[..., 0] > 127).astype(np.int64)


class Colours:
    def grid(self, height, width):
        return height // 4, width // 4

    def tokens(self, x):
        return nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)


def test_memory_from_new_crops():
    fresh = FreshTokens(Colours(), Pictures(), MemoryAugment(16), device="cpu")
    memory = build_memory(fresh, 2, replace(ALL, epochs=2))
    assert len(memory) == 3 * 16 * 2
    size = build_memory(fresh, 2, IncontextSettings(memory_size=61))
    assert len(size) == 10 * 3 * 2


def test_augment_draws_each_change_by_its_own_chance():
    rng, augment = np.random.default_rng(0), MemoryAugment(16)
    plans = [augment.draw(100, 100, rng) for _ in range(600)]
    names = [n for p in plans for n, _ in p.jitter]
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert 0.42 < names.count(name) / 600 < 0.58
    assert not any(p.flip or p.grey or p.sigma for p in plans)
    assert all(abs(a - (n != "hue")) <= 0.1 for p in plans for n, a in p.jitter)
    areas = np.array([p.box[2] * p.box[3] for p in plans]) / 1e4
    assert 0.48 < areas.min() < 0.55 and 0.9 < areas.max() <= 1
    with pytest.raises(TimetError, match="jitter"):
        MemoryAugment(16, jitter=(0.1, 0.1, 0.1, 0.7))


def test_shapes_of_predictions():
    data = world()
    memory = build_memory(data, 4, ALL)
    shares = predict_shares(memory, data.tokens[:2], data.grid)
    assert shares.shape == (2, 4, 3, 4)
    assert np.allclose(shares[1, :, 2, 1], vote(memory, data.tokens[1, [9]], 30, 0.02)[0], atol=1e-6)


def test_wrong_input():
    for call, text in [
        (lambda: incontext(world(), world(), variant="best"), "corrected or paper"),
        (lambda: incontext(world(), world(), index="hnsw"), "flat or ivf"),
        (lambda: incontext(world(), world(), k=0), "at least 1"),
        (lambda: incontext(world(), world(), memory_size=0), "at least 1"),
        (lambda: incontext(world(), world(), temperature=0.0), "above 0"),
        (lambda: incontext(world(), world(), num_classes=2), "0..1"),
        (lambda: incontext(world(), world(d=7)), "features"),
    ]:
        with pytest.raises(TimetError, match=text):
            call()
    broken = world()
    broken.tokens[2, 3] = np.nan
    with pytest.raises(TimetError, match="finite"):
        incontext(world(), broken)
    faiss = load_faiss()
    if not (hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus()):
        with pytest.raises(TimetError, match="no GPU"):
            build_memory(world(), 4, replace(ALL, gpu=True))


needs_images = pytest.mark.skipif(
    importlib.util.find_spec("timet.data.images") is None, reason="needs timet.data.images"
)


@needs_images
@pytest.mark.parametrize(
    "options",
    [
        ["--no-augment"],
        ["--variant", "paper"],
        ["--index", "ivf", "--memory-store", "fp16", "--store", "bf16", "--no-augment"],
    ],
)
def test_command(tmp_path, capsys, options):
    weights, out = samples_dir() / "weights/timet_tiny.safetensors", tmp_path / "incontext.json"
    words = [str(weights), "--data", str(samples_dir() / "heldout"), "--image-size", "96", "--per-video", "2"]
    room.main(
        [*words, "--device", "cpu", "--no-cache", "--memory-size", "2000", "--out", str(out), "--no-floors", *options]
    )
    said, report = capsys.readouterr().out, json.loads(out.read_text())
    assert said.startswith("memory: ") or "memory: " in said
    assert (
        "mean, matched" in said and len(report["per_class"]) == 8 and 0 < report["direct"] <= report["hungarian"] + 1e-9
    )


def test_command_says_what_is_wrong(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        room.main(["random", "--data", str(tmp_path), "--k", "0"])
    assert stop.value.code == 2 and "at least 1" in capsys.readouterr().err
