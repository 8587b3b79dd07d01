"""Everything is read once: what is damaged is told, and nothing is changed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image
from trees import SIZE, frames, masks, picture, video

from timet.data import source as readers
from timet.data.find import find_sources
from timet.data.verify import check_source, main, verify
from timet.data.video import VideoError


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


# as training reads


def test_every_frame_is_read_by_the_reader_of_training(tmp_path, monkeypatch):
    video(tmp_path / "a.mp4", 30, noisy=True)
    asked = []
    reader = readers.read_frames

    def broken(path, *, index):
        asked.append(list(index))
        if 17 in index:
            raise VideoError(f"{path}: frame 17 is not to be had")
        return reader(path, index=index)

    monkeypatch.setattr(
        readers, "read_frames", lambda path, *, index: asked.append(list(index)) or reader(path, index=index)
    )
    assert verify(tmp_path).problems == ()
    assert asked[0] == list(range(30)) and asked[1] == [0, 4, 8, 12, 16, 20, 24, 29]
    monkeypatch.setattr(readers, "read_frames", broken)  # FFmpeg alone finds nothing wrong with it
    assert [reason.split(": ")[1] for _, reason in verify(tmp_path).problems] == ["frame 17 is not to be had"]


def test_a_film_whose_jumps_lead_elsewhere(tmp_path, monkeypatch):
    video(tmp_path / "a.mp4", 30, noisy=True)
    reader = readers.read_frames

    def late(path, *, index):
        off = np.diff(index).max() > 1
        return reader(path, index=np.minimum(np.asarray(index) + off, 29))

    monkeypatch.setattr(readers, "read_frames", late)
    assert "frame 0 is another one when it is jumped to" in verify(tmp_path).problems[0][1]


def test_frames_of_a_folder_are_read_by_the_reader_of_training(sets, monkeypatch):
    root, pixels = sets / "DAVIS17", readers._pixels

    def broken(path):
        if path.endswith("dog/00002.jpg"):
            raise VideoError(f"{path} is not to be had")
        return pixels(path)

    monkeypatch.setattr(readers, "_pixels", broken)
    (problem,) = verify(root).problems
    assert problem[0] == "dog" and problem[1].endswith("dog/00002.jpg is not to be had")


# what was passed over


def test_what_was_passed_over_is_counted(sets, tmp_path, capsys):
    root = sets / "videos_tree"
    for name in ("a.heic", "b.HEIC", "c.zip", "d.webp", "e.txt", ".f.mp4", "@eaDir/g.mp4"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "loop").symlink_to(root)
    video(root / "one.mp4", 1)
    report = verify(root)
    assert report.problems == () and report.frames == 25
    assert set(report.passed) == {
        ".heic files, which are not read: 2 (first: a.heic)",
        ".zip files, which are not read: 1 (first: c.zip)",
        ".txt files, which are not read: 1 (first: e.txt)",
        "hidden files and folders, and those of disk stations: 2 (first: .f.mp4)",
        "links that lead back, or to a folder that is read already: 1 (first: loop)",
        "pictures beside clips: 1 (first: d.webp)",
        "clips that show no time, which training does not take: 1 (first: one.mp4)",
    }
    main(["verify", str(root), "--json", str(tmp_path / "r.json")])
    out = capsys.readouterr().out
    assert "nothing is damaged\npassed over:\n" in out and "  .heic files, which are not read: 2" in out
    assert json.loads((tmp_path / "r.json").read_text())["passed"] == list(report.passed)
    main(["show", str(root)])
    assert "passed over: .heic files, which are not read: 2" in capsys.readouterr().out
    assert "nothing was passed over" in str(verify(root / "dog"))


def test_what_cannot_be_looked_at_is_no_clean_bill(tmp_path, capsys):
    video(tmp_path / "v/a.mp4", 3)
    (tmp_path / "v/x").symlink_to("x")
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path / "v")])
    out = capsys.readouterr().out
    assert stop.value.code == 1 and "nothing of this is damaged; not all could be looked at:" in out
    assert "x cannot be looked at: too many levels of symbolic links" in out


def test_files_under_a_wrong_name(tmp_path):
    film, folder = video(tmp_path / "v/a.mp4", 3), frames(tmp_path / "v/f", range(3))
    (folder / "00001.jpg").write_bytes(film.read_bytes())
    still = [Image.fromarray(np.full((*SIZE, 3), v, np.uint8)) for v in (0, 200)]
    still[0].save(folder / "00003.webp", save_all=True, append_images=still[1:])
    (tmp_path / "v/b.mp4").write_bytes((folder / "00000.jpg").read_bytes())
    (tmp_path / "v/c.mp4").write_bytes(b"PK\x03\x04 and so on")
    said = {name: reason for name, reason in verify(tmp_path / "v").problems if name != "f"}
    assert said["b"].endswith("b.mp4 holds a JPEG picture and is named .mp4; give it the ending of a picture")
    assert said["c"].endswith("c.mp4 is a zip archive; unpack it and give the folder")
    inside = [reason for name, reason in verify(tmp_path / "v").problems if name == "f"]
    assert len(inside) == 2 and "00001.jpg holds an MP4 film" in inside[0] and "an animated WebP" in inside[1]


def test_masks_without_a_frame(tmp_path):
    frames(tmp_path / "frames/a", range(2))
    masks(tmp_path / "masks/a", range(4))
    report = verify(tmp_path)
    assert (report.masks, report.problems) == (2, ())
    assert report.passed == ("masks that belong to no frame: 2 (first: masks/a)",)


def test_masks_that_jpeg_has_spoilt(tmp_path):
    for name in ("bear", "dog"):
        frames(tmp_path / "JPEGImages" / name, range(2))
        frames(tmp_path / "Annotations" / name, range(2))
    assert verify(tmp_path).passed == (
        "folders of masks as JPEG or WebP, which change the numbers in a mask; save them as PNG: 2 (first: Annotations/bear)",
    )


def test_a_frame_that_exif_turns_and_its_mask_that_is_not(tmp_path):
    frames(tmp_path / "JPEGImages/v", range(2))
    masks(tmp_path / "Annotations/v", range(2))
    for file in (tmp_path / "JPEGImages/v").iterdir():
        picture = Image.open(file)
        exif = picture.getexif()
        exif[ExifTags.Base.Orientation] = 6
        picture.save(file, exif=exif)
    _, reason = verify(tmp_path).problems[0]
    assert reason.endswith(
        "the frame is shown upright, (40, 24), as its EXIF says, and the mask is (24, 40); turn the mask too"
    )


def test_show_says_where_a_rate_comes_from(sets, tmp_path, capsys):
    for path, words in {"videos_tree": "rate read", "MOSE": "rate assumed", "DAVIS17": "rate known of DAVIS"}.items():
        main(["show", str(sets / path)])
        assert capsys.readouterr().out.splitlines()[1].endswith(words)
    main(["show", str(sets / "MOSE"), "--fps", "10"])
    assert "10.00 fps  40x24, 4 masks, rate as given" in capsys.readouterr().out
    video(tmp_path / "v/videos/a.mp4", 4)
    masks(tmp_path / "v/masks/a", [1, 2])
    main(["show", str(tmp_path / "v")])
    assert "4 frames   24.00 fps  40x24, masks that cannot be used: the masks in" in capsys.readouterr().out


def test_names_that_are_no_text_are_printed(tmp_path, capsys):
    odd = os.fsdecode(b"caf\xe9")
    video(tmp_path / "good.mp4", 3)
    (tmp_path / f"{odd}.mp4").write_bytes((tmp_path / "good.mp4").read_bytes())
    (tmp_path / f"{odd}2.mp4").write_bytes(b"no film")
    (tmp_path / f"{odd}.heic").touch()
    main(["show", str(tmp_path)])  # into a stream that takes UTF-8 and nothing else
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path)])
    out = capsys.readouterr().out
    assert stop.value.code == 1 and out.count(r"caf\udce9") >= 5


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
