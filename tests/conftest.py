"""What several tests share."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_seed() -> None:
    "Every test starts from the same random state, whatever ran before it."
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    "A folder of real clips (`davis16/`, `videos/`), named by the variable TIMET_CLIPS; absent, the test is skipped."
    folder = os.environ.get("TIMET_CLIPS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TIMET_CLIPS names no folder of real clips")
    return Path(folder)
