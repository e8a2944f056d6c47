"""Nearest neighbours of every image in one representation, and how far two models agree on them.

(N, D) -> (N, k) indices, nearest first; two of these -> Jaccard, rank or joint similarity in [0, 1], 1 = alike.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from univ.measures.base import (
    FEW_ROWS,
    Measure,
    Pair,
    Preparation,
    Prepared,
    Rep,
    as_rep,
    column_mean,
    product,
    undefined,
)

Function = Literal["cos_sim", "euc"]
_BLOCK = 2000  # rows and columns of a block of the matrix of closeness: 16 MB in float32
_FEW = 250  # rows of a table of all images: in cache
_SPARE = 16  # candidates beyond k, among which float32 may have chosen wrongly


def jaccard(x: Rep, y: Rep, *, k: int = 500, function: Function = "cos_sim", center: bool = True) -> float:
    """Mean Jaccard similarity of the k nearest neighbours of each image.

    Per image |A n B| / |A u B| of its neighbours in either representation; the image itself is not its neighbour.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image.
        k: number of neighbours, 1 to N - 1. Ties go to the lower index.
        function: nearest by cosine similarity (`cos_sim`) or by Euclidean distance (`euc`).
        center: subtract the column means first (matters for the cosine only).

    Returns:
        Similarity in [0, 1], 1 = same neighbours. Unrelated models have about k / (2N - k).

    Raises:
        ValueError: k out of range, different numbers of images, NaN input.

    Source: Wang et al., 2022 (Towards understanding the instability of network embedding, TKDE).
    """
    return jaccard_measure(k=k, function=function, center=center)(x, y)


def rank_similarity(x: Rep, y: Rep, *, k: int = 500, function: Function = "cos_sim", center: bool = True) -> float:
    """How alike two representations order the neighbours that they share; arguments as `jaccard`.

    Per image, over the common neighbours v with ranks r1, r2 (from 1) in either list:
    [sum of 2 / ((1 + |r1 - r2|) (r1 + r2))] / [sum of 1/i for i = 1 .. number in common]; 0 with none in common.

    Returns:
        Mean over images, in [0, 1], 1 = the same neighbours in the same order.

    Source: Wang et al., 2020 (arXiv 2005.09805).
    """
    return rank_measure(k=k, function=function, center=center)(x, y)


def joint_similarity(x: Rep, y: Rep, *, k: int = 500, function: Function = "cos_sim", center: bool = True) -> float:
    """Mean over images of Jaccard times rank similarity, in [0, 1]; arguments and source as `rank_similarity`."""
    return joint_measure(k=k, function=function, center=center)(x, y)


def jaccard_measure(
    *, k: int = 500, function: Function = "cos_sim", center: bool = True, published: bool = False
) -> Measure:
    """Measure `jacc`; see `jaccard` and, for `published`, `FindNeighbors`."""
    find = FindNeighbors(k, function, center, published, ordered=False)
    return Measure("jacc", find, jaccard_score, self_score=1.0, larger_is_closer=True)


def rank_measure(
    *, k: int = 500, function: Function = "cos_sim", center: bool = True, published: bool = False
) -> Measure:
    """Measure `rank`; see `rank_similarity`."""
    find = FindNeighbors(k, function, center, published)
    return Measure("rank", find, rank_score, self_score=1.0, larger_is_closer=True)


def joint_measure(
    *, k: int = 500, function: Function = "cos_sim", center: bool = True, published: bool = False
) -> Measure:
    """Measure `rank_jacc`; see `joint_similarity`."""
    find = FindNeighbors(k, function, center, published)
    return Measure("rank_jacc", find, joint_score, self_score=1.0, larger_is_closer=True)


def mutual_knn(x: Rep, y: Rep, *, neighbors: int = 10) -> float:
    """Mean share of the nearest neighbours (by cosine, not centred) that an image has in both representations.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image.
        neighbors: how many of the nearest other images, 1 to N - 1.

    Returns:
        Similarity in [0, 1], 1 = same neighbours. Unrelated models have neighbors / (N - 1).

    Raises:
        ValueError: `neighbors` out of range, different numbers of images, NaN input.

    Source: Huh, Cheung, Wang and Isola, ICML 2024 (The Platonic representation hypothesis).
    """
    return mutual_knn_measure(neighbors=neighbors)(x, y)


def mutual_knn_measure(*, neighbors: int = 10) -> Measure:
    """Measure `mutual_knn`; see `mutual_knn`."""
    find = FindNeighbors(neighbors, "cos_sim", center=False, ordered=False)
    return Measure("mutual_knn", find, mutual_knn_score, self_score=1.0, larger_is_closer=True)


def cknna(x: Rep, y: Rep, *, neighbors: int = 10) -> float:
    """CKA of the similarities between mutual nearest neighbours alone (CKNNA).

    K_ij = cosine of x_i and x_j (not centred), L the same for y, both set to 0 unless j != i is among the nearest
    neighbours of i in both models; then HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)), where the self-terms keep
    each model's own neighbours. The masked matrices are sparse, and kept so: N x `neighbors` values.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image.
        neighbors: how many of the nearest other images, 2 to N - 1.

    Returns:
        Similarity of at most about 1, 1 = alike; not quite the same when x and y are swapped, because the mask is not
        symmetric. Nan, with an `UndefinedScore` warning, if a self-term is not positive.

    Raises:
        ValueError: `neighbors` out of range, fewer than 4 images, different numbers of images, NaN input.

    Source: Huh, Cheung, Wang and Isola, ICML 2024, appendix A and their released code (unbiased HSIC of the masked
    kernels, without the 1e-6 that it adds to the denominator).
    """
    return cknna_measure(neighbors=neighbors)(x, y)


def cknna_measure(*, neighbors: int = 10) -> Measure:
    """Measure `cknna`; see `cknna`."""
    find = FindNeighborSimilarities(neighbors)
    return Measure("cknna", find, cknna_score, self_score=1.0, larger_is_closer=True, symmetric=False)


@dataclass(frozen=True)
class Neighbors(Prepared):
    """Neighbours of every image: (N, k) int32 indices, nearest first (see `FindNeighbors.ordered`)."""

    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def permute(self, order: Tensor) -> "Neighbors":
        position = torch.empty(len(order), dtype=torch.int32, device=order.device)
        position[order] = torch.arange(len(order), dtype=torch.int32, device=order.device)  # image order[i] is now i
        return self._permuted(indices=position[self.indices[order].long()])

    def nearest(self, k: int) -> "Neighbors":
        """The first k of them: what a search for k finds."""
        if not 1 <= k <= self.indices.shape[1]:
            raise ValueError(f"k={k} of {self.indices.shape[1]} neighbours")
        return Neighbors(self.indices[:, :k])


@dataclass(frozen=True)
class FindNeighbors(Preparation):
    """Search the k nearest other images of every image: those that float64 finds, at the price of float32.

    Ties go to the lower index.

    published=True is the original's procedure: with the cosine an image's similarity to itself is set to 0 instead
    of being left out, so that it is its own neighbour where its k-th neighbour has a negative similarity; with the
    Euclidean distance it is its own first neighbour, which lifts unrelated models from 0.004 to 0.056 (N = 1000,
    k = 10).

    ordered=False finds the same neighbours, but may list those first whose closeness differs by rounding only: enough
    for Jaccard, and a tenth of the comparisons in float64.
    """

    k: int = 500
    function: Function = "cos_sim"
    center: bool = True
    published: bool = False
    ordered: bool = True

    def covers(self, other: Preparation) -> bool:
        return isinstance(other, FindNeighbors) and self in (other, replace(other, ordered=True))

    def __post_init__(self) -> None:
        if self.function not in ("cos_sim", "euc"):
            raise ValueError(f"unknown function {self.function!r}: neighbours are nearest by 'cos_sim' or 'euc'")

    def prepare(self, rep: Rep) -> Neighbors:
        space = _Space.of(as_rep(rep), self.function, self.center)
        n = len(space.rows)
        if not 1 <= self.k < n:
            raise ValueError(
                f"k={self.k} neighbours need k between 1 and the number of images - 1 = {n - 1}: "
                "change --knn or --num-inputs"
            )
        own = {("cos_sim", True): 0.0, ("euc", True): torch.inf}.get((self.function, self.published), -torch.inf)
        closeness, indices = _candidates(space, min(self.k + _SPARE, n), own)
        found = torch.empty(n, self.k, dtype=torch.int32, device=indices.device)
        for start in range(0, n, _BLOCK):
            span = slice(start, start + _BLOCK)
            found[span] = _settle(space, closeness[span], indices[span], start, self.k, own, self.ordered)
        return Neighbors(found)


@dataclass(frozen=True)
class _Space:
    """A representation ready for a search in float32 that is made exact in float64.

    `closeness` of two images is the cosine of their rows, or minus half their squared distance.
    """

    rep: Tensor  # (N, D) as it came in
    mean: Tensor  # (D,) float64
    norms: Tensor  # (N,) float64, of the centred rows
    rows: Tensor  # (N, D) float32: centred, and for the cosine of norm 1
    cosine: bool
    error: float  # bound on |float32 - exact closeness|, for rows of norm 1

    @classmethod
    def of(cls, rep: Tensor, function: Function, center: bool) -> "_Space":
        cosine = function == "cos_sim"
        mean = column_mean(rep)
        mean = mean if center or not cosine else torch.zeros_like(mean)  # distances do not see it
        rows = torch.empty(rep.shape, dtype=torch.float32, device=rep.device)
        norms = torch.empty(len(rep), dtype=torch.float64, device=rep.device)
        for start in range(0, len(rep), FEW_ROWS):
            span = slice(start, start + FEW_ROWS)
            block = rep[span].double() - mean
            norms[span] = block.norm(dim=1)
            rows[span] = torch.where(norms[span, None] > 0, block / norms[span, None], 0.0) if cosine else block
        # Measured at most 7e-7 for 64 to 32768 columns, where this is 5e-7 to 1.8e-6; _settle checks it.
        error = torch.finfo(torch.float32).eps * (4 + math.sqrt(rep.shape[1]) / 16)
        return cls(rep, mean, norms, rows, cosine, error)

    def tolerance(self, images: Tensor, others: Tensor) -> Tensor:
        """(len(images), 1) bound on the error of the float32 closeness of each image to any of its `others` (row)."""
        if self.cosine:
            return torch.full((len(images), 1), self.error, dtype=torch.float64, device=images.device)
        return (
            self.error * (self.norms[images, None] + self.norms[others.long()].amax(dim=-1, keepdim=True)).square() / 2
        )

    def search(self, a: Tensor, b: Tensor) -> Tensor:
        """(len(a), len(b)) float32 closeness of images a to images b (index tensors or slices)."""
        closeness = product(self.rows[a], self.rows[b].T)
        if not self.cosine:
            half_squares = (self.norms.square() / 2).float()
            closeness -= half_squares[a][:, None]
            closeness -= half_squares[b]
        return closeness

    def exact(self, a: Tensor, b: Tensor) -> Tensor:
        """(len(a),) float64 closeness of image a[i] to image b[i]; equal rows give equal bits, so that ties show."""
        values = []
        elements = 2**14 if self.rep.device.type == "cpu" else 2**24  # CPU: in cache; from 2**15 torch would thread it
        chunk = max(1, elements // self.rep.shape[1])
        for left, right in zip(a.split(chunk), b.split(chunk)):
            if not self.cosine:
                difference = self.rep.index_select(0, left).double() - self.rep.index_select(0, right).double()
                values.append(-difference.square_().sum(dim=1) / 2)
                continue
            product = (
                (self.rep.index_select(0, left).double() - self.mean)
                .mul_(self.rep.index_select(0, right).double() - self.mean)
                .sum(dim=1)
            )
            scale = self.norms[left] * self.norms[right]
            values.append(torch.where(scale > 0, product / scale, 0.0))
        return torch.cat(values)


def _candidates(space: _Space, count: int, own: float) -> tuple[Tensor, Tensor]:
    """(N, count) float32 closeness and int32 index of the images nearest to each image, in falling order.

    The matrix of closeness is symmetric: each block above its diagonal serves the images of its rows and those of its
    columns, which saves 40 % of the products at N = 10 000. What is held is (N, count), never (N, N).
    """
    n = len(space.rows)
    spans = [slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
    best: list[tuple[Tensor, Tensor] | None] = [None] * len(spans)

    def merge(row: int, column: int, closeness: Tensor) -> None:
        held = 0
        if best[row] is not None:
            held = best[row][0].shape[1]
            closeness = torch.cat([best[row][0], closeness], dim=1)
        closeness, columns = _largest(closeness, count)
        indices = (columns + (spans[column].start - held)).int()
        if held:
            before = best[row][1].gather(1, columns.clamp(max=held - 1))
            indices = torch.where(columns < held, before, indices)
        best[row] = closeness, indices

    for row in range(len(spans)):
        for column in range(row, len(spans)):
            closeness = space.search(spans[row], spans[column])
            if row == column:
                closeness.fill_diagonal_(own)
            else:
                merge(column, row, closeness.T.contiguous())
            merge(row, column, closeness)
    closeness, order = torch.cat([values for values, _ in best]).sort(dim=1, descending=True)
    return closeness, torch.cat([indices for _, indices in best]).gather(1, order)


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of each row and their columns, in any order; of shorter rows all values."""
    surplus = values.shape[1] - count
    if values.device.type != "cpu":
        return values.topk(min(count, values.shape[1]), dim=1, sorted=False)
    if surplus <= 0:
        return values, torch.arange(values.shape[1]).expand_as(values)

    def columns_of(rows: Tensor) -> Tensor:  # NumPy partitions with vector instructions, in a third of torch's time
        return torch.from_numpy(np.argpartition(rows.numpy(), surplus, axis=1)[:, surplus:])

    parts = values.chunk(2 * torch.get_num_threads())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        columns = torch.cat(list(pool.map(columns_of, parts)))
    return values.gather(1, columns), columns


