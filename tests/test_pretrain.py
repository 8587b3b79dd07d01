"""Photographs, self-distillation and the command: against loops written from the definitions, on pictures that the tests make."""

import contextlib
import inspect
import io
import json
import os
import runpy
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timet.backbone import create_backbone, load_backbone, shipped_weights
from timet.core import TimetError, seed_everything
from timet.pretraining.photos import Photos, find_photos, read_photos
from timet.run.check import adjust, check, flat
from timet.run.folder import read_log

pytest.importorskip("lightly")

from lightly.loss import DINOLoss
from lightly.transforms import DINOTransform
from torchvision.transforms.v2 import functional as TF

from timet.data.clips import denormalize
from timet.pretrain import main, pretrain
from timet.pretraining.config import FREE, PretrainConfig, read_command
from timet.pretraining.distill import JITTER, Crops, Distiller, Hiding, MultiCrop, make_views, see
from timet.pretraining.loop import (
    batches,
    epoch_order,
    fit,
    pretrain_step,
    restore_pretraining,
    schedules,
    start_pretraining,
)
from timet.pretraining.neighbours import features, nearest_neighbours

TINY = dict(
    backbone="timet_tiny_patch8_64", image_size=32, local_size=16, local_views=2, hidden_dim=32, output_dim=48,
    batch_size=8, epochs=2, device="cpu", compile="off", log_every=1,
)  # fmt: skip


def settings(**values: object) -> PretrainConfig:
    "The defaults with other values."
    return adjust(PretrainConfig(), values)


def noise(
    folder: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 10, size: tuple[int, int] = (48, 40)
) -> Path:
    "Folders of pictures, each class with its own mean colour."
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = rng.integers(0, 128, (*size, 3)) + np.eye(3, dtype=int)[number % 3] * 127
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("album"))


@pytest.fixture(scope="module")
def photos(album: Path) -> Photos:
    return read_photos(album, size=32)


# ---------------------------------------------------------------- photographs


