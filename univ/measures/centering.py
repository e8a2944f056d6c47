"""Centred representations, (N, D) -> (N, D) rows read in blocks, and products of them that are exact enough."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import FEW_ROWS, Pair, Preparation, Prepared, Rep, as_float, as_rep

BLOCK_ROWS = 4096  # rows per block that is converted for a product: fewer would cost speed, 64 MB at 2048 columns
PRODUCT_RANGE = (1e-12, 1e24)  # squared row norms whose products float32 holds without overflow or underflow
FAR = 1 / 4  # share of one image in the squared norm of all, above which float32 loses the others
PRODUCT_ROWS = 16_384  # rows multiplied in float32 before float64 takes over: 10 000 at once are 15 % faster than 4096


@dataclass(frozen=True)
class Centered(Prepared):
    """Rows of one representation after centring, read in blocks.

    Attributes:
        rows: (N, D) float32 or float64, centred; the caller's own values, in whatever dtype, if `mean` is given.
        mean: (D,) float64 still to be subtracted from each block: `rows` may then be memory-mapped and larger than
            memory.
        square_norms: (N,) float64, squared norms of the centred rows.
        double: blocks are float64, whatever the dtype of `rows`.
    """

    rows: Tensor
    mean: Tensor | None
    square_norms: Tensor
    double: bool = False
    by_image = ("rows", "square_norms")

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    @property
    def eps(self) -> float:
        """Rounding unit of the representation that came in."""
        return torch.finfo(torch.float64 if self.rows.dtype == torch.float64 else torch.float32).eps

    @property
    def square_norm(self) -> float:
        """Squared Frobenius norm of the centred representation."""
        return self.square_norms.sum().item()

    def block(self, start: int, stop: int) -> Tensor:
        """(stop - start, D) centred rows."""
        rows = as_float(self.rows[start:stop])
        dtype = torch.float64 if self.double else rows.dtype
        return rows.to(dtype) if self.mean is None else (rows.double() - self.mean).to(dtype)

    def blocks(self) -> Iterator[Tensor]:
        """All centred rows, in blocks to be multiplied."""
        return (self.block(start, start + BLOCK_ROWS) for start in range(0, len(self), BLOCK_ROWS))

    def scaled_rows(self, name: str) -> Tensor:
        """All centred rows, of Frobenius norm 1; a ValueError says of what `name` names that it is not defined."""
        if self.square_norm == 0:
            raise ValueError(f"{name} not defined: the representation is constant")
        return torch.cat(list(self.blocks())) / math.sqrt(self.square_norm)

    def about_median(self) -> "Centered":
        """The same images as float64 differences from the median of each column, which few far images do not move."""
        columns = self.rows.split(64, dim=1)
        median = torch.cat([as_float(some).median(dim=0).values for some in columns]).double()
        return Centered(self.rows, median, square_norms(self.rows, median), double=True)

    def rounding(self, largest: float) -> float:
        """The share of |X|_F^2 up to which an eigenvalue of X'X may be rounding, if the largest has the share given:
        rounding of the representation (one far image's own adds no direction, so that of the others), or of LAPACK.
        """
        others = len(self) * self.square_norms.median().item() / self.square_norm
        return max(self.width * torch.finfo(torch.float64).eps * largest, (4 * self.eps) ** 2 * min(largest, others))


@dataclass(frozen=True)
class Center(Preparation):
    """Centre the columns of a representation (or leave them, with center=False).

    With stream=True the representation stays where it is and is centred again in each block that is read, at about
    5 % more time: for memory-mapped representations that do not fit in memory. With double=True so too, in float64;
    and without it where float32 would lose digits: one image far from all others moves the mean so far that the
    rounding of their differences from it shows, and products of very large or small values leave float32's range.
    """

    center: bool = True
    stream: bool = False
    min_images: int = 2
    double: bool = False

    def prepare(self, rep: Rep) -> Centered:
        rows = as_rep(rep, self.min_images, convert=not self.stream)
        mean = column_mean(rows) if self.center else None
        stay = mean is None or self.stream or self.double
        centered = rows if stay else torch.empty_like(rows)
        norms = square_norms(rows, mean, None if stay else centered)
        largest = norms.max().item()
        in_range = largest == 0 or PRODUCT_RANGE[0] < largest < PRODUCT_RANGE[1]
        if self.double or not in_range or largest > FAR * norms.sum().item():
            return Centered(rows, mean, norms, double=True)
        return Centered(centered, mean if self.stream else None, norms)


def square_norms(rows: Tensor, mean: Tensor | None, centered: Tensor | None = None) -> Tensor:
    """(N,) float64 squared norms of rows less the mean; those differences are written to `centered`, if given."""
    norms = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), FEW_ROWS):
        span = slice(start, start + FEW_ROWS)
        block = rows[span].double() if mean is None else rows[span].double() - mean
        norms[span] = torch.linalg.vector_norm(block, dim=1).square()
        if centered is not None:
            centered[span] = block
    return norms


def column_mean(rows: Tensor) -> Tensor:
    """(D,) float64 mean over rows; of a constant column its very value, so that centring leaves exact zeros."""
    blocks = rows.split(FEW_ROWS)
    mean = sum(block.sum(dim=0, dtype=torch.float64) for block in blocks) / len(rows)
    constant = torch.stack([(block == rows[0]).all(dim=0) for block in blocks]).all(dim=0)
    return torch.where(constant, rows[0].double(), mean)


def cross_product(pair: Pair) -> Tensor:
    """(D_a, D_b) float64 A'B of two `Centered` models: float32 products of blocks of rows, summed in float64."""
    blocks = ((pair.a.block(*span).T, pair.b.block(*span)) for span in product_spans(pair.a, pair.b))
    return sum_in_float64(product(a, b) for a, b in blocks)


def product_spans(*models: Centered) -> Iterator[tuple[int, int]]:
    """(start, stop) of the blocks of rows to be multiplied at once: many, where that takes no copy of them."""
    rows = PRODUCT_ROWS if all(model.mean is None for model in models) else BLOCK_ROWS
    return ((start, start + rows) for start in range(0, len(models[0]), rows))


def sum_in_float64(terms: Iterator[Tensor]) -> Tensor:
    """Sum of tensors, in float64."""
    total = next(terms).double()
    for term in terms:
        total += term
    return total


def gram(a: Centered) -> Tensor:
    """(N, N) A A' of one `Centered` model: for models with more columns than rows only."""
    blocks = [(start, a.block(start, start + BLOCK_ROWS)) for start in range(0, len(a), BLOCK_ROWS)]
    return torch.cat([torch.cat([product(block, other.T) for _, other in blocks], dim=1) for _, block in blocks])


def orthonormal(rows: Tensor) -> Tensor:
    """(N, r) float64 orthonormal basis of the span of nearly orthonormal columns, by a Cholesky factor."""
    factor = torch.linalg.cholesky(product(rows.T, rows))
    return torch.linalg.solve_triangular(factor, rows.T, upper=False).T.contiguous()


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product; in float64 if either is.

    On the CPU by NumPy: OpenBLAS takes 10 to 15 % less time than torch's MKL (AMD EPYC, AVX2, 2 cores, 120 to 160
    GFLOP/s), and half of the time where b is the transpose of a.
    """
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    return torch.from_numpy(a.numpy() @ b.numpy()) if a.device.type == "cpu" else a @ b