def _settle(space: _Space, closeness: Tensor, indices: Tensor, start: int, k: int, own: float, ordered: bool) -> Tensor:
    """(rows, k) the k nearest of images start, start + 1 …, as float64 finds them; ties by lower index.

    Candidates whose float32 closeness differs by no more than rounding are compared again in float64: all of them if
    their order matters, else those that may change places with the k-th. Where such a run goes on to the last
    candidate, others may belong to it: those images are searched again among all.
    """
    images = torch.arange(start, start + len(closeness), device=closeness.device)
    tolerance = space.tolerance(images, indices)
    close = closeness[:, :-1] - closeness[:, 1:] <= 2 * tolerance  # (rows, count - 1): j and j + 1 may be swapped
    close[:, k:] &= close[:, k - 1 :].cumprod(dim=1)[:, :-1].bool()  # beyond k only what a run from k reaches
    if not ordered:
        close[:, : k - 1] &= close[:, :k].flip(1).cumprod(dim=1)[:, 1:].flip(1).bool()  # nor before it
    doubtful = torch.zeros_like(closeness, dtype=torch.bool)
    doubtful[:, :-1] |= close
    doubtful[:, 1:] |= close
    some = doubtful.any(dim=1).nonzero().flatten()  # rows
    keys = closeness[some].double()
    row, position = doubtful[some].nonzero(as_tuple=True)
    other = indices[some[row], position].long()
    image = images[some[row]]
    exact = torch.where(other == image, own, space.exact(image, other))
    excess = ((exact - keys[row, position]).abs() / tolerance[some[row], 0]).nan_to_num_(0.0, 0.0, 0.0)
    if (excess > 1).any():  # products less exact than those measured: allow for it
        space = replace(space, error=2 * excess.max().item() * space.error)
        return _settle(space, closeness, indices, start, k, own, ordered)
    keys[row, position] = exact
    found = indices[:, :k].clone()
    found[some] = _sort(keys, indices[some])[:, :k]
    unfinished = close[:, k - 1 :].all(dim=1)
    if closeness.shape[1] < len(space.rows) and unfinished.any():
        found[unfinished] = _among_all(space, images[unfinished], k, own)
    return found


