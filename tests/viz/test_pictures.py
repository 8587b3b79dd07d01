"Picture builders: sizes, colours, edge cases, and that every figure really draws."

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from timet.core import TimetError
from timet.viz import charts, paint, strips
from timet.viz.write import write_mask


def drawn(figure):
    "The figure as an image; it must not be empty."
    assert isinstance(figure, Figure)
    png = charts.to_png(figure)
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert image.std() > 1
    return image


def test_colors_are_stable_distinct_and_many():
    many = paint.cluster_colors(600)
    assert many.shape == (600, 3) and many.dtype == np.uint8
    for k in (1, 7, 20, 64, 65, 500):
        np.testing.assert_array_equal(paint.cluster_colors(k), many[:k])
    assert len(np.unique(many[:500], axis=0)) == 500
    lab = paint.oklab(many[:20])
    gap = np.linalg.norm(lab[:, :, None] - lab[:, None], axis=-1) + 9 * np.eye(20)
    assert gap.min() > 0.07  # for each of the four observers; 0.02 is just visible
    assert paint.cluster_colors(5000).shape == (5000, 3)


def test_a_class_has_one_colour():
    names = ["background", "beetle", "fish", "leaf", "meadow", "sand", "sky", "star", "water"]
    table = paint.CLASS_COLOURS
    assert list(table) == names
    for i, name in enumerate(names[1:], 1):  # by its id, by its object, by its cluster, by its name
        assert paint.color_map([[i]])[0, 0].tolist() == list(table[name])
        assert paint.color_map([[i]], background=True)[0, 0].tolist() == list(table[name])
        assert paint.object_colors({1: 3, 4: i})[4].tolist() == list(table[name])
        assert paint.matched_colors([i])[0].tolist() == list(table[name])
        assert paint.line_colors(["ff", name])[1].tolist() == list(table[name])
    assert paint.color_map([[0]], background=True)[0, 0].tolist() == list(table["background"])
    assert paint.line_colors(["a", "b"]).tolist() == [list(c) for c in paint.OKABE_ITO[:2]]
    red, green, blue = np.array(table["sky"])
    assert blue > green > red and blue > 200 and table["meadow"][1] == max(table["meadow"])


@pytest.mark.parametrize("ids", [[256, 1001, 10000], [33001, 65535]])
def test_masks_with_high_ids_have_16_bits(tmp_path, ids):
    mask = np.array([[0, *ids]])
    write_mask(tmp_path / "m.png", mask)
    assert np.asarray(Image.open(tmp_path / "m.png")).tolist() == mask.tolist()
    write_mask(tmp_path / "low.png", mask * 0 + 7, wide=True)
    assert np.asarray(Image.open(tmp_path / "low.png")).dtype == np.uint16
    for bad in (mask - 1, mask + 65535, mask / 2, mask[0]):
        with pytest.raises(TimetError, match="whole ids from 0 to 65535"):
            write_mask(tmp_path / "no.png", bad)


