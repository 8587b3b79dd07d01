"""What a user can get wrong, and the one sentence each mistake gets: wanted, got, what to do."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from timet.backbone import create_backbone, export_backbone, load_backbone
from timet.core import TimetError, atomic_write, pick_device, pick_precision
from timet.data.clips import clip_index
from timet.data.find import find_sources
from timet.data.source import read_mask
from timet.data.video import read_frames, scan
from timet.eval.clustering import evaluate
from timet.eval.kmeans import kmeans
from timet.eval.score import confusion
from timet.feature_forwarder import forward_maps
from timet.loss import TimeT
from timet.sinkhorn import sinkhorn
from timet.training.config import preset_config, read_command

TINY = "timet_tiny_patch8_96"


def film(path: Path, frames: int = 4, size: int = 32) -> Path:
    "A small H.264 video."
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=24, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for i in range(frames):
            picture = np.full((size, size, 3), 40 * i % 256, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def sound(path: Path) -> Path:
    "A file with sound and no picture."
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        samples = np.zeros((1, 1024), np.float32)
        for i in range(8):
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.rate, frame.pts = 8000, 1024 * i
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def text(path: Path, words: str = "this is no video") -> Path:
    "A text file under any name."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words)
    return path


def cut(path: Path) -> Path:
    "A video of which the first third arrived."
    whole = film(path, frames=12).read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    return path


def folder(root: Path, frames: int = 3, masks: tuple[int, int] | None = None) -> Path:
    "A sequence in the form of DAVIS, with masks of a size of their own."
    for i in range(frames):
        for kind, size, ending in (("JPEGImages", (32, 32), "jpg"), ("Annotations", masks, "png")):
            if size:
                path = root / kind / "480p" / "dog" / f"{i:05d}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                mode = "RGB" if ending == "jpg" else "L"
                Image.new(mode, size).save(path)
    return root


class Trap:
    "An object whose unpickling would call a function."

    def __reduce__(self) -> tuple:
        return print, ("this must never run",)


def pickled(path: Path) -> Path:
    "A checkpoint that would run code when it is opened."
    buffer = io.BytesIO()
    torch.save({"model": Trap()}, buffer, pickle_module=pickle)
    path.write_bytes(buffer.getvalue())
    return path


def other_network(path: Path) -> Path:
    "The weights of a network of another width, as an export of ours."
    export_backbone(create_backbone(TINY, weights="none"), path)
    return path


def halves(path: Path) -> Path:
    "A state dict from which a key is missing and to which another was added."
    state = create_backbone(TINY, weights="none").model.state_dict()
    state["surprise"] = state.pop("blocks.0.norm1.weight")
    save_file(state, path)
    return path


def command(*words: str) -> Callable[[Path], object]:
    "The settings that a command line of `timet.train` asks for."
    return lambda _: read_command(list(words))


def train(*words: str) -> Callable[[Path], object]:
    "A run of `timet.train`; `{}` stands for the test's own folder."

    def run(tmp: Path) -> None:
        from timet.train import train

        train(read_command(["--preset", "demo", *(w.format(tmp) for w in words)]))

    return run


def setting(**values: object) -> Callable[[Path], object]:
    "A run's settings with these values."
    return lambda _: preset_config("demo", **values)


def model(**values: object) -> TimeT:
    "A small model with these options."
    return TimeT(create_backbone(TINY, weights="none"), num_prototypes=8, head=(16, 8), **values)


tokens = torch.randn(1, 3, 16, 8)
maps = torch.rand(1, 16, 4)
labels = np.zeros((2, 3, 8, 8), np.int64)

WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    # name: (what the user does, words of the sentence, separated by |)
    "path that is not there": (lambda t: find_sources(t / "nowhere"), "cannot find|nowhere|give a video"),
    "empty folder": (lambda t: find_sources(t), "holds no videos|give another folder"),
    "folder of text files": (lambda t: find_sources(text(t / "a/notes.txt").parent), "holds no videos"),
    "one picture as a video": (lambda t: find_sources(text(t / "a.jpg")), "one picture|several"),
    "frame rate below zero": (lambda t: find_sources(folder(t), fps=-1), "fps must be|above 0|-1"),
    "meta.json that is no JSON": (lambda t: find_sources(text(folder(t) / "meta.json", "{").parent), "meta.json|JSON"),
    "video that is not there": (lambda t: scan(t / "a.mp4"), "cannot open|a.mp4|check the path"),
    "folder as a video": (lambda t: scan(t), "is a folder"),
    "empty video": (lambda t: scan(text(t / "a.mp4", "")), "is empty|0 bytes"),
    "text as a video": (lambda t: scan(text(t / "a.mp4")), "a.mp4|not a video"),
    "sound without pictures": (lambda t: scan(sound(t / "a.mp4")), "no pictures|video stream"),
    "video cut short": (lambda t: read_frames(cut(t / "a.mp4")), "a.mp4|again"),
    "time past the end": (lambda t: read_frames(film(t / "a.mp4"), times=[99.0]), "times must lie|99"),
    "frame past the end": (lambda t: read_frames(film(t / "a.mp4"), index=[4]), "index must|0 to 3"),
    "times and numbers": (lambda t: read_frames(film(t / "a.mp4"), times=[0], index=[0]), "got both"),
    "mask as JPEG": (lambda t: read_mask(folder(t) / "JPEGImages/480p/dog/00000.jpg"), "JPEG|PNG"),
    "masks of another size": (
        lambda t: tokens_and_masks(folder(t, masks=(16, 20))),
        "masks of|20 x 16|32 x 32",
    ),
    "masks where there are none": (lambda t: find_sources(folder(t))[0].masks([0]), "has no masks"),
    "clip of no frames": (
        lambda t: clip_index(np.arange(9) / 24, 0, rng=np.random.default_rng(0)),
        "at least 1 frame|0",
    ),
    "delta_t below zero": (
        lambda t: clip_index(np.arange(9) / 24, 4, delta_t=-0.5, rng=np.random.default_rng(0)),
        "delta_t|-0.5",
    ),
    "unknown sampling": (
        lambda t: clip_index(np.arange(9) / 24, 4, sampling="dense", rng=np.random.default_rng(0)),
        "sampling|regular|dense",
    ),
    "unknown backbone": (lambda t: create_backbone("vit_smal_patch16_224", weights="none"), "vit_small_patch16_224"),
    "backbone without dense tokens": (
        lambda t: create_backbone("swin_tiny_patch4_window7_224", weights="none"),
        "not supported",
    ),
    "weights that are not there": (lambda t: create_backbone(TINY, weights=t / "a.pth"), "a.pth|none or a file"),
    "weights of another network": (
        lambda t: create_backbone(
            "vit_small_patch16_224", weights=other_network(t / "a.safetensors").with_suffix(".safetensors")
        ),
        "vit_small_patch16_224",
    ),
    "weights with a missing key": (
        lambda t: create_backbone(TINY, weights=halves(t / "a.safetensors")),
        "blocks.0.norm1.weight|surprise|nothing was loaded",
    ),
    "weights that would run code": (lambda t: create_backbone(TINY, weights=pickled(t / "a.pth")), "run code"),
    "text as weights": (lambda t: create_backbone(TINY, weights=text(t / "a.pth")), "a.pth"),
    "hub weights of our own network": (lambda t: create_backbone(TINY, weights="hub"), "--weights"),
    "export without its JSON": (lambda t: load_backbone(halves(t / "a.safetensors")), "json|missing"),
    "more tuned blocks than there are": (
        lambda t: create_backbone(TINY, weights="none", tuned_blocks=9),
        "0 to 5|9",
    ),
    "grid that does not divide": (
        lambda t: create_backbone(TINY, weights="none").tokens(torch.zeros(1, 3, 97, 96)),
        "97 x 96|divide",
    ),
    "tokens of no clip": (lambda t: forward_maps(tokens[0], maps, (4, 4)), "b t n d"),
    "grid of another size": (lambda t: forward_maps(tokens, maps, (4, 5)), "grid|16"),
    "maps of another batch": (lambda t: forward_maps(tokens, maps.repeat(2, 1, 1), (4, 4)), "maps|b=1"),
    "radius below zero": (lambda t: forward_maps(tokens, maps, (4, 4), radius=-1), "radius|-1"),
    "top-k of nothing": (lambda t: forward_maps(tokens, maps, (4, 4), topk=0), "topk|0"),
    "temperature zero": (lambda t: forward_maps(tokens, maps, (4, 4), temperature=0.0), "temperature|0"),
    "unknown order": (lambda t: forward_maps(tokens, maps, (4, 4), order="mask_last"), "order|mask_first"),
    "NaN in tokens": (lambda t: forward_maps(tokens * float("nan"), maps, (4, 4)), "finite|NaN"),
    "NaN in scores": (lambda t: sinkhorn(torch.full((4, 2), float("nan"))), "NaN"),
    "epsilon zero": (lambda t: sinkhorn(torch.zeros(4, 2), epsilon=0.0), "epsilon|above 0"),
    "NaN in a frame": (lambda t: model()(torch.full((1, 4, 3, 32, 32), float("nan"))), "NaN|frame 0 of clip 0"),
    "clip of one frame": (lambda t: model()(torch.zeros(1, 1, 3, 32, 32)), "at least 2 frames|longer"),
    "clip of bytes": (lambda t: model()(torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)), "floats|uint8"),
    "unknown thing to forward": (lambda t: model(forwarded="flow"), "forwarded|sk|flow"),
    "unknown head": (lambda t: TimeT(create_backbone(TINY, weights="none"), head="deep"), "head|released|deep"),
    "more clusters than tokens": (lambda t: kmeans(np.random.rand(8, 4).astype("f4"), 9, seed=0), "9|8"),
    "labels out of range": (lambda t: confusion(np.array([5]), np.array([0]), 3, 2), "0..2|5"),
    "maps and masks of other sizes": (lambda t: confusion(np.zeros(4, int), np.zeros(5, int), 3, 2), "4|5"),
    "unknown protocol": (
        lambda t: evaluate(np.random.rand(2, 3, 16, 4).astype("f4"), labels, "video", grid=(4, 4)),
        "protocol|frame|video",
    ),
    "tokens and masks of other clips": (
        lambda t: evaluate(np.random.rand(1, 3, 16, 4).astype("f4"), labels, "clip", grid=(4, 4)),
        "masks",
    ),
    "unknown preset": (command("--preset", "fast"), "--preset must be|demo|fast"),
    "batch of nothing": (setting(batch_size=0), "batch_size must be|0"),
    "negative learning rate": (setting(lr_head=-1.0), "lr_head must be|-1"),
    "one prototype": (setting(num_prototypes=1), "num_prototypes must be|1"),
    "parts that do not divide a batch": (setting(batch_size=4, accumulate=3), "multiple|4 and 3"),
    "resume of nothing": (setting(resume=True), "--resume needs"),
    "resume of a folder that is no run": (lambda t: read_command(["--resume", str(t)]), "not the folder of a run"),
    "unknown device": (lambda t: pick_device("gpu"), "device must be|gpu"),
    "unknown precision": (lambda t: pick_precision("int8", torch.device("cpu")), "precision must be|int8"),
    "folder that cannot be written": (
        lambda t: atomic_write(text(t / "file") / "below/result.json").__enter__(),
        "cannot write|another folder",
    ),
    "run folder below a file": (train("--out", "{}/film.mp4/run", "--data", "{}/film.mp4"), "cannot|film.mp4"),
    "run folder that holds something": (train("--out", "{}", "--data", "{}/film.mp4"), "empty folder|--out"),
    "data that is not there": (train("--out", "{}/run", "--data", "{}/nowhere"), "cannot find|nowhere"),
    "nothing but broken videos": (
        train("--out", "{}/run", "--data", "{}/broken", "--no-eval", "--batch-size", "1"),
        "broken",
    ),
    "image size that does not divide": (train("--out", "{}/run", "--data", "{}/film.mp4", "--image-size", "97"), "97"),
}


def tokens_and_masks(tmp: Path) -> None:
    "Ask for tokens and masks of sequences whose masks have another size than their frames."
    from timet.eval.tokens import extract_tokens

    extract_tokens(create_backbone(TINY, weights="none"), find_sources(tmp), num_frames=2, image_size=32, mask_size=32)


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    action, words = WRONG[name]
    if "film.mp4" in repr(action.__closure__ and [c.cell_contents for c in action.__closure__]):
        film(tmp_path / "film.mp4")
    if name == "nothing but broken videos":
        text(tmp_path / "broken" / "a.mp4")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(TimetError) as caught:
        action(tmp_path)
    sentence = str(caught.value)
    for word in words.split("|"):
        assert word.lower() in sentence.lower(), sentence
    assert "\n" not in sentence and len(sentence) < 500, sentence
    assert "this must never run" not in capsys.readouterr().out
    assert set(before) <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "words", [["--no-such-flag", "1"], ["--epochs", "many"], ["--forwarded", "flow"], ["--preset", "fast"]]
)
def test_flags(words: list[str], capsys: pytest.CaptureFixture) -> None:
    "A wrong flag or value names itself, on stderr, with status 2 and without a traceback."
    from timet.train import main

    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in said.out + said.err
    assert words[0].lstrip("-").split("-")[0] in said.err + said.out


def test_count() -> None:
    assert len(WRONG) >= 40
    assert json.dumps(sorted(WRONG))
