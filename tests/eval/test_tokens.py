"Tokens of pictures: one pass, what is kept of it, masks at another size, shares of several processes."

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import timet.eval.tokens as room
from timet.core import TimetError
from timet.data.clips import EvalTransform, normalize
from timet.data.images import Images, image_file
from timet.eval.tokens import Clips, Extraction, Pass, Tokens, as_float, extract_tokens, read_masks, run_batches
from timet.run.loop import Later
from timet.run.processes import this_shard


def settings(mask_size):
    return Extraction(Clips(1, image_size=(16, 16), mask_size=mask_size))


class Patches(nn.Module):
    "Mean colours of 8 x 8 pixels."

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = []

    def grid(self, height, width):
        if height % 8 or width % 8:
            raise TimetError(f"{height} x {width} does not divide into patches of 8")
        return height // 8, width // 8

    def tokens(self, images):
        assert not torch.is_grad_enabled() and not self.training
        self.calls.append(len(images))
        return (nn.functional.avg_pool2d(images, 8) * self.weight).flatten(2).transpose(1, 2)


@pytest.fixture
def images(tmp_path) -> Images:
    "Seven pictures of different sizes, the masks in their sizes; the last class id is 254."
    items, rng = [], np.random.default_rng(0)
    for i in range(7):
        size = (16 + 8 * (i % 3), 32)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        ids = rng.choice([0, 3, 254, 255], size).astype(np.uint8)
        Image.fromarray(ids).save(tmp_path / f"m{i}.png")
        items.append(image_file(f"p{i}", str(tmp_path / f"{i}.png"), str(tmp_path / f"m{i}.png")))
    return Images(items, classes={0: "background", 3: "x"}, semantic=False)


def test_one_pass_over_every_picture(images):
    model = Patches().train()
    got = extract_tokens(model, images, image_size=16, mask_size=(4, 6), batch_size=3, device="cpu")
    assert model.calls == [3, 3, 1] and model.training
    assert got.tokens.shape == (7, 4, 3) and got.tokens.dtype == np.float32 and got.grid == (2, 2) and len(got) == 7
    assert got.names == images.names and got.classes == images.classes and not got.semantic
    assert got.masks.shape == (7, 4, 6) and got.masks.dtype == np.uint8
    for i in range(7):
        pixels = torch.from_numpy(images.image(i)).permute(2, 0, 1)[None].float()
        small = nn.functional.interpolate(pixels, (16, 16), mode="bilinear", antialias=True) / 255
        want = nn.functional.avg_pool2d(normalize(small), 8)[0].flatten(1).T
        np.testing.assert_allclose(got.tokens[i], want, atol=0.02)  # resized in bytes or in floats
        h, w = images.mask(i).shape
        for y in range(4):
            for x in range(6):
                assert got.masks[i, y, x] == images.mask(i)[int((y + 0.5) * h / 4), int((x + 0.5) * w / 6)]


@pytest.mark.filterwarnings("ignore:overflow")
def test_bf16_is_rounded_as_torch_rounds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    values = bits[np.isfinite(bits)]
    want = torch.from_numpy(values).bfloat16().float().numpy()
    stored = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(as_float(stored), want)
    np.testing.assert_array_equal(as_float(values.astype(np.float16)), values.astype(np.float16).astype(np.float32))
    assert as_float(values) is values