def test_oklab_knows_white_grey_and_red():
    lab = paint.oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))[0]
    np.testing.assert_allclose(lab[0], [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(lab[1], 0, atol=1e-6)
    np.testing.assert_allclose(lab[2], [0.628, 0.2249, 0.1258], atol=1e-3)  # Ottosson's table


def test_color_map():
    colors = paint.cluster_colors(500)
    np.testing.assert_array_equal(paint.color_map(np.arange(500).reshape(20, 25)).reshape(-1, 3), colors)
    assert paint.color_map(torch.tensor([[1, 255]]), ignore=255)[0, 1].tolist() == list(paint.BLANK)
    assert paint.color_map(np.array([[255]], np.uint8))[0, 0].tolist() == colors[255].tolist()
    assert paint.color_map(np.zeros((2, 3, 4), bool)).shape == (2, 3, 4, 3)
    assert paint.color_map([[5]], colors=[[1, 2, 3]]).tolist() == [[[1, 2, 3]]]
    with pytest.raises(TimetError, match="argmax"):
        paint.color_map(np.zeros((2, 2)))


@pytest.mark.parametrize(
    "h, w, gh, gw", [(96, 96, 12, 12), (60, 107, 14, 14), (100, 40, 5, 2), (3, 3, 3, 3), (5, 5, 9, 9)]
)
def test_resize_takes_the_patch_that_covers_the_pixel_centre(h, w, gh, gw):
    ids = np.arange(gh * gw).reshape(gh, gw)
    got = paint.resize(ids, (h, w))
    for y in range(h):
        for x in range(w):
            assert got[y, x] == ids[int((y + 0.5) * gh / h), int((x + 0.5) * gw / w)]


def test_overlay_mixes_and_leaves_alone():
    frame = np.full((8, 8, 3), 100, np.uint8)
    labels = np.array([[0, 1], [255, -1]])
    got = paint.overlay(frame, labels, alpha=0.5, background=True, ignore=255, edges=False)
    assert (got[:4, :4] == 100).all() and (got[4:] == 100).all()
    assert got[0, 7].tolist() == np.round((100.0 + paint.cluster_colors(2)[1]) / 2).tolist()
    assert paint.overlay(np.zeros((3, 8, 4, 3)), np.zeros((3, 2, 1), int)).shape == (3, 8, 4, 3)
    with pytest.raises(TimetError, match="one map a frame"):
        paint.overlay(np.zeros((3, 8, 4, 3)), np.zeros((2, 2, 1), int))


def test_pictures_of_everything():
    assert paint.as_picture(torch.ones(2, 2, 3, dtype=torch.bfloat16)).tolist() == np.full((2, 2, 3), 255).tolist()
    picture = paint.as_picture(np.array([[np.nan, 0.0], [1.0, np.inf]]))
    assert picture[0, 0].tolist() == list(paint.BLANK) == picture[1, 1].tolist()
    assert paint.as_picture(np.zeros((3, 4))).shape == (3, 4, 3)
    with pytest.raises(TimetError):
        paint.as_picture(np.empty((0, 4)))


def test_image_grid():
    grid = paint.image_grid([np.zeros((2, 2), int), None, np.zeros((4, 6, 3), np.uint8)], 2, gap=1)
    assert grid.shape == (9, 13, 3)
    assert (grid[:4, 7:] == 255).all() and (grid[5:, :6] == 0).all()
    with pytest.raises(TimetError):
        paint.image_grid([None], 1)


@pytest.mark.parametrize("t, h, w", [(1, 20, 20), (4, 96, 54), (3, 48, 85), (16, 14, 14)])
@pytest.mark.parametrize("k", [1, 500])
def test_film_strip(t, h, w, k):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (t, h, w, 3), dtype=np.uint8)
    numbers = np.where(rng.random((t, 7, 7)) < 0.1, np.nan, rng.random((t, 7, 7)))
    rows = {"frames": frames, "clusters": rng.integers(0, k, (t, 7, 7)), "numbers": numbers, "gap": [None] * t}
    image = drawn(strips.film_strip(rows, titles=[str(i) for i in range(t)], width=8))
    assert image.shape[1] <= 805


def test_film_strip_scales_a_row_of_numbers_together():
    dim, bright = np.zeros((4, 4)), np.ones((4, 4))
    rows = strips._row([dim, bright])
    assert rows[0].mean() < rows[1].mean()


def test_film_strip_refuses_nothing():
    for rows in ({}, {"a": []}, {"a": np.zeros((0, 2, 2, 3))}, {"a": [None]}):
        with pytest.raises(TimetError):
            strips.film_strip(rows)


@pytest.mark.parametrize("t, size, grid", [(2, (32, 32), (4, 4)), (4, (40, 71), (14, 14)), (5, (64, 36), (8, 5))])
def test_affinity_heat(t, size, grid):
    rng = np.random.default_rng(0)
    frames, heat = rng.random((t, *size, 3)), rng.random((t - 1, *grid))
    heat[0, 0] = np.nan
    drawn(strips.affinity_heat(frames, heat, (grid[0] - 1, 0), radius=2, titles=["x"] * t))
    drawn(strips.affinity_heat(frames, np.zeros_like(heat), (0, grid[1] - 1)))
    with pytest.raises(TimetError, match="outside the grid"):
        strips.affinity_heat(frames, heat, grid)


def test_curves_and_bars_draw_mean_and_spread():
    rng = np.random.default_rng(0)
    figure = charts.curves({f"run {i}": rng.random((5, 20)) + 0.01 * i for i in range(8)}, log=True)
    drawn(figure)
    names = [text for text in figure.axes[0].texts]
    heights = sorted(text.get_position()[1] for text in names)
    assert len(names) == 8 and min(np.diff(heights)) > 0.05  # names do not touch
    line = charts.curves({"a": [[1, 3], [3, 5]]}).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [2, 4])
    drawn(charts.curves({"nothing": [np.nan, np.nan], "one": [1.0, 2.0]}))
    bars = charts.bars({"a": {"x": [1.0, 3.0], "y": 2.0}, "b": {"x": np.nan}})
    drawn(bars)
    assert [round(p.get_height(), 6) for p in bars.axes[0].patches] == [2.0, 2.0, 0.0, 0.0]
    drawn(charts.bars({"many": {f"class {i}": i for i in range(66)}}))


def test_legend_and_bytes():
    drawn(strips.legend({0: "background", 3: "cat", 66: "zebra"}, background=True, columns=2))
    drawn(strips.legend(["one"]))
    one, two = (charts.to_png(charts.curves({"a": [1, 2, 4]})) for _ in range(2))
    assert one == two


