"""Projected gradient descent on pixels: the step rules, the one loop that attack and inversion share, and the attack.

A network and images in [0, 1] go in; perturbed images in [0, 1] come out. Only pixels get gradients.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from univ.errors import InputError

Norm = Literal["l2", "linf", "unconstrained", "fourier"]

LARGEST = 1e12  # radius and step: float32 holds their squares, summed over an image
TINY = 1e-10  # added to gradient norms, as in `robustness`: a zero gradient gives a zero step, not NaN


def image_norms(x: Tensor) -> Tensor:
    """The L2 norm of every image: (N, C, H, W) -> (N, 1, 1, 1), ready to divide by."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class StepRule:
    """Where an iterate may be and how it moves; one object serves one run of `pgd` and may keep state between steps.

    The loop always ascends: it hands `step` the gradient of what is to grow (the negated loss when minimising).

    Args:
        origin: (N, C, H, W) images in [0, 1] that the feasible set lies around; iterates start there.
        eps: radius of the set, in pixel units of [0, 1].
        step_size: length of a step, same unit.
    """

    def __init__(self, origin: Tensor, eps: float, step_size: float) -> None:
        self.origin = origin.detach()
        self.eps = eps
        self.step_size = step_size

    def start(self) -> Tensor:
        """The first iterate."""
        return self.origin

    def random_start(self, generator: torch.Generator | None) -> Tensor:
        """A first iterate drawn at random from the feasible set, with a generator on the images' device."""
        raise ValueError(f"{type(self).__name__} has no random start")

    def _noise(self, draw: Callable[..., Tensor], generator: torch.Generator | None) -> Tensor:
        return draw(self.origin.shape, generator=generator, device=self.origin.device, dtype=self.origin.dtype)

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Move the iterate uphill; `project` follows."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """The point of the feasible set that takes the place of `x`."""
        return x.clamp(0, 1)

    def to_image(self, x: Tensor) -> Tensor:
        """The images in [0, 1] an iterate stands for; another tensor only where coordinates are not pixels."""
        return x


class L2Step(StepRule):
    """Steps of fixed L2 length per image; the perturbation stays in the L2 ball of radius eps and images in [0, 1].

    The perturbation is scaled back to the ball and then clamped, as in `robustness`: this ends in both sets, though
    not always at the point of their intersection that is nearest.
    """

    def random_start(self, generator: torch.Generator | None) -> Tensor:
        """A point at distance eps in a random direction, clamped to [0, 1]."""
        noise = self._noise(torch.randn, generator)
        return (self.origin + self.eps * noise / (image_norms(noise) + TINY)).clamp(0, 1)

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        return x + self.step_size / (image_norms(gradient) + TINY) * gradient

    def project(self, x: Tensor) -> Tensor:
        difference = x - self.origin
        shrink = (self.eps / image_norms(difference).clamp(min=TINY)).clamp(max=1)
        return torch.addcmul(self.origin, difference, shrink).clamp_(0, 1)


class L2MomentumStep(L2Step):
    """`L2Step` along a running mean of unit gradients: m <- momentum m + (1 - momentum) g / |g|, from m = 0.

    The first steps are short (0.1 of `step_size` at momentum 0.9), as in the inversions of the study.

    Args:
        mean: m, shaped like the images and changed in place, as a CUDA graph needs it; default: zeros.
    """

    def __init__(
        self, origin: Tensor, eps: float, step_size: float, momentum: float = 0.9, mean: Tensor | None = None
    ) -> None:
        super().__init__(origin, eps, step_size)
        self.momentum = momentum
        self.mean = torch.zeros_like(self.origin) if mean is None else mean

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        torch.lerp(gradient / (image_norms(gradient) + TINY), self.mean, self.momentum, out=self.mean)
        return x + self.step_size * self.mean


class LinfStep(StepRule):
    """Steps along the gradient's sign; every pixel stays within eps of the original and in [0, 1]."""

    def random_start(self, generator: torch.Generator | None) -> Tensor:
        """Uniform in the cube of half-width eps, clamped to [0, 1]."""
        return (self.origin + self.eps * (2 * self._noise(torch.rand, generator) - 1)).clamp(0, 1)

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        return x + self.step_size * gradient.sign()

    def project(self, x: Tensor) -> Tensor:
        return (self.origin + (x - self.origin).clamp_(-self.eps, self.eps)).clamp_(0, 1)


