"""How near a natural image comes to a target by chance: what an inversion has to beat to be called converged.

Source: the null of random pairs of Feather et al., Model metamers reveal divergent invariances between biological and
artificial neural networks, Nature Neuroscience 2023; here every target has its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from univ.inversion.optimise import represent, scaled
from univ.models import HEAD_INPUT, Classifier
from univ.models.precision import arithmetic

MOST = 1000  # natural images that each target is compared with


def chosen(targets: Tensor, seeds: Tensor) -> Tensor:
    """(k,) indices of the images to compare with: the targets and seeds, spread evenly over them if there are many."""
    every = torch.cat([targets, seeds]).unique()
    return every[torch.linspace(0, len(every) - 1, min(MOST, len(every))).round().long()]


@torch.no_grad()
def representations(
    model: Classifier, batches: Iterable[tuple[Tensor, Tensor]], node: str = HEAD_INPUT, pool: str | None = None
) -> Tensor:
    """(n, D) float32 on the CPU, what is inverted, without TF32; images (B, 3, H, W) and labels come in."""
    device = next(model.parameters()).device
    with arithmetic("fp32", device), torch.autocast(device.type, enabled=False):
        return torch.cat([represent(model, images, node, pool).cpu() for images, _ in batches])


def nearest(reps: Tensor, targets: Tensor, others: Tensor, indices: Tensor) -> Tensor:
    """The smallest relative distance |r(x) - r(t)| / |r(t)| of another natural image x to each target t.

    Args:
        reps, targets: (n, D) of the targets, and (n,) which images they are.
        others, indices: (k, D) of the images to compare with, and (k,) which they are; a target's own is left out.

    Returns:
        (n,); nan where there is no other image.
    """
    found = []
    for rows, numbers in zip(reps.split(256), targets.split(256)):
        distance = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist") / scaled(rows)[1][:, None]
        distance = distance.masked_fill(numbers[:, None] == indices, torch.inf)
        found.append(distance.amin(1))
    found = torch.cat(found)
    return found.masked_fill(found.isinf(), torch.nan)
