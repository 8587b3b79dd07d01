"Clustering of image sets against brute force written from the definitions; tokens on the disk; the command."

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from timet.core import TimetError, check_shape
from timet.eval import clustering as room
from timet.eval.clustering import (
    VARIANTS,
    cluster_images,
    cluster_maps,
    count_maps,
    mean_colour_tokens,
    reduce_tokens,
)
from timet.eval.image import format_scores, main
from timet.eval.kmeans import assign, kmeans, standardize_pca, train_kmeans
from timet.eval.score import score_row
from timet.eval.tokens import Tokens

QUICK = {"niter": 5, "nredo": 1, "seeds": 2}


def made_up(images=10, side=4, features=6, classes=5, mask=8, seed=0):
    "Tokens that know their class, somewhat, and masks with a grey rim."
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (images, side, side))
    tokens = 2.0 * rng.standard_normal((classes, features))[truth] + rng.standard_normal((*truth.shape, features))
    masks = truth.repeat(mask // side, 1).repeat(mask // side, 2).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.1] = 255
    return tokens.reshape(images, side * side, features).astype(np.float32), masks


def naive_pairs(table, present):
    "The one-to-one pairing with the largest sum of IoU, by trying all."
    k, best, choice = len(table), -1.0, {}
    few, many = sorted((k, len(present)))
    for chosen in itertools.permutations(range(many), few):
        pairs = list(zip(range(k), chosen)) if k <= len(present) else list(zip(chosen, range(len(present))))
        total = sum(table[c][present[j]] for c, j in pairs)
        if total > best + 1e-12:
            best, choice = total, {c: present[j] for c, j in pairs}
    return choice


def naive_score(maps, masks, k, g, matching, background=True, ignore=255):
    "From the maps, pixel by pixel: enlarge, count, match, IoU."
    pixels = []
    for picture, mask in zip(maps, masks):
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                row = int((y + 0.5) * picture.shape[0] / mask.shape[0])
                column = int((x + 0.5) * picture.shape[1] / mask.shape[1])
                if mask[y, x] != ignore:
                    pixels.append((int(picture[row, column]), int(mask[y, x])))
    sets = {(kind, i): {p for p, pair in enumerate(pixels) if pair[kind] == i}
            for kind, top in ((0, k), (1, g)) for i in range(top)}  # fmt: skip
    both = [[len(sets[0, c] & sets[1, j]) for j in range(g)] for c in range(k)]
    present = [j for j in range(g) if sets[1, j]]
    if matching == "hungarian":
        table = [[both[c][j] / max(len(sets[0, c] | sets[1, j]), 1) for j in range(g)] for c in range(k)]
        pairs = naive_pairs(table, present)
        name = [pairs.get(c, 0) for c in range(k)]
    else:
        name = [max(range(g), key=lambda j: (both[c][j] / max(len(sets[0, c]), 1), -j)) for c in range(k)]
    scores = np.full(g, np.nan)
    for j in present:
        mine = set().union(*[sets[0, c] for c in range(k) if name[c] == j])
        if background or j:
            scores[j] = len(mine & sets[1, j]) / len(mine | sets[1, j])
    return (np.nanmean(scores) if np.isfinite(scores).any() else np.nan), scores


@pytest.mark.parametrize("k, classes, absent, matching, background", [
    (5, 5, [], "hungarian", True),  # as many clusters as classes
    (3, 5, [], "hungarian", True),  # fewer: classes without a cluster
    (7, 4, [], "hungarian", True),  # more: unmatched clusters
    (7, 4, [0], "hungarian", True),  # unmatched clusters, and no background they could fall on
    (5, 5, [2], "hungarian", False),  # a class absent, background out
    (12, 5, [], "many-to-one", True),
    (12, 5, [1, 3], "many-to-one", False),
    (2, 5, [], "many-to-one", True),
    (1, 3, [], "hungarian", True),
])  # fmt: skip
def test_the_whole_protocol_against_brute_force(k, classes, absent, matching, background):
    tokens, masks = made_up(images=6, classes=classes, seed=k)
    for c in absent:
        masks[masks == c] = 255
    got = cluster_images(
        tokens, masks, (4, 4), k, num_classes=classes, matching=matching, background=background, pca=4, **QUICK
    )
    features = standardize_pca(tokens.reshape(-1, 6), 4).reshape(6, 16, 4)
    want = []
    for seed in range(2):
        maps = cluster_maps(features, (4, 4), k, sample=256 * k, seed=seed, niter=5, nredo=1)
        mean, per_class = naive_score(maps, masks, k, classes, matching, background)
        np.testing.assert_allclose(got.values[seed], mean)
        want.append(per_class)
    np.testing.assert_allclose(got.per_class, np.mean(want, 0))
    assert got.mean == pytest.approx(got.values.mean()) and got.std == pytest.approx(got.values.std())
    assert np.isnan(got.per_class[absent]).all()
    assert np.isnan(got.per_class[0]) == (not background or 0 in absent)


def test_ties_and_masks_that_do_not_divide():
    # two clusters, each half in class 0 and half in class 1: the lowest class takes both
    maps, masks = np.array([[[0, 1]]]), np.array([[[0, 1], [0, 1]]], np.uint8).transpose(0, 2, 1)
    counts = count_maps(maps, masks, 2, 2)
    assert counts.tolist() == [[1, 1], [1, 1]]
    for matching in ("hungarian", "many-to-one"):
        want = naive_score(maps, masks, 2, 2, matching)[1]
        np.testing.assert_allclose(want, [0.5, 0.0] if matching == "many-to-one" else [1 / 3, 1 / 3])
    rng = np.random.default_rng(0)
    maps, masks = rng.integers(0, 6, (3, 5, 7)), rng.integers(0, 4, (3, 13, 10)).astype(np.uint8)
    large = maps[:, ((np.arange(13) + 0.5) * 5 / 13).astype(int)][:, :, ((np.arange(10) + 0.5) * 7 / 10).astype(int)]
    want = [[((large == i) & (masks == j)).sum() for j in range(4)] for i in range(6)]
    assert count_maps(maps, masks, 6, 4).tolist() == want
    # more images than are enlarged at a time
    many = count_maps(np.tile(maps, (50, 1, 1)), np.tile(masks, (50, 1, 1)), 6, 4)
    assert many.tolist() == (50 * np.array(want)).tolist()


def test_everything_ignored_is_said_and_one_labelled_image_is_enough():
    tokens, masks = made_up()
    with pytest.raises(TimetError, match="not one pixel"):
        cluster_images(tokens, masks * 0 + 255, (4, 4), 5, **QUICK)
    masks[1:] = 255
    assert 0 < cluster_images(tokens, masks, (4, 4), 5, num_classes=5, **QUICK).mean <= 1


def test_a_permutation_of_the_images_is_the_same_set():
    tokens, masks = made_up(images=12)
    order = np.random.default_rng(1).permutation(12)
    # well apart, so that every start finds the same clusters
    rng = np.random.default_rng(0)
    tokens = (30 * np.eye(6)[np.where(masks[:, ::2, ::2] == 255, 5, masks[:, ::2, ::2])].reshape(12, 16, 6)
              + 0.1 * rng.standard_normal((12, 16, 6))).astype(np.float32)  # fmt: skip
    one, two = (cluster_images(tokens[o], masks[o], (4, 4), 6, num_classes=6, seeds=1, matching="many-to-one")
                for o in (slice(None), order))  # fmt: skip
    np.testing.assert_allclose(one.values, two.values)


# -- variants and settings


def test_variants_are_what_their_sources_say():
    names = ("order", "image_size", "mask_size", "seeds", "niter", "nredo")
    paper, released, clean = (VARIANTS[name]["images"] for name in ("paper", "released", "clean"))
    assert [getattr(paper, x) for x in names] == ["paper", 448, 100, 5, 100, 5] and paper.size is None
    assert [getattr(released, x) for x in names] == ["released", 224, 112, (1,), 50, 5] and released.size == 112
    assert clean.mask_size == clean.size == 56 and clean.niter == 20 and paper.each_seed() == [0, 1, 2, 3, 4]


def test_matching_follows_k():
    tokens, masks = made_up(images=40)
    for k, want in ((5, "hungarian"), ("gt", "hungarian"), (4, "many-to-one"), (30, "many-to-one")):
        assert cluster_images(tokens, masks, (4, 4), k, num_classes=5, **QUICK).settings["matching"] == want
    # 21 classes unless something else is said
    assert cluster_images(tokens, masks, (4, 4), 21, **QUICK).settings["matching"] == "hungarian"


def test_the_released_order_clusters_pixels():
    tokens, masks = made_up()
    got = cluster_images(tokens, masks, (4, 4), 5, variant="released", size=8, num_classes=5, niter=5, nredo=1)
    assert got.settings["rows"] == 10 * 64 and got.settings["seeds"] == [1] and got.settings["size"] == [8, 8]
    assert got.settings["order"] == "released" and len(got.values) == 1
    assert cluster_images(tokens, masks, (4, 4), 5, variant="clean", num_classes=5).settings["size"] == [56, 56]
    plain = cluster_images(tokens, masks, (4, 4), 5, order="released", pca=None, num_classes=5, **QUICK)
    assert plain.settings["pca"] is None and 0 < plain.mean <= 1


def test_rows_that_k_means_saw_are_said(monkeypatch):
    tokens, masks = made_up(images=100)
    seen = []
    monkeypatch.setattr(room, "train_kmeans", lambda x, *a, **o: seen.append(len(x)) or train_kmeans(x, *a, **o))
    score = cluster_images(tokens, masks, (4, 4), 5, num_classes=5, **QUICK)
    assert seen == [1280, 1280] and score.settings["trained_on"] == 1280 and score.settings["rows"] == 1600
    assert cluster_images(tokens, masks, (4, 4), 5, max_points=9, **QUICK).settings["trained_on"] == 9
    assert cluster_images(tokens, masks, (4, 4), 30, **QUICK).settings["trained_on"] == 1600
    assert seen[2:] == [9, 9, 1600, 1600]


def test_drop_last_leaves_out_the_incomplete_batch():
    tokens, masks = made_up(images=29)
    got = cluster_images(tokens, masks, (4, 4), 5, num_classes=5, drop_last=6, **QUICK)
    want = cluster_images(tokens[:24], masks[:24], (4, 4), 5, num_classes=5, **QUICK)
    np.testing.assert_array_equal(got.values, want.values)
    assert got.settings["images"] == 24 and 1449 // 60 * 60 == 1440


def test_the_scope_of_the_pca():
    tokens, _ = made_up()
    np.testing.assert_array_equal(
        reduce_tokens(tokens, 4)[3], standardize_pca(tokens.reshape(-1, 6), 4).reshape(10, 16, 4)[3]
    )
    by_three = reduce_tokens(tokens, 4, 3)
    np.testing.assert_array_equal(by_three[3:6], standardize_pca(tokens[3:6].reshape(-1, 6), 4).reshape(3, 16, 4))
    assert reduce_tokens(tokens, 50).shape == (10, 16, 6)
    with pytest.raises(TimetError, match="dataset or a number of clips"):
        reduce_tokens(tokens, 4, "batch")


def test_the_same_seed_gives_the_same_score():
    tokens, masks = made_up(images=60)
    for settings in ({}, {"order": "released"}, {"pca": None}):
        one, two = (cluster_images(tokens, masks, (4, 4), 20, **QUICK, **settings) for _ in range(2))
        np.testing.assert_array_equal(one.values, two.values)
        np.testing.assert_array_equal(one.per_class, two.per_class)
    assert cluster_images(tokens, masks, (4, 4), 20, **QUICK).values.std() > 0


def test_everything_together_in_one_object():
    tokens, masks = made_up()
    together = Tokens(
        tokens=tokens, masks=masks, grid=(4, 4), names=[str(i) for i in range(10)], classes=dict(enumerate("abcde"))
    )
    got, want = cluster_images(together, k=5, **QUICK), cluster_images(tokens, masks, (4, 4), 5, num_classes=5, **QUICK)
    np.testing.assert_array_equal(got.values, want.values)
    assert got.settings["classes"] == 5
    # names that say less than the masks, and ids of single videos
    assert cluster_images(replace(together, classes={0: "background"}), k=5, **QUICK).settings["classes"] == 5
    with pytest.raises(TimetError, match="objects of one video"):
        cluster_images(replace(together, semantic=False), k=5, **QUICK)
    assert cluster_images(replace(together, semantic=False), k=5, force=True, **QUICK).mean == got.mean


@pytest.mark.parametrize("changed, words", [
    ({"variant": "leopart"}, "paper, released, clean"),
    ({"k": 0}, "from 1"),
    ({"k": "all"}, "from 1"),
    ({"matching": "greedy"}, "hungarian or many-to-one"),
    ({"order": "mine"}, "patches"),
    ({"grid": (3, 5)}, "holds 16 patches"),
    ({"masks": None}, "needs masks"),
    ({"k": 161}, "1 to 160 clusters"),
    ({"k": 21, "max_points": 20}, "at least as many rows"),
    ({"max_points": 99, "order": "released"}, "order paper"),
    ({"drop_last": 11}, "1 to 10 images"),
    ({"num_classes": 3}, "class ids must lie in 0..2"),
    ({"seeds": 0}, "at least one seed"),
    ({"pca": 0}, "at least one"),
])  # fmt: skip
def test_wrong_input_is_explained(changed, words):
    tokens, masks = made_up()
    given = {"tokens": tokens, "masks": masks, "grid": (4, 4), "k": 5} | changed
    with pytest.raises(TimetError) as caught:
        cluster_images(**given)
    assert words in str(caught.value)


def test_tokens_that_are_not_finite_are_refused():
    tokens, masks = made_up()
    tokens[3, 2, 1] = np.nan
    for pca in (50, None):
        with pytest.raises(TimetError, match="must be finite"):
            cluster_images(tokens, masks, (4, 4), 5, pca=pca, **QUICK)


# -- tokens on the disk


def as_bits(x):
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_tokens_on_the_disk_give_the_same_as_in_memory(tmp_path):
    tokens, masks = made_up(images=60)
    np.save(tmp_path / "fp32.npy", tokens)
    np.save(tmp_path / "bf16.npy", as_bits(tokens))
    np.save(tmp_path / "fp16.npy", tokens.astype(np.float16))
    cut = (as_bits(tokens).astype(np.uint32) << 16).view(np.float32)
    for name, same in (("fp32", tokens), ("bf16", cut), ("fp16", tokens.astype(np.float16).astype(np.float32))):
        kept = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
        for settings in ({}, {"pca": None}, {"order": "released"}, {"pca": None, "order": "released"}):
            got, want = (cluster_images(x, masks, (4, 4), 8, num_classes=5, **QUICK, **settings) for x in (kept, same))
            np.testing.assert_array_equal(got.values, want.values)
    # and cutting to bf16 hardly moves the features
    np.testing.assert_allclose(reduce_tokens(as_bits(tokens), 4), reduce_tokens(tokens, 4), atol=0.05)


def test_tokens_are_never_read_as_a_whole(monkeypatch):
    tokens, masks = made_up(images=3000, side=8)
    largest, floats = [0], room.as_float

    def watch(x):
        largest[0] = max(largest[0], x.size)
        return floats(x)

    monkeypatch.setattr(room, "as_float", watch)
    cluster_images(as_bits(tokens), masks, (8, 8), 5, num_classes=5, niter=2, nredo=1, seeds=1)
    assert 0 < largest[0] < tokens.size / 2


def test_training_and_assigning_apart_are_k_means():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((8, 5))[rng.integers(0, 8, 70_000)] + 0.3 * rng.standard_normal((70_000, 5))).astype("f4")
    labels, centroids = kmeans(x, 8, niter=5, nredo=1)
    np.testing.assert_array_equal(train_kmeans(x, 8, niter=5, nredo=1), centroids)
    # 70,000 rows are more than one slice
    np.testing.assert_array_equal(assign(x, centroids), labels)
    half = x.astype(np.float16)
    distance = ((half[::97, None].astype(np.float64) - centroids) ** 2).sum(-1)
    got = assign(half, centroids, read=lambda rows: rows.astype(np.float32))
    np.testing.assert_array_equal(got[::97], distance.argmin(1))
    np.testing.assert_array_equal(
        standardize_pca(half, 3, read=lambda rows: rows.astype(np.float32)), standardize_pca(half.astype(np.float32), 3)
    )