class UnconstrainedStep(StepRule):
    """Plain gradient steps, x + step_size * gradient; only [0, 1] limits them, eps is not used.

    The gradient is that of each image's own loss, so the step does not depend on the batch size (`robustness` takes
    the gradient of the batch mean: its step_size is ours times the batch size). Its random start, which reads a
    variable that does not exist, is replaced by uniform noise scaled down to an L2 norm of step_size.
    """

    def random_start(self, generator: torch.Generator | None) -> Tensor:
        """A point at most step_size away, clamped to [0, 1]."""
        noise = self._noise(torch.rand, generator) - 0.5
        return (self.origin + (self.step_size / image_norms(noise)).clamp(max=1) * noise).clamp(0, 1)

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        return x + self.step_size * gradient


class FourierStep(StepRule):
    """Plain gradient steps on Fourier coefficients z, where the image is sigmoid(Re F^-1 z); eps is not used.

    F is the unitary two-dimensional transform of each channel (`robustness` calls a function torch has removed, and
    leaves it to the caller to provide coefficients; here the first iterate stands for the original images). F being
    unitary, the iterates are those of gradient steps on the logits of the pixels; the name is the library's.
    Pixels of exactly 0 or 1, which no logit stands for, start `margin` away from it.
    """

    margin: ClassVar[float] = 1 / 512  # half of the distance between two 8-bit values

    def start(self) -> Tensor:
        logits = at_least_float32(self.origin).clamp(self.margin, 1 - self.margin).logit()
        return torch.fft.fft2(logits, norm="ortho")

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        return x + self.step_size * gradient

    def project(self, x: Tensor) -> Tensor:
        return x  # every coefficient stands for an image in (0, 1)

    def to_image(self, x: Tensor) -> Tensor:
        return torch.fft.ifft2(x, norm="ortho").real.sigmoid()


STEP_RULES: dict[Norm, type[StepRule]] = {
    "l2": L2Step,
    "linf": LinfStep,
    "unconstrained": UnconstrainedStep,
    "fourier": FourierStep,
}


