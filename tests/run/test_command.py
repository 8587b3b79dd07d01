"""What every command has in common: streams of ASCII, readers that leave, memory, a home that is not there, Ctrl-C at any time."""

import io
import os
import pwd
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from timet.core import TimetError, atomic_write, environment_number, leftovers
from timet.data.frames import cache_folder
from timet.run.command import command, run_command


def child(code: str, **options: object) -> subprocess.CompletedProcess:
    "Python in a process of its own, with the imports of this file's commands."
    start = "import sys\nfrom timet.run.command import run_command\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, timeout=60, check=False, **options)


def test_ascii_is_enough() -> None:
    "A table with ±, the blocks of a bar, an accent and a file name that is no text: all the words, and status 0."
    code = r"run_command(lambda: [print('35.4 ± 0.2 │ ██▌', 'é', 'a\udcff.mp4', file=f) for f in (sys.stdout, sys.stderr)], 'demo')"
    done = child(code, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout == done.stderr == rb"35.4 +- 0.2 | ### \xe9 a\udcff.mp4" + b"\n"


@pytest.mark.parametrize(("lasting", "status"), [(True, 0), (False, 141)])
def test_a_reader_that_leaves(lasting: bool, status: int, tmp_path: Path) -> None:
    "`| tee` dies: a command that works towards files goes on to its end, one that only prints has nothing left to do."
    code = f"""import time
def job():
    for i in range(40):
        print('x' * 5000, flush=True); print('y' * 5000, file=sys.stderr, flush=True); time.sleep(0.01)
    open({str(tmp_path / "done")!r}, 'w').close()
run_command(job, 'demo', lasting={lasting})"""
    line = [sys.executable, "-c", "import sys\nfrom timet.run.command import run_command\n" + code]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == status and (tmp_path / "done").exists() == lasting


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "demo: there is not enough memory; take smaller batches"),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes."), "for 4.0 GB more"),
     (OSError(36, "File name too long", "a" * 5000), "File name too long"),
     (PermissionError(13, "Permission denied", "/root/x"), "cannot use /root/x: Permission denied"),
     (RuntimeError("Could not determine home directory."), "write paths without ~")],
)  # fmt: skip
def test_what_the_system_refuses_is_one_sentence(error: Exception, words: str, capsys: pytest.CaptureFixture) -> None:
    def job() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(job, "demo")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in said and said.count("\n") == 1 and len(said) < 400


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    "And a Ctrl-C that a library has wrapped is a Ctrl-C."

    def fault() -> None:
        raise RuntimeError("shapes differ")

    def wrapped() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            raise ImportError("cannot import name") from stop

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_command(fault, "demo")
    with pytest.raises(SystemExit) as stop:
        run_command(wrapped, "demo")
    assert stop.value.code == 130


def test_ctrl_c_while_a_command_is_imported(tmp_path: Path) -> None:
    "Before `main` has begun, by a file that stands in the way of an import: status 130, and no traceback."
    (tmp_path / "tyro.py").write_text("")
    (tmp_path / "annotated_types.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "timet.train"], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert done.returncode == 130 and done.stderr == "timet: interrupted\n" and time.monotonic() - begun < 30
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    "A user without a name and without HOME: the flags that name a folder, and the variable."

    def nobody(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "TIMET_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(TimetError, match=r"no home folder .*--cache or --frame-cache, or in the variable TIMET_CACHE"):
        cache_folder()
    monkeypatch.setenv("TIMET_CACHE", "/kept")
    assert cache_folder() == Path("/kept")


@pytest.mark.parametrize("said", ["nan", "inf", "-1", "1e10", "much", "1e400", "9" * 5000])
def test_numbers_of_the_environment(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for whole in (False, True):
        monkeypatch.setenv("TIMET_TEST", said)
        with pytest.raises(TimetError, match=r"the variable TIMET_TEST must be a (whole )?number from 0 to 1e"):
            environment_number("TIMET_TEST", 1, whole=whole)


@dataclass(frozen=True)
class Config:
    "A command."

    clusters: int = 3  # How many


def test_one_sentence_for_what_cannot_be_read(capsys: pytest.CaptureFixture) -> None:
    main = command(print, Config, "timet.demo")
    for line, words in [
        (["--clusters", "abc"], "timet.demo: --clusters must be a whole number, got 'abc'; "),
        (["--cluster", "3"], "timet.demo: there is no option --cluster; perhaps you meant --clusters; "),
        (["--clusters"], "timet.demo: missing value for argument '--clusters'"),
        (["x"], "timet.demo: nobody knows what to do with x; "),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(line)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith(words) and said.count("\n") == 1
        assert said.endswith("; python -m timet.demo --help names every option\n")


def test_a_write_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    "Of the same file, and not what another process is just writing, nor files that are called alike."
    for name in (".a-x7k2p9qa.json", ".a-mine.json", ".b-x7k2p9qa.json", ".a-november.json"):
        (tmp_path / name).write_text("half")
    with atomic_write(tmp_path / "a.json") as first:
        with atomic_write(tmp_path / "a.json") as second:
            second.write_text("2")
        assert first.exists() and leftovers(tmp_path / "a.json") == [first]
        first.write_text("1")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".a-mine.json",
        ".a-november.json",
        ".b-x7k2p9qa.json",
        "a.json",
    ]
    with (
        pytest.raises(TimetError, match="was its folder moved or deleted"),
        atomic_write(tmp_path / "sub/a.json") as part,
    ):
        part.unlink()


def test_bars_know_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    "A terminal that has no blocks gets a bar without."
    from timet.core import progress

    class Terminal(io.StringIO):
        encoding = "ascii"

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress(range(3)).ascii is True
