"""Runs started, paused, resumed and followed from outside, most of them played by a program of a few lines."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from matplotlib.figure import Figure

from timet.core import TimetError, write_json
from timet.lab import process as room
from timet.lab.panel import Panel, Watch, blank_model, peek, plot_watch
from timet.lab.process import LogTail, Run, command_words
from timet.run.check import adjust
from timet.training.config import TrainConfig, preset_config, read_command
from timet.training.session import LAST
from timet.viz.charts import to_png

TINY = preset_config("demo", max_steps=200, batch_size=4, image_size=32, num_prototypes=8, head=(16, 8), eval=False)

# The part of a run: its folder, its log, what it does at Ctrl-C. `lr_head` says how it ends
PLAYED = """
import json, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
def wait():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)
if sys.argv.pop(1) == "leash":
    threading.Thread(target=wait, daemon=True).start()
words = sys.argv[1:]
folder = words[words.index("--resume" if "--resume" in words else "--out") + 1]
rate = float(words[words.index("--lr-head") + 1]) if "--lr-head" in words else 0
os.makedirs(folder, exist_ok=True)
if rate == 9:
    print("a line before", "timet.train: there is no such video; give one", sep="\\n", file=sys.stderr)
    sys.exit(2)
with open(folder + "/config.json", "w") as file:
    json.dump(CONFIG, file)
path = folder + "/log.jsonl"
step = sum(1 for _ in open(path)) if os.path.exists(path) else 0
log = open(path, "a", buffering=1)
try:
    while step < 200:
        step += 1
        log.write(json.dumps({"step": step, "loss": 1 / step, "perplexity": 2.0}) + "\\n")
        time.sleep(0.01)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    "Runs are played, not computed."
    from timet.run.check import flat

    values = {k: str(v) if isinstance(v, Path) else v for k, v in flat(TINY).items()}
    monkeypatch.setattr(room, "LEASH", PLAYED.replace("CONFIG", repr(values)))


