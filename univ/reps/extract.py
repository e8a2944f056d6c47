"""Images in, representations and logits out: one forward pass gives both, hooks are gone when it is over."""

import time
from dataclasses import dataclass
from typing import Self

import torch
from loguru import logger
from torch import Tensor, nn
from tqdm import tqdm

from univ.data import Images
from univ.data.loaders import Batches
from univ.errors import InputError
from univ.models import HEAD_INPUT, Classifier
from univ.models.precision import arithmetic


class Tap:
    """Read the output of a node while the model runs.

    with Tap(model) as tap:
        logits = model(images)
        rep = tap.rep                  # (N, D), row i from image i

    The value is taken in the hook itself: DenseNet applies an in-place ReLU to the very tensor a hook sees, so a
    reference kept until later would hold other numbers on some devices. Gradients flow through `rep`.

    Args:
        model: a `Classifier`, or any network; names are those within `Classifier.model`, or within the network.
        node: dotted module name; of a `Classifier` also "head", for the input of the layer that classifies, which is
            what inversion optimises (post-ReLU; pooled, if that layer is a convolution), and by default the node at
            which the study compares this architecture.
        pool: average a (N, C, H, W) activation over space; default: as the architecture's entry says.
        flatten: give (N, D); False keeps the activation's shape (the shape metric wants (N, C, H, W)).

    Raises:
        InputError: the network has no module of that name (the message lists the nearest ones), or none is named.
    """

    def __init__(
        self, model: nn.Module, *, node: str | None = None, pool: bool | None = None, flatten: bool = True
    ) -> None:
        self._classifier = model if isinstance(model, Classifier) else None
        self._network = model if self._classifier is None else self._classifier.model
        if node is None:
            if self._classifier is None:
                raise InputError(f"{type(model).__name__} names no node of its own: say which module with node=")
            node, pool = self._classifier.spec.node, self._classifier.spec.pool if pool is None else pool
        self.node, self.pool, self.flatten = node, bool(pool), flatten
        self._rep: Tensor | None = None

    @property
    def rep(self) -> Tensor:
        """The representation of the last forward pass."""
        if self._rep is None:
            raise RuntimeError(f"node {self.node!r} was not reached: run the model inside the block first")
        return self._rep

    def _keep_output(self, module: nn.Module, inputs: object, activation: Tensor) -> None:
        if self.pool and activation.dim() > 2:
            self._rep = activation.flatten(2).mean(dim=2)  # a new tensor already
        else:
            self._rep = (activation.flatten(1) if self.flatten else activation).clone()

    def _keep_input(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # the head writes nothing into its input, so it is kept as it is
        self._rep = inputs[0].flatten(2).mean(dim=2) if isinstance(head, nn.Conv2d) else inputs[0]

    def __enter__(self) -> Self:
        if self.node == HEAD_INPUT and self._classifier is not None:
            self._handle = self._classifier.head.register_forward_pre_hook(self._keep_input)
            return self
        modules = dict(self._network.named_modules())
        if self.node not in modules:
            top = ", ".join(name for name, _ in self._network.named_children())
            name = type(self._network).__name__
            raise InputError(f"{name} has no module {self.node!r}; it holds {top} and their parts")
        self._handle = modules[self.node].register_forward_hook(self._keep_output)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()
        self._rep = None


@dataclass(frozen=True)
class Extraction:
    """What one model says about n images.

    Attributes:
        reps: (N, D) float32 on the CPU; (N, C, H, W) if it was extracted with `flatten=False`.
        logits: (N, classes) float32 on the CPU.
    """

    reps: Tensor
    logits: Tensor

    @property
    def preds(self) -> Tensor:
        """(N,) int64, the class of the largest logit."""
        return self.logits.argmax(dim=1)


@torch.no_grad()
def extract(
    model: nn.Module,
    images: Images,
    chosen: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    precision: str = "fp32",
    node: str | None = None,
    flatten: bool = True,
    name: str = "",
    quiet: bool = False,
) -> Extraction:
    """Representations and logits of images, in one pass.

    Args:
        model: in evaluation mode, on `device`.
        chosen: (n,) int64, which images, in the order the rows shall have.
        workers: processes that decode.
        precision: one of models.precision's.
        node, flatten: see `Tap`.
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
        Tap(model, node=node, flatten=flatten) as tap,
        tqdm(total=n, desc=name or arch, unit="img", disable=quiet, leave=False) as bar,
    ):
        for pixels, _ in Batches(images, batch_size, device=device, workers=workers, indices=chosen):
            out, rep = model(pixels), tap.rep
            if not done:
                reps, logits = (torch.empty((n, *values.shape[1:]), dtype=torch.float32) for values in (rep, out))
            rows = slice(done, done := done + len(rep))
            reps[rows], logits[rows] = rep, out  # copies to the CPU and to float32
            bar.update(len(rep))
    if not (torch.isfinite(reps).all() and torch.isfinite(logits).all()):
        raise InputError(f"{arch}: representations hold NaN or infinity (a broken checkpoint, or --precision too low)")
    said, seconds = "{}: {:,} images at node {} -> rep {} in {:.1f} s", time.perf_counter() - started
    logger.info(said, name or arch, n, tap.node, tuple(reps.shape), seconds)
    return Extraction(reps, logits)
