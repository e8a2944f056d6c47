"""Inverted-image files, `<model>_<eps>.pt` or `.npy`: (n, 3, H, W) images in [0, 1], float32 or 8-bit integers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from univ.data.images import TensorImages
from univ.errors import InputError
from univ.files.tensors import open_tensor

SUFFIXES = (".pt", ".npy")
READ_IMAGES = 256  # images checked at a time: a file may be larger than memory
TOLERANCE = 1e-4  # how far a stored float may lie outside [0, 1]: rounding of the programs that wrote it


def to_uint8(images: Tensor) -> Tensor:
    """round(255 x) of images in [0, 1], (…) uint8. (Published 8-bit files are truncated instead.)"""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def find_inverted(folder: Path | str, model: str, eps: str) -> Path:
    """`<folder>/<model>_<eps>.pt`, else `.npy`; where neither is there, FileNotFoundError says what is."""
    folder = Path(folder)
    candidates = [folder / f"{model}_{eps}{suffix}" for suffix in SUFFIXES]
    if path := next(filter(Path.is_file, candidates), None):
        return path
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} (see --inverted-imgs-dir)")
    names = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES))
    raise FileNotFoundError(
        f"no inverted images {candidates[0].name} in {folder}; it holds {names or 'no .pt or .npy files'}"
    )


def open_inverted(path: Path | str, labels: Tensor | None = None) -> TensorImages:
    """Inverted images as a data set that reads from the disk as it goes, in the order of the target indices.

    Args:
        labels: (n,) labels of the target images; None where they are not needed (they read -1).

    Raises:
        FileNotFoundError: no such file.
        InputError: not a tensor (n, 3, H, W) of uint8 or of floats in [0, 1], or not as many labels as images.
    """
    path = Path(path)
    pixels = open_tensor(path, "file of inverted images")
    if not isinstance(pixels, Tensor):
        raise InputError(f"{path} holds a {type(pixels).__name__}, expected one tensor of images (n, 3, H, W)")
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


def pool_inverted(paths: Mapping[str, Path], n: int | None, seed: int, labels: Tensor | None = None) -> TensorImages:
    """One set of images from the inverted images of several models (--sample).

    All models' images are put one after the other, in the order of `paths`, and `n` of them, or all, are drawn without
    replacement. (The original's pooling overwrote its data and could not work.)

    Args:
        paths: model name -> file; the files hold the same targets in the same order, at one image size.
        labels: of one file's targets.

    Raises:
        InputError: files of different shape, or fewer than `n` images in all.
    """
    opened = {model: open_inverted(path, labels) for model, path in paths.items()}
    shapes = {model: tuple(images.pixels.shape) for model, images in opened.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"inverted images of different shapes cannot be pooled: {shapes}")
    targets = len(next(iter(opened.values())))
    total = targets * len(opened)
    if n is not None and not 1 <= n <= total:
        raise InputError(f"cannot draw {n} of {total} inverted images: choose a number from 1 to {total}")
    chosen = np.arange(total) if n is None else np.sort(np.random.default_rng(seed).choice(total, n, replace=False))
    model, position = torch.from_numpy(chosen // targets), torch.from_numpy(chosen % targets)
    all_uint8 = all(images.pixels.dtype == torch.uint8 for images in opened.values())
    read = TensorImages.uint8 if all_uint8 else TensorImages.floats
    pixels = [read(images, position[model == number]) for number, images in enumerate(opened.values())]
    pooled_labels = None if labels is None else labels[position]
    return TensorImages(torch.cat(pixels), pooled_labels, name=f"inverted/pooled/{'+'.join(opened)}")
