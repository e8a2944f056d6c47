"""(Architecture, training set) -> classifier that normalises its own input: pixels in [0, 1] to logits."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from univ.attacks import frozen
from univ.data import find_dataset
from univ.errors import InputError
from univ.models.architectures import find_arch, find_head
from univ.models.entry import Arch


class InputNormalize(nn.Module):
    """Clamp images to [0, 1], subtract the channel mean, divide by the channel standard deviation.

    Being part of the model, it lets attacks and inversion work in pixel units. The clamp and the names of the two
    buffers, each (3, 1, 1), are those of the published checkpoints (robustness.tools.helpers.InputNormalize).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("new_mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("new_std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, 3, H, W)
        return (images.clamp(0, 1) - self.new_mean) / self.new_std


class Classifier(nn.Module):
    """Input normalisation followed by a network: images in [0, 1] to logits.

    Attributes:
        normalizer, model: the two parts, named as in the published checkpoints.
        spec: the architecture's entry, `spec.head` always filled in. `spec.node` and `spec.head` are names within
            `model`.
        arch, num_classes: what it was built as.
        train_set: what it was trained on; None where nobody says.
        image_size: side of the images it takes, pixels; None where nobody says.
    """

    def __init__(
        self, network: nn.Module, spec: Arch, arch: str, train_set: str | None, num_classes: int | None
    ) -> None:
        super().__init__()
        dataset = None if train_set is None else find_dataset(train_set)
        self.normalizer = InputNormalize(spec.mean or dataset.mean, spec.std or dataset.std)
        self.model = network
        self.image_size = spec.input_size or (dataset and dataset.image_size)
        if spec.head is None:
            spec = dataclasses.replace(spec, head=find_head(network, self.image_size))
        self.spec = spec
        self.arch = arch
        self.train_set = train_set
        self.num_classes = num_classes or len(self.head.weight)

    @property
    def head(self) -> nn.Linear | nn.Conv2d:
        """The layer that classifies; its input, pooled if it is a convolution, is what inversion optimises."""
        return self.model.get_submodule(self.spec.head)

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W) in [0, 1] -> (N, num_classes)
        logits = self.model(self.normalizer(images))
        # GoogLeNet and Inception add the logits of their auxiliary classifiers while training
        return logits if isinstance(logits, Tensor) else logits[0]


def require_size(model: Classifier, size: int) -> None:
    """See that a model takes images of a size that is not its own.

    Raises:
        InputError: it does not.
    """
    device = model.normalizer.new_mean.device
    try:
        with frozen(model), torch.no_grad():
            model(torch.zeros(1, 3, size, size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:  # timm asserts, torch finds shapes that do not fit
        reason = str(error).partition("\n")[0]
        raise InputError(f"{model.arch} takes no images of {size} pixels (--image-size): {reason}") from error


def build_model(arch: str, train_set: str, num_classes: int | None = None, *, seed: int | None = None) -> Classifier:
    """A new model with random weights, in training mode, on the CPU.

    Args:
        arch: name in archs_of(train_set), or `timm:NAME`, `module:FILE.py:FUNCTION` and so on.
        train_set: name of a data set, see `find_dataset`.
        num_classes: None takes the training set's.
        seed: draws the weights from a generator of their own; None draws them from PyTorch's global one.

    Raises:
        InputError: unknown architecture or training set, or a network without one layer that classifies.
    """
    return assemble(find_arch(arch, train_set), arch, train_set, num_classes, seed=seed)


def assemble(
    spec: Arch, arch: str, train_set: str | None, num_classes: int | None = None, *, seed: int | None = None
) -> Classifier:
    """`build_model` of an entry; without a training set the entry says what is needed, or the network has it."""
    classes = num_classes or (spec.num_classes if train_set is None else find_dataset(train_set).num_classes)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = Classifier(spec.build(classes), spec, arch, train_set, classes)
    if classes is not None and (found := len(model.head.weight)) != classes:
        whose = f"the {classes} of {train_set}" if train_set else str(classes)
        raise InputError(f"{arch} has {found} classes, expected {whose}")
    return model