def test_photos_are_the_middle_square_upright(tmp_path: Path) -> None:
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    turned = Image.fromarray(np.concatenate([np.full((32, 64, 3), 255, np.uint8), np.zeros((32, 64, 3), np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.full((32, 32), 200, np.uint8)).save(tmp_path / "grey.png")
    Image.new("RGBA", (32, 32), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    found = read_photos(tmp_path, size=32)
    by_name = dict(zip(find_photos(tmp_path).names, found.pixels))
    assert (by_name["wide.png"] > 240).all()
    assert by_name["turned.png"][0, 0].float().mean() < 5
    assert by_name["turned.png"][0, -1].float().mean() > 250
    assert (by_name["grey.png"] == 200).all()
    assert by_name["clear.png"].shape == (3, 32, 32)


def test_a_zip_is_its_folder(album: Path, photos: Photos, tmp_path: Path) -> None:
    path = tmp_path / "album.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in find_photos(album).names:
            archive.write(album / name, f"deep/er/{name}")
        archive.writestr("__MACOSX/deep/._00.png", b"nothing")
        archive.writestr("notes.txt", b"nothing")
    found = read_photos(path, size=32)
    assert found.classes == ("cat", "dog")
    assert torch.equal(found.pixels, photos.pixels)
    assert torch.equal(found.labels, photos.labels)


def test_limit_takes_an_even_part(album: Path) -> None:
    assert read_photos(album, size=32, limit=6).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(read_photos(album, size=32, limit=1000)) == 20


def test_damaged_photographs_are_named(album: Path, tmp_path: Path) -> None:
    noise(tmp_path, each=2)
    (tmp_path / "dog/99.png").write_bytes((tmp_path / "dog/00.png").read_bytes()[:100])
    found = read_photos(tmp_path, size=32)
    assert len(found) == 4
    assert found.lost[0].startswith("dog/99.png")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "nowhere", "is not there"),
        (lambda p: p / "file.txt", "is neither a folder nor a zip"),
        (lambda p: p / "empty", "holds no photographs"),
        (lambda p: p / "broken", "none of the 1 photographs"),
    ],
)
def test_no_photographs(tmp_path: Path, make: object, words: str) -> None:
    (tmp_path / "file.txt").write_text("no")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.jpg").write_bytes(b"no")
    with pytest.raises(TimetError, match=words):
        read_photos(make(tmp_path), size=32)


# ---------------------------------------------------------------- views, loss, teacher


def test_views_have_sizes_and_are_each_their_own() -> None:
    seed_everything(0)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    large, small = MultiCrop(64, 32, 4)(pixels)
    assert large.shape == (2, 3, 3, 64, 64)
    assert small.shape == (4, 3, 3, 32, 32)
    assert large.dtype == torch.float32
    seen = {round(float(view.mean()), 5) for view in small.flatten(0, 1)}
    assert len(seen) == 12
    assert MultiCrop(64, 32, 0)(pixels)[1] is None


def test_views_are_those_of_lightly() -> None:
    "Every chance and strength against the defaults of `DINOTransform`."
    want = {n: p.default for n, p in inspect.signature(DINOTransform.__init__).parameters.items()}
    crops = MultiCrop(64, 32, want["n_local_views"])
    assert crops.large.scale == want["global_crop_scale"]
    assert crops.small.scale == want["local_crop_scale"]
    assert crops.large.blur_p == want["gaussian_blur"][:2]
    assert crops.small.blur_p == (want["gaussian_blur"][2],) * want["n_local_views"]
    assert (crops.large.solar_p, set(crops.small.solar_p)) == ((0.0, want["solarization_prob"]), {0.0})
    cj = (want[f"cj_{n}"] for n in ("bright", "contrast", "sat", "hue"))
    assert list(JITTER.values()) == [want["cj_strength"] * x for x in cj]
    seed_everything(0)
    dice = crops.large.draw(5000, 64)
    assert float((dice.flip < 0).float().mean()) == pytest.approx(want["hf_prob"], abs=0.02)
    assert float(dice.grey.mean()) == pytest.approx(want["random_gray_scale"], abs=0.02)
    assert float((dice.colours["hue"] != 0).float().mean()) == pytest.approx(want["cj_prob"], abs=0.02)
    still = dice.colours["hue"] == 0  # where one colour stays, all do
    assert all(bool((dice.colours[name][still] == 1).all()) for name in ("brightness", "contrast", "saturation"))
    blurred = (dice.sigma > 2e-3).view(2, -1).float().mean(1)
    assert blurred.tolist() == pytest.approx([1.0, 0.1], abs=0.02)
    area = dice.height * dice.width
    assert 0.4 <= float(area[(dice.height < 1) & (dice.width < 1)].min())
    assert float((dice.width / dice.height).max()) <= 4 / 3 + 1e-5


def test_a_view_is_the_crop_that_was_drawn() -> None:
    "One sampling for all views against torchvision's crop and mirror, one view after the other."
    seed_everything(0)
    images = torch.rand(3, 3, 64, 64)
    dice = Crops(64, blur_p=(0.0, 0.0), solar_p=(0.0, 0.0)).draw(3, 64)
    m = len(dice.height)
    # boxes of whole pixels, without colours
    high, wide = (torch.tensor(x).float() for x in ([32, 40, 64, 48, 50, 36], [48, 40, 32, 64, 44, 60]))
    top, left = (torch.tensor(x).float() for x in ([3, 24, 0, 7, 14, 20], [16, 9, 30, 0, 20, 4]))
    room = lambda at, side: at / (64 - side).clamp(min=1)  # noqa: E731
    plain = {name: torch.full((m,), float(name != "hue")) for name in JITTER}
    dice = replace(
        dice, height=high / 64, width=wide / 64, top=room(top, high), left=room(left, wide), grey=torch.zeros(m),
        flip=torch.tensor([1.0, -1, 1, -1, -1, 1]), colours=plain, sigma=torch.full((m,), 1e-3), solar=torch.zeros(m),
    )  # fmt: skip
    got = denormalize(make_views(images, dice, 64))
    for i in range(m):
        box = [int(x[i]) for x in (top, left, high, wide)]
        want = TF.resized_crop(images[i % 3], *box, [64, 64], antialias=False)
        want = TF.horizontal_flip(want) if dice.flip[i] < 0 else want
        # at the box's edge a sampling sees the photograph's next pixel, and torchvision's crop does not
        assert torch.allclose(got[i][:, 1:-1, 1:-1], want[:, 1:-1, 1:-1], atol=1e-4)


def test_colours_are_torchvisions_in_the_order_that_was_drawn() -> None:
    seed_everything(1)
    images = torch.rand(4, 3, 32, 32)
    crops = Crops(32, scale=(1.0, 1.0), blur_p=(0.0,), solar_p=(1.0,))
    dice = replace(
        crops.draw(4, 32),
        height=torch.ones(4),
        width=torch.ones(4),
        flip=torch.ones(4),
        grey=torch.tensor([0.0, 1, 0, 0]),
    )
    adjust_by = {n: getattr(TF, f"adjust_{n}") for n in ("brightness", "contrast", "saturation", "hue")}
    got = denormalize(make_views(images, dice, 32))
    for i, want in enumerate(images):
        for name, strength in dice.colours.items():
            want = adjust_by[name](want, float(strength[i]))
        want = TF.rgb_to_grayscale(want, 3) if dice.grey[i] else want
        assert torch.allclose(got[i], TF.solarize(want, 0.5), atol=2e-3)


def test_hidden_patches_are_rectangles() -> None:
    seed_everything(0)
    hiding = Hiding.draw(200, (4, 6))
    share = hiding.mask.float().mean((1, 2))
    assert 70 < int((share > 0).sum()) < 130
    for mask in hiding.mask[share > 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])
    assert hiding.mask.flatten().nonzero()[:, 0].tolist() == hiding.index.tolist()
    assert float(hiding.weight.sum()) == pytest.approx(1.0, abs=1e-5)
    assert len(Hiding.draw(3, (4, 6), chance=0.0).index) == 0


