"""The shell of the interactive pictures, without a browser."""

import base64
import io

import ipywidgets as W
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from timet.core import TimetError
from timet.lab.widgets import Explorer


def square(level: int, side: int = 8) -> np.ndarray:
    "A grey square; level 13 is unlucky."
    if level == 13:
        raise ValueError("thirteen <is> unlucky")
    return np.full((side, side, 3), level, np.uint8)


def shown(explorer: Explorer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(explorer.image.value)))


def test_the_first_picture_is_there_at_once():
    explorer = Explorer(square, level=W.IntSlider(3, 0, 99), side=W.IntSlider(5, 1, 9))
    assert (shown(explorer) == square(3, 5)).all() and shown(explorer).shape == (5, 5, 3)
    assert explorer.error is None and explorer.status.value == ""


def test_moving_a_control_draws_again():
    explorer = Explorer(square, level=W.IntSlider(3, 0, 99))
    explorer.controls["level"].value = 40
    assert (shown(explorer) == 40).all()


def test_an_error_is_kept_shown_and_raised_and_goes_away():
    explorer = Explorer(square, level=W.IntSlider(3, 0, 99))
    with pytest.raises(ValueError, match="unlucky"):
        explorer.controls["level"].value = 13
    assert str(explorer.error) == "thirteen <is> unlucky"
    assert "<b>ValueError</b>: thirteen &lt;is&gt; unlucky" in explorer.status.value
    assert (shown(explorer) == 3).all()
    with pytest.raises(ValueError, match="unlucky"):
        explorer.redraw()
    explorer.controls["level"].value = 14
    assert explorer.error is None and explorer.status.value == "" and (shown(explorer) == 14).all()


def test_a_builder_that_fails_at_once_says_so_at_once():
    with pytest.raises(ValueError, match="unlucky"):
        Explorer(square, level=W.IntSlider(13, 0, 99))


def test_figures_are_drawn_too():
    def line(height: float) -> Figure:
        figure = Figure(figsize=(2, 1), dpi=50)
        figure.add_subplot().plot([0, height])
        return figure

    explorer = Explorer(line, height=W.FloatSlider(1.0))
    assert shown(explorer).shape[:2] == (100, 200)


def test_the_live_view_and_a_picture_of_it():
    explorer = Explorer(square, level=W.IntSlider(3, 0, 99))
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == explorer.image.value
    assert bundle["text/plain"] == "Explorer(level)"
    explorer.controls["level"].value = 50
    assert base64.b64decode(explorer._repr_mimebundle_()["image/png"]) == explorer.image.value


def test_the_same_values_give_the_same_bytes():
    first, second = (Explorer(square, level=W.IntSlider(7, 0, 99)) for _ in range(2))
    assert first.image.value == second.image.value


def test_controls_are_named_and_must_have_a_value():
    explorer = Explorer(square, level=W.IntSlider(3, 0, 99), side=W.IntSlider(5, 1, 9, description="pixels"))
    assert [c.description for c in explorer.controls.values()] == ["level", "pixels"]
    with pytest.raises(TimetError, match="control 'level' must be a widget with a value, got Output"):
        Explorer(square, level=W.Output())


def test_a_click_is_told_as_fractions_and_draws_once():
    calls, drawn = [], []

    def draw(level: int) -> np.ndarray:
        drawn.append(level)
        return square(level)

    def brighter(x: float, y: float) -> str:
        calls.append((x, y))
        explorer.controls["level"].value += 10
        return "brighter <now>"

    explorer = Explorer(draw, on_click=brighter, level=W.IntSlider(4, 0, 99))
    assert explorer.image.clickable
    explorer.image.spot = [0.25, 0.75, 1]  # what the page sends
    assert calls == [(0.25, 0.75)] and drawn == [4, 14] and (shown(explorer) == 14).all()
    assert explorer.status.value == "brighter &lt;now&gt;"
    explorer.image.spot = [0.25, 0.75, 2]  # the same place again
    assert len(calls) == 2 and drawn[-1] == 24


def test_a_picture_without_a_handler_is_not_clickable():
    explorer = Explorer(square, level=W.IntSlider(3, 0, 99))
    assert not explorer.image.clickable
    explorer.click(0.5, 0.5)
    assert explorer.error is None


def test_errors_of_clicks_and_buttons_are_shown_and_raised():
    def refuse(*_) -> None:
        raise TimetError("there is no such <file>")

    explorer = Explorer(square, on_click=refuse, buttons={"Write": refuse}, level=W.IntSlider(3, 0, 99))
    for act in (lambda: explorer.click(0.1, 0.1), lambda: explorer.press("Write")):
        with pytest.raises(TimetError, match="no such"):
            act()
        assert "there is no such &lt;file&gt;" in explorer.status.value and "TimetError" not in explorer.status.value
        explorer.redraw()
        assert explorer.status.value == ""


def test_a_button_in_the_page_presses():
    level = {"now": 5}
    explorer = Explorer(lambda: square(level["now"]), buttons={"Up": lambda: level.update(now=50)})
    row = explorer.view.children[0].children
    next(w for w in row if isinstance(w, W.Button)).click()
    assert (shown(explorer) == 50).all()


def test_play_moves_its_slider_and_follows_its_ends():
    explorer = Explorer(square, play="level", level=W.IntSlider(3, 0, 99))
    explorer.player.value = 7
    assert explorer.controls["level"].value == 7 and (shown(explorer) == 7).all()
    explorer.controls["level"].max = 5
    assert (explorer.player.max, explorer.player.value) == (5, 5) and (shown(explorer) == 5).all()
    for name, widget in (("speed", W.IntSlider()), ("level", W.FloatSlider())):
        with pytest.raises(TimetError, match="play must name a slider of whole numbers"):
            Explorer(lambda level: square(3), play=name, level=widget)


def test_a_builder_that_asks_is_told_about_a_dark_page():
    explorer = Explorer(lambda level, dark: square(0 if dark else level), level=W.IntSlider(90, 0, 99))
    assert (shown(explorer) == 90).all()
    explorer.image.dark = True
    assert (shown(explorer) == 0).all()
    explorer = Explorer(square, level=W.IntSlider(90, 0, 99))
    explorer.image.dark = True
    assert (shown(explorer) == 90).all()


def test_slow_work_shows_a_bar_that_goes_away():
    seen = []

    def draw(level: int) -> np.ndarray:
        if level == 9:
            for _ in explorer.track([1, 2], "films <a>"):
                seen.append(explorer.status.value)
        return square(level)

    explorer = Explorer(draw, level=W.IntSlider(3, 0, 99))
    explorer.controls["level"].value = 9
    assert ["0/2" in seen[0], "1/2" in seen[1]] == [True, True] and 'max="2"' in seen[0] and "&lt;a&gt;" in seen[0]
    assert explorer.status.value == ""


def test_long_names_have_room():
    explorer = Explorer(square, level=W.IntSlider(3, 0, 99, description="a very long name"), side=W.IntSlider(5, 1, 9))
    assert explorer.controls["level"].style.description_width == "128px"
    assert "timet-explorer" in explorer.view._dom_classes
