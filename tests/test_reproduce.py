"""The paper's numbers, what each table needs, and the command that puts ours beside them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from timet import reproduce
from timet.core import TimetError, samples_dir
from timet.paper import answers as runners
from timet.paper import networks, plan
from timet.paper.answers import RUNNERS, Answer, Bench, answer
from timet.paper.cost import Cost, Speed, cost_of, in_words, seconds_of, settings_of
from timet.paper.networks import NETWORKS, UNAVAILABLE, Found, find_network, open_network, run_name, training_words
from timet.paper.places import LOOKED_FOR, find_data
from timet.paper.plan import SAMPLE_WARNING, describe_plan, make_plan
from timet.paper.questions import EXPERIMENTS, ask, find_experiment
from timet.paper.results import Compared, as_json, as_markdown, grid_of
from timet.paper.tables import FIGURES, TABLES
from timet.training.config import read_command

SAMPLES = samples_dir()
TUNED = SAMPLES / "weights/timet_tiny.safetensors"


def tree(root: Path, *folders: str, **files: str) -> Path:
    "Folders, and files as `path=content` with `__` for `/`."
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_txt", ".txt").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return tree(tmp_path / "sets/VOCdevkit/VOC2012", "JPEGImages", "SegmentationClass", "SegmentationClassAug",
                ImageSets__Segmentation__val_txt="2007_000033\n2007_000042\n")  # fmt: skip


@pytest.fixture
def ytvos(tmp_path: Path) -> Path:
    return tree(tmp_path / "sets/ytvos/train", "JPEGImages/003234408d", "JPEGImages/0043f083b5", "Annotations/003234408d",
                meta_json='{"videos": {}}', val_txt="003234408d\n", train_txt="0043f083b5\n")  # fmt: skip


# what the paper prints, read a second time from the page, one or more numbers of every table
PRINTED = """
table1a 10 LC 37.5 | table1a 50 K=500 40.5 | table1a 300 K=21 9.0 | table1b 4_frames,_0.2_s K=21 7.4
table1b 4_frames,_1.0_s LC 57.1 | table1c 2_frames,_2.0_s K=500 37.1 | table1c 8_frames,_2.0_s K=500 42.3
table2 Identity LC 55.3 | table2 logits K=21 6.6 | table2 None K=500 26.2 | table3 MSN_ViT-S/16 TimeT_LC 67.2
table3 iBOT_ViT-S/16 init_LC 62.1 | table3 DINO_ViT-S/8 TimeT_K=500 53.9 | table3 DINO_ViT-B/16 init_K=500 28.9
table4 ResNet-50 YTVOS_D 1.7 | table4 SwAV DAVIS_over_D 25.7 | table4 DINO DAVIS_C 31.0 | table4 DINO YTVOS_over_F 66.2
table4 Leopart DAVIS_D 16.5 | table4 STEGO* YTVOS_over_C 54.3 | table4 DINO* DAVIS_over_D 8.6 | table4 Leopart* DAVIS_F 37.5
table4 TimeT DAVIS_over_C 61.5 | table4 TimeT YTVOS_D 13.3 | table4 TimeT YTVOS_over_D 15.8 | table5 SwAV K=21 11.6
table5 DenseCL FCN 69.4 | table5 STEGO LC 59.1 | table5 Leopart* K=500 21.2 | table5 Flowdino LC 59.4 | table5 TimeT FCN 70.6
table6 DINO YTVOS 32.1 | table6 Leopart DAVIS 37.3 | table6 TimeT VOC 63.9 | table7 Leopart F 24.1 | table7 TimeT C 21.5
table8 MAE_B/16 mIoU 6.6 | table8 MoCo-v3_S/16 mIoU 19.5 | table8 Hummingbird_B/16 mIoU 70.5 | table8 TimeT_B/16 mIoU 65.5
table9 DUL F 28.2 | table9 Motion_Grp D 1.5 | table9 TimeT C 55.5 | table10 K=150 mIoU 48.2 | table10 DINO mIoU 4.6
table11 0.1_s FF 39.8 | table11 0.2_s GT0 25.7 | table11 0.4_s Flow 26.1 | table11 0.8_s FF 37.5
"""


def test_numbers_are_the_papers() -> None:
    checked = set()
    for entry in PRINTED.replace("\n", "|").split("|"):
        if entry.strip():
            name, row, column, value = entry.split()
            assert TABLES[name].value(row.replace("_", " "), column.replace("_", " ")) == float(value), entry
            checked.add(name)
    assert checked == set(TABLES)
    assert sum(len(t.rows) for t in TABLES.values()) == 4 * 5 + 8 + 12 + 4 + 3 + 12 + 3 + 4 + 4


def test_table_shapes_and_dashes() -> None:
    assert TABLES["table5"].value("MaskContrast", "FCN") is None
    for table in TABLES.values():
        assert all(len(row) == len(table.columns) for row in table.rows.values())
        assert table.protocol and table.data and table.quoted <= set(table.rows)
    assert any("31.4" in r for r in TABLES["table3"].remarks)
    assert any("foreground" in r for r in TABLES["table5"].remarks)


@pytest.mark.parametrize("name", [*TABLES, *FIGURES])
def test_every_experiment_has_all_it_needs(name: str) -> None:
    e = find_experiment(name)
    assert e.cells
    for (row, column), (network, measure) in e.cells.items():
        assert measure.kind in RUNNERS and measure.data in LOOKED_FOR
        assert not network or network in NETWORKS or network in UNAVAILABLE
        assert (name not in TABLES) or e.printed(row, column) is not None
    made = make_plan(e, SAMPLES, seeds=1)
    assert made.state == "ready"
    assert seconds_of(made.cost, Speed({}, 1e9, 1e-3, 1e9)) >= 0
    assert SAMPLE_WARNING in describe_plan(made)


def test_k21_is_two_questions() -> None:
    cells = EXPERIMENTS["table5"].cells
    assert cells["TimeT", "K=21"][1].kind == "cbfe" and cells["DINO", "K=21"][1].kind == "image"
    assert EXPERIMENTS["table1a"].cells["200", "K=21"][1] == ask("image", "voc", {"k": 21})


def test_sets_are_found_where_they_lie(voc: Path, ytvos: Path, tmp_path: Path) -> None:
    tree(tmp_path / "sets/DAVIS", "JPEGImages/480p/bear", "JPEGImages/480p/camel", "Annotations/480p/bear",
         ImageSets__2017__val_txt="camel\n", ImageSets__2017__train_txt="bear\n")  # fmt: skip
    tree(tmp_path / "sets/visor", "JPEGImages/480p/P01_107_seq_00001", "Annotations/480p/P01_107_seq_00001")
    tree(tmp_path / "sets/epic/train/480p", "P01/P01_01", "P02/P02_01")
    found = find_data(tmp_path / "sets")
    assert {k: (p.path.relative_to(tmp_path / "sets").as_posix(), p.count) for k, p in found.items()} == {
        "voc": ("VOCdevkit/VOC2012", 2), "ytvos": ("ytvos/train", 1), "davis": ("DAVIS", 1), "visor": ("visor", 1),
        "epic": ("epic/train/480p", 2)}  # fmt: skip
    assert (found["davis"].split, found["davis"].train, found["voc"].train) == ("2017/val", "2017/train", "trainaug")
    assert Path(found["ytvos"].split).read_text() == "003234408d\n" and not found["ytvos"].note


def test_sets_that_only_look_right_are_left(tmp_path: Path) -> None:
    tree(tmp_path / "valid", "JPEGImages/a", "Annotations/a", meta_json="{}")
    tree(tmp_path / "VOC", "JPEGImages", "SegmentationClass")  # without a list
    assert find_data(tmp_path) == {}
    with pytest.raises(TimetError, match="no folder"):
        find_data(tmp_path / "gone")


def test_a_fifth_is_drawn_where_no_list_names_it(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{kind}/v{i}" for kind in ("JPEGImages", "Annotations") for i in range(10)), meta_json="{}")
    place = find_data(tmp_path)["ytvos"]
    assert (place.split, place.train, place.count) == ("val20", "train80", 2) and "drawn" in place.note


def test_leoparts_packing(tmp_path: Path) -> None:
    tree(tmp_path, "images", "SegmentationClass", sets__val_txt="a\n")
    assert find_data(tmp_path)["voc"].train is None


def test_networks_are_looked_for_in_order(tmp_path: Path) -> None:
    assert "leopart_vits16.ckpt" in find_network("Leopart", weights=tmp_path).missing
    (tmp_path / "TimeT.pth").write_bytes(b"")
    assert find_network("TimeT", weights=tmp_path).source.endswith("TimeT.pth")
    run = tmp_path / run_name("TimeT")
    tree(run)
    run.mkdir(exist_ok=True)
    (run / "backbone.safetensors").write_bytes(b"")
    assert find_network("TimeT", weights=tmp_path, runs=tmp_path).source == str(run)
    assert find_network("TimeT", runs=tmp_path, given={"TimeT": "x"}).source == "x"
    assert find_network("DINO S/16").source == "hub"
    assert not find_network("Motion Grp").source and not find_network("nonsense").source
    with pytest.raises(TimetError, match="not on this machine"):
        open_network(find_network("Leopart"))


def test_a_network_is_opened_from_an_export() -> None:
    assert open_network(Found("TimeT", str(TUNED))).embed_dim == 128


def test_training_lines_are_understood(tmp_path: Path) -> None:
    for name, network in NETWORKS.items():
        if network.train:
            for start in NETWORKS[network.start].files[:1] if network.start else ():
                (tmp_path / start).write_bytes(b"")
            words = training_words(name, "videos", split="train", weights=tmp_path, runs=tmp_path)
            config = read_command(words)
            assert (config.data, config.split, config.out) == (Path("videos"), "train", tmp_path / run_name(name))
    assert read_command(training_words("TimeT, 8 frames", "v")).delta_t * 8 == 2.0
    assert read_command(training_words("DINO*", "v")).loss.labels.forwarded == "none"
    with pytest.raises(TimetError, match="not trained on video"):
        training_words("SwAV", "videos")


def test_cost_counts_what_the_formula_says(voc: Path) -> None:
    place = find_data(voc)["voc"]
    cost = cost_of("TimeT", ask("image", "voc", {"k": 500}), replace(place, count=1449), seeds=5)
    m = 1449 * 28 * 28
    assert cost.kmeans == 5 * 2 * 500 * 50 * (5 * 100 * 256 * 500 + m) and cost.calls == 5
    assert sum(cost.disk.values()) == 1449 * (784 * 384 * 2 + 100 * 100)
    eight = cost_of("DINO S/8", ask("image", "voc", {"k": 500}), place)
    assert sum(eight.disk.values()) == 2 * (56 * 56 * 384 * 2 + 100 * 100)
    assert (
        seconds_of(cost + cost, Speed({("vit_small_patch16_224", 448): 10}, 1e12, 0, 1e12))
        < 150 + 2 * cost.kmeans / 1e12
    )
    assert seconds_of(Cost(), Speed({}, 1, 1, 1)) == 0 and in_words(3700 * 4) == "about 4 hours"


def test_settings_are_cut_for_the_samples_alone() -> None:
    over = ask("image", "voc", {"k": 500})
    assert settings_of(over)["k"] == 500 and settings_of(over, sample=True)["k"] < 100
    assert settings_of(ask("video", "davis", {"k": "gt", "frames": 16}), sample=True)["frames"] == 4


def test_missing_data_is_one_sentence(tmp_path: Path) -> None:
    made = make_plan(find_experiment("table7"), tmp_path)
    assert made.state == "missing"
    assert re.search(r"visor: no folder with .*; get VISOR", made.missing[0])
    half = make_plan(find_experiment("table4"), tree(tmp_path, "JPEGImages/480p/bear", "Annotations/480p/bear"))
    assert half.state == "in part" and not any(key[1].startswith("YTVOS") for key in half.cells)


def test_probes_need_the_augmented_masks(voc: Path) -> None:
    (voc / "SegmentationClassAug").rmdir()
    made = make_plan(find_experiment("table2"), voc, given={"TimeT, 12 epochs": "x"})
    assert ("SK", "K=500") in made.cells and ("SK", "LC") not in made.cells
    assert any("SegmentationClassAug" in text for text in made.missing)


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
    command("table5", "--data", str(voc), "--dry-run", "--rows", "DINO")
    out = capsys.readouterr().out
    assert "weights of the hub" in out or "hub" in out
    assert "an estimate" in out and "GB of tokens" in out and f"4 of {len(EXPERIMENTS['table5'].cells)} numbers" in out
    assert {p for p in tmp_path.rglob("*")} == before
    assert status(command, "table6", "--data", str(tmp_path / "sets"), "--dry-run", "--rows", "TimeT") == 2


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
    monkeypatch.setitem(reproduce.__dict__, "answer", lambda bench, name, measure: Answer((20.0, 22.0), {"cat": 21.0}))
    monkeypatch.setitem(reproduce.__dict__, "measure_speed", lambda cost, device: Speed({}, 1e9, 1e-3, 1e9))
    command(name, "--data", str(SAMPLES), "--out", "out", "--seeds", "2")
    report = json.loads((tmp_path / f"out/{name}.json").read_text())
    text = (tmp_path / f"out/{name}.md").read_text()
    assert SAMPLE_WARNING in text and report["sample"]
    ours = [n for n in report["numbers"] if n["ours"] is not None]
    assert {(n["row"], n["column"]) for n in report["numbers"]} == set(EXPERIMENTS[name].cells)
    assert ours and all(n["ours"] == 21.0 and n["std"] == 1.0 for n in ours)
    assert all(n["difference"] == pytest.approx(21.0 - n["paper"]) for n in ours)
    assert f"21.0 ± 1.0 ({ours[0]['paper']:.1f}, {ours[0]['difference']:+.1f})" in text
    assert all(n["reason"] for n in report["numbers"] if n["ours"] is None)


def test_one_number_that_fails_does_not_stop_the_others(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(bench: Bench, name: str, measure: object) -> Answer:
        if name.startswith("DINO"):
            raise TimetError("the weights do not fit")
        return Answer((50.0,))

    monkeypatch.setitem(reproduce.__dict__, "answer", half)
    command("table6", "--data", str(SAMPLES), "--out", "out")
    report = json.loads((tmp_path / "out/table6.json").read_text())
    assert {n["reason"] for n in report["numbers"] if n["row"] == "DINO"} == {"the weights do not fit"}
    assert all(n["ours"] == 50.0 for n in report["numbers"] if n["row"] == "TimeT")


KINDS = {m.kind: (name, n, m) for name, e in EXPERIMENTS.items() for n, m in e.cells.values() if n not in UNAVAILABLE}


@pytest.mark.parametrize("kind", [*KINDS])
def test_every_kind_of_question_is_answered(kind: str, tmp_path: Path) -> None:
    if kind == "forward":
        pytest.importorskip("cv2")
    name, network, measure = KINDS[kind]
    bench = Bench(make_plan(EXPERIMENTS[name], SAMPLES, seeds=1), device="cpu", cache=tmp_path)
    got = answer(bench, network, measure)
    assert got.settings and all(0 < v < 100 for v in got.values)
    if kind in ("maps", "overlay"):
        frames, maps = got.pictures["frames"], got.pictures["maps"]
        assert frames.ndim == 5 and maps.shape[:2] == frames.shape[:2] and len(got.pictures["names"]) == len(frames)
    elif kind == "counts":
        assert sum(got.per_class.values()) == sum(len(s.objects) for s in bench.sources("ytvos"))
    else:
        assert got.values and np.isfinite(got.mean)


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
    command("figure9", "--data", str(SAMPLES), "--out", "out", "--rows", "TimeT")
    assert {p.suffix for p in (tmp_path / "out").glob("figure9-davis-0*")} == {".png", ".gif", ".mp4"}


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
    monkeypatch.setitem(reproduce.__dict__, "answer", lambda bench, name, measure: Answer((1.0,)))
    command("table2", "--data", str(SAMPLES), "--out", "out", "--train", "--train-with=--max-steps 2", "--runs", "runs")
    assert [c.loss.labels.forwarded for c in ran] == ["none", "identity", "logits", "sk"] and {
        c.max_steps for c in ran
    } == {2}
    weights = {n["weights"] for n in json.loads((tmp_path / "out/table2.json").read_text())["numbers"]}
    assert weights == {f"runs/{run_name(n)}" for n, _ in EXPERIMENTS["table2"].cells.values()}
    command("table2", "--data", str(SAMPLES), "--out", "out", "--train", "--runs", "runs")
    assert len(ran) == 4, "a run that is there is not made again"


def test_a_cell_as_text() -> None:
    assert str(Compared("r", "c", "n", "", 5.0, Answer((4.0, 6.0)))) == "5.0 ± 1.0 (5.0, +0.0)"
    assert str(Compared("r", "c", "n", "", None, Answer((4.0,)))) == "4.0"
    assert str(Compared("r", "c", "n", "", 5.0)) == "- (5.0)" and str(Compared("r", "c", "n", "", None)) == "-"
    twelve = [Compared("r", c, "n", "", 1.0) for c in TABLES["table4"].columns]
    assert grid_of(twelve).count("| ours (paper") == 4


def test_a_report_says_what_must_be_known() -> None:
    made = make_plan(find_experiment("table8"), SAMPLES)
    cells = [Compared("DINO S/16", "mIoU", "DINO S/16", "hub", 47.9, Answer((48.7,)))]
    text = as_markdown(made, cells)
    assert "48.7" in text and "wrong axis" in text and "took these rows from other papers" in text
    assert json.loads(json.dumps(as_json(made, cells)))["numbers"][0]["difference"] == pytest.approx(0.8)


def test_registry_agrees_with_the_readers() -> None:
    assert set(networks.NETWORKS) & set(UNAVAILABLE) == set()
    assert plan.find_data is find_data and runners.RUNNERS is RUNNERS


def test_several_processes_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["list"])
    assert stopped.value.code == 2
    assert "is one process, and 2 were started" in capsys.readouterr().err
