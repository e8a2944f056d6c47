"""One model's representations of a whole data set: streamed to `reps.pt` in one pass, memory-mapped on reading.

For matrices larger than memory (ImageNet: 1.28 million x 2048). A killed run continues where it stopped. Beside the
tensor, `reps.json` says which images, weights and node it came from (`univ.reps.cache`: for comparisons).
"""

import math
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from univ import files
from univ.errors import InputError
from univ.files import schemas
from univ.files.tensors import open_tensor
from univ.reps.extract import Extraction
from univ.results import made

DTYPES = {"float32": torch.float32, "float16": torch.float16}
FILE_NAMES = {"train": "reps.pt", "val": "val_reps.pt"}
CHUNK = 32_768  # images between two points from which a killed run can continue


def read_identity(path: Path | str) -> dict[str, Any]:
    """Where a file of representations comes from; empty where nothing is written down, as for files from elsewhere."""
    beside = made.record_path(path)
    return schemas.read_json(beside, schemas.RepsIdentity).model_dump(exclude_unset=True) if beside.is_file() else {}


def open_reps(path: Path | str) -> Tensor:
    """Representations (N, D), any floating type, memory-mapped where the format allows it; activations are flattened.

    Raises:
        FileNotFoundError: no such file.
        InputError: damaged, or not a floating point tensor of at least two dimensions.
    """
    reps = open_tensor(Path(path), "file of representations")
    if not isinstance(reps, Tensor) or reps.dim() < 2 or not reps.dtype.is_floating_point or len(reps) == 0:
        content = f"{reps.dtype} {tuple(reps.shape)}" if isinstance(reps, Tensor) else type(reps).__name__
        raise InputError(f"{path} holds {content}, expected a floating point tensor of representations (N, D)")
    return reps.flatten(1)


def extract(
    path: Path, identity: Mapping[str, Any], labels: Tensor, read: Callable[..., Extraction], *, chunk: int = CHUNK
) -> Tensor:
    """Representations of every image, (N, D), memory-mapped: from `path` if they are there, else extracted into it.

    Args:
        path: the file; while the extraction runs, `<path>.partial` and `<path>.partial.json` beside it.
        identity: what the numbers depend on (data, weights, node, precision), in JSON's types; `n`, the number of
            images, `dtype`, float32 or float16 (half the disk; about three decimals), and `arch`, for messages, among
            them. A file, or the beginning of one, of another identity is replaced.
        labels: (n,) of the images, against which the model's own classifier is judged.
        read: positions (k,), and `name=` for the progress bar -> the model's extraction of these images.
        chunk: images between two points from which a killed run can continue.

    Raises:
        InputError: a representation is not finite, or too large for float16.
    """
    identity = made.plain(identity)
    if not _is_made(path, identity):
        with files.locked(path, wait=True):
            if not _is_made(path, identity):  # by whom we waited for
                _stream(path, identity, labels, read, chunk)
    return open_reps(path)


def _is_made(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a file is there and of this identity; removes what a run killed at the very end left beside it."""
    if not path.is_file():
        return False
    recorded = read_identity(path)
    same = {key: recorded.get(key) for key in identity} == identity
    if not same or recorded.get("sha256", "") not in ("", files.content_hash(path)):  # older ones hold no hash
        logger.info("{} was made otherwise: extracting anew", path)
        return False
    logger.info("representations are there: {}", path)
    files.remove_orphans(path)
    partial, note_path = _unfinished(path)
    if _read_note(note_path, identity) is not None:
        partial.unlink(missing_ok=True)
        note_path.unlink(missing_ok=True)
    return True


def _unfinished(path: Path) -> tuple[Path, Path]:
    """The beginning of a file that is being made, and the note beside it."""
    return path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.partial.json")


def _stream(path: Path, identity: dict[str, Any], labels: Tensor, read: Callable[..., Extraction], chunk: int) -> None:
    """Extract into the unfinished file, from where it ends, and then write the finished one."""
    partial, note_path = _unfinished(path)
    n, dtype = identity["n"], identity["dtype"]
    blocks, stored = _whole_blocks(partial, note_path, identity, chunk)
    if blocks:
        logger.info("{}: continuing with {:,} of {:,} images", path.name, min(len(blocks) * chunk, n), n)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, positions in enumerate(torch.arange(n).split(chunk)):
        start = number * chunk
        if str(start) in blocks:
            continue
        part = read(positions, name=f"{path.stem} {number + 1}/{math.ceil(n / chunk)}" if n > chunk else path.stem)
        values = part.reps.to(DTYPES[dtype])
        if not torch.isfinite(values).all():
            raise InputError(f"{identity['arch']}: representations do not fit {dtype}: use --reps-dtype float32")
        if stored is None:
            stored = _reserve(partial, dtype, (n, values.shape[1]))
        stored[start : start + len(positions)] = values.numpy()
        with files.cannot_write(partial):
            stored.flush()  # rows first, then the note that they are there
        correct = int((part.preds == labels[positions]).sum())
        blocks[str(start)] = {"crc32": zlib.crc32(values.contiguous().numpy().data), "correct": correct}
        files.write_json(note_path, {"identity": identity, "chunk": chunk, "blocks": blocks, "dim": values.shape[1]})
    described = made.record_path(path)
    described.unlink(missing_ok=True)  # never an old description beside new numbers
    files.save_torch(path, torch.from_numpy(stored))
    accuracy = sum(block["correct"] for block in blocks.values()) / n
    files.write_json(described, {**identity, "classifier_accuracy": accuracy, "sha256": files.content_hash(path)})
    partial.unlink()
    note_path.unlink()
    logger.info("wrote {}: {:,} x {:,} {}", path, *stored.shape, dtype)


def _reserve(path: Path, dtype: str, shape: tuple[int, int]) -> np.memmap:
    """A new file mapped into memory, reserved first: on a full disk writing into the map would end us (SIGBUS)."""
    with files.cannot_write(path):
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return np.memmap(path, dtype, "r+", shape=shape)


def _whole_blocks(
    partial: Path, note_path: Path, identity: Mapping[str, Any], chunk: int
) -> tuple[dict[str, dict[str, int]], np.memmap | None]:
    """The blocks of an unfinished file of this identity that fit their checksums, by first row, and the file.

    A damaged block is extracted again; so is all where the note beside the file is damaged or of another kind.
    """
    note = _read_note(note_path, identity) if partial.is_file() else None
    if note is None or note["chunk"] != chunk:
        return {}, None
    shape, blocks = (identity["n"], note["dim"]), note["blocks"]
    if partial.stat().st_size != math.prod(shape) * np.dtype(identity["dtype"]).itemsize:
        return {}, None
    stored = np.memmap(partial, identity["dtype"], "r+", shape=shape)
    whole = {
        start: block
        for start, block in blocks.items()
        if zlib.crc32(stored[int(start) : int(start) + chunk].data) == block["crc32"]
    }
    if damaged := len(blocks) - len(whole):
        logger.warning("{}: {} of {} blocks are damaged: extracting them again", partial, damaged, len(blocks))
    return whole, stored


def _read_note(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The note beside the beginning of a file, if it is of the same identity."""
    if not path.is_file():
        return None
    try:
        note = schemas.read_json(path, schemas.RepsProgress)
    except InputError as error:
        logger.warning("extracting anew: {}", error)
        return None
    return note.model_dump() if note.identity == identity else None
