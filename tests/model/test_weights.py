"""Reading checkpoints: every layout, every way a file can be wrong."""

import argparse
import gzip
import os
import pathlib
import pickle
import re
import sys
import types
import typing
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from timet.core import TimetError
from timet.model.weights import (
    LAYOUTS,
    describe,
    load_weights,
    plain_names,
    read_checkpoint,
    select_weights,
)

SMALL = dict(num_classes=0, patch_size=8, img_size=32, embed_dim=32, num_heads=2, depth=2)


def vit(seed: int = 0, **args) -> nn.Module:
    "A small ViT with random weights everywhere, class token and norms included."
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL | args).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def resnet(seed: int = 0) -> nn.Module:
    "A ResNet-18 whose stored statistics are not the initial ones."
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", num_classes=0, output_stride=16, channels=(8, 16, 32, 64)).eval()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.add_(0.1 * torch.rand_like(buffer))
    return model


def state(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + k: v.clone() for k, v in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def chunked(names: dict) -> dict:
    "DINOv2's training cuts the blocks into chunks, and counts on inside them."
    return {re.sub(r"blocks\.(\d+)\.", r"blocks.\1.\1.", k): v for k, v in names.items()}


def transformers(model: nn.Module, prefix: str = "", dinov2: bool = True) -> dict[str, Tensor]:
    "A ViT of timm in the names of Hugging Face's `transformers`: those of Dinov2Model, or of ViTModel."
    names = [("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("blocks.", "encoder.layer."),
             (".attn.proj.", ".attention.output.dense.")]  # fmt: skip
    names += [(".ls1.gamma", ".layer_scale1.lambda1"), (".ls2.gamma", ".layer_scale2.lambda1")]
    if not dinov2:
        names += [(".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense."),
                  (".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after.")]  # fmt: skip
    whole = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
             "reg_token": "embeddings.register_tokens", "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias"}  # fmt: skip
    found = {}
    for key, value in state(model).items():
        if ".attn.qkv." in key:
            block, end = key.replace("blocks.", "encoder.layer.").split(".attn.qkv.")
            for part, third in zip(("query", "key", "value"), value.chunk(3)):
                found[f"{prefix}{block}.attention.attention.{part}.{end}"] = third.clone()
            continue
        name = whole.get(key, key)
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        found[prefix + name] = value
    return found


Z = torch.zeros(3)
# What each project's checkpoint holds, by its own code: (the row's name, a file made of the right weights and wrong ones).
# `n` is the network, `o` one with other weights that must not be taken.
FILES = {
    "ours": ("timet checkpoint", lambda n, o: {
        "model": state(n, "backbone.model.") | state(o, "teacher.backbone.model.") | {"head.0.weight": Z, "prototypes": Z},
        "optimizer": {"state": {}}, "step": 3}),
    "ours, pretraining": ("timet pretraining, teacher", lambda n, o: {
        "distiller": state(n, "teacher.model.") | state(o, "student.model.") | {"head.0.weight": Z, "teacher_head.0.weight": Z},
        "optimizer": {"state": {}}, "step": 3}),
    "TimeT.pth": ("released TimeT", lambda n, o: state(n, "feature_extractor.backbone.") | {
        "prototypes": Z, "feature_extractor.head.0.weight": Z, "feature_extractor.head.0.bias": Z}),
    "TimeT.pth, teacher saved": ("released TimeT", lambda n, o: {
        "prototypes": Z, "teacher_prototypes": Z, **state(n, "feature_extractor.backbone."),
        "feature_extractor.head.0.weight": Z, **state(o, "teacher.backbone."), "teacher.head.0.weight": Z}),
    "TimeT.pth from Leopart": ("released TimeT", lambda n, o: state(n, "feature_extractor.backbone.") | {
        "feature_extractor.backbone.projection_head.0.weight": Z, "feature_extractor.backbone.prototypes.weight": Z}),
    "DINO, full": ("DINO or iBOT, teacher", lambda n, o: {
        "teacher": state(n, "backbone.") | {"head.mlp.0.weight": Z, "head.last_layer.weight_g": Z},
        "student": state(o, "module.backbone.") | {"module.head.mlp.0.weight": Z},
        "epoch": 100, "args": argparse.Namespace(arch="vit_small", lr=0.1), "dino_loss": {"center": Z}}),
    "DINO, full, data-parallel teacher": ("DINO or iBOT, teacher", lambda n, o: {
        "teacher": state(n, "module.backbone.") | {"module.head.mlp.0.weight": Z}, "student": state(o, "module.backbone.")}),
    "DINO, student alone": ("DINO or iBOT, student", lambda n, o: {
        "student": state(n, "module.backbone.") | {"module.head.mlp.0.weight": Z}}),
    "DINO, student, one process": ("DINO or iBOT, student", lambda n, o: {"student": state(n, "backbone.")}),
    "iBOT, full": ("DINO or iBOT, teacher", lambda n, o: {
        "teacher": state(n, "backbone.") | {"backbone.masked_embed": Z, "head.mlp.0.weight": Z},
        "student": state(o, "module.backbone.")}),
    "iBOT, extracted": ("iBOT or timm, state_dict", lambda n, o: {"state_dict": state(n) | {"masked_embed": Z}}),
    "MSN": ("MSN, target encoder", lambda n, o: {
        "target_encoder": state(n, "module.") | {"module.fc.fc1.weight": Z, "module.fc.bn1.running_mean": Z},
        "encoder": state(o, "module."), "prototypes": Z, "opt": {}, "epoch": 800, "lr": 0.1}),
    "MSN, one process": ("MSN, target encoder", lambda n, o: {
        "target_encoder": state(n) | {"fc.fc1.weight": Z}, "encoder": state(o)}),
    "MoCo-v3": ("MoCo-v3, base encoder", lambda n, o: {
        "epoch": 300, "arch": "vit_base", "state_dict": {
            **state(o, "module.momentum_encoder."), **state(n, "module.base_encoder."),
            "module.base_encoder.head.0.weight": Z, "module.predictor.0.weight": Z}}),
    "Leopart, released": ("Leopart", lambda n, o: state(n, "model.") | {
        "model.projection_head.0.weight": Z, "model.prototypes.weight": Z} | state(o, "teacher.")),
    "Leopart, Lightning": ("Leopart", lambda n, o: {
        "state_dict": state(n, "model.") | {"model.prototypes.weight": Z} | state(o, "teacher."), "epoch": 1}),
    "Lightning, backbone": ("Lightning, backbone", lambda n, o: {
        "state_dict": state(n, "backbone.") | {"decode_head.conv.weight": Z}}),
    "MaskContrast": ("MaskContrast, query encoder", lambda n, o: {"model": state(n, "module.model_q.backbone.")
        | state(o, "module.model_k.backbone.") | {"module.queue": torch.zeros(2, 4)}, "epoch": 3}),
    "SwAV": ("plain weights", lambda n, o: state(n, "module.") | {
        "module.projection_head.0.weight": Z, "module.prototypes.weight": Z}),
    "SwAV, training": ("iBOT or timm, state_dict", lambda n, o: {"state_dict": state(n, "module."), "epoch": 5}),
    "MAE": ("weights under model", lambda n, o: {"model": state(n)}),
    "MAE, full": ("weights under model", lambda n, o: {"model": state(n) | {"decoder_embed.weight": Z, "mask_token": Z}}),
    "under model, parallel": ("weights under model", lambda n, o: {"model": state(n, "module."), "epoch": 3}),
    "timm, averaged": ("timm, averaged weights", lambda n, o: {"state_dict_ema": state(n), "state_dict": state(o)}),
    "timm, training": ("iBOT or timm, state_dict", lambda n, o: {"state_dict": state(n) | {"head.weight": Z}}),
    "torch-hub DINO, torchvision, timm": ("plain weights", lambda n, o: state(n)),
    "TimeT, checkpoint.pth": ("released TimeT", lambda n, o: {"model": state(n, "feature_extractor.backbone.")
        | state(o, "teacher.backbone.") | {"prototypes": Z, "feature_extractor.head.0.weight": Z}, "optimizer": {}, "epoch": 3}),
    "TimeT, parallel and compiled": ("released TimeT", lambda n, o: {"model": state(n, "_orig_mod.module.feature_extractor.backbone.")
        | state(o, "_orig_mod.module.teacher.backbone.") | {"_orig_mod.module.prototypes": Z}}),
    "STEGO": ("STEGO, its frozen DINO", lambda n, o: {"state_dict": state(n, "net.model.") | {
        "net.cluster1.0.weight": Z, "net.cluster2.2.bias": Z, "linear_probe.weight": Z, "cluster_probe.clusters": Z,
        "train_cluster_probe.clusters": Z, "decoder.weight": Z}, "epoch": 4, "pytorch-lightning_version": "1.5"}),
    "DenseCL": ("DenseCL, query encoder", lambda n, o: {"meta": {"epoch": 200}, "state_dict": state(n, "encoder_q.0.")
        | state(n, "backbone.") | state(o, "encoder_k.0.") | {
        "queue": Z, "queue2": Z, "queue_ptr": Z, "encoder_q.1.mlp.0.weight": Z, "encoder_k.1.mlp2.0.weight": Z}}),
    "MoCo": ("MoCo, query encoder", lambda n, o: {"arch": "resnet50", "state_dict": state(n, "module.encoder_q.")
        | state(o, "module.encoder_k.") | {"module.queue": Z, "module.queue_ptr": Z, "module.encoder_q.fc.0.weight": Z}}),
    "SimSiam": ("SimSiam or PixPro, encoder", lambda n, o: {"state_dict": state(n, "module.encoder.")
        | {"module.encoder.fc.0.weight": Z, "module.predictor.0.weight": Z}}),
    "MaskContrast, one process": ("MaskContrast, query encoder", lambda n, o: {"model": state(n, "model_q.backbone.")
        | state(o, "model_k.backbone.") | {"model_q.decoder.0.weight": Z, "queue": Z}}),
    "DINOv2, training": ("DINO or iBOT, teacher", lambda n, o: {"teacher": chunked(state(n, "backbone."))
        | {"backbone.mask_token": Z, "dino_head.mlp.0.weight": Z, "ibot_head.last_layer.weight_v": Z}}),
    "DINOv2, both": ("DINOv2, teacher", lambda n, o: {"model": chunked(state(n, "teacher.backbone."))
        | chunked(state(o, "student.backbone.")) | {"teacher.dino_head.mlp.0.weight": Z, "dino_loss.center": Z}}),
    "DINO, teacher extracted": ("DINO or iBOT, teacher", lambda n, o: {"teacher": state(n), "student": state(o)}),
    "DINO, student extracted": ("DINO or iBOT, student", lambda n, o: {"student": state(n)}),
    "DINOv2, chunked": ("plain weights", lambda n, o: chunked(state(n)) | {"mask_token": Z}),
    "with prefix, as safetensors are": ("Lightning, backbone", lambda n, o: state(n, "backbone.") | {"dino_head.mlp.0.weight": Z}),
    "DeepSpeed": ("plain weights", lambda n, o: {"module": state(n), "optimizer": None, "global_steps": 3}),
    "DeiT": ("timm, averaged weights", lambda n, o: {"model_ema": state(n) | {"head.weight": Z}, "model": state(o)}),
    "averaged": ("timm, averaged weights", lambda n, o: {"ema": state(n, "module.") | {"n_averaged": torch.tensor(3)}}),
    "NumPy arrays": ("plain weights", lambda n, o: {k: v.numpy() for k, v in state(n).items()}),
    "with company": ("plain weights", lambda n, o: state(n) | {"epoch": 3, "args": {"lr": 0.1}}),
    "with a classifier": ("plain weights", lambda n, o: state(n) | {"head.weight": Z, "fc.bias": Z}),
    **{f"Hugging Face, {name}": ("Hugging Face", lambda n, o, name=name: transformers(n, f"{name}.", name.startswith("dinov2"))
        | {"classifier.weight": Z, f"{name}.pooler.dense.weight": Z, f"{name}.embeddings.mask_token": Z})
       for name in ("dinov2", "dinov2_with_registers", "vit", "deit")},
    "Hugging Face, Dinov2Model": ("plain weights", lambda n, o: transformers(n)),
    "Hugging Face, ViTModel": ("plain weights", lambda n, o: transformers(n, dinov2=False)),
}  # fmt: skip
OF_VITS = [kind for kind in FILES if kind.startswith("Hugging")]


@pytest.mark.parametrize("kind, make", [(k, m) for k in FILES for m in (vit, resnet) if m is vit or k not in OF_VITS])
def test_every_layout_gives_its_network(kind, make, tmp_path):
    right, wrong, target = make(0), make(1), make(2)
    layout, build = FILES[kind]
    torch.save(build(right, wrong), tmp_path / "checkpoint.pth")
    assert load_weights(target, tmp_path / "checkpoint.pth") == layout
    assert same(target, right)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda k: f"module.{k}",
        lambda k: f"_orig_mod.{k}",
        lambda k: f"module._orig_mod.{k}",
        lambda k: f"_orig_mod.module.module.{k}",
        lambda k: k.replace("blocks.1.", "blocks.1._orig_mod."),
        lambda k: f"module.backbone.module.{k}".replace("attn.", "attn._orig_mod."),
        lambda k: f"_fsdp_wrapped_module.{k}".replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."),
    ],
)
@pytest.mark.parametrize("inside", ["", "model", "state_dict", "teacher"])
def test_wrappers_in_any_order_and_depth(wrap, inside, tmp_path):
    right, target = vit(0), vit(1)
    names = {wrap(k): v for k, v in state(right).items()}
    torch.save({inside: names} if inside else names, tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth")
    assert same(target, right)


def test_one_name_twice_is_refused():
    file = state(vit(0)) | state(vit(1), "module.")
    with pytest.raises(TimetError, match=r"the checkpoint holds cls_token twice, once as module\.cls_token"):
        select_weights(file)


def test_every_row_of_the_table_is_used():
    network, used = vit(), set()
    for _, build in FILES.values():
        layout = select_weights(build(network, network))[1]
        used.add((layout.name, layout.prefix))
    assert used == {(row.name, row.prefix) for row in LAYOUTS}


def find(file: dict, name: str) -> tuple[dict, str]:
    "Where in a nested checkpoint the selected network keeps a weight, and under which name."
    _, layout = select_weights(file)
    for held in [file.get(key) if key else file for key in layout.inside]:
        if isinstance(held, dict):
            raw = [k for k, v in held.items() if isinstance(v, (Tensor, np.ndarray))]
            names = dict(zip(plain_names(held), sorted(raw, key=lambda k: isinstance(held[k], np.ndarray))))
            if layout.prefix + name in names:
                return held, names[layout.prefix + name]
    raise AssertionError(name)


@pytest.mark.parametrize("kind", FILES)
def test_a_missing_and_a_surplus_weight_are_named(kind, tmp_path):
    target = vit(2)
    before, path = state(target), tmp_path / "file.pth"
    file = FILES[kind][1](vit(0), vit(1))
    held, key = find(file, "blocks.1.mlp.fc2.bias")
    del held[key]
    torch.save(file, path)
    with pytest.raises(TimetError, match=r"lacks blocks\.1\.mlp\.fc2\.bias"):
        load_weights(target, path)
    file = FILES[kind][1](vit(0), vit(1))
    held, key = find(file, "blocks.1.mlp.fc2.bias")
    held[key + "_9"] = Z
    torch.save(file, path)
    with pytest.raises(TimetError, match=r"no place for blocks\.1\.mlp\.fc2\.bias_9"):
        load_weights(target, path)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items()), "a refused file changed the network"


