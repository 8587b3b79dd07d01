"""Paths as users give them, and a walk that neither ends early, nor never, nor forgets."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from timet.core import TimetError, printable
from timet.run.paths import Kinds, PassedOver, existing, look, look_inside, misnamed, read_text

KINDS = Kinds(frozenset({".mp4"}), frozenset({".jpg", ".png"}))


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def walk(root: Path) -> tuple[list[str], PassedOver]:
    "The files that a walk finds, below the root."
    passed = PassedOver(root)
    folders = look(root, KINDS, passed).tree()
    return sorted(str((f.path / n).relative_to(root)) for f in folders for n in f.videos + f.pictures), passed


@pytest.mark.parametrize(
    "path, words",
    [
        ("nowhere", "cannot find nowhere: it is not there; give a video"),
        ("https://a.org/b.mp4", "https://a.org/b.mp4 is an address, and URLs are not read"),
        (Path("https://a.org/b.mp4"), "https://a.org/b.mp4 is an address"),
        ("s3://bucket/b", "is an address"),
        ("a" * 5000, r"\.\.\. \(5,000 letters\): file name too long"),
        ("/".join(["b" * 200] * 30), r"\(6,029 letters\): file name too long"),
        ("~nobody-has-this-name/x", "home directory"),
        ("zero\0byte", "null byte"),
    ],
)
def test_a_path_that_leads_nowhere(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TimetError, match=words) as caught:
        existing(path, "a video")
    assert "\n" not in str(caught.value)


def test_a_link_to_itself_leads_nowhere(tmp_path):
    (tmp_path / "x").symlink_to("x")
    with pytest.raises(TimetError, match="too many levels of symbolic links"):
        existing(tmp_path / "x", "a video")


@pytest.mark.parametrize(
    "name, wanted, head, words",
    [
        ("a.zip", "film", b"PK\x03\x04", "is a zip archive; unpack it"),
        ("a.mp4", "film", b"PK\x05\x06", "is a zip archive; unpack it"),
        ("a.tar.gz", "film", b"\x1f\x8b\x08", "is a gzip archive; unpack it"),
        ("a.tar", "film", b"name".ljust(257, b"\0") + b"ustar", "is a tar archive; unpack it"),
        ("a.jpg", "picture", b"\0\0\0\x18ftypisom", "holds an MP4 film and is named .jpg"),
        ("a.png", "picture", b"\x1aE\xdf\xa3", "holds a Matroska film and is named .png"),
        ("a.mp4", "film", b"\xff\xd8\xff\xe0", "holds a JPEG picture and is named .mp4"),
        ("clip", "film", b"\x89PNG", "is named without an ending"),
        ("a.mp4", "film", b"\0\0\0\x18ftypheic", "is a HEIC or AVIF picture, which is not read; convert it"),
        ("a.webp", "picture", b"RIFF....WEBPVP8X....\x02", "is an animated WebP picture, .* convert it to GIF or MP4"),
        ("a.png", "picture", b"\x89PNG\r\n\x1a\n" + bytes(25) + b"\0\0\0\x08acTL", "is an animated PNG picture"),
        ("a.mp4", "film", b"\n<!DOCTYPE HTML><html>", "is a web page"),
        ("a.mp4", "film", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_a_file_that_is_something_else(tmp_path, name, wanted, head, words):
    (tmp_path / name).write_bytes(head)
    assert re.search(words, misnamed(tmp_path / name, wanted))


@pytest.mark.parametrize(
    "name, wanted, head",
    [
        ("a.mp4", "film", b"\0\0\0\x18ftypisom"),
        ("a.avi", "film", b"\x1aE\xdf\xa3"),  # FFmpeg looks for itself
        ("a.gif", "film", b"GIF89a"),
        ("a.jpg", "picture", b"\x89PNG\r\n\x1a\n"),  # and so does Pillow
        ("a.webp", "picture", b"RIFF....WEBPVP8 "),
        ("a.mp4", "film", b""),
        ("a.txt", "film", b"hello"),
    ],
)
def test_what_can_be_read_is_not_refused(tmp_path, name, wanted, head):
    (tmp_path / name).write_bytes(head)
    assert misnamed(tmp_path / name, wanted) == ""
    assert look_inside(tmp_path / "nowhere") == ""


def test_text_with_marks_and_without(tmp_path):
    file, words = tmp_path / "a.txt", "Größe\r\nzwei Wörter\n"
    for data in (
        words.encode(),
        words.encode("utf-8-sig"),
        words.encode("utf-16"),
        b"\xfe\xff" + words.encode("utf-16-be"),
    ):
        file.write_bytes(data)
        assert read_text(file) == words
    file.write_bytes(b"caf\xe9")
    assert os.fsencode(read_text(file)) == b"caf\xe9"
    for data in (words.encode("utf-16-le"), b"\xff\xfea"):
        file.write_bytes(data)
        with pytest.raises(TimetError, match="save it as UTF-8"):
            read_text(file)
    with pytest.raises(TimetError, match="cannot be read as text"):
        read_text(tmp_path)


def test_only_hidden_names_and_furniture_are_left_alone(tmp_path):
    touch(*(tmp_path / n for n in ("@channel/x.mp4", "_MG_1.jpg", "$y/a.mp4", "#z/a.mp4", "~b.mp4", "-c.mp4")))
    touch(*(tmp_path / n for n in (".x/a.mp4", "._b.mp4", "@eaDir/c.jpg", "__MACOSX/d.mp4", "$RECYCLE.BIN/e.mp4")))
    found, passed = walk(tmp_path)
    assert found == sorted(["@channel/x.mp4", "_MG_1.jpg", "$y/a.mp4", "#z/a.mp4", "~b.mp4", "-c.mp4"])
    assert passed.lines() == ["hidden files and folders, and those of disk stations: 5 (first: $RECYCLE.BIN)"]
    assert str(passed) == ""  # nothing that a run should speak of


def test_what_is_not_read_is_counted_by_kind(tmp_path):
    touch(*(tmp_path / n for n in ("a.HEIC", "b.heic", "c.zip", "d.txt", "e", "f.vob", "g.mp4", "meta.json")))
    found, passed = walk(tmp_path)
    assert found == ["g.mp4"]
    assert [line.partition(" (")[0].replace(", which are not read", "") for line in passed.lines()] == [".heic files: 2", ".zip files: 1", ".txt files: 1", "files without an ending: 1", ".vob files: 1"]  # fmt: skip
    assert ".heic" in str(passed) and ".vob" in str(passed) and ".txt" not in str(passed)


def test_links_are_followed_and_circles_are_not(tmp_path):
    root, pool = tmp_path / "root", tmp_path / "pool"
    touch(root / "a/1.mp4", root / "b/2.mp4", pool / "3.mp4")
    for link, target in {
        "pool": pool,
        "up": tmp_path / "root",
        "above": tmp_path,
        "x": "x",
        "gone.mp4": "gone",
    }.items():
        (root / link).symlink_to(target)
    (root / "a/b").symlink_to(root / "b")
    (root / "b/a").symlink_to(root / "a")
    found, passed = walk(root)
    assert found == ["a/1.mp4", "b/2.mp4", "gone.mp4", "pool/3.mp4"]  # the last but one is told where it is read
    said = "\n".join(passed.lines())
    assert "links that lead back, or to a folder that is read already: 4" in said
    assert "folders or files that cannot be looked at: too many levels of symbolic links: 1 (first: x)" in said
    assert passed.unseen == [f"{root / 'x'} cannot be looked at: too many levels of symbolic links"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    touch(tmp_path / "a/1.mp4", tmp_path / "closed/2.mp4")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, passed = walk(tmp_path)
    assert found == ["a/1.mp4"] and "permission denied: 1 (first: closed)" in str(passed)
    with pytest.raises(TimetError, match=r"cannot look into .*closed: permission denied"):
        walk(tmp_path / "closed")


def test_fifteen_hundred_levels(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("a.mp4", os.O_CREAT, dir_fd=here))
    os.close(here)
    found, passed = walk(tmp_path)
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # Python cannot
    assert [name.count("d/") for name in found] == [1500] and not passed.lines()


def test_names_that_are_no_text(tmp_path):
    odd = os.fsdecode(b"caf\xe9\n.mp4")
    touch(tmp_path / odd, tmp_path / f"{odd}.heic")
    found, passed = walk(tmp_path)
    assert found == [odd] and printable(odd) == r"caf\udce9\n.mp4"
    "\n".join(passed.lines()).encode()
    str(TimetError(f"cannot read {tmp_path / odd}")).encode()
