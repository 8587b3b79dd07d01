"""What goes wrong around training, and the one sentence each gets; the last good checkpoint survives all of it."""

import errno
import json
import os
import pickle
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timet.core import TimetError
from timet.run import resume
from timet.run.folder import RunLog, claim_folder, load_checkpoint, read_log, save_checkpoint
from timet.train import main, train
from timet.training import looks, session, steps
from timet.training.config import TrainConfig, load_config, preset_config, read_command
from timet.training.session import LAST, Session, start_accelerator, start_session

TINY = {
    "image_size": 32, "num_frames": 3, "delta_t": 0.25, "fps": 8.0, "batch_size": 4, "num_prototypes": 8, "head": (16, 8),
    "radius": 2, "topk": 3, "device": "cpu", "workers": 0, "save_every": 2, "eval": False, "epochs": 2,
    "clips_per_source": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    "Drawing a report takes longer than training here: only the test that looks at it has one drawn."
    if "bad_files" not in request.node.name:
        monkeypatch.setattr(looks, "write_report", lambda path, _: Path(path).write_text("report"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Eight frame folders of noise."
    root, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for i in range(8):
        (root / f"clip_{i}").mkdir()
        for t in range(8):
            picture = rng.integers(0, 255, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / f"clip_{i}/{t:05d}.png")
    return root


@pytest.fixture
def settings(folders: Path, tmp_path: Path) -> TrainConfig:
    "A run of four steps."
    return preset_config("demo", **{**TINY, "data": folders, "out": tmp_path / "run"})


def film(path: Path, frames: int = 12) -> None:
    "A small mp4."
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        rng = np.random.default_rng(frames)
        ground = rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)
        for t in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(ground, t, 1).copy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# -- numbers that are none ---------------------------------------------------------------------------------------------


def test_nan_loss_keeps_the_last_checkpoint(settings: TrainConfig) -> None:
    "The step and the learning rate are named, the checkpoint on disk is the one from before."

    def poison(record: dict[str, float]) -> None:
        if record["step"] == 3:
            seen["session"].inner.prototypes.data.fill_(float("nan"))

    seen: dict = {}
    start = session.start_session

    def remember(*args: object) -> object:
        seen["session"] = start(*args)
        return seen["session"]

    session.start_session = remember
    try:
        with pytest.raises(TimetError, match=r"step 4.*learning rate was 0\.000\d+ .*checkpoint of step 2 is good"):
            train(settings, poison)
    finally:
        session.start_session = start
    state = load_checkpoint(settings.out / LAST)
    assert state["step"] == 2 and all(v.isfinite().all() for v in state["model"].values())
    assert [row["step"] for row in read_log(settings.out / "log.jsonl")] == [1, 2, 3]


def test_weights_that_are_not_finite_are_not_saved(settings: TrainConfig) -> None:
    "A gradient can be infinite under a finite loss: the look at the weights before saving finds it."
    with pytest.raises(TimetError, match="nothing was saved yet; start again with a lower --lr-head"):
        train(replace(settings, lr_head=1e30, lr_backbone=1e30))
    assert not (settings.out / LAST).exists()


def test_nan_loss_on_the_command_line(settings: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    "One line, status 2."
    line = ["--preset", "demo", "--data", str(settings.data), "--out", str(settings.out), "--no-eval", "--lr-head", "1e30", "--lr-backbone", "1e30",
            "--image-size", "32", "--batch-size", "4", "--max-steps", "5", "--fps", "8", "--delta-t", "0.25",
            "--radius", "2", "--num-frames", "3", "--device", "cpu"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(line)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert [text for text in error.splitlines() if text.startswith("timet.train: ")] and "Traceback" not in error


# -- disks and folders -------------------------------------------------------------------------------------------------


def broken_after(function: Callable, good: int) -> Callable:
    "A system call that says `no space left` from some call on."
    calls = []

    def call(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) > good:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*args, **options)

    return call


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_full_disk(settings: TrainConfig, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    "The second checkpoint cannot be written: a clear stop, and the first one is there and whole."
    done = []
    save = steps.save

    def second_fails(session: object) -> None:
        if done:
            monkeypatch.setattr(os, name, broken_after(getattr(os, name), 0))
        save(session)
        done.append(1)

    monkeypatch.setattr(steps, "save", second_fails)
    with pytest.raises(TimetError, match=r"cannot write .*last\.pt: No space left on device; free some space"):
        train(settings)
    monkeypatch.undo()
    assert load_checkpoint(settings.out / LAST)["step"] == 2
    assert {path.name for path in (settings.out / "checkpoints").iterdir()} == {"last.pt", "previous.pt"}
    train(replace(load_config(settings.out), resume=True))
    assert [row["step"] for row in read_log(settings.out / "log.jsonl")] == [1, 2, 3, 4]


def test_disk_that_ends_inside_a_file(tmp_path: Path) -> None:
    "A real short write, made by the limit on the size of files: the old checkpoint stays, no part is left behind."
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(TimetError, match=r"cannot write .*last\.pt: File too large"):
            save_checkpoint(path, {"step": 2, "model": {"weight": torch.zeros(1 << 20)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path)["step"] == 1 and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_full_disk_under_the_log(tmp_path: Path) -> None:
    "A line that cannot be written is said, not swallowed."
    log = RunLog(tmp_path)
    log.file.close()
    log.file = open("/dev/full", "w", buffering=1) if Path("/dev/full").exists() else pytest.skip("no /dev/full")
    with pytest.raises(TimetError, match=r"cannot write .*log\.jsonl: No space left on device"):
        log.write({"step": 1, "loss": 1.0})
    log.close()


def test_folder_that_cannot_be_made(settings: TrainConfig, tmp_path: Path) -> None:
    "Below a file, which also root cannot write into."
    (tmp_path / "file").write_text("")
    with pytest.raises(TimetError, match=r"cannot make the run folder .*Not a directory; choose another --out"):
        train(replace(settings, out=tmp_path / "file/run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(settings: TrainConfig, tmp_path: Path) -> None:
    "A folder without the right to write."
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    with pytest.raises(TimetError, match="cannot make the run folder"):
        train(replace(settings, out=locked / "run"))


def test_nothing_is_overwritten(settings: TrainConfig, tmp_path: Path) -> None:
    "A run, another folder with something in it, a file: refused, and untouched."
    train(settings)
    before = {p: p.read_bytes() for p in settings.out.rglob("*") if p.is_file()}
    with pytest.raises(TimetError, match="already holds a run; go on with --resume"):
        train(settings)
    assert {p: p.read_bytes() for p in settings.out.rglob("*") if p.is_file()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("years")
    for taken in (tmp_path / "other", tmp_path / "other/thesis.tex"):
        with pytest.raises(TimetError, match="already exists and is not an empty folder"):
            claim_folder(taken)
    assert (tmp_path / "other/thesis.tex").read_text() == "years"


def test_a_mistake_leaves_no_folder_behind(settings: TrainConfig) -> None:
    "What can be known before the first step does not claim the folder."
    for values, words in [
        ({"data": settings.data / "nowhere"}, "cannot find"),
        ({"backbone": "vit_huge_like"}, "vit_huge_like"),
        (
            {"batch_size": 64},
            "8 videos found, and 1 clip cut from each; choose --clips-per-source 8 or --batch-size 8 or less",
        ),
        ({"image_size": 30}, "30"),
        ({"val_data": settings.data / "nowhere", "eval": True}, "cannot find"),
        ({"weights": "/nowhere/weights.pth"}, "/nowhere/weights.pth"),
        ({"split": "holiday"}, "holiday"),
    ]:
        with pytest.raises(TimetError, match=words):
            train(replace(settings, **values))
        assert not settings.out.exists()


@pytest.mark.parametrize("there", [False, True], ids=["made", "empty before"])
@pytest.mark.parametrize("fails", ["clips", "step", "look", "settings", "interrupt"])
def test_a_run_without_a_step_gives_its_folder_back(
    settings: TrainConfig, fails: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "Wherever it fails before the first step is done: the same command can be given again, and an empty folder stays."
    if there:
        settings.out.mkdir(parents=True)

    def broken(*args: object, **options: object) -> None:
        raise KeyboardInterrupt if fails == "interrupt" else TimetError("something broke")

    broken_settings = settings
    with monkeypatch.context() as patch:
        if fails == "clips":
            torn = tmp_path / "torn"
            torn.mkdir()
            for i in range(4):
                (torn / f"torn_{i}.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
            broken_settings = replace(settings, data=torn, fps=None)
        else:
            places = {"step": (steps, "train_step"), "settings": (resume, "versions")}
            patch.setattr(*places.get(fails, (looks, "glance")), broken)
            broken_settings = replace(settings, eval=True)
        with pytest.raises((TimetError, KeyboardInterrupt)):
            train(broken_settings)
    assert settings.out.exists() == there and not (there and any(settings.out.iterdir()))
    train(replace(settings, max_steps=1))


def test_a_folder_with_more_in_it_is_not_given_back(settings: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    "What somebody put there meanwhile stays, and all else beside it; and so does a run that has made a step, or is resumed."

    def broken(session: Session, *_: object) -> None:
        (session.folder / "tensorboard/notes.txt").write_text("mine")
        raise TimetError("something broke")

    with monkeypatch.context() as patch, pytest.raises(TimetError):
        patch.setattr(steps, "fit", broken)
        train(settings)
    names = {path.name for path in settings.out.rglob("*")}
    assert {"config.json", "versions.json", "log.jsonl", "notes.txt"} < names
    with monkeypatch.context() as patch, pytest.raises(TimetError):
        patch.setattr(looks, "glance", broken)
        patch.setattr(steps, "train_step", broken)
        train(replace(load_config(settings.out), resume=True))
    assert {path.name for path in settings.out.rglob("*")} >= names

    def stops(record: dict) -> None:
        raise TimetError("after the first step")

    second = replace(settings, out=settings.out.with_name("second"))
    with pytest.raises(TimetError):
        train(second, stops)
    assert (second.out / "config.json").exists()


@pytest.mark.parametrize(
    ("good", "values", "words"),
    [(1, {}, "1 video found, and 1 clip cut from each; choose --clips-per-source 4 or --batch-size 1"),
     (3, {"torn": 2, "batch_size": 8}, "5 videos found, of which 3 can be read, and 1 clip cut from each; "
                                       "choose --clips-per-source 3 or --batch-size 3 or less"),
     (3, {"clips_per_source": 2, "batch_size": 12, "accumulate": 4}, "2 clips cut from each; choose --clips-per-source 4 or --batch-size 4"),
     (3, {"batch_size": 8, "accumulate": 4}, "3 videos found, and 1 clip cut from each; choose --clips-per-source 3"),
     (0, {"torn": 2}, "none of the 2 videos found in .* can be read; `python -m timet.data verify .*` says why")],
)  # fmt: skip
def test_too_few_clips_for_a_batch(tmp_path: Path, good: int, values: dict, words: str) -> None:
    "How many can be read, and what would fit; and what is said to fit does."
    data = tmp_path / "videos"
    data.mkdir()
    for i in range(good):
        film(data / f"good_{i}.mp4", 12)
    for i in range(values.get("torn", 0)):
        (data / f"torn_{i}.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    values = {name: value for name, value in values.items() if name != "torn"}
    config = preset_config("demo", **{**TINY, "data": data, "out": tmp_path / "run", "epochs": 1, **values})
    with pytest.raises(TimetError, match=words + "$") as stop:
        train(config)
    assert not config.out.exists()
    for flag, number in re.findall(r"--(clips-per-source|batch-size) (\d+)", str(stop.value)):
        start_session(replace(config, **{flag.replace("-", "_"): int(number)}), start_accelerator(config))


# -- resuming what does not fit ----------------------------------------------------------------------------------------


def test_resume_refuses_other_settings(settings: TrainConfig) -> None:
    "All that differ are named in one sentence."
    train(settings)
    changed = replace(load_config(settings.out), resume=True, epochs=9, lr_head=0.5)
    with pytest.raises(
        TimetError, match=r"started with epochs=2 and not 9, lr_head=0.001 and not 0.5; leave these flags out"
    ):
        train(changed)


def test_resume_refuses_other_clips(settings: TrainConfig, folders: Path, tmp_path: Path) -> None:
    "A clip less, and a moved folder with the same clips."
    train(settings)
    moved = tmp_path / "moved"
    shutil.copytree(folders, moved)
    train(replace(load_config(settings.out), resume=True, data=moved))
    shutil.rmtree(moved / "clip_3")
    with pytest.raises(TimetError, match="learns from other clips than the 7 found now; check --data"):
        train(replace(load_config(settings.out), resume=True, data=moved))


class Surprise:
    "What an attacker would put into a file."

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("kind", ["cut", "garbage", "code", "weights", "version"])
def test_resume_refuses_a_broken_checkpoint(
    settings: TrainConfig, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "Cut off, not a checkpoint, a pickle that would run code, a plain state dict, another format."
    monkeypatch.chdir(tmp_path)
    train(replace(settings, max_steps=2))
    path = settings.out / LAST
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "garbage":
        path.write_bytes(b"no checkpoint at all")
    elif kind == "code":
        path.write_bytes(pickle.dumps(Surprise()))
    else:
        torch.save({"weight": torch.zeros(1)} if kind == "weights" else {"format": 99}, path)
    words = (
        "is not a checkpoint of a training run" if kind in ("weights", "version") else "cannot be read as a checkpoint"
    )
    with pytest.raises(TimetError, match=words):
        train(replace(load_config(settings.out), resume=True))
    assert not (tmp_path / "executed").exists()


def test_resume_without_a_checkpoint_starts_at_the_start(settings: TrainConfig) -> None:
    "Killed before the first save: the settings are there, so the run begins again."
    whole = [row["loss"] for row in read_log(train(settings) / "log.jsonl")]
    (settings.out / LAST).unlink()
    train(replace(load_config(settings.out), resume=True))
    assert [row["loss"] for row in read_log(settings.out / "log.jsonl")] == whole


def test_resume_sweeps_up_a_killed_save(settings: TrainConfig) -> None:
    "The half-written file of a killed save goes."
    train(replace(settings, max_steps=2))
    (settings.out / "checkpoints/.last-abc123.pt").write_bytes(b"half")
    train(replace(load_config(settings.out), resume=True))
    assert [path.name for path in (settings.out / "checkpoints").iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "has no config.json"), ("{", "cannot be read as the settings"), ('{"speed": 3}', "cannot be read as the settings"),
     ('{"epochs": 0}', "epochs must be at least 1"), ("[]", "cannot be read as the settings")],
)  # fmt: skip
def test_resume_refuses_a_folder_that_is_no_run(tmp_path: Path, text: str | None, words: str) -> None:
    "No settings, broken ones, unknown ones, impossible ones."
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(TimetError, match=words):
        read_command(["--resume", str(tmp_path)])


# -- clips that cannot be read -----------------------------------------------------------------------------------------


def test_bad_files_are_named_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    "Two of six are broken, in a folder whose name is no text: the run ends well and says which, once."
    data = tmp_path / os.fsdecode(b"videos\xff")
    data.mkdir()
    for i in range(4):
        film(data / f"good_{i}.mp4", 12 + i)
    (data / "torn.mp4").write_bytes((data / "good_0.mp4").read_bytes()[:400])
    (data / "empty.mp4").write_bytes(b"")
    settings = preset_config(
        "demo", **{**TINY, "data": data, "out": tmp_path / "run", "batch_size": 3, "epochs": 3, "eval": True}
    )
    run = train(settings)
    said = capsys.readouterr()
    line = [text for text in (said.out + said.err).splitlines() if "could not be read" in text]
    assert len(line) == 1 and line[0].startswith("2 of 6 clips") and "torn" in line[0] and "empty" in line[0]
    assert set(load_checkpoint(run / LAST)["bad"]) == {"torn", "empty"}
    assert len(read_log(run / "log.jsonl")) == 6
    page = (run / "report.html").read_text()
    assert "Clips that could not be read" in page and r"videos\udcff/torn.mp4" in page


def test_nothing_usable_stops(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    "All broken: one sentence and status 2, no endless search."
    data = tmp_path / "videos"
    data.mkdir()
    for i in range(4):
        (data / f"torn_{i}.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    with pytest.raises(SystemExit) as stop:
        main(["--preset", "demo", "--data", str(data), "--out", str(tmp_path / "run"), "--batch-size", "2", "--no-eval",
              "--device", "cpu"])  # fmt: skip
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    assert len([text for text in error.splitlines() if text.startswith("timet.train: ")]) == 1


# -- the command line --------------------------------------------------------------------------------------------------

WRONG = [
    (["--preset", "papre"], "--preset must be one of demo, paper, ablation, got 'papre'"),
    (["--bogus", "1"], "--bogus"),
    (["--batch-size", "many"], "--batch-size"),
    (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    (["--num-frames", "1"], "--num-frames must be at least 2"),
    (["--delta-t", "-0.5"], "--delta-t must be above 0"),
    (["--delta-t", "nan"], "--delta-t must be above 0"),
    (["--epochs", "0"], "epochs must be at least 1"),
    (["--max-steps", "0"], "--max-steps must be at least 1"),
    (["--lr-head", "-1"], "--lr-head must be from 0 to 1e30"),
    (["--weight-decay", "inf"], "--weight-decay must be at least 0"),
    (["--num-prototypes", "1"], "--num-prototypes must be at least 2"),
    (["--temperature", "0"], "--temperature must be at least 1e-06"),
    (["--epsilon", "0"], "--epsilon must be above 0"),
    (["--iterations", "0"], "--iterations must be at least 1"),
    (["--topk", "0"], "--topk must be at least 1"),
    (["--ema-decay", "1.5"], "--ema-decay must be from 0 and below 1"),
    (["--tuned-blocks", "0"], "--tuned-blocks must be at least 1, or all"),
    (["--head", "0"], "--head must be released or paper, or widths from 1"),
    (["--forwarded", "flow"], "--forwarded"),
    (["--order", "eq5"], "--order"),
    (["--precision", "int8"], "--precision"),
    (["--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
    (["--device", "gpu"], "device must be auto, cpu, cuda"),
    (["--batch-size", "6", "--accumulate", "4"], "multiple of --accumulate"),
    (["--workers", "-1"], "--workers must be at least 0"),
    (["--save-seconds", "0"], "--save-seconds must be above 0"),
    (["--log-every", "0"], "--log-every must be at least 1"),
    (["--eval-clusters", "1"], "--eval-clusters must be at least 2"),
    (["--fps", "0"], "--fps must be above 0"),
    (["--resume"], "--resume needs the folder of the run"),
    (["--resume", "nowhere"], "nowhere is not the folder of a run"),
    (["--preset", "demo", "--data", "nowhere"], "cannot find nowhere"),
    (["--weights", "nowhere.pth", "--device", "cpu"], "nowhere.pth"),
    (["--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
]


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[" ".join(line) for line, _ in WRONG])
def test_wrong_flags(line: list[str], words: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch) -> None:
    "Status 2, the flag, what is allowed, and no traceback; nothing is made."
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(line)
    said = capsys.readouterr()
    text = " ".join((said.err + said.out).replace("│", " ").split())
    assert stop.value.code == 2
    assert words in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_values_from_python_are_checked_too() -> None:
    "Not only strings from the command line."
    for values in (
        {"epochs": 2.5},
        {"batch_size": "many"},
        {"lr_head": None},
        {"head": ()},
        {"preset": "x"},
        {"eval_clips": 0},
    ):
        with pytest.raises(TimetError, match=next(iter(values)) + " must be"):
            preset_config("demo", **values)


def test_config_json_is_readable(settings: TrainConfig) -> None:
    "By people and by other programs: plain JSON, paths as text."
    values = json.loads((train(replace(settings, max_steps=1)) / "config.json").read_text())
    assert values["head"] == [16, 8] and values["data"] == str(settings.data)


# -- numbers that nobody means, and what the machine refuses -----------------------------------------------------------

ABSURD = [
    ("--delta-t 1e-9", "--delta-t must be above 0: from 0.001 to 3600 seconds"),
    ("--delta-t inf", "--delta-t must be above 0"),
    ("--epsilon 1e308", "--epsilon must be above 0 and at most 1e4, from 1e-6 on"),
    ("--loss-temperature 1e-300", "--loss-temperature must be above 0, from 1e-6 to 1e6"),
    ("--fps 1e9", "--fps must be above 0: from 0.001 to 100000 frames a second"),
    ("--cache-mb 1e308", "--cache-mb must be 0, or from 1e-12 to 1e+30 in size"),
    ("--seed 18446744073709551616", "--seed must be at most 2147483647"),
    ("--radius 100000000000000000000", "--radius must be at most 2147483647"),
    (f"--epochs {10**400}", "--epochs must be at most 2147483647"),
    ("--workers 100000", "--workers must be at least 0 and at most 1024"),
    ("--dta x", "there is no option --dta; perhaps you meant --data; python -m timet.train --help names every option"),
    ("--lr-head many", "--lr-head must be a number, got 'many'"),
    ("--topk 3.5", "--topk must be {None}|INT, got '3.5'"),
    ("--resume " + "a" * 5000, "File name too long"),
    ("--data ~nobody-of-this-name/x", "write paths without ~"),
]


@pytest.mark.parametrize(("line", "words"), ABSURD, ids=[line[:30] for line, _ in ABSURD])
def test_absurd_values_are_one_sentence(
    line: str, words: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch
):
    "One line on stderr, status 2, and nothing is made."
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    said = capsys.readouterr()
    assert stop.value.code == 2 and not list(tmp_path.iterdir())
    assert said.err.count("\n") == 1 and words in said.err and len(said.err) < 900


def test_videos_of_your_own_need_the_papers_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Without a preset: the paper's where its weights are there, one sentence where they are not, the toy by its name."
    words, answer = ["--data", str(tmp_path)], []
    monkeypatch.setattr("timet.training.config.at_hand", lambda network: answer.append(network) or len(answer) > 1)
    with pytest.raises(
        TimetError,
        match=r"dino, and its weights are not on this machine.* --preset paper, .*--weights FILE.* --preset demo",
    ):
        read_command(words)
    assert read_command(words).preset == "paper" and answer == ["vit_small_patch16_224.dino"] * 2
    assert read_command([*words, "--preset", "demo"]).weights == "none"
    assert read_command([*words, "--backbone", "timet_tiny_patch8_96"]).preset == "demo"
    assert read_command([*words, "--weights", "dino.pth"]).preset == "paper"


def test_it_is_said_where_a_run_starts_and_how_it_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    "The weights and the preset; and how to get scores where the clips have masks but none are held out."
    for i in range(4):
        for part in ("JPEGImages", "Annotations"):
            (tmp_path / f"set/{part}/clip_{i}").mkdir(parents=True)
        for t in range(4):
            picture = np.full((32, 32, 3), 10 * t + i, np.uint8)
            Image.fromarray(picture).save(tmp_path / f"set/JPEGImages/clip_{i}/{t:05d}.png")
            Image.fromarray((picture[..., 0] > 15).astype(np.uint8)).save(
                tmp_path / f"set/Annotations/clip_{i}/{t:05d}.png"
            )
    values = {**TINY, "data": tmp_path / "set", "out": tmp_path / "run", "eval": True, "max_steps": 1}
    train(preset_config("demo", **values))
    said = capsys.readouterr().out
    assert said.startswith("time-tuning timet_tiny_patch8_96 from random weights (preset demo) on 4 videos")
    assert "the clips have masks; for scores before and after, give held-out ones as --val-data FOLDER" in said


# -- runs that are disturbed -------------------------------------------------------------------------------------------


def test_one_process_at_a_time(settings: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    "A second start and a second --resume are refused while the first is at work, and nothing is changed; later both can go on."
    tried: list[str] = []

    def again(record: dict) -> None:
        for other in (settings, replace(load_config(settings.out), resume=True)):
            with pytest.raises(TimetError) as stop:
                train(other)
            tried.append(str(stop.value))

    train(replace(settings, max_steps=1), again)
    assert "already holds a run" in tried[0] and "another process is at work on the run" in tried[1]
    assert not (settings.out / ".lock").exists()
    train(replace(load_config(settings.out), resume=True))


@pytest.mark.parametrize("left", ["config", "versions", "lock"])
def test_killed_before_it_began(settings: TrainConfig, left: str) -> None:
    "Half a config.json: the same command again; no versions.json: --resume, and there is a report."
    settings.out.mkdir(parents=True)
    if left == "versions":
        train(replace(settings, max_steps=1))
        for name in ("versions.json", "report.html", LAST):
            (settings.out / name).unlink()
        train(replace(load_config(settings.out), resume=True))
        assert (settings.out / "report.html").exists() and (settings.out / "versions.json").exists()
        return
    (settings.out / (".config-x7k2p9qa.json" if left == "config" else ".lock")).write_text("{")
    with pytest.raises(TimetError, match="it was stopped before it began: start it again, with --out"):
        load_config(settings.out)
    train(replace(settings, max_steps=1))
    assert not [p for p in settings.out.iterdir() if p.name.startswith(".")]


def test_half_files_are_swept_and_nothing_else(settings: TrainConfig) -> None:
    "Half files of killed writes go at the next start; hidden files of somebody's own stay."
    train(replace(settings, max_steps=2))
    half = [
        ".backbone-abc12345.safetensors",
        ".after-p0000001.json",
        ".report-x7k2p9qa.html",
        "checkpoints/.last-p7654321.pt",
    ]
    mine = [".report-mine.html", ".report-november.html", ".report-20261127.html", ".notes", ".backbone-abc12345.txt"]
    for name in half + mine:
        (settings.out / name).write_text("x")
    train(replace(load_config(settings.out), resume=True))
    assert not [name for name in half if (settings.out / name).exists()]
    assert all((settings.out / name).read_text() == "x" for name in mine)


@pytest.mark.parametrize("kind", ["empty", "keys", "shapes", "step", "moments", "garbage", "gone"])
def test_the_checkpoint_before_is_used(settings: TrainConfig, kind: str, capsys: pytest.CaptureFixture) -> None:
    "The last one cannot be used: it is said, the run goes on from the one before, and ends with the same numbers."
    whole = [row["loss"] for row in read_log(train(replace(settings, out=settings.out / "whole")) / "log.jsonl")]
    run = train(replace(settings, out=settings.out / "run"))
    path, state = run / LAST, load_checkpoint(run / LAST)
    if kind == "keys":
        torch.save({name: value for name, value in state.items() if name not in ("random", "usage")}, path)
    elif kind == "shapes":
        torch.save({**state, "model": {name: torch.zeros(3) for name in state["model"]}}, path)
    elif kind == "step":
        torch.save({**state, "step": 10**9}, path)
    elif kind == "moments":
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)
        torch.save(state, path)
    elif kind == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if kind == "empty" else b"PK garbage")
    capsys.readouterr()
    train(replace(load_config(run), resume=True))
    said = capsys.readouterr()
    assert "from step 2 to step 4" in said.out
    assert kind == "gone" or "the run goes on from the one before it, previous.pt" in said.err
    assert [row["loss"] for row in read_log(run / "log.jsonl")] == whole
    assert (run / "checkpoints/broken.pt").exists() == (kind != "gone")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"step": 10**9}, "claims step 1000000000, and the run has 4"), ({"model": {}}, "does not fit this run")],
)
def test_a_checkpoint_that_does_not_fit_is_a_sentence(settings: TrainConfig, change: dict, words: str) -> None:
    "Where there is none before it."
    run = train(settings)
    torch.save({**load_checkpoint(run / LAST), **change}, run / LAST)
    (run / "checkpoints/previous.pt").unlink()
    with pytest.raises(TimetError, match=words):
        train(replace(load_config(run), resume=True))
    assert (run / LAST).exists()


def test_a_folder_that_is_deleted_is_said(settings: TrainConfig) -> None:
    "At the next line or checkpoint, in words that fit; nothing is made anew in its place."

    def delete(record: dict) -> None:
        shutil.rmtree(settings.out.rename(settings.out.with_name("gone")))  # the log is written beside it meanwhile

    with pytest.raises(TimetError, match="was moved or deleted while the run went on, so nothing more can be saved"):
        train(settings, delete)
    assert not settings.out.exists()
