"""Shape metric of activations: (N, C, H, W) or (N, D) of two models -> angle in [0, pi / 2], 0 = alike."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Prepared, Rep, as_rep, as_tensor, undefined
from univ.measures.cards import as_function, register
from univ.measures.centering import column_mean, product
from univ.measures.procrustes import nuclear_norm

_ROWS = 2**14  # rows (image positions) per block
_NEAR = 0.99  # cosine above which its rounding would show in the angle


@register("shape", label="negative shape distance", lists=(), maps=True, larger_is_closer=False, range=(0, math.pi / 2))
def shape_measure(*, alpha: float = 1.0, center: bool = True) -> Measure:
    """Angle between two representations after the best rotation of channels, with partial whitening.

    Every position of every image is a row: (N, C, H, W) -> (N H W, C), so that one rotation of the channels serves all
    positions. X <- X (alpha I + (1 - alpha) (X'X)^(-1/2)), the same for Y, then the smallest angle over orthogonal Q,
    arccos(|X'Y|_* / (|X|_F |Y|_F)). Different numbers of channels or sizes of maps: the smaller one is padded with
    zeros (maps on all sides alike) after centring and whitening, so that the padding adds nothing of its own.

    Args:
        alpha: 1 = invariant to rotations only, 0 = to every invertible linear map of the channels.
        center: subtract the mean of each channel first.

    Returns:
        Angle in radians, a metric in [0, pi / 2]: 0 = equal up to rotation and scale. Nan, with an `UndefinedScore`
        warning, if a representation is zero.

    Raises ValueError: alpha outside [0, 1], activations that are neither (N, C, H, W) nor (N, D). Source: Williams,
    Kunz, Kornblith and Linderman, NeurIPS 2021; same conventions as their `netrep` (LinearMetric).
    """
    return Measure(PartlyWhiten(alpha, center), angle)


shape_distance = as_function(shape_measure, "shape_distance")


@dataclass(frozen=True)
class Maps(Prepared):
    """Activations after centring and partial whitening, of Frobenius norm 1 (or all 0), channels last: (N, H, W, C)."""

    values: Tensor
    by_image = ("values",)


@dataclass(frozen=True)
class PartlyWhiten(Preparation):
    """Centre the channels of activations and multiply them by alpha I + (1 - alpha) (X'X)^(-1/2)."""

    alpha: float = 1.0
    center: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"the alpha of the shape metric lies between 0 and 1, got {self.alpha}")

    def prepare(self, rep: Rep) -> Maps:
        rep = as_tensor(rep)
        if rep.ndim not in (2, 4):
            raise ValueError(f"the shape metric takes (N, C, H, W) or (N, D), got shape {tuple(rep.shape)}")
        maps = as_rep(rep).reshape(rep.shape if rep.ndim == 4 else (*rep.shape, 1, 1)).permute(0, 2, 3, 1)
        rows = maps.reshape(-1, maps.shape[-1])
        mean = column_mean(rows) if self.center else torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)

        def turned() -> Iterator[Tensor]:
            blocks = (block.double() - mean for block in rows.split(_ROWS))
            return blocks if root is None else (product(block, root) for block in blocks)

        root = None
        if self.alpha < 1:
            root = partial_whitening(sum(product(block.T, block) for block in turned()), self.alpha)
        norm = math.sqrt(sum(block.square().sum().item() for block in turned())) or 1.0
        return Maps(torch.cat([(block / norm).to(rows.dtype) for block in turned()]).reshape(maps.shape))


def partial_whitening(scatter: Tensor, alpha: float) -> Tensor:
    """(C, C) alpha I + (1 - alpha) (X'X)^(-1/2), from X'X; directions without data are left as they are."""
    values, vectors = torch.linalg.eigh(scatter)
    present = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    scales = alpha + (1 - alpha) * torch.where(present, values, 1.0).rsqrt()
    return (vectors * scales) @ vectors.T


def angle(pair: Pair) -> float:
    """Shape distance of two `Maps`."""
    a, b = pair.a.values, pair.b.values
    if not (a.any() and b.any()):
        return undefined("the shape metric is not defined: a representation has norm 0")
    cosine = nuclear_norm(sum(product(x.T, y).double() for x, y in _common_rows(a, b)))
    if cosine < _NEAR:
        return math.acos(max(-1.0, cosine))
    # Close to 1 the cosine carries the angle in its last digits only; the length of the difference does not. The
    # rotation that makes it least takes float64: channels of little variance turn far for little.
    left, _, right = torch.linalg.svd(
        sum(product(x.double().T, y.double()) for x, y in _common_rows(a, b)), full_matrices=False
    )
    square = 0.0  # of that length: what the rotation leaves in the common rows and channels ...
    own = {"a": _square_norm(a), "b": _square_norm(b)}  # ... and what either model has elsewhere, opposite to padding
    for x, y in _common_rows(a, b):
        rotated, y = product(x.double(), left @ right), y.double()
        square += (rotated - y).square().sum().item()
        own["a"] -= rotated.square().sum().item()
        own["b"] -= y.square().sum().item()
    if any(size > other for size, other in zip(a.shape[1:], b.shape[1:])):  # else nothing: the difference is rounding
        square += max(0.0, own["a"])
    if any(size > other for size, other in zip(b.shape[1:3], a.shape[1:3])):
        square += max(0.0, own["b"])
    return 2 * math.asin(min(1.0, math.sqrt(square) / 2))


def _square_norm(maps: Tensor) -> float:
    """Squared norm in float64: of maps scaled to norm 1 in float32, 1 but for their rounding."""
    return sum(block.double().square().sum().item() for block in maps.split(max(1, _ROWS // maps[0, ..., 0].numel())))


def _common_rows(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of rows (positions) that both activations have when the smaller maps lie in the middle of the larger."""
    for axis in (1, 2):
        size = min(a.shape[axis], b.shape[axis])
        a = a.narrow(axis, (a.shape[axis] - size) // 2, size)
        b = b.narrow(axis, (b.shape[axis] - size) // 2, size)
    images = max(1, _ROWS // (a.shape[1] * a.shape[2]))
    for x, y in zip(a.split(images), b.split(images)):
        yield x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
