"""Evaluation, films and pretraining."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from card.bench import FRAMES, PROTOTYPES, Bench, frame_folders, make_backbone, section
from torch import Tensor


@section("I", 60)
def tokens_and_streams(bench: Bench) -> None:
    "Tokens of videos, k-means, labels of a film."
    from timet.data.find import find_sources
    from timet.eval.kmeans import kmeans
    from timet.eval.tokens import extract_tokens
    from timet.film.stream import Clusters, stream_labels

    backbone, size = make_backbone(bench, 0), bench.scale.size
    how = {"device": str(bench.device), "precision": "bf16" if bench.cuda else "fp32"}
    picture = (72, 128) if bench.tiny else (480, 854)
    sources = find_sources(frame_folders(bench, "eval", 3 if bench.tiny else 96, 8, picture), fps=6)
    sizes = {"num_frames": FRAMES, "image_size": size, "mask_size": size}
    for workers in (2,) if bench.tiny else (4, 16):
        start = time.time()
        seen = extract_tokens(backbone, sources, workers=workers, **sizes, **how)
        rate, finite = len(sources) * FRAMES / (time.time() - start), bool(np.isfinite(seen.tokens).all())
        bench.say(f"extract_tokens, {workers} threads", frames_s=rate, finite=finite)
    rows = np.ascontiguousarray(seen.tokens.reshape(-1, seen.tokens.shape[-1])[:, :50])
    start = time.time()
    found = bench.attempt("k-means on the CPU", lambda: kmeans(rows, min(PROTOTYPES, len(rows)), niter=20, nredo=1))
    if found:
        bench.say("k-means on the CPU, 50 features", seconds=time.time() - start, rows=len(rows))
    film = find_sources(frame_folders(bench, "film", 1, 6 if bench.tiny else 90), fps=24)[0]
    clusters = Clusters(torch.randn(backbone.embed_dim, 8), torch.zeros(8), 1.0)
    for upscale in ("bilinear", "edges"):
        start = time.time()
        frames = sum(1 for _ in stream_labels(film, backbone, clusters, upscale=upscale, **how))
        bench.say(f"stream_labels, {upscale}", frames_s=frames / (time.time() - start))


@section("K", 120)
def pretraining(bench: Bench) -> None:
    "A step on photographs."
    from timet.pretraining.config import PretrainConfig
    from timet.pretraining.loop import _see, batches, pretrain_step, start_pretraining
    from timet.pretraining.photos import Photos

    size = bench.scale.photographs
    pixels = torch.randint(0, 255, (8 * size, 3, 64, 64), dtype=torch.uint8)
    photos = Photos(pixels, torch.zeros(len(pixels), dtype=torch.long), ("a",))
    there = pixels.to(bench.device)
    for mode in ("off", "on") if bench.cuda else ("off",):
        settings = {"device": bench.device.type, "batch_size": size, **dict(bench.scale.pretraining)}
        run = start_pretraining(PretrainConfig(compile=mode, **settings), photos)
        run.distiller.train()
        run.distiller.see = _see(run, 10)
        parts, latest = batches(run, there), {}

        def step(run: Any = run, parts: Iterator[Tensor] = parts, latest: dict = latest) -> None:
            latest.update(pretrain_step(run, next(parts)))

        seconds, took = bench.first(step), bench.time(step)
        numbers = {name: float(latest[name]) for name in ("loss", "grad_norm")}
        rate = size / took["ms"] * 1e3
        bench.say(f"pretraining step, compile {mode}", **took, photographs_s=rate, first_call_s=seconds, **numbers)
        bench.measure(f"  of it the views, compile {mode}", lambda run=run: run.views(there[:size]), 3)
