"""Index files (which images a comparison or an inversion uses) and label files: draw, read, write, pair.

An index file is what pandas writes for one column named `0`: a header `,0`, then `row,index` lines. A label file is the
same, or has no header, or no row numbers, or neither.
"""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from univ import files
from univ.errors import InputError

LARGEST = 2**63 - 1


def _read_rows(path: Path, what: str) -> list[list[str]]:
    """The lines of a CSV file without the empty ones; each is checked to be text of one or two cells."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except IsADirectoryError as error:
        raise InputError(f"{what} {path} is a folder, not a file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{what} {path} is not a CSV text file: {error}") from error
    if not rows:
        raise InputError(f"{what} {path} is empty")
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]) or len(row) > 2:
            raise InputError(f"{what} {path}: row {number} has {len(row)} cells, expected one value per line")
    return rows


def _is_integer(cell: str) -> bool:
    """Whether a cell is a plain non-negative decimal integer that fits 64 bits."""
    cell = cell.strip()
    return cell.isascii() and cell.isdigit() and int(cell[:20]) <= LARGEST


def _read_column(path: Path, what: str, *, length: int | None = None) -> Tensor:
    """The values of a one-column CSV in any layout of the module header.

    A header is a first row whose value is no number, or whose row number is missing (`,0`), or, in a file of bare
    values, a first line `0` that is one too many for `length`.
    """
    rows = _read_rows(path, what)
    numbered = len(rows[0]) == 2
    bare_header = not numbered and rows[0][0].strip() == "0" and length is not None and len(rows) == length + 1
    has_header = not _is_integer(rows[0][-1]) or (numbered and not _is_integer(rows[0][0])) or bare_header
    body = rows[1:] if has_header else rows
    if not body:
        raise InputError(f"{what} {path} holds a header and no values")
    for number, row in enumerate(body):
        if not _is_integer(row[-1]):
            raise InputError(f"{what} {path}: row {number} is {','.join(row)[:100]!r}, expected a non-negative integer")
        if numbered and row[0].strip() != str(number):
            said = f"row {number} is numbered {row[0][:100]!r}; a row is missing, or it is no {what}"
            raise InputError(f"{what} {path}: {said}")
    return torch.tensor([int(row[-1].strip()) for row in body], dtype=torch.int64)


def write_indices(path: Path | str, values: Tensor | np.ndarray) -> None:
    """Write image indices, or labels, as `pandas.DataFrame(values).to_csv(path)` would, atomically."""
    lines = [",0", *(f"{row},{value}" for row, value in enumerate(torch.as_tensor(values).tolist()))]
    files.write_text(path, "\n".join(lines) + "\n")


write_labels = write_indices


def read_indices(path: Path | str, length: int | None = None) -> Tensor:
    """Image indices, (n,) int64, in the order of the file.

    Args:
        length: number of images; an index past them is an error.

    Raises:
        FileNotFoundError: no such file.
        InputError: not an index file, or an index out of bounds; names file and row.
    """
    path = Path(path)
    rows = _read_rows(path, "index file")
    if len(rows[0]) != 2 or [cell.strip() for cell in rows[0]] != ["", "0"]:
        said = f"begins with {','.join(rows[0])[:100]!r}; expected ',0', then one 'row,index' a line"
        raise InputError(f"index file {path} {said}")
    indices = _read_column(path, "index file")
    if length is not None and indices.max() >= length:
        row = int((indices >= length).nonzero()[0])
        raise InputError(f"index file {path}: row {row} names image {int(indices[row])}, but there are {length} images")
    return indices


def draw_indices(n: int, length: int, seed: int) -> Tensor:
    """`n` different indices below `length`, ascending (files are then read front to back), (n,) int64.

    Raises:
        InputError: fewer than `n` images, or n < 1.
    """
    if not 1 <= n <= length:
        raise InputError(f"cannot draw {n} of {length} images: choose a number from 1 to {length}")
    return torch.from_numpy(np.sort(np.random.default_rng(seed).choice(length, n, replace=False)))


def read_or_draw(path: Path | str, n: int, length: int, seed: int) -> Tensor:
    """The indices in `path`; if there is no such file, min(n, length) drawn ones, which are saved there.

    An existing file is used whole, whatever `n` is, so that all models are compared on the same images.

    Raises:
        InputError: not an index file, or an index is not below `length`.
    """
    path = Path(path)
    with contextlib.nullcontext() if path.exists() else files.locked(path, wait=True):  # all use what the first draws
        if path.exists():
            files.remove_orphans(path)
            indices = read_indices(path, length)
            logger.info("{:,} image indices from {}", len(indices), path)
            return indices
        indices = draw_indices(min(n, length), length, seed)
        write_indices(path, indices)
    logger.info("{:,} of {:,} images drawn with seed {}, indices saved in {}", len(indices), length, seed, path)
    return indices


def draw_targets_and_seeds(n: int, upper_bound: int, labels: Tensor, random_state: int) -> tuple[Tensor, Tensor]:
    """Target images, and for each a seed image of another class to start its inversion from.

    Args:
        n: number of pairs.
        upper_bound: all indices are below this one.
        labels: (N,) with N >= upper_bound.
        random_state: the same one gives the same pairs.

    Returns:
        targets: (n,) int64, all different, in the order drawn.
        seeds: (n,) int64; seeds[i] is drawn uniformly among the images of another class than targets[i], so an index
            can appear more than once.

    Raises:
        InputError: n or upper_bound do not fit the data, or all images below upper_bound are of one class.
    """
    if upper_bound > len(labels):
        raise InputError(f"upper bound {upper_bound} (-u) is past the data: there are {len(labels)} images")
    if not 1 <= n <= upper_bound:
        raise InputError(f"cannot draw {n} targets (-n) below {upper_bound} (-u): choose from 1 to {upper_bound}")
    below = labels[:upper_bound].cpu().numpy()
    if (below == below[0]).all():
        said = f"all of class {below[0]}: no seed of another class (raise -u)"
        raise InputError(f"the first {upper_bound} images are {said}")
    rng = np.random.default_rng(random_state)
    targets = rng.choice(upper_bound, n, replace=False)
    seeds = rng.integers(upper_bound, size=n)
    while (same := below[seeds] == below[targets]).any():  # rejection keeps the draw uniform over the other classes
        seeds[same] = rng.integers(upper_bound, size=int(same.sum()))
    return torch.from_numpy(targets), torch.from_numpy(seeds)


def read_labels(path: Path | str, length: int | None = None) -> Tensor:
    """Labels, (n,) int64, from a label file in any of the layouts of the module header.

    Args:
        length: number of images, which must be the number of labels. It also tells a bare column headed `0` from a
            bare column whose first label is 0.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a label file, or not as many labels as images.
    """
    path = Path(path)
    labels = _read_column(path, "label file", length=length)
    if length is not None and len(labels) != length:
        raise InputError(f"label file {path} holds {len(labels)} labels for {length} images")
    return labels
