"""Images in, representations and logits out: one forward pass gives both, hooks are gone when it is over."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from loguru import logger
from torch import Tensor, nn
from tqdm import tqdm

from univ.errors import InputError
from univ.models import HEAD_INPUT, Classifier


class Tap:
    """Read the output of a node while the model runs.

    with Tap(model) as tap:
        logits = model(images)
        rep = tap.rep                  # (N, D), row i from image i

    The value is taken in the hook itself: DenseNet applies an in-place ReLU to the very tensor a hook sees, so a
    reference kept until later would hold other numbers on some devices. Gradients flow through `rep`.

    Args:
        model: a `Classifier`, or any network; names are those within `Classifier.model`, or within the network.
        node: dotted module name; of a `Classifier` also "head", for the input of the layer that classifies (pooled, if
            that is a convolution), and by default the node at which the study compares this architecture.
        pool: average a (N, C, H, W) activation over space; default: as the architecture's entry says.
        flatten: give (N, D); False keeps the activation's shape (the shape metric wants (N, C, H, W)).

    Raises:
        InputError: the network has no module of that name (the message lists the nearest ones), or none is named.
    """

    def __init__(
        self, model: nn.Module, *, node: str | None = None, pool: bool | None = None, flatten: bool = True
    ) -> None:
        default_pool = False
        if node is None:
            if not isinstance(model, Classifier):
                raise InputError(f"{type(model).__name__} names no node of its own: say which module with node=")
            node, default_pool = model.spec.node, model.spec.pool
        self.node = node
        self.pool = default_pool if pool is None else pool
        self.flatten = flatten
        self._model = model
        self._rep: Tensor | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    @property
    def rep(self) -> Tensor:
        """The representation of the last forward pass."""
        if self._rep is None:
            raise RuntimeError(f"node {self.node!r} was not reached: run the model inside the block first")
        return self._rep

    def _keep(self, activation: Tensor) -> None:
        if self.pool and activation.dim() > 2:
            self._rep = activation.flatten(2).mean(dim=2)  # a new tensor already
        else:
            self._rep = (activation.flatten(1) if self.flatten else activation).clone()

    def __enter__(self) -> Self:
        classifier = self._model if isinstance(self._model, Classifier) else None
        if self.node == HEAD_INPUT and classifier is not None:
            # The head writes nothing into its input, so it is kept as it is.
            def before(head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                self._rep = inputs[0].flatten(2).mean(dim=2) if isinstance(head, nn.Conv2d) else inputs[0]

            self._handle = classifier.head.register_forward_pre_hook(before)
            return self
        network = self._model if classifier is None else classifier.model
        modules = dict(network.named_modules())
        if self.node not in modules:
            top = ", ".join(name for name, _ in network.named_children())
            raise InputError(f"{type(network).__name__} has no module {self.node!r}; it holds {top} and their parts")
        self._handle = modules[self.node].register_forward_hook(lambda module, inputs, output: self._keep(output))
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._rep = None


@contextlib.contextmanager
def head_input(model: Classifier) -> Iterator[Tap]:
    """Tap the input of the layer that classifies, post-ReLU and pooled: what inversion optimises everywhere."""
    with Tap(model, node=HEAD_INPUT) as tap:
        yield tap


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
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_images: int,
    *,
    flatten: bool = True,
    name: str = "",
    quiet: bool = False,
) -> Extraction:
    """Representations and logits of every image, in one pass.

    Args:
        model: in evaluation mode, on the device the batches are on.
        batches: (images, labels), images float32 (N, 3, H, W) in [0, 1], in the order the rows shall have.
        num_images: how many images the batches hold together.
        flatten: False keeps the node's (N, C, H, W).
        name: what the progress bar says.

    Raises:
        ValueError: the batches hold more or fewer images, or the model is in training mode.
        InputError: a representation holds NaN or infinity.
    """
    if model.training:
        raise ValueError(f"{model.arch} is in training mode: representations are read in evaluation mode")
    started, reps, logits, done = time.perf_counter(), None, None, 0
    with (
        Tap(model, flatten=flatten) as tap,
        tqdm(total=num_images, desc=name or model.arch, unit="img", disable=quiet, leave=False) as bar,
    ):
        for images, _ in batches:
            out = model(images)
            rep = tap.rep
            if reps is None or logits is None:
                reps = torch.empty((num_images, *rep.shape[1:]), dtype=torch.float32)
                logits = torch.empty((num_images, *out.shape[1:]), dtype=torch.float32)
            end = done + len(rep)
            if end > num_images:
                raise ValueError(f"expected {num_images} images, the batches hold more")
            reps[done:end], logits[done:end] = rep, out  # copies to the CPU and to float32
            done = end
            bar.update(len(rep))
    if reps is None or logits is None or done != num_images:
        raise ValueError(f"expected {num_images} images, the batches hold {done}")
    if not (torch.isfinite(reps).all() and torch.isfinite(logits).all()):
        raise InputError(
            f"{model.arch}: representations hold NaN or infinity (a broken checkpoint, or --precision too low)"
        )
    seconds = time.perf_counter() - started
    logger.info(
        "{}: {:,} images at node {} -> rep {} in {:.1f} s",
        name or model.arch,
        done,
        tap.node,
        tuple(reps.shape),
        seconds,
    )
    return Extraction(reps, logits)
