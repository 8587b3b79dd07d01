"Cluster-based foreground extraction against loops written from the definition."

import itertools
import json
import types

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from timet.backbone import create_backbone, stem
from timet.core import TimetError
from timet.eval import cbfe as room_of_cbfe
from timet.eval import foreground as room
from timet.eval.attention import WithAttention, attention_masks, class_attention
from timet.eval.cbfe import (
    CLASSES,
    VARIANTS,
    FindClasses,
    _Rows,
    choose_threshold,
    cluster_scores,
    foreground,
    foreground_clusters,
    foreground_pixels,
    jaccard,
    masked_patches,
)
from timet.eval.foreground import main
from timet.eval.score import confusion, match_hungarian, miou
from timet.eval.tokens import Tokens


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return create_backbone("timet_tiny_patch8_96", weights="none", tuned_blocks=0).eval()


def test_attention_is_that_of_the_last_block(tiny):
    "Recomputed from the weights: all heads, softmax over class token and patches, then the patches."
    images = torch.randn(2, 3, 96, 96)
    found = class_attention(tiny, images)
    model = tiny.model
    with torch.no_grad():
        x = stem(tiny.model, tiny.converted(images))
        for block in list(model.blocks)[:-1]:
            x = block(x)
        x = model.blocks[-1].norm1(x)
        attn = model.blocks[-1].attn
        weight, bias = attn.qkv.weight, attn.qkv.bias
        d, heads = x.shape[-1], attn.num_heads
        for b in range(2):
            for h in range(heads):
                rows = slice(h * d // heads, (h + 1) * d // heads)
                q = x[b, 0] @ weight[:d][rows].T + bias[:d][rows]
                k = x[b] @ weight[d : 2 * d][rows].T + bias[d : 2 * d][rows]
                want = (k @ q / (d // heads) ** 0.5).softmax(0)
                torch.testing.assert_close(found[b, h], want[1:], atol=1e-5, rtol=1e-4)
    assert found.shape == (2, 4, 144) and (found.sum(-1) < 1).all()


def test_tokens_with_attention_are_the_same_tokens(tiny):
    images = torch.randn(1, 3, 96, 96)
    both = WithAttention(tiny)
    with torch.no_grad():
        out = both.tokens(images)
        torch.testing.assert_close(out[..., :-1], tiny.tokens(images))
    torch.testing.assert_close(out[..., -1], class_attention(tiny, images).mean(1))
    assert not tiny.model.blocks[-1].attn._forward_pre_hooks  # nothing stays behind
    assert both.grid(96, 96) == (12, 12) and both.embed_dim == 129


@pytest.mark.parametrize("network", ["resnet18", "vit_base_patch16_siglip_224"])
def test_no_class_token_is_refused(network):
    with pytest.raises(TimetError, match="class token"):
        class_attention(create_backbone(network, weights="none", model_args=None), torch.zeros(1, 3, 224, 224))


def test_attention_masks_by_loops():
    rng = np.random.default_rng(0)
    gaze = rng.random((5, 99)) ** 6
    found = attention_masks(gaze, (9, 11))
    for b in range(5):
        # the same Gaussian, 7 wide, mirrored at the border without repeating it
        smooth = gaussian_filter(gaze[b].reshape(9, 11), 0.6, radius=3, mode="mirror").ravel()
        kept, mass = set(), 0.0
        for i in np.argsort(-smooth):
            kept.add(int(i))
            mass += smooth[i]
            if mass >= 0.65 * smooth.sum():
                break
        want = np.zeros((9, 11), bool)
        want.ravel()[list(kept)] = True
        seen = np.zeros_like(want)
        for start in zip(*np.nonzero(want)):
            if seen[start]:
                continue
            part, queue = [], [start]
            seen[start] = True
            while queue:
                y, x = queue.pop()
                part.append((y, x))
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        at = (y + dy, x + dx)
                        if 0 <= at[0] < 9 and 0 <= at[1] < 11 and want[at] and not seen[at]:
                            seen[at] = True
                            queue.append(at)
            if len(part) < 3:
                for at in part:
                    want[at] = False
        assert (found[b] == want).all()


def test_jaccard_by_loops():
    rng = np.random.default_rng(0)
    pred, masks = rng.random((6, 7, 8)) < 0.5, rng.choice([0, 0, 1, 5, 255], (6, 7, 8))
    pred[4], masks[4], masks[5] = False, 0, 255
    for boundary in (True, False):
        want = []
        for p, m in zip(pred, masks):
            both = either = 0
            for a, b in zip(p.ravel(), m.ravel()):
                if b == 255 and not boundary:
                    continue
                both += a and b != 0
                either += a or b != 0
            want.append(both / either if either else np.nan)
        np.testing.assert_allclose(jaccard(pred, masks, boundary=boundary), want)
    with pytest.raises(TimetError, match="the foreground must have the shape"):
        jaccard(pred[:2], masks)


def test_cluster_scores_by_loops():
    rng = np.random.default_rng(0)
    labels, attended = rng.integers(0, 6, (5, 4, 4)), rng.random((5, 4, 4)) < 0.4
    labels[labels == 3] = 2  # cluster 3 never occurs
    want = []
    for c in range(6):
        rows = [attended[i][labels[i] == c].mean() for i in range(5) if (labels[i] == c).any()]
        want.append(np.mean(rows) if rows else np.nan)
    np.testing.assert_allclose(cluster_scores(labels, attended, 6), want)


def test_published_threshold_by_trying_every_cut():
    rng = np.random.default_rng(0)
    for _ in range(5):
        k = 40
        labels, masks = rng.integers(0, k, (6, 10, 10)), rng.choice([0, 0, 1, 255], (6, 10, 10))
        masks[0, 0, 0] = 1
        scores = rng.random(k)
        order, best = np.argsort(scores), (-1.0, 0.0)
        for start in range(int(0.55 * k), int(0.75 * k)):
            pred = np.isin(labels, order[start:])
            value = jaccard(pred, masks).mean()
            best = max(best, (value, scores[order[start]]))
        want = min(np.arange(0, 1.01, 0.05), key=lambda v: abs(v - best[1]))
        assert choose_threshold(scores, "gt", labels=labels, masks=masks) == pytest.approx(want)


def test_thresholds_without_labels():
    scores = np.array([0.1, 0.12, 0.11, 0.9, 0.88, np.nan])
    assert choose_threshold(scores, "otsu") == pytest.approx((0.12 + 0.88) / 2)
    assert choose_threshold(scores, "share") == pytest.approx((0.12 + 0.88) / 2)
    assert choose_threshold(scores, "share", share=0.0) == 0.1
    assert choose_threshold(np.array([0.3]), "otsu") == 0.3
    for how, word in (("gt", "true masks"), ("luck", "gt, share, otsu")):
        with pytest.raises(TimetError, match=word):
            choose_threshold(scores, how)
    with pytest.raises(TimetError, match="not one cluster"):
        choose_threshold(np.full(3, np.nan))


def world(seed, b=8):
    "Tokens in four clear groups; two of them are things, and attention sees most of these."
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 4, (b, 6, 6))
    tokens = np.eye(8, dtype=np.float32)[kinds.reshape(b, 36)] + 0.05 * rng.standard_normal((b, 36, 8)).astype(
        np.float32
    )
    masks = np.where(kinds >= 2, kinds - 1, 0).repeat(4, 1).repeat(4, 2)
    attended = (kinds >= 2) ^ (rng.random(kinds.shape) < 0.15)
    return tokens, masks, attended


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("threshold", ["otsu", "gt", 0.5])
def test_foreground_of_a_clear_world(variant, threshold):
    tokens, masks, attended = world(0)
    found = foreground(
        tokens, masks, attended, (6, 6), train=world(1, 5), variant=variant, threshold=threshold, k=4, nredo=3
    )
    assert (found.pred == (found.scores >= found.threshold)[found.labels]).all() and found.attention_jaccard < 0.9
    if threshold == "gt":  # as published: the score of a training cluster, rounded, which may part clusters of one kind
        assert found.threshold * 20 == pytest.approx(round(found.threshold * 20)) and found.jaccard > 0
    else:
        assert found.jaccard == 1.0 and (found.pred == (masks[:, ::4, ::4] > 0)).all()
    assert found.ground_truth == ("train" if threshold == "gt" else "none")
    assert ("true masks" in str(found)) == (threshold == "gt")


def test_whose_labels_were_used_is_said():
    tokens, masks, attended = world(0)
    own = foreground(tokens, masks, attended, (6, 6), threshold="gt", k=4)
    assert own.ground_truth == "its own" and "these very pictures" in str(own)
    free = foreground(tokens, masks, attended, (6, 6), threshold="share", k=4)
    moved = foreground(tokens, masks[::-1], attended, (6, 6), threshold="share", k=4)
    assert (free.pred == moved.pred).all() and "no label used" in str(free)
    none = foreground(tokens, masks, attended, (6, 6), threshold=2.0, k=4)
    assert not none.pred.any() and none.jaccard == 0


def test_rows_of_several_sets():
    a, b = np.random.default_rng(0).random((3, 4, 2)), np.random.default_rng(1).random((2, 4, 2))
    rows, want = _Rows([a, b]), np.concatenate([a.reshape(-1, 2), b.reshape(-1, 2)]).astype(np.float32)
    for part in (slice(0, 20), slice(3, 5), slice(10, 14), slice(12, 13), slice(18, 99), slice(20, 30)):
        np.testing.assert_array_equal(rows[part], want[part])


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_classes_of_the_foreground(variant):
    tokens, masks, _ = world(0)
    truth = masks[:, ::4, ::4] > 0
    score = foreground_clusters(tokens, truth, masks, 2, variant=variant, seeds=2, nredo=3)
    exact = variant == "leopart"  # the released code enlarges bilinearly, and this world is a chessboard
    assert score.mean == 1.0 if exact else 0.6 < score.mean < 1
    assert score.settings["size"] == 100 and score.settings["niter"] == (100 if exact else 50)
    masks = masks.copy()
    masks[0] = 255
    again = foreground_clusters(tokens, truth, masks, 2, variant=variant, seeds=1, nredo=3).mean
    assert again == 1.0 if exact else again > 0.6
    nothing = np.zeros_like(truth)
    if variant == "leopart":
        with pytest.raises(TimetError, match="got 0"):
            foreground_clusters(tokens, nothing, masks, 2)
    with pytest.raises(TimetError, match="not one pixel"):
        foreground_clusters(tokens, truth, masks * 0 + 255, 2)


def test_leopart_clusters_the_foreground_of_both_parts():
    (tokens, masks, _), (others, their_masks, _) = world(0, 3), world(1, 2)
    pred, their_pred = masks[:, ::4, ::4] > 0, their_masks[:, ::4, ::4] > 0
    features, inside = foreground_pixels([(tokens, pred), (others, their_pred)], FindClasses(size=20, pca=None))
    # by hand: every pixel of 20 x 20 takes the patch that it lies in
    cell = [int((i + 0.5) * 6 / 20) for i in range(20)]
    rows = [
        part[b, cell[y] * 6 + cell[x]]
        for part, found in ((tokens, pred), (others, their_pred))
        for b, y, x in itertools.product(range(len(part)), range(20), range(20))
        if found[b, cell[y], cell[x]]
    ]
    want = (np.array(rows) - np.mean(rows, 0)) / np.std(rows, 0)
    np.testing.assert_allclose(features, want, atol=1e-4)
    assert inside.shape == (3, 20, 20) and inside.sum() < len(features)
    both = foreground_clusters(tokens, pred, masks, 2, train=(others, their_pred), seeds=1, nredo=3)
    assert both.mean == 1.0 and both.settings["train"] == 2


def test_released_masks_raw_features_before_they_are_reduced():
    tokens, masks, _ = world(0, 3)
    pred = masks[:, ::4, ::4] > 0
    got = masked_patches(tokens, pred, FindClasses(pca=None))
    rows = (tokens * pred.reshape(3, 36, 1)).reshape(-1, 8)
    want = (rows - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(got.reshape(-1, 8), want, atol=1e-4)
    assert got.shape == (3, 1, 36, 8)


def test_the_recipes_are_as_they_were_published():
    leopart, released = VARIANTS["leopart"], VARIANTS["released"]
    assert (leopart.k, leopart.spherical, leopart.niter, leopart.joint) == (200, True, 100, True)
    assert (leopart.attention, leopart.train_split) == ("vit_small_patch16_224.dino", "train")
    assert (released.k, released.spherical, released.niter, released.joint) == (300, False, 50, False)
    assert (released.attention, released.train_split) == ("own", "trainaug")
    assert {s.threshold_size for s in VARIANTS.values()} == {100}
    assert (CLASSES["leopart"].niter, CLASSES["released"].niter) == (100, 50)


def test_labels_choose_the_threshold_at_its_own_size():
    tokens, masks, attended = world(0)
    sizes = []
    real = room_of_cbfe.choose_threshold

    def spy(scores, how, labels=None, masks=None):
        sizes.append((labels.shape, masks.shape))
        return real(scores, how, labels=labels, masks=masks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room_of_cbfe, "choose_threshold", spy)
        foreground(tokens, masks, attended, (6, 6), threshold="gt", k=4)
    assert sizes == [((8, 100, 100), (8, 100, 100))]


def test_background_is_one_cluster():
    tokens, masks, _ = world(0)
    wrong = np.zeros((8, 6, 6), bool)
    wrong[:, :3] = True
    score = foreground_clusters(tokens, wrong, masks, 3, seeds=[4], nredo=1)
    counts = confusion(np.where(wrong, 1, 0).repeat(4, 1).repeat(4, 2), (masks > 0).astype(int), 2, 2)
    assert 0 < score.mean < 1 and miou(counts, match_hungarian(counts))[0] < 1


def test_wrong_arrays_are_refused():
    tokens, masks, attended = world(0)
    for bad in ((tokens[:3], masks, attended), (tokens, masks, attended[:, :3])):
        with pytest.raises(TimetError, match="shape"):
            foreground(*bad, (6, 6), k=4)
    with pytest.raises(TimetError, match="variant"):
        foreground(tokens, masks, attended, (6, 6), variant="other")


def test_command(monkeypatch, capsys, tmp_path, tiny):
    "The command with the reading of pictures replaced."
    parts = {split: world(i) for i, split in enumerate(("val", "train"))}

    def load_part(config, networks, split):
        tokens, masks, attended = parts[split]
        return Tokens(tokens, masks, (6, 6), [], {0: "background", 1: "fish"}), attended

    monkeypatch.setattr(room, "load_part", load_part)
    monkeypatch.setattr(room, "data_of", lambda config: [])
    monkeypatch.setattr("timet.backbone.open_backbone", lambda *a, **k: tiny)
    short = ["net", "--data", "voc", "--k", "4", "--attention", "own", "--no-floors"]
    main([*short, "--threshold", "otsu", "--classes", "2", "--out", str(tmp_path / "o.json")])
    out = capsys.readouterr().out
    assert "Jaccard 100.0" in out and "no label used" in out and "mIoU 100.0" in out and out.startswith(tiny.name)
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["ground_truth"] == "none" and found["network"] == tiny.name and found["fingerprint"]
    assert {"background", "fish"} < set(found["classes"]["per_class"]) and found["classes"]["mean"] == 1.0
    # both methods have a name, and one of them is the report's
    assert found["method"] == "cbfe" and found["methods"]["cbfe"] == found["jaccard"] == 1.0
    assert f"attention maps alone, of the network itself: Jaccard {100 * found['methods']['attention']:.1f}" in out
    main([*short, "--threshold", "otsu", "--method", "attention", "--out", str(tmp_path / "a.json")])
    other = json.loads((tmp_path / "a.json").read_text())
    assert other["jaccard"] == other["attention_jaccard"] == found["methods"]["attention"] < 1
    capsys.readouterr()
    main([*short, "--train-split", "train"])
    assert "true masks of the training pictures" in capsys.readouterr().out
    main(short)
    assert "own true masks" in capsys.readouterr().out
    main([*short, "--threshold", "share"])
    assert "no label used" in capsys.readouterr().out
    # of several processes the first one speaks and writes
    monkeypatch.setattr(room, "this_shard", lambda: (1, 2))
    main([*short, "--out", str(tmp_path / "second.json")])
    assert capsys.readouterr().out == "" and not (tmp_path / "second.json").exists()


def test_reading_a_part(monkeypatch, tiny):
    "Tokens and attention come out of one pass, masks lose their grounds."
    images = types.SimpleNamespace(classes={0: "background", 1: "sky", 2: "fish"})
    asked = []

    def tokens_of(config, backbone, images, mask_size, batch_size):
        asked.append(mask_size)
        with torch.no_grad():
            tokens = backbone.tokens(torch.randn(3, 3, 96, 96)).numpy()
        masks = np.random.default_rng(0).integers(0, 3, (3, 20, 20))
        return Tokens(tokens, masks, (12, 12), ["a", "b", "c"])

    monkeypatch.setattr("timet.eval.foreground.labelled_images", lambda config, split: images)
    monkeypatch.setattr("timet.eval.foreground.stored_tokens", tokens_of)
    config = room.ForegroundConfig("net", "data", background=("sky",))
    part, attended = room.load_part(config, [tiny], "val")
    assert part.tokens.shape == (3, 144, 128) and attended.shape == (3, 12, 12) and part.grid == (12, 12)
    assert set(np.unique(part.masks)) == {0, 2} and asked == [448]
    assert room.load_part(config, [tiny, tiny], "val")[0].tokens.shape == (3, 144, 128) and len(asked) == 3
    with pytest.raises(TimetError, match="the categories are background, sky, fish"):
        room.load_part(room.ForegroundConfig("net", "data", background=("sea",)), [tiny], "val")


def test_stored_bits_are_numbers():
    "Tokens that are kept as the bits of bf16 give the foreground of their values."
    tokens, masks, attended = world(0)
    values = torch.from_numpy(tokens).bfloat16()
    bits, same = values.view(torch.int16).numpy().view(np.uint16), values.float().numpy()
    first, second = (foreground(x, masks, attended, (6, 6), k=4, threshold="otsu") for x in (bits, same))
    np.testing.assert_array_equal(first.labels, second.labels)
