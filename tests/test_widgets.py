"""The shell of the interactive pictures, without a browser."""

import base64
import io

import ipywidgets as W
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from timet.core import TimetError
from timet.widgets import Explorer


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
    assert explorer.status.value == "<b>ValueError</b>: thirteen &lt;is&gt; unlucky"
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