def _sort(keys: Tensor, indices: Tensor) -> Tensor:
    """Indices by falling key in each row; of equal keys the lower index first."""
    keys, order = keys.sort(dim=1, descending=True)
    indices = indices.gather(1, order)
    tied = (keys[:, :-1] == keys[:, 1:]).any(dim=1).nonzero().flatten()
    if len(tied):
        by_index, first = indices[tied].sort(dim=1)
        again = keys[tied].gather(1, first).sort(dim=1, descending=True, stable=True).indices
        indices[tied] = by_index.gather(1, again)
    return indices


def _among_all(space: _Space, images: Tensor, k: int, own: float) -> Tensor:
    """(len(images), k) the k nearest of some images, by float64 closeness to all that may be among them.

    For representations with many duplicated rows: each distinct row is compared once.
    """
    _, group = space.rep.unique(dim=0, return_inverse=True)
    member = torch.empty(int(group.max()) + 1, dtype=torch.long, device=group.device)
    member[group] = torch.arange(len(group), device=group.device)  # some image of each group
    found = []
    for chunk in images.split(256):
        closeness = space.search(chunk, slice(None))
        here = torch.arange(len(chunk), device=chunk.device)
        closeness[here, chunk] = own
        everyone = torch.arange(len(group), device=chunk.device)
        boundary = closeness.topk(k, dim=1).values[:, -1:] - 2 * space.tolerance(chunk, everyone[None])
        keys = space.search(chunk, member).double()
        row, distinct = (keys >= boundary).nonzero(as_tuple=True)
        keys[row, distinct] = space.exact(chunk[row], member[distinct])
        keys = keys[:, group]
        keys[here, chunk] = own
        found.append(keys.sort(dim=1, descending=True, stable=True).indices[:, :k].int())
    return torch.cat(found)


