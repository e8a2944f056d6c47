"""CKA of many layers from one pass over batches: (B, D) per layer -> one number per pair, and nothing kept of the reps.

Nguyen, Raghu and Kornblith, ICLR 2021, equation 2: HSIC_1 of every two layers is estimated on each batch, unbiased, and
averaged over the batches; CKA is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of the averages. Memory depends on the batch
and on the number of layers, not on the number of images.
"""

import math

import torch
from torch import Tensor

from univ.measures.base import as_float, full_precision, undefined
from univ.measures.centering import FAR, PRODUCT_RANGE

LEAST_IMAGES = 4  # of a batch: below, HSIC_1 is not defined
_COLUMNS = 4096  # centred at a time: a copy of them all would take as long as their product


def batch_gram(rep: Tensor) -> Tensor:
    """(B, B) float64 inner products of the images of a batch, centred on its mean, of a representation (B, ...).

    Products of float32 are float32, summed in float64 over blocks of columns; float64 throughout where one image lies
    so far from the others that float32 would lose them.

    Raises:
        ValueError: fewer than 4 images, NaN or infinity.
    """
    rows = as_float(rep.flatten(1))
    if len(rows) < LEAST_IMAGES:
        raise ValueError(f"a batch needs at least {LEAST_IMAGES} images, got {len(rows)}")
    with full_precision():
        gram = _products(rows, rows.dtype)
        norms = gram.diagonal()
        largest, total = norms.max().item(), norms.sum().item()
        if not math.isfinite(total) and not torch.isfinite(rows).all():
            raise ValueError("the representation holds NaN or infinity")
        exact = largest == 0 or (PRODUCT_RANGE[0] < largest < PRODUCT_RANGE[1] and largest <= FAR * total)
        return gram if exact or rows.dtype == torch.float64 else _products(rows, torch.float64)


def _products(rows: Tensor, dtype: torch.dtype) -> Tensor:
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for columns in rows.split(_COLUMNS, dim=1):
        columns = columns.to(dtype)
        centered = columns - columns[0]  # first, so that a constant column becomes exact zeros
        centered -= centered.mean(dim=0)
        gram += centered @ centered.T
    return gram


class MinibatchCKA:
    """Sums over batches of HSIC_1 of every two layers.

        sums = MinibatchCKA()
        for images in batches:
            sums.update(torch.stack([batch_gram(rep) for rep in layers(images)]))
        sums.cka()                                    # (L, L)

    All pairs take one product of (L, B^2) matrices: with U-centred K~ (zero diagonal, rows and columns sum to 0) HSIC_1
    is the mean of the entrywise product of K~ and L~ over B (B - 3) (Székely and Rizzo, 2014, section 3).

    Attributes:
        sums: (L, L) float64, of HSIC_1 over the batches so far.
        batches: how many there were.
    """

    def __init__(self, sums: Tensor | None = None, batches: int = 0) -> None:
        self.sums, self.batches = sums, batches

    def update(self, grams: Tensor) -> None:
        """Add a batch: (L, B, B) inner products of the same images in every layer.

        Raises:
            ValueError: fewer than 4 images, or another number of layers than before.
        """
        layers, n, _ = grams.shape
        if n < LEAST_IMAGES:
            raise ValueError(f"a batch needs at least {LEAST_IMAGES} images, got {n}")
        if self.sums is not None and len(self.sums) != layers:
            raise ValueError(f"batches have {len(self.sums)} layers, got {layers}")
        kernels = u_centered(grams.double()).flatten(1)
        hsic = kernels @ kernels.T / (n * (n - 3))
        self.sums = hsic.cpu() if self.sums is None else self.sums + hsic.cpu()
        self.batches += 1

    def cka(self) -> Tensor:
        """(L, L) float64 CKA, at most 1; nan, with an `UndefinedScore` warning, of layers without variance.

        Raises:
            ValueError: no batch yet.
        """
        if self.sums is None:
            raise ValueError("CKA needs at least one batch")
        own = self.sums.diagonal().clone()
        if (constant := own <= 0).any():
            undefined(f"CKA is not defined: the self-HSIC of {int(constant.sum())} layers is not positive")
            own[constant] = math.nan
        root = own.sqrt()
        return self.sums / root / root[:, None]


def u_centered(grams: Tensor) -> Tensor:
    """(L, B, B) kernel matrices with zero diagonal whose rows and columns sum to 0: unbiased where centring is not."""
    n = grams.shape[-1]
    kernels = grams.clone()
    kernels.diagonal(dim1=-2, dim2=-1).zero_()
    rows = kernels.sum(dim=-1)
    kernels -= (rows[:, :, None] + rows[:, None, :]) / (n - 2)
    kernels += (rows.sum(dim=-1) / ((n - 1) * (n - 2)))[:, None, None]
    kernels.diagonal(dim1=-2, dim2=-1).zero_()
    return kernels
