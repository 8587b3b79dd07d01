"""Small trees of frames, masks and films, laid out as the downloads are."""

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (24, 40)


def picture(n: int, size=SIZE) -> np.ndarray:
    pixels = np.full((*size, 3), 60, dtype=np.uint8)
    pixels[:, : n % 40] = 200
    return pixels


def frames(folder: Path, numbers, pattern="{:05d}.jpg", size=SIZE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        Image.fromarray(picture(n, size)).save(folder / pattern.format(n))
    return folder


def ids(values, size=SIZE) -> np.ndarray:
    "A mask of upright stripes, one a value."
    return np.repeat(np.resize(np.array(values), size[1])[None], size[0], axis=0)


def masks(folder: Path, numbers, values=(0, 1), pattern="{:05d}.png", mode="P", size=SIZE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        mask = Image.fromarray(ids(values, size).astype(np.uint8), mode="L")
        if mode == "P":
            palette = mask
            mask = Image.new("P", (size[1], size[0]))
            mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
            mask.putdata(list(palette.tobytes()))
        mask.save(folder / pattern.format(n))
    return folder


def video(path: Path, count=12, noisy=False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24, options={"threads": "1", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for n in range(count):
            noise = np.random.default_rng(n).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise if noisy else picture(n), "rgb24")))
        out.mux(stream.encode())
    return path


def meta(path: Path, table: dict[str, dict[int, str]], **more) -> Path:
    videos = {v: {"objects": {str(i): {"category": c, "frames": []} for i, c in o.items()}} for v, o in table.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos} | more))
    return path