@dataclass(frozen=True)
class NeighborSimilarities(Prepared):
    """`Neighbors`, and the (N, k) float64 cosine of each image with each of its neighbours."""

    neighbors: Neighbors
    cosines: Tensor

    def __len__(self) -> int:
        return len(self.cosines)

    def permute(self, order: Tensor) -> "NeighborSimilarities":
        return self._permuted(neighbors=self.neighbors.permute(order), cosines=self.cosines[order])


@dataclass(frozen=True)
class FindNeighborSimilarities(Preparation):
    """Search neighbours by the cosine of rows that are not centred, and keep those cosines."""

    k: int = 10

    def prepare(self, rep: Rep) -> NeighborSimilarities:
        if self.k < 2:
            raise ValueError(f"CKNNA needs at least 2 neighbours, got {self.k}")
        rep = as_rep(rep, min_images=4)
        found = FindNeighbors(self.k, "cos_sim", center=False).prepare(rep)
        image = torch.arange(len(rep), device=rep.device).repeat_interleave(self.k)
        cosines = _Space.of(rep, "cos_sim", False).exact(image, found.indices.flatten().long())
        return NeighborSimilarities(found, cosines.reshape(len(rep), self.k))


def _same_k(pair: Pair) -> tuple[Tensor, Tensor]:
    a, b = pair.a.indices, pair.b.indices
    if a.shape != b.shape:
        raise ValueError(f"neighbours are compared at one k: got {a.shape[1]} and {b.shape[1]}")
    return a, b