def test_the_student_does_not_see_hidden_patches() -> None:
    net = make_distiller(patch_weight=1.0)
    images, hidden = torch.randn(2, 3, 32, 32), torch.zeros(2, 4, 4, dtype=torch.bool)
    hidden[:, 1, 2] = True
    other = images.clone()
    other[:, :, 8:16, 16:24] = 5.0
    seen = [see(net.student.model, x, hidden, net.patches.token)[1] for x in (images, other)]
    assert torch.equal(*seen)
    assert not torch.equal(*(see(net.student.model, x)[1] for x in (images, other)))


def test_patch_loss_is_the_mean_over_views_of_the_mean_over_hidden_patches() -> None:
    net = make_distiller(patch_weight=1.0)
    large = torch.randn(2, 4, 3, 32, 32)
    seed_everything(5)
    got = net(large, None)
    seed_everything(5)
    hiding = Hiding.draw(8, (4, 4))
    views = large.flatten(0, 1)
    with torch.no_grad():
        taught = net.patches.teacher_head(see(net.teacher.model, views)[1].flatten(0, 1)).view(8, 16, -1)
        seen, guessed = see(net.student.model, views, hiding.mask, net.patches.token)
        said = net.patches.head(guessed.flatten(0, 1)).view(8, 16, -1)
        whole = DINOLoss(48)(
            list(net.teacher_head(see(net.teacher.model, views)[0]).split(4)), list(net.head(seen).split(4))
        )
    terms = -((taught / 0.04).softmax(-1) * (said / 0.1).log_softmax(-1)).sum(-1)
    mask = hiding.mask.flatten(1)
    patches = torch.stack([t[m].mean() for t, m in zip(terms, mask) if m.any()]).mean()
    assert torch.allclose(got, whole + patches, atol=1e-4)


def test_small_views_belong_to_their_photograph() -> None:
    seed_everything(0)
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    pixels[1] = 255
    for views in MultiCrop(64, 32, 3)(pixels):
        dark, light = views[:, 0].mean(dim=(1, 2, 3)), views[:, 1].mean(dim=(1, 2, 3))
        ordinary = [i for i in range(len(dark)) if i != 1]  # the second large one may be solarised
        assert all(dark[i] < light[i] for i in ordinary)


