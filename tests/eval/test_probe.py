"""Heads on frozen tokens: shapes, the order of enlarging, scores against plain loops, resume, what is refused."""

import importlib.util
import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from timet.core import TimetError, samples_dir
from timet.data.clips import ClipAugment
from timet.eval import probe as room
from timet.eval.fresh import FreshTokens
from timet.eval.head import FCNHead, Probe, resize_maps, score_probe
from timet.eval.labelled import count_classes, image_pair, read_batch
from timet.eval.probe import format_probe
from timet.eval.recipe import PROBES, ProbeSettings, probe_settings, train_probe
from timet.eval.tokens import as_float

QUICK = ProbeSettings("test", batch_size=3, epochs=4, drop_every=2, mask_size=8, hidden=6)


def world(b=7, grid=(4, 4), d=5, classes=3, size=16, seed=0, noise=0.3):
    "Images whose tokens say the class of each patch, with noise, and a band of 255."
    rng = np.random.default_rng(seed)
    looks = np.random.default_rng(99).standard_normal((classes, d))
    ids = rng.integers(0, classes, (b, *grid))
    tokens = looks[ids].reshape(b, -1, d) + noise * rng.standard_normal((b, grid[0] * grid[1], d))
    masks = ids.repeat(size // grid[0], 1).repeat(size // grid[1], 2).astype(np.uint8)
    masks[:, :2] = 255
    return SimpleNamespace(tokens=tokens.astype(np.float32), masks=masks, grid=grid, classes=None)


def direct_iou(pred, gt, classes):
    "IoU of each class that occurs, pixel by pixel."
    hits, union = np.zeros(classes), np.zeros(classes)
    present = np.zeros(classes, bool)
    for p, g in zip(np.ravel(pred).tolist(), np.ravel(gt).tolist()):
        if g == 255:
            continue
        present[g] = True
        if p == g:
            hits[g] += 1
            union[g] += 1
        else:
            union[g] += 1
            union[p] += 1
    return (hits / np.maximum(union, 1))[present]


def test_settings_are_those_of_their_sources():
    paper, leopart, neco = (PROBES["linear"][n] for n in ("paper", "leopart", "neco"))
    assert (paper.batch_size, paper.epochs, paper.drop_every, paper.shuffle, paper.augment) == (
        60,
        50,
        20,
        False,
        False,
    )
    assert (leopart.batch_size, leopart.epochs, leopart.drop_every, leopart.augment) == (120, 25, 20, True)
    assert (neco.batch_size, neco.epochs, neco.drop_every) == (128, 25, 20)
    fcn = PROBES["fcn"]["leopart"]
    assert (fcn.batch_size, fcn.epochs, fcn.hidden, fcn.dropout) == (64, 30, 512, 0.1)
    assert PROBES["fcn"]["leopart-dino"].epochs == 10
    for rows in PROBES.values():
        for s in rows.values():
            assert (s.lr, s.momentum, s.weight_decay, s.mask_size) == (0.01, 0.9, 1e-4, 100)


@pytest.mark.parametrize("size", [(100, 100), (17, 9), (3, 4)])
def test_linear_head_and_enlarging_commute(size):
    torch.manual_seed(0)
    probe = Probe("linear", 6, 3).double()
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    maps = x.reshape(2, 3, 4, 6).permute(0, 3, 1, 2)
    early = probe.head(nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False))
    assert torch.allclose(probe(x, (3, 4), size), early, atol=1e-12)


def test_fcn_does_not_commute_and_has_no_normalisation():
    torch.manual_seed(0)
    probe = Probe("fcn", 6, 3, mask_size=10, hidden=8).eval()
    x = torch.randn(2, 12, 6)
    maps = x.reshape(2, 3, 4, 6).permute(0, 3, 1, 2)
    early = probe.head(nn.functional.interpolate(maps, (10, 10), mode="bilinear"))
    late = nn.functional.interpolate(probe.head(maps), (10, 10), mode="bilinear")
    assert torch.equal(probe(x, (3, 4)), early)
    assert not torch.allclose(early, late, atol=1e-2)
    kinds = [type(m) for m in probe.modules()]
    assert not any("Norm" in kind.__name__ for kind in kinds)
    convs = [m for m in probe.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in convs] == [
        (6, 8, (3, 3)), (8, 8, (3, 3)), (14, 8, (3, 3)), (8, 3, (1, 1)),
    ]  # fmt: skip
    assert isinstance(FCNHead(6, 3).drop, nn.Dropout2d) and FCNHead(6, 3).drop.p == 0.1
    # an image's scores do not depend on the others of its batch
    assert torch.allclose(probe(x[:1], (3, 4)), probe(x, (3, 4))[:1], atol=1e-6)


