"""Representation topology divergence: (N, D_a), (N, D_b) -> divergence, 0 = alike, unbounded.

gudhi computes the barcodes; it releases the interpreter lock, so directions and trials run in threads.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Prepared, Rep, as_rep

_FAR = 10  # norm, in quantiles of distances, above which differences are squared, instead of squares subtracted


def rtd(x: Rep, y: Rep, *, batch: int = 500, trials: int = 10, seed: int = 0, workers: int | None = None) -> float:
    """Representation topology divergence of two representations of the same images.

    Per trial: draw `batch` images, r1 and r2 = pairwise Euclidean distances, each divided by its own 0.9 quantile;
    RTD(1, 2) = total length of the H1 barcode of [[0, r1], [r1, min(r1, r2)]]; then the mean of RTD(1, 2) and
    RTD(2, 1), and the mean over trials. The images drawn depend on N and `seed` alone: all pairs of models are
    compared on the same ones, and swapping the models changes nothing.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image.
        batch: images per trial. With N <= batch all N are used, in a single trial: another would draw the same.
        trials: subsamples to average over; `Measure.per_trial` has the score of each.
        seed: of the subsamples.
        workers: threads for the barcodes; default: one per CPU core this process may use.

    Returns:
        Divergence >= 0 in units of the 0.9 quantile of distances; 0 if the distances agree up to scale. It grows
        with `batch`.

    Raises:
        ValueError: fewer than 3 images, nine tenths of the distances 0, different numbers of images, NaN input.

    Source: Barannikov et al., ICML 2022.
    """
    return rtd_measure(batch=batch, trials=trials, seed=seed, workers=workers)(x, y)


def rtd_measure(*, batch: int = 500, trials: int = 10, seed: int = 0, workers: int | None = None) -> Measure:
    """Measure `rtd`; see `rtd`."""

    def per_trial(pair: Pair) -> Tensor:
        return divergence_per_trial(pair, workers)

    def score(pair: Pair) -> float:
        return pair.once(per_trial).mean().item()

    return Measure("rtd", DrawDistances(batch, trials, seed), score, 0.0, larger_is_closer=False, per_trial=per_trial)


def rtd_lite(x: Rep, y: Rep, *, batch: int = 1000, trials: int = 10, seed: int = 0) -> float:
    """RTD-Lite: what minimum spanning trees see of the divergence, in O(batch^2).

    With r1, r2 as for `rtd` and |T(r)| the length of the minimum spanning tree of distances r:
    (|T(r1)| + |T(r2)|) / 2 - |T(min(r1, r2))|, the total length of both directions' RTD-Lite barcodes, halved.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image.
        batch, trials, seed: random images, as for `rtd`.

    Returns:
        Divergence >= 0 in units of the 0.9 quantile of distances, 0 = alike. It grows with `batch`.

    Raises:
        ValueError: fewer than 3 images, nine tenths of the distances 0, different numbers of images, NaN input.

    Source: Tulchinskii et al., 2025 (arXiv 2503.11910).
    """
    return rtd_lite_measure(batch=batch, trials=trials, seed=seed)(x, y)


def rtd_lite_measure(*, batch: int = 1000, trials: int = 10, seed: int = 0) -> Measure:
    """Measure `rtd_lite`; see `rtd_lite`."""
    draw = DrawDistances(batch, trials, seed)
    return Measure("rtd_lite", draw, lite_score, 0.0, larger_is_closer=False, per_trial=lite_divergence_per_trial)


@dataclass(frozen=True)
class Distances(Prepared):
    """Scaled distances of the images drawn in each trial: (trials, batch, batch) float64 on the CPU."""

    distances: Tensor
    rep: Tensor  # the caller's own, only referred to: permuted rows have other distances
    order: Tensor | None
    draw: "DrawDistances"

    def __len__(self) -> int:
        return len(self.rep)

    def permute(self, order: Tensor) -> "Distances":
        return self.draw.measure(self.rep, order if self.order is None else self.order[order])


@dataclass(frozen=True)
class DrawDistances(Preparation):
    """Distances within seeded subsamples of the images, divided by their 0.9 quantile, in float64."""

    batch: int = 500
    trials: int = 10
    seed: int = 0

    def prepare(self, rep: Rep) -> Distances:
        return self.measure(as_rep(rep, min_images=3), None)

    def measure(self, rep: Tensor, order: Tensor | None) -> Distances:
        """Distances within the trials of `rep[order]`, without making that copy."""
        trials = self.images(len(rep)).to(rep.device)
        trials = trials if order is None else order.to(rep.device)[trials]
        distances = torch.stack([scaled_distances(rep[images].double()).cpu() for images in trials])
        return Distances(distances, rep, order, self)

    def images(self, n: int) -> Tensor:
        """(trials, batch) indices into n images, without replacement within a trial."""
        if n <= self.batch:
            return torch.arange(n)[None]
        generator = torch.Generator().manual_seed(self.seed)
        return torch.stack([torch.randperm(n, generator=generator)[: self.batch] for _ in range(self.trials)])


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
    """(trials,) mean of RTD(a, b) and RTD(b, a) of two `Distances`."""
    a, b = pair.a.distances.numpy(), pair.b.distances.numpy()
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


def joint_distances(r1: np.ndarray, r2: np.ndarray, infinite: bool = True) -> np.ndarray:
    """(2n, 2n) matrix of distances whose H1 barcode measures what r1 joins later than r2; see `barcode_length`."""
    n = len(r1)
    cross = r1.copy()
    if infinite:
        cross[np.tril_indices(n, -1)] = np.inf
    matrix = np.zeros((2 * n, 2 * n))
    matrix[n:, :n] = cross
    matrix[:n, n:] = cross.T
    matrix[n:, n:] = np.minimum(r1, r2)
    matrix[matrix < 1e-6 * r1.mean()] = 0
    return matrix


def lite_score(pair: Pair) -> float:
    """RTD-Lite of two `Distances`, the mean over trials."""
    return pair.once(lite_divergence_per_trial).mean().item()


def lite_divergence_per_trial(pair: Pair) -> Tensor:
    """(trials,) RTD-Lite of two `Distances`."""
    together = [tree_length(trial) for trial in torch.minimum(pair.a.distances, pair.b.distances).numpy()]
    apart = (pair.a.once(tree_lengths) + pair.b.once(tree_lengths)) / 2
    return (apart - torch.tensor(together, dtype=torch.float64)).clamp(min=0)  # rounding can dip below 0


def tree_lengths(a: Distances) -> Tensor:
    """(trials,) lengths of the minimum spanning trees of a model."""
    return torch.tensor([tree_length(trial) for trial in a.distances.numpy()], dtype=torch.float64)


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
