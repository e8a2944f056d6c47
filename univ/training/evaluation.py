"""Clean and robust accuracy of a classifier on images, in one process or shared by several."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from univ.attacks import Attack, AutoAttack, at_least_float32
from univ.data import Images
from univ.data.loaders import Batches, stream
from univ.errors import InputError
from univ.models import Classifier
from univ.models.folding import fold_batchnorm
from univ.models.precision import arithmetic
from univ.runs import Distributed

LOSS_SCALE = {"fp16": 1024.0}  # keeps the pixel gradients of an attack in fp16's range; 1 in other precisions


@dataclass(frozen=True)
class Score:
    """What a model reaches on a set of images: accuracy in percent, mean cross-entropy, number of images."""

    accuracy: float
    loss: float
    images: int

    @classmethod
    def of(cls, totals: Tensor) -> "Score":
        """From (3,) sums of losses, of correct predictions and of images."""
        loss, correct, count = totals.tolist()
        return cls(100 * correct / max(count, 1), loss / max(count, 1), round(count))


class Totals:
    """Sums of losses and correct predictions, kept on the device so that counting does not wait for it."""

    def __init__(self, device: torch.device, start: Tensor | None = None) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device) if start is None else start.to(device)

    def add(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Count a batch; returns the sum of its losses, which a backward pass can begin at."""
        loss_sum = functional.cross_entropy(at_least_float32(logits), labels, reduction="sum")
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == labels).sum()
            self.sums += torch.stack([loss_sum, correct, torch.full_like(loss_sum, len(labels))]).double()
        return loss_sum

    def over(self, process: Distributed) -> Tensor:
        """The sums over all processes, (3,) on the CPU; those of this process stay as they are."""
        return process.all_reduce_sum(self.sums.clone()).cpu()


class AttackTarget:
    """The network as an attack sees it: fixed, in evaluation mode, its batch norms folded into the convolutions.

    `of_now` repeats the folding with what the weights have become, which costs little against what the attack saves.
    """

    def __init__(self, classifier: Classifier, *, compile: bool = False) -> None:
        self._classifier = classifier
        self._folded = fold_batchnorm(classifier).to(memory_format=torch.channels_last)
        self._network = torch.compile(self._folded) if compile else self._folded

    def of_now(self) -> nn.Module:
        """The network to attack, with the classifier's weights of this moment."""
        self._folded.update(self._classifier)
        return self._network


def random_starts(attack: Attack | AutoAttack, device: torch.device, *keys: int | str) -> torch.Generator | None:
    """The generator of an attack's random starts, which depends on the keys alone; None where it has none."""
    return torch.Generator(device).manual_seed(stream(*keys).initial_seed()) if attack.random_start else None


def evaluate(
    model: Classifier,
    images: Images,
    *,
    attack: Attack | AutoAttack | None = None,
    batch_size: int = 256,
    process: Distributed,
    workers: int = 0,
    precision: str = "fp32",
    seed: int = 0,
    target: AttackTarget | None = None,
    quiet: bool = False,
) -> tuple[Score, Score | None]:
    """Clean and robust accuracy, in one pass over the images, each counted once however many processes share them.

    Args:
        model: on `process.device`; in evaluation mode meanwhile.
        images: read without augmentation.
        attack: threat model of the robust accuracy; None leaves it out.
        seed: of what the attack draws.
        target: what to attack, where the caller has it already.

    Returns:
        Score on the clean images, and on the attacked ones (None without an attack).

    Raises:
        InputError: a loss is NaN or infinite.
    """
    device = process.device
    mine = torch.arange(process.rank, len(images), process.world_size)
    share = max(1, batch_size // process.world_size)
    loader = Batches(images, share, device=device, workers=workers, indices=mine)
    clean, robust = Totals(device), Totals(device)
    if attack is not None:
        network = (target or AttackTarget(model)).of_now()
        generator = random_starts(attack, device, "evaluation", seed, process.rank)
        scale = LOSS_SCALE.get(precision, 1.0)
    training = model.training
    model.eval()
    try:
        bar = tqdm(loader, desc="evaluation", unit="batch", leave=False, disable=quiet)
        told = {"progress": bar.set_postfix_str} if isinstance(attack, AutoAttack) else {}  # a batch can take an hour
        for pixels, labels in bar:
            with arithmetic(precision, device), torch.no_grad():
                clean.add(model(pixels), labels)
                if attack is not None:
                    attacked = attack(network, pixels, labels, generator=generator, loss_scale=scale, **told)
                    robust.add(model(attacked), labels)
    finally:
        model.train(training)
    scores = [Score.of(totals.over(process)) for totals in ((clean,) if attack is None else (clean, robust))]
    if not all(math.isfinite(score.loss) for score in scores):
        raise InputError(
            f"{model.arch}: the logits of the evaluation are NaN or infinite (a broken checkpoint, or --precision too "
            f"low, now {precision})"
        )
    return scores[0], scores[1] if attack is not None else None
