"""The backbone against a ViT written from its equations, and against timm; the cut, the grid, the export."""

import copy
import json
import pickle

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from timet.backbone import (
    ALIASES,
    Backbone,
    blocks_of,
    create_backbone,
    export_backbone,
    load_backbone,
    open_backbone,
    resolve_name,
    stem,
)
from timet.core import TimetError
from timet.model.weights import load_weights

TINY = dict(patch_size=8, embed_dim=32, num_heads=2, depth=3)
SLIM = dict(channels=(8, 16, 32, 64))


def make(name: str = "vit_tiny_patch16_224", *, tuned_blocks=2, image_size=32, seed: int = 0, **args) -> Backbone:
    "A small backbone with noise on every weight, so that no bias, norm or token is at its start value."
    torch.manual_seed(seed)
    args = (SLIM if name.startswith("resnet") else TINY) | args
    net = create_backbone(name, weights="none", tuned_blocks=tuned_blocks, image_size=image_size, model_args=args)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
        for key, buffer in net.named_buffers():
            if "running" in key:
                buffer.add_(0.2 * torch.rand_like(buffer))
    return net.eval()


# An independent ViT, float64, written from the equations: one image, one head, one query at a time.


def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for i, row in enumerate(x):
        out[i] = (row - row.mean()) / torch.sqrt(((row - row.mean()) ** 2).mean() + 1e-6) * w + b
    return out


