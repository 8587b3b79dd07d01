"""A training step: as the package does it, by hand, and by its parts."""

from collections.abc import Callable

import torch
from card.bench import FRAMES, PROTOTYPES, Bench, make_clips, make_model, make_optimizer, open_session, section
from torch import Tensor, nn


@section("D", 75)
def step_by_parts(bench: Bench) -> None:
    "The step as the package does it, by hand, and piece by piece."
    package_step(bench)
    model, clips = make_model(bench), make_clips(bench)
    step = plain_step(bench, model, clips, make_optimizer(model), model)
    bench.measure_step("step by hand, AdamW foreach, diagnosed", step)
    kind = {"fused": bench.cuda}
    loss_alone = plain_step(bench, model, clips, make_optimizer(model, **kind), lambda x: model.step(x).loss)
    bench.measure_step("step by hand, AdamW fused, not diagnosed", loss_alone)
    backbone_parts(bench, model.backbone, clips)
    label_parts(bench, model.backbone)
    rest_of_step(bench, model, clips)
    if bench.cuda:
        kernels(bench, step)


def package_step(bench: Bench) -> None:
    "`train_step` with a batch that is there already."
    from timet.training.session import train_step

    session, parts = open_session(bench, bench.scale.clips)
    bench.measure_step("train_step, as the package does it", lambda: train_step(session, parts, (False, False)))


def plain_step(
    bench: Bench,
    model: nn.Module,
    clips: Tensor,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor], Tensor],
    keep_gradients: bool = False,
) -> Callable[[], Tensor]:
    "A step of training without the package's session."

    def step() -> Tensor:
        # a CUDA graph must not hold weights that autocast keeps from an earlier step
        with torch.autocast(bench.device.type, torch.bfloat16, cache_enabled=not keep_gradients):
            loss = loss_of(clips)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=not keep_gradients)
        model.normalize_prototypes()
        return loss

    return step


def backbone_parts(bench: Bench, backbone: nn.Module, clips: Tensor) -> None:
    "Frozen and tuned blocks."
    from timet.backbone import stem

    images, count = clips.flatten(0, 1), len(clips)
    with torch.no_grad(), bench.autocast():
        bench.measure("frozen part", lambda: backbone.frozen_part(images))
        bench.measure("  of it the stem", lambda: stem(backbone.model, backbone.converted(images)))
        hidden = backbone.frozen_part(images)
        bench.say("  type of what it gives", dtype=str(hidden.dtype))
        bench.measure("tuned part, past frames", lambda: backbone.tuned_part(hidden[: count * (FRAMES - 1)]))
    last = hidden[:count].clone()

    def learn() -> None:
        with bench.autocast():
            loss = backbone.tuned_part(last).float().mean()
        loss.backward()

    bench.measure("tuned part, last frame and backward", learn)


def label_inputs(bench: Bench, backbone: nn.Module) -> tuple[Tensor, Tensor, tuple[int, int]]:
    "Tokens, maps and grid for a forwarder."
    grid, clips = backbone.grid(bench.scale.size, bench.scale.size), bench.scale.clips
    patches = grid[0] * grid[1]
    tokens = torch.randn(clips, FRAMES, patches, backbone.embed_dim, device=bench.device)
    return tokens, torch.rand(clips, patches, PROTOTYPES, device=bench.device).softmax(-1), grid


def label_parts(bench: Bench, backbone: nn.Module) -> None:
    "Forwarder and Sinkhorn."
    from timet.feature_forwarder import forward_maps
    from timet.sinkhorn import sinkhorn

    tokens, maps, grid = label_inputs(bench, backbone)
    bench.measure("forwarder", lambda: forward_maps(tokens, maps, grid))
    bench.measure("  of it fp32 affinities of 3 frames", lambda: tokens[:, 3] @ tokens[:, :3].flatten(1, 2).mT)
    still = tokens[:, :1].expand_as(tokens).contiguous()
    bench.measure("forwarder, static clips", lambda: forward_maps(still, maps, grid))
    cosines = torch.rand(maps.flatten(0, 1).shape, device=bench.device) * 2 - 1
    bench.measure("Sinkhorn", lambda: sinkhorn(cosines, bound=1.0))


def rest_of_step(bench: Bench, model: nn.Module, clips: Tensor) -> None:
    "Diagnosis and optimisers."
    from timet.loss import diagnose

    with bench.autocast():
        step = model.step(clips)
    bench.measure("diagnose", lambda: diagnose(step))
    step.loss.backward()
    for name, kind in (("foreach", {"foreach": True}), ("fused", {"fused": True})):
        bench.measure(f"AdamW {name}", make_optimizer(model, **kind).step)
    model.zero_grad(set_to_none=True)


def kernels(bench: Bench, step: Callable[[], Tensor]) -> None:
    "What the card runs in a step, the longest first."
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        step()
        bench.finish()
    found = [e for e in seen.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(e.self_device_time_total for e in found) / 1e3
    bench.say("kernels of a step", count=sum(e.count for e in found), ms=total)
    for event in sorted(found, key=lambda e: -e.self_device_time_total)[:20]:
        bench.say(f"  kernel {event.key[:100]}", ms=event.self_device_time_total / 1e3, count=event.count)
