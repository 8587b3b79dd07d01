"""Photographs where people have them: linked, hidden, beside masks, in zips that are damaged, locked or traps."""

import io
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timet.core import TimetError
from timet.pretraining import photos
from timet.pretraining.photos import find_photos, read_photos


def picture(value: int = 90, mode: str = "RGB", form: str = "png", size: tuple[int, int] = (12, 8), **more) -> bytes:
    "The bytes of a picture of one colour."
    file = io.BytesIO()
    Image.new(mode, size, value if mode != "RGB" else (value, value, value)).save(file, form, **more)
    return file.getvalue()


def put(root: Path, *names: str, data: bytes | None = None) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture() if data is None else data)
    return root


def test_every_photograph_of_a_folder_is_found(tmp_path):
    put(tmp_path / "a", "x/_MG_1234.JPG", "x/_DSC2.jpg", "@channel/1.png", ".hidden/2.png", "@eaDir/3.png", "x/._4.jpg", "x/5.HEIC", "x/6.gif")  # fmt: skip
    put(tmp_path / "pool", "dog/1.png", "cat/1.png")
    for kind in ("dog", "cat"):
        (tmp_path / "a" / kind).symlink_to(tmp_path / "pool" / kind)
    (tmp_path / "a/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/self").symlink_to("self")
    album = find_photos(tmp_path / "a")
    assert album.names == ("@channel/1.png", "cat/1.png", "dog/1.png", "x/_DSC2.jpg", "x/_MG_1234.JPG")
    assert album.classes() == ("@channel", "cat", "dog", "x")
    said = "\n".join(album.passed.lines())
    for words in ("those of disk stations: 3", ".heic files, which are not read: 1", ".gif files, which are not read: 1", "is read already: 1", "symbolic links: 1"):  # fmt: skip
        assert words in said
    assert ".heic" in str(album.passed)
    assert len(read_photos(tmp_path / "a", size=8)) == 5


def test_masks_are_no_photographs(tmp_path):
    put(tmp_path, "JPEGImages/1.jpg", "JPEGImages/2.jpg", "drawings/1.png")
    put(tmp_path, "SegmentationClass/1.png", "SegmentationObject/1.png", "Annotations/x/1.png", data=picture(1, "P"))
    put(tmp_path, "drawings/grey.png", "drawings/2.png", data=picture(1, "L"))
    put(tmp_path, "drawings/2.jpg", "mask/1.png")  # a class of people with masks, in colour
    album = find_photos(tmp_path)
    assert album.names == ("JPEGImages/1.jpg", "JPEGImages/2.jpg", "drawings/1.png", "drawings/2.jpg", "drawings/grey.png", "mask/1.png")  # fmt: skip
    assert "pictures in folders of masks: 3 (first: Annotations/x/1.png)" in str(album.passed)
    assert "masks beside photographs: 1 (first: drawings/2.png)" in str(album.passed)


def test_names_that_are_no_text(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    put(tmp_path, f"{odd}/{odd}.png", "good/1.png")
    put(tmp_path, f"{odd}/bad.png", data=b"no")
    found = read_photos(tmp_path, size=8)
    assert found.classes == (r"caf\udce9", "good") and found.labels.tolist() == [0, 1]
    assert found.lost == (r"caf\udce9/bad.png: no picture of a known kind",)
    "".join(found.classes + found.lost).encode()


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.jpg", bytes(10**8))
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(10):
            archive.writestr(f"a/{i}.bmp", bytes(10**7))
    assert (photos.LARGEST, photos.ENOUGH) == (2**29, 2**30)
    monkeypatch.setattr(photos, "LARGEST", 5 * 10**7)
    monkeypatch.setattr(photos, "ENOUGH", 9 * 10**7)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("one", "many"):
        with pytest.raises(
            TimetError, match=rf"{name}.zip would unpack from 0.1 MB to 0.1 GB, and no photographs shrink"
        ):
            read_photos(tmp_path / f"{name}.zip", size=8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_directory_that_lies(tmp_path):
    "It says 1,000 bytes, and there are fifty million: no more than it says is unpacked."
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.png", bytes(5 * 10**7))
        archive.writestr("a/y.png", picture())
    data, size = (tmp_path / "a.zip").read_bytes(), (5 * 10**7).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data.replace(size, (1000).to_bytes(4, "little")))
    album = find_photos(tmp_path / "a.zip")
    try:
        assert len(album.read("a/x.png")) <= 1000
    except zipfile.BadZipFile:
        pass
    assert len(read_photos(tmp_path / "a.zip", size=8)) == 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda good: good[: len(good) // 2] + good[len(good) // 2 :].replace(b"PK\x01\x02", b"PK\x09\x09"), "is a damaged zip"),
        (lambda good: b"\x1f\x8b" + bytes(50), "is a gzip archive; unpack it and give the folder"),
        (lambda good: b"Rar!" + bytes(50), "is a rar archive; unpack it"),
        (lambda good: b"<!DOCTYPE html>", "is a web page"),
        (lambda good: b"hello", "is neither a folder nor a zip"),
        (lambda good: good.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"), "is locked with a password"),
    ],
)  # fmt: skip
def test_what_is_no_good_zip(tmp_path, make, words):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/1.png", picture())
    (tmp_path / "a.zip").write_bytes(make((tmp_path / "a.zip").read_bytes()))
    with pytest.raises(TimetError, match=words) as caught:
        read_photos(tmp_path / "a.zip", size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["https://a.org/b.zip", "x" * 5000, "~nobody-has-this-name"])
def test_paths_that_lead_nowhere(path):
    with pytest.raises(TimetError, match=r"URLs are not read|too long|home directory"):
        find_photos(path)


def test_a_folder_of_zips_says_so(tmp_path):
    put(tmp_path, "a.zip", "b.zip", data=b"PK")
    with pytest.raises(TimetError, match=r"holds no photographs .* passed over: .zip files, which are not read: 2"):
        find_photos(tmp_path)


def test_a_photograph_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "a/2.png")
    with open(tmp_path / "a/1.png", "r+b") as file:
        file.truncate(photos.LARGEST + 1)
    assert read_photos(tmp_path, size=8).lost == ("a/1.png: it holds 0.5 GB, more than a photograph",)


@pytest.mark.parametrize("mode, form", [("RGB", "jpeg"), ("L", "jpeg"), ("CMYK", "jpeg"), ("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("L", "tiff"), ("RGB", "webp")])  # fmt: skip
def test_photographs_stand_upright_in_every_mode(tmp_path, mode, form):
    "The left half is dark as stored, which orientation 6 (a quarter to the right) puts on top."
    grey = np.full((64, 64), 250, np.uint8)
    grey[:, :32] = 5
    image = Image.fromarray(grey).convert("RGB")
    if mode != "RGB":
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    image.save(tmp_path / f"a/1.{form}", form, exif=exif)
    pixels = read_photos(tmp_path, size=16).pixels[0].float().mean(0).numpy()
    assert pixels[:6].mean() < 60 and pixels[10:].mean() > 190
