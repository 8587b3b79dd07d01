"Clusters, matching and mIoU against brute force written from the definitions."

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from timet.core import TimetError
from timet.eval.kmeans import assign, kmeans, load_faiss, standardize_pca
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
        (lambda: kmeans(np.zeros((3, 2)), 4), "1 to 3 clusters for 3 rows, got k=4"),
        (lambda: kmeans(np.zeros((3, 2)), 0), "got k=0"),
        (lambda: kmeans(np.full((3, 2), np.nan), 2), "must be finite"),
        (lambda: kmeans(np.zeros(3), 1), "(m d)"),
        (lambda: standardize_pca(np.full((3, 2), np.inf)), "must be finite"),
        (lambda: standardize_pca(np.zeros((3, 2)), 0), "at least one"),
        (lambda: standardize_pca(np.zeros((0, 2))), "at least one row"),
    ],
)
def test_wrong_input_is_explained(call, words):
    with pytest.raises(TimetError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize("m, d, dim", [(500, 20, 5), (30, 60, 50), (40_000, 6, 6), (7, 4, None), (1, 5, 3)])
def test_standardize_pca(m, d, dim):
    rng = np.random.default_rng(m)
    x = (rng.standard_normal((m, d)) @ rng.standard_normal((d, d)) * 3 + 5).astype(np.float32)
    got = standardize_pca(x, dim)
    assert got.dtype == np.float32 and got.shape == (m, min(dim or d, m, d))
    z = (x - x.mean(0, dtype=np.float64)) / np.maximum(x.std(0, dtype=np.float64), 1e-12)
    if m == 1:
        np.testing.assert_allclose(got, 0, atol=1e-6)
    elif dim is None:
        np.testing.assert_allclose(got, z, rtol=1e-4, atol=1e-5)
    else:
        _, s, v = np.linalg.svd(z, full_matrices=False)
        keep = s[: got.shape[1]] > 1e-6 * s[0]
        np.testing.assert_allclose(np.abs(got[:, keep]), np.abs(z @ v[: got.shape[1]].T)[:, keep], atol=2e-3)
    np.testing.assert_array_equal(got, standardize_pca(x, dim))


def test_a_constant_feature_does_not_become_noise():
    x = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    x[:, 1] = 7.3
    np.testing.assert_array_equal(standardize_pca(x, None)[:, 1], 0)


def test_kmeans_finds_what_is_there_and_repeats_itself():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 900)
    x = 8 * np.eye(6)[truth] + 0.3 * rng.standard_normal((900, 6))
    labels, centroids = kmeans(x, 6, seed=1)
    counts = confusion(labels, truth, 6, 6)
    assert miou(counts, match_hungarian(counts))[0] == 1.0
    np.testing.assert_allclose(centroids, [x[labels == c].mean(0) for c in range(6)], atol=1e-4)
    again, same = kmeans(x, 6, seed=1)
    np.testing.assert_array_equal(labels, again)
    np.testing.assert_array_equal(centroids, same)
    distance = ((x[:, None] - centroids[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(labels, distance.argmin(1))
    np.testing.assert_array_equal(assign(x.astype(np.float32), centroids), labels)


def test_kmeans_edges():
    x = np.random.default_rng(0).standard_normal((9, 3))
    assert sorted(kmeans(x, 9)[0]) == list(range(9))
    assert set(kmeans(np.ones((5, 3)), 2)[0]) <= {0, 1}
    labels, centroids = kmeans(x, 3, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(labels, (x @ centroids.T).argmax(1))


def test_faiss_keeps_its_number_of_threads():
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    kmeans(np.zeros((4, 2)), 2)
    with pytest.raises(TimetError):
        kmeans(np.zeros((4, 2)), 5)
    assert faiss.omp_get_max_threads() == before


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(load_faiss(), "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(TimetError, match="sees no GPU"):
        kmeans(np.zeros((4, 2)), 2, gpu=True)


def test_faiss_survives_what_a_video_reader_loads():
    "decord2 loads NVIDIA's nvblas into the process; faiss must not call it."
    code = """
import numpy as np
import timet.core
try:
    import decord
except ImportError:
    pass
from timet.eval.kmeans import kmeans
print(len(kmeans(np.random.default_rng(0).standard_normal((3000, 50)), 40, niter=2, nredo=1)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "40", done.stderr[-500:]


def test_large_problems_are_quick():
    "20,000 x 384 into 21 clusters, and 500 x 21 matching on 14.5 million labels: each a second or two on two cores."
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((21, 384))[rng.integers(0, 21, 20_000)] + rng.standard_normal((20_000, 384))).astype("f4")
    start = time.perf_counter()
    kmeans(x, 21)
    clustering = time.perf_counter() - start
    pred, gt = rng.integers(0, 500, 14_500_000, dtype=np.int32), rng.integers(0, 21, 14_500_000, dtype=np.uint8)
    start = time.perf_counter()
    counts = confusion(pred, gt, 500, 21)
    for match in (match_hungarian, match_many_to_one):
        miou(counts, match(counts))
    matching = time.perf_counter() - start
    assert counts.sum() == 14_500_000
    print(f"k-means {clustering:.2f} s, matching {matching:.2f} s")
    # wide limits: a busy machine is no bug
    assert clustering < 20 and matching < 20