@pytest.mark.parametrize(
    "kind",
    [
        k
        for k, (name, _) in FILES.items()
        if name in ("released TimeT", "Leopart", "STEGO, its frozen DINO", "MaskContrast, query encoder")
    ],
)
def test_unknown_parts_beside_the_network_are_named(kind):
    file = FILES[kind][1](vit(0), vit(1))
    held, _ = find(file, "norm.weight")
    held["surprise.weight"] = Z
    with pytest.raises(TimetError, match=r"surprise\.weight"):
        select_weights(file)


def test_long_lists_are_capped(tmp_path):
    torch.save(
        {k: v for k, v in state(vit()).items() if "blocks.0.attn" not in k and "norm" not in k}, tmp_path / "a.pth"
    )
    with pytest.raises(TimetError, match=r"lacks ([\w.]+, ){3}[\w.]+ and \d+ more"):
        load_weights(vit(1), tmp_path / "a.pth")


def test_the_readme_recipe_would_take_the_teacher():
    "The accident that the full prefix prevents, on the real shapes of a file with a teacher."
    student, teacher = vit(0), vit(1)
    file = FILES["TimeT.pth, teacher saved"][1](student, teacher)
    careless, target = {".".join(k.split(".")[2:]): v for k, v in file.items()}, vit(2)
    target.load_state_dict(careless, strict=False)
    assert same(target, teacher) and not same(target, student)


