"""Models: (architecture, training set, checkpoint) -> classifier that normalises its own input, in evaluation mode."""

import dataclasses
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from univ import files
from univ.data import DATASETS
from univ.eps import eps_of_path, eps_value
from univ.errors import InputError
from univ.models import checkpoints
from univ.models.architectures import (
    ARCHS,
    CIFAR10_ARCHS,
    DIGITS_ARCHS,
    HEAD_INPUT,
    IMAGENET_ARCHS,
    Arch,
    archs_of,
    default_models,
    find_arch,
    find_head,
    pixel_statistics,
)
from univ.models.normalize import InputNormalize

__all__ = [
    "ARCHS",
    "CIFAR10_ARCHS",
    "DIGITS_ARCHS",
    "HEAD_INPUT",
    "IMAGENET_ARCHS",
    "Arch",
    "Classifier",
    "arch_from_filename",
    "archs_of",
    "build_model",
    "default_models",
    "file_stem",
    "find_arch",
    "find_checkpoint",
    "load_model",
    "read_hugging_face_name",
]


class Classifier(nn.Module):
    """Input normalisation followed by a network: images in [0, 1] to logits.

    Attributes:
        normalizer, model: the two parts, named as in the published checkpoints.
        spec: the architecture's entry, `spec.head` always filled in. `spec.node` and `spec.head` are names within
            `model`.
        arch, train_set, num_classes: what it was built as.
        input_size: side of the images it takes, pixels.
    """

    def __init__(self, network: nn.Module, spec: Arch, arch: str, train_set: str, num_classes: int) -> None:
        super().__init__()
        self.normalizer = InputNormalize(*pixel_statistics(spec, train_set))
        self.model = network
        self.input_size = spec.input_size or DATASETS[train_set].image_size
        if spec.head is None:
            spec = dataclasses.replace(spec, head=find_head(network, self.input_size))
        self.spec = spec
        self.arch = arch
        self.train_set = train_set
        self.num_classes = num_classes

    @property
    def head(self) -> nn.Linear | nn.Conv2d:
        """The layer that classifies; its input, pooled if it is a convolution, is what inversion optimises."""
        return self.model.get_submodule(self.spec.head)

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W) in [0, 1] -> (N, num_classes)
        logits = self.model(self.normalizer(images))
        # GoogLeNet and Inception add the logits of their auxiliary classifiers while training
        return logits if isinstance(logits, Tensor) else logits[0]


def build_model(arch: str, train_set: str, num_classes: int | None = None, *, seed: int | None = None) -> Classifier:
    """A new model with random weights, in training mode, on the CPU.

    Args:
        arch: name in archs_of(train_set), or `timm:<name>`, `torchvision:<name>`.
        train_set: key of DATASETS.
        num_classes: None takes the training set's.
        seed: draws the weights from a generator of their own; None draws them from PyTorch's global one.

    Raises:
        InputError: unknown architecture or training set, or a network without one layer that classifies.
    """
    spec = find_arch(arch, train_set)
    classes = num_classes or DATASETS[train_set].num_classes
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return Classifier(spec.build(classes), spec, arch, train_set, classes)


def load_model(
    arch: str,
    train_set: str,
    checkpoint: Path | str,
    *,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """A trained model in evaluation mode, with the checkpoint's weights and, where it has them, pixel statistics.

    Raises:
        InputError: the file is damaged, or made for another architecture or number of classes: says which weight.
        FileNotFoundError: there is no such file.
    """
    state = checkpoints.read_weights(checkpoint)
    model = build_model(
        arch, train_set, num_classes, seed=0
    )  # a seed, so that loading leaves the global generator alone
    checkpoints.load_weights(model, state, checkpoint)
    return model.eval().to(device)


# --- names of files -------------------------------------------------------------------------------------------------

_HUGGING_FACE = re.compile(r"(?P<arch>\w+?)_l2_eps(?P<eps>\d+(\.\d+)?)")  # e.g. resnet18_l2_eps0.25.ckpt
_HUGGING_FACE_ARCHS = {"densenet": "densenet161"}
_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")


def file_stem(arch: str) -> str:
    """An architecture's name as part of a file name: `timm:convnext_tiny` becomes `timm_convnext_tiny`.

    Raises:
        InputError: it cannot be one, see `files.file_name`.
    """
    return files.file_name(arch.replace(":", "_"), "architecture")


def find_checkpoint(folder: Path | str, arch: str, train_set: str) -> Path:
    """The checkpoint of an architecture in a folder: `<arch>.ckpt`, `<arch>.pt` or a Hugging Face name.

    Files named as on Hugging Face (`resnet18_l2_eps3.ckpt`, `densenet_l2_eps3.ckpt`) count where the radius in their
    name is the one of the folder, or where the folder's path names none and there is only one.

    Raises:
        FileNotFoundError: there is none; names the folder and what it holds.
        InputError: several files could be meant; names them.
    """
    folder = Path(folder)
    held = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    usual = DATASETS[train_set].suffix
    stems = [file_stem(arch), arch.partition(":")[2]]
    for suffix in sorted(_SUFFIXES, key=lambda suffix: suffix != usual):
        for stem in filter(None, stems):
            if stem + suffix in held:
                return folder / (stem + suffix)
    eps = eps_of_path(folder)
    published = {name: read_hugging_face_name(name) for name in held}
    matches = [
        name
        for name, found in published.items()
        if found is not None and found[0] == arch and (eps is None or found[1] == eps_value(eps))
    ]
    if len(matches) == 1:
        return folder / matches[0]
    if matches:
        raise InputError(
            f"several checkpoints of {arch!r} in {folder}: {', '.join(matches)}; keep one there (--model-dir)"
        )
    listed = ", ".join(held[:20]) + (" …" if len(held) > 20 else "") if folder.is_dir() else "no such folder"
    raise FileNotFoundError(
        f"no checkpoint {file_stem(arch)}{usual} in {folder}; it holds: {listed or 'nothing'} (see --model-dir)"
    )


def arch_from_filename(path: Path | str) -> str:
    """The architecture a checkpoint's file name stands for: `…/eps3/resnet18.ckpt` is resnet18.

    Raises:
        InputError: the name is none of an architecture's.
    """
    stem = Path(path).stem
    known = {arch for archs in ARCHS.values() for arch in archs}
    if stem in known:
        return stem
    published = read_hugging_face_name(Path(path).name)
    if published is not None and published[0] in known:
        return published[0]
    library, _, model = stem.partition("_")
    if library in ("timm", "torchvision") and model:
        return f"{library}:{model}"
    raise InputError(
        f"cannot tell the architecture from the name of {path}: give it with -m ({', '.join(sorted(known))})"
    )


def read_hugging_face_name(name: str) -> tuple[str, float] | None:
    """Architecture, as we call it, and radius of a file named as on Hugging Face; None for other names."""
    match = _HUGGING_FACE.fullmatch(Path(name).stem)
    if match is None:
        return None
    return _HUGGING_FACE_ARCHS.get(match["arch"], match["arch"]), float(match["eps"])
