"""Images drawn at random, the same for all models, for measures whose cost grows faster than their number."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Preparation, Prepared, Rep, as_rep


@dataclass(frozen=True)
class Subsamples(Preparation):
    """Draw `batch` images per trial and take something of their rows.

    Attributes:
        compute: (rep (N, D), indices of a trial's images) -> tensor.
        batch: images per trial. With N <= batch all N are used, in a single trial: another would draw the same.
        trials: how many.
        seed: the images drawn depend on it and N alone.
    """

    compute: Callable[[Tensor, Tensor], Tensor]
    batch: int
    trials: int = 1
    seed: int = 0

    def prepare(self, rep: Rep) -> "Drawn":
        return self.draw(as_rep(rep, min_images=3), None)

    def draw(self, rep: Tensor, order: Tensor | None) -> "Drawn":
        """The trials of `rep[order]`, without making that copy."""
        trials = self.images(len(rep)).to(rep.device)
        trials = trials if order is None else order.to(rep.device)[trials]
        return Drawn(torch.stack([self.compute(rep, images) for images in trials]), rep, order, self)

    def images(self, n: int) -> Tensor:
        """(trials, batch) indices into n images, without replacement within a trial."""
        if n <= self.batch:
            return torch.arange(n)[None]
        generator = torch.Generator().manual_seed(self.seed)
        return torch.stack([torch.randperm(n, generator=generator)[: self.batch] for _ in range(self.trials)])


@dataclass(frozen=True)
class Drawn(Prepared):
    """What was computed of the images drawn in each trial: (trials, ...)."""

    values: Tensor
    rep: Tensor  # the caller's own, only referred to: of permuted rows others are drawn
    order: Tensor | None
    how: Subsamples
    by_image = ("rep",)

    def permute(self, order: Tensor) -> "Drawn":
        return self.how.draw(self.rep, order if self.order is None else self.order[order])
