"""CKA and Procrustes of two models from one pass over batches: batches of representations -> the scores of all images.

For representations that are never stored. Those in memory-mapped files need no more than `cka(x, y, stream=True)`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Rep, as_rep, full_precision, undefined
from univ.measures.centering import product
from univ.measures.cka import hsic_from_sums, normalized
from univ.measures.procrustes import nuclear_norm

_CLEAR = 1e-8  # share of |A'A|_F^2 that is left in HSIC_1 where float64 sums leave it exact to 1e-6


class StreamedPair:
    """Sums over batches of two models from which CKA and Procrustes follow exactly.

        pair = StreamedPair()
        for images in loader:
            pair.update(model_a(images), model_b(images))
        pair.cka(), pair.procrustes()

    Memory: three matrices (D_a, D_b), (D_a, D_a) and (D_b, D_b), all in float64. The mean of the first batch is
    subtracted from all, so that what is summed is nearly centred and little is lost when the true mean is taken off
    at the end.
    """

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}
        self._shifts: tuple[Tensor, Tensor] | None = None

    def update(self, a: Rep, b: Rep) -> None:
        """Add a batch: (n, D_a) and (n, D_b), row i of both from the same image.

        Raises:
            ValueError: different numbers of images, other widths than before, NaN input.
        """
        with full_precision():
            rows = [as_rep(a, min_images=1), as_rep(b, min_images=1)]
            if len(rows[0]) != len(rows[1]):
                raise ValueError(f"a batch needs the same images in both models: got {len(rows[0])} and {len(rows[1])}")
            if self._shifts is None:
                self._shifts = tuple(model.double().mean(dim=0) for model in rows)
                pairs = {"ab": (0, 1), "aa": (0, 0), "bb": (1, 1)}
                self._sums = {name: _Sums.zeros(rows[i], rows[j]) for name, (i, j) in pairs.items()}
            widths = [len(shift) for shift in self._shifts]
            if [model.shape[1] for model in rows] != widths:
                raise ValueError(f"batches have {widths} columns, got {[model.shape[1] for model in rows]}")
            x, y = (model.double() - shift for model, shift in zip(rows, self._shifts))
            self._sums["ab"].add(x, y)
            self._sums["aa"].add(x, x)
            self._sums["bb"].add(y, y)

    def cka(self, *, unbiased: bool = True) -> float:
        """CKA of all images so far; see `univ.measures.cka`.

        Raises:
            ValueError: fewer than 4 images.
        """
        n = self._sums["ab"].count if self._sums else 0
        if n < 4:
            raise ValueError(f"CKA needs at least 4 images, got {n}")
        values = []
        for sums in (self._sums[name] for name in ("ab", "aa", "bb")):
            cross = value = sums.centered_cross().square().sum().item()
            if unbiased:
                norms = (sums.centered_norms("a"), sums.centered_norms("b"))
                value = hsic_from_sums(n, cross, sums.centered_norm_products(), *norms)
                if sums is not self._sums["ab"] and value * n * (n - 3) <= _CLEAR * cross:
                    return undefined(
                        "CKA cannot be told from sums over batches: a representation has no variance, or all but its "
                        "rounding in one image; cka(x, y) can tell"
                    )
            values.append(value)
        return normalized(*values)

    def procrustes(self, *, normalize: bool = True) -> float:
        """Centred Procrustes distance of all images so far; see `univ.measures.procrustes`.

        Raises:
            ValueError: no batch yet.
        """
        if not self._sums:
            raise ValueError("Procrustes needs at least one batch")
        sums = self._sums["ab"]
        a, b = sums.centered_norms("a"), sums.centered_norms("b")
        nuclear = nuclear_norm(sums.centered_cross())
        if not normalize:
            return max(0.0, a + b - 2 * nuclear)
        if not (a > 0 and b > 0):
            return undefined("Procrustes is not defined: a representation has norm 0 and cannot be scaled to norm 1")
        return max(0.0, 2 - 2 * nuclear / (a * b) ** 0.5)


@dataclass
class _Sums:
    """Sums over images of products of rows x (D_a,), y (D_b,) and their squared norms p, q; float64."""

    count: int
    x: Tensor
    y: Tensor
    xy: Tensor  # (D_a, D_b)
    qx: Tensor  # (D_a,) sum of q x
    py: Tensor  # (D_b,) sum of p y
    p: float = 0.0
    q: float = 0.0
    pq: float = 0.0

    @classmethod
    def zeros(cls, a: Tensor, b: Tensor) -> "_Sums":
        x, y = (torch.zeros(model.shape[1], dtype=torch.float64, device=model.device) for model in (a, b))
        return cls(0, x, y, torch.zeros(len(x), len(y)).to(x), x.clone(), y.clone())

    def add(self, x: Tensor, y: Tensor) -> None:
        p, q = x.double().square().sum(dim=1), y.double().square().sum(dim=1)
        self.count += len(x)
        self.xy += product(x.T, y)
        self.x += x.sum(dim=0, dtype=torch.float64)
        self.y += y.sum(dim=0, dtype=torch.float64)
        self.qx += q @ x.double()
        self.py += p @ y.double()
        self.p += p.sum().item()
        self.q += q.sum().item()
        self.pq += torch.dot(p, q).item()

    def centered_cross(self) -> Tensor:
        """X'Y of the centred rows."""
        return self.xy - torch.outer(self.x, self.y) / self.count

    def centered_norms(self, model: str) -> float:
        """Sum of the squared norms of the centred rows."""
        total, mean = (self.p, self.x) if model == "a" else (self.q, self.y)
        return max(0.0, total - mean.square().sum().item() / self.count)

    def centered_norm_products(self) -> float:
        """Sum over images of |x - mean|^2 |y - mean|^2, from (p - 2 x.m + |m|^2)(q - 2 y.w + |w|^2) multiplied out."""
        m, w = self.x / self.count, self.y / self.count
        mm, ww = m.square().sum(), w.square().sum()
        value = self.pq - 2 * self.py @ w - 2 * self.qx @ m + 4 * m @ self.xy @ w
        value = value + ww * self.p + mm * self.q - 2 * ww * (self.x @ m) - 2 * mm * (self.y @ w)
        return (value + self.count * mm * ww).item()
