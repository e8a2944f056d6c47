"""What the parts of AutoAttack share: the images that are still classified right, and what was found for each."""

from collections.abc import Callable

import torch
from torch import Tensor

from univ.attacks.projected import at_least_float32

DROP = 1 / 16  # share of the batch that must be done before the others move together: moving them costs a copy


class Active:
    """The images of a batch that an attack still works on; those that it has fooled leave.

    Every image's search is its own, so that leaving changes nothing for those that stay.

    Args:
        images: (N, C, H, W); what is found starts as these.

    Attributes:
        found: (N, C, H, W), for a fooled image the first adversarial one.
        fooled: (N,) bool.
        rows: (n,) int64, the images that are still in the batch, n <= N.
    """

    def __init__(self, images: Tensor) -> None:
        self.found = images.clone()
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.rows = torch.arange(len(images), device=images.device)

    def record(self, candidates: Tensor, wrong: Tensor) -> None:
        """Keep the candidates (n, C, H, W) that are classified wrong (n,), the first of each image."""
        first = wrong & ~self.fooled[self.rows]
        self.found[self.rows[first]] = candidates[first]
        self.fooled[self.rows[first]] = True

    def stay(self) -> Tensor | None:
        """Indices (m,) into the batch of those that stay, if enough may leave; `rows` follows. None: all stay."""
        stays = (~self.fooled[self.rows]).nonzero().flatten()
        if len(self.rows) - len(stays) < max(1, DROP * len(self.rows)) and len(stays):
            return None
        self.rows = self.rows[stays]
        return stays


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other one, (N,); below 0 the image is classified wrong."""
    of_label = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return of_label.squeeze(1) - others.amax(1)


def value_and_gradient(
    model: Callable[[Tensor], Tensor], loss_fn: Callable[[Tensor], Tensor], x: Tensor, loss_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, classes), losses (N,) and each image's own gradient, multiplied by `loss_scale`, (N, C, H, W)."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = at_least_float32(model(x))
        losses = loss_fn(logits)
        (gradient,) = torch.autograd.grad(losses.sum() * loss_scale, x)
    return logits.detach(), losses.detach(), gradient