def ranks_of_common(pair: Pair) -> Tensor:
    """(N, k) rank (from 1) that the j-th neighbour of image i in model b has in model a; 0 if it is not there."""
    a, b = _same_k(pair)
    n, k = a.shape
    ranks = torch.arange(1, k + 1, dtype=torch.int32, device=a.device).expand(n, k)
    found = []
    for own, other, rank in zip(a.split(_FEW), b.split(_FEW), ranks.split(_FEW)):
        table = torch.zeros(len(own), n, dtype=torch.int32, device=a.device)
        found.append(table.scatter_(1, own.long(), rank).gather(1, other.long()))
    return torch.cat(found)


def numbers_in_common(pair: Pair) -> Tensor:
    """(N,) float64 number of neighbours that an image has in both models."""
    a, b = _same_k(pair)
    found = []
    for own, other in zip(a.split(_FEW), b.split(_FEW)):
        table = torch.zeros(len(own), len(a), dtype=torch.bool, device=a.device)
        found.append(table.scatter_(1, own.long(), True).gather(1, other.long()).sum(dim=1))
    return torch.cat(found).double()


def jaccard_per_image(pair: Pair) -> Tensor:
    """(N,) float64 |A n B| / |A u B|."""
    common = pair.once(numbers_in_common)
    return common / (2 * pair.a.indices.shape[1] - common)


