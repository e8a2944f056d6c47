"""Targeted FAB: the nearest point of a class's decision boundary, by linearising and projecting in turn.

Source: Croce and Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack, ICML 2020,
algorithm 1; constants are the paper's. The projections are solved by Newton's method instead of sorting.
"""

import torch
from torch import Tensor, nn

from univ.attacks.active import Active, value_and_gradient
from univ.attacks.apgd import direction
from univ.attacks.projected import Norm

ALPHA_MAX = 0.1  # largest share of the way back to the image's own projection
OVERSHOOT = 1.05  # eta
BACK = 0.9  # beta, the step back towards the image after a success
NEWTON = 60  # most iterations of a projection; 3 to 15 are usual


def distances(difference: Tensor, norm: Norm) -> Tensor:
    """(N, C, H, W) -> (N,): the L2 or largest absolute entry of each image."""
    return torch.linalg.vector_norm(difference.flatten(1), ord=2 if norm == "l2" else torch.inf, dim=1)


def to_hyperplane(x: Tensor, normal: Tensor, rise: Tensor, norm: Norm) -> Tensor:
    """The smallest step from pixels to a hyperplane within [0, 1]: min |d|_p with <normal, d> = rise, x + d in [0, 1].

    With s = sign(rise), d_i = s sign(w_i) min(t v_i, room_i), where v = |w| for p = 2 and 1 for p = inf. What it gains,
    G(t) = sum |w_i| min(t v_i, room_i), is concave, increasing and piecewise linear, so that Newton's method from t = 0
    reaches G(t) = |rise| from below in finitely many steps. Where no point of [0, 1] reaches it, d takes all the room.

    Args:
        x, normal: (N, C, H, W).
        rise: (N,).

    Returns:
        d, (N, C, H, W).
    """
    shape, x, normal = x.shape, x.flatten(1), normal.flatten(1)
    way = normal.sign() * rise.sign()[:, None]
    weight = normal.abs()
    room = torch.where(way > 0, 1 - x, x) * (weight > 0)
    speed = weight if norm == "l2" else (weight > 0).to(weight.dtype)
    gain, full = weight * speed, weight * room
    t = torch.zeros_like(rise)
    for _ in range(NEWTON):
        free = t[:, None] * speed < room
        slope = torch.where(free, gain, 0).sum(1)
        after = (rise.abs() - torch.where(free, 0, full).sum(1)) / slope
        after = torch.where(slope > 0, torch.maximum(after, t), torch.inf)
        if bool(torch.isclose(after, t, rtol=1e-6, atol=0).all()):
            break
        t = after
    moved = torch.where(torch.isinf(t)[:, None], room, torch.minimum(t[:, None] * speed, room))
    return (way * moved.nan_to_num(0)).view(shape)


def fab(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    targets: Tensor,
    steps: int = 100,
    loss_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Attack images; one ends with the first misclassified point that is at most eps away.

    FAB looks for the smallest distance; whether it is at most eps is all that robust accuracy asks.

    Args:
        model: frozen, in evaluation mode; images (N, C, H, W) in [0, 1] -> logits.
        images, labels, targets: (N, C, H, W), (N,) and (N,): the class whose boundary is looked for.
        norm, eps: "l2" or "linf", and the radius in pixel units of [0, 1].

    Returns:
        Images (N, C, H, W), those not fooled as they were, and which are fooled, (N,) bool.
    """
    active, x = Active(images), images

    def look(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def lead(logits: Tensor) -> Tensor:  # of the target over the label
            return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)

        logits, leads, gradient = value_and_gradient(model, lead, x, loss_scale)
        return logits.argmax(1) != labels, leads, gradient / loss_scale

    for number in range(steps + 1):
        wrong, leads, gradient = look(x)
        active.record(x, wrong & (distances(x - images, norm) <= eps))
        if number == steps:
            break
        if bool(wrong.any()):  # beyond eps: back towards the image, and linearise there
            x = torch.where(wrong[:, None, None, None], images + BACK * (x - images), x)
        if (stay := active.stay()) is not None:
            if not len(stay):
                break
            x, images, labels, targets, wrong, leads, gradient = (
                value[stay] for value in (x, images, labels, targets, wrong, leads, gradient)
            )
        if bool(wrong.any()):
            _, leads, gradient = look(x)
        scale = gradient.abs().amax((1, 2, 3)).clamp(min=torch.finfo(gradient.dtype).tiny)
        normal, rise = direction(gradient), -leads / scale  # the same plane, in numbers whose squares do not vanish
        from_x = to_hyperplane(x, normal, rise, norm)
        from_image = to_hyperplane(images, normal, rise - (normal * (images - x)).sum((1, 2, 3)), norm)
        near, far = (distances(step, norm).clamp(min=1e-8) for step in (from_x, from_image))
        share = (near / (near + far)).clamp(max=ALPHA_MAX)[:, None, None, None]
        x = ((1 - share) * (x + OVERSHOOT * from_x) + share * (images + OVERSHOOT * from_image)).clamp(0, 1)
    return active.found, active.fooled
