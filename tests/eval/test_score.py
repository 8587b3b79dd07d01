"Counting, matching and mIoU against brute force written from the definitions."

import itertools

import numpy as np
import pytest
import torch

from timet.core import TimetError
from timet.eval.score import confusion, iou_table, match_hungarian, match_many_to_one, miou


def naive_confusion(pred, gt, k, g, ignore):
    table = np.zeros((k, g), int)
    for p, c in zip(np.ravel(pred).tolist(), np.ravel(gt).tolist()):
        if c != ignore:
            table[p, c] += 1
    return table


def naive_miou(pred, gt, assignment, g, ignore, background=True):
    "From the pixels, class by class."
    pred, gt = np.ravel(pred), np.ravel(gt)
    keep = gt != ignore
    named, gt = np.asarray(assignment)[pred[keep]], gt[keep]
    scores = []
    for c in range(g):
        inter, union = ((named == c) & (gt == c)).sum(), ((named == c) | (gt == c)).sum()
        scores.append(inter / union if (gt == c).any() and (background or c) else np.nan)
    scores = np.array(scores, float)
    return (scores[~np.isnan(scores)].mean() if (~np.isnan(scores)).any() else np.nan), scores


def best_pairing(counts):
    "The largest sum of IoU over all one-to-one pairings of clusters with the classes that occur."
    table, present = iou_table(counts), np.flatnonzero(counts.sum(0))
    k, best = len(counts), -1.0
    few, many = sorted((k, len(present)))
    for chosen in itertools.permutations(range(many), few):
        pairs = zip(range(k), chosen) if k <= len(present) else zip(chosen, range(len(present)))
        best = max(best, sum(table[c, present[j]] for c, j in pairs))
    return best


CASES = [  # clusters, classes, classes that never occur
    (3, 3, []),
    (2, 4, []),
    (6, 3, []),
    (4, 5, [0]),
    (5, 5, [1, 3]),
    (1, 1, []),
    (1, 4, [0, 1, 2]),
]


@pytest.mark.parametrize("k, g, absent", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_against_brute_force(k, g, absent, seed):
    rng = np.random.default_rng(seed)
    gt = rng.choice([c for c in range(g) if c not in absent], (5, 9, 7)).astype(np.uint8)
    # related to the truth, so that matching has something to find
    pred = np.where(rng.random(gt.shape) < 0.6, gt % k, rng.integers(0, k, gt.shape))
    gt[rng.random(gt.shape) < 0.2] = 255
    counts = confusion(pred, gt, k, g)
    np.testing.assert_array_equal(counts, naive_confusion(pred, gt, k, g, 255))

    hungarian = match_hungarian(counts)
    pairs = match_hungarian(counts, unmatched=-1)
    table = iou_table(counts)
    matched = pairs >= 0
    assert matched.sum() == min(k, len(np.flatnonzero(counts.sum(0))))
    assert len(set(pairs[matched])) == matched.sum()
    np.testing.assert_array_equal(hungarian[~matched], 0)
    np.testing.assert_allclose(table[np.flatnonzero(matched), pairs[matched]].sum(), best_pairing(counts))

    greedy = match_many_to_one(counts)
    for c in range(k):
        precision = [np.mean(gt[(pred == c) & (gt != 255)] == j) if counts[c].sum() else 0 for j in range(g)]
        assert greedy[c] == int(np.argmax(precision))

    for assignment, background in itertools.product((hungarian, greedy, np.maximum(pairs, 0)), (True, False)):
        mean, per_class = miou(counts, assignment, background=background)
        want, want_each = naive_miou(pred, gt, assignment, g, 255, background)
        np.testing.assert_allclose(mean, want)
        np.testing.assert_allclose(per_class, want_each)


def test_permutation_of_cluster_ids_changes_nothing():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 99, (8, 5))
    order = rng.permutation(8)
    for match in (match_hungarian, match_many_to_one):
        assert miou(counts, match(counts))[0] == pytest.approx(miou(counts[order], match(counts[order]))[0])


def test_unmatched_clusters_without_a_class_are_misses_only():
    counts = np.array([[10, 0], [0, 6], [2, 4]])
    to_background, to_none = match_hungarian(counts), match_hungarian(counts, unmatched=-1)
    assert to_background.tolist() == [0, 1, 0] and to_none.tolist() == [0, 1, -1]
    np.testing.assert_allclose(miou(counts, to_background)[1], [12 / 16, 6 / 10])
    np.testing.assert_allclose(miou(counts, to_none)[1], [10 / 12, 6 / 10])


def test_ties_take_the_lowest_class():
    assert match_many_to_one(np.array([[3, 3, 0], [0, 2, 2], [0, 0, 0]])).tolist() == [0, 1, 0]


def test_everything_ignored():
    counts = confusion(np.array([[0, 1]]), np.full((1, 2), 255), 2, 3)
    assert counts.sum() == 0
    assert match_hungarian(counts).tolist() == [0, 0]
    mean, per_class = miou(counts, match_hungarian(counts))
    assert np.isnan(mean) and np.isnan(per_class).all()


def test_no_pixels_and_odd_types():
    assert confusion(np.empty(0, int), np.empty(0, int), 2, 2).sum() == 0
    assert confusion(torch.tensor([1, 0]), np.array([True, False]), 2, 2).tolist() == [[1, 0], [0, 1]]
    # ignored pixels may carry any prediction
    assert confusion([-7, 0], [255, 1], 1, 2).tolist() == [[0, 1]]
    # and 255 is an ordinary class where nothing is ignored
    assert confusion(np.array([255], np.uint8), np.array([255], np.uint8), 256, 256, ignore=None)[255, 255] == 1


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: confusion([0.0], [0], 1, 1), "must be integers"),
        (lambda: confusion([0], [[0]], 1, 1), "one shape"),
        (lambda: confusion([-1], [0], 1, 1), "cluster ids must lie in 0..0, got -1"),
        (lambda: confusion([0], [7], 1, 5), "class ids must lie in 0..4, got 7"),
        (lambda: match_hungarian(np.zeros(3)), "(k g)"),
        (lambda: match_many_to_one(np.zeros((1, 2, 3))), "(k g)"),
        (lambda: miou(np.zeros((2, 2), int), [0]), "each of the 2 clusters"),
        (lambda: miou(np.zeros((2, 2), int), [0, 2]), "0..1 or -1"),
        (lambda: miou(np.zeros((2, 2), int), [0.0, 1.0]), "each of the 2 clusters"),
    ],
)
def test_wrong_input_is_explained(call, words):
    with pytest.raises(TimetError) as caught:
        call()
    assert words in str(caught.value)
