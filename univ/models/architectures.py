"""Every architecture: how to build it, where its representation is read, which layer classifies.

Reading the tables costs nothing: torchvision, timm and robustness are imported when a network is built.
A new architecture of our own is one entry; any torchvision or timm classifier needs none (`torchvision:<name>`,
`timm:<name>`).
"""

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from univ.attacks import frozen
from univ.data import DATASETS, IMAGENET_MEAN, IMAGENET_STD, trainable
from univ.errors import InputError

HEAD_INPUT = "head"
"""The `Arch.node` of a network whose representation is the input of its head, pooled if that is a convolution."""

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Arch:
    """How to build a network and where its representation is read. Module names are those within the network."""

    build: Callable[[int], nn.Module]  # number of classes -> network with random weights
    head: str | None  # dotted name of the layer that classifies; None: found by running the network once
    node: str = HEAD_INPUT  # dotted name of the module whose output is the representation, or HEAD_INPUT
    pool: bool = False  # average the node's output over space; otherwise it is flattened
    mean: Channels | None = None  # pixel statistics a new model normalises with; None: those of its training set
    std: Channels | None = None
    input_size: int | None = None  # side of the images, pixels; None: that of the training set


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
    archs = archs_of(train_set)
    return list(DATASETS[train_set].compared_models or archs)


def find_arch(arch: str, train_set: str) -> Arch:
    """The entry of an architecture; `timm:<name>` and `torchvision:<name>` get one made for them.

    Raises:
        InputError: no such architecture; names the ones there are, or the closest.
    """
    archs = archs_of(train_set)
    if arch in archs:
        return archs[arch]
    library, _, name = arch.partition(":")
    if library == "timm" and name:
        return _timm_arch(name)
    if library == "torchvision" and name:
        return _torchvision_arch(name)
    raise InputError(
        f"unknown architecture {arch!r} for models of {train_set}: choose from {', '.join(archs)}, "
        "or any classifier of a library as timm:<name> or torchvision:<name>"
    )


def archs_of(train_set: str) -> dict[str, Arch]:
    """The architectures that are trained on a data set, by name.

    Raises:
        InputError: no models are trained on it.
    """
    if train_set not in trainable():
        raise InputError(f"no models are trained on {train_set!r}: choose from {', '.join(trainable())}")
    return ARCHS[DATASETS[train_set].architectures]


# --- any classifier of a library ------------------------------------------------------------------------------------


@functools.cache
def _timm_arch(name: str) -> Arch:
    timm = importlib.import_module("timm")
    base = name.partition(".")[0]  # "convnext_tiny.fb_in1k": architecture and the weights whose statistics are meant
    if not timm.is_model(base):  # also keeps out "hf-hub:…" names, which would be fetched
        raise _unknown("timm", name, timm.list_models())
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # the architecture is there, such weights are not
        raise _unknown("timm", name, [base, *timm.list_models(f"{base}*", pretrained=True)]) from error
    channels, height, width = config.input_size
    if channels != 3 or height != width:
        raise InputError(f"timm:{name} takes {channels} x {height} x {width} inputs: expected square RGB images")
    return Arch(_timm(name), head=None, mean=tuple(config.mean), std=tuple(config.std), input_size=height)


@functools.cache
def _torchvision_arch(name: str) -> Arch:
    models = importlib.import_module("torchvision.models")
    names = models.list_models(module=models)  # classifiers only: detection, video, … live in submodules
    if name not in names:
        raise _unknown("torchvision", name, names)
    pixels = models.get_model_weights(name).DEFAULT.transforms()
    mean, std = tuple(pixels.mean), tuple(pixels.std)
    return Arch(_torchvision(name), head=None, mean=mean, std=std, input_size=pixels.crop_size[0])


def _unknown(library: str, name: str, names: list[str]) -> InputError:
    close = difflib.get_close_matches(name, names, n=5) or names[:5]
    return InputError(f"{library} has no classifier called {name!r}: did you mean one of {', '.join(close)}?")


def find_head(network: nn.Module, input_size: int) -> str:
    """Dotted name of the layer that classifies, found by running one image through the network.

    It is the linear layer whose output is the network's, or the convolution whose output, averaged over space, with
    or without a ReLU before, is (SqueezeNet).

    Raises:
        InputError: the output does not come from one such layer (two heads are averaged).
    """
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        with frozen(network), torch.no_grad():
            like = next(network.parameters(), torch.empty(0))
            logits = network(torch.ones(1, 3, input_size, input_size, dtype=like.dtype, device=like.device))
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(logits, Tensor):
        for name, output in outputs.items():
            # the same memory: what follows the layer, if anything, only reshapes
            if output.data_ptr() == logits.data_ptr() and output.numel() == logits.numel():
                return name
        for name, output in reversed(outputs.items()):
            averaged = (output, output.relu()) if output.ndim == 4 and output.shape[:2] == logits.shape else ()
            if any(torch.allclose(values.mean(dim=(2, 3)), logits) for values in averaged):
                return name
    raise InputError(
        f"{type(network).__name__} has no last layer whose output is the logits, so there is no representation "
        "to read: give it an entry in univ/models/architectures.py that names a node and a head"
    )
