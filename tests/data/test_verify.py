"""Everything is read once: what is damaged is told, and nothing is changed."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from trees import SIZE, masks, picture, video

from timet.data.find import find_sources
from timet.data.verify import check_source, main, verify


def test_nothing_is_written(sets):
    def state() -> dict:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(sets.rglob("*"))}

    before = state()
    for child in sorted(sets.iterdir()):
        split = "train" if child.name == "YTVOS" else None
        for source in find_sources(child, split=split):
            source.frames([0])
        verify(child, split=split, workers=1)
    assert state() == before


def test_verify_lists_what_is_damaged(sets, tmp_path, capsys):
    assert verify(sets / "DAVIS17").problems == ()
    root = sets / "DAVIS16"
    dog, swan = (root / "JPEGImages/480p" / n for n in ("dog", "swan"))
    (dog / "00001.jpg").write_bytes((dog / "00001.jpg").read_bytes()[:-100])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(dog / "00002.jpg")
    rotten = bytearray((dog / "00002.jpg").read_bytes())
    rotten[-300:-200] = bytes(100)
    (dog / "00002.jpg").write_bytes(rotten)
    (swan / "00003.jpg").write_text("text")
    Image.fromarray(picture(1, (12, 12))).save(swan / "00002.jpg")
    masks(root / "Annotations/480p/dog", [0], size=(12, 12))
    cut = root / "Annotations/480p/swan/00001.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    report = verify(root)
    said = "\n".join(reason for _, reason in report.problems)
    for words in ("00001.jpg cannot be read", "00002.jpg is damaged", "00003.jpg cannot be read", "differ in size", "the mask is (12, 12)", "00001.png cannot be read"):  # fmt: skip
        assert words in said
    assert (report.clips, report.damaged, len(report.problems)) == (2, 2, 6)
    assert report.frames == 5 and report.masks == 7

    with pytest.raises(SystemExit) as stop:
        main(["verify", str(root), "--json", str(tmp_path / "r.json"), "--workers", "1"])
    out = capsys.readouterr().out
    assert stop.value.code == 1 and "2 of 2 clips have faults" in out and "frames/s" in out
    assert json.loads((tmp_path / "r.json").read_text())["damaged"] == 2


def test_verify_of_videos(tmp_path, capsys):
    video(tmp_path / "v/good.mp4", 30, noisy=True)
    data = bytearray((tmp_path / "v/good.mp4").read_bytes())
    begin = data.index(b"mdat")
    for place in range(begin + 800, len(data) - 2500, 37):
        data[place] ^= 0x5A
    (tmp_path / "v/rot.mp4").write_bytes(data)
    (tmp_path / "v/text.mp4").write_text("hello")
    (tmp_path / "v/empty.webm").touch()
    report = verify(tmp_path / "v")
    assert {name for name, _ in report.problems} == {"rot", "text", "empty"}
    assert "of 30 frames are damaged or lost" in dict(report.problems)["rot"]
    assert report.clips == 4 and 30 <= report.frames <= 60
    main(["verify", str(tmp_path / "v/good.mp4")])
    assert "nothing is damaged" in capsys.readouterr().out


def test_a_mask_beyond_the_video_is_told(tmp_path):
    video(tmp_path / "videos/a.mp4", 4)
    masks(tmp_path / "masks/a", [0, 9])
    assert "belongs to frame 9, the last frame is 3" in check_source(find_sources(tmp_path)[0])[2][0]


@pytest.mark.parametrize(
    "words, status", [(["verify", "nowhere"], 2), (["show", "nowhere"], 2), (["show"], 2), (["walk", "x"], 2)]
)
def test_command_line_mistakes(words, status, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == status
    assert "Traceback" not in capsys.readouterr().err


def test_show(sets, capsys):
    main(["show", str(sets / "YTVOS/train")])
    out = capsys.readouterr().out
    assert "2 clips (YouTube-VOS, 3 classes)" in out and "6.00 fps  40x24, 2 masks" in out and "1 bird" in out
    (sets / "videos_tree/dog/broken.mp4").write_text("x")
    main(["show", str(sets / "videos_tree"), "--most", "2"])
    out = capsys.readouterr().out
    assert "is not a video" in out and "... and 1 more" in out


# real clips


def test_real_videos_are_sound(real_clips):
    assert verify(real_clips / "videos").problems == ()


# quick answers


def test_a_look_at_data_and_checkpoints_loads_nothing_heavy():
    "A misspelled path is refused before torch and its company are imported."
    heavy = "torch torchvision timm faiss scipy matplotlib accelerate av decord tensorboard".split()
    code = (
        "import sys, timet.data.images, timet.data.verify, timet.run.folder\n"
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