# -- colours


def test_mean_colours_are_means_of_patches():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 12, 20, 3)).astype(np.uint8)
    got = mean_colour_tokens(pictures, (3, 5))
    assert got.shape == (3, 15, 3) and got.dtype == np.float32
    for i, (y, x) in itertools.product(range(3), itertools.product(range(3), range(5))):
        want = pictures[i, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].reshape(-1, 3).mean(0) / 255
        np.testing.assert_allclose(got[i, 5 * y + x], want, atol=1e-6)
    # pictures of several sizes, one at a time
    odd = mean_colour_tokens((np.full((h, 9, 3), 51, np.uint8) for h in (7, 11)), (2, 2))
    np.testing.assert_allclose(odd, 0.2, atol=1e-6)
    with pytest.raises(TimetError, match="at least one image"):
        mean_colour_tokens([], (2, 2))


# -- tables and the command


def test_the_table_names_classes_and_the_row_says_everything():
    tokens, masks = made_up()
    masks[masks == 3] = 255
    score = cluster_images(tokens, masks, (4, 4), 5, num_classes=5, **QUICK)
    names = {0: "background", 1: "cat", 2: "dog", 4: "cow"}
    text = format_scores({"checkpoint": {"5": score}}, names)
    assert [line.split()[0] for line in text.splitlines()[1:]] == [
        "matching",
        "mIoU",
        "background",
        "cat",
        "dog",
        "cow",
    ]
    assert "cat" not in format_scores({"checkpoint": {"5": score}})
    assert "colour, K = 5" in format_scores({"checkpoint": {"5": score}, "colour": {"5": score}})
    row = score_row(score, names)
    assert set(row["per_class"]) == {"background", "cat", "dog", "cow"} and row["trained_on"] == 160
    assert row["mean"] == score.mean and row["source"] == VARIANTS["paper"]["images"].source


