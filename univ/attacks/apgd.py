"""Auto-PGD: projected gradient ascent with momentum whose step halves itself where the loss stops rising.

Source: Croce and Hein, ICML 2020, algorithm 1 and sections 3 and 4; constants are the paper's.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from univ.attacks.active import Active, value_and_gradient
from univ.attacks.projected import STEP_RULES, Norm

MOMENTUM = 0.75  # alpha, the share of the new step
RISES = 0.75  # rho, the share of steps that must raise the loss for the step size to stay
FIRST_CHECK, CHECKS_NEARER, LEAST_CHECK = 22, 3, 6  # percent of the steps between looks at the step size

LogitLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits (N, classes), labels (N,) and target classes (N,) -> losses (N,) that an attack raises."""


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Of the labels; targets are not used."""
    return functional.cross_entropy(logits, labels, reduction="none")


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Difference of logits ratio towards a class: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), equation 7.

    Unlike cross-entropy it changes neither with a shift nor with a factor of the logits, so a confident network does
    not hide its gradients.
    """
    largest = logits.topk(4, dim=1).values
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    difference = logits.gather(1, labels[:, None]) - logits.gather(1, targets[:, None])
    return -difference.squeeze(1) / (scale + 1e-12)


def checkpoints(steps: int) -> set[int]:
    """The steps after which the step size is looked at: 22, 41, 57, ... percent of all, rounded up."""
    before, share, found = 0, FIRST_CHECK, set()
    while share <= 100:
        found.add(math.ceil(share * steps / 100))
        before, share = share, share + max(share - before - CHECKS_NEARER, LEAST_CHECK)
    return found


def direction(gradient: Tensor) -> Tensor:
    """The gradient with a largest entry of 1 per image: its squares neither vanish nor overflow; zeros stay."""
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    return gradient / largest.clamp(min=torch.finfo(gradient.dtype).tiny)


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    steps: int = 100,
    loss: LogitLoss = cross_entropy,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
    loss_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Attack images from a random start of the ball; each ends with its first misclassified iterate.

    Args:
        model: frozen, in evaluation mode; images (N, C, H, W) in [0, 1] -> logits.
        images, labels: (N, C, H, W) and (N,), of images that are classified right.
        norm, eps: "l2" or "linf", and the radius in pixel units of [0, 1].
        loss, targets: what is raised, and the classes it aims at, (N,) where it is a targeted one.
        generator: of the starts, on the images' device.

    Returns:
        Images (N, C, H, W), of those not fooled the iterate with the highest loss, and which are fooled, (N,) bool.
    """
    checks, active = checkpoints(steps), Active(images)
    targets = labels if targets is None else targets
    rule = STEP_RULES[norm](images, eps, 0.0)
    x = rule.random_start(generator)
    step_size = torch.full_like(images[:, :1, :1, :1], 2 * eps)
    previous, last_check = x, 0

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, losses, gradient = value_and_gradient(model, lambda z: loss(z, labels, targets), x, loss_scale)
        active.record(x, logits.argmax(1) != labels)
        return losses, direction(gradient)

    losses, gradient = look(x)
    best, best_losses, best_gradient = x, losses, gradient
    rises = torch.zeros_like(losses)
    best_at_check, halved = losses, torch.ones_like(losses, dtype=torch.bool)
    for number in range(1, steps + 1):
        if (stay := active.stay()) is not None:
            if not len(stay):
                break
            x, previous, images, labels, targets, step_size, gradient, losses, rises = (
                value[stay] for value in (x, previous, images, labels, targets, step_size, gradient, losses, rises)
            )
            best, best_losses, best_gradient, best_at_check, halved = (
                value[stay] for value in (best, best_losses, best_gradient, best_at_check, halved)
            )
        rule = STEP_RULES[norm](images, eps, step_size)
        ahead = rule.project(rule.step(x, gradient))
        if number > 1:
            ahead = rule.project(x + MOMENTUM * (ahead - x) + (1 - MOMENTUM) * (x - previous))
        previous, x, before = x, ahead, losses
        losses, gradient = look(x)
        rises = rises + (losses > before)
        better = losses > best_losses
        wide = better[:, None, None, None]
        best, best_gradient = torch.where(wide, x, best), torch.where(wide, gradient, best_gradient)
        best_losses = torch.where(better, losses, best_losses)
        if number in checks:
            stuck = ~halved & (best_losses <= best_at_check)
            halved = (rises < RISES * (number - last_check)) | stuck
            wide = halved[:, None, None, None]
            step_size = torch.where(wide, step_size / 2, step_size)
            x, gradient = torch.where(wide, best, x), torch.where(wide, best_gradient, gradient)
            losses = torch.where(halved, best_losses, losses)
            best_at_check, rises, last_check = best_losses, torch.zeros_like(rises), number
    active.record(best, torch.zeros_like(halved))
    unfooled = ~active.fooled[active.rows]
    active.found[active.rows[unfooled]] = best[unfooled]
    return active.found, active.fooled