def oracle(model: nn.Module, image: Tensor, heads: int, patch: int) -> Tensor:
    "All tokens of one image `(3 H W)`, prefix tokens included, after the final norm `(p+n d)`."
    s = {k: v.double() for k, v in model.state_dict().items()}
    image, rows = image.double(), []
    for i in range(image.shape[1] // patch):
        for j in range(image.shape[2] // patch):
            cut = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            rows.append(s["patch_embed.proj.weight"].flatten(1) @ cut.flatten() + s["patch_embed.proj.bias"])
    z = torch.cat([s["cls_token"][0], torch.stack(rows)]) + s["pos_embed"][0]
    d = z.shape[1]
    for block in range(len(model.blocks)):
        b = {k.split(".", 2)[2]: v for k, v in s.items() if k.startswith(f"blocks.{block}.")}
        x = layer_norm(z, b["norm1.weight"], b["norm1.bias"])
        q, k, v = (x @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).split(d, dim=1)
        mixed = torch.zeros_like(z)
        for head in range(heads):
            at = slice(head * d // heads, (head + 1) * d // heads)
            for i in range(len(z)):
                score = torch.stack([q[i, at] @ k[j, at] for j in range(len(z))]) / (d / heads) ** 0.5
                share = torch.exp(score - score.max())
                mixed[i, at] = (share / share.sum()) @ v[:, at]
        z = z + mixed @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = layer_norm(z, b["norm2.weight"], b["norm2.bias"])
        x = x @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        z = z + x @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    return layer_norm(z, s["norm.weight"], s["norm.bias"])


@pytest.mark.parametrize("size", [(32, 32), (16, 40)], ids=str)
@torch.no_grad()
def test_tokens_are_those_of_the_equations(size):
    net = make(image_size=size).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    wanted = torch.stack([oracle(net.model, image, heads=2, patch=8)[1:] for image in images])
    torch.testing.assert_close(net.tokens(images), wanted, rtol=1e-9, atol=1e-9)


# the cut

VARIANTS = {
    "ViT": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", dict(reg_tokens=4)),
    "registers without position": ("vit_tiny_patch16_224", dict(reg_tokens=4, no_embed_class=True)),
    "no class token": ("vit_tiny_patch16_224", dict(class_token=False, global_pool="avg")),
    "norm in front": ("vit_tiny_patch16_224", dict(pre_norm=True)),
    "layer scale": ("vit_tiny_patch16_224", dict(init_values=0.1)),
    "distilled DeiT": ("deit_tiny_distilled_patch16_224", {}),
    "attention pooling": ("vit_base_patch16_siglip_224", {}),
    "ResNet": ("resnet18", {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_tuned_of_frozen_is_tokens_and_timms_tokens(variant):
    name, args = VARIANTS[variant]
    net, images = make(name, image_size=32, **args), torch.randn(2, 3, 32, 48)
    net.grid(32, 48)
    features = net.model.forward_features(images)
    if name.startswith("resnet"):
        wanted = rearrange(features, "b d h w -> b (h w) d")
    else:
        assert net.num_prefix_tokens == features.shape[1] - 4 * 6
        wanted = net.model.fc_norm(features)[:, net.num_prefix_tokens :]
    for tuned in (0, 1, 2, len(blocks_of(net.model)), "all"):
        net.set_tuned(tuned)
        hidden = net.frozen_part(images)
        assert torch.equal(net.tuned_part(hidden), net.tokens(images))
        assert torch.equal(net(images), net.tokens(images))
        torch.testing.assert_close(net.tokens(images), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net.tuned_part(hidden[:1]), wanted[:1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_last_norm_is_applied_to_every_token():
    for args in ({}, dict(class_token=False, global_pool="avg")):
        net = make(**args)
        norm = net.model.norm if not args else net.model.fc_norm
        norm.weight.fill_(1)
        norm.bias.fill_(0)
        tokens = net.tokens(torch.randn(1, 3, 32, 32))
        torch.testing.assert_close(tokens.mean(-1), torch.zeros(1, 16), atol=1e-5, rtol=0)
        torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(1, 16), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
@pytest.mark.parametrize("tuned", [0, 1, 2, "all"])
def test_only_the_tuned_part_gets_gradients(name, tuned):
    net = make(name, tuned_blocks=tuned).train()
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    if tuned == 0:
        assert not net.tuned_parameters() and not net.tokens(images).requires_grad
        return
    hidden = net.frozen_part(images)
    assert hidden.requires_grad == (tuned == "all")
    net.tuned_part(hidden).square().sum().backward()
    depth = len(blocks_of(net.model))
    mine = {
        id(p) for block in blocks_of(net.model)[-(depth if tuned == "all" else tuned) :] for p in block.parameters()
    }
    if tuned == "all":
        mine = {id(p) for p in net.parameters()}
    for key, p in net.named_parameters():
        assert p.requires_grad == (id(p) in mine), key
        assert (p.grad is not None) == (id(p) in mine), key
        assert p.grad is None or p.grad.abs().sum() > 0, key
    assert {id(p) for p in net.tuned_parameters()} == mine
    if tuned != "all":
        assert images.grad is None
    if tuned != "all" and name != "resnet18":
        assert not any(p.requires_grad for p in net.model.norm.parameters()), "the final norm is frozen"


def test_source_rows_without_and_target_rows_with_gradient():
    "The training step's pattern: the same hidden rows, some without gradient, some with it."
    net = make().train()
    hidden = net.frozen_part(torch.randn(4, 3, 32, 32))
    with torch.no_grad():
        sources = net.tuned_part(hidden[:3])
    target = net.tuned_part(hidden[3:])
    assert not sources.requires_grad and target.requires_grad
    before = hidden.clone()
    target.sum().backward()
    assert torch.equal(hidden, before)


def test_training_mode_reaches_the_tuned_part_only():
    noise = dict(drop_path_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5, pos_drop_rate=0.5)
    net, images = make(**noise, depth=4), torch.randn(4, 3, 32, 32)
    holder = nn.Sequential(net).train()
    assert net.training and [b.training for b in net.model.blocks] == [False, False, True, True]
    hidden = net.frozen_part(images)
    assert torch.equal(hidden, net.frozen_part(images)), "the frozen part is not deterministic"
    assert not torch.equal(net.tuned_part(hidden), net.tuned_part(hidden)), "the tuned part ignores training mode"
    holder.eval()
    assert not net.training and torch.equal(net.tokens(images), net.tokens(images))
    net.set_tuned("all")
    net.train()
    assert net.model.pos_drop.training and not torch.equal(net.tokens(images), net.tokens(images))


@pytest.mark.parametrize("tuned", [2, "all"])
def test_batch_statistics_are_never_touched(tuned):
    net = make("resnet18", tuned_blocks=tuned).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    images = torch.randn(4, 3, 64, 64)
    together = net.tokens(images)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    torch.testing.assert_close(net.tokens(images[:1]), together[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tuned", [-1, 4, 2.0, True, "some", None])
def test_tuned_blocks_that_do_not_exist(tuned):
    with pytest.raises(TimetError, match=r"0 to 3, the blocks of vit_tiny_patch16_224, or all"):
        make(tuned_blocks=tuned)


def test_copies_are_whole():
    "A teacher is a deep copy; workers may pickle."
    net, images = make(tuned_blocks=1), torch.randn(1, 3, 32, 32)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.tokens(images), net.tokens(images))
        other.tuned_parameters()[0].data.zero_()
        assert not torch.equal(other.tokens(images), net.tokens(images))


def test_the_state_dict_is_timms_under_one_prefix():
    net = make()
    assert set(net.state_dict()) == {f"model.{k}" for k in net.model.state_dict()}


# precision, compiling


def test_bf16_autocast_keeps_gradients_after_a_pass_without():
    net, images = make().train(), torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = net.frozen_part(images)
        with torch.no_grad():
            net.tuned_part(hidden[:3])
        tokens = net.tuned_part(hidden[3:])
    tokens.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.tuned_parameters())
    with torch.no_grad():
        exact = net.eval().tokens(images[3:])
    assert F.cosine_similarity(tokens.float(), exact, dim=-1).min() > 0.99


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_compiling_finds_one_whole_graph(name):
    net, images = make(name).train(), torch.randn(2, 3, 32, 32)
    frozen = torch.compile(net.frozen_part, backend="eager", fullgraph=True)
    tuned = torch.compile(net.tuned_part, backend="eager", fullgraph=True)
    tokens = tuned(frozen(images))
    torch.testing.assert_close(tokens, net.tokens(images))
    tokens.sum().backward()
    assert all(p.grad is not None for p in net.tuned_parameters())


# the grid


@pytest.mark.parametrize(
    "name, args, size, grid",
    [
        ("vit_tiny_patch16_224", dict(patch_size=16), (448, 448), (28, 28)),
        ("vit_tiny_patch16_224", dict(patch_size=16), (96, 160), (6, 10)),
        ("vit_tiny_patch16_224", dict(patch_size=14), (224, 224), (16, 16)),
        ("vit_tiny_patch16_224", dict(patch_size=14), (98, 126), (7, 9)),
        ("vit_small_patch14_reg4_dinov2", dict(patch_size=14), (70, 98), (5, 7)),
        ("vit_tiny_patch16_224", dict(patch_size=8), (96, 96), (12, 12)),
        ("resnet18", {}, (448, 448), (28, 28)),
        ("resnet18", {}, (96, 160), (6, 10)),
        ("resnet50", {}, (96, 160), (6, 10)),
        ("resnet26d", {}, (64, 96), (4, 6)),
        ("timet_tiny_patch8_96", {}, (96, 160), (12, 20)),
    ],
)
@torch.no_grad()
def test_grids(name, args, size, grid):
    args = args if name in ALIASES else args | (SLIM if "resnet" in name else dict(TINY, depth=1) | args)
    net = create_backbone(name, weights="none", tuned_blocks=0, model_args=args)
    assert net.grid(*size) == grid
    assert net.tokens(torch.zeros(1, 3, *size)).shape == (1, grid[0] * grid[1], net.embed_dim)


@torch.no_grad()
def test_tokens_lie_row_by_row():
    "A change of one patch changes its own token most, on a grid that is not square."
    net = make(image_size=(96, 160), patch_size=16)
    for row, column in ((0, 0), (1, 7), (5, 2)):
        image = torch.zeros(1, 3, 96, 160)
        changed = image.clone()
        changed[..., row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 3 * torch.randn(3, 16, 16)
        moved = (net.tokens(changed) - net.tokens(image)).norm(dim=-1)[0]
        assert int(moved.argmax()) == row * 10 + column


@torch.no_grad()
def test_a_dilated_resnet_is_timms_on_the_doubled_grid():
    net = make("resnet18")
    assert net.patch_size == 16 and blocks_of(net.model)[-1].conv2.dilation == (2, 2)
    plain = timm.create_model("resnet18", num_classes=0, **SLIM)
    assert plain.state_dict().keys() == net.model.state_dict().keys()
    assert plain.forward_features(torch.zeros(1, 3, 64, 64)).shape[-2:] == (2, 2)
    assert net.tokens(torch.zeros(1, 3, 64, 64)).shape[1] == 4 * 4


@pytest.mark.parametrize("size, fit", [((100, 97), "96 x 96"), ((4, 32), "8 x 32"), ((33, 33), "32 x 32")])
def test_images_that_do_not_divide(size, fit):
    net = make()
    words = rf"{size[0]} x {size[1]} does not divide; resize the images, to {fit}"
    for call in (lambda: net.grid(*size), lambda: net.tokens(torch.zeros(1, 3, *size))):
        with pytest.raises(TimetError, match=words):
            call()


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 4, 3, 32, 32), (1, 32, 32, 3)], ids=str)
def test_images_of_another_shape(shape):
    with pytest.raises(TimetError, match=r"images must have the shape \(b 3 h w\)"):
        make().tokens(torch.zeros(shape))


@torch.no_grad()
def test_resampling_once_or_each_time_is_the_same(tmp_path):
    "`image_size` keeps the position vectors at that size; without it they are resampled at every call."
    small, images = make(), torch.randn(1, 3, 48, 64)
    torch.save(small.model.state_dict(), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="4 x 4 to 6 x 8"):
        fitted = create_backbone(
            "vit_tiny_patch16_224", weights=tmp_path / "a.pth", image_size=(48, 64), model_args=TINY
        )
    assert fitted.image_size == (48, 64) and fitted.model.pos_embed.shape[1] == 1 + 6 * 8
    torch.testing.assert_close(fitted.tokens(images), small.tokens(images))


# names and weights


@torch.no_grad()
def test_normalisation_follows_the_tag():
    args, images = TINY | dict(depth=1), torch.rand(2, 3, 32, 32)
    m, s = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    for name, mean, std in (
        ("vit_tiny_patch16_224", m, s),
        ("vit_small_patch16_224.dino", m, s),
        ("vit_tiny_patch16_224.augreg_in21k", 0.5, 0.5),
    ):
        net = create_backbone(name, weights="none", image_size=32, tuned_blocks=1, model_args=args).eval()
        wanted = net.model.forward_features((images - mean) / std)[:, 1:]
        torch.testing.assert_close(net.tokens((images - m) / s), wanted, atol=1e-5, rtol=1e-4)


def test_our_own_names():
    net = create_backbone("timet_tiny_patch8_96", weights="none", tuned_blocks="all")
    assert (net.embed_dim, net.patch_size, len(blocks_of(net.model)), net.image_size) == (128, 8, 5, (96, 96))
    assert net.model.blocks[0].attn.num_heads == 4
    moco = create_backbone("mocov3_vit_small_patch16_224", weights="none", model_args=dict(depth=2))
    assert moco.model.blocks[0].attn.num_heads == 12 and moco.embed_dim == 384


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "vit_smal_patch16_224",
            "there is no backbone 'vit_smal_patch16_224'; names near it are .*vit_small_patch16_224",
        ),
        ("resnet5O", "names near it are .*resnet50"),
        ("timet_tiny", "timet_tiny_patch8_96"),
        ("", "there is no backbone ''"),
        ("hf-hub:timm/vit_small_patch16_224.dino", "there is no backbone"),
        ("vit_small_patch16_224.dinoo", "no weights 'dinoo' .*dino"),
        ("swin_tiny_patch4_window7_224", "needs? a plain ViT or a ResNet"),
        ("eva02_tiny_patch14_224", "no rotary positions"),
        ("convnext_tiny", "needs? a plain ViT or a ResNet"),
    ],
)
def test_names_that_are_no_backbone(name, words):
    with pytest.raises(TimetError, match=words) as said:
        resolve_name(name)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(weights="nowhere.pth"), "weights must be hub, shipped, none or a file, and there is no file nowhere.pth"),
        (dict(weights=""), "weights must be hub, shipped, none or a file"),
        (dict(name="timet_tiny_patch8_96", weights="hub", model_args={}), "no network of the hub; give --weights FILE"),
        (dict(weights="hub"), r"name one of .*vit_tiny_patch16_224\.augreg_in21k"),
        (dict(image_size=100), "100 x 100 does not divide"),
        (dict(image_size=(32, 36)), "32 x 36 does not divide"),
        (dict(image_size=0), "image_size must be one or two whole numbers of pixels, got 0"),
        (dict(image_size=-32), "image_size must be"),
        (dict(image_size=True), "image_size must be"),
        (dict(image_size=(32.0, 32.0)), "image_size must be"),
        (dict(image_size=(32, 32, 32)), "image_size"),
        (dict(image_size="32"), "image_size"),
        (dict(model_args=dict(depth="many")), "timm cannot make vit_tiny_patch16_224"),
        (dict(model_args=dict(colour=1)), "timm cannot make vit_tiny_patch16_224"),
        (dict(model_args=dict(TINY, pretrained=True)), "timm cannot make .* with 'pretrained': it is no setting"),
        (dict(model_args=dict(TINY, checkpoint_path="/etc/passwd")), "'checkpoint_path': it is no setting"),
        (dict(model_args=dict(TINY, num_heads=0)), "timm cannot make vit_tiny_patch16_224"),
        (dict(model_args=dict(TINY, depth=10**9)), "depth must be 1 to 1000 blocks, got 1000000000"),
        (dict(model_args=dict(TINY, embed_dim=10**9)), "timm cannot make vit_tiny_patch16_224"),
        (dict(name=["vit_tiny_patch16_224"]), "the name of a backbone is a text"),
    ],
)
def test_settings_that_do_not_fit(settings, words):
    settings = dict(name="vit_tiny_patch16_224", weights="none", model_args=TINY) | settings
    with pytest.raises(TimetError, match=words):
        create_backbone(**settings)