def make_distiller(output_dim: int = 48, patch_weight: float = 0.0) -> Distiller:
    seed_everything(0)
    nets = [create_backbone("timet_tiny_patch8_64", weights="none", tuned_blocks="all") for _ in range(2)]
    return Distiller(*nets, hidden_dim=32, output_dim=output_dim, patch_weight=patch_weight)


def test_loss_is_every_view_against_every_other_large_one() -> None:
    net = make_distiller()
    large, small = torch.randn(2, 4, 3, 32, 32), torch.randn(3, 4, 3, 16, 16)
    got = net(large, small)
    net.loss.center.zero_()
    taught = [net.teacher_head(see(net.teacher.model, view)[0]) for view in large]
    said = [net.head(see(net.student.model, view)[0]) for view in [*large, *small]]
    total, pairs = 0.0, 0
    for i, t in enumerate(taught):
        for j, s in enumerate(said):
            if i == j:
                continue
            for row in range(4):
                total -= ((t[row] / 0.04).softmax(0) @ (s[row] / 0.1).log_softmax(0)).item() / 4
            pairs += 1
    assert got.item() == pytest.approx(total / pairs, rel=1e-4)


def test_only_the_student_learns_and_the_teacher_follows() -> None:
    net = make_distiller()
    net(torch.randn(2, 4, 3, 32, 32), torch.randn(2, 4, 3, 16, 16)).backward()
    assert all(p.grad is None for part in (net.teacher, net.teacher_head) for p in part.parameters())
    assert net.student.model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    before = net.teacher.model.pos_embed.clone()
    with torch.no_grad():
        net.student.model.pos_embed += 1
    net.follow(0.9)
    assert torch.allclose(net.teacher.model.pos_embed, 0.9 * before + 0.1 * net.student.model.pos_embed, atol=1e-6)


def test_a_network_without_class_token_is_refused() -> None:
    nets = [create_backbone("resnet18", weights="none", tuned_blocks="all") for _ in range(2)]
    with pytest.raises(TimetError, match="no class token"):
        Distiller(*nets)


# ---------------------------------------------------------------- neighbours


def test_nearest_neighbours_are_a_weighted_vote() -> None:
    rng = torch.Generator().manual_seed(1)
    bank = torch.nn.functional.normalize(torch.randn(60, 8, generator=rng), dim=-1)
    asked = torch.nn.functional.normalize(torch.randn(25, 8, generator=rng), dim=-1)
    labels, truth = torch.randint(0, 5, (60,), generator=rng), torch.randint(0, 5, (25,), generator=rng)
    right = 0
    for z, y in zip(asked, truth):
        likeness = (bank @ z).tolist()
        votes = dict.fromkeys(range(5), 0.0)
        for i in sorted(range(60), key=lambda i: -likeness[i])[:20]:
            votes[int(labels[i])] += np.exp(likeness[i] / 0.07)
        right += max(votes, key=votes.get) == int(y)
    assert nearest_neighbours(bank, labels, asked, truth) == pytest.approx(right / 25)


def test_features_are_normalised_and_batches_do_not_matter(photos: Photos) -> None:
    seed_everything(0)
    net = create_backbone("timet_tiny_patch8_64", weights="none", tuned_blocks=0).model
    whole, parts = features(net, photos.pixels), features(net, photos.pixels, batch_size=3)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.allclose(whole.norm(dim=-1), torch.ones(len(photos)), atol=1e-5)


# ---------------------------------------------------------------- runs


def test_schedules_start_and_end_where_they_should(photos: Photos) -> None:
    run = start_pretraining(settings(**{**TINY, "epochs": 100, "lr": 0.064}), photos)
    assert run.total == 200
    peak = 0.064 * 8 / 512
    course = [schedules(replace(run, step=step)) for step in range(201)]
    assert course[19]["lr"] == pytest.approx(peak)
    assert course[9]["lr"] == pytest.approx(peak / 2)
    assert course[200]["lr"] < peak / 100
    assert course[0]["ema_decay"] == pytest.approx(0.99)
    assert course[200]["ema_decay"] == pytest.approx(1, abs=1e-4)
    assert course[200]["weight_decay"] == pytest.approx(0.4, rel=1e-3)