@pytest.mark.parametrize("head", ["linear", "fcn"])
def test_score_against_a_loop_over_pixels(head):
    torch.manual_seed(1)
    data, probe = world(b=5), Probe(head, 5, 3, mask_size=8, hidden=6)
    data.masks[3] = 255
    counts, full = score_probe(probe, data, 3, 8, full=True, batch_size=2)
    probe.eval()
    with torch.no_grad():
        own = probe.scores(torch.from_numpy(data.tokens), (4, 4))
        small, large = (nn.functional.interpolate(own, (s, s), mode="bilinear").argmax(1).numpy() for s in (8, 16))
    gt = data.masks[:, 1::2, 1::2]
    got = [counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c]) for c in range(3)]
    assert np.allclose(got, direct_iou(small, gt, 3))
    got = [full[c, c] / (full[c].sum() + full[:, c].sum() - full[c, c]) for c in range(3)]
    assert np.allclose(got, direct_iou(large, data.masks, 3))
    assert counts.sum() == (gt != 255).sum() and full.sum() == (data.masks != 255).sum()


def test_full_resolution_from_native_masks():
    data, probe = world(b=3), Probe("linear", 5, 3, mask_size=8)
    native = SimpleNamespace(mask=lambda i: np.full((10 + i, 20), i))
    _, full = score_probe(probe, data, 3, 8, full=native)
    assert full.sum(0).tolist() == [200, 220, 240]
    _, full = score_probe(probe, data, 3, 8, full=native, full_size=6)
    assert full.sum(0).tolist() == [36, 36, 36]


def test_learns_and_is_direct():
    train, val = world(b=24, noise=0.1), world(b=6, seed=1, noise=0.1)
    result = train_probe(
        train, val, variant=replace(QUICK, epochs=20, drop_every=None, lr=0.1), full=True, device="cpu"
    )
    assert result.losses[-1] < 0.6 * result.losses[0]
    assert result.miou > 0.6 and result.full_miou > 0.6
    assert list(result.per_class) == ["0", "1", "2"] and "IoU, %" in format_probe(result)
    # labels of val renamed in a circle: a matched score would not notice
    val.masks = np.where(val.masks == 255, 255, (val.masks + 1) % 3)
    counts, _ = score_probe(result.probe, val, 3, 8)
    assert counts.trace() / counts.sum() < 0.2


def test_named_classes_and_absent_ones():
    train, val = world(), world(seed=1)
    train.classes = val.classes = {0: "background", 1: "cat", 2: "dog", 5: "cow"}
    assert count_classes(train, val) == 6
    val.masks[val.masks == 2] = 1
    result = train_probe(train, val, variant=QUICK, device="cpu")
    assert list(result.per_class) == ["background", "cat"]
    assert np.isnan(result.full_miou) and result.counts.shape == (6, 6)
    val.masks[:] = 255
    nothing = train_probe(train, val, variant=QUICK, device="cpu")
    assert np.isnan(nothing.miou) and nothing.per_class == {}


def test_nothing_labelled_teaches_nothing():
    train, val = world(), world(seed=1)
    train.masks[:] = 255
    settings = replace(QUICK, weight_decay=0.0)
    result = train_probe(train, val, variant=settings, device="cpu", num_classes=3)
    assert result.losses.tolist() == [0.0] * 4
    torch.manual_seed(0)
    fresh = Probe("linear", 5, 3)
    assert torch.equal(result.probe.head.weight, fresh.head.weight)


def test_the_loss_is_the_mean_over_labelled_pixels():
    train = world(b=3)
    one = replace(QUICK, epochs=1, shuffle=False)
    result = train_probe(train, world(seed=1), variant=one, device="cpu")
    torch.manual_seed(0)
    start = Probe("linear", 5, 3, 8)
    with torch.no_grad():
        log = start(torch.from_numpy(train.tokens), (4, 4)).log_softmax(1)
    gt = torch.from_numpy(train.masks[:, 1::2, 1::2].astype(np.int64))
    known = [-log[b, gt[b, y, x], y, x] for b in range(3) for y in range(8) for x in range(8) if gt[b, y, x] != 255]
    assert np.isclose(result.losses[0], float(sum(known) / len(known)), atol=1e-5)


