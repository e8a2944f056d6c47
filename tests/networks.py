"""Networks that several tests train, attack or load, and when two have the same weights."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from univ.models import ARCHS, Arch, Classifier, build_model


class Tiny(nn.Module):
    """Two convolutions with batch norm, dropout, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu().mean((2, 3))
        return self.head(self.dropout(x))


class CachesInEvaluation(Tiny):
    """Keeps the scale of its pixels from the first forward in evaluation mode, as tiny_vit its attention biases."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(()))
        self.cached = None

    def train(self, mode: bool = True) -> nn.Module:
        self.cached = None if mode else self.cached
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and self.cached is None:
            self.cached = 1 * self.scale
        return super().forward(x * (self.scale if self.training else self.cached))


def tiny(seed: int = 0, network: type[nn.Module] = Tiny) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(network(10), Arch(network, head="head"), "tiny", "digits", 10)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def every_model(quick):
    return [
        pytest.param(
            train_set, arch, id=f"{train_set}-{arch}", marks=() if (train_set, arch) in quick else pytest.mark.slow
        )
        for train_set in ("imagenet", "cifar10", "digits")
        for arch in ARCHS[train_set]
    ]


def shake(model: nn.Module, seed: int = 0) -> None:
    """Batch statistics and affine parameters as after training: at their initial values they hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)


def save_digits(folder: Path, archs: Sequence[str]) -> Path:
    """Networks of the digits with shaken random weights, `<folder>/<arch>.pt`; the folder."""
    for seed, arch in enumerate(archs):
        model = build_model(arch, "digits", seed=seed)
        shake(model)
        torch.save({"model": model.state_dict()}, folder / f"{arch}.pt")
    return folder