def test_moco_v3_small_needs_twelve_heads(tmp_path):
    wide = dict(embed_dim=384, depth=1)
    file = FILES["MoCo-v3"][1](vit(0, num_heads=12, **wide), vit(1, **wide))
    torch.save(file, tmp_path / "vit-s-300ep.pth.tar")
    with pytest.raises(TimetError, match=r"12 attention heads.*has 6.*mocov3_vit_small_patch16_224"):
        load_weights(vit(2, num_heads=6, **wide), tmp_path / "vit-s-300ep.pth.tar")
    target = vit(2, num_heads=12, **wide)
    load_weights(target, tmp_path / "vit-s-300ep.pth.tar")
    assert same(target, vit(0, num_heads=12, **wide))


def test_dinov2_registers_get_timms_form(tmp_path):
    "DINOv2 gives the class token a position; timm's networks with registers keep the sum (no position of its own)."
    timms = vit(0, reg_tokens=4, no_embed_class=True, init_values=1e-5)
    file, position = state(timms), torch.randn(1, 1, 32)
    file["register_tokens"] = file.pop("reg_token")
    file["cls_token"] = file["cls_token"] - position
    file["pos_embed"] = torch.cat([position, file["pos_embed"]], 1)
    file["mask_token"] = torch.zeros(1, 32)
    torch.save(file, tmp_path / "dinov2_reg4.pth")
    target = vit(1, reg_tokens=4, no_embed_class=True, init_values=1e-5)
    load_weights(target, tmp_path / "dinov2_reg4.pth")
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(target.forward_features(image), timms.forward_features(image))


