"""CKA and Procrustes of two models from one pass over batches: batches of representations -> the scores of all images.

For representations that are never stored. Those in memory-mapped files need no more than `cka(x, y, stream=True)`.
"""

import torch
from torch import Tensor

from univ.measures.base import Rep, as_rep, full_precision, undefined
from univ.measures.centering import product
from univ.measures.cka import hsic_from_sums, normalized
from univ.measures.procrustes import distance_from_norms, nuclear_norm

_CLEAR = 1e-8  # share of |A'A|_F^2 that is left in HSIC_1 where float64 sums leave it exact to 1e-6


class StreamedPair:
    """Sums over batches of two models from which CKA and Procrustes follow exactly.

        pair = StreamedPair()
        for images in loader:
            pair.update(model_a(images), model_b(images))
        pair.cka(), pair.procrustes()

    With rows r = (x, |x|^2, 1) of either model it sums r_a' r_b, r_a' r_a and r_b' r_b, in float64: what is centred
    is linear in r. The mean of the first batch is subtracted from all, so that what is summed is nearly centred and
    little is lost when the true mean is taken off at the end.
    """

    def __init__(self) -> None:
        self._shifts: list[Tensor] = []  # mean of the first batch, per model
        self._sums: dict[tuple[int, int], Tensor] = {}  # models -> (D + 2, D' + 2)

    def update(self, a: Rep, b: Rep) -> None:
        """Add a batch: (n, D_a) and (n, D_b), row i of both from the same image.

        Raises:
            ValueError: different numbers of images, other widths than before, NaN input.
        """
        with full_precision():
            batch = [as_rep(rep, min_images=1).double() for rep in (a, b)]
            if len(batch[0]) != len(batch[1]):
                raise ValueError(
                    f"a batch needs the same images in both models: got {len(batch[0])} and {len(batch[1])}"
                )
            self._shifts = self._shifts or [rep.mean(dim=0) for rep in batch]
            widths, found = [len(shift) for shift in self._shifts], [rep.shape[1] for rep in batch]
            if found != widths:
                raise ValueError(f"batches have {widths} columns, got {found}")
            rows = []
            for rep, shift in zip(batch, self._shifts):
                x = rep - shift
                rows.append(torch.cat([x, x.square().sum(dim=1, keepdim=True), torch.ones_like(x[:, :1])], dim=1))
            for i, j in ((0, 1), (0, 0), (1, 1)):
                self._sums[i, j] = self._sums.get((i, j), 0) + product(rows[i].T, rows[j])

    def cka(self, *, unbiased: bool = True) -> float:
        """CKA of all images so far; see `univ.measures.cka`.

        Raises:
            ValueError: fewer than 4 images.
        """
        n = int(self._sums[0, 1][-1, -1]) if self._sums else 0
        if n < 4:
            raise ValueError(f"CKA needs at least 4 images, got {n}")
        values = []
        for i, j in ((0, 1), (0, 0), (1, 1)):
            sums = self._centered(i, j)
            cross = value = sums[:-2, :-2].square().sum().item()
            if unbiased:
                products, a, b = sums[-2, -2].item(), sums[-2, -1].item(), sums[-1, -2].item()
                value = hsic_from_sums(n, cross, products, a, b)
                if i == j and value * n * (n - 3) <= _CLEAR * cross:
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
        sums = self._centered(0, 1)
        norms = (max(0.0, sums[-2, -1].item()), max(0.0, sums[-1, -2].item()))
        return distance_from_norms(*norms, nuclear_norm(sums[:-2, :-2]), normalize)

    def _centered(self, i: int, j: int) -> Tensor:
        """The sums of models i and j as those of rows (x - m, |x - m|^2, 1), m the mean of x."""
        sums, (left, right) = self._sums[i, j], (self._centring(model) for model in (i, j))
        return product(product(left.T, sums), right)

    def _centring(self, model: int) -> Tensor:
        """(D + 2, D + 2) C with (x, |x|^2, 1) C = (x - m, |x|^2 - 2 x.m + |m|^2, 1)."""
        own = self._sums[model, model]
        mean = own[-1, :-2] / own[-1, -1]
        change = torch.eye(len(own)).to(own)
        change[-1, :-2], change[:-2, -2], change[-1, -2] = -mean, -2 * mean, mean.square().sum()
        return change