def pgd(
    loss_fn: Callable[[Tensor], Tensor],
    rule: StepRule,
    *,
    steps: int,
    keep_best: bool = True,
    random_start: bool = False,
    generator: torch.Generator | None = None,
    loss_scale: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Projected gradient ascent on every image of a batch at once.

    A step costs one forward and one backward pass: an iterate's loss comes with its gradient. Keeping the best costs
    one forward pass more, for the last iterate.

    `univ.inversion` takes its thousand steps in a loop of its own, which a CUDA graph can replay: all its tensors stay
    where they are, images that have stopped improving leave the batch, and the best iterate's number is kept.

    Args:
        loss_fn: images (N, C, H, W) in [0, 1] -> losses (N,). Images must not influence each other's loss, so batch
            norm has to be in evaluation mode; freeze the weights with `frozen` to save their share of the work.
        rule: feasible set, step and start.
        keep_best: return, per image, the iterate with the highest loss, the first and the last iterate included (of
            equals the earliest); otherwise the last iterate.
        random_start, generator: see `StepRule.random_start`.
        loss_scale: multiplies the loss during the backward pass and is divided out of the gradient, against
            underflow in fp16.

    Returns:
        Images (N, C, H, W) in [0, 1], and their losses (N,); None in place of the losses without `keep_best`.
    """
    x = rule.random_start(generator) if random_start else rule.start()
    best_x, best_losses = x, None
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            losses = loss_fn(rule.to_image(x))
            # the sum's gradient holds every image's own gradient, whatever the batch size
            (gradient,) = torch.autograd.grad(losses.sum() * loss_scale, x)
        with torch.no_grad():
            x = x.detach()
            if keep_best:
                best_x, best_losses = _worse(best_x, best_losses, x, losses.detach())
            x = rule.project(rule.step(x, gradient if loss_scale == 1 else gradient / loss_scale))
    with torch.no_grad():
        if not keep_best:
            return rule.to_image(x), None
        best_x, best_losses = _worse(best_x, best_losses, x, loss_fn(rule.to_image(x)))
        return rule.to_image(best_x), best_losses


def _worse(best_x: Tensor, best_losses: Tensor | None, x: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Per image whichever of the two has the higher loss, without waiting for the device."""
    if best_losses is None:
        return x, losses
    higher = losses > best_losses
    return torch.where(higher[:, None, None, None], x, best_x), torch.where(higher, losses, best_losses)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no gradients for the weights inside the block; every module and weight as before after it.

    Without gradients for the weights, the layers keep less for the backward pass and compute only what the pixels
    need; in evaluation mode batch norm's running statistics do not move.
    """
    training = {module for module in model.modules() if module.training}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield model
    finally:
        if training:
            # through train(), where networks drop what they cached in evaluation mode (tiny_vit its attention biases)
            model.train()
            for module in model.modules():
                module.training = module in training  # a part may have been in evaluation mode on purpose
        for weight in weights:
            weight.requires_grad_(True)


@dataclass(frozen=True)
class Attack:
    """An untargeted attack that raises the cross-entropy of images with respect to their labels.

    Raises:
        InputError: a radius or a step out of range.
        ValueError: another value out of range, more than one run without a random start, or none for the norm.
    """

    norm: Norm = "l2"  # key of STEP_RULES
    eps: float = 3.0  # radius, pixel units of [0, 1]; not used by "unconstrained" and "fourier"
    step_size: float = 2.0  # same unit; for those two, the factor of the gradient
    steps: int = 3
    random_start: bool = False  # start at a random point of the feasible set instead of the image itself
    restarts: int = 1  # runs, each from another random start, of which the worst image is kept
    keep_best: bool = True  # keep the iterate with the highest loss, else the last

    def __post_init__(self) -> None:
        if self.norm not in STEP_RULES:
            raise ValueError(f"unknown norm {self.norm!r}; choose from {', '.join(STEP_RULES)}")
        if not (0 <= self.eps <= LARGEST and 0 <= self.step_size <= LARGEST):
            raise InputError(
                f"an attack needs a radius and a step of 0 to {LARGEST:g} pixel units, got -o/--eps {self.eps:g} and "
                f"-l/--lr {self.step_size:g}"
            )
        if self.steps < 0 or self.restarts < 1:
            raise ValueError(f"an attack needs steps >= 0 and restarts >= 1, got {self}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"{self.restarts} restarts are all alike without a random start")
        if self.random_start and self.norm == "fourier":
            raise ValueError("the fourier constraint has no random start")

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator | None = None,
        loss_scale: float = 1.0,
    ) -> Tensor:
        """Adversarial images, detached, for `model`, which is in evaluation mode meanwhile and left as it was.

        Args:
            model: images (N, C, H, W) in [0, 1] -> logits (N, classes).
            images, labels: (N, C, H, W) in [0, 1], and (N,) int64.
            generator: of the random starts, on the images' device.
            loss_scale: see `pgd`.

        Source: Madry et al., ICLR 2018; same images as `robustness.attacker` to rounding, except that restarts keep
        the highest loss (there: the last run) and gradients are those of each image's own loss (there: of the mean).
        """

        def losses_of(x: Tensor) -> Tensor:
            return functional.cross_entropy(at_least_float32(model(x)), labels, reduction="none")

        options = {"steps": self.steps, "keep_best": self.keep_best, "random_start": self.random_start}
        worst, worst_losses = images, None
        with frozen(model):
            for _ in range(self.restarts):
                rule = STEP_RULES[self.norm](images, self.eps, self.step_size)
                adversarial, losses = pgd(losses_of, rule, **options, generator=generator, loss_scale=loss_scale)
                if self.restarts == 1:
                    return adversarial
                if losses is None:
                    with torch.no_grad():
                        losses = losses_of(adversarial)
                worst, worst_losses = _worse(worst, worst_losses, adversarial, losses)
        return worst