@pytest.mark.parametrize("prefix", ["", "dinov2_with_registers."])
def test_hugging_faces_dinov2_with_registers(prefix, tmp_path):
    timms = vit(0, reg_tokens=4, no_embed_class=True, init_values=1e-5)
    file, position = transformers(timms, prefix), torch.randn(1, 1, 32)
    inside = f"{prefix}embeddings."
    file[f"{inside}cls_token"] = file[f"{inside}cls_token"] - position
    file[f"{inside}position_embeddings"] = torch.cat([position, file[f"{inside}position_embeddings"]], 1)
    safetensors.torch.save_file(file, tmp_path / "model.safetensors")
    target = vit(1, reg_tokens=4, no_embed_class=True, init_values=1e-5)
    load_weights(target, tmp_path / "model.safetensors")
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(target.forward_features(image), timms.forward_features(image))


def test_hugging_faces_third_of_a_qkv_is_missed(tmp_path):
    file = transformers(vit())
    del file["encoder.layer.1.attention.attention.key.bias"]
    torch.save(file, tmp_path / "a.pth")
    with pytest.raises(
        TimetError, match=r"lacks blocks\.1\.attn\.qkv\.bias; has no place for blocks\.1\.attn\.query\.bias"
    ):
        load_weights(vit(1), tmp_path / "a.pth")


