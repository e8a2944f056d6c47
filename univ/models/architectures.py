"""Every architecture: how to build it, where its representation is read, which layer classifies.

Reading the tables costs nothing: torchvision, timm and robustness are imported when a network is built.
A new architecture of our own is one entry; those of libraries and the user's own files need none, see libraries.py.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from univ.attacks import frozen
from univ.data import IMAGENET_MEAN, IMAGENET_STD, find_dataset, is_folder, trainable, untrained
from univ.errors import InputError
from univ.models.entry import Arch, split_seed
from univ.models.libraries import library_arch

# --- builders -------------------------------------------------------------------------------------------------------


def _library(module: str, function: str, *args: str, **settings: Any) -> Callable[[int], nn.Module]:
    """A builder that calls `module.function(*args, num_classes=..., **settings)`."""

    def build(num_classes: int) -> nn.Module:
        return getattr(importlib.import_module(module), function)(*args, num_classes=num_classes, **settings)

    return build


def _torchvision(name: str, **settings: int) -> Callable[[int], nn.Module]:
    return _library("torchvision.models", name, weights=None, **settings)


def _timm(name: str) -> Callable[[int], nn.Module]:
    return _library("timm", "create_model", name, pretrained=False)


def _cifar(name: str) -> Callable[[int], nn.Module]:
    return _library("robustness.cifar_models", name)


def _narrow_vgg11(num_classes: int) -> nn.Module:
    """VGG-11 with batch norm for 32x32 images, an eighth of the usual widths: 64-dimensional representation."""
    vgg = importlib.import_module("robustness.cifar_models.vgg")
    network = vgg.VGG("VGG11", num_classes=num_classes)
    widths = [layer if layer == "M" else layer // 8 for layer in vgg.cfg["VGG11"]]
    network.features = network._make_layers(widths)  # the class takes no widths of its own
    network.classifier = nn.Linear(64, num_classes)
    return network


def _narrow_resnet10(num_classes: int) -> nn.Module:
    """CIFAR ResNet with one basic block per stage, an eighth of the usual widths: 64-dimensional representation."""
    resnet = importlib.import_module("robustness.cifar_models.resnet")
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=num_classes, wm=1 / 8)


def _narrow_densenet17(num_classes: int) -> nn.Module:
    """CIFAR DenseNet with blocks of 1, 1, 2, 2 layers, growth 8, no compression: 64-dimensional representation."""
    densenet = importlib.import_module("robustness.cifar_models.densenet")
    return densenet.DenseNet(densenet.Bottleneck, [1, 1, 2, 2], growth_rate=8, reduction=1.0, num_classes=num_classes)


def _narrow_resnext14(num_classes: int) -> nn.Module:
    """ResNeXt with one bottleneck per stage, planes 8 to 64 in 4 groups: 256-dimensional representation.

    The stem is a 3x3 convolution of stride 2 without max pooling, so that a 32x32 image reaches the last stage as 2x2.
    """
    resnet = importlib.import_module("torchvision.models.resnet")
    network = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=num_classes, groups=4, width_per_group=32)
    network.inplanes = 8
    network.conv1 = nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(8)
    network.maxpool = nn.Identity()
    for stage, planes in enumerate((8, 16, 32, 64), start=1):
        layer = network._make_layer(resnet.Bottleneck, planes, blocks=1, stride=1 if stage == 1 else 2)
        setattr(network, f"layer{stage}", layer)
    network.fc = nn.Linear(64 * resnet.Bottleneck.expansion, num_classes)
    for module in network.modules():  # the layers made here get the initial weights the class gives its own
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


# --- tables ---------------------------------------------------------------------------------------------------------

IMAGENET_ARCHS = {
    "resnet18": Arch(_torchvision("resnet18"), head="fc", node="avgpool"),
    "resnet50": Arch(_torchvision("resnet50"), head="fc", node="avgpool"),
    "wide_resnet50_2": Arch(_torchvision("wide_resnet50_2"), head="fc", node="avgpool"),
    # the ResNet-50 blocks with four times the width, as in the published checkpoints
    "wide_resnet50_4": Arch(_torchvision("resnet50", width_per_group=256), head="fc", node="avgpool"),
    # pre-ReLU: the network's ReLU works in place on this very tensor, so whoever hooks the node must copy at once
    "densenet161": Arch(_torchvision("densenet161"), head="classifier", node="features.norm5", pool=True),
    "resnext50_32x4d": Arch(_torchvision("resnext50_32x4d"), head="fc", node="avgpool"),
    "vgg16_bn": Arch(_torchvision("vgg16_bn"), head="classifier.6"),
    "tiny_vit_5m": Arch(_timm("tiny_vit_5m_224"), head="head.fc"),
}

# The CIFAR-10 models of these three were trained with the ImageNet statistics.
_IMAGENET_ON_CIFAR = {
    name: dataclasses.replace(IMAGENET_ARCHS[name], mean=IMAGENET_MEAN, std=IMAGENET_STD)
    for name in ("wide_resnet50_2", "wide_resnet50_4", "resnext50_32x4d")
}

CIFAR10_ARCHS = {
    "resnet18": Arch(_cifar("resnet18"), head="linear", node="layer4"),  # not pooled: 512 * 4 * 4
    "resnet50": Arch(_cifar("resnet50"), head="linear", node="layer4"),  # not pooled: 2048 * 4 * 4
    "densenet161": Arch(_cifar("densenet161"), head="linear", node="bn", pool=True),  # pre-ReLU
    "vgg16": Arch(_cifar("vgg16"), head="classifier", node="features.44"),
    **_IMAGENET_ON_CIFAR,
}

# Settings that reach 95 % on the digits in 6 epochs; all representations are pooled vectors.
DIGITS_ARCHS = {
    "vgg11": Arch(_narrow_vgg11, head="classifier"),
    "resnet10": Arch(_narrow_resnet10, head="linear"),
    "densenet17": Arch(_narrow_densenet17, head="linear", node="bn", pool=True),  # pre-ReLU
    "resnext14_4x32d": Arch(_narrow_resnext14, head="fc", node="avgpool"),
}

ARCHS: dict[str, dict[str, Arch]] = {
    "imagenet": IMAGENET_ARCHS,
    "cifar10": CIFAR10_ARCHS,
    "digits": DIGITS_ARCHS,
    "small": CIFAR10_ARCHS | DIGITS_ARCHS,
}
"""By what `Dataset.architectures` names."""

_IMAGENET_SMALL_EPS = ["resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4", "tiny_vit_5m", "vgg16_bn"]


def default_models(train_set: str, eps: str) -> list[str]:
    """Names of the models that the study compares for a training set and a radius such as `eps025`.

    Raises:
        InputError: no models are trained on `train_set`.
    """
    if train_set == "imagenet" and eps not in ("eps0", "eps3"):
        return list(_IMAGENET_SMALL_EPS)  # densenet161 and resnext50_32x4d are published for eps 0 and 3 only
    archs, compared = archs_of(train_set), find_dataset(train_set).compared_models
    if compared == ():
        raise InputError(f"which models of {train_set}? Name them (--model-names; in a study file: models)")
    return list(compared or archs)


def find_arch(arch: str, train_set: str | None) -> Arch:
    """The entry of an architecture, whatever its seed; those of `timm:NAME`, `module:FILE.py:FUNCTION`, ... are made.

    Args:
        train_set: whose table is meant; only those of libraries and files need none.

    Raises:
        InputError: no such architecture; names the ones there are, or the closest.
        FileNotFoundError: the file of a `module:`, or the description of a `hub:`, is not there.
    """
    name, _ = split_seed(arch)
    archs = {} if train_set is None else archs_of(train_set)
    entry = archs.get(name) or library_arch(name)
    if entry is None:
        known = f" for models of {train_set}: choose from {', '.join(archs)}" if archs else ": say which data set's"
        raise InputError(
            f"unknown architecture {arch!r}{known}, or any classifier of a library as timm:NAME, torchvision:NAME, "
            "hub:USER/REPO, robustbench:NAME, or your own as module:FILE.py:FUNCTION"
        )
    if (
        is_folder(train_set) and not entry.brings_weights
    ):  # what was measured on the pictures, not what others trained the architecture with
        entry = dataclasses.replace(entry, mean=None, std=None, input_size=None)
    return entry


def archs_of(train_set: str) -> dict[str, Arch]:
    """The architectures that are trained on a data set, by name.

    Raises:
        InputError: no models are trained on it.
    """
    known = is_folder(train_set) or train_set in trainable()
    if not known or (key := find_dataset(train_set).architectures) is None:
        raise untrained(train_set)
    return ARCHS[key]


def find_head(network: nn.Module, image_size: int | None) -> str:
    """Dotted name of the layer that classifies, found by running one image through the network.

    It is the linear layer whose output is the network's, or the convolution whose output, averaged over space, with
    or without a ReLU before, is (SqueezeNet), or the only linear layer whose output has the shape of the network's.

    Raises:
        InputError: the output does not come from one such layer (two heads are averaged), or the network fails.
    """
    outputs: dict[str, Tensor] = {}
    logits = _run_once(network, (image_size,) if image_size else (224, 32), outputs)
    if isinstance(logits, Tensor):
        for name, output in outputs.items():
            # the same memory: what follows the layer, if anything, only reshapes
            if output.data_ptr() == logits.data_ptr() and output.numel() == logits.numel():
                return name
        for name, output in reversed(outputs.items()):
            averaged = (output, output.relu()) if output.ndim == 4 and output.shape[:2] == logits.shape else ()
            if any(torch.allclose(values.mean(dim=(2, 3)), logits) for values in averaged):
                return name
        alike = [name for name, output in outputs.items() if output.shape == logits.shape]
        if len(alike) == 1:
            return alike[0]
    raise InputError(
        f"{type(network).__name__} has no last layer whose output is the logits, so there is no representation "
        "to read: give it an entry in univ/models/architectures.py that names a node and a head"
    )


def _run_once(network: nn.Module, sizes: tuple[int, ...], outputs: dict[str, Tensor]) -> object:
    """What the network makes of an image of the first size that it takes; fills in the outputs of its layers."""
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    weight = next(network.parameters(), torch.empty(0))
    try:
        with frozen(network), torch.no_grad():
            for size in sizes:
                outputs.clear()
                try:
                    return network(torch.ones(1, 3, size, size).to(weight))
                except Exception as error:  # the network may be anybody's
                    reason = f"{type(error).__name__}: {error}"
    finally:
        for hook in hooks:
            hook.remove()
    tried = " nor ".join(f"{size} x {size}" for size in sizes)
    raise InputError(f"{type(network).__name__} takes no image of {tried} pixels: {reason}")
