"""Pretraining on a machine that reaches no network, takes 64 MB at a time and is gone afterwards.

Here: what has to travel beside the tree (22 MB), below `away/`, which git ignores:

    mkdir -p away/photos && cp TRAIN.zip OTHERS.zip away/photos       # 43 and 2 MB, for 36,000 photographs of 64 x 64
    python tools/away.py wheels --python 3.12                         # away/wheels, 19 MB: what such a machine lacks

Tree and photographs are 64 MB, so they go first, with any short command, and `away/wheels` second; what was carried stays while the
machine is held. Encoding the photographs anew saves nothing: they are WebP files of 1.2 kB already.

There, in one command of ten minutes:

    python -m pip install -q --no-index --no-deps --target away/extra away/wheels/*.whl
    PYTHONPATH=away/extra python -m timet.pretrain away/photos/TRAIN.zip --check away/photos/OTHERS.zip \
        --minutes 7 --output-dim 2048 --hidden-dim 512 --out runs/away --about "what the photographs are"
    python tools/away.py leave runs/away $OUT                         # weights, card, log, and the state in parts of 15 MB

A second machine goes on from there, with `away/left` carried, which is what the first one left:

    python tools/away.py return away/left runs/away
    PYTHONPATH=away/extra python -m timet.pretrain away/photos/TRAIN.zip --resume runs/away --minutes 7

The state that travels keeps the student as it is and rounds the teacher and AdamW's moments to bf16: a run that goes on from it is the
same run to rounding, and no longer bit by bit.
"""

import argparse
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from timet.core import TimetError, atomic_write
from timet.pretraining.loop import LAST
from timet.run.command import run_command
from timet.run.folder import load_checkpoint

AWAY = Path("away")
PART = 15_000_000
# what a machine with torch, torchvision, timm and accelerate lacks; frames are JPEG files, so no decoder of films
WHEELS = (
    "annotated-types==0.7.0", "tyro==1.0.17", "docstring-parser==0.18.0", "typeguard==4.6.1", "faiss-cpu==1.15.1",
    "lightly==1.6.0",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")


def fetch_wheels(python: str) -> Path:
    "What pip finds for the machine's Python."
    target = AWAY / "wheels"
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(target), "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, *(word for p in PLATFORMS for word in ("--platform", p)), *WHEELS]
    if subprocess.run(command).returncode:
        raise TimetError("pip could not fetch the wheels; its own words are above")
    return target


def lighten(state: dict[str, Any]) -> dict[str, Any]:
    "A checkpoint whose teacher and moments are bf16; what is loaded from it is fp32 again."
    half = lambda x: x.to(torch.bfloat16) if torch.is_tensor(x) and x.numel() > 1 else x  # noqa: E731
    slow = ("teacher.", "teacher_head.", "patches.teacher_head.")
    distiller = {name: half(x) if name.startswith(slow) else x for name, x in state["distiller"].items()}
    moments = {i: {name: half(x) for name, x in one.items()} for i, one in state["optimizer"]["state"].items()}
    return {**state, "distiller": distiller, "optimizer": {**state["optimizer"], "state": moments}}


def leave(run: Path, out: Path) -> Path:
    "What a run has made, in parts that travel."
    state = lighten(load_checkpoint(run / LAST))
    whole = io.BytesIO()
    torch.save(state, whole)
    out.mkdir(parents=True, exist_ok=True)
    data = whole.getvalue()
    for i in range(0, len(data), PART):
        (out / f"last.pt.{i // PART:02d}").write_bytes(data[i : i + PART])
    with zipfile.ZipFile(out / "run.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(run.rglob("*")):
            if file.is_file() and "checkpoints" not in file.parts and not file.name.startswith("."):
                archive.write(file, file.relative_to(run).as_posix())
    return out


def bring_back(left: Path, run: Path) -> Path:
    "The run folder again, from what was left."
    parts = sorted(left.glob("last.pt.*"))
    if not parts or not (left / "run.zip").exists():
        raise TimetError(
            f"{left} must hold run.zip and last.pt.00, last.pt.01 ..., as `leave` writes them; carry it whole"
        )
    if run.exists():
        raise TimetError(f"{run} is there; name a new folder")
    with zipfile.ZipFile(left / "run.zip") as archive:
        archive.extractall(run)
    with atomic_write(run / LAST) as part:
        part.write_bytes(b"".join(p.read_bytes() for p in parts))
    return run


def main() -> None:
    "Read the command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(required=True)
    wheels = actions.add_parser("wheels")
    wheels.add_argument("--python", default="3.12")
    wheels.set_defaults(run=lambda a: fetch_wheels(a.python))
    for name, action in (("leave", leave), ("return", bring_back)):
        one = actions.add_parser(name)
        one.add_argument("source", type=Path)
        one.add_argument("target", type=Path)
        one.set_defaults(run=lambda a, action=action: action(a.source, a.target))
    args = parser.parse_args()
    run_command(lambda: print(args.run(args)), "tools/away.py")


if __name__ == "__main__":
    main()