def until(run: Run, state: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while run.state != state:
        assert time.monotonic() < end, (run.state, run.why)
        time.sleep(0.01)


@pytest.mark.parametrize(
    "config",
    [TINY, preset_config("paper", seed=4), preset_config("ablation", topk=None, compile=True, data=Path("/videos")),
     adjust(TINY, {"tuned_blocks": 2, "ema_decay": 0.99, "eval": True})],
)  # fmt: skip
def test_settings_become_words_and_back(config: TrainConfig):
    assert read_command(command_words(config)) == config


def test_the_log_is_read_by_whole_lines(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    tail = LogTail(path)
    assert tail.read() == []
    lines = [json.dumps({"step": i, "loss": i / 3}) + "\n" for i in range(1, 40)]
    text = "".join(lines)
    for end in range(0, len(text) + 1, 7):
        path.write_text(text[:end]) if end == 0 else path.open("a").write(text[end - 7 : end])
        assert tail.read() == [json.loads(line) for line in text[:end].split("\n")[:-1]]


def test_a_log_that_was_replaced_is_read_anew_and_rubbish_is_left_out(tmp_path: Path):
    path, tail = tmp_path / "log.jsonl", LogTail(tmp_path / "log.jsonl")
    path.write_text('{"step": 1}\nrubbish\n[3]\n{"loss": 2}\n{"step": 2}\n')
    assert [r["step"] for r in tail.read()] == [1, 2]
    (tmp_path / "new").write_text('{"step": 1}\n' * 9)
    os.replace(tmp_path / "new", path)
    assert len(tail.read()) == 9
    path.unlink()
    assert len(tail.read()) == 9  # between two files there may be none


def test_start_pause_resume_finish(played, tmp_path: Path):
    run = Run(replace(TINY, out=tmp_path / "run"))
    assert run.state == "ready" and not run.folder.exists()
    for act in (run.pause, run.resume):
        with pytest.raises(TimetError, match="is ready"):
            act()
    run.start()
    until(run, "running")
    with pytest.raises(TimetError, match="only a new one"):
        run.start()
    with pytest.raises(TimetError, match="only one that is paused"):
        run.resume()
    run.pause()
    assert run.state in ("stopping", "paused") and run.wait() == "paused"
    at = run.step
    run.resume()
    assert run.state in ("starting", "running")
    assert run.wait() == "finished"
    assert [r["step"] for r in run.tail.read()] == list(range(1, 201)) and 0 < at < 200
    with pytest.raises(TimetError, match="is finished"):
        run.resume()


def test_a_run_paused_before_it_could_begin_begins_when_resumed(played, tmp_path: Path):
    run = Run(replace(TINY, out=tmp_path / "run"))
    run.start()
    run.pause()
    assert run.wait() == "paused"
    run.resume()
    until(run, "running")
    run.stop()
    assert run.wait() == "stopped"
    run.resume()
    until(run, "running")
    run.stop()
    run.wait()


def test_a_run_says_why_it_failed_in_one_sentence(played, tmp_path: Path):
    run = Run(replace(TINY, out=tmp_path / "run", lr_head=9))
    run.start()
    assert run.wait() == "failed" and run.why == "there is no such video; give one"
    other = Run(replace(TINY, out=tmp_path / "other"))
    other.start()
    until(other, "running")
    os.kill(other.process.pid, signal.SIGKILL)
    assert other.wait() == "failed" and "ended from outside by SIGKILL" in other.why
    other.resume()
    assert other.wait() == "finished" and other.why == ""


def test_folders_that_do_not_fit(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(TimetError, match="not an empty folder"):
        Run(replace(TINY, out=tmp_path / "full"))
    with pytest.raises(TimetError, match="is not the folder of a run"):
        Run.attach(tmp_path / "full")


def test_a_run_of_somebody_else_is_found_paused_and_left_alone(played, tmp_path: Path):
    words = command_words(replace(TINY, out=tmp_path / "run"))
    theirs = subprocess.Popen([sys.executable, "-c", room.LEASH, "free", *words], stdin=subprocess.DEVNULL)
    while not (tmp_path / "run" / "log.jsonl").exists():
        time.sleep(0.01)
    run = Run.attach(tmp_path / "run")
    assert run.state == "running" and room._holder(run.tail.path).pid == theirs.pid
    run.pause()
    assert run.wait() == "paused" and theirs.wait(10) == 130  # their status is theirs
    run.resume()
    until(run, "running")
    room._let_go()  # the notebook ends
    assert run.process.poll() is None
    assert run.wait() == "finished"
    assert Run.attach(tmp_path / "run").state == "finished"


def test_nothing_is_left_when_the_notebook_is_killed(tmp_path: Path):
    "With the real leash and the real command: the run saves and ends."
    out = tmp_path / "run"
    code = f"""
        import time
        from timet.training.config import preset_config
        from timet.lab.process import Run
        run = Run(preset_config("demo", max_steps=5000, batch_size=4, image_size=32, num_prototypes=8, head=(16, 8), eval=False,
                              save_every=0, out={str(out)!r}))
        run.start()
        print(run.process.pid, flush=True)
        time.sleep(300)
    """
    notebook = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    run = psutil.Process(int(notebook.stdout.readline()))
    end = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or len(LogTail(out / "log.jsonl").read()) < 2:
        assert run.is_running() and time.monotonic() < end
        time.sleep(0.05)
    notebook.kill()
    notebook.wait()
    psutil.wait_procs([run], timeout=60)
    assert not run.is_running()
    assert peek(out)["step"] == LogTail(out / "log.jsonl").read()[-1]["step"] > 0


# -- watching ----------------------------------------------------------------------------------------------------------


def checkpoint(run: Run, model: torch.nn.Module, step: int) -> None:
    "What a run writes, as far as a watcher reads it."
    (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    state = {"step": step, "model": model.state_dict(), "usage": {"latest": torch.full((8,), 1 / 8)}}
    torch.save(state, run.folder / "checkpoints" / "part")
    os.replace(run.folder / "checkpoints" / "part", run.folder / LAST)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(Run(replace(TINY, out=tmp_path / "run")), clusters=4)


def test_moments_follow_the_checkpoints(watch: Watch):
    assert [m.step for m in watch.moments] == [0] and watch.moments[0].clusters.shape == (4, 4, 4)
    assert not watch.look()
    model, _ = blank_model(TINY)
    for step in (3, 6):
        checkpoint(watch.run, model, step)
        assert watch.look() and not watch.look()
    assert [m.step for m in watch.moments] == [0, 3, 6]
    # the same weights: the same map in the same colours
    assert (watch.moments[0].clusters == watch.moments[2].clusters).all()
    assert (watch.moments[0].prototypes == watch.moments[2].prototypes).all()
    checkpoint(watch.run, model, 4)  # it went back
    assert watch.look() and [m.step for m in watch.moments] == [0, 3, 4]


def test_looking_changes_neither_the_folder_nor_the_random_numbers(watch: Watch):
    checkpoint(watch.run, watch.model, 3)
    part = watch.run.folder / "checkpoints" / ".last-abc.pt"
    part.write_bytes(b"a save in progress")
    before, state = sorted(watch.run.folder.rglob("*")), torch.get_rng_state()
    watch.look()
    blank_model(TINY)
    assert sorted(watch.run.folder.rglob("*")) == before and part.read_bytes() == b"a save in progress"
    assert (torch.get_rng_state() == state).all()


def test_many_moments_are_thinned_and_the_first_stays(watch: Watch):
    watch.most = 6
    for step in range(1, 30):
        checkpoint(watch.run, watch.model, step)
        watch.look()
        assert len(watch.moments) <= 7
    steps = [m.step for m in watch.moments]
    assert steps[0] == 0 and steps[-1] == 29 and steps == sorted(set(steps))


def test_a_damaged_checkpoint_is_one_sentence(watch: Watch):
    (watch.run.folder / "checkpoints").mkdir(parents=True)
    (watch.run.folder / LAST).write_bytes(b"PK nonsense")
    with pytest.raises(TimetError, match="the run itself is not affected"):
        watch.look()
    watch.every = 0.01
    watch.follow()
    end = time.monotonic() + 10
    while watch.error is None and time.monotonic() < end:
        time.sleep(0.01)
    watch.close()
    sentence, bad = watch.headline()
    assert bad and "cannot be read" in sentence


def test_weights_that_are_not_at_hand_leave_moment_zero_out(tmp_path: Path):
    config = replace(TINY, weights=str(tmp_path / "gone.pth"), out=tmp_path / "run")
    watch = Watch(Run(config))
    assert watch.moments == []
    panel = Panel(watch, follow=False)
    checkpoint(watch.run, watch.model, 2)
    watch.look()
    assert panel.tick() and [m.step for m in watch.moments] == [2]


def test_the_panel_follows_and_its_errors_stay(played, watch: Watch):
    panel = Panel(watch, follow=False)
    moment = panel.controls["moment"]
    assert (moment.value, moment.max) == (0, 0) and "ready, step 0 of 200" in panel.image.alt
    with pytest.raises(TimetError, match="is ready"):
        panel.press("Pause")
    said = panel.status.value
    assert "is ready" in said
    checkpoint(watch.run, watch.model, 3)
    watch.look()
    picture = panel.image.value
    assert panel.tick() and not panel.tick()
    assert (moment.value, moment.max) == (1, 1) and panel.image.value != picture
    assert panel.status.value == said and isinstance(panel.error, TimetError)
    moment.value = 0
    assert panel.status.value == "" and panel.error is None
    checkpoint(watch.run, watch.model, 5)
    watch.look()
    panel.tick()
    assert (moment.value, moment.max) == (0, 2)  # who looks back is left there
    picture = panel.image.value
    panel.controls["map"].value = "prototypes"
    assert panel.image.value != picture


def test_the_panel_shows_a_failure(played, tmp_path: Path):
    watch = Watch(Run(replace(TINY, out=tmp_path / "run", lr_head=9)), clusters=4)
    panel = Panel(watch, follow=False)
    panel.press("Start")
    watch.run.wait()
    assert panel.tick()
    assert "failed after step 0: there is no such video; give one" in panel.image.alt
    assert watch.headline()[1]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("t, h, w, k", [(1, 40, 40, 1), (4, 30, 60, 500), (8, 90, 50, 64)])
def test_pictures_of_any_kind(t: int, h: int, w: int, k: int, dark: bool):
    rng = np.random.default_rng(0)
    frames, ids = rng.integers(0, 255, (t, h, w, 3), dtype=np.uint8), rng.integers(0, k, (t, 3, 3))
    log = [{"step": 1, "loss": np.nan}, {"step": 2, "loss": 2.0, "perplexity": 3.0}]
    for maps, rows, usage in (
        ({}, [], None),
        ({"now": ids}, log, np.full(k, 1 / k)),
        ({"a": ids, "b": ids}, log[1:], None),
    ):
        figure = plot_watch(frames, maps, rows, usage, step=1, total=3, headline="a run " * 60, alarm=True, dark=dark)
        assert isinstance(figure, Figure) and to_png(figure)[:4] == b"\x89PNG"


def test_words_of_a_config_file_are_enough_to_attach(tmp_path: Path):
    (tmp_path / "run").mkdir()
    from timet.run.check import flat

    write_json(tmp_path / "run" / "config.json", flat(replace(TINY, out=tmp_path / "run")))
    run = Run.attach(tmp_path / "run")
    assert run.state == "paused" and run.step == 0 and run.total == 200
