"""AutoAttack: several attacks without parameters to tune, one after the other on the images that are still right.

Source: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks, ICML 2020; all four parts are its standard version.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from univ.attacks.apgd import apgd, cross_entropy, targeted_dlr
from univ.attacks.fab import fab
from univ.attacks.projected import LARGEST, Norm, at_least_float32, frozen
from univ.attacks.square import square
from univ.errors import InputError

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass(frozen=True)
class AutoAttack:
    """What is left of an accuracy after every part has attacked the images that the parts before it could not fool.

    Raises:
        InputError: a radius out of range, or a norm that it has not.
    """

    norm: Norm = "linf"  # "l2" or "linf"
    eps: float = 8 / 255  # radius, pixel units of [0, 1]
    parts: tuple[str, ...] = PARTS
    steps: int = 100  # of APGD and FAB, per target class
    targets: int = 9  # classes that APGD-T and FAB-T aim at: those with the largest logits but the label's
    queries: int = 5000  # of Square

    random_start: ClassVar[bool] = True  # it draws from the generator

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "linf"):
            raise InputError(f"AutoAttack bounds perturbations in l2 or linf (-c 2 or inf), not {self.norm}")
        if not 0 < self.eps <= LARGEST:
            raise InputError(f"AutoAttack needs a radius above 0, got -o/--eps {self.eps:g}")
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator | None = None,
        loss_scale: float = 1.0,
        progress: Callable[[str], None] = lambda text: None,
    ) -> Tensor:
        """Images for `model`, which is in evaluation mode meanwhile and left as it was.

        Args:
            model: images (N, C, H, W) in [0, 1] -> logits (N, classes), 4 classes or more.
            images, labels: (N, C, H, W) in [0, 1], and (N,) int64.
            generator: of starts and squares, on the images' device.
            loss_scale: multiplies losses during the backward pass, against underflow in fp16.
            progress: told, before each part, its name and how many images it attacks.

        Returns:
            (N, C, H, W), each image at most eps away: adversarial if one was found, as it was if it is classified
            wrong already, otherwise the iterate of APGD-CE with the highest cross-entropy.
        """
        worst = images.clone()
        with frozen(model), torch.no_grad():
            logits = at_least_float32(model(images))
            if (classes := logits.shape[1]) < 4:
                raise InputError(f"APGD-T compares with the 4 largest logits, got {classes} classes: use --attack pgd")
            ranked = logits.scatter(1, labels[:, None], -torch.inf).topk(min(self.targets, classes - 1), dim=1).indices
            right = logits.argmax(1) == labels
            for name, run in self._runs(model, ranked, generator, loss_scale):
                rows = right.nonzero().flatten()
                if not len(rows):
                    break
                progress(f"{name}, {len(rows)} images")
                found, fooled = run(images[rows], labels[rows], rows)
                changed = torch.ones_like(fooled) if name == "apgd-ce" else fooled
                worst[rows[changed]] = found[changed]
                right[rows[fooled]] = False
        return worst

    def _runs(
        self, model: nn.Module, ranked: Tensor, generator: torch.Generator | None, loss_scale: float
    ) -> Iterator[tuple[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]]:
        """Name and attack of every run: (images, labels, which of the batch they are) -> images, which are fooled."""
        ball = {"norm": self.norm, "eps": self.eps}
        descent = {"steps": self.steps, "loss_scale": loss_scale, **ball}
        for part in self.parts:
            if part == "apgd-ce":
                yield part, lambda x, y, rows: apgd(model, x, y, loss=cross_entropy, generator=generator, **descent)
            elif part == "square":
                yield part, lambda x, y, rows: square(model, x, y, queries=self.queries, generator=generator, **ball)
            else:
                for place in range(ranked.shape[1]):
                    name = f"{part} {place + 1}/{ranked.shape[1]}"
                    if part == "apgd-t":
                        dlr = {"loss": targeted_dlr, "generator": generator, **descent}
                        yield (
                            name,
                            lambda x, y, rows, to=ranked[:, place], dlr=dlr: apgd(model, x, y, targets=to[rows], **dlr),
                        )
                    else:
                        yield (
                            name,
                            lambda x, y, rows, to=ranked[:, place]: fab(model, x, y, targets=to[rows], **descent),
                        )
