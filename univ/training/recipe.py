"""What decides a training: its recipe, its images, where and when it saves; and whether a checkpoint was made alike."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from univ.attacks import Attack
from univ.data import Images
from univ.results import made

WARM_UP = 0.2  # share of the steps in which "onecycle" raises the learning rate


@dataclass(frozen=True)
class Recipe:
    """What decides the weights that come out, besides data and architecture."""

    epochs: int = 90
    batch_size: int = 256  # images per step, over all processes
    lr: float = 0.1  # of SGD; with "onecycle" the highest one
    weight_decay: float = 1e-4
    momentum: float = 0.9
    # "step" divides the learning rate by 10 every `step_epochs` epochs; "onecycle" raises it linearly over the first
    # fifth of the steps and lowers it to 0 along a cosine
    schedule: Literal["step", "onecycle"] = "step"
    step_epochs: int = 30
    attack: Attack | None = None  # train on the images it makes; None: on the clean ones
    seed: int = 0  # of order, augmentation, dropout and random starts
    precision: str = "fp32"  # one of `models.precision.PRECISIONS`
    sync_bn: bool = False  # batch norm over the images of all processes instead of each one's own (CUDA only)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate of step `step`, counted from 0 over the whole training."""
        if self.schedule == "step":
            return self.lr * 0.1 ** (step // steps_per_epoch // self.step_epochs)
        total = self.epochs * steps_per_epoch
        warm = max(1, round(WARM_UP * total))
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@dataclass(frozen=True)
class Data:
    """The images a training works on."""

    train: Images  # with its augmentation, from `univ.data.open_training`
    val: Images  # what the best epoch is chosen on
    workers: int = 0  # processes that decode images, where that is needed
    identity: Mapping[str, str] = field(default_factory=dict)  # tells these images from others; kept in checkpoints


@dataclass(frozen=True)
class Saving:
    """Where checkpoints go and when."""

    folder: Path  # holds checkpoint.pt.latest, checkpoint.pt.best, <epoch>_checkpoint.pt, log.jsonl, tensorboard
    checkpoint_every: int = 5  # epochs between <epoch>_checkpoint.pt; 0: never
    validate_every: int = 5  # epochs between measurements of the accuracies; also at those checkpoints and at the end
    minutes: float = 30.0  # longest time without checkpoint.pt.latest, which is written after every epoch in any case
    tensorboard: bool = True  # whether to write curves

    def keeps(self, epoch: int) -> bool:
        """Whether <epoch>_checkpoint.pt is written; epochs count from 1."""
        return self.checkpoint_every > 0 and epoch % self.checkpoint_every == 0

    def validates(self, epoch: int, last: int) -> bool:
        """Whether the accuracies are measured after `epoch`."""
        return epoch == last or epoch % self.validate_every == 0 or self.keeps(epoch)


def differences(checkpoint: Mapping[str, Any], recipe: Recipe, data: Mapping[str, str] | None = None) -> list[str]:
    """What differs between how a checkpoint of ours was made and `recipe`, in words; empty if nothing.

    The images are compared where both sides say which they are (`Data.identity`). With the "step" schedule the number
    of epochs may differ: it changes nothing of the epochs that are done.
    """
    if (resume := checkpoint.get("resume")) is None:
        return []
    before, now = dict(resume["recipe"]), dataclasses.asdict(recipe)
    if recipe.schedule == "step":
        before["epochs"] = now["epochs"]
    if data and resume.get("data"):
        before, now = before | resume["data"], now | data
    return made.differences(before, now)
