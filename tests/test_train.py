"""The training loop: schedules, steps against a naive loop, resume after `kill -9`, several processes, the run folder."""

import html
import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from timet.core import TimetError
from timet.run.check import flat
from timet.run.command import command, parse, run_command
from timet.run.folder import RunLog, StopSignal, claim_folder, load_checkpoint, read_log, save_checkpoint
from timet.train import main, train
from timet.training import looks
from timet.training.config import (
    FREE,
    PRESETS,
    TrainConfig,
    continued,
    held_out,
    load_config,
    preset_config,
    read_command,
)
from timet.training.report import Report, Snapshot, load_snapshot, matched, score_lines, write_report
from timet.training.session import cosine, start_accelerator, start_session, step_batches, train_step

TINY = {
    "image_size": 32, "num_frames": 3, "delta_t": 0.25, "fps": 8.0, "batch_size": 4, "num_prototypes": 8, "head": (16, 8),
    "radius": 2, "topk": 3, "device": "cpu", "workers": 0, "save_every": 2, "eval": False, "epochs": 2, "eval_clusters": 4,
    "eval_seeds": 2, "clips_per_source": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    "Drawing a report takes longer than training here: only the tests that look at it have one drawn."
    if not re.search("report|pictures", request.node.name):
        monkeypatch.setattr(looks, "write_report", lambda path, _: Path(path).write_text("report"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Ten frame folders with masks: a square of one of two classes moves over noise."
    root, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    videos = {}
    for i in range(10):
        frames, masks = root / f"JPEGImages/clip_{i}", root / f"Annotations/clip_{i}"
        frames.mkdir(parents=True)
        masks.mkdir(parents=True)
        ground = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        for t in range(10):
            picture, mask = ground.copy(), np.zeros((40, 40), np.uint8)
            picture[12:28, 2 * t : 2 * t + 16] = (250, 200, 30) if i % 2 else (60, 80, 250)
            mask[12:28, 2 * t : 2 * t + 16] = 1
            Image.fromarray(picture).save(frames / f"{t:05d}.png")
            Image.fromarray(mask).save(masks / f"{t:05d}.png")
        videos[f"clip_{i}"] = {"objects": {"1": {"category": "sun" if i % 2 else "sea"}}}
    (root / "meta.json").write_text(json.dumps({"videos": videos}))
    return root


def config(world: Path, out: Path, **values: object) -> TrainConfig:
    "Settings so small that a step takes milliseconds."
    return preset_config("demo", **{**TINY, "data": world, "out": out, **values})


def words(settings: TrainConfig) -> list[str]:
    "The same settings as a command line."
    line = []
    for name, value in flat(settings).items():
        flag = "--" + name.replace("_", "-")
        if value is None or (name == "resume" and not value):
            continue
        if isinstance(value, bool):
            line.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            line += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return line


@pytest.fixture(scope="session")
def launch():
    "Start the command in a process of its own: the imports are paid once, every child is a fresh fork of them."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timet.train", "timet.training.looks", "timet.training.steps"])
    started = []

    def start(line: list[str], **env: str) -> multiprocessing.Process:
        process = context.Process(target=_child, args=(line, env))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


def _child(line: list[str], env: dict[str, str]) -> None:
    "What a launched process does."
    os.environ.update(env)
    torch.set_num_threads(1)
    main(line)


def losses(folder: Path) -> list[float]:
    "The losses in the log of a run."
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


def wait_for(folder: Path, lines: int, process: multiprocessing.Process) -> None:
    "Until the log has so many lines."
    for _ in range(6000):
        if len(read_log(folder / "log.jsonl")) >= lines:
            return
        assert process.is_alive(), f"the run ended with {process.exitcode} before line {lines}"
        time.sleep(0.01)
    raise AssertionError("the run does not start")


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_schedules_are_valid_at_every_step() -> None:
    "The values of DINO's table (numpy's cosine over `arange(total)`), and nothing past its end."
    total = 37
    table = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.arange(total) / total))
    np.testing.assert_allclose([cosine(i, total, 0.04, 0.4) for i in range(total)], table, rtol=1e-12)
    assert cosine(0, 1, 1e-4, 0.0) == 1e-4
    falling = [cosine(i, 660, 1.0, 0.0) for i in range(660)]
    assert falling == sorted(falling, reverse=True) and falling[-1] > 0


def test_a_run_follows_its_schedules(world: Path, tmp_path: Path) -> None:
    "Learning rates and weight decay in the log and in the optimiser are those of the step, the last one included."
    settings = config(world, tmp_path / "run", max_steps=5)
    session = start_session(settings, start_accelerator(settings))
    for i, parts in enumerate(step_batches(session)):
        numbers, _ = train_step(session, parts)
        scale = 0.5 * (1 + math.cos(math.pi * i / 5))
        assert numbers["lr"] == pytest.approx(settings.lr_head * scale)
        for group in session.optimizer.param_groups:
            base = settings.lr_backbone if group["name"].startswith("backbone") else settings.lr_head
            decay = 0.4 + (0.04 - 0.4) * scale if group["decay"] else 0.0
            assert group["lr"] == pytest.approx(base * scale) and group["weight_decay"] == pytest.approx(decay)
            assert group["betas"] == (0.9, 0.999)
    assert session.step == session.total == 5


# -- steps -------------------------------------------------------------------------------------------------------------


def test_steps_equal_a_naive_loop(world: Path, tmp_path: Path) -> None:
    "Two parameters updated by hand with Adam's equations and decoupled decay, in float64, from the same gradients."
    settings = config(world, tmp_path / "run", max_steps=4, lr_backbone=1e-2, lr_head=1e-2)
    session = start_session(settings, start_accelerator(settings))
    inner = session.inner
    watched = {"head.0.weight": True, "head.0.bias": False}
    named = dict(inner.named_parameters())
    mean = {name: torch.zeros_like(named[name]).double() for name in watched}
    square = {name: torch.zeros_like(named[name]).double() for name in watched}
    for i, parts in enumerate(step_batches(session)):
        before = {name: named[name].detach().double().clone() for name in watched}
        inner.zero_grad()
        inner(parts[0]["clip"]).backward()
        grads = {name: named[name].grad.double().clone() for name in watched}
        inner.zero_grad()
        train_step(session, parts)
        scale = 0.5 * (1 + math.cos(math.pi * i / 4))
        for name, decayed in watched.items():
            mean[name] = 0.9 * mean[name] + 0.1 * grads[name]
            square[name] = 0.999 * square[name] + 0.001 * grads[name] ** 2
            update = (mean[name] / (1 - 0.9 ** (i + 1))) / ((square[name] / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
            decay = (0.4 + (0.04 - 0.4) * scale) if decayed else 0.0
            want = before[name] * (1 - 1e-2 * scale * decay) - 1e-2 * scale * update
            torch.testing.assert_close(named[name].detach().double(), want, rtol=1e-4, atol=1e-6)
        norms = inner.prototypes.detach().norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_accumulated_parts_give_the_mean_gradient(world: Path, tmp_path: Path) -> None:
    "With Sinkhorn on each part by itself, two parts are the mean of two losses, in value and in gradient."
    settings = config(world, tmp_path / "run", max_steps=1, accumulate=2)
    session = start_session(settings, start_accelerator(settings))
    parts = next(step_batches(session))
    assert [len(part["clip"]) for part in parts] == [2, 2]
    separate = [session.inner(part["clip"]) for part in parts]
    (sum(separate) / 2).backward()
    want = session.inner.prototypes.grad.clone()
    session.inner.zero_grad()
    seen = {}
    session.optimizer.step = lambda: seen.update(grad=session.inner.prototypes.grad.clone())
    numbers, _ = train_step(session, parts)
    assert numbers["loss"] == pytest.approx(sum(separate).item() / 2, rel=1e-6)
    torch.testing.assert_close(seen["grad"], want, rtol=1e-4, atol=1e-7)


def test_batches_depend_on_the_step_alone(world: Path, tmp_path: Path) -> None:
    "Starting at any step gives the rest of the same sequence, over the ends of epochs, in parts or whole."
    for parts in (1, 2):
        settings = config(world, tmp_path / "run", epochs=3, accumulate=parts)
        session = start_session(settings, start_accelerator(settings))
        assert (session.steps_per_epoch, session.total) == (2, 6)
        everything = [torch.cat([part["clip"] for part in step]) for step in step_batches(session)]
        assert len(everything) == 6
        for start in (1, 2, 5):
            session.step = start
            again = [torch.cat([part["clip"] for part in step]) for step in step_batches(session)]
            assert all(torch.equal(a, b) for a, b in zip(everything[start:], again, strict=True))


def test_max_steps_counts_steps_not_epochs(world: Path, tmp_path: Path) -> None:
    "More steps than the epochs have, and fewer."
    for steps in (1, 7):
        run = train(config(world, tmp_path / f"run{steps}", epochs=2, max_steps=steps))
        assert [row["step"] for row in read_log(run / "log.jsonl")] == list(range(1, steps + 1))


@pytest.mark.parametrize(("steps", "every", "lines"), [(5, 10, [1, 5]), (5, 2, [1, 2, 4, 5]), (1, 10, [1])])
def test_first_and_last_step_are_logged(
    world: Path, tmp_path: Path, steps: int, every: int, lines: list[int], capsys: pytest.CaptureFixture
) -> None:
    "However rarely the others are: five steps of the paper's preset show how the loss went."
    run = train(config(world, tmp_path / "run", max_steps=steps, log_every=every))
    assert [row["step"] for row in read_log(run / "log.jsonl")] == lines
    first, last = losses(run)[0], losses(run)[-1]
    assert f"loss {first:.3f} -> {last:.3f} in {steps} steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    "values",
    [{"target": "soft"}, {"forwarded": "none"}, {"forwarded": "identity"}, {"forwarded": "logits"}, {"order": "eq4"},
     {"ema_decay": 0.9}, {"queue_size": 64}, {"sinkhorn_rows": "all"}, {"topk": None}, {"tuned_blocks": 2},
     {"sampling": "uniform"}, {"precision": "bf16"}, {"clips_per_source": 2, "batch_size": 16}, {"augment": "full"}, {"augment": "none"}, {"workers": 1}],
    ids=lambda values: "-".join(map(str, values.values())),
)  # fmt: skip
def test_every_setting_trains(world: Path, tmp_path: Path, values: dict) -> None:
    "Each variant makes a step, and its state goes through a checkpoint."
    run = train(config(world, tmp_path / "run", max_steps=2, **values))
    assert all(math.isfinite(loss) for loss in losses(run)) and len(losses(run)) == 2
    state = load_checkpoint(run / "checkpoints/last.pt")
    assert state["step"] == 2 and not (set(state) - {"format", "step", "clips", "model", "optimizer", "scaler", "random",
                                                     "usage", "bad"})  # fmt: skip


# -- killed and gone on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [{}, {"ema_decay": 0.9, "queue_size": 64, "accumulate": 2}], ids=["plain", "stateful"]
)
def test_resume_repeats_every_number(world: Path, tmp_path: Path, values: dict) -> None:
    "Ended after every possible step: the losses that follow, and the final weights, are the same numbers."
    whole = train(config(world, tmp_path / "whole", epochs=3, **values))
    want = load_checkpoint(whole / "checkpoints/last.pt")["model"]
    for at in (1, 3, 4, 5):

        class Killed(BaseException):
            pass

        def kill(record: dict, at: int = at, error: type = Killed) -> None:
            if record["step"] == at:
                raise error

        out = tmp_path / f"killed{at}"
        with pytest.raises(Killed):
            train(config(world, out, epochs=3, **values), kill)
        train(replace(load_config(out), resume=True))
        assert losses(out) == losses(whole)
        assert [row["step"] for row in read_log(out / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
        got = load_checkpoint(out / "checkpoints/last.pt")["model"]
        assert all(torch.equal(got[name], value) for name, value in want.items())


def test_kill_minus_nine_at_any_moment(world: Path, tmp_path: Path, launch) -> None:
    "A real process, killed three times where it happens to be, ends with the log of a run that was left alone."
    common = words(config(world, tmp_path / "whole", max_steps=20, save_every=2))
    whole = launch(common)
    out = tmp_path / "killed"
    process = launch([*common, "--out", str(out)])
    for lines in (3, 8, 13):
        wait_for(out, lines, process)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        process = launch(["--resume", str(out)])
    process.join(120)
    whole.join(120)
    assert (process.exitcode, whole.exitcode) == (0, 0)
    assert losses(out) == losses(tmp_path / "whole") and len(losses(out)) == 20
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"last.pt", "previous.pt"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_asked_to_stop(world: Path, tmp_path: Path, launch, number: int) -> None:
    "The step is finished, all is saved, the status is 130, and the run goes on from there."
    out = tmp_path / "run"
    process = launch(words(config(world, out, max_steps=400, save_every=0)))
    wait_for(out, 4, process)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 130
    done = load_checkpoint(out / "checkpoints/last.pt")["step"]
    assert done == len(losses(out)) < 400
    assert (out / "backbone.safetensors").exists() and not (out / "report.html").exists()
    again = launch(["--resume", str(out), "--save-every", "100"])
    wait_for(out, done + 2, again)
    os.kill(again.pid, signal.SIGINT)
    again.join(60)
    assert again.exitcode == 130 and [r["step"] for r in read_log(out / "log.jsonl")] == list(
        range(1, len(losses(out)) + 1)
    )


def test_the_message_after_a_stop(world: Path, tmp_path: Path) -> None:
    "It says how far the run came and how to go on."
    with pytest.raises(KeyboardInterrupt) as stop:
        train(config(world, tmp_path / "run"), lambda record: os.kill(os.getpid(), signal.SIGINT))
    assert str(stop.value).startswith("stopped after step 2 of 4; all is saved, go on with: ")
    assert str(stop.value).endswith(f"python -m timet.train --resume {tmp_path}/run")


def test_a_stop_is_said_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    "One line on stderr, by the first process alone, and no bare `interrupted` behind it."
    stopped = partial(train, on_step=lambda record: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as stop:
        command(stopped, TrainConfig, "timet.train", read=read_command)(words(config(world, tmp_path / "run")))
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if re.search("stopped|interrupted", line)]
    assert stop.value.code == 130
    assert len(lines) == 1 and lines[0].startswith("timet.train: stopped after step ") and "--resume" in lines[0]


@pytest.mark.parametrize(
    ("rank", "words", "line"), [("0", "", "demo: interrupted\n"), ("0", "saved", "demo: saved\n"), ("1", "saved", "")]
)
def test_what_an_interrupt_says(
    rank: str, words: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    "The command's words, `interrupted` without any, and nothing from the other processes."

    def stopped() -> None:
        raise KeyboardInterrupt(*filter(None, [words]))

    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop:
        run_command(stopped, "demo")
    assert stop.value.code == 130 and capsys.readouterr().err == line


# -- several processes -------------------------------------------------------------------------------------------------


def test_two_processes_equal_one(world: Path, tmp_path: Path, launch) -> None:
    "Half the batch each over gloo, with all-reduced Sinkhorn and averaged gradients: the losses of one process."
    settings = config(world, tmp_path / "one", epochs=3)
    train(settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pair = [
        launch(words(replace(settings, out=tmp_path / "two")), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
               LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
        for rank in range(2)
    ]  # fmt: skip
    for process in pair:
        process.join(120)
    assert [process.exitcode for process in pair] == [0, 0]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)
    assert len(load_checkpoint(tmp_path / "two/checkpoints/last.pt")["random"]) == 2
    # one process takes up what two have begun
    shorter = losses(train(replace(load_config(tmp_path / "two"), resume=True)))
    np.testing.assert_allclose(shorter, losses(tmp_path / "one"), atol=1e-5)


def test_torchrun(world: Path, tmp_path: Path) -> None:
    "The launcher itself, two processes on the CPU."
    settings = config(world, tmp_path / "run", max_steps=2)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "timet.train", *words(settings)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cpu x 2" in done.stdout and done.stdout.count("report:") == 1
    train(replace(settings, out=tmp_path / "one"))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "one"), atol=1e-5)


# -- the run folder ----------------------------------------------------------------------------------------------------


def test_run_folder_and_report(world: Path, tmp_path: Path) -> None:
    "Everything is there, the report is one file without scripts or links, the backbone opens in timm."
    import timm
    from safetensors.torch import load_file

    run = train(config(world, tmp_path / "run", eval=True, val_data=world, max_steps=3))
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "versions.json", "log.jsonl", "tensorboard", "checkpoints", "before.json", "after.json",
                     "backbone.safetensors", "backbone.json", "report.html"}  # fmt: skip
    assert load_config(run) == replace(config(world, run, eval=True, val_data=world, max_steps=3))
    row = read_log(run / "log.jsonl")[-1]
    assert set(row) == {"step", "epoch", "loss", "lr", "lr_backbone", "weight_decay", "perplexity", "agreement",
                        "clips_per_second", "waiting"}  # fmt: skip
    assert 1 <= row["perplexity"] <= 8 and row["epoch"] == 2
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8
    assert not re.search(r"<script|https?://|<link|@import", page)
    for word in ("over-clustering, 4 clusters", "whole set", "per clip", "per frame", "prefers-color-scheme", "sun"):
        assert word in page
    after = load_snapshot(run / "after.json")
    assert all(len(values) == 2 and 0 <= min(values) <= max(values) <= 100 for values in after.scores.values())
    versions = json.loads((run / "versions.json").read_text())
    assert versions["packages"]["torch"] == torch.__version__.split("+")[0] or versions["packages"]["torch"]
    shapes = json.loads((run / "backbone.json").read_text())
    assert shapes and load_file(run / "backbone.safetensors")
    assert timm.__version__
    events = list((run / "tensorboard").iterdir())
    assert len(events) == 1 and events[0].stat().st_size > 100


@pytest.mark.parametrize(
    "values",
    [{"fps": None}, {"sampling": "uniform", "eval_seeds": 3, "val_split": "list.txt"}],
    ids=["usual", "unusual"],
)
def test_report_names_the_command_that_gives_its_scores(
    world: Path, tmp_path: Path, values: dict, capsys: pytest.CaptureFixture
) -> None:
    "The command, taken from what was printed, prints what the report's scores are of and finds the same numbers."
    from timet import evaluate

    if "val_split" in values:
        (tmp_path / "list.txt").write_text("clip_1\nclip_4\nclip_6\n")
        values = {**values, "val_split": str(tmp_path / "list.txt")}
    run = train(config(world, tmp_path / "run", eval=True, val_data=world, max_steps=1, **values))
    line = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("scores of "))
    clips, command = line.removeprefix("scores of ").split("; the same again: python -m timet.evaluate ")
    frames = "3 random frames" if "sampling" in values else "3 frames 0.25 s apart"
    assert clips.startswith(f"{frames} of each video, at 32 x 32 pixels, masks at 32 x 32; ")
    page = html.unescape((run / "report.html").read_text())
    assert clips in page and command in page
    parsed = parse(evaluate.EvaluateConfig, [*shlex.split(command), "--no-cache"])
    found = {(row["protocol"], row["k"]): row["values"] for row in evaluate.run(parsed)["scores"]}
    assert f"scores of {clips.split(';')[0]}; variant paper" in capsys.readouterr().out
    want = load_snapshot(run / "after.json").scores
    pairs = {"over-clustering, 4 clusters": ("dataset", "4"), "whole set": ("dataset", "gt"), "per clip": ("clip", "gt"),
             "per frame": ("frame", "gt")}  # fmt: skip
    assert want.keys() == pairs.keys()
    for name, key in pairs.items():
        np.testing.assert_allclose(100 * np.asarray(found[key]), want[name], atol=1e-6)


def test_a_part_of_the_held_out_clips_is_said(world: Path, tmp_path: Path) -> None:
    "The command takes all of them, and that is said too; nothing is said where nothing is scored."
    settings = config(world, tmp_path / "run", eval=True, val_data=world, eval_clips=4)
    session = SimpleNamespace(config=settings, folder=tmp_path / "run")
    words, _ = looks.how_scored(session, held_out(settings))
    assert words.endswith("4 held-out clips, evenly spaced among 10, of which the command takes all")
    own = SimpleNamespace(config=replace(settings, val_data=None), folder=tmp_path)
    assert looks.how_scored(own, held_out(own.config)) == ("", "")


def test_looking_does_not_change_the_run(world: Path, tmp_path: Path) -> None:
    "With and without scores, the same losses."
    a = train(config(world, tmp_path / "a", eval=True, val_data=world, queue_size=64))
    b = train(config(world, tmp_path / "b", eval=False, queue_size=64))
    assert losses(a) == losses(b)


def test_pictures_without_masks(world: Path, tmp_path: Path) -> None:
    "Own clips and no held-out ones: cluster maps, no scores, although masks lie beside the training clips."
    run = train(config(world, tmp_path / "run", eval=True, max_steps=2))
    page = (run / "report.html").read_text()
    assert "Cluster maps" in page and "Scores on held-out clips" not in page
    assert load_snapshot(run / "after.json").scores == {}


def test_two_runs_in_one_process_do_not_share_state(world: Path, tmp_path: Path) -> None:
    "The second run starts afresh, also in another precision."
    a = train(config(world, tmp_path / "a", max_steps=2))
    train(config(world, tmp_path / "b", max_steps=1, precision="bf16"))
    c = train(config(world, tmp_path / "c", max_steps=2))
    assert losses(a) == losses(c)


def test_finished_run_can_be_resumed(world: Path, tmp_path: Path) -> None:
    "Nothing is trained, export and report are made again."
    run = train(config(world, tmp_path / "run"))
    before = losses(run)
    (run / "report.html").unlink()
    train(read_command(["--resume", str(run)]))
    assert losses(run) == before and (run / "report.html").exists()


def test_resuming_a_finished_run_says_so(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    "It is finished, how to train longer, and nothing is written where nothing is missing or out of date."

    def state() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*") if p.is_file()}

    run = train(config(world, tmp_path / "run", eval=True, val_data=world, max_steps=2))
    before = state()
    capsys.readouterr()
    assert train(read_command(["--resume", str(run)])) == run
    said = capsys.readouterr().out
    assert state() == before
    assert f"the run {run} is finished already, after 2 steps: report: {run / 'report.html'}" in said
    assert "more --max-steps" in said and "from step" not in said and "loss" not in said
    # what it says about training longer is true
    flags = re.search(r"with (--backbone \S+ --weights \S+)", said).group(1).split()
    longer = train(read_command([*words(config(world, tmp_path / "longer", max_steps=1)), *flags]))
    assert len(losses(longer)) == 1
    # killed between the last checkpoint and the end: export and report are older than it, or not there
    os.utime(run / "checkpoints/last.pt")
    train(read_command(["--resume", str(run)]))
    assert "only its results are made again" in capsys.readouterr().out
    after = state()
    assert {p.name for p in before if after[p] != before[p]} >= {"report.html", "after.json", "backbone.safetensors"}
    assert after.keys() == before.keys() and after[run / "log.jsonl"] == before[run / "log.jsonl"]


def test_default_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "`runs/demo`, then `runs/demo-2`."
    monkeypatch.chdir(tmp_path)
    assert [str(claim_folder(None, "demo")) for _ in range(3)] == ["runs/demo", "runs/demo-2", "runs/demo-3"]


def test_log_is_cut_back_and_keeps_whole_lines(tmp_path: Path) -> None:
    "Later steps and a half-written line go, the rest stays byte for byte readable."
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"step": 3, "lo')
    log = RunLog(tmp_path, 1)
    log.write({"step": 2, "loss": 0.125})
    log.close()
    assert [(r["step"], r["loss"]) for r in read_log(tmp_path / "log.jsonl")] == [(1, 0.5), (2, 0.125)]


def test_checkpoint_holds_plain_types_only(world: Path, tmp_path: Path) -> None:
    "It opens with `weights_only=True` and without any allow-list."
    run = train(config(world, tmp_path / "run", ema_decay=0.9, queue_size=64))
    torch.serialization.clear_safe_globals()
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["step"] == 4


def test_stop_signal_gives_the_handlers_back() -> None:
    "Afterwards Ctrl-C is Ctrl-C again."
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop._handle
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# -- settings ----------------------------------------------------------------------------------------------------------


def test_presets_hold_the_papers_numbers() -> None:
    "Section 4 and Appendix A; Tables 1 to 3 for the ablations."
    paper = preset_config("paper")
    want = {
        "backbone": "vit_small_patch16_224.dino", "image_size": 224, "num_frames": 4, "delta_t": 0.5, "batch_size": 128,
        "num_prototypes": 200, "epochs": 30, "lr_backbone": 1e-5, "lr_head": 1e-4, "weight_decay": 0.04,
        "weight_decay_end": 0.4, "tuned_blocks": 2, "temperature": 0.1, "loss_temperature": 0.1, "radius": 6, "topk": 5,
        "context": 7, "epsilon": 0.05, "iterations": 10, "head": "released", "target": "hard", "forwarded": "sk",
        "order": "mask_first", "sinkhorn_rows": "first", "ema_decay": None, "queue_size": 0, "sampling": "regular",
    }  # fmt: skip
    assert {name: flat(paper)[name] for name in want} == want
    assert preset_config("ablation") == replace(paper, preset="ablation", epochs=12)
    assert TrainConfig() == preset_config("demo")
    assert set(PRESETS) == {"demo", "paper", "ablation"}


def test_paper_defaults_equal_those_of_the_functions() -> None:
    "A setting exists once: what `TimeT` would take by itself is what the paper preset passes on."
    from timet.settings import Loss

    assert preset_config("paper").loss == Loss()


def test_flags_win_over_the_preset() -> None:
    "In any order, and with an equals sign."
    assert read_command(["--batch-size", "32", "--preset", "paper"]) == preset_config("paper", batch_size=32)
    assert read_command(["--preset=ablation", "--epochs=3"]) == preset_config("ablation", epochs=3)
    assert read_command(["--tuned-blocks", "all", "--no-eval"]).tuned_blocks == "all"
    assert read_command([]) == TrainConfig()


def test_command_line_round_trip(tmp_path: Path) -> None:
    "Every field survives a trip through flags, and one through `config.json`."
    settings = preset_config(
        "demo", **{**TINY, "data": tmp_path, "out": tmp_path / "run", "topk": 4, "ema_decay": 0.5, "seed": 3}
    )
    assert read_command(words(settings)) == settings


def test_help_names_the_sources(capsys: pytest.CaptureFixture) -> None:
    "Every flag is explained; values of the paper name their section or table."
    with pytest.raises(SystemExit) as stop:
        main(["--preset", "paper", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code == 0
    for flag in [name.replace("_", "-") for name in flat(TrainConfig())]:
        assert f"--{flag}" in text
    for source in ("Table 1a", "App. A: 128", "Eq. 9", "Table 2", "default: 128", "code: 0.05"):
        assert source in text


def test_what_may_change_on_resume(tmp_path: Path) -> None:
    "Every field is either free, or named when it differs."
    from timet.core import write_json
    from timet.run.check import adjust, flat

    write_json(tmp_path / "config.json", flat(TrainConfig()))
    base = replace(load_config(tmp_path), resume=True)
    others = {
        "logits_clustering": "softmax", "preset": "paper", "backbone": "x", "weights": "hub", "tuned_blocks": 1, "sampling": "uniform", "head": "paper",
        "forwarded": "none", "target": "soft", "order": "eq4", "sinkhorn_rows": "all", "precision": "bf16",
        "ema_decay": 0.5, "fps": 3.0, "max_steps": 3, "val_data": Path("v"), "split": "val", "val_split": "val",
        "accumulate": 2, "augment": "none", "last_batch": "keep", "select": "best", "crop_scale": 0.9, "frozen_precision": "bf16",
    }  # fmt: skip
    for name, now in flat(base).items():
        if name in FREE:
            continue
        value = others.get(name)
        value = now * 2 + 2 if value is None else value
        with pytest.raises(TimetError, match=f"started with {name}="):
            continued(adjust(base, {name: value}))
    assert continued(adjust(base, {"workers": 3, "log_every": 5})).workers == 3


# -- the report --------------------------------------------------------------------------------------------------------


def test_colours_are_matched_by_overlap() -> None:
    "A permuted clustering gets its old ids back; a new cluster gets an id of its own."
    rng = np.random.default_rng(0)
    old = rng.integers(0, 5, (2, 3, 6, 6))
    order = np.array([3, 0, 4, 1, 2])
    same = matched(Snapshot({}, old.tolist(), None, {}), Snapshot({}, order[old].tolist(), None, {}))
    assert (same["after"] == old).all()
    split = old.copy()
    split[0, 0, 0, 0] = 5
    parts = matched(Snapshot({}, old.tolist(), None, {}), Snapshot({}, split.tolist(), None, {}))["after"]
    assert parts[0, 0, 0, 0] not in old and (np.delete(parts.ravel(), 0) == np.delete(old.ravel(), 0)).all()
    known = matched(Snapshot({}, old.tolist(), [0, 1, 1, 0, 2], {}), Snapshot({}, old.tolist(), [2, 2, 2, 2, 2], {}))
    assert set(np.unique(known["before"])) == {0, 1, 2} and set(np.unique(known["after"])) == {2}


def test_score_lines_line_up() -> None:
    "Mean, spread and gain in columns of one width; missing looks are dashes."
    before = Snapshot({"per clip": [50.0, 52.0]}, [], None, {})
    after = Snapshot({"per clip": [60.0, 62.0]}, [], None, {})
    lines = score_lines(before, after)
    assert "51.0 ± 1.0" in lines[1] and "61.0 ± 1.0" in lines[1] and "+10.0" in lines[1]
    assert len({len(line) for line in lines}) == 1
    assert score_lines(None, after)[1].split()[2] == "-" and score_lines(None, None) == []


def test_report_escapes_what_it_is_given(tmp_path: Path) -> None:
    "A file name is text, never markup."
    report = Report("<b>run</b>", bad={"<script>x</script>.mp4": "broken & short"}, settings={"a": [1]})
    write_report(tmp_path / "r.html", report)
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>run" not in page


# -- real clips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["davis16", "videos"])
def test_real_clips(real_clips: Path, tmp_path: Path, name: str) -> None:
    "Two steps on frame folders and on mp4 files, as they come."
    run = train(config(real_clips / name, tmp_path / "run", fps=None, max_steps=2, batch_size=2))
    assert len(losses(run)) == 2 and SimpleNamespace(**read_log(run / "log.jsonl")[0]).loss > 0


def test_save_is_a_swap(tmp_path: Path) -> None:
    "The old checkpoint is there until the new one is whole."
    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    inode = (tmp_path / "last.pt").stat().st_ino
    save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert (tmp_path / "last.pt").stat().st_ino != inode and load_checkpoint(tmp_path / "last.pt")["step"] == 2


# -- quick answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [(["--help"], 0), (["--data", "nowhere"], 2), (["--val-data", "nowhere"], 2), (["--resume", "nowhere"], 2),
     (["--out", "/"], 2), (["--batch-size", "0"], 2), (["--bogus"], 2)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes_are_answered_before_torch_is_imported(
    line: list[str], status: int, quick: Callable[[str, list[str], int], None]
) -> None:
    "A word that is wrong costs no seconds."
    quick("timet.train", line, status)


# -- the last batch, and the best backbone -----------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_last_batch_can_be_kept(world: Path, tmp_path: Path, parts: int) -> None:
    "Ten clips in batches of four: two steps an epoch, or three of which the last has two clips; 2,776 in 128s: 21 or 22."
    kept = config(world, tmp_path / "kept", last_batch="keep", epochs=2, accumulate=parts)
    session = start_session(kept, start_accelerator(kept))
    assert (session.steps_per_epoch, session.total) == (3, 6)
    steps = [[len(part["clip"]) for part in step] for step in step_batches(session)]
    assert [sum(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    assert steps[2] == {1: [2], 2: [2], 4: [1, 1]}[parts]
    session.step = 2
    assert [[len(part["clip"]) for part in step] for step in step_batches(session)] == steps[2:]
    train(kept)
    assert len(losses(tmp_path / "kept")) == 6
    assert preset_config("paper").last_batch == "keep" and -(-2776 // 128) == 22


def test_the_best_backbone_can_be_kept(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The scores on the way are 10, 30, 20: the second is kept, exported and named; the losses are those of any other run."
    from safetensors.torch import load_file

    marks = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(looks, "_mark", lambda seen: next(marks))
    told: dict = {}
    run = train(
        config(world, tmp_path / "run", eval=True, val_data=world, epochs=3, select="best", select_every=1),
        lambda row: told.update({row["step"]: (tmp_path / "run/best.json").exists()}),
    )
    assert json.loads((run / "best.json").read_text()) == {"step": 4, "mark": 30.0}
    exported, best = load_file(run / "backbone.safetensors"), load_file(run / "best.safetensors")
    assert all(torch.equal(exported[name], best[name]) for name in best)
    last = load_checkpoint(run / "checkpoints/last.pt")["model"]
    assert not all(torch.equal(last[f"backbone.model.{name}"], best[name]) for name in best)
    assert losses(run) == losses(train(config(world, tmp_path / "plain", epochs=3)))
    assert told[1] is False and told[6] is True
    with pytest.raises(TimetError, match="--select best scores held-out clips on the way"):
        config(world, tmp_path / "none", eval=True, select="best")
