"""Any network, any images -> representations: a pass that needs no data set and no architecture of ours.

In: nn.Modules by name; images as a tensor, a Dataset, a DataLoader or a folder. Out: (N, ...) tensors on the CPU.
"""

import contextlib
import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from univ.attacks import frozen
from univ.data.imagenet import ImageFiles
from univ.data.images import to_float
from univ.data.loaders import Batches
from univ.data.transforms import imagenet_transform
from univ.errors import InputError
from univ.models import Arch, Classifier
from univ.models.architectures import find_head
from univ.models.precision import arithmetic
from univ.reps.nodes import Reader

LOGITS = "logits"
"""The node that stands for what a network gives out."""


def as_classifier(network: nn.Module, image_size: int, name: str = "") -> Classifier:
    """A network of the user's as a `Classifier` without a normalisation of its own; its last layer is found.

    Raises:
        InputError: the logits do not come from one last layer.
    """
    if isinstance(network, Classifier):
        return network
    with frozen(network):
        head = find_head(network, image_size)
        num_classes = network.get_submodule(head).weight.shape[0]
    spec = Arch(lambda _: copy.deepcopy(network), head, mean=(0.0,) * 3, std=(1.0,) * 3, input_size=image_size)
    return Classifier(network, spec, name or type(network).__name__, "imagenet", num_classes)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are; the CPU, if it has none."""
    return next((weight.device for weight in network.parameters()), torch.device("cpu"))


Source = Tensor | np.ndarray | Dataset | DataLoader | Path | str


def batches_of(images: Source, batch: int, image_size: int = 224) -> tuple[Iterable[Any], int | None]:
    """Batches of the images in their order, each a tensor or a tuple that starts with one; and how many images.

    Args:
        images: (N, ...) tensor or array, uint8 or floating point; a data set of tensors, or of tuples that start with
            one; a DataLoader of them; or a folder of image files, sorted by name.
        batch: images at a time, unless a DataLoader says so itself.
        image_size: side to which the files of a folder are resized and cropped, pixels.

    Raises:
        InputError: something else.
    """
    if isinstance(images, str | Path):
        if not Path(images).is_dir():
            raise InputError(f"there is no folder of images {images}")
        images = ImageFiles(images, None, imagenet_transform(image_size, "similarity"), name="folder")
        return Batches(images, batch, device="cpu"), len(images)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if isinstance(images, Tensor):
        return images.split(batch), len(images)
    if isinstance(images, DataLoader):
        return images, len(images.dataset) if hasattr(images.dataset, "__len__") else None
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return DataLoader(images, batch_size=batch), len(images)
    raise InputError(f"images are a tensor, a Dataset, a DataLoader or a folder, not {type(images).__name__}")


def pixels_of(item: Any) -> Tensor:
    """The images of a batch: floating point ones as they are, 8-bit ones as float32 in [0, 1]."""
    first = item[0] if isinstance(item, tuple | list) and item else item
    if not isinstance(first, Tensor):
        raise InputError(f"a batch of images is a tensor or a tuple that starts with one, not {type(first).__name__}")
    return to_float(first) if first.dtype == torch.uint8 else first


class _Columns:
    """Rows that come batch by batch, as one tensor in the end."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        rows = rows.detach()
        self._parts.append((rows if rows.dtype == torch.float64 else rows.float()).cpu())

    def tensor(self) -> Tensor:
        return torch.cat(self._parts)


@torch.no_grad()
def read(
    networks: Mapping[str, nn.Module],
    images: Source,
    nodes: Sequence[str],
    *,
    pool: str | None = None,
    batch: int = 64,
    device: torch.device | str | None = None,
    quiet: bool = False,
) -> dict[tuple[str, str], Tensor]:
    """Representations of all images in all networks, in one pass over the images: each is decoded once.

    Returns:
        (network, node) -> (N, ...), float32 or float64, on the CPU.

    Raises:
        InputError: no images, no such node, or NaN or infinity in what a network gives out.
    """
    sizes = {name: net.image_size for name, net in networks.items() if isinstance(net, Classifier)}
    if isinstance(images, str | Path) and len(set(sizes.values())) > 1:
        raise InputError(f"the models take images of different sizes ({sizes}): extract them apart")
    batches, n = batches_of(images, batch, next(filter(None, sizes.values()), 224))
    if not n and n is not None:
        raise InputError("there are no images")
    found: dict[tuple[str, str], _Columns] = {}
    with contextlib.ExitStack() as stack, tqdm(total=n, unit="img", disable=quiet) as bar:
        for network in networks.values():
            stack.enter_context(frozen(network if device is None else network.to(device)))
        inner = [node for node in nodes if node != LOGITS]
        readers = {name: stack.enter_context(Reader(net, inner, pool)) for name, net in networks.items() if inner}
        for item in batches:
            pixels = pixels_of(item)
            for name, network in networks.items():
                place = device_of(network)
                with arithmetic("fp32", place):
                    values = dict(readers[name](pixels.to(place))) if inner else {}
                    if LOGITS in nodes:
                        values[LOGITS] = readers[name].output if inner else network(pixels.to(place))
                for node in nodes:
                    found.setdefault((name, node), _Columns()).add(values[node])
            bar.update(len(pixels))
    if not found:
        raise InputError("there are no images")
    reps = {key: columns.tensor() for key, columns in found.items()}
    for (name, node), rep in reps.items():
        if not rep.isfinite().all():
            raise InputError(f"{name}: NaN or infinity at node {node!r}")
    return reps
