"""Representation topology divergence: (N, D_a), (N, D_b) -> divergence, 0 = alike, unbounded.

gudhi computes the barcodes; it releases the interpreter lock, so directions and trials run in threads.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, mean_of
from univ.measures.cards import PAPER, as_function, register
from univ.measures.subsamples import Drawn, Subsamples

_FAR = 10  # norm, in quantiles of distances, above which differences are squared, instead of squares subtracted


@register("rtd", label="negative RTD", lists=PAPER, larger_is_closer=False)
def rtd_measure(*, batch: int = 500, trials: int = 10, seed: int = 0, workers: int | None = None) -> Measure:
    """Representation topology divergence.

    Per trial: draw `batch` images, r1 and r2 = pairwise Euclidean distances, each divided by its own 0.9 quantile;
    RTD(1, 2) = total length of the H1 barcode of [[0, r1], [r1, min(r1, r2)]]; then the mean of RTD(1, 2) and
    RTD(2, 1), and the mean over trials. All pairs of models are compared on the same images, and swapping the models
    changes nothing.

    Args:
        batch, trials, seed: random images, see `Subsamples`; `Measure.per_trial` has the score of each trial.
        workers: threads for the barcodes; default: one per CPU core this process may use.

    Returns:
        Divergence >= 0 in units of the 0.9 quantile of distances; 0 if the distances agree up to scale. It grows
        with `batch`.

    Raises ValueError: fewer than 3 images, nine tenths of the distances 0. Source: Barannikov et al., ICML 2022.
    """
    per_trial = partial(divergence_per_trial, workers=workers)
    return Measure(Subsamples(drawn_distances, batch, trials, seed), mean_of(per_trial), per_trial)


@register("rtd_lite", larger_is_closer=False)
def rtd_lite_measure(*, batch: int = 1000, trials: int = 10, seed: int = 0) -> Measure:
    """RTD-Lite: what minimum spanning trees see of the divergence, in O(batch^2).

    With r1, r2 as for `rtd` and |T(r)| the length of the minimum spanning tree of distances r:
    (|T(r1)| + |T(r2)|) / 2 - |T(min(r1, r2))|, the total length of both directions' RTD-Lite barcodes, halved.

    Args:
        batch, trials, seed: random images, as for `rtd`.

    Returns:
        Divergence >= 0 in units of the 0.9 quantile of distances, 0 = alike. It grows with `batch`.

    Raises ValueError: fewer than 3 images, nine tenths of the distances 0. Source: Tulchinskii et al., 2025 (arXiv
    2503.11910).
    """
    per_trial = lite_divergence_per_trial
    return Measure(Subsamples(drawn_distances, batch, trials, seed), mean_of(per_trial), per_trial)


rtd = as_function(rtd_measure, "rtd")
rtd_lite = as_function(rtd_lite_measure, "rtd_lite")


def drawn_distances(rep: Tensor, images: Tensor) -> Tensor:
    """(n, n) float64 scaled distances between some images, on the CPU."""
    return scaled_distances(rep[images].double()).cpu()


def scaled_distances(rep: Tensor) -> Tensor:
    """(n, n) Euclidean distances between the rows of a float64 `rep`, divided by the 0.9 quantile of the matrix.

    Raises:
        ValueError: that quantile is 0 (nine tenths of the rows coincide).
    """
    centered = rep - rep.mean(dim=0)
    squares = centered.square().sum(dim=1)
    distances = (squares[:, None] + squares - 2 * centered @ centered.T).clamp(min=0).sqrt()
    distances = torch.maximum(distances, distances.T).fill_diagonal_(0)
    quantile = torch.quantile(distances.flatten(), 0.9)
    if squares.max().sqrt() > _FAR * quantile:  # the far image's square has swallowed digits of all the others
        distances = torch.cdist(rep, rep, compute_mode="donot_use_mm_for_euclid_dist")
        quantile = torch.quantile(distances.flatten(), 0.9)
    if not quantile > 0:
        raise ValueError("RTD is not defined: nine tenths of the distances between images are 0")
    return distances / quantile


def divergence_per_trial(pair: Pair, workers: int | None) -> Tensor:
    """(trials,) mean of RTD(a, b) and RTD(b, a) of two models' distances."""
    a, b = pair.a.values.numpy(), pair.b.values.numpy()
    if a.shape != b.shape:
        raise ValueError(f"RTD needs the same trials in both models: got shapes {a.shape} and {b.shape}")
    first = [*a, *b]  # a trial's two directions are entries i and i + trials
    second = [*b, *a]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(workers or cores) as pool:
        lengths = list(pool.map(barcode_length, first, second))
    return torch.tensor(lengths, dtype=torch.float64).reshape(2, len(a)).mean(dim=0)


def barcode_length(r1: np.ndarray, r2: np.ndarray) -> float:
    """Total length of the H1 barcode of [[0, r1], [r1, min(r1, r2)]] for two (n, n) matrices of distances.

    The lower triangle of the r1 block is set to infinity, as in the paper: it halves the time (n = 500: 0.5 s
    instead of 0.95 s) and leaves H1 unchanged.
    """
    from gudhi.sklearn.rips_persistence import RipsPersistence  # 0.4 s to import, and only needed here

    matrix = joint_distances(r1, r2)
    bars = RipsPersistence(homology_dimensions=1, input_type="lower distance matrix").fit_transform([matrix])[0]
    return float(np.sum(bars[:, 1] - bars[:, 0]))


def joint_distances(r1: np.ndarray, r2: np.ndarray) -> np.ndarray:
    """(2n, 2n) matrix of distances whose H1 barcode measures what r1 joins later than r2; see `barcode_length`."""
    n = len(r1)
    cross = r1.copy()
    cross[np.tril_indices(n, -1)] = np.inf
    matrix = np.zeros((2 * n, 2 * n))
    matrix[n:, :n] = cross
    matrix[:n, n:] = cross.T
    matrix[n:, n:] = np.minimum(r1, r2)
    matrix[matrix < 1e-6 * r1.mean()] = 0
    return matrix


def lite_divergence_per_trial(pair: Pair) -> Tensor:
    """(trials,) RTD-Lite of two models' distances."""
    together = [tree_length(trial) for trial in torch.minimum(pair.a.values, pair.b.values).numpy()]
    apart = (pair.a.once(tree_lengths) + pair.b.once(tree_lengths)) / 2
    return (apart - torch.tensor(together, dtype=torch.float64)).clamp(min=0)  # rounding can dip below 0


def tree_lengths(a: Drawn) -> Tensor:
    """(trials,) lengths of the minimum spanning trees of a model."""
    return torch.tensor([tree_length(trial) for trial in a.values.numpy()], dtype=torch.float64)


def tree_length(distances: np.ndarray) -> float:
    """Length of the minimum spanning tree of a dense (n, n) matrix of distances.

    Prim's algorithm, a row at a time. SciPy's csgraph takes distances of 0 for missing edges.
    """
    reach = distances[0].copy()  # distance of each point to the tree
    outside = np.ones(len(distances), dtype=bool)
    outside[0] = False
    total = 0.0
    for _ in range(len(distances) - 1):
        nearest = np.where(outside, reach, np.inf).argmin()
        total += reach[nearest]
        outside[nearest] = False
        np.minimum(reach, distances[nearest], out=reach)
    return float(total)