def test_a_file_from_the_hub_cache_goes_through_timm(tmp_path, monkeypatch):
    "Heads are dropped and positions fitted by timm; nothing is asked over the network."
    import huggingface_hub

    def forbidden(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils.get_session", forbidden)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", forbidden)
    right = make()
    folder = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    state = {k: v.clone() for k, v in right.model.state_dict().items()} | {"head.weight": torch.zeros(21843, 32)}
    safetensors.torch.save_file(
        state | {"head.bias": torch.zeros(21843)}, folder / "snapshots" / "abc" / "model.safetensors"
    )
    net = create_backbone("vit_tiny_patch16_224.augreg_in21k", image_size=32, model_args=TINY).eval()
    assert all(torch.equal(v, right.model.state_dict()[k]) for k, v in net.model.state_dict().items())
    with pytest.raises(TimetError, match="timm cannot make"):
        create_backbone("vit_tiny_patch16_224.augreg_in21k", image_size=32, model_args=TINY | dict(embed_dim=64))


# export


@pytest.mark.parametrize(
    "name, args, size",
    [
        ("timet_tiny_patch8_96", {}, None),
        ("vit_small_patch16_224.dino", dict(TINY, patch_size=16), (96, 160)),
        ("vit_tiny_patch16_224.augreg_in21k", TINY, 32),
        ("vit_small_patch14_reg4_dinov2.lvd142m", dict(TINY, patch_size=14), (56, 70)),
        ("vit_base_patch16_siglip_224", TINY, 32),
        ("deit_tiny_distilled_patch16_224", TINY, 32),
        ("resnet18", SLIM, (96, 160)),
    ],
)
@torch.no_grad()
def test_an_export_is_read_by_timm_and_by_us(name, args, size, tmp_path):
    torch.manual_seed(0)
    net = create_backbone(name, weights="none", tuned_blocks=1, image_size=size, model_args=args).eval()
    path = export_backbone(net, tmp_path / "run" / "backbone.safetensors", note="a test")
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["note"] == "a test" and about["source"] == "random weights" and about["patch_size"] == net.patch_size
    height, width = net.image_size if max(net.image_size) < 200 else (64, 96)
    images = torch.rand(2, 3, height, width)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    tokens = net.tokens((images - mean) / std)

    foreign = timm.create_model(about["architecture"], checkpoint_path=path, **about["model_args"]).eval()
    mean, std = (torch.tensor(about[k])[:, None, None] for k in ("mean", "std"))
    features = foreign.forward_features((images - mean) / std)
    if name == "resnet18":
        features = rearrange(features, "b d h w -> b (h w) d")
    prefix = getattr(foreign, "num_prefix_tokens", 0)
    torch.testing.assert_close(features[:, prefix:], tokens, atol=1e-4, rtol=1e-4)

    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    for given in (path, path.with_suffix(".json")):
        again = load_backbone(given, tuned_blocks=1).eval()
        assert torch.equal(again.tokens((images - mean) / std), tokens)
        assert (again.name, again.image_size, again.made.mean) == (name, net.image_size, net.made.mean)
        assert again.source.endswith(f"started from {net.source}")  # a tuned network is no longer what it started from


