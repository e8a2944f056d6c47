"""Centred kernel alignment: (N, D_a), (N, D_b) -> similarity, 1 = alike. Linear (unbiased, biased) and RBF kernels."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Prepared, Rep, undefined
from univ.measures.cards import PAPER, as_function, register
from univ.measures.centering import (
    Center,
    Centered,
    cross_product,
    gram,
    product,
    product_spans,
    sum_in_float64,
)

_BLOCK = 1024  # rows and columns per block of an N x N matrix
_CLEAR = 1 / 8  # share of |A'A|_F^2 that is left in HSIC_1 where float32 products leave it exact to 1e-6
_WIDE = 16  # largest squared norm, in median squared distances, from which float32 would lose the short distances


@register("cka", label="CKA", lists=PAPER, centered=False, range=(-math.inf, 1))
def cka_measure(*, unbiased: bool = True, stream: bool = False) -> Measure:
    """Linear CKA: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X', L = Y Y'.

    Unbiased: HSIC_1(K, L) = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n(n-3)), zeroed diagonals. It does
    not change when X is centred; then 1'K1 = -sum a_i and (K1)_i = -a_i, with a_i the squared row norms, so that
    tr(KL) = |X'Y|_F^2 - sum a_i b_i is all that is left to compute: O(n p q) instead of O(n^2 (p + q)). Where that
    difference would be mostly rounding (one image far from all others, or fewer images than directions), HSIC_1 is
    summed in float64 over the pairs of images, as defined.
    Biased: |X'Y|_F^2 / (|X'X|_F |Y'Y|_F) of the centred ones, which grows with p/n even for unrelated models.

    Args:
        unbiased: HSIC_1 (the default) or the biased estimator.
        stream: leave x and y where they are (memory-mapped) and centre them block by block.

    Returns:
        Similarity of at most 1, where 1 is "equal up to rotation and scale". 0 is what unrelated models have in
        expectation (unbiased), so slightly negative values are right; they are not clamped. Nan, with an
        `UndefinedScore` warning, if a representation has no variance to compare.

    Raises ValueError: fewer than 4 images. Source: Kornblith et al., ICML 2019; HSIC_1: Song et al., JMLR 2012; Nguyen,
    Raghu and Kornblith, ICLR 2021.
    """
    return Measure(Center(stream=stream), unbiased_cka if unbiased else biased_cka)


@register("cka_biased")
def biased_cka_measure(*, stream: bool = False) -> Measure:
    """Biased linear CKA; see `cka`."""
    return cka_measure(unbiased=False, stream=stream)


@register("cka_rbf", range=(-math.inf, 1))
def rbf_cka_measure(*, bandwidth: float = 1.0) -> Measure:
    """CKA with Gaussian kernels, unbiased: HSIC_1 of K_ij = exp(-|x_i - x_j|^2 / (2 bandwidth^2 m)), m the median of
    the squared distances between different images of a model.

    Args:
        bandwidth: in units of the root of that median; the smaller, the more local the comparison.

    Returns:
        Similarity of at most 1; 0 in expectation for unrelated models. Nan, with an `UndefinedScore` warning, if a
        self-HSIC is not positive.

    Raises ValueError: fewer than 4 images, half of the images equal. Source: Kornblith et al., ICML 2019, section 5;
    unbiased as `cka`. The kernel matrices are made again, in blocks, for each pair: N^2 (D_x + D_y) operations and no N
    x N matrix.
    """
    return Measure(GaussianKernel(bandwidth), rbf_score)


cka = as_function(cka_measure, "cka")
rbf_cka = as_function(rbf_cka_measure, "rbf_cka")


@dataclass(frozen=True)
class Kernel(Prepared):
    """A kernel with zeroed diagonal, as blocks of the `Centered` rows that it is made from."""

    rows: Centered
    scale: float | None = None  # Gaussian: K_ij = exp(-|x_i - x_j|^2 / scale); None is linear: K_ij = x_i'x_j
    by_image = ("rows",)

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Float64 blocks on and above the diagonal, with their first row and column."""
        gaussian = self.scale is not None
        for row, column, values in square_distances(self.rows) if gaussian else inner_products(self.rows):
            block = (-values / self.scale).exp() if gaussian else values
            if row == column:
                block.fill_diagonal_(0)
            yield row, column, block