class Frail:
    "A labelled set that fails in some epoch, as a killed process does."

    def __init__(self, data, until):
        self.data, self.until, self.grid, self.classes = data, until, data.grid, data.classes

    def __len__(self):
        return len(self.data.tokens)

    def batch(self, index, epoch=0):
        if epoch >= self.until:
            raise KeyboardInterrupt
        return read_batch(self.data, index)


@pytest.mark.parametrize("head", ["linear", "fcn"])
def test_resume_gives_the_same_bits(tmp_path, head):
    train, val = world(), world(seed=1)
    kept = tmp_path / "probe.pt"
    with pytest.raises(KeyboardInterrupt):
        train_probe(Frail(train, 3), val, head=head, variant=QUICK, device="cpu", checkpoint=kept, num_classes=3)
    torch.manual_seed(123)
    went_on = train_probe(train, val, head=head, variant=QUICK, device="cpu", checkpoint=kept, num_classes=3)
    whole = train_probe(train, val, head=head, variant=QUICK, device="cpu", num_classes=3)
    assert np.array_equal(went_on.losses, whole.losses) and np.array_equal(went_on.counts, whole.counts)
    for a, b in zip(went_on.probe.parameters(), whole.probe.parameters()):
        assert torch.equal(a, b)
    # finished: only scored again
    again = train_probe(Frail(train, 1), val, head=head, variant=QUICK, device="cpu", checkpoint=kept, num_classes=3)
    assert np.array_equal(again.counts, whole.counts)
    for change in ({"seed": 1}, {"variant": replace(QUICK, lr=0.02)}):
        with pytest.raises(TimetError, match="another probe"):
            train_probe(train, val, **{"head": head, "variant": QUICK, "checkpoint": kept, "num_classes": 3} | change)
    other = world(seed=5)
    with pytest.raises(TimetError, match="another probe"):
        train_probe(other, val, head=head, variant=QUICK, checkpoint=kept, num_classes=3)


@pytest.mark.parametrize("head", ["linear", "fcn"])
def test_stopped_within_an_epoch_and_gone_on(tmp_path, head):
    train, val, kept = world(), world(seed=1), tmp_path / "probe.pt"

    class Stopped(Frail):
        "Somebody presses Ctrl-C while the first batch of the second epoch is read."

        def batch(self, index, epoch=0):
            if epoch == 1 and not self.until:
                self.until = True
                os.kill(os.getpid(), signal.SIGINT)
            return read_batch(self.data, index)

    with pytest.raises(KeyboardInterrupt, match="after step 5 of 12"):
        train_probe(Stopped(train, False), val, head=head, variant=QUICK, device="cpu", checkpoint=kept, num_classes=3)
    went_on = train_probe(train, val, head=head, variant=QUICK, device="cpu", checkpoint=kept, num_classes=3)
    whole = train_probe(train, val, head=head, variant=QUICK, device="cpu", num_classes=3)
    assert np.array_equal(went_on.losses, whole.losses) and np.array_equal(went_on.counts, whole.counts)


def test_the_users_random_numbers_are_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_probe(world(), world(seed=1), variant=QUICK, device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_bf16_and_memory_maps(tmp_path):
    x = np.random.default_rng(0).standard_normal((6, 16, 5)).astype(np.float32)
    bits = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(as_float(bits), torch.from_numpy(x).bfloat16().float().numpy())
    np.save(tmp_path / "tokens.npy", bits)
    data = world(b=6)
    data.tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    tokens, _ = read_batch(data, [4, 1])
    assert tokens.dtype == np.float32 and np.array_equal(tokens, as_float(bits)[[4, 1]])
    train_probe(data, data, variant=QUICK, device="cpu")
    data.tokens = np.where(np.arange(6)[:, None, None] == 2, np.nan, x)
    with pytest.raises(TimetError, match="finite"):
        train_probe(data, data, variant=QUICK, device="cpu")


def test_drop_last_and_steps():
    seen = []
    data = world(b=7)

    class Watch(Frail):
        def batch(self, index, epoch=0):
            seen.append((epoch, list(index)))
            return read_batch(self.data, index)

    settings = replace(QUICK, batch_size=3, epochs=2, drop_last=True, shuffle=False)
    train_probe(Watch(data, 9), data, variant=settings, device="cpu", num_classes=3)
    steps = [s for s in seen if len(s[1]) == 3]
    assert steps == [(e, i) for e in (0, 1) for i in ([0, 1, 2], [3, 4, 5])]


class Pictures:
    "Two small images with masks."

    classes = None

    def __len__(self):
        return 2

    def image(self, i):
        return np.random.default_rng(i).integers(0, 256, (32, 40, 3), dtype=np.uint8)

    def mask(self, i):
        return (self.image(i)[..., 0] > 127).astype(np.int64)


class Colours:
    "A backbone whose tokens are the mean colours of patches."

    def grid(self, height, width):
        return height // 4, width // 4

    def tokens(self, x):
        return nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)