def test_every_photograph_once_an_epoch(photos: Photos) -> None:
    run = start_pretraining(settings(**{**TINY, "batch_size": 10}), photos)
    seen, found = torch.arange(20).float(), []
    for part in batches(run, seen):
        found += part.tolist()
        run.step += 1
        if run.step == 4:
            break
    assert sorted(found[:20]) == sorted(found[20:]) == list(range(20))
    assert found[:20] != found[20:]
    assert epoch_order(0, 1, 20).tolist() == [int(i) for i in found[20:]]


@pytest.mark.parametrize("patch_weight", [0.0, 1.0])
def test_a_stopped_run_goes_on_to_the_last_bit(photos: Photos, tmp_path: Path, patch_weight: float) -> None:
    def centre(folder: Path, *ends: int) -> torch.Tensor:
        for end in ends:
            run = start_pretraining(settings(**TINY, max_steps=end, patch_weight=patch_weight), photos)
            run.folder = folder
            if end != ends[0]:
                restore_pretraining(run)
            fit(run)
        return run.distiller.teacher.model.norm.weight, run.distiller.loss.center

    for one, two in zip(centre(tmp_path / "a", 4), centre(tmp_path / "b", 1, 3, 4)):
        assert torch.equal(one, two)


def test_minutes_choose_the_steps(photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timet.run.loop.WARM", 1)
    run = start_pretraining(settings(**{**TINY, "epochs": 1000}, minutes=0.05), photos)
    run.folder = tmp_path
    assert fit(run)
    assert 1 < run.step == run.total < 2000
    assert 1 < run.seconds < 20


def test_more_minutes_after_the_end(done: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timet.run.loop.WARM", 1)
    run = shutil.copytree(done[0], tmp_path / "run")
    before = torch.load(run / "checkpoints/last.pt", weights_only=True)
    status, told, wrong = ask("--resume", run, "--minutes", 0.05)
    assert status == 0, wrong
    after = torch.load(run / "checkpoints/last.pt", weights_only=True)
    assert after["step"] == after["total"] > before["step"]
    assert "loss" in told


def test_minutes_are_forgotten_by_a_stop_before_the_speed_is_known(photos: Photos, tmp_path: Path) -> None:
    run = start_pretraining(settings(**TINY, minutes=5, max_steps=2), photos)
    run.folder = tmp_path
    assert fit(run)
    assert (run.step, run.total) == (2, 4)


def test_a_gradient_that_is_no_number_is_not_saved(photos: Photos, tmp_path: Path) -> None:
    run = start_pretraining(settings(**{**TINY, "log_every": 100}), photos)
    run.folder = tmp_path
    with torch.no_grad():
        run.distiller.student.model.pos_embed[:] = float("nan")
    with pytest.raises(TimetError, match="smaller --lr"):
        fit(run)
    assert not (tmp_path / "checkpoints/last.pt").exists()


def test_a_run_that_fails_before_its_first_step_gives_its_folder_back(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TimetError("the GPU is full")

    monkeypatch.setattr("timet.pretraining.loop.pretrain_step", fail)
    assert "the GPU is full" in ask(album, *words(out=tmp_path / "run"))[2]
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    assert "the GPU is full" in ask(album, *words(out=tmp_path / "mine"))[2]
    assert list((tmp_path / "mine").iterdir()) == []


def test_other_photographs_are_noticed(done: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = done
    other = noise(tmp_path / "other", classes=("dog", "cat"))
    status, _, wrong = ask(other, "--resume", run, "--epochs", 1000, "--max-steps", 500)
    assert status == 2
    assert "other photographs" in wrong


def test_a_batch_larger_than_the_set(photos: Photos) -> None:
    with pytest.raises(TimetError, match="choose --batch-size 20 or smaller"):
        start_pretraining(settings(**{**TINY, "batch_size": 21}), photos)


@pytest.mark.parametrize("name", [n for n, v in flat(PretrainConfig()).items() if isinstance(v, (int, float)) and v])
def test_every_number_is_checked(name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(TimetError, match=f"{flag} must be"):
        check(read_command([flag, "-1"]), flags=True)
    with pytest.raises(TimetError, match=f"{name} must be"):
        settings(**{name: float("nan")})


# ---------------------------------------------------------------- the command


def words(**flags: object) -> list[str]:
    return [w for name, value in {**TINY, **flags}.items() for w in (f"--{name.replace('_', '-')}", str(value))]


def ask(*argv: object) -> tuple[int, str, str]:
    "Exit status, what was printed, and what went to stderr."
    out, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(wrong):
        try:
            main([str(word) for word in argv])
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), wrong.getvalue()
    return 0, out.getvalue(), wrong.getvalue()


@pytest.fixture(scope="module")
def done(album: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("runs") / "run"
    status, told, wrong = ask(album, *words(check=album, about="Made of noise.", out=run))
    assert status == 0, wrong
    return run, told


def test_a_run_leaves_weights_figures_and_a_card(done: tuple[Path, str]) -> None:
    run, told = done
    name = "timet_tiny_patch8_64"
    assert f"weights: {run / name}.safetensors" in told
    scores = json.loads((run / "check.json").read_text())
    assert scores["chance"] == 0.5
    assert set(scores) == {"chance", "pretrained", "random"}
    text = (run / f"{name}.md").read_text()
    assert all(
        part in text for part in ("Made of noise.", "## Recipe", "## Compute", "## Figures", "## Not for", "| random |")
    )
    assert (run / f"{name}.safetensors").stat().st_size < 8e6
    net = load_backbone(run / f"{name}.safetensors", tuned_blocks=2)
    assert net.source.startswith(name) and "photographs without labels" in net.source
    assert net.tokens(torch.randn(1, 3, 64, 96)).shape == (1, 96, 128)


def test_the_file_holds_the_teacher(done: tuple[Path, str]) -> None:
    run, _ = done
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)["distiller"]
    net = load_backbone(run / "timet_tiny_patch8_64.safetensors", tuned_blocks=0)
    for name, value in net.model.state_dict().items():
        assert torch.allclose(value, state[f"teacher.model.{name}"], atol=1e-3), name


def test_small_is_small_enough() -> None:
    net = create_backbone("timet_small_patch8_64", weights="none", tuned_blocks=0)
    assert 2 * sum(p.numel() for p in net.model.parameters()) < 8e6


def test_a_finished_run_wants_more_time(done: tuple[Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(done[0], tmp_path / "run")
    status, _, wrong = ask("--resume", run)
    assert status == 2
    assert "is finished after 4 steps" in wrong
    status, told, wrong = ask("--resume", run, "--epochs", 3)
    assert status == 0, wrong
    assert "in 6 steps" in told
    assert "has done 6 steps" in ask("--resume", run, "--max-steps", 5, "--epochs", 9)[2]
    log = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert log == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_from_what_it_left_on_another_machine(done: tuple[Path, str], tmp_path: Path) -> None:
    away = runpy.run_path(str(Path(__file__).parent.parent / "tools/away.py"))
    left, run = away["leave"](done[0], tmp_path / "left"), tmp_path / "run"
    assert away["bring_back"](left, run) == run
    before, after = (torch.load(f / "checkpoints/last.pt", weights_only=True) for f in (done[0], run))
    for name, x in before["distiller"].items():
        assert torch.allclose(x, after["distiller"][name].to(x.dtype), atol=0.01, rtol=0.01)
        assert torch.equal(x, after["distiller"][name]) or "teacher" in name
    status, _, wrong = ask("--resume", run, "--epochs", 3)
    assert status == 0, wrong
    assert read_log(run / "log.jsonl")[-1]["step"] == 6
    with pytest.raises(TimetError, match="name a new folder"):
        away["bring_back"](left, run)
    with pytest.raises(TimetError, match="must hold run"):
        away["bring_back"](tmp_path, tmp_path / "other")


def test_a_stop_for_a_trial_says_how_to_go_on(album: Path, tmp_path: Path) -> None:
    status, told, _ = ask(album, *words(out=tmp_path / "run", max_steps=2))
    assert status == 0
    assert (
        f"stopped after step 2 of 4; all is saved, go on with: python -m timet.pretrain --resume {tmp_path / 'run'}"
        in told
    )
    assert ask("--resume", tmp_path / "run")[0] == 0


def test_wrong_words(done: tuple[Path, str], album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = done
    for argv, said in (
        ([], "photographs are needed"),
        ([tmp_path / "no"], "is not there"),
        ([album, "--check", tmp_path / "no"], "is not there"),
        ([album, "--batch-size", "1"], "--batch-size must be at least 2"),
        ([album, "--out", run], "already holds a run"),
        (["--resume", tmp_path], "has no config.json"),
        (["--resume", run, "--lr", "1"], "was started with lr=0.001 and not 1.0"),
        ([album, *words(image_size=36, out=tmp_path / "x")], "does not divide"),
        ([album, *words(backbone="resnet18", out=tmp_path / "x")], "no class token"),
        ([album, *words(device="cuda:9", out=tmp_path / "x")], "is not on this machine"),
    ):
        status, _, wrong = ask(*argv)
        assert status == 2, argv
        assert said in wrong, wrong
        assert "Traceback" not in wrong
    assert not (tmp_path / "x").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in ask(album)[2]


@pytest.mark.parametrize(
    ("line", "status"), [(["--help"], 0), (["nowhere"], 2), (["--resume", "nowhere"], 2), (["--lr", "0"], 2)]
)
def test_mistakes_are_answered_before_torch_is_imported(
    line: list[str], status: int, quick: Callable[[str, list[str], int], None]
) -> None:
    quick("timet.pretrain", line, status)


def test_a_missing_package_is_named(album: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, wrong = ask(album, *words(out=tmp_path / "run"))
    assert status == 2
    assert "pip install 'timet[pretrain]'" in wrong


def test_config_of_a_run_is_read_back(done: tuple[Path, str]) -> None:
    run, _ = done
    config = read_command(["--resume", str(run)])
    assert config.resume and config.out == run
    assert {*flat(config)} >= FREE


# ---------------------------------------------------------------- weights that travel


def test_shipped_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: tuple[Path, str]) -> None:
    with pytest.raises(TimetError, match="no weights of resnet18 are shipped"):
        shipped_weights("resnet18")
    run, _ = done
    folder = tmp_path / "data_samples/weights"
    folder.mkdir(parents=True)
    for ending in ("safetensors", "json"):
        (folder / f"timet_tiny_patch8_64.{ending}").write_bytes((run / f"timet_tiny_patch8_64.{ending}").read_bytes())
    monkeypatch.setattr("timet.backbone.samples_dir", lambda: tmp_path / "data_samples")
    net = create_backbone("timet_tiny_patch8_64", weights="shipped", tuned_blocks=0)
    assert "photographs without labels" in net.source
    with pytest.raises(TimetError, match="only of timet_tiny_patch8_64"):
        create_backbone("timet_small_patch8_64", weights="shipped")


REAL = Path(os.environ.get("TIMET_CLIPS", "/nowhere")) / "tiny-imagenet"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real photographs here (set TIMET_CLIPS)")
def test_real_photographs(tmp_path: Path) -> None:
    config = settings(**{**TINY, "image_size": 64, "local_size": 32, "batch_size": 16, "max_steps": 3}, limit=200,
                            images=REAL / "val-2k.zip", out=tmp_path / "run")  # fmt: skip
    losses = []
    run = pretrain(config, on_step=lambda numbers: losses.append(numbers["loss"]))
    assert len(losses) == 3
    assert all(0 < loss < 2 * np.log(48) for loss in losses)
    assert "200 photographs" in (run / "timet_tiny_patch8_64.md").read_text()


def test_weight_decay_may_start_at_nothing(photos: Photos) -> None:
    run = start_pretraining(settings(**{**TINY, "epochs": 2}, weight_decay=0.0), photos)
    seen = []
    for part in batches(run, photos.pixels):
        pretrain_step(run, part)
        seen.append(sorted({group["weight_decay"] for group in run.optimizer.param_groups}))
        if run.step == run.total:
            break
    assert seen[0] == [0.0]
    assert seen[-1][0] == 0.0 < seen[-1][1]