def test_tokens_to_rgb_shares_its_colours_over_frames():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (4, 30))
    tokens = 5 * rng.standard_normal((3, 16))[classes]
    picture = paint.tokens_to_rgb(torch.from_numpy(tokens), (5, 6)).reshape(-1, 3)
    for c in range(3):
        assert len(np.unique(picture[classes.ravel() == c], axis=0)) == 1
    assert len(np.unique(picture, axis=0)) == 3
    np.testing.assert_array_equal(paint.tokens_to_rgb(tokens, (5, 6)), paint.tokens_to_rgb(tokens.copy(), (5, 6)))
    assert paint.tokens_to_rgb(tokens[:, :, :1], (5, 6)).shape == (4, 5, 6, 3)


SHAPES = [(1, 20, 20), (4, 96, 54), (3, 48, 85)]


@pytest.mark.parametrize("t, h, w", SHAPES)
@pytest.mark.parametrize("k", [1, 500])
@pytest.mark.parametrize("dark", [False, True])
def test_cluster_film(t, h, w, k, dark):
    rng = np.random.default_rng(0)
    frames = np.where(rng.random((t, h, w, 1)) < 0.1, np.nan, rng.random((t, h, w, 3)))
    maps = {"patches": rng.integers(0, k, (t, 7, 7)), "unknown": np.full((t, 7, 7), -1)}
    image = drawn(strips.cluster_film(frames, maps, titles=["s"] * t, width=8, dark=dark))
    assert image.shape[1] <= 805 and (image[-1, 0] < 40).all() == dark
    film = drawn(strips.cluster_film(frames, maps, width=8, most=0, dark=dark))
    assert film.shape[0] < image.shape[0]


def test_cluster_film_keeps_an_id_and_a_class_in_one_colour():
    frames, ids = np.zeros((2, 40, 40, 3), np.uint8), np.array([[[0, 1]], [[2, 1]]])
    colors = paint.matched_colors([3, 1, 3])
    image = drawn(strips.cluster_film(frames, {"": ids}, colors={"": colors}, alpha=1.0, most=0, width=2.0))
    seen = {tuple(c) for c in image.reshape(-1, 3).tolist()}
    assert {tuple(paint.cluster_colors(4)[i].tolist()) for i in (1, 3)} <= seen
    assert not {tuple(paint.cluster_colors(4)[i].tolist()) for i in (0, 2)} & seen
    with pytest.raises(TimetError, match="one map a frame"):
        strips.cluster_film(frames, {"": ids[:1]})
    with pytest.raises(TimetError, match="argmax"):
        strips.cluster_film(frames, {"": np.full((2, 1, 2), np.nan)})


def test_the_legend_names_the_largest_and_counts_the_rest():
    ids = np.repeat(np.arange(30), np.arange(30) + 1)[None, None]
    assert list(strips._largest([ids], None, (), None))[:2] == [29, 28]
    assert strips._largest([ids], {3: "cat", 99: "dog"}, (), None) == {3: "cat"}
    assert 29 not in strips._largest([ids], None, (0,), 29) and 0 not in strips._largest([ids], None, (0,), 29)
    texts = [t.get_text() for t in strips.cluster_film(np.zeros((1, 20, 20, 3)), {"": ids}, most=5).axes[-1].texts]
    assert texts == ["cluster 29", "cluster 28", "cluster 27", "cluster 26", "cluster 25", "and 25 more"]


def test_matched_colors():
    many = paint.matched_colors(np.arange(500) % 21)
    assert many.shape == (500, 3) and len(np.unique(many, axis=0)) == 21
    lone = paint.matched_colors(np.full(500, -1))
    np.testing.assert_array_equal(lone, paint.cluster_colors(500))
    np.testing.assert_array_equal(paint.matched_colors([-1, 0], taken=7), paint.cluster_colors(8)[[7, 0]])
    assert paint.matched_colors(np.array([], int)).shape == (0, 3)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("k, g", [(1, 1), (3, 21), (500, 21), (24, 16)])
def test_confusion_figure(k, g, dark):
    counts = np.random.default_rng(0).integers(0, 9, (k, g)).astype(float)
    counts[-1] = 0 if k > 1 else 1
    figure = charts.confusion_figure(counts, columns=[f"class {i}" for i in range(g)], title="T", dark=dark)
    drawn(figure)
    if (k, g) == (3, 21):
        shown = figure.axes[0].images[0].get_array()
        assert shown.mask[-1].all() and np.allclose(shown[:-1].sum(1), 1)
    with pytest.raises(TimetError, match="names of columns"):
        charts.confusion_figure(counts, columns=["x"] * (g + 1))