def test_fresh_tokens_repeat_and_differ():
    crop = ClipAugment(16, scale=(0.8, 1.0), flip_p=0.5, jitter_p=0.0, grey_p=0.0, blur_p=0.0)
    fresh = FreshTokens(Colours(), Pictures(), crop, device="cpu")
    assert len(fresh) == 2 and fresh.grid == (4, 4)
    tokens, masks = fresh.batch([0, 1], 3)
    assert tokens.shape == (2, 16, 3) and masks.shape == (2, 16, 16)
    assert np.array_equal(fresh.batch([1], 3)[0][0], tokens[1])
    assert not np.array_equal(fresh.batch([1], 4)[0][0], tokens[1])
    settings = replace(QUICK, augment=True, epochs=2)
    val = SimpleNamespace(tokens=tokens, masks=masks.astype(np.uint8), grid=(4, 4), classes=None)
    result = train_probe(fresh, val, variant=settings, device="cpu", num_classes=2)
    assert result.counts.sum() == 2 * 64


def test_wrong_input():
    data = world()
    for call, text in [
        (lambda: probe_settings("linear", "best"), "linear paper"),
        (lambda: train_probe(data, data, head="mlp"), "no settings mlp"),
        (lambda: train_probe(data, data, variant="leopart"), "FreshTokens"),
        (lambda: train_probe(data, world(d=6), variant=QUICK), "same features"),
        (lambda: train_probe(data, data, variant=QUICK, num_classes=2, device="cpu"), "lie in 0..1"),
        (lambda: Probe("mlp", 3, 3), "linear or fcn"),
        (lambda: count_classes(Frail(data, 1)), "num_classes"),
    ]:
        with pytest.raises(TimetError, match=text):
            call()


def test_resize_maps_is_the_identity_at_its_own_size():
    x = torch.randn(1, 2, 5, 6)
    assert resize_maps(x, (5, 6)) is x


needs_images = pytest.mark.skipif(
    importlib.util.find_spec("timet.data.images") is None, reason="needs timet.data.images"
)
CLI = "--image-size 96 --per-video 2 --device cpu --no-cache --epochs 2 --batch-size 4".split()


@needs_images
def test_videos_are_split_by_clip():
    train, val = image_pair(samples_dir() / "heldout", "trainaug", "val", 2)
    clips = [{n.split("/")[0] for n in part.names} for part in (train, val)]
    assert len(train) == len(val) == 12 and not clips[0] & clips[1]
    assert train.classes[8] == "water"


@needs_images
@pytest.mark.parametrize("variant", ["paper", "leopart"])
def test_command(tmp_path, capsys, variant):
    weights = samples_dir() / "weights/timet_tiny.safetensors"
    out = tmp_path / "probe.json"
    room.main([str(weights), "--data", str(samples_dir() / "heldout"), "--variant", variant, "--out", str(out), *CLI])
    said, report = capsys.readouterr().out, json.loads(out.read_text())
    assert "direct IoU" in said and "beetle" in said
    assert report["settings"]["epochs"] == 2 and 0 < report["miou"] < 1 and 0 < report["full_miou"] < 1
    assert len(report["per_class"]) == 8


def test_command_says_what_is_wrong(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        room.main(["random", "--data", str(tmp_path), "--variant", "best"])
    assert stop.value.code == 2 and "Traceback" not in (said := capsys.readouterr().err) and "linear paper" in said
