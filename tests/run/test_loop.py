"""The loop under everything that learns: its lines and checkpoints, against a count; stops, kills, and a budget of minutes."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from timet.core import TimetError
from timet.run import loop as room
from timet.run.loop import Bar, Budget, Pace, loop, stopped


class Toy:
    "A random walk whose state is saved in memory."

    def __init__(self, total: int = 12) -> None:
        self.step, self.total, self.x, self.rng = 0, total, 0.0, np.random.default_rng(0)
        self.lines: list[tuple[int, float]] = []
        self.kept: list[tuple[int, float, dict]] = []
        self.asked: list[tuple[bool, bool]] = []

    def advance(self, due: bool, stop: bool) -> tuple[dict, bool, bool]:
        self.asked.append((due, stop))
        self.x += self.rng.normal()
        self.step += 1
        return {"loss": self.x}, due, stop

    def save(self) -> None:
        self.kept.append((self.step, self.x, self.rng.bit_generator.state))

    def tell(self, numbers: dict, rate: float) -> None:
        assert rate > 0
        self.lines.append((self.step, numbers["loss"]))

    def go(self, tell: Any = None, **options: Any) -> bool:
        return loop(self, self.advance, self.save, tell or self.tell, **options)


@pytest.mark.parametrize("total", [1, 5, 12])
@pytest.mark.parametrize("log_every", [1, 3, 100])
@pytest.mark.parametrize("save_every", [0, 1, 4])
def test_lines_and_checkpoints_are_where_they_should_be(total: int, log_every: int, save_every: int) -> None:
    run = Toy(total)
    assert run.go(pace=Pace(log_every, save_every))
    steps = range(1, total + 1)
    assert [step for step, _ in run.lines] == [s for s in steps if s in (1, total) or s % log_every == 0]
    saved = [step for step, *_ in run.kept]
    assert saved == [s for s in steps if s == total or (save_every and s % save_every == 0)]


def test_a_checkpoint_is_due_by_the_clock() -> None:
    run = Toy(5)
    pace = Pace(save_seconds=0.02)
    run.go(lambda numbers, rate: time.sleep(0.03 * (run.step == 2)), pace=pace)
    assert [step for step, *_ in run.kept] == [3, 5]


@pytest.mark.parametrize("at", range(1, 12))
def test_killed_at_any_step_it_ends_where_the_whole_run_ends(at: int) -> None:
    whole, run = Toy(), Toy()
    whole.go(pace=Pace(save_every=3))

    def kill(numbers: dict, rate: float) -> None:
        run.tell(numbers, rate)
        if run.step == at:
            raise SystemError

    with pytest.raises(SystemError):
        run.go(kill, pace=Pace(save_every=3))
    step, x, state = run.kept[-1] if run.kept else (0, 0.0, np.random.default_rng(0).bit_generator.state)
    assert step == (at - 1) // 3 * 3
    run.step, run.x, run.rng.bit_generator.state = step, x, state
    run.lines = [line for line in run.lines if line[0] <= step]
    assert run.go(pace=Pace(save_every=3))
    assert run.lines == whole.lines and run.x == whole.x


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_a_wish_that_the_next_step_hears(number: int) -> None:
    run, before = Toy(), signal.getsignal(signal.SIGINT)

    def ask(numbers: dict, rate: float) -> None:
        run.tell(numbers, rate)
        if run.step == 4:
            os.kill(os.getpid(), number)

    assert not run.go(ask, pace=Pace(log_every=2))
    assert run.step == run.lines[-1][0] == run.kept[-1][0] == 5
    assert run.asked[3:] == [(False, False), (False, True)]
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped(run, "go on") == "stopped after step 5 of 12; all is saved, go on with: go on"


def test_asked_in_the_last_step_it_is_finished() -> None:
    run = Toy(3)
    assert run.go(lambda numbers, rate: os.kill(os.getpid(), signal.SIGINT) if run.step == 2 else None)
    assert run.step == 3


def test_a_failing_save_leaves_the_handlers_as_they_were() -> None:
    run, before = Toy(), signal.getsignal(signal.SIGTERM)

    def full() -> None:
        raise TimetError("the disk is full")

    with pytest.raises(TimetError, match="full"):
        loop(run, run.advance, full, pace=Pace(save_every=2))
    assert run.step == 2 and signal.getsignal(signal.SIGTERM) is before


def test_nothing_left_to_do_is_no_step() -> None:
    run = Toy(3)
    run.step = 3
    assert run.go() and run.asked == [] and run.kept == []


def test_until_ends_a_trial() -> None:
    run = Toy(9)
    assert run.go(until=4) and (run.step, run.total) == (4, 9)


def test_minutes_choose_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WARM", 1)
    run, begin = Toy(10**6), time.monotonic()
    assert run.go(lambda numbers, rate: time.sleep(0.005), minutes=1 / 60)
    assert run.step == run.total and 20 < run.step < 400
    assert 0.3 < time.monotonic() - begin < 3


def test_a_budget_counts_what_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    "With a clock that is moved by hand: two seconds a step, ten minutes."
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(room.time, "monotonic", lambda: clock.now)
    run = SimpleNamespace(step=5, total=7)
    budget = Budget(run, 10)
    for _ in range(30):
        run.step, clock.now = run.step + 1, clock.now + 2
        budget.look(False)
    assert run.total == 5 + 300
    budget.give_up()
    assert run.total == 305


def test_a_budget_that_knows_nothing_yet_gives_the_plan_back() -> None:
    run = SimpleNamespace(step=0, total=7)
    budget = Budget(run, 10)
    assert run.total > 1000
    run.step = 2
    budget.give_up()
    assert run.total == 7


def test_only_the_first_process_shows_a_bar(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with Bar(show=False).start(0, 3) as bar:
        bar.update(3)
    assert bar.disable and capsys.readouterr().err == ""