@dataclass(frozen=True)
class GaussianKernel(Preparation):
    """Find the width of the kernel: `bandwidth` times the root of the median squared distance."""

    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"the bandwidth of a kernel is positive, got {self.bandwidth}")

    def prepare(self, rep: Rep) -> Kernel:
        rows = Center(min_images=4, stream=True).prepare(rep)
        median = median_square_distance(rows)
        if rows.square_norms.max().item() > _WIDE * median:
            rows = rows.about_median()
            median = median_square_distance(rows)
        if not median > 0:
            raise ValueError("RBF CKA is not defined: half of the distances between images are 0")
        return Kernel(rows, 2 * self.bandwidth**2 * median)


def inner_products(a: Centered) -> Iterator[tuple[int, int, Tensor]]:
    """Blocks (first row, first column, float64 inner products) on and above the diagonal of the N x N matrix."""
    for row in range(0, len(a), _BLOCK):
        rows = a.block(row, row + _BLOCK)
        for column in range(row, len(a), _BLOCK):
            yield row, column, product(rows, a.block(column, column + _BLOCK).T).double()


def square_distances(a: Centered) -> Iterator[tuple[int, int, Tensor]]:
    """Blocks (first row, first column, float64 squared distances) on and above the diagonal of the N x N matrix."""
    for row, column, products in inner_products(a):
        norms_r, norms_c = a.square_norms[row : row + _BLOCK], a.square_norms[column : column + _BLOCK]
        yield row, column, (norms_r[:, None] + norms_c - 2 * products).clamp(min=0)


def median_square_distance(a: Centered) -> float:
    """Median squared distance between different images, found in two passes over blocks: by the upper half of the
    bits of float32, then by the lower half of those that agree with the median in the upper one."""
    n = len(a)
    unit = 2.0 ** math.frexp(a.square_norms.median().item())[1]  # brings all but the farthest into float32's range
    wanted = (n * (n - 1) // 2 - 1) // 2  # position among the sorted distances; the lower of two middle ones
    upper = None
    for _ in range(2):
        counts = torch.zeros(2**16, dtype=torch.int64, device=a.rows.device)
        for row, column, squares in square_distances(a):
            if row == column:
                squares = squares[tuple(torch.triu_indices(*squares.shape, offset=1, device=squares.device))]
            bits = (squares.flatten() / unit).float().view(torch.int32)  # of values >= 0: in the order of the values
            bits = bits >> 16 if upper is None else bits[bits >> 16 == upper] & 0xFFFF
            counts += torch.bincount(bits, minlength=2**16)
        found = int((counts.cumsum(0) > wanted).nonzero()[0])
        if upper is None:
            upper, wanted = found, wanted - int(counts[:found].sum())
    return torch.tensor((upper << 16) + found, dtype=torch.int32).view(torch.float32).item() * unit


def rbf_score(pair: Pair) -> float:
    """RBF CKA of two `Kernel`s."""
    own = (model.once_any_order(kernel_self_hsic) for model in (pair.a, pair.b))
    return normalized(kernel_hsic(pair), *own)


def kernel_self_hsic(a: Kernel) -> float:
    """HSIC_1 of a `Kernel` with itself."""
    return kernel_hsic(Pair(a, a))


def kernel_hsic(pair: Pair) -> float:
    """HSIC_1 of two `Kernel`s, term by term; 0 where what is left of the terms is only their rounding."""
    n = len(pair.a)
    trace = 0.0
    others = itertools.repeat((None,)) if pair.a is pair.b else pair.b.blocks()
    for (row, column, k), (*_, l) in zip(pair.a.blocks(), others):  # noqa: E741 - the symbols of the definition
        trace += (1 + (row != column)) * (k * (k if l is None else l)).sum().item()  # a block stands for its mirror
    sums_a, sums_b = pair.a.once(row_sums), pair.b.once(row_sums)
    total = sums_a.sum().item() * sums_b.sum().item() / ((n - 1) * (n - 2))
    both = 2 / (n - 2) * torch.dot(sums_a, sums_b).item()
    value = trace + total - both
    rounding = 8 * torch.finfo(torch.float64).eps * (abs(trace) + abs(total) + abs(both))
    return value / (n * (n - 3)) if abs(value) > rounding else 0.0


def row_sums(a: Kernel) -> Tensor:
    """(N,) float64 sums of the rows of a `Kernel`."""
    sums = torch.zeros(len(a), dtype=torch.float64, device=a.rows.rows.device)
    for row, column, block in a.blocks():
        sums[row : row + _BLOCK] += block.sum(dim=1)
        if row != column:
            sums[column : column + _BLOCK] += block.sum(dim=0)
    return sums


def unbiased_cka(pair: Pair) -> float:
    """Unbiased linear CKA of two `Centered` models."""
    return normalized(*unbiased_hsics(pair))


def unbiased_hsics(pair: Pair) -> tuple[float, float, float]:
    """HSIC_1(K, L), HSIC_1(K, K) and HSIC_1(L, L) of two `Centered` models.

    Raises:
        ValueError: fewer than 4 images.
    """
    if len(pair.a) < 4:
        raise ValueError(f"unbiased CKA needs at least 4 images, got {len(pair.a)}")
    return pair.once(hsic), pair.a.once_any_order(self_hsic), pair.b.once_any_order(self_hsic)


def biased_cka(pair: Pair) -> float:
    """Biased linear CKA of two `Centered` models."""
    return normalized(
        pair.once(cross_norm), pair.a.once_any_order(self_cross_norm), pair.b.once_any_order(self_cross_norm)
    )


def normalized(both: float, a: float, b: float) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)); nan with the reason where that is not defined."""
    if not (a > 0 and b > 0):
        return undefined(f"CKA is not defined: the self-HSIC of a representation is not positive ({min(a, b):.3g})")
    return both / math.sqrt(a) / math.sqrt(b)  # two roots: the product of two small HSICs may underflow


def hsic(pair: Pair) -> float:
    """HSIC_1 of two `Centered` models, from |A'B|_F^2 and the squared row norms where they suffice."""
    a, b = pair.a, pair.b
    if a.once_any_order(is_clear) and b.once_any_order(is_clear):
        return hsic_from_norms(pair.once(cross_norm), a.square_norms, b.square_norms)
    return kernel_hsic(Pair(a.once(linear_kernel), b.once(linear_kernel)))


