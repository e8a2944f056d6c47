"""The nearest neighbours of every image in one representation: (N, D) -> (N, k) indices, nearest first."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from univ.measures.base import FEW_ROWS, Preparation, Prepared, Rep, as_rep
from univ.measures.centering import column_mean, product

Function = Literal["cos_sim", "euc"]
_BLOCK = 2000  # rows and columns of a block of the matrix of closeness: 16 MB in float32
_SPARE = 16  # candidates beyond k, among which float32 may have chosen wrongly


@dataclass(frozen=True)
class Neighbors(Prepared):
    """Neighbours of every image: (N, k) int32 indices, nearest first (see `FindNeighbors.ordered`)."""

    indices: Tensor
    by_image = ("indices",)

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
        space = Space.of(as_rep(rep), self.function, self.center)
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
class Space:
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
    def of(cls, rep: Tensor, function: Function, center: bool) -> "Space":
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


def _candidates(space: Space, count: int, own: float) -> tuple[Tensor, Tensor]:
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


def _settle(space: Space, closeness: Tensor, indices: Tensor, start: int, k: int, own: float, ordered: bool) -> Tensor:
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


def _among_all(space: Space, images: Tensor, k: int, own: float) -> Tensor:
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
