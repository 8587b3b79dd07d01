"""The command that puts our numbers beside the paper's."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from timet import reproduce
from timet.core import TimetError, samples_dir
from timet.paper.answers import Answer
from timet.paper.networks import Found, run_name
from timet.paper.plan import SAMPLE_WARNING
from timet.paper.questions import EXPERIMENTS
from timet.paper.tables import FIGURES, TABLES
from timet.training.config import read_command

SAMPLES = samples_dir()
TUNED = SAMPLES / "weights/timet_tiny.safetensors"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    "Run the command in an empty folder."
    monkeypatch.chdir(tmp_path)
    return lambda *words: reproduce.main([*words, "--cache", str(tmp_path / "cache"), "--device", "cpu"])


def status(call, *words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        call(*words)
    return stop.value.code


def test_list_says_the_state_of_all(command, voc: Path, capsys: pytest.CaptureFixture) -> None:
    command("list", "--data", str(voc))
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert set(rows) >= {*TABLES, *FIGURES}
    assert "| in part |" in rows["table5"] and "| missing |" in rows["table11"] and "davis" in rows["table11"]
    command("list")
    assert "unknown without --data" in capsys.readouterr().out


def test_dry_run_says_all_and_writes_nothing(command, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = {p for p in tmp_path.rglob("*")}
    command("table5", "--data", str(voc), "--dry-run", "--checkpoint", f"DINO={TUNED}", "--rows", "DINO")
    out = capsys.readouterr().out
    assert f"network  DINO S/16: {TUNED}" in out
    assert (
        "pictures, by 1 network" in out
        and "GB of tokens" in out
        and f"4 of {len(EXPERIMENTS['table5'].cells)} numbers" in out
    )
    assert {p for p in tmp_path.rglob("*")} == before
    assert status(command, "table6", "--data", str(tmp_path / "sets"), "--dry-run", "--rows", "TimeT") == 2


@pytest.mark.parametrize(
    "there, reason, said",
    [
        (False, "the hub cannot be reached (ConnectError)", "state    missing: 0 of 43"),
        (False, "", "state    in part: 0 of 43 numbers can be computed, and 3 more with weights that the hub has"),
        (True, "", "state    in part: 3 of 43 numbers can be computed"),
    ],
    ids=["offline", "to be fetched", "cached"],
)
def test_weights_of_the_hub_are_at_hand_where_they_are_cached(
    command,
    voc: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    there: bool,
    reason: str,
    said: str,
) -> None:
    asked = []
    for room in ("networks", "plan", "answers"):
        monkeypatch.setattr(f"timet.paper.{room}.is_fetched", lambda name: there)
    monkeypatch.setattr(
        "timet.model.hub.ask_hub", lambda name: asked.append(name) or ("" if reason else "file", reason)
    )
    monkeypatch.setattr("timet.backbone.open_backbone", lambda checkpoint, backbone: SimpleNamespace(source="hub"))
    words = ("table5", "--data", str(voc), "--dry-run", "--rows", "ResNet-50")
    assert status(command, *words) == 2 if reason else command(*words) is None
    shown = capsys.readouterr()
    assert said.replace("43", str(len(EXPERIMENTS["table5"].cells))) in shown.out
    assert asked == ([] if there else ["resnet50.tv_in1k"])
    if reason:
        assert (
            "are not in the hub's cache" in shown.out
            and "put resnet50-19c8e357.pth" in shown.out
            and "--weights" in shown.out
        )


def test_the_hub_is_asked_once_where_it_cannot_be_reached(
    command, voc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []
    for room in ("networks", "plan", "answers"):
        monkeypatch.setattr(f"timet.paper.{room}.is_fetched", lambda name: False)
    monkeypatch.setattr("timet.model.hub.ask_hub", lambda name: asked.append(name) or ("", "the hub cannot be reached"))
    assert status(command, "table5", "--data", str(voc), "--dry-run") == 2
    assert len(asked) == 1 and capsys.readouterr().out.count("the hub cannot be reached") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--checkpoint", "runs/typo"), "TimeT, EPIC: there is no checkpoint runs/typo"),
        (("--checkpoint", "TimeT=typo.pth"), "TimeT, EPIC: there is no checkpoint typo.pth"),
        (("--checkpoint", "typo"), "TimeT, EPIC: there is no backbone 'typo'"),
        (("--checkpoint", "empty.pth"), "empty.pth cannot be read as a checkpoint: it is empty"),
        (("--checkpoint", "folder"), "folder is no finished run"),
        (("--weights", "nowhere"), "--weights nowhere is no folder"),
        (("--out", "empty.pth/out"), "--out empty.pth/out cannot be written"),
        (("--out", "own"), "own holds a table7 that is no report of this command"),
        (("--train", "--train-with", "'--max-steps 2"), "--train-with has words for timet.train, in quotes that end"),
    ],
)
def test_a_dry_run_opens_what_the_run_would_open(
    command, tmp_path: Path, capsys: pytest.CaptureFixture, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "own/table7.md").write_text("mine")
    for dry in ("--dry-run",), ():
        assert status(command, "table7", "--data", str(SAMPLES), *words, *dry) == 2
        shown = capsys.readouterr()
        assert said in shown.err and "Traceback" not in shown.err
    assert (tmp_path / "own/table7.md").read_text() == "mine"


def test_a_damaged_file_is_missing_and_not_at_hand(
    command, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/swav_800ep_pretrain.pth.tar").write_bytes(b"PK\3\4 half of a file")
    assert status(command, "table5", "--data", str(voc), "--weights", "files", "--rows", "SwAV", "--dry-run") == 2
    shown = capsys.readouterr()
    assert "missing  SwAV: swav_800ep_pretrain.pth.tar cannot be read as a checkpoint: it is cut short" in shown.out
    assert "0 of" in shown.out and "network  SwAV" not in shown.out


def test_pictures_that_are_not_there_are_missing(command, voc: Path, capsys: pytest.CaptureFixture) -> None:
    for file in (voc / "JPEGImages").iterdir():
        file.unlink()
    words = ("table5", "--data", str(voc), "--rows", "TimeT", "--checkpoint", str(TUNED), "--dry-run")
    assert status(command, *words) == 2
    assert "missing  voc: " in capsys.readouterr().out


def test_a_list_takes_weights_by_row(command, capsys: pytest.CaptureFixture) -> None:
    assert status(command, "list", "--data", str(SAMPLES), "--checkpoint", "x.pth") == 2
    assert "--checkpoint 'ROW=x.pth'" in capsys.readouterr().err


def test_without_data_the_sample_clips_are_tried(command, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    "No --data, and --data samples: the packaged clips from any folder, and the first says so; a folder of that name wins."
    said = {}
    for words in ((), ("--data", "samples"), ("--data", str(SAMPLES))):
        command("table7", *words, "--dry-run", "--seeds", "2")
        said[words] = capsys.readouterr().out
    assert said[()].startswith("no --data was given: the sample clips are taken")
    assert "The sample clips stand in" in said[()] and str(SAMPLES / "heldout") in said[()]
    assert said["--data", "samples"].splitlines()[:6] == said["--data", str(SAMPLES)].splitlines()[:6]
    (tmp_path / "samples").mkdir()
    assert status(command, "table7", "--data", "samples", "--dry-run") == 2
    assert "no folder with" in capsys.readouterr().err


def test_dry_run_shows_how_to_train(
    command, voc: Path, ytvos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert status(command, "table1a", "--data", str(tmp_path / "sets"), "--dry-run") == 2
    shown = capsys.readouterr()
    line = next(x for x in shown.out.splitlines() if "10 prototypes: python" in x)
    words = line.split("timet.train ")[1].split()
    config = read_command(words)
    assert config.loss.num_prototypes == 10 and config.epochs == 12 and config.data == ytvos
    assert Path(config.split).read_text() == "0043f083b5\n"
    assert "nothing of table1a can be computed" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("table12", "--data", str(SAMPLES)), "there is no 'table12'"),
        (("table1", "--data", str(SAMPLES)), "three parts"),
        (("figure1", "--data", str(SAMPLES)), "a drawing"),
        (("table5", "--data", "nowhere"), "no folder"),
        (("table5", "--data", str(SAMPLES), "--rows", "Dino"), "has no row"),
        (("table5", "--data", str(SAMPLES), "--seeds", "0"), "--seeds must be at least 1"),
        (("table1a", "--data", str(SAMPLES), "--checkpoint", "x.pt"), "say which"),
        (("table5", "--data", str(SAMPLES), "--checkpoint", "Dino=x.pt"), "no row 'Dino'"),
    ],
)
def test_mistakes_are_one_sentence(command, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture) -> None:
    assert status(command, *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", [*TABLES])
def test_every_table_runs_on_the_samples(command, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The whole command, with answers that cost nothing."
    monkeypatch.setitem(reproduce.__dict__, "answer", lambda *_: Answer((20.0, 22.0), {"cat": 21.0}))
    command(name, "--data", str(SAMPLES), "--out", "out", "--seeds", "2")
    report = json.loads((tmp_path / f"out/{name}.json").read_text())
    text = (tmp_path / f"out/{name}.md").read_text()
    assert SAMPLE_WARNING in text and report["sample"]
    ours = [n for n in report["numbers"] if n["ours"] is not None]
    assert {(n["row"], n["column"]) for n in report["numbers"]} == set(EXPERIMENTS[name].cells)
    assert ours and all(n["ours"] == 21.0 and n["std"] == 1.0 for n in ours)
    assert not any("difference" in n for n in ours), "nothing is compared where something stands in"
    assert "| 21.0 ± 1.0 " in text and "(paper, difference)" not in text and "the paper's are not shown" in text
    assert all(n["reason"] for n in report["numbers"] if n["ours"] is None)


def test_one_number_that_fails_does_not_stop_the_others(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(found: Found, *_) -> Answer:
        if found.name.startswith("DINO"):
            raise TimetError("the weights do not fit")
        return Answer((50.0,))

    monkeypatch.setitem(reproduce.__dict__, "answer", half)
    command("table6", "--data", str(SAMPLES), "--out", "out")
    report = json.loads((tmp_path / "out/table6.json").read_text())
    assert {n["reason"] for n in report["numbers"] if n["row"] == "DINO"} == {"the weights do not fit"}
    assert all(n["ours"] == 50.0 for n in report["numbers"] if n["row"] == "TimeT")


def test_a_table_with_a_checkpoint_of_ones_own(command, tmp_path: Path) -> None:
    words = ["--data", str(SAMPLES), "--out", "out", "--rows", "TimeT", "--seeds", "1"]
    command("table7", *words)
    shipped = json.loads((tmp_path / "out/table7.json").read_text())
    command("table7", *words, "--checkpoint", str(TUNED))
    own = json.loads((tmp_path / "out/table7.json").read_text())
    pick = lambda report: [n["ours"] for n in report["numbers"] if n["row"] == "TimeT"]  # noqa: E731
    assert pick(own) == pick(shipped)
    assert {n["weights"] for n in own["numbers"] if n["row"] == "TimeT"} == {str(TUNED)}
    assert {n["reason"] for n in own["numbers"] if n["row"] == "DINO"} == {"not asked for (--rows)"}


def test_figures_are_written(command, tmp_path: Path) -> None:
    command("figure4", "--data", str(SAMPLES), "--out", "out")
    assert (tmp_path / "out/figure4.png").stat().st_size > 1000
    whole = json.loads((SAMPLES / "heldout/meta.json").read_text())["videos"].values()
    counted = json.loads((tmp_path / "out/figure4.json").read_text())["numbers"][0]
    assert sum(counted["per_class"].values()) == sum(len(video["objects"]) for video in whole)
    command("figure9", "--data", str(SAMPLES), "--out", "out", "--rows", "TimeT")
    assert {p.suffix for p in (tmp_path / "out").glob("figure9-davis-0*")} == {".png", ".gif", ".mp4"}


def test_figure_4_counts_the_whole_file_and_takes_any_name(command, tmp_path: Path, tree) -> None:
    "Videos that are not scored, and a category that looks like a formula."
    names = {f"v{i}": {"objects": {"1": {"category": r"$\foo{$"}, "2": {"category": "cat"}}} for i in range(5)}
    root = tree(tmp_path / "data/train", *(f"JPEGImages/v{i}" for i in range(5)), "Annotations/v0",
                meta_json=json.dumps({"videos": names}), val_txt="v0\n", train_txt="v1\nv2\nv3\nv4\n")  # fmt: skip
    command("figure4", "--data", str(root.parent), "--out", "out")
    report = json.loads((tmp_path / "out/figure4.json").read_text())["numbers"][0]
    assert report["per_class"] == {r"$\foo{$": 5.0, "cat": 5.0} and report["settings"] == {"videos": 5}
    assert (tmp_path / "out/figure4.png").stat().st_size > 1000
    (root / "meta.json").write_text('{"videos": {"v0": {"objects": {"1": {}}}}}')
    assert status(command, "figure4", "--data", str(root.parent), "--out", "out") == 2


def test_training_is_run_where_it_is_asked_for(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran = []

    def fake(words: list[str]) -> object:
        config = read_command(words[3:])
        ran.append(config)
        config.out.mkdir(parents=True)
        for end in (".safetensors", ".json"):
            (config.out / f"backbone{end}").write_bytes(TUNED.with_suffix(end).read_bytes())
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=fake))
    monkeypatch.setitem(reproduce.__dict__, "answer", lambda *_: Answer((1.0,)))
    command("table2", "--data", str(SAMPLES), "--out", "out", "--train", "--train-with=--max-steps 2", "--runs", "runs")
    assert [c.loss.labels.forwarded for c in ran] == ["none", "identity", "logits", "sk"] and {
        c.max_steps for c in ran
    } == {2}
    weights = {n["weights"] for n in json.loads((tmp_path / "out/table2.json").read_text())["numbers"]}
    assert weights == {f"runs/{run_name(n)}" for n, _ in EXPERIMENTS["table2"].cells.values()}
    command("table2", "--data", str(SAMPLES), "--out", "out", "--train", "--runs", "runs")
    assert len(ran) == 4, "a run that is there is not made again"


def test_several_processes_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["list"])
    assert stopped.value.code == 2
    assert "is one process, and 2 were started" in capsys.readouterr().err


def test_mistakes_are_answered_before_torch_is_loaded(tmp_path: Path) -> None:
    "The list, the help, a folder that is not there and a table that is none."
    code = """
import sys
from timet.reproduce import main
for words in (["list"], ["list", "--data", "samples"], ["--help"], ["table5", "--data", "nowhere"], ["table12"], ["table5", "--seeds", "0"]):
    try:
        main(words)
    except SystemExit as stop:
        print("status", stop.code)
print([m for m in ("torch", "timm", "faiss", "matplotlib", "accelerate", "av") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    said = done.stdout.splitlines()
    assert [line for line in said if line.startswith("status")] == ["status 0"] + 3 * ["status 2"] and said[
        -1
    ] == "[]", done.stderr


def test_a_question_is_asked_once(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "On the sample clips many rows share a stand-in; all have a number, and each question was computed once."
    asked = []
    monkeypatch.setitem(
        reproduce.__dict__, "answer", lambda found, q, *_: asked.append((found.checkpoint, q)) or Answer((1.0,))
    )
    command("table1a", "--data", str(SAMPLES), "--out", "out")
    numbers = json.loads((tmp_path / "out/table1a.json").read_text())["numbers"]
    assert len(numbers) == 12 and all(n["ours"] == 1.0 for n in numbers) and len(asked) == len(set(asked)) == 3