def self_hsic(a: Centered) -> float:
    """HSIC_1 of a model with itself."""
    if a.once_any_order(is_clear):
        return hsic_from_norms(a.once_any_order(self_cross_norm), a.square_norms, a.square_norms)
    return kernel_self_hsic(a.once(linear_kernel))


def is_clear(a: Centered) -> bool:
    """Whether HSIC_1 is more than a small rest of |A'A|_F^2, from which the products of single images are taken off.

    By Cauchy and Schwarz this bounds the rounding of HSIC_1 with another model, too, against the root of both.
    """
    cross = a.once_any_order(self_cross_norm)
    value = hsic_from_norms(cross, a.square_norms, a.square_norms)
    return value * len(a) * (len(a) - 3) > _CLEAR * cross


def linear_kernel(a: Centered) -> Kernel:
    """The linear kernel of a model, about the median: HSIC_1 does not see it, and it keeps all digits of all rows."""
    return Kernel(a.about_median())


def hsic_from_norms(cross: float, a: Tensor, b: Tensor) -> float:
    """HSIC_1 of centred representations: `cross` = |A'B|_F^2, a and b (N,) the squared norms of their rows."""
    return hsic_from_sums(len(a), cross, torch.dot(a, b).item(), a.sum().item(), b.sum().item())


def hsic_from_sums(n: int, cross: float, products: float, a: float, b: float) -> float:
    """HSIC_1 of centred representations of n images.

    Args:
        cross: |A'B|_F^2.
        products: sum over images of the product of both squared row norms.
        a, b: sums of the squared row norms of either.
    """
    return (cross - products + a * b / ((n - 1) * (n - 2)) - 2 / (n - 2) * products) / (n * (n - 3))


def cross_norm(pair: Pair) -> float:
    """|A'B|_F^2 = <A A', B B'>_F of two `Centered` models, by whichever side is smaller."""
    if len(pair.a) < min(pair.a.width, pair.b.width):
        a, b = pair.a.once(gram), pair.b.once(gram)
        return sum(torch.sum(x.double() * y.double()).item() for x, y in zip(a.split(_BLOCK), b.split(_BLOCK)))
    cross = pair.once(cross_product).flatten()
    return torch.dot(cross, cross).item()


def self_cross_norm(a: Centered) -> float:
    """|A'A|_F^2 of one `Centered` model."""
    if len(a) < a.width:
        return sum(block.double().square().sum().item() for block in a.once(gram).split(_BLOCK))
    blocks = (a.block(*span) for span in product_spans(a))
    cross = sum_in_float64(product(block.T, block) for block in blocks).flatten()
    return torch.dot(cross, cross).item()
