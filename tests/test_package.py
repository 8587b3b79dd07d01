"""What `import timet` gives: a docstring that runs, a version, and first names that load nothing before they are used."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import timet

HEAVY = ("torch", "timm", "faiss", "matplotlib", "scipy", "accelerate", "numpy", "tyro")


def loaded(code: str) -> list[str]:
    "The heavy modules that a fresh Python has loaded after some code."
    code = f"import sys; {code}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_importing_loads_nothing() -> None:
    assert loaded("import timet; timet.__version__, dir(timet)") == []


def test_the_docstring_runs() -> None:
    "The example of the package is what the package does."
    found = doctest.testmod(timet)
    assert found.attempted >= 8 and found.failed == 0


def test_every_first_name_is_there() -> None:
    for name in timet.__all__:
        assert getattr(timet, name) is not None and name in dir(timet)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = timet.tarin


def test_a_room_is_called_like_its_function() -> None:
    "Whichever was imported first."
    from timet.sinkhorn import sinkhorn

    scores = torch.rand(6, 2)
    assert torch.equal(timet.sinkhorn(scores), sinkhorn(scores))
    assert timet.sinkhorn.sinkhorn is sinkhorn and timet.train.train is not None and callable(timet.segment)


COMMANDS = ["train", "evaluate", "segment", "reproduce", "pretrain", "data", "samples"]
COMMANDS += [f"eval.{name}" for name in ("image", "probe", "foreground", "incontext", "forwarding")]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command: str) -> None:
    "A question is answered before PyTorch is there."
    code = (
        f"import runpy; sys.argv = ['x', '--help']\ntry:\n    runpy.run_module('timet.{command}', run_name='__main__')"
    )
    code = f"import sys\n{code}\nexcept SystemExit:\n    pass\nprint(); print(*(m for m in {HEAVY[:6]} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--help" in done.stdout and done.stdout.splitlines()[-1].split() == []


def test_nothing_of_the_workshop_is_needed_to_run():
    "What writes and tests the lessons is no requirement of the package."
    tools = re.compile(r"^\s*(?:from|import) (fastcore|nbdev|execnb|jupytext|nbclient|pytest|ruff)\b", re.M)
    found = {f.name: tools.findall(f.read_text()) for f in Path(timet.__file__).parent.rglob("*.py")}
    assert not any(found.values()), {name: words for name, words in found.items() if words}
