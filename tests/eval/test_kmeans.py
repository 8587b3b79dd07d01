"PCA and k-means against what NumPy makes of the definitions."

import subprocess
import sys
import time

import numpy as np
import pytest

from timet.core import TimetError
from timet.eval.kmeans import _say_once, assign, kmeans, load_faiss, standardize_pca, train_kmeans
from timet.eval.score import confusion, match_hungarian, match_many_to_one, miou


@pytest.mark.parametrize(
    "call, words",
    [
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


@pytest.mark.parametrize(
    "asked, count, where", [(None, 40_000, True), (None, 50, False), (False, 40_000, False), (True, 50, True)]
)
def test_a_large_problem_goes_to_a_gpu_that_faiss_sees(monkeypatch, capsys, asked, count, where):
    faiss, taken = load_faiss(), []

    class Kmeans:
        def __init__(self, d, k, **how):
            taken.append(how["gpu"])
            self.centroids = np.zeros((k, d), np.float32)

        def train(self, x):
            pass

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "Kmeans", Kmeans)
    _say_once.cache_clear()
    x = np.zeros((count, 50), np.float32)
    for _ in range(2):
        train_kmeans(x, 200 if count > 50 else 2, gpu=asked, max_points_per_centroid=8000)
    said = capsys.readouterr().err
    assert taken == [where] * 2
    assert said.count("k-means: faiss runs on 1 GPU;") == (where and asked is None)
