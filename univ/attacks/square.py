"""Square Attack: random search with squares of pixels, which needs no gradients and so sees through masked ones.

Source: Andriushchenko, Croce, Flammarion and Hein, ECCV 2020, algorithms 1 to 3; constants are the paper's.
"""

import functools

import torch
from torch import Tensor, nn

from univ.attacks.active import Active, margins
from univ.attacks.projected import STEP_RULES, Norm, at_least_float32, image_norms

FIRST_SHARE = 0.8  # p: share of the pixels in the first squares
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: after which p halves
TILES = 5  # of a side, in the first perturbation of L2


def share_of_pixels(query: int, queries: int) -> float:
    """p of a query, counted from 0."""
    place = query * 10_000 // queries
    return FIRST_SHARE / 2 ** sum(place > halving for halving in HALVINGS)


def signs(*shape: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """-1 or 1 at random."""
    drawn = torch.randint(2, shape, generator=generator, device=like.device)
    return (2 * drawn - 1).to(like.dtype)


def places(count: int, most: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """(count, 2) first row and first column of windows, 0 to `most`."""
    return torch.randint(most + 1, (count, 2), generator=generator, device=like.device)


@functools.cache
def bump(side: int) -> Tensor:
    """The pattern of a window: one hill up, one down, of unit norm; (side, side) float64 on the CPU."""

    def hill(height: int, width: int) -> Tensor:  # the sum of 1 / (j + 1)^2 over j from the distance to the centre on
        rows, columns = ((torch.arange(n) - n // 2).abs() for n in (height, width))
        distance = torch.maximum(rows[:, None], columns)
        terms = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64).square()
        values = terms.flip(0).cumsum(0).flip(0)[distance]
        return values / values.norm()

    upper = side // 2
    both = torch.cat([hill(upper, side), -hill(side - upper, side)] if upper else [hill(side, side)])
    return both / both.norm()


def bumps(count: int, side: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """(count, 1, side, side) patterns, half of them turned, at random."""
    pattern = bump(side).to(like)
    turned = torch.randint(2, (count, 1, 1, 1), generator=generator, device=like.device) == 1
    return torch.where(turned, pattern.T, pattern)


def window(shape: torch.Size, place: Tensor, side: int) -> Tensor:
    """(N, 1, H, W) bool, where the window of each image is."""
    rows, columns = (torch.arange(n, device=place.device) for n in shape[-2:])
    first, second = place[:, :1], place[:, 1:]
    inside_rows = (rows >= first) & (rows < first + side)
    inside_columns = (columns >= second) & (columns < second + side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


class LinfSquares:
    """Proposals in the L-infinity ball: a square of pixels moves to plus or minus eps, a sign per channel."""

    def __init__(self, images: Tensor, eps: float, generator: torch.Generator | None) -> None:
        self.low, self.high, self.generator = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1), generator

    def keep(self, stay: Tensor) -> None:
        self.low, self.high = self.low[stay], self.high[stay]

    def start(self) -> Tensor:
        """Vertical stripes."""
        n, channels, _, width = self.low.shape
        return torch.where(
            signs(n, channels, 1, width, like=self.low, generator=self.generator) > 0, self.high, self.low
        )

    def propose(self, best: Tensor, share: float) -> Tensor:
        n, channels, height, width = best.shape
        side = min(max(round((share * height * width) ** 0.5), 1), height, width)
        place = places(n, min(height, width) - side, best, self.generator)
        up = signs(n, channels, 1, 1, like=best, generator=self.generator) > 0
        return torch.where(window(best.shape, place, side), torch.where(up, self.high, self.low), best)


class L2Squares:
    """Proposals on the L2 sphere: a window takes a pattern, with its own, another's and unused length."""

    def __init__(self, images: Tensor, eps: float, generator: torch.Generator | None) -> None:
        self.images, self.eps, self.generator = images, eps, generator

    def keep(self, stay: Tensor) -> None:
        self.images = self.images[stay]

    def _on_sphere(self, difference: Tensor) -> Tensor:
        stretched = self.eps * difference / image_norms(difference).clamp(min=1e-12)
        return STEP_RULES["l2"](self.images, self.eps, 0.0).project(self.images + stretched)

    def start(self) -> Tensor:
        """Tiles of patterns, a sign per channel."""
        n, channels, height, width = self.images.shape
        side = max(min(height, width) // TILES, 1)
        difference = torch.zeros_like(self.images)
        for top in range((height % side) // 2, height - side + 1, side):
            for left in range((width % side) // 2, width - side + 1, side):
                sign = signs(n, channels, 1, 1, like=difference, generator=self.generator)
                tile = bumps(n, side, difference, self.generator) * sign
                difference[:, :, top : top + side, left : left + side] = tile
        return self._on_sphere(difference)

    def propose(self, best: Tensor, share: float) -> Tensor:
        n, channels, height, width = best.shape
        least = min(height, width)
        side = min(max(round((share * height * width) ** 0.5), 3) | 1, least)  # odd
        difference = best - self.images
        to, emptied = (places(n, least - side, best, self.generator) for _ in range(2))
        offsets = torch.arange(side, device=best.device)
        index = (
            torch.arange(n, device=best.device)[:, None, None, None],
            torch.arange(channels, device=best.device)[:, None, None],
            (to[:, :1] + offsets)[:, None, :, None],
            (to[:, 1:] + offsets)[:, None, None, :],
        )
        own = difference[index]  # (N, C, side, side)
        sign = signs(n, channels, 1, 1, like=best, generator=self.generator)
        pattern = bumps(n, side, best, self.generator) * sign + own / _length(own).clamp(min=1e-12)
        both = window(best.shape, to, side) | window(best.shape, emptied, side)
        unused = (self.eps**2 - difference.square().sum((1, 2, 3), keepdim=True)).clamp(min=0)
        length = ((difference * both).square().sum((2, 3), keepdim=True) + unused / channels).sqrt()
        difference = difference.masked_fill(window(best.shape, emptied, side), 0)
        difference[index] = pattern * length / _length(pattern).clamp(min=1e-12)
        return self._on_sphere(difference)


def _length(windows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(windows, dim=(2, 3), keepdim=True)


def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    queries: int = 5000,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Attack images with `queries` forward passes each; one ends with its first misclassified proposal.

    Every image has its own squares, so that its result does not depend on its neighbours'.

    Args:
        model: frozen, in evaluation mode; images (N, C, H, W) in [0, 1] -> logits.
        images, labels: (N, C, H, W) and (N,), of images that are classified right.
        norm, eps: "l2" or "linf", and the radius in pixel units of [0, 1].
        generator: of the squares, on the images' device.

    Returns:
        Images (N, C, H, W), of those not fooled the one with the smallest margin, and which are fooled, (N,) bool.
    """
    active = Active(images)
    squares = (L2Squares if norm == "l2" else LinfSquares)(images, eps, generator)
    best = squares.start()
    least = torch.full_like(labels, torch.inf, dtype=torch.float32)
    candidates = best
    for query in range(1, queries + 1):
        with torch.no_grad():
            logits = at_least_float32(model(candidates))
        margin = margins(logits, labels).to(least.dtype)
        active.record(candidates, logits.argmax(1) != labels)
        better = margin < least
        best = torch.where(better[:, None, None, None], candidates, best)
        least = torch.where(better, margin, least)
        if (stay := active.stay()) is not None:
            if not len(stay):
                break
            squares.keep(stay)
            best, least, labels = best[stay], least[stay], labels[stay]
        if query < queries:
            candidates = squares.propose(best, share_of_pixels(query - 1, queries))
    unfooled = ~active.fooled[active.rows]
    active.found[active.rows[unfooled]] = best[unfooled]
    return active.found, active.fooled
