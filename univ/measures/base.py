"""What every measure is made of: a preparation per model, a score per pair, and checks of what comes in.

In: representations (N, D) as torch tensors or NumPy arrays on any device, row i of all of them from the same image.
Out: a `Measure`, whose `prepare` does all that needs one model and whose `compare` does the rest for a pair.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
Rep = Tensor | np.ndarray

FEW_ROWS = 256  # rows per block of element-wise work in float64: 4 MB at 2048 columns, which stays in cache
BLOCK_ROWS = 4096  # rows per block that is converted for a product: fewer would cost speed, 64 MB at 2048 columns
PRODUCT_RANGE = (1e-12, 1e24)  # squared row norms whose products float32 holds without overflow or underflow
LARGEST = 1e60  # absolute value up to which sums of fourth powers stay within float64
FAR = 1 / 4  # share of one image in the squared norm of all, above which float32 loses the others
PRODUCT_ROWS = 16_384  # rows multiplied in float32 before float64 takes over: 10 000 at once are 15 % faster than 4096


class UndefinedScore(UserWarning):
    """A score that its definition leaves undefined (0 / 0) for this pair: it is nan, and the text says why."""


def undefined(reason: str) -> float:
    """Nan, announced with its reason; the drivers of `univ.compare` collect it beside the names of the pair."""
    warnings.warn(reason, UndefinedScore, stacklevel=2)
    return math.nan


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """All bits of float32 in products, no autocast and no autograd, whatever the caller has switched on.

    TF32 and bfloat16 products keep 10 and 7 bits of mantissa: CKA would be off in the third digit.
    """
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def as_tensor(values: Rep) -> Tensor:
    """Values as a tensor that shares their memory where it can; never written to.

    Raises:
        TypeError: not a tensor or array of real numbers.
    """
    if isinstance(values, np.ndarray):
        with warnings.catch_warnings():  # a read-only (memory-mapped) array is fine: nothing here writes to its input
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
            values = torch.from_numpy(values if all(stride > 0 for stride in values.strides) else values.copy())
    if not isinstance(values, Tensor) or values.is_complex():
        raise TypeError(f"expected a real torch tensor or NumPy array, got {type(values).__name__}")
    return values.detach()


def as_rep(rep: Rep, min_images: int = 2, convert: bool = True) -> Tensor:
    """A representation as an (N, D) tensor: flattened, float32 (float64 stays), finite.

    Args:
        rep: (N, ...), row i from image i; half precision and integers become float32. Not changed, and not copied
            if it is an (N, D) float32 or float64 array.
        min_images: the fewest rows for which the measure is defined.
        convert: False leaves the dtype, for memory-mapped files that are read and converted block by block.

    Raises:
        ValueError: too few rows, no columns, or values that are NaN or infinite, or so large that float64 cannot hold
            the fourth powers that the measures sum (float32 ones never are).
    """
    rep = as_tensor(rep)
    if rep.ndim < 2 or rep.numel() == 0:
        raise ValueError(
            f"a representation has one row per image and at least one column, got shape {tuple(rep.shape)}"
        )
    if len(rep) < min_images:
        raise ValueError(f"needs at least {min_images} images, got {len(rep)}")
    rep = rep.flatten(1)
    rep = as_float(rep) if convert else rep
    for start in range(0, len(rep), FEW_ROWS):
        block = as_float(rep[start : start + FEW_ROWS])
        if block.dtype == torch.float64 and LARGEST < block.abs().max() < torch.inf:
            raise ValueError(f"the representation holds values above {LARGEST:g}: scale it down")
        if block.sum(dtype=torch.float64).isfinite():  # one pass, and NaN or infinity would show
            continue
        finite = block.isfinite().all(dim=1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise ValueError(f"the representation holds NaN or infinite values, first in row {row}")
    return rep


def as_float(values: Tensor) -> Tensor:
    """Values as float32, or float64 if they are."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True)
