"""What every measure is made of: a preparation per model, a score per pair, and checks of what comes in.

In: representations (N, D) as torch tensors or NumPy arrays on any device, row i of all of them from the same image.
Out: a `Measure`, whose `prepare` does all that needs one model and whose `compare` does the rest for a pair.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
Rep = Tensor | np.ndarray

FEW_ROWS = 256  # rows per block of element-wise work in float64: 4 MB at 2048 columns, which stays in cache
LARGEST = 1e60  # absolute value up to which sums of fourth powers stay within float64


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

    by_image: ClassVar[tuple[str, ...]]  # the fields that have a row per image: tensors, or `Prepared`

    _memory: dict = field(default_factory=dict, init=False, repr=False, compare=False)
    _any_order: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(getattr(self, self.by_image[0]))

    def permute(self, order: Tensor) -> Self:
        """The same of images in another order (or drawn with replacement, for measures with `bootstrap`)."""
        fields = {name: getattr(self, name) for name in self.by_image}
        return self._permuted(
            **{
                name: value.permute(order) if isinstance(value, Prepared) else None if value is None else value[order]
                for name, value in fields.items()
            }
        )

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

    def _permuted(self, **changes: Any) -> Self:
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


def mean_of(compute: Callable[[Pair], Tensor]) -> Callable[[Pair], float]:
    """The score of a pair that is the mean of what `compute` finds for it: per image, or per trial."""
    return lambda pair: pair.once(compute).mean().item()


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
        prepare: representation (or outputs) of one model -> what `score` wants. Measures with equal ones, or one that
            covers the other, can use one result.
        score: Pair of prepared models -> score.
        per_trial: for measures that average over random subsamples of the images: Pair -> the score of each of them.
        bootstrap: True if resampled images, with their duplicates, give a valid score (not so for k-NN, RTD and
            debiased CKA); then the rows of what `prepare` returns can be drawn with replacement by `permute`.
        per_image: for bootstrap measures that are means over images: Pair -> (N,) float64, whose mean is the score.
        name, self_score, larger_is_closer, symmetric: as its `Card` says.
    """

    prepare: Preparation
    score: Callable[[Pair], float]
    per_trial: Callable[[Pair], Tensor] | None = None
    bootstrap: bool = False
    per_image: Callable[[Pair], Tensor] | None = None
    name: str = ""
    self_score: float | None = None
    larger_is_closer: bool = True
    symmetric: bool = True

    def compare(self, a: Any, b: Any) -> float:
        """Score of two prepared models.

        Raises:
            ValueError: they have different numbers of images, or the measure is not defined for them.
        """
        with full_precision():
            return self.score(Pair(a, b))

    def __call__(self, x: Any, y: Any) -> float:
        return self.compare(self.prepare(x), self.prepare(y))
