"""What the shipped time-tuned network keeps on real video, beside its random start: `python benchmarks/before_after.py DAVIS VIDEOS`.

For every clip at the paths: the share of patches that are in the same one of six clusters half a second later along the optical
flow, over the clip's first four seconds, as it is and beyond chance (`timet.lab.compare`). Prints a table with a mean for each path and
writes it to `benchmarks/results/before_after.md`. Needs OpenCV (the extra `flow`).
"""

import argparse
from pathlib import Path

import numpy as np

from timet.backbone import load_backbone
from timet.core import TimetError, progress, samples_dir
from timet.data.find import find_sources
from timet.lab.compare import compare, read_clip, start_of

HERE = Path(__file__).resolve().parent
CLUSTERS, LATER = 6, 0.5


def row(name: str, values: np.ndarray) -> str:
    "A line of the table, from shares between 0 and 1."
    return f"| {name} | {' | '.join(f'{100 * v:.0f} %' for v in values)} |"


def main() -> None:
    "Compare start and tuned network on every clip, print and keep the table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+", help="folders of videos or of frame folders")
    args = parser.parse_args()
    tuned = load_backbone(samples_dir() / "weights/timet_tiny.safetensors", tuned_blocks=0)
    start = start_of(tuned)
    lines, better = (
        ["| clip | before | after | before, beyond chance | after, beyond chance |", "|---|---|---|---|---|"],
        [],
    )
    for path in args.paths:
        found, values = find_sources(path), []
        for source in progress(found, path.name, "clip"):
            try:
                both = compare(start, tuned, read_clip(source), names=("before", "after"), clusters=(CLUSTERS,))
            except TimetError as error:
                print(f"{source.name} is left out: {error}")
                continue
            values.append(
                [np.nanmean(both.kept(CLUSTERS, LATER, adjusted)[i]) for adjusted in (False, True) for i in (0, 1)]
            )
            lines.append(row(source.name, values[-1]))
        lines.append(row(f"**{found.layout}: mean of {len(values)}**", np.mean(values, 0)))
        better += [(after > before, after_ > before_) for before, after, before_, after_ in values]
    rose, beyond = np.sum(better, 0)
    lines += ["", f"The share rose in {rose} of {len(better)} clips, and in {beyond} once chance is taken off."]
    text = "\n".join(
        ["# Before and after on real video", "", "`python benchmarks/before_after.py DAVIS VIDEOS`", "", *lines, ""]
    )
    print(text)
    (HERE / "results/before_after.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