def make_voc(root, count=8):
    "Pascal VOC 2012 as downloaded, tiny: a square of a class on noise, with a grey rim."
    voc, rng = root / "VOCdevkit" / "VOC2012", np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    names = [f"2007_{i:06d}" for i in range(count)]
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(names) + "\n")
    for i, name in enumerate(names):
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 8:40] = 255
        mask[10:38, 10:38] = 1 + i % 3
        picture = rng.integers(0, 90, (48, 64, 3))
        picture[10:38, 10:38, i % 3] += 140
        Image.fromarray(picture.astype(np.uint8)).save(voc / "JPEGImages" / f"{name}.jpg", quality=95)
        palette = Image.fromarray(mask, "P")
        palette.putpalette([v for c in range(256) for v in (c, 255 - c, c // 2)])
        palette.save(voc / "SegmentationClass" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return make_voc(tmp_path_factory.mktemp("voc"))


def command(voc, cache, *words):
    return ["random", "--backbone", "timet_tiny_patch8_96", "--data", str(voc), "--cache", str(cache),
            "--image-size", "96", "--device", "cpu", *map(str, words)]  # fmt: skip


def test_the_command_prints_a_table_and_writes_json(voc, tmp_path, capsys):
    out = tmp_path / "result.json"
    main(command(voc, tmp_path / "cache", "--k", 21, 40, "--per-class", "--seeds", 2, "--out", out))
    text = capsys.readouterr().out
    for words in (
        "8 images",
        "12 x 12 patches",
        "hungarian",
        "many-to-one",
        "aeroplane",
        "what it is worth, %",
        "trained on 1,152 of 1,152",
    ):
        assert words in text, text
    found = json.loads(out.read_text())
    rows = found["scores"]["checkpoint"]
    assert [row["k"] for row in rows] == [21, 40] and rows[0]["variant"] == "paper" and rows[0]["size"] == [100, 100]
    assert set(rows[1]["per_class"]) == {"background", "aeroplane", "bicycle", "bird"}
    # colour tells these classes apart, and more clusters are purer
    colour = found["floors"]["mean patch colour"]
    assert np.mean(colour["K = 40"]) > 0.6 and set(colour) == {"K = 21", "K = 40"}
    assert found["floors"]["random weights"] == "that is this network itself, weight for weight"
    main(command(voc, tmp_path / "cache", "--k", 40, "--seeds", 2, "--no-floors"))
    assert "worth" not in capsys.readouterr().out


def test_the_command_on_frames_of_videos(tmp_path, capsys):
    from timet.core import samples_dir

    words = ["--k", "gt", "--frames", 1, "--seeds", 1, "--variant", "released", "--no-cache", "--no-floors"]
    main(command(samples_dir() / "heldout", tmp_path / "cache", *words))
    assert "12 images" in capsys.readouterr().out and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("words, message", [
    (["--k", "0"], "--k takes gt and numbers"),
    (["--seeds", "0"], "--seeds must be at least 1"),
    (["--variant", "mine"], "variant"),
])  # fmt: skip
def test_mistakes_on_the_command_line_are_one_sentence(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(command(tmp_path, tmp_path / "cache", *words))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out and "Traceback" not in captured.err


def test_time_tuning_wins_on_the_sample_world_and_beats_colour():
    from timet.backbone import create_backbone, load_backbone
    from timet.core import samples_dir, seed_everything
    from timet.data.find import find_sources
    from timet.eval.tokens import extract_tokens

    sources = find_sources(samples_dir() / "heldout")
    seed_everything(0)
    start = create_backbone("timet_tiny_patch8_96", weights="none", tuned_blocks=0)
    tuned = load_backbone(samples_dir() / "weights/timet_tiny.safetensors", tuned_blocks=0)
    means = {}
    for name, backbone in (("start", start), ("tuned", tuned)):
        video = extract_tokens(
            backbone, sources, num_frames=3, image_size=96, mask_size=96, device="cpu", keep_frames=True
        )
        tokens, masks, frames = (x.reshape(-1, *x.shape[2:]) for x in (video.tokens, video.masks, video.frames))
        check_shape(tokens, "b n d", "tokens", b=36, n=144)
        for k in ("gt", 30):
            means[name, k] = cluster_images(tokens, masks, (12, 12), k, num_classes=9, seeds=2, niter=20, nredo=2).mean
    for k in ("gt", 30):
        assert means["tuned", k] > means["start", k] + 0.1
    # with many clusters mean colours are as good in this world, and lesson 12 says so
    colour = mean_colour_tokens(frames, (12, 12))
    by_colour = cluster_images(colour, masks, (12, 12), "gt", num_classes=9, seeds=2, niter=20, nredo=2).mean
    assert means["tuned", "gt"] > by_colour + 0.1
