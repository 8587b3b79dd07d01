"Waits of the host and mixed-up devices, counted on a card that is not there."

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PLAIN = "step train --clips 4"
RUN = Path(__file__).parent / "pretend_card/run.sh"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None or torch.version.cuda is None,
    reason="the card that is not there needs Linux, a C compiler and a PyTorch that knows CUDA",
)


@functools.cache
def counted(words: str) -> dict[str, dict[str, Any]]:
    "What `count.py` counts, by the name of the case up to its first comma; it fails where devices are mixed up."
    command = ["bash", str(RUN), "count.py", *words.split(), "--json"]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=85, env=environment)
    assert done.stdout.startswith("["), done.stderr[-2000:]
    cases = {case["name"].split(",")[0]: case for case in json.loads(done.stdout)}
    assert done.returncode == 0, {name: case["failed"] or case["mixed"] for name, case in cases.items()}
    return cases


def times(case: dict[str, Any], what: str) -> int:
    "How often in all."
    return sum(row["times"] for row in case[what])


@pytest.mark.parametrize("which", ["the first", "a later one"])
def test_a_step_never_waits(which):
    case = counted(PLAIN)[f"step: {which}"]
    assert case["flops"] > 1e11  # all of it was there
    assert (case["waits"], case["blocking"]) == ([], [])


def test_a_train_step_waits_once():
    case = counted(PLAIN)["train: a later train_step"]
    assert case["flops"] > 1e11
    assert times(case, "waits") <= 1, case["waits"]


def test_a_train_step_copies_nothing_that_has_to_be_waited_for():
    assert counted(PLAIN)["train: a later train_step"]["blocking"] == []


def test_a_line_of_the_log_waits_for_nothing():
    case = counted(PLAIN)["train: what a line of the log asks beside"]
    assert case["operations"] > 10 and (case["waits"], case["blocking"]) == ([], [])


def test_clips_are_coloured_on_the_card_without_a_wait():
    case = counted("input --clips 12")["input: a later batch"]
    assert case["operations"] > 50 and (case["waits"], case["blocking"], case["mixed"]) == ([], [], [])


def test_pretraining_never_waits():
    pytest.importorskip("lightly")
    case = counted("pretrain --clips 8")["pretrain: a later step"]
    assert case["flops"] > 1e10
    assert (case["waits"], case["blocking"], case["mixed"]) == ([], [], [])
    assert 50 < case["parts"]["views"]["operations"] < 200  # whatever the batch: one sampling for all crops of a size


def test_teacher_queue_and_parts_are_on_the_same_card():
    (case,) = counted("step --clips 4 --ema 0.99 --queue 1 --accumulate 4 --steps 1").values()
    assert case["mixed"] == []
    assert case["parts"]["prototypes, teacher"]["operations"] > 3  # one for all weights of the teacher
    assert case["waits"] == []