def test_bf16_of_a_pass(images):
    args = {"image_size": 16, "mask_size": 4, "device": "cpu"}
    exact = extract_tokens(Patches(), images, **args)
    small = extract_tokens(Patches(), images, store="bf16", **args)
    assert small.tokens.dtype == np.uint16 and small.tokens.nbytes * 2 == exact.tokens.nbytes
    np.testing.assert_array_equal(as_float(small.tokens), torch.from_numpy(exact.tokens).bfloat16().float().numpy())
    assert Tokens(small.tokens, small.masks, small.grid).tokens is small.tokens


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_make_the_whole_bit_by_bit(images, count):
    args = {"image_size": 16, "mask_size": 5, "batch_size": 2, "device": "cpu"}
    whole = extract_tokens(Patches(), images, **args)
    room: dict[str, np.ndarray] = {}

    def allocate(name, shape, dtype):
        return room.setdefault(name, np.full(shape, 77, dtype))

    calls = 0
    for which in reversed(range(count)):
        model = Patches()
        part = extract_tokens(model, images, allocate=allocate, shard=(which, count), **args)
        assert part.tokens is room["tokens"]
        calls += sum(n for n in model.calls if which * 4 // count != (which + 1) * 4 // count)
    np.testing.assert_array_equal(room["tokens"], whole.tokens)
    np.testing.assert_array_equal(room["masks"], whole.masks)
    assert calls == 7  # nothing twice


def test_shares_of_videos():
    from timet.core import samples_dir
    from timet.data.find import find_sources

    videos = find_sources(samples_dir() / "heldout")[:5]
    args = {"num_frames": 2, "image_size": 32, "mask_size": 16, "batch_size": 4, "device": "cpu", "keep_frames": True}
    whole = extract_tokens(Patches(), videos, **args)
    room: dict[str, np.ndarray] = {}
    for which in range(2):
        extract_tokens(
            Patches(), videos, allocate=lambda n, s, d: room.setdefault(n, np.zeros(s, d)), shard=(which, 2), **args
        )
    for name in ("tokens", "masks", "index", "frames"):
        np.testing.assert_array_equal(room[name], getattr(whole, name))


def test_one_process_has_everything(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert this_shard() == (0, 1)


def test_pictures_without_masks(images):
    bare = Images([image_file(item.name, item.files[0]) for item in images.items])
    assert (read_masks(bare, settings(3)) == 255).all()
    assert extract_tokens(Patches(), bare, image_size=16, mask_size=3, device="cpu").masks.shape == (7, 3, 3)


class Broken(Patches):
    def tokens(self, images):
        return super().tokens(images) * torch.where(torch.arange(len(images)) == 1, torch.nan, 1)[:, None, None]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda i: extract_tokens(Patches(), i.subset([]), image_size=16), "at least one video or picture"),
        (lambda i: extract_tokens(Patches(), i, image_size=16, batch_size=0), "batch_size must be at least 1"),
        (lambda i: extract_tokens(Patches(), i, image_size=16, store="fp8"), "store must be fp32 or bf16"),
        (lambda i: extract_tokens(Patches(), i, image_size=16, size=3), "no setting 'size'"),
        (lambda i: extract_tokens(Patches(), i, image_size=20), "does not divide"),
        (lambda i: extract_tokens(Broken(), i, image_size=16, mask_size=4, device="cpu"), "p1 are not finite"),
        (lambda i: Tokens(np.zeros((2, 4, 3)), np.zeros((2, 5, 5)), (3, 2)), "n=6"),
        (lambda i: Tokens(np.zeros((2, 4, 3)), np.zeros((1, 5, 5)), (2, 2)), "masks must have"),
    ],
)
def test_mistakes_are_explained(images, call, words):
    with pytest.raises(TimetError) as caught:
        call(images)
    assert words in str(caught.value)


def test_masks_that_cannot_be_right(images, tmp_path):
    Image.fromarray(np.zeros((32, 16), np.uint8)).save(tmp_path / "m3.png")
    with pytest.raises(TimetError, match="masks of p3 are 32 x 16 and its frames 16 x 32"):
        read_masks(images, settings(4))
    Image.fromarray(np.full((16, 32), 300, np.uint16)).save(tmp_path / "m3.png")
    with pytest.raises(TimetError, match="holds the id 300"):
        read_masks(images, settings(4))
    (tmp_path / "m3.png").write_bytes(b"")
    with pytest.raises(TimetError, match=r"m3\.png"):
        read_masks(images, settings(4))


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_batches_are_cut_into_passes(batch_size):
    model, batches = Patches().train(), [torch.randn(n, 3, 16, 16) for n in (3, 1, 4)]
    found = list(run_batches(model, iter(batches), Pass("cpu"), batch_size=batch_size))
    assert max(model.calls) <= batch_size and sum(model.calls) == 8 and model.training
    for images, tokens in zip(batches, found, strict=True):
        want = nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokens.clone(), want)


def test_the_network_is_as_before_also_when_nobody_reads_on():
    model = Patches().train()
    stream = run_batches(model, [torch.zeros(1, 3, 8, 8)] * 3, device="cpu")
    next(stream)
    assert not model.training
    stream.close()
    assert model.training and len(model.calls) == 1
    with pytest.raises(TimetError, match="image 4 are not finite"):
        list(run_batches(Broken(), [torch.ones(3, 3, 8, 8)[:1]] * 3 + [torch.ones(2, 3, 8, 8)], device="cpu"))