def rank_per_image(pair: Pair) -> Tensor:
    """(N,) float64 rank similarity."""
    rank_a = pair.once(ranks_of_common)
    k = rank_a.shape[1]
    rank_b = torch.arange(1, k + 1, dtype=torch.int32, device=rank_a.device)
    terms = 2 / ((1 + (rank_a - rank_b).abs()) * (rank_a + rank_b)).double()
    total = torch.where(rank_a > 0, terms, 0.0).sum(dim=1)
    harmonic = torch.arange(k + 1, device=rank_a.device).double().reciprocal()
    harmonic[0] = 0
    best = harmonic.cumsum(0)[(rank_a > 0).sum(dim=1)]
    return torch.where(best > 0, total / best, 0.0)


def jaccard_score(pair: Pair) -> float:
    """Jaccard similarity of two `Neighbors`."""
    return jaccard_per_image(pair).mean().item()


def rank_score(pair: Pair) -> float:
    """Rank similarity of two `Neighbors`."""
    return rank_per_image(pair).mean().item()


def joint_score(pair: Pair) -> float:
    """Joint (Jaccard times rank) similarity of two `Neighbors`."""
    return (jaccard_per_image(pair) * rank_per_image(pair)).mean().item()


def mutual_knn_score(pair: Pair) -> float:
    """Mutual k-NN of two `Neighbors`."""
    return pair.once(numbers_in_common).mean().item() / pair.a.indices.shape[1]


def cknna_score(pair: Pair) -> float:
    """CKNNA of two `NeighborSimilarities`."""
    both = masked_hsic(pair)
    a, b = (model.once_any_order(masked_self_hsic) for model in (pair.a, pair.b))
    if not (a > 0 and b > 0):
        return undefined(f"CKNNA is not defined: a self-term is not positive ({min(a, b):.3g})")
    return both / math.sqrt(a) / math.sqrt(b)


def masked_self_hsic(a: NeighborSimilarities) -> float:
    """HSIC_1 of a model's similarities to its own neighbours."""
    return masked_hsic(Pair(a, a))


def masked_hsic(pair: Pair) -> float:
    """HSIC_1 of K and L where both are 0 except at (i, j) with j a neighbour of i in both models.

    The mask is not symmetric, so tr(KL) counts the entries (i, j) whose mirror (j, i) is there too.
    """
    a, b = pair.a, pair.b
    ranks = ranks_of_common(Pair(a.neighbors, b.neighbors))
    n = len(ranks)
    row, position = (ranks > 0).nonzero(as_tuple=True)
    column = b.neighbors.indices[row, position].long()
    k, l = a.cosines[row, ranks[row, position].long() - 1], b.cosines[row, position]  # noqa: E741 - see cka.py
    here, order = (row * n + column).sort()  # one number per entry
    mirror = column * n + row
    found = torch.searchsorted(here, mirror).clamp(max=max(0, len(here) - 1))
    mirrored = here[found] == mirror
    trace = (k * l[order[found]])[mirrored].sum()
    columns_k = torch.zeros(n, dtype=k.dtype, device=k.device).index_add_(0, column, k)
    rows_l = torch.zeros_like(columns_k).index_add_(0, row, l)
    ones = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * torch.dot(columns_k, rows_l)
    return (trace + ones).item() / (n * (n - 3))
