"""What several tests share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# where a test names no device, the CPU is meant: a machine with a GPU would compute in bf16 instead
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


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


@pytest.fixture
def quick(tmp_path: Path) -> Callable[[str, list[str], int], None]:
    "Run a command in a process of its own; see how it ends, and that it has loaded nothing heavy by then."

    def run(module: str, line: list[str], status: int) -> None:
        heavy = "torch torchvision timm faiss scipy matplotlib accelerate av decord tensorboard lightly".split()
        code = f"""if True:
            import sys
            from {module} import main
            try:
                main({line!r})
            finally:
                print("heavy:", sorted(set(sys.modules) & set({heavy!r})))
        """
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        assert "heavy: []" in done.stdout

    return run
