"""Images in, representations and logits out: one forward pass gives both, hooks are gone when it is over."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn
from tqdm import tqdm

from univ.data import Images
from univ.data.loaders import Batches
from univ.errors import InputError
from univ.models.precision import arithmetic
from univ.reps.nodes import Reader

_LOGITS = ""  # no node's name


@dataclass(frozen=True)
class Extraction:
    """What one model says about n images.

    Attributes:
        reps: (N, D) float32 on the CPU; (N, C, H, W) if it was extracted with `pool="none"`.
        logits: (N, classes) float32 on the CPU.
    """

    reps: Tensor
    logits: Tensor

    @property
    def preds(self) -> Tensor:
        """(N,) int64, the class of the largest logit."""
        return self.logits.argmax(dim=1)


@dataclass(frozen=True)
class Readings:
    """What one model says about n images, at several nodes: `reps` as of `Extraction`, by node."""

    reps: dict[str, Tensor]
    logits: Tensor

    def at(self, node: str) -> Extraction:
        return Extraction(self.reps[node], self.logits)


def extract(
    model: nn.Module, images: Images, chosen: Tensor, *, node: str | None = None, **settings: Any
) -> Extraction:
    """Representations at one node and logits of images, in one pass; see `extract_nodes`."""
    readings = extract_nodes(model, images, chosen, nodes=node, **settings)
    return readings.at(*readings.reps)


@torch.no_grad()
def extract_nodes(
    model: nn.Module,
    images: Images,
    chosen: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    precision: str = "fp32",
    nodes: str | Sequence[str] | None = None,
    pool: str | None = None,
    name: str = "",
    quiet: bool = False,
) -> Readings:
    """Representations at several nodes and logits of images, in one pass.

    Args:
        model: in evaluation mode, on `device`.
        chosen: (n,) int64, which images, in the order the rows shall have.
        workers: processes that decode.
        precision: one of models.precision's.
        nodes, pool: see `nodes.Reader`.
        name: of the progress bar.

    Raises:
        ValueError: the model is in training mode.
        InputError: a representation holds NaN or infinity.
    """
    arch = getattr(model, "arch", type(model).__name__)
    if model.training:
        raise ValueError(f"{arch} is in training mode: representations are read in evaluation mode")
    started, n, done = time.perf_counter(), len(chosen), 0
    with (
        arithmetic(precision, device),
        Reader(model, nodes, pool) as reader,
        tqdm(total=n, desc=name or arch, unit="img", disable=quiet, leave=False) as bar,
    ):
        for pixels, _ in Batches(images, batch_size, device=device, workers=workers, indices=chosen):
            read = {**reader(pixels), _LOGITS: reader.output}
            if not done:
                made = {key: torch.empty((n, *values.shape[1:]), dtype=torch.float32) for key, values in read.items()}
            rows = slice(done, done := done + len(pixels))
            for key, values in read.items():
                made[key][rows] = values  # copies to the CPU and to float32
            bar.update(len(pixels))
    for values in made.values():
        if not torch.isfinite(values).all():
            raise InputError(
                f"{arch}: representations hold NaN or infinity (a broken checkpoint, or --precision too low)"
            )
    logits, seconds = made.pop(_LOGITS), time.perf_counter() - started
    said, shapes = "{}: {:,} images at node {} -> rep {} in {:.1f} s", [tuple(reps.shape) for reps in made.values()]
    where = next(iter(made)) if len(made) == 1 else f"{next(iter(made))} and {len(made) - 1} others"
    logger.info(said, name or arch, n, where, ", ".join(map(str, dict.fromkeys(shapes))), seconds)
    return Readings(made, logits)
