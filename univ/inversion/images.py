"""Inverted-image files, `<model>_<eps>.pt` or `.npy`: (n, 3, H, W) images in [0, 1], float32 or 8-bit integers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from univ import files
from univ.data.images import TensorImages, to_float
from univ.errors import InputError
from univ.files import safeload, schemas

SUFFIXES = (".pt", ".npy")
READ_IMAGES = 256  # images checked at a time: a file may be larger than memory
TOLERANCE = 1e-4  # how far a stored float may lie outside [0, 1]: rounding of the programs that wrote it


def to_uint8(images: Tensor) -> Tensor:
    """round(255 x) of images in [0, 1], (…) uint8. (Published 8-bit files are truncated instead.)"""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def find_inverted(folder: Path | str, model: str, eps: str) -> Path:
    """`<folder>/<model>_<eps>.pt`, or `.npy` where there is no `.pt`.

    Raises:
        FileNotFoundError: neither is there; names the folder and what it holds.
    """
    folder = Path(folder)
    candidates = [folder / f"{model}_{eps}{suffix}" for suffix in SUFFIXES]
    for path in candidates:
        if path.is_file():
            return path
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} (see --inverted-imgs-dir)")
    found = (
        ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)) or "no .pt or .npy files"
    )
    raise FileNotFoundError(f"no inverted images {candidates[0].name} in {folder}; it holds {found}")


def read_origin(path: Path) -> dict[str, Any]:
    """The JSON that inversion.py wrote beside a file of inverted images; empty where there is none.

    Raises:
        InputError: it is damaged, or describes other images, or another report, than lie beside it.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    record = schemas.read_json(beside, schemas.InversionRecord).model_dump(exclude_unset=True)
    for file, key in ((path, "images_sha256"), (path.with_suffix(".csv"), "csv_sha256")):
        if key in record and file.is_file() and files.content_hash([file]) != record[key]:
            raise InputError(f"{file} is not the file that {beside.name} describes: restore it, or invert anew")
    return record


def _read(path: Path) -> Tensor:
    """The stored tensor, memory-mapped where the format allows it; nothing in the file is executed."""
    if path.suffix != ".npy":
        stored = safeload.load(path, what="file of inverted images", mmap=True)
        if not isinstance(stored, Tensor):
            raise InputError(f"{path} holds a {type(stored).__name__}, expected one tensor of images (n, 3, H, W)")
        return stored.detach()
    if not path.exists():
        raise FileNotFoundError(f"no inverted images at {path}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        with warnings.catch_warnings():  # the map is read-only, and nothing here writes to the tensor
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array)
    except PermissionError:
        raise
    except Exception as error:  # NumPy parses the header as Python source: damage surfaces as any of a dozen types
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is not a readable file of inverted images: {reason}") from error


def open_inverted(path: Path | str, labels: Tensor | None = None) -> TensorImages:
    """Inverted images as a data set that reads from the disk as it goes, in the order of the target indices.

    Args:
        labels: (n,) labels of the target images; None where they are not needed (they read -1).

    Raises:
        FileNotFoundError: no such file.
        InputError: not a tensor (n, 3, H, W) of uint8 or of floats in [0, 1], or not as many labels as images.
    """
    path = Path(path)
    pixels = _read(path)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) == 0:
        raise InputError(f"{path} holds a tensor of shape {tuple(pixels.shape)}, expected images (n, 3, H, W)")
    if pixels.dtype != torch.uint8 and not pixels.dtype.is_floating_point:
        raise InputError(f"{path} holds {pixels.dtype}, expected uint8 or floats in [0, 1]")
    if labels is not None and len(labels) != len(pixels):
        raise InputError(f"{path} holds {len(pixels)} images, but there are {len(labels)} target indices")
    if pixels.dtype.is_floating_point:
        for chunk in pixels.split(READ_IMAGES):
            low, high = (bound.item() for bound in chunk.aminmax())
            if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also false for nan
                raise InputError(f"{path} holds pixels from {low:g} to {high:g}, expected floats in [0, 1]")
    return TensorImages(pixels, labels, name=f"inverted/{path.stem}", path=path)


def load_inverted(path: Path | str) -> Tensor:
    """All images of a file in memory: (n, 3, H, W) float32 in [0, 1].

    Raises:
        FileNotFoundError, InputError: as `open_inverted`.
    """
    return to_float(open_inverted(path).pixels).clone()


def save_inverted(path: Path | str, images: Tensor, as_uint8: bool = False) -> None:
    """Write images (n, 3, H, W) in [0, 1] atomically: float32, or round(255 x) as uint8 (a quarter of the size)."""
    images = images.detach().cpu()
    files.save_torch(path, to_uint8(images) if as_uint8 else images.float().contiguous())


def pool_inverted(paths: Mapping[str, Path], n: int | None, seed: int, labels: Tensor | None = None) -> TensorImages:
    """One set of images from the inverted images of several models (--sample).

    All models' images are put one after the other, in the order of `paths`, and `n` of them are drawn without
    replacement. (The original's pooling overwrote its data and could not work.)

    Args:
        paths: model name -> file; the files hold the same targets in the same order, at one image size.
        n: number of images; None takes all.
        labels: labels of one file's targets.

    Raises:
        InputError: files of different shape, or fewer than `n` images in all.
    """
    sources = {model: open_inverted(path, labels) for model, path in paths.items()}
    if not sources:
        raise InputError("no inverted images to pool: no model was named")
    shapes = {model: tuple(source.pixels.shape) for model, source in sources.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"inverted images of different shapes cannot be pooled: {shapes}")
    targets = len(next(iter(sources.values())))
    total = targets * len(sources)
    if n is not None and not 1 <= n <= total:
        raise InputError(f"cannot draw {n} of {total} inverted images: choose a number from 1 to {total}")
    chosen = np.arange(total) if n is None else np.sort(np.random.default_rng(seed).choice(total, n, replace=False))
    model, position = torch.from_numpy(chosen // targets), torch.from_numpy(chosen % targets)
    all_uint8 = all(source.pixels.dtype == torch.uint8 for source in sources.values())
    parts = [
        source.uint8(position[model == number]) if all_uint8 else source.floats(position[model == number])
        for number, source in enumerate(sources.values())
    ]
    pooled_labels = None if labels is None else labels[position]
    return TensorImages(torch.cat(parts), pooled_labels, name=f"inverted/pooled/{'+'.join(sources)}")