class Prepared:
    """Base of what a preparation returns: N rows, and values derived from them that are computed at first use.

    Two memories: `once` forgets when the rows are permuted, `once_any_order` does not, so that a permutation
    baseline costs only re-indexing of what was prepared.
    """

    _memory: dict = field(default_factory=dict, init=False, repr=False, compare=False)
    _any_order: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        raise NotImplementedError

    def permute(self, order: Tensor) -> "Prepared":
        """The same as preparing `rep[order]`."""
        raise NotImplementedError

    def once(self, compute: Callable[[Any], T]) -> T:
        """`compute(self)`, remembered."""
        if compute not in self._memory:
            self._memory[compute] = compute(self)
        return self._memory[compute]

    def once_any_order(self, compute: Callable[[Any], T]) -> T:
        """`compute(self)`, remembered by permuted copies too: for values that no order of the rows changes."""
        if compute not in self._any_order:
            self._any_order[compute] = compute(self)
        return self._any_order[compute]

    def _permuted(self, **changes: Any) -> "Prepared":
        copy = replace(self, **changes)
        object.__setattr__(copy, "_any_order", self._any_order)
        return copy


class Pair:
    """Two prepared models, and what several measures need of both, computed at first use and then shared.

    Raises:
        ValueError: the two have different numbers of images.
    """

    def __init__(self, a: Any, b: Any) -> None:
        if len(a) != len(b):
            raise ValueError(f"a comparison needs the same images in both models: got {len(a)} and {len(b)}")
        self.a = a
        self.b = b
        self._memory: dict[Callable, Any] = {}

    def once(self, compute: Callable[["Pair"], T]) -> T:
        """`compute(self)`, remembered."""
        if compute not in self._memory:
            self._memory[compute] = compute(self)
        return self._memory[compute]


@dataclass(frozen=True)
class Preparation:
    """The half of a measure that needs one model. Measures share its result where it `covers` theirs."""

    def covers(self, other: "Preparation") -> bool:
        """Whether the result of this preparation serves a measure that asks for the other."""
        return self == other

    def __call__(self, rep: Any) -> Any:
        with full_precision():
            return self.prepare(rep)

    def prepare(self, rep: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Measure:
    """A measure of how alike two models are.

    `measure(x, y)` compares two representations; whoever compares many models calls `prepare` once per model and
    `score` (or `compare`) once per pair.

    Attributes:
        name: its key on the command line.
        prepare: representation (or outputs) of one model -> what `score` wants. Measures with equal ones, or one that
            covers the other, can use one result.
        score: Pair of prepared models -> score.
        self_score: what a model scores against itself; None where that depends on the model.
        larger_is_closer: True for similarities, False for distances.
        symmetric: False if swapping the models changes the score.
        per_trial: for measures that average over random subsamples of the images: Pair -> the score of each of them.
        bootstrap: True if resampled images, with their duplicates, give a valid score (not so for k-NN, RTD and
            debiased CKA); then the rows of what `prepare` returns can be drawn with replacement by `permute`.
        per_image: for bootstrap measures that are means over images: Pair -> (N,) float64, whose mean is the score.
    """

    name: str
    prepare: Preparation
    score: Callable[[Pair], float]
    self_score: float | None
    larger_is_closer: bool
    symmetric: bool = True
    per_trial: Callable[[Pair], Tensor] | None = None
    bootstrap: bool = False
    per_image: Callable[[Pair], Tensor] | None = None

    def compare(self, a: Any, b: Any) -> float:
        """Score of two prepared models.

        Raises:
            ValueError: they have different numbers of images, or the measure is not defined for them.
        """
        with full_precision():
            return self.score(Pair(a, b))

    def __call__(self, x: Any, y: Any) -> float:
        return self.compare(self.prepare(x), self.prepare(y))


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

    def __len__(self) -> int:
        return len(self.rows)

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

    def permute(self, order: Tensor) -> "Centered":
        return self._permuted(rows=self.rows[order], square_norms=self.square_norms[order])


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
