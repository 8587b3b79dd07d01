"""What the tests of the data share."""

import json
from pathlib import Path

import pytest
from trees import frames, masks, meta, video


@pytest.fixture
def sets(tmp_path) -> Path:
    "The usual sets, two sequences each."
    root = tmp_path / "sets"
    for name in ("dog", "swan"):
        for part, values in (("DAVIS16", [0, 255]), ("DAVIS17", [0, 1, 2])):
            frames(root / part / "JPEGImages/480p" / name, range(4))
            masks(root / part / "Annotations/480p" / name, range(4), values, mode="L" if values[-1] == 255 else "P")
        frames(root / "DAVIS17/JPEGImages/Full-Resolution" / name, range(4), size=(48, 80))
        masks(root / "DAVIS17/Annotations/Full-Resolution" / name, range(4), size=(48, 80))
        for part in ("train", "valid"):
            frames(root / "YTVOS" / part / "JPEGImages" / name, range(0, 20, 5))
            masks(root / "YTVOS" / part / "Annotations" / name, [0, 15] if part == "train" else [0], [0, 1, 2])
        frames(root / "YTVOS_nested/train1/JPEGImages/all" / name, range(0, 20, 5))
        masks(root / "YTVOS_nested/train1/Annotations/all" / name, [5], [0, 1, 2])
        frames(root / "MOSE/train/JPEGImages" / name, range(4))
        masks(root / "MOSE/train/Annotations" / name, range(4))
        frames(root / "Kinetics/walking dogs" / name, range(1, 5), "img_{:05d}.jpg")
        video(root / "videos_tree" / name / "clip.mp4")
    table = {"dog": {1: "dog", 2: "person"}, "swan": {1: "person", 2: "bird"}}
    meta(root / "DAVIS16/meta.json", {"dog": {1: "dog"}, "swan": {1: "bird"}})
    meta(root / "YTVOS/train/meta.json", table)
    (root / "YTVOS/valid/meta.json").write_text(json.dumps({"videos": {"dog": {"objects": {"1": {"frames": []}}}}}))
    meta(root / "YTVOS_nested/train1/meta.json", table)
    (root / "DAVIS16/ImageSets/480p").mkdir(parents=True)
    (root / "DAVIS16/ImageSets/480p/val.txt").write_text(
        "/JPEGImages/480p/swan/00000.jpg /Annotations/480p/swan/00000.png\n/JPEGImages/480p/swan/00001.jpg x\n"
    )
    (root / "DAVIS17/ImageSets/2017").mkdir(parents=True)
    (root / "DAVIS17/ImageSets/2016").mkdir(parents=True)
    (root / "DAVIS17/ImageSets/2017/val.txt").write_text("swan\n")
    (root / "DAVIS17/ImageSets/2016/val.txt").write_text("dog\n")
    for v in ("P01_01", "P01_103"):
        frames(root / "EPIC" / v[:3] / v, range(1, 5), "frame_{:010d}.jpg")
        frames(root / "VISOR/JPEGImages/480p" / f"{v}_seq_00001", [140, 200, 330], v + "_frame_{:010d}.jpg")
        masks(root / "VISOR/Annotations/480p" / f"{v}_seq_00001", [140, 330], pattern=v + "_frame_{:010d}.png")
    return root