def test_glow_and_mark():
    frame = np.full((40, 30, 3), 200, np.uint8)
    light = paint.glow(frame, np.array([[0.0, np.nan], [1.0, np.inf]]))
    assert (
        light.shape == frame.shape
        and light[30, 0].max() > 200
        and (light[0] == 70).all()
        and (light[30, -1] == 70).all()
    )
    assert (paint.glow(frame, np.zeros((2, 2))) == 70).all()
    assert paint.glow(frame, np.ones((2, 2)), top=4.0)[0, 0].max() < paint.glow(frame, np.ones((2, 2)))[0, 0].max()
    marked = paint.mark_patch(frame, (1, 0), (2, 2))
    assert (marked[20, 5] == 255).all() and (marked[:15] == 200).all() and (frame == 200).all()


def test_dark_figures_are_dark():
    rng = np.random.default_rng(0)
    figures = {
        "strip": strips.film_strip({"a": rng.random((2, 8, 8, 3))}, titles=["x", "y"], dark=True),
        "curves": charts.curves({"a": rng.random(5)}, mark=2, limits=(0, 1), dark=True),
        "bars": charts.bars({"a": {"x": [1.0, 2.0]}, "b": {"x": 2.0, "y": np.nan}}, sort=True, dark=True),
        "legend": strips.legend(["one"], dark=True),
        "heat": strips.affinity_heat(rng.random((2, 32, 32, 3)), rng.random((1, 4, 4)), (0, 0), dark=True),
    }
    for figure in figures.values():
        assert drawn(figure)[0, -1].tolist() == [17, 17, 17]
    assert figures["curves"].axes[0].get_ylim() == (0, 1)
    assert drawn(strips.film_strip({"a": rng.random((2, 8, 8, 3))}, titles=["x", "y"]))[0, -1].tolist() == [255] * 3


def test_a_grid_with_titles_and_on_a_dark_page():
    one = paint.image_grid([np.zeros((30, 80, 3), np.uint8)], 1, titles=["title"], dark=True)
    assert one.shape[0] > 30 and one[:-30].max() > 200 and (one[0, 0] == 17).all()
    assert paint.image_grid([np.zeros((3, 8), int)] * 3, 2, titles=["only one"]).shape[1] == 20


def test_a_place_in_a_grid_is_found_again():
    size, gap = (30, 50), 6
    for titles in (False, True):
        said = {"titles": ["t"] * 5} if titles else {}
        shape = paint.image_grid([np.zeros((3, 5, 3), np.uint8)] * 5, 3, size=size, gap=gap, **said).shape
        head = shape[0] - 2 * 30 - gap
        for i in range(6):
            x = (i % 3 * (50 + gap) + 25) / shape[1]
            y = (i // 3 * (30 + gap + head / 2) + head / 2 + 15) / shape[0]
            number, right, down = paint.picture_at(x, y, shape, 3, size=size, gap=gap, titles=titles)
            assert (number, right, down) == (i, pytest.approx(0.5), pytest.approx(0.5))
        assert paint.picture_at(53 / shape[1], 0.3, shape, 3, size=size, gap=gap, titles=titles) is None
    assert paint.picture_at(0.5, 1 / 300, shape, 3, size=size, gap=gap, titles=True) is None


@pytest.mark.parametrize("values", [[0.5], [np.nan] * 4, [0, np.nan, 2, -1, np.inf], np.linspace(0, 1, 500)])
@pytest.mark.parametrize("dark", [False, True])
def test_small_curves(values, dark):
    cell = charts.Frame(size=(2.0, 1.2), small=True, limits=(0, 1), dark=dark)
    picture = charts.to_pixels(charts.curves({"one": values, "two": values}, frame=cell, mark=0))
    assert picture.shape == (120, 200, 3) and picture.std() > 1
    assert (picture[0, -1] == (17 if dark else 255)).all()
    figure = charts.curves({"one": values, "two": values}, frame=cell, mark=len(values) - 1)
    moved = charts.to_pixels(figure)
    assert (moved != picture).any() == (len(values) > 1)
    last = values[-1]
    assert figure.texts[0].get_text() == (f"one {last:.3g}" if np.isfinite(last) else "one")


def test_a_figure_as_pixels():
    assert charts.to_pixels(charts.curves({"": [1, 2, 3]}, size=(3, 2))).shape == (200, 300, 3)
    assert (charts.to_pixels(charts.curves({"": [1, 2, 3]}, dark=True))[0, 0] == 17).all()


def test_nothing_touches_pyplot():
    import subprocess
    import sys

    code = "import sys, timet.viz.charts as v; v.to_png(v.curves({'a': [1, 2]})); print('matplotlib.pyplot' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