def test_old_resnets_without_batch_counters(tmp_path):
    right, target = resnet(0), resnet(1)
    torch.save({k: v for k, v in state(right).items() if "num_batches" not in k}, tmp_path / "old.pth")
    load_weights(target, tmp_path / "old.pth")
    assert same(target, right)


def test_half_precision_and_safetensors(tmp_path):
    right, target = vit(0), vit(1)
    safetensors.torch.save_file({k: v.half() for k, v in state(right).items()}, tmp_path / "half.safetensors")
    load_weights(target, tmp_path / "half.safetensors")
    for k, v in target.state_dict().items():
        assert v.dtype == torch.float32 and torch.equal(v, right.state_dict()[k].half().float())


# values


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda v: (v * 50).to(torch.int8),
            r"quantised or packed weights, cls_token \(int8\).*give them as fp32, fp16 or bf16",
        ),
        (lambda v: (v * 50).to(torch.uint8), r"\(uint8\)"),
        (lambda v: v.to(torch.complex64), r"\(complex64\)"),
        (lambda v: v.to_sparse(), r"quantised or packed"),
        (lambda v: v.to(torch.float8_e4m3fn), r"\(float8_e4m3fn\)"),
        (lambda v: v / 0 - v / 0, "values that are no finite numbers, in cls_token"),
    ],
    ids=["int8", "uint8", "complex", "sparse", "float8", "nan"],
)
def test_weights_that_are_no_plain_numbers(change, words, tmp_path):
    target = vit(2)
    before = state(target)
    torch.save({k: change(v) for k, v in state(vit()).items()}, tmp_path / "a.pth")
    with pytest.raises(TimetError, match=words):
        load_weights(target, tmp_path / "a.pth")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read(dtype, tmp_path):
    right, target = vit(0), vit(1)
    torch.save({k: v.to(dtype) for k, v in state(right).items()}, tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth")
    for k, v in target.state_dict().items():
        assert v.dtype == torch.float32 and torch.equal(v, right.state_dict()[k].to(dtype).float())


@pytest.mark.parametrize("key", ["patch_embed.proj.weight", "reg_token", "register_tokens", "pos_embed", "cls_token"])
@pytest.mark.parametrize(
    "value", [torch.tensor(1.0), torch.zeros(0), torch.zeros(2, 2, 2, 2, 2)], ids=["scalar", "none", "5d"]
)
def test_odd_shapes_are_one_sentence(key, value, tmp_path):
    torch.save(state(vit()) | {key: value}, tmp_path / "a.pth")
    with pytest.raises(TimetError, match=r"a\.pth") as said:
        load_weights(vit(1), tmp_path / "a.pth")
    assert "\n" not in str(said.value)


# positions


def test_positions_are_resampled_with_a_warning(tmp_path):
    right, target = vit(0), vit(1, img_size=(48, 32))
    torch.save(state(right), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="4 x 4 to 6 x 4 patches"):
        load_weights(target, tmp_path / "a.pth")
    right.set_input_size((48, 32))
    assert torch.equal(target.pos_embed, right.pos_embed)


def test_positions_that_are_no_square_grid(tmp_path):
    torch.save(state(vit(0, img_size=(48, 32))), tmp_path / "a.pth")
    with pytest.raises(TimetError, match=r"other shapes, pos_embed \(1, 25, 32\) for \(1, 17, 32\)"):
        load_weights(vit(1), tmp_path / "a.pth")


# files of other networks


@pytest.mark.parametrize(
    "args, words",
    [
        (dict(embed_dim=64), "width 64, 2 blocks, but vit_tiny_patch16_224 is a ViT with patches of 8, width 32"),
        (dict(depth=3), "3 blocks, but"),
        (dict(patch_size=16), "patches of 16"),
        (dict(reg_tokens=4), "2 blocks and 4 registers, but"),
        (dict(class_token=False, global_pool="avg"), "lacks cls_token, norm.weight, norm.bias"),
        (dict(mlp_ratio=2), r"other shapes, blocks.0.mlp.fc1.weight (64, 32) for (128, 32)"),
        (dict(qkv_bias=False), "lacks blocks.0.attn.qkv.bias"),
    ],
)
def test_another_architecture_in_one_sentence(args, words, tmp_path):
    torch.save(state(vit(0, **args)), tmp_path / "other.pth")
    with pytest.raises(TimetError) as said:
        load_weights(vit(1), tmp_path / "other.pth")
    assert words in str(said.value) and "\n" not in str(said.value)


def test_resnets_are_told_apart(tmp_path):
    deep = timm.create_model("resnet34", num_classes=0)
    torch.save(state(deep), tmp_path / "r34.pth")
    with pytest.raises(TimetError, match=r"a ResNet with 3 \+ 4 \+ 6 \+ 3 blocks .* 2 \+ 2 \+ 2 \+ 2 blocks"):
        load_weights(resnet(), tmp_path / "r34.pth")
    with pytest.raises(TimetError, match=r"a ResNet .*, but vit_tiny_patch16_224 is a ViT"):
        load_weights(vit(), tmp_path / "r34.pth")
    assert describe(timm.create_model("resnet50", num_classes=0).state_dict()).endswith("width 2048")


@pytest.mark.parametrize(
    "content",
    [{}, {"model": {}}, {"encoder.weight": Z}, {"state_dict": {"foo": Z}}, {"teacher": None}, {1: 2}],
    ids=["empty", "empty model", "another network", "another state dict", "no dict", "no names"],
)
def test_no_known_layout(content, tmp_path):
    torch.save(content, tmp_path / "what.pth")
    with pytest.raises(TimetError, match=r"what\.pth is in no layout"):
        load_weights(vit(), tmp_path / "what.pth")


# files that cannot be read, or should not


class Shell:
    "A pickle that would touch a file when it is opened."

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code(new, tmp_path):
    file = {"model": state(vit()), "args": Shell(tmp_path / "mark")}
    torch.save(file, tmp_path / "bad.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(TimetError, match=r"bad.pth asks for (posix|nt)\.system, which could run code"):
        load_weights(vit(), tmp_path / "bad.pth")
    assert not (tmp_path / "mark").exists()


def test_a_whole_pickled_module(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(TimetError, match="Linear, which could run code"):
        read_checkpoint(tmp_path / "module.pth")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_harmless_company_is_let_through(new, tmp_path):
    company = {
        "args": argparse.Namespace(arch="vit", lr=np.float64(0.1)),
        "scalars": [np.float64(1), np.float32(2), np.int64(3), np.bool_(True)],
        "array": np.arange(3.0),
        "path": pathlib.PurePosixPath("a/b"),
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
    }
    torch.save({"model": state(vit())} | company, tmp_path / "old.pth", _use_new_zipfile_serialization=new)
    found = read_checkpoint(tmp_path / "old.pth")
    assert found["args"].arch == "vit" and found["scalars"][0] == 1.0 and found["array"].tolist() == [0, 1, 2]


def test_scalars_of_numpy_1(tmp_path):
    "Old files name `numpy.core`, which NumPy 2 calls `numpy._core`."
    torch.save({"loss": np.float64(0.5), "model": state(vit())}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as source, zipfile.ZipFile(tmp_path / "old.pth", "w") as target:
        for item in source.infolist():
            data = source.read(item)
            target.writestr(item, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(tmp_path / "old.pth")["loss"] == 0.5


def test_lightnings_bookkeeping_is_left_aside(tmp_path, monkeypatch):
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.utilities"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    checkpointing = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    parsing = types.ModuleType("pytorch_lightning.utilities.parsing")
    ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": checkpointing.__name__})
    AttributeDict = type("AttributeDict", (dict,), {"__module__": parsing.__name__})
    checkpointing.ModelCheckpoint, parsing.AttributeDict = ModelCheckpoint, AttributeDict
    monkeypatch.setitem(sys.modules, checkpointing.__name__, checkpointing)
    monkeypatch.setitem(sys.modules, parsing.__name__, parsing)
    file = FILES["Leopart, Lightning"][1](vit(0), vit(1))
    file |= {"hyper_parameters": AttributeDict(lr=0.1), "callbacks": {ModelCheckpoint: {"best": 0.3}}}
    torch.save(file, tmp_path / "leopart.ckpt")
    for name in (checkpointing.__name__, parsing.__name__):
        monkeypatch.delitem(sys.modules, name)
    target = vit(2)
    load_weights(target, tmp_path / "leopart.ckpt")
    assert same(target, vit(0))


def test_settings_of_omegaconf_are_left_aside(tmp_path, monkeypatch):
    "STEGO's files carry their settings as OmegaConf's classes."
    for name in ("omegaconf", "omegaconf.dictconfig", "omegaconf.base", "omegaconf.nodes"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def kind(module, name):
        made = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, made)
        return made

    settings, about, node = (kind(*w) for w in (("omegaconf.dictconfig", "DictConfig"),
                                                ("omegaconf.base", "ContainerMetadata"), ("omegaconf.nodes", "AnyNode")))  # fmt: skip
    made, meta, value = settings(), about(), node()
    vars(meta).update(ref_type=typing.Any, object_type=dict, key_type=int, flags=defaultdict(dict))
    vars(value).update(_val=0.5)
    vars(made).update(_metadata=meta, _content={"lr": value})
    file = FILES["STEGO"][1](vit(0), vit(1)) | {"hyper_parameters": {"n_classes": 27, "cfg": made}}
    torch.save(file, tmp_path / "stego.ckpt")
    for name in ("omegaconf.dictconfig", "omegaconf.base", "omegaconf.nodes", "omegaconf"):
        monkeypatch.delitem(sys.modules, name)
    target = vit(2)
    assert load_weights(target, tmp_path / "stego.ckpt") == "STEGO, its frozen DINO"
    assert same(target, vit(0))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("weights.pth", b"x")
    return path


def script(path: Path) -> Path:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    return path


def whole_safetensors(folder: Path) -> bytes:
    safetensors.torch.save_file(state(vit()), folder / "whole.safetensors")
    return (folder / "whole.safetensors").read_bytes()


def test_the_bytes_say_what_a_file_is_and_not_its_name(tmp_path):
    right, a, b = vit(0), vit(1), vit(2)
    (tmp_path / "a.bin").write_bytes(whole_safetensors(tmp_path))
    torch.save(state(right), tmp_path / "b.safetensors")
    load_weights(a, tmp_path / "a.bin")
    load_weights(b, tmp_path / "b.safetensors")
    assert same(a, right) and same(b, right)


def truncated(path: Path) -> bytes:
    torch.save(state(vit()), path)
    return path.read_bytes()[: path.stat().st_size // 2]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda d: d / "absent.pth", "there is no file"),
        (lambda d: d, "there is no file"),
        (lambda d: write(d / "empty.pth", b""), "cannot be read as a checkpoint: it is empty; fetch or copy it again"),
        (
            lambda d: write(d / "empty.safetensors", b""),
            "empty.safetensors cannot be read as a checkpoint: it is empty",
        ),
        (
            lambda d: write(d / "lfs.pth", b"version https://git-lfs.github.com/spec/v1\n"),
            "pointer that Git LFS leaves",
        ),
        (lambda d: write(d / "config.json", b'{"preset": "demo"}'), "it holds settings and no weights"),
        (lambda d: write(d / "a.pth.gz", gzip.compress(b"x")), "compressed archive; unpack it"),
        (lambda d: archive(d / "a.zip"), "an archive and no checkpoint; unpack it"),
        (lambda d: script(d / "a.pt"), "a program of TorchScript"),
        (lambda d: write(d / "half.safetensors", whole_safetensors(d)[:-9]), "cannot be read as a checkpoint"),
        (lambda d: write(d / "text.pth", b"hello world"), "cannot be read as a checkpoint"),
        (lambda d: write(d / "page.pth", b"<html>404</html>"), "cannot be read as a checkpoint: it is a web page"),
        (
            lambda d: write(d / "half.pth", truncated(d / "whole.pth")),
            "cannot be read as a checkpoint: it is cut short",
        ),
        (lambda d: write(d / "text.safetensors", b"hello world"), "cannot be read as a checkpoint"),
        (lambda d: write(d / "list.pth", pickle.dumps([1, 2])), "list.pth"),
    ],
    ids="absent folder empty empty-safetensors lfs json gzip zip script half-safetensors text web-page truncated no-safetensors pickle".split(),
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_unreadable_files_get_one_sentence(make, words, tmp_path):
    with pytest.raises(TimetError, match=words) as said:
        load_weights(vit(), make(tmp_path))
    assert "\n" not in str(said.value)


def test_a_list_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(TimetError, match="holds a list where a dict"):
        read_checkpoint(tmp_path / "list.pth")
