"""Time-tuning: image-pretrained vision transformers watch videos, without labels, and their patch features become semantic.

The dozen names that a user of the library wants first are here and load what they need when they are asked for:

>>> import timet
>>> net = timet.load(timet.samples_dir() / "weights/timet_tiny.safetensors")  # a run folder, a file, a name of timm
>>> film = timet.samples_dir() / "heldout/videos/clip_00.mp4"
>>> images = timet.EvalTransform(96)(timet.read_frames(film, times=[0.0, 0.25, 0.5]))  # (t 3 H W)
>>> tokens = net.tokens(images).detach()  # (t n d)
>>> first = timet.sinkhorn(tokens[0] @ tokens[0, ::18].T, epsilon=5.0)  # every patch to one of 8 prototypes, (n k)
>>> maps = timet.forward_maps(tokens[None], first[None], net.grid(96, 96))  # (1 t-1 n k)
>>> tuple(maps.shape)
(1, 2, 144, 8)

The same names are functions and rooms where both exist: `timet.sinkhorn(scores)` and `from timet.sinkhorn import sinkhorn`.
"""

__version__ = "0.1.0"

import importlib
import os
import signal
import sys
import threading
from types import ModuleType

_FIRST = {
    "load": "backbone:open_backbone",
    "create_backbone": "backbone:create_backbone",
    "samples_dir": "core:samples_dir",
    "find_sources": "data.find:find_sources",
    "read_frames": "data.video:read_frames",
    "EvalTransform": "data.clips:EvalTransform",
    "forward_maps": "feature_forwarder:forward_maps",
    "TimeT": "loss:TimeT",
    "preset_config": "training.config:preset_config",
    "film_strip": "viz.strips:film_strip",
}
_ROOMS = ("sinkhorn", "train", "segment")  # rooms that are called like their function

__all__ = ["__version__", *_FIRST, *_ROOMS]


def __getattr__(name: str):
    "A first name, loaded when it is asked for (PEP 562); a room that is a function as well."
    if name in _FIRST:
        room, _, thing = _FIRST[name].partition(":")
        return getattr(importlib.import_module(f"timet.{room}"), thing)
    if name in _ROOMS:
        return importlib.import_module(f"timet.{name}")
    raise AttributeError(f"module 'timet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _interrupted(number: int, frame: object) -> None:
    os.write(2, b"timet: interrupted\n")
    os._exit(130)


# Ctrl-C while a command is still being imported; `run_command` answers it from then on
_COMMAND = sys.argv[:1] == ["-m"] or os.path.basename((getattr(sys, "argv", None) or [""])[0]).startswith("timet-")
if _COMMAND and threading.current_thread() is threading.main_thread():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


class _Package(ModuleType):
    "Makes the rooms of `_ROOMS` callable as soon as they are imported."

    def __setattr__(self, name: str, value: object) -> None:
        if name in _ROOMS and type(value) is ModuleType:
            value.__class__ = type("Room", (ModuleType,), {"__call__": staticmethod(getattr(value, name))})
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