def test_bytes_are_normalised_as_the_reader_would():
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[0, :, :, :] = torch.arange(256, dtype=torch.uint8).reshape(16, 16)  # every value of every colour
    (bytes_,), (floats,) = (list(run_batches(Whole(), [x], device="cpu")) for x in (pixels, normalize(pixels)))
    assert torch.equal(bytes_, floats)


class Whole(Patches):
    "Every pixel is a token."

    def grid(self, height, width):
        return height, width

    def tokens(self, images):
        return images.flatten(2).transpose(1, 2).clone()


def test_tokens_are_those_of_the_transform_to_the_last_bit(images):
    got = extract_tokens(
        Whole(), images, image_size=(16, 24), mask_size=4, batch_size=3, device="cpu", precision="fp32"
    )
    for i in range(7):
        want = EvalTransform((16, 24))(images.image(i)[None])
        np.testing.assert_array_equal(got.tokens[i], want[0].flatten(1).T)


class Slow:
    "A device that is said to be a card; all its work is done on the CPU."

    type, index = "cuda", 0


class Far(Patches):
    def to(self, device):
        return self


@pytest.fixture
def card(monkeypatch):
    "The order of things on a card: nothing is pinned, and copies are done at once."
    log = []
    monkeypatch.setattr(room, "pick_device", lambda device="auto": Slow)
    monkeypatch.setattr("timet.data.clips.send", lambda x, device: x)
    monkeypatch.setattr(room, "keep_exact", lambda precision: None)

    class Noted(Later):
        def __init__(self, **numbers):
            super().__init__(**numbers)
            log.append("begun")

        def read(self):
            log.append("waited")
            return super().read()

    monkeypatch.setattr(room, "Later", Noted)
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: real(*a, **k))
    return log


def test_a_card_has_the_next_batch_before_anybody_waits(card):
    asked = []
    batches = (asked.append(i) or torch.zeros(1, 3, 8, 8) for i in range(4))
    seen = []
    for _ in run_batches(Far(), batches, precision="fp32"):
        seen.append((len(asked), card.count("begun"), card.count("waited")))
    assert seen == [(2, 2, 1), (3, 3, 2), (4, 4, 3), (4, 4, 4)]


def test_on_a_card_too_what_is_not_finite_is_never_handed_out(card):
    class Late(Far):
        def tokens(self, images):
            return super().tokens(images) / images[:, :1, :1, 0]

    got, batches = [], [torch.ones(2, 3, 8, 8), torch.ones(3, 3, 8, 8), torch.ones(1, 3, 8, 8)]
    batches[1][1] = 0
    with pytest.raises(TimetError, match="image 3 are not finite"):
        for tokens in run_batches(Late(), batches, precision="fp32"):
            got.append(len(tokens))
    assert got == [2]


def test_a_card_gives_the_same_arrays(images, monkeypatch, request):
    args = {"image_size": 16, "mask_size": 4, "batch_size": 2, "precision": "fp32"}
    want = extract_tokens(Patches(), images, device="cpu", **args)
    request.getfixturevalue("card")
    before = torch.get_num_threads()
    got = extract_tokens(Far(), images, **args)
    assert torch.get_num_threads() == before
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.masks, want.masks)


@pytest.mark.parametrize("workers, said", [(None, 16), (0, 1), (1, 1), (40, 40)])
def test_a_card_has_as_many_reading_threads_as_cores(card, monkeypatch, workers, said):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(16), raising=False)
    assert room._threads(Pass(workers=workers)) == said
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert room._threads(Pass()) == 8


@pytest.mark.parametrize("size, workers", [(1, 1), (2, 8), (5, 3), (40, 2)])
def test_enough_is_read_ahead_for_all_threads_and_no_more(size, workers):
    begun, groups = [], [range(i, min(i + size, 30)) for i in range(0, 30, size)]

    def begin(group):
        begun.extend(group)
        return group.start, [lambda i=i: i for i in group]

    done = 0
    for part, place, found in room._read_ahead(groups, begin, Pass("cpu", workers=workers), None):
        assert found == list(range(part.start, part.stop)) and place == part.start
        ahead = len(begun) - done - len(found)
        assert min(30 - done - len(found), 2 * workers) <= ahead < 2 * workers + size
        done += len(found)
    assert done == 30
