"""Exact reading: every frame carries its own number, so that a reader which is one frame off is found out."""

import concurrent.futures
import multiprocessing
import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from timet.core import TimetError
from timet.data import video
from timet.data.video import VideoError, frame_at, read_frames, read_with_decord, read_with_pyav, scan

TICKS = 90_000


def numbered(index: int, height: int = 64, width: int = 80) -> np.ndarray:
    "A frame whose eight bands spell its number."
    frame = np.full((height, width, 3), 128, dtype=np.uint8)
    band = width // 8
    for bit in range(8):
        frame[: height // 2, band * bit : band * (bit + 1)] = 235 if index >> bit & 1 else 20
    frame[height // 2 :, :, 1] = 40 + (index * 5) % 160
    return frame


def number(frame: np.ndarray) -> int:
    height, band = frame.shape[0], frame.shape[1] // 8
    return sum(int(frame[4 : height // 2 - 4, band * b + 2 : band * (b + 1) - 2].mean() > 128) << b for b in range(8))


def film(
    path: Path, starts, codec="libx264", options=None, size=(64, 80), rotate=0, pix_fmt="yuv420p", first=0, tick=None
) -> Path:
    "Encode numbered frames that appear at the given seconds; one tick a frame where it is given, and in some codecs."
    tick = Fraction(1, 24) if codec in ("mpeg4", "mpeg2video", "wmv2") else tick
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=24, options={"threads": "1"} | (options or {}))
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        if rotate:
            stream.set_display_rotation(rotate)
        if tick is None:
            stream.codec_context.time_base = Fraction(1, TICKS)
        for i, start in enumerate(starts):
            frame = av.VideoFrame.from_ndarray(numbered(i + first, *size), "rgb24")
            if tick is not None:
                frame.pts, frame.time_base = i, tick
            else:
                frame.pts, frame.time_base = round(start * TICKS), Fraction(1, TICKS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


CONSTANT = np.arange(60) / 24
VARIABLE = np.concatenate([np.arange(30) / 30, 1 + np.arange(30) / 10])
X264_OPEN = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"}
X265 = "log-level=none:keyint=12:min-keyint=12:scenecut=0:bframes=3:pools=none:frame-threads=1"
KINDS = {
    "h264.mp4": dict(starts=CONSTANT),
    "vfr.mp4": dict(starts=VARIABLE),
    "short_groups.mov": dict(starts=CONSTANT, options={"g": "7"}),
    "open.mp4": dict(starts=CONSTANT, options=X264_OPEN),
    "hevc_open.mp4": dict(starts=CONSTANT, codec="libx265", options={"x265-params": X265 + ":open-gop=1"}),
    "hevc_closed.mp4": dict(starts=CONSTANT, codec="libx265", options={"x265-params": X265 + ":open-gop=0"}),
    "vp9.webm": dict(starts=CONSTANT, codec="libvpx-vp9", options={"g": "15", "deadline": "realtime", "cpu-used": "8"}),
    "h264.mkv": dict(starts=CONSTANT, options={"g": "15"}),
    "mpeg4.avi": dict(starts=CONSTANT, codec="mpeg4", options={"g": "10", "bf": "2", "qscale": "2"}),
    "groups.ts": dict(starts=CONSTANT, options={"g": "15"}),
    "one_key.ts": dict(starts=CONSTANT, options={"g": "250"}),
    "one.mp4": dict(starts=CONSTANT[:1]),
    "two.mp4": dict(starts=CONSTANT[:2]),
    "width96.mp4": dict(starts=CONSTANT, size=(64, 96)),
    "odd444.mp4": dict(starts=CONSTANT, size=(65, 81), pix_fmt="yuv444p"),
}


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    return {name: film(folder / name, **kind) for name, kind in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_the_one_asked_for(films, name):
    path, starts = films[name], KINDS[name]["starts"]
    info = scan(path)
    assert len(info.starts) == len(starts)
    np.testing.assert_allclose(info.starts, starts, atol=1.1e-3)
    for i in range(len(starts)):
        assert number(read_frames(path, index=[i])[0]) == i
    order = np.random.default_rng(0).integers(0, len(starts), 12)
    assert [number(f) for f in read_frames(path, index=order)] == order.tolist()
    assert [number(f) for f in read_frames(path, times=starts[order] + 0.01)] == order.tolist()
    assert [number(f) for f in read_frames(path)] == list(range(len(starts)))


@pytest.mark.parametrize("name", KINDS)
def test_pixels_agree_with_a_plain_pass_of_pyav(films, name):
    with av.open(str(films[name])) as film_:
        plain = np.stack(
            [f.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray() for f in film_.decode(video=0)]
        )
    np.testing.assert_array_equal(read_with_pyav(scan(films[name]), np.arange(len(plain))), plain)
    both = read_frames(films[name]).astype(int)
    assert np.abs(both - plain).mean() < 1.5  # decord2 and PyAV convert colours a little differently on odd sizes


def test_what_the_scan_says(films):
    assert scan(films["open.mp4"]).open_gop and scan(films["hevc_open.mp4"]).open_gop
    assert not scan(films["h264.mp4"]).open_gop and not scan(films["hevc_closed.mp4"]).open_gop
    info = scan(films["h264.mp4"])
    assert (info.height, info.width, info.codec) == (64, 80, "h264")
    assert info.fps == pytest.approx(24) and info.duration == pytest.approx(60 / 24, abs=1e-3)
    assert scan(films["vfr.mp4"]).fps == pytest.approx(59 / 3.9, rel=1e-3)
    assert scan(films["one.mp4"]).fps == pytest.approx(24)
    with pytest.raises(ValueError):
        info.starts[0] = 1
    assert not scan(films["groups.ts"]).plain and scan(films["h264.mkv"]).plain


def test_scan_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", CONSTANT[:10])
    first = scan(path)
    assert scan(str(path)) is first
    film(path, CONSTANT[:20])
    os.utime(path, ns=(1, 1))
    assert len(scan(path).starts) == 20
    monkeypatch.setattr(video, "MOST_FRAMES", 30)
    monkeypatch.setattr(video, "_scans", video._Memory())
    for i in range(6):
        scan(film(tmp_path / f"{i}.mp4", CONSTANT[:10]))
    assert len(video._scans) == 3 and video._scans.frames == 30


def test_a_film_held_upright_is_turned(tmp_path):
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    for turn in (90, 180, 270):
        path = film(tmp_path / f"{turn}.mp4", CONSTANT[:5], rotate=turn)
        info = scan(path)
        assert (info.height, info.width) == ((80, 64) if turn != 180 else (64, 80))
        index = np.array([0, 3])
        np.testing.assert_array_equal(read_with_decord(info, index), read_with_pyav(info, index))
        assert read_frames(path, index=[3]).shape == (1, info.height, info.width, 3)


def test_frame_at_is_the_last_frame_that_has_appeared():
    rng = np.random.default_rng(0)
    for _ in range(50):
        starts = np.concatenate([[0], np.cumsum(rng.uniform(0.01, 0.2, 20))])
        times = rng.uniform(0, starts[-1] + 0.5, 30)
        for t, found in zip(times, frame_at(starts, times)):
            expected = 0
            for i, s in enumerate(starts):
                if s <= t + video.SLACK:
                    expected = i
            assert found == expected
    milliseconds = np.round(np.arange(60) / 24, 3)
    assert (frame_at(milliseconds, np.arange(60) / 24) == np.arange(60)).all()


def test_without_decord_and_with_a_failing_decord(films, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)  # what an import finds where it is not installed
    assert read_with_decord(scan(films["h264.mp4"]), np.array([3])) is None
    assert number(read_frames(films["h264.mp4"], index=7)[0]) == 7


def test_a_reader_loads_no_linear_algebra(films):
    "decord2 would load every NVIDIA library, nvblas among them, which ends the process at the next matrix product."
    code = f"""
from pathlib import Path
from timet.data.video import read_frames
read_frames({str(films["h264.mp4"])!r}, index=[3])
print("nvblas" in Path("/proc/self/maps").read_text())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_importing_the_data_modules_loads_no_decoder():
    code = "import sys, timet.data.find, timet.data.clips; print([m for m in ('av', 'decord', 'faiss') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _numbers(path: str) -> list[int]:
    return [number(f) for f in read_frames(path, index=[40, 3, 17])]


def test_threads_and_forked_processes_read_alike(films):
    path = str(films["h264.mp4"])
    assert _numbers(path) == [40, 3, 17]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(_numbers, [path] * 12)) == [[40, 3, 17]] * 12
    if "fork" in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(_numbers, [path] * 4) == [[40, 3, 17]] * 4


def rot(path: Path, out: Path, seed: int = 0) -> Path:
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 200
    for place in np.random.default_rng(seed).integers(begin, len(data) - 3000, 60):
        data[place] ^= 0x5A
    out.write_bytes(data)
    return out


def test_rotten_frames_are_refused_by_the_thorough_reader(films, tmp_path):
    path = rot(films["h264.mp4"], tmp_path / "rot.mp4")
    info, refused = scan(path), 0
    for i in range(len(info.starts)):
        try:
            read_with_pyav(info, np.array([i]))
        except VideoError as error:
            refused += 1
            assert "is damaged: frame" in str(error) and "\n" not in str(error)
    assert refused > 0


def broken_files(folder: Path, good: dict[str, Path]) -> dict[str, tuple[Path, str]]:
    def write(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    def sound(path: Path) -> Path:
        with av.open(str(path), "w") as out:
            stream = out.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            out.mux(stream.encode(silence))
            out.mux(stream.encode())
        return path

    fast = folder / "fast.mp4"
    with av.open(str(good["h264.mp4"])) as source, av.open(str(fast), "w", options={"movflags": "+faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to(folder / "gone.mp4")
    mp4, webm, mkv = (good[n].read_bytes() for n in ("h264.mp4", "vp9.webm", "h264.mkv"))
    return {
        "missing": (folder / "none.mp4", "no such file"),
        "broken link": (folder / "link.mp4", "no such file"),
        "zero byte in the name": (folder / "a\0b.mp4", "cannot open"),
        "folder": (folder, "is a folder"),
        "pipe": (folder / "pipe.mp4", "a device or a pipe"),
        "empty": (write("empty.mp4", b""), "is empty"),
        "text": (write("text.mp4", b"hello\n" * 100), "is not a video"),
        "noise": (write("noise.mp4", np.random.default_rng(0).bytes(5000)), "is not a video"),
        "no index": (write("cut.mp4", mp4[: len(mp4) // 2]), "is not a video"),
        "cut, index first": (write("fast_cut.mp4", fast.read_bytes()[: fast.stat().st_size // 2]), "is cut short"),
        "cut webm": (write("cut.webm", webm[: len(webm) // 2]), "is cut short"),
        "cut mkv": (write("cut.mkv", mkv[: len(mkv) // 2]), "is cut short"),
        "sound only": (sound(folder / "song.mp4"), "holds no pictures"),
    }


def test_broken_files_get_one_sentence(films, tmp_path):
    for name, (path, words) in broken_files(tmp_path, films).items():
        with pytest.raises(VideoError) as caught:
            read_frames(path, times=0.0)
        text = str(caught.value)
        assert words in text, (name, text)
        assert "\n" not in text and len(text) < 300


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(times=-1), "0 to 2.50 s"),
        (dict(times=[0, 99]), "0 to 2.50 s"),
        (dict(times=float("nan")), "0 to 2.50 s"),
        (dict(index=60), "0 to 59"),
        (dict(index=-1), "0 to 59"),
        (dict(index=[0.5]), "frame numbers"),
        (dict(index=[]), "frame numbers"),
        (dict(index=[True]), "frame numbers"),
        (dict(index=0, times=0), "got both"),
    ],
)
def test_wrong_requests(films, asked, words):
    with pytest.raises(TimetError, match=words):
        read_frames(films["h264.mp4"], **asked)


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("ending", ["ts", "mpg", "mkv", "webm"])
def test_joined_recordings_go_on_where_the_clock_starts_again(tmp_path, ending):
    kind = {
        "mpg": dict(codec="mpeg2video", options={"bf": "2", "qscale": "2"}),
        "webm": dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    }.get(ending, {})
    parts = []
    for first in (0, 20):
        path = film(tmp_path / f"{first}.{ending}", CONSTANT[:20], first=first, **kind)
        parts.append(path)
    path = joined(tmp_path / f"both.{ending}", *parts)
    info = scan(path)
    assert [number(f) for f in read_frames(path)] == list(range(40))
    np.testing.assert_allclose(info.starts, np.arange(40) / 24, atol=1.5e-3)
    assert info.fps == pytest.approx(24, rel=1e-3) and info.duration == pytest.approx(40 / 24, abs=2e-3)
    order = np.array([39, 3, 25, 3, 19, 20])
    assert [number(f) for f in read_frames(path, index=order)] == order.tolist()
    for start in (0, 13, 20, 33):
        lost: list[int] = []
        assert [number(f) for _, f in video.film_frames(info, start, 40, lost)] == list(range(start, 40)) and not lost


def test_a_clock_that_jumps_ahead_goes_on_only_in_a_stream(tmp_path):
    starts = np.concatenate([CONSTANT[:12], 3600 + CONSTANT[:12]])
    stream, file = (film(tmp_path / f"x.{ending}", starts) for ending in ("ts", "mp4"))
    np.testing.assert_allclose(scan(stream).starts, CONSTANT[:24], atol=1e-3)
    assert [number(f) for f in read_frames(stream)] == list(range(24))
    np.testing.assert_allclose(scan(file).starts, starts, atol=1e-3)


def test_a_picture_that_changes_its_size_is_resized(tmp_path):
    parts = [
        film(tmp_path / f"{n}.ts", CONSTANT[:12], first=12 * n, size=size)
        for n, size in enumerate([(64, 80), (96, 160)])
    ]
    path = joined(tmp_path / "both.ts", *parts)
    frames = read_frames(path)
    assert frames.shape == (24, 64, 80, 3) and [number(f) for f in frames] == list(range(24))
    turned = joined(tmp_path / "other.ts", *reversed(parts))
    assert read_frames(turned).shape == (24, 96, 160, 3)


def test_two_films_in_one_file_are_refused_by_name(tmp_path):
    for ending, kind in {"mp4": {}, "mov": {}, "flv": {}, "wmv": dict(codec="wmv2")}.items():
        one = film(tmp_path / f"one.{ending}", CONSTANT[:8], **kind)
        assert len(scan(one).starts) == 8
        with pytest.raises(VideoError, match="holds a second film behind the first"):
            scan(joined(tmp_path / f"both.{ending}", one, one))
    with av.open(str(tmp_path / "two.ts"), "w") as out:
        streams = [out.add_stream("libx264", rate=24, options={"threads": "1"}) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 64, 80, "yuv420p"
        for i in range(5):
            for stream in streams:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), "rgb24")))
        for stream in streams:
            out.mux(stream.encode())
    with pytest.raises(VideoError, match="holds 2 films, side by side or joined"):
        scan(tmp_path / "two.ts")


def test_mkv_and_ogg_joined_from_different_films_are_refused_by_name(tmp_path):
    for ending, kinds in {
        "mkv": [{}, dict(options={"bf": "2", "profile": "main"})],
        "webm": [dict(codec="libvpx"), dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})],
        "ogv": [dict(codec="libvpx"), dict(codec="libvpx")],
    }.items():
        parts = [film(tmp_path / f"{i}.{ending}", CONSTANT[:20], **kind) for i, kind in enumerate(kinds)]
        assert [len(scan(part).starts) for part in parts] == [20, 20]
        with pytest.raises(VideoError, match="holds a second film behind the first"):
            scan(joined(tmp_path / f"both.{ending}", *parts))


def raw_film(path: Path, frames: np.ndarray, kind: str) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], kind
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, "gray16le" if frame.ndim == 2 else "rgb24")
            out.mux(stream.encode(picture.reformat(format=kind)))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("kind", ["gray16le", "gray10le", "gray12le"])
def test_grey_of_more_than_8_bits_is_refused(tmp_path, kind):
    thermal = np.random.default_rng(0).integers(6700, 7300, (4, 48, 64)).astype(np.uint16)
    path = raw_film(tmp_path / "thermal.mkv", thermal, kind)
    for read in (scan, read_frames):
        with pytest.raises(VideoError, match=rf"is a grey film of more than 8 bits \({kind}\), in which nothing says"):
            read(path)


@pytest.mark.parametrize("kind", ["gray", "yuv420p10le"])
def test_grey_of_8_bits_and_colour_of_10_are_read(tmp_path, kind):
    path = raw_film(tmp_path / "film.mkv", np.stack([numbered(i) for i in range(4)]), kind)
    assert [number(f) for f in read_frames(path)] == list(range(4))


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as film_:
        return [bytes(packet) for packet in film_.demux(video=0) if packet.size]


def test_frames_come_in_order_out_of_an_avi_that_knows_no_timestamps(tmp_path):
    plain = film(
        tmp_path / "b.avi",
        CONSTANT[:40],
        size=(192, 320),
        codec="mpeg4",
        options={"g": "12", "bf": "2", "b_strategy": "0", "qscale": "2"},
    )
    packets, packed, waiting = packets_of(plain), [], []
    for data in packets:  # as DivX and Xvid do it: a frame and the first that is shown before it in one packet
        kind = data[data.index(b"\0\0\1\xb6") + 4] >> 6
        if kind == 2 and waiting == []:
            packed[-1] += data
            waiting = [b"\0\0\1\xb6\x57\x00"]  # "nothing new here"
        elif kind == 2:
            packed.append(data)
        else:
            packed += [*waiting, data]
            waiting = []
    packed += waiting
    assert len(packed) == 40 and sum(len(data) < 10 for data in packed) > 10
    with av.open(str(plain)) as film_, av.open(str(tmp_path / "packed.avi"), "w") as out:
        stream = out.add_stream_from_template(film_.streams.video[0])
        stream.time_base = Fraction(1, 24)
        for i, data in enumerate(packed):
            packet = av.Packet(data)
            packet.dts, packet.pts, packet.time_base, packet.stream = i, i, Fraction(1, 24), stream
            packet.is_keyframe = i % 12 == 0
            out.mux(packet)
    h264 = film(tmp_path / "h264.avi", CONSTANT[:40], options={"bf": "2", "g": "12"}, tick=Fraction(1, 24))
    for path in (plain, tmp_path / "packed.avi", h264):
        info = scan(path)
        assert not info.plain and info.order is not None
        assert [number(f) for f in read_frames(path)] == list(range(40)), path.name
        for i in (0, 1, 11, 12, 13, 30, 39):
            assert number(read_frames(path, index=i)[0]) == i
        lost: list[int] = []
        assert [number(f) for _, f in video.film_frames(info, 15, 40, lost)] == list(range(15, 40)) and not lost
        np.testing.assert_allclose(info.starts, CONSTANT[:40], atol=1e-6)
    h264.write_bytes(h264.read_bytes()[:-500])
    with pytest.raises(VideoError, match=r"is cut short: [0-9,]+ of [0-9,]+ bytes are there"):
        scan(h264)


def test_frames_of_an_avi_are_shown_at_their_own_count(tmp_path):
    plain = film(
        tmp_path / "b.avi",
        CONSTANT[:20],
        size=(192, 320),
        codec="mpeg4",
        options={"g": "12", "bf": "2", "b_strategy": "0", "qscale": "2"},
    )
    packets = packets_of(plain)
    packets.insert(7, b"\0\0\1\xb6\x53\x4f")  # "nothing new here", after frame 6, as Xvid writes it
    with av.open(str(plain)) as film_, av.open(str(tmp_path / "gap.avi"), "w") as out:
        stream = out.add_stream_from_template(film_.streams.video[0])
        for i, data in enumerate(packets):
            packet = av.Packet(data)
            packet.dts = packet.pts = i + 2 * (i > 0)  # the encoder's delay: two empty places after the first frame
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 24), stream, i == 0
            out.mux(packet)
    info = scan(tmp_path / "gap.avi")
    assert [number(f) for f in read_frames(tmp_path / "gap.avi")] == list(range(20))
    np.testing.assert_allclose(info.starts * 24, [*range(7), *range(8, 21)], atol=1e-6)
    assert number(read_frames(tmp_path / "gap.avi", times=7.5 / 24)[0]) == 6


def test_frames_with_one_timestamp_share_its_time(tmp_path):
    path = film(tmp_path / "quick.mkv", np.arange(50) / 2500)  # its clock counts milliseconds
    starts = scan(path).starts
    assert [number(f) for f in read_frames(path)] == list(range(50))
    assert (np.diff(starts) > 0).all() and np.abs(starts - np.arange(50) / 2500).max() < 1.1e-3


def test_a_mirrored_film_is_shown_as_its_matrix_says(tmp_path):
    path = film(tmp_path / "x.mp4", CONSTANT[:4])
    plain, data = read_frames(path), path.read_bytes()
    at = data.index(b"tkhd") + 44
    one = 1 << 16
    ways = {
        (-one, 0, 0, one): plain[:, :, ::-1],
        (one, 0, 0, -one): plain[:, ::-1],
        (-one, 0, 0, -one): plain[:, ::-1, ::-1],
        (0, one, one, 0): plain.swapaxes(1, 2),
        (0, -one, -one, 0): plain.swapaxes(1, 2)[:, ::-1, ::-1],
        (0, one, -one, 0): np.rot90(plain, -1, (1, 2)),
        (0, -one, one, 0): np.rot90(plain, 1, (1, 2)),
    }
    for n, ((a, b, c, d), expected) in enumerate(ways.items()):
        path = tmp_path / f"{n}.mp4"
        matrix = struct.pack(">9i", a, b, 0, c, d, 0, 80 * one, 64 * one, 1 << 30)
        path.write_bytes(data[:at] + matrix + data[at + 36 :])
        info = scan(path)
        assert (info.height, info.width) == expected.shape[1:3]
        np.testing.assert_array_equal(read_frames(path), expected)
        np.testing.assert_array_equal([f for _, f in video.film_frames(info, 0, 4, [])], expected)


def test_slack_is_half_a_frame_at_most():
    for rate in (24, 60, 240, 960, 1000, 2500):
        starts = np.arange(100) / rate
        assert frame_at(starts, starts).tolist() == list(range(100))
        assert frame_at(starts, starts[1:] - 0.6 / rate).tolist() == list(range(99))


def test_a_film_with_sound_that_is_cut_short_is_found(tmp_path):
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as out:
        stream, sound = out.add_stream("libx264", rate=24, options={"threads": "1"}), out.add_stream("aac", rate=8000)
        stream.height, stream.width, stream.pix_fmt = 64, 80, "yuv420p"
        for i in range(48):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), "rgb24")))
            noise = np.random.default_rng(i).uniform(-1, 1, (1, 1024)).astype(np.float32)
            heard = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            heard.sample_rate, heard.pts = 8000, 1024 * i  # three times as long as the pictures: no fault
            out.mux(sound.encode(heard))
        out.mux(stream.encode())
        out.mux(sound.encode())
    assert len(scan(path).starts) == 48
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(VideoError, match="is cut short"):
        scan(path)


def test_a_name_that_is_no_text_is_read(films, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    path.write_bytes(films["h264.mp4"].read_bytes())
    assert number(read_frames(path, index=7)[0]) == 7
