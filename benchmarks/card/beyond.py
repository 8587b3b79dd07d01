"""What could be gained beyond the package: other kernels, bf16 throughout, one CUDA graph, compiled blocks."""

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import forwarder_triton as written_anew
import torch
import torch.nn.functional as F
from card.bench import (
    FRAMES,
    Bench,
    apart,
    make_clips,
    make_model,
    make_optimizer,
    section,
)
from card.step import label_inputs, plain_step
from torch import Tensor, nn


class HalfFrozen(nn.Module):
    "The frozen blocks with weights and residuals in bf16."

    def __init__(self, backbone: nn.Module, gelu_in_product: bool = False, compiled: bool = False) -> None:
        super().__init__()
        from timet.backbone import blocks_of

        self.model = copy.deepcopy(backbone.model).to(torch.bfloat16).requires_grad_(False).eval()
        self.blocks = blocks_of(self.model)[: backbone.first_tuned]
        for block in self.blocks:
            if gelu_in_product:
                block.mlp.forward = self.with_gelu(block.mlp)
            if compiled:
                block.compile(fullgraph=True)

    @staticmethod
    def with_gelu(mlp: nn.Module) -> Callable[[Tensor], Tensor]:
        "The two layers with the GELU computed where the first product ends."

        def forward(x: Tensor) -> Tensor:
            wide = torch._addmm_activation(mlp.fc1.bias, x.flatten(0, -2), mlp.fc1.weight.t(), use_gelu=True)
            return mlp.fc2(wide.view(*x.shape[:-1], -1))

        return forward

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        from timet.backbone import stem

        with torch.autocast(images.device.type, enabled=False):
            hidden = stem(self.model, images.bfloat16())
            for block in self.blocks:
                hidden = block(hidden)
        return hidden


@section("E", 150)
def beyond_the_package(bench: Bench) -> None:
    "What could still be gained."
    if bench.cuda:
        attention_kernels(bench)
    model, clips = make_model(bench), make_clips(bench)
    frozen = frozen_variants(bench, model.backbone, clips.flatten(0, 1))
    forwarder = forwarder_variants(bench, model.backbone)
    fast_step(bench, model, clips, frozen, forwarder)
    if bench.cuda:
        compiled_step(bench, clips)


def attention_kernels(bench: Bench) -> None:
    "Attention of the frozen part in its kernels."
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.randn(bench.scale.clips * FRAMES, 6, 197, 64, device=bench.device, dtype=torch.bfloat16)
    for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

        def attend(kind: Any = kind) -> None:
            with sdpa_kernel(kind), torch.no_grad():
                bench.measure(f"attention, {kind.name}", lambda: F.scaled_dot_product_attention(q, q, q))

        bench.attempt(f"attention, {kind.name}", attend)


def frozen_variants(bench: Bench, backbone: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    "The frozen part in other ways; the fastest is given."
    with torch.no_grad(), bench.autocast():
        reference = backbone.frozen_part(images[:16]).float()
    kinds: dict[str, dict[str, bool]] = {"": {}}
    if bench.cuda:
        kinds |= {", GELU in the product": {"gelu_in_product": True}, ", blocks compiled": {"compiled": True}}
    best: tuple[float, Callable[[Tensor], Tensor]] = (float("inf"), backbone.frozen_part)
    for name, kind in kinds.items():

        def variant(name: str = name, kind: dict[str, bool] = kind) -> tuple[float, Callable[[Tensor], Tensor]]:
            frozen = HalfFrozen(backbone, **kind)
            seconds = bench.first(lambda: frozen(images))
            difference = {"from_autocast": apart(frozen(images[:16]), reference), "first_call_s": seconds}
            return bench.measure(f"frozen part in bf16{name}", lambda: frozen(images), **difference), frozen

        made = bench.attempt(f"frozen part in bf16{name}", variant)
        best = min(best, made or best, key=lambda pair: pair[0])
    return best[1]


def forwarder_variants(bench: Bench, backbone: nn.Module) -> Callable[..., Tensor]:
    "The forwarder in other ways; the fastest in fp32 is given."
    tokens, maps, grid = label_inputs(bench, backbone)
    plain, triton = written_anew.forward_torch, written_anew.forward_triton
    best = (bench.measure("forward_torch", lambda: plain(tokens, maps, grid)), plain)
    bench.measure("forward_torch, topk", lambda: plain(tokens, maps, grid, best=written_anew.any_best))
    for precision, targets, warps in (("tf32x3", 32, 4), ("tf32x3", 64, 8), ("tf32", 32, 4), ("ieee", 32, 4)):
        name = f"forward_triton {precision}, {targets} targets, {warps} warps"
        kind = {"precision": precision, "targets": targets, "warps": warps}

        def run(*given: Any, kind: dict[str, Any] = kind) -> Tensor:
            return triton(*given, **kind)

        if bench.cuda:
            took = bench.attempt(name, lambda run=run, name=name: bench.measure(name, lambda: run(tokens, maps, grid)))
            if took and precision != "tf32":
                best = min(best, (took, run), key=lambda pair: pair[0])
    return best[1]


def fast_step(bench: Bench, model: nn.Module, clips: Tensor, frozen: Callable, forwarder: Callable) -> None:
    "The whole step from the fastest parts: eager, as one CUDA graph, and with the tuned blocks compiled."
    import timet.labels

    backbone = model.backbone
    kind = {"fused": True, "capturable": True} if bench.cuda else {}
    optimizer = make_optimizer(model, **kind)
    step = plain_step(bench, model, clips, optimizer, lambda x: model.step(x).loss, keep_gradients=True)

    def frozen_part(images: Tensor) -> Tensor:
        "A plain function, for a module would not hide the method; the tuned blocks go on in fp32 as in the package."
        return frozen(images).float()

    swapped = mock.patch.object(backbone, "frozen_part", frozen_part)
    with swapped, mock.patch.object(timet.labels, "forward_maps", forwarder):
        bench.measure_step("step from the fast parts, eager", step)
        if not bench.cuda:
            return
        replay, loss = captured(step)
        bench.measure_step("step from the fast parts, one CUDA graph", replay, loss=float(loss))
        for block in (*backbone.model.blocks[backbone.first_tuned :], model.head):
            block.compile()
        seconds = bench.first(step)
        replay, loss = captured(step)
        name = "step from the fast parts, tuned blocks and head compiled, one CUDA graph"
        bench.measure_step(name, replay, loss=float(loss), first_call_s=seconds)


def captured(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    "A step as one CUDA graph: how to run it, and where its loss appears."
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    return graph.replay, loss


def compiled_step(bench: Bench, clips: Tensor) -> None:
    "What compiling the whole frozen and tuned part gives."
    model = make_model(bench)
    backbone = model.backbone
    backbone.frozen_part, backbone.tuned_part = map(torch.compile, (backbone.frozen_part, backbone.tuned_part))
    step = plain_step(bench, model, clips, make_optimizer(model), model)
    seconds = bench.first(step)
    bench.measure_step("step with both parts of the backbone compiled", step, first_call_s=seconds)