def test_an_export_holds_plain_timm_names_and_no_run(tmp_path):
    net = make()
    path = export_backbone(net, tmp_path / "v1.5")
    assert path.name == "v1.5.safetensors" and (tmp_path / "v1.5.json").exists()
    assert set(safetensors.torch.load_file(path)) == set(net.model.state_dict())
    other = make(seed=1)
    assert load_weights(other, path) == "plain weights"
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())


def test_exports_that_are_not_whole(tmp_path):
    path = export_backbone(make(), tmp_path / "a.safetensors")
    with pytest.raises(TimetError, match=r"b\.json is needed"):
        load_backbone(tmp_path / "b.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TimetError, match=r"config\.json holds settings and no weights; give the run folder"):
        open_backbone(tmp_path / "config.json")
    facts = path.with_suffix(".json")
    text = facts.read_text()
    whole = json.loads(text)
    odd = [
        whole | change
        for change in (dict(name=["resnet18"]), dict(name=None), dict(model_args=[1]), dict(model_args=None))
    ]
    for broken in ("", "{", "[]", json.dumps({"name": "resnet18"}), "null", "[" * 100_000, *map(json.dumps, odd)):
        facts.write_text(broken)
        with pytest.raises(TimetError, match="missing or damaged"):
            load_backbone(path)
    facts.write_text(text.replace('"depth": 3', '"depth": 4'))
    with pytest.raises(TimetError, match=r"3 blocks, but vit_tiny_patch16_224 is a ViT .* 4 blocks"):
        load_backbone(path)
    facts.write_text(text)
    path.unlink()
    with pytest.raises(TimetError, match="no file"):
        load_backbone(path)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(model_args={"pretrained": True}), "'pretrained': it is no setting"),
        (dict(model_args={"pretrained_cfg": {"url": "http://127.0.0.1/x"}}), "'pretrained_cfg': it is no setting"),
        (dict(model_args={"checkpoint_path": "other.pth"}), "'checkpoint_path': it is no setting"),
        (dict(name="hf-hub:timm/resnet18"), "there is no backbone"),
        (dict(name="resnet18.a1_in1k", model_args={}), "a ViT .*, but resnet18.a1_in1k is a ResNet"),
        (dict(image_size="large"), "image_size must be"),
        (dict(image_size=[10**9, 10**9]), "timm cannot make"),
    ],
)
def test_nothing_from_a_file_reaches_the_network(change, words, tmp_path, monkeypatch):
    import socket

    def forbidden(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    path = export_backbone(make(), tmp_path / "a.safetensors")
    facts = path.with_suffix(".json")
    about = json.loads(facts.read_text())
    facts.write_text(json.dumps(about | change))
    with pytest.raises(TimetError, match=words) as said:
        load_backbone(path)
    assert "\n" not in str(said.value)


def test_a_file_in_the_cache_that_was_fetched_in_part(tmp_path, monkeypatch):
    held = tmp_path / "model.safetensors"
    held.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    monkeypatch.setattr("timet.backbone.hub_file", lambda name: held)
    with pytest.raises(
        TimetError, match=r"the cached weights .*model\.safetensors cannot be read .*; delete that file"
    ):
        create_backbone("vit_small_patch16_224.dino")


def test_an_unwritable_export(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TimetError, match="cannot write"):
        export_backbone(make(), tmp_path / "file" / "a.safetensors")


def test_a_stem_alone():
    net = make()
    tokens = stem(net.model, torch.zeros(1, 3, 32, 32))
    cls = net.model.cls_token[0, 0] + net.model.pos_embed[0, 0]
    torch.testing.assert_close(tokens[0, 0], cls)
    bias = net.model.patch_embed.proj.bias
    torch.testing.assert_close(tokens[0, 1:], bias + net.model.pos_embed[0, 1:])
    assert isinstance(net, Backbone)
