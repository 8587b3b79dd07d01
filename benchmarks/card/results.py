"""The machine, whether a card computes what the CPU does, and where a training step waits for it."""

import copy
import os
import subprocess
import warnings
from collections import Counter
from pathlib import Path

import forwarder_triton as written_anew
import torch
import torch.nn.functional as F
from card.bench import (
    FRAMES,
    PROTOTYPES,
    Bench,
    apart,
    make_clips,
    make_model,
    open_session,
    section,
)
from torch import Tensor, nn


@section("A", 40)
def machine(bench: Bench) -> None:
    "Versions, and what the card does at best."
    import accelerate
    import timm
    import torchvision

    versions = {package.__name__: package.__version__ for package in (torch, torchvision, timm, accelerate)}
    bench.say("versions", cpus=os.cpu_count(), **versions)
    if bench.cuda:
        asked = "name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current"
        words = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
        found = bench.attempt("nvidia-smi", lambda: subprocess.run(words, capture_output=True, text=True).stdout)
        bench.say("nvidia-smi", says=(found or "").strip())
    many = 2**30 if bench.cuda else 2**20
    source, target = (torch.zeros(many, dtype=torch.uint8, device=bench.device) for _ in range(2))
    took = bench.time(lambda: target.copy_(source))["ms"]
    bench.say("copy on the card", TB_s=2 * many / took / 1e9)
    products(bench)
    if bench.cuda:
        host_to_card(bench)


def products(bench: Bench) -> None:
    "Matrix products: a large one, and those of the network."
    rows = bench.scale.clips * FRAMES * 197
    shapes = {"square": (8192, 8192, 8192), "qkv": (rows, 384, 1152), "proj": (rows, 384, 384)}
    shapes |= {"fc1": (rows, 384, 1536), "fc2": (rows, 1536, 384)}
    for name, (m, k, n) in ({"square": (256, 256, 256)} if bench.tiny else shapes).items():
        left, right = (torch.randn(s, k, device=bench.device, dtype=torch.bfloat16) for s in (m, n))
        took = bench.time(lambda left=left, right=right: F.linear(left, right), 15)["ms"]
        rate = 2 * m * n * k / took * 1e3
        if name == "square":
            bench.matmul = rate
        bench.say(f"matmul bf16, {name}", ms=took, TFLOP_s=rate / 1e12)


def host_to_card(bench: Bench) -> None:
    "A batch of clips on its way to the card."
    shape = (bench.scale.clips, FRAMES, 3, bench.scale.size, bench.scale.size)
    for kind, dtype in (("fp32", torch.float32), ("uint8", torch.uint8)):
        pageable = torch.zeros(shape, dtype=dtype)
        for how, clips in (("pageable", pageable), ("pinned", pageable.pin_memory())):
            took = bench.time(lambda clips=clips: clips.to(bench.device, non_blocking=True), 3)["ms"]
            size = pageable.numel() * pageable.element_size()
            bench.say(f"a batch of {kind} clips to the card, {how}", ms=took, GB_s=size / took / 1e6)


def random_clips(kind: str, shape: tuple[int, ...] = (4, 4, 196, 384), channels: int = 200) -> tuple[Tensor, Tensor]:
    "Tokens and maps of clips in which all differs, or nothing moves (so that affinities tie)."
    torch.manual_seed(0)
    clips, frames, patches, features = shape
    tokens = torch.randn(clips, 1 if kind == "static" else frames, patches, features).expand(shape).contiguous()
    return tokens, torch.randn(clips, patches, channels).softmax(-1)


@section("B", 60)
def same_results(bench: Bench) -> None:
    "What the card computes, beside the CPU."
    forwarders_agree(bench)
    sinkhorn_agrees(bench)
    gradients_agree(bench)


def forwarders_agree(bench: Bench) -> None:
    "Forwarder: the package's, and those written anew."
    from timet.feature_forwarder import forward_maps

    shape = (2, 3, 196, 64) if bench.tiny else (4, 4, 196, 384)
    for kind in ("random", "static"):
        tokens, maps = random_clips(kind, shape)
        there = (tokens.to(bench.device), maps.to(bench.device), (14, 14))
        for order in ("mask_first", "eq4", "listing1"):
            want = forward_maps(tokens, maps, (14, 14), order=order)
            bench.say(f"forwarder, {kind} clips, {order}", apart=apart(forward_maps(*there, order=order), want))
        want = forward_maps(tokens, maps, (14, 14))
        bench.say(f"forward_torch, {kind} clips", apart=apart(written_anew.forward_torch(*there), want))
        for precision in ("tf32x3", "tf32", "ieee") if bench.cuda else ():
            name = f"forward_triton, {kind} clips, {precision}"
            made = bench.attempt(
                name, lambda p=precision, there=there: written_anew.forward_triton(*there, precision=p)
            )
            if made is not None:
                bench.say(name, apart=apart(made, want))
    tokens, maps = random_clips("random", (2, 3, 784, 64), 20)
    dense = forward_maps(tokens, maps, (28, 28), method="dense")
    windowed = forward_maps(tokens.to(bench.device), maps.to(bench.device), (28, 28), method="windowed")
    bench.say("forwarder, windowed on the card against dense on the CPU", apart=apart(windowed, dense))


def sinkhorn_agrees(bench: Bench) -> None:
    "Sinkhorn in all its ways."
    from timet.sinkhorn import sinkhorn

    cosines = torch.rand(4096, PROTOTYPES) * 2 - 1
    cases = {"cosines": (1, 1.0), "looked at": (1, None), "wide, in fp64": (8, None), "very wide, in logs": (40, None)}
    for name, (stretch, bound) in cases.items():
        scores = cosines * stretch
        there = sinkhorn(scores.to(bench.device), bound=bound)
        bench.say(f"Sinkhorn, {name}", apart=apart(there, sinkhorn(scores, bound=bound)))


def gradients_agree(bench: Bench) -> None:
    "Loss and gradient of a step."

    def gradient(model: nn.Module) -> Tensor:
        return torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])

    model, clips = make_model(bench), make_clips(bench, 2).cpu()
    reference = copy.deepcopy(model).cpu()
    loss = reference(clips)
    loss.backward()
    for precision in ("fp32", "bf16"):
        model.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16"):
            there = model(clips.to(bench.device))
        there.backward()
        values = {
            "loss": float(there),
            "loss_cpu": float(loss),
            "gradient_apart": apart(gradient(model), gradient(reference)),
        }
        bench.say(f"step in {precision} beside the CPU in fp32", **values)


@section("C", 40)
def waits(bench: Bench) -> None:
    "Where the host waits for the card in a training step, as PyTorch itself tells."
    from timet.training.session import train_step

    session, parts = open_session(bench, 2 if bench.tiny else 16)
    train_step(session, parts, (False, False))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if bench.cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            train_step(session, parts, (False, False))
        finally:
            if bench.cuda:
                torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchroniz" in str(w.message))
    bench.say("waits in a train_step", total=sum(places.values()), where=dict(places))
