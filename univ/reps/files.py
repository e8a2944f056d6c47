"""One model's representations of a whole data set: streamed to `reps.pt` in one pass, memory-mapped on reading.

For matrices larger than memory (ImageNet: 1.28 million x 2048). A killed run continues where it stopped. Beside the
tensor, `reps.json` says which images, weights and node it came from (`univ.reps.cache`: for comparisons).
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from univ import files
from univ.data import Images
from univ.data.loaders import batches
from univ.errors import InputError
from univ.files import safeload, schemas
from univ.models import Classifier
from univ.models.precision import arithmetic
from univ.reps import extract as activations

DTYPES = {"float32": torch.float32, "float16": torch.float16}
FILE_NAMES = {"train": "reps.pt", "val": "val_reps.pt"}
MODEL = ("arch", "node", "checkpoint")  # entries of an identity that say which model
CHUNK = 32_768  # images between two points from which a killed run can continue


def identity_path(path: Path | str) -> Path:
    """The JSON beside a file of representations."""
    return Path(path).with_suffix(".json")


def read_identity(path: Path | str) -> dict[str, Any]:
    """Where a file of representations comes from; empty where nothing is written down, as for files from elsewhere."""
    beside = identity_path(path)
    if not beside.is_file():
        return {}
    return schemas.read_json(beside, schemas.RepsIdentity).model_dump(exclude_unset=True)


def open_reps(path: Path | str) -> Tensor:
    """Representations (N, D), float32 or float16, memory-mapped where the format allows it; activations are flattened.

    Args:
        path: a tensor that torch saved (.pt), or a NumPy array (.npy).

    Raises:
        FileNotFoundError: no such file.
        InputError: damaged, or not a floating point tensor of at least two dimensions.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no representations at {path}")
    if path.suffix == ".npy":
        try:
            # copy-on-write: torch wants a writable array, and the file stays as it is
            reps = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        except Exception as error:  # NumPy parses the header as Python source: damage surfaces as any of a dozen types
            reason = str(error).partition("\n")[0][:300] or type(error).__name__
            raise InputError(f"{path} is not a readable array: {reason}") from error
    else:
        reps = safeload.load(path, what="file of representations", mmap=True)
    if not isinstance(reps, Tensor) or reps.dim() < 2 or not reps.dtype.is_floating_point or len(reps) == 0:
        found = f"{reps.dtype} {tuple(reps.shape)}" if isinstance(reps, Tensor) else type(reps).__name__
        raise InputError(f"{path} holds {found}, expected a floating point tensor of representations (N, D)")
    return reps.flatten(1)


def extract(
    path: Path,
    model: Classifier,
    images: Images,
    identity: Mapping[str, Any],
    *,
    dtype: str = "float32",
    batch_size: int = 256,
    device: torch.device,
    workers: int = 0,
    precision: str = "fp32",
    chunk: int = CHUNK,
    quiet: bool = False,
) -> Tensor:
    """Representations of every image, from `path` if they are there, else extracted into it.

    Args:
        path: the file; while the extraction runs, `<path>.partial` and `<path>.partial.json` beside it.
        model: in evaluation mode, on `device`.
        identity: what the numbers depend on besides dtype and precision (data, weights, node), in JSON's types. A file,
            or the beginning of one, of another identity is replaced.
        dtype: float32 or float16 (half the disk; about three decimals).
        chunk: images between two points from which a killed run can continue.

    Returns:
        (N, D), memory-mapped.

    Raises:
        InputError: a representation is not finite, or too large for float16.
    """
    wanted = json.loads(json.dumps({**identity, "dtype": dtype, "precision": precision, "n": len(images)}))
    if _is_made(path, wanted):
        return open_reps(path)
    with files.locked(path, wait=True):
        if not _is_made(path, wanted):  # by whom we waited for
            _stream(path, model, images, wanted, dtype, batch_size, device, workers, precision, chunk, quiet)
    return open_reps(path)


def _is_made(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a file is there and of this identity; removes what a run killed at the very end left beside it."""
    if not path.is_file():
        return False
    there = read_identity(path)
    if {key: there.get(key) for key in wanted} != wanted or not _is_described(path, there):
        logger.info("{} was made otherwise: extracting anew", path)
        return False
    logger.info("representations are there: {}", path)
    files.remove_orphans(path)
    partial, progress_path = _unfinished(path)
    if _read_progress(progress_path, wanted) is not None:
        partial.unlink(missing_ok=True)
        progress_path.unlink(missing_ok=True)
    return True


def _unfinished(path: Path) -> tuple[Path, Path]:
    """The beginning of a file that is being made, and the note beside it."""
    return path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.partial.json")


def _stream(
    path: Path,
    model: Classifier,
    images: Images,
    wanted: Mapping[str, Any],
    dtype: str,
    batch_size: int,
    device: torch.device,
    workers: int,
    precision: str,
    chunk: int,
    quiet: bool,
) -> None:
    """Extract into the unfinished file, from where it ends, and then write the finished one."""
    partial, progress_path = _unfinished(path)
    blocks, stored = _whole_blocks(partial, progress_path, wanted, chunk)
    if blocks:
        rows = min(len(blocks) * chunk, len(images))
        logger.info("{}: continuing with {:,} of {:,} images", path.name, rows, len(images))
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = math.ceil(len(images) / chunk)
    for start in range(0, len(images), chunk):
        if str(start) in blocks:
            continue
        positions = torch.arange(start, min(start + chunk, len(images)))
        loader = batches(images, batch_size, device=device, workers=workers, indices=positions)
        name = f"{path.stem} {start // chunk + 1}/{parts}" if parts > 1 else path.stem
        with arithmetic(precision, device):
            part = activations.extract(model, loader, len(positions), name=name, quiet=quiet)
        values = part.reps.to(DTYPES[dtype])
        if not torch.isfinite(values).all():
            raise InputError(f"{model.arch}: representations do not fit {dtype}: use --reps-dtype float32")
        if stored is None:
            stored = _open_partial(partial, dtype, (len(images), values.shape[1]), anew=True)
        stored[start : start + len(positions)] = values.numpy()
        with files.cannot_write(partial):
            stored.flush()  # rows first, then the note that they are there
        blocks[str(start)] = {
            "crc32": zlib.crc32(values.contiguous().numpy().data),
            "correct": int((part.preds == images.labels[positions]).sum()),
        }
        note = {"identity": wanted, "chunk": chunk, "blocks": blocks, "dim": values.shape[1]}
        files.write_json(progress_path, note)
    identity_path(path).unlink(missing_ok=True)  # never an old description beside new numbers
    files.save_torch(path, torch.from_numpy(stored))
    accuracy = sum(block["correct"] for block in blocks.values()) / len(images)
    about = {**wanted, "classifier_accuracy": accuracy, "sha256": files.content_hash([path])}
    files.write_json(identity_path(path), about)
    partial.unlink()
    progress_path.unlink()
    logger.info("wrote {}: {:,} x {:,} {}", path, *stored.shape, dtype)


def _open_partial(path: Path, dtype: str, shape: tuple[int, int], *, anew: bool) -> np.memmap:
    """Map the unfinished file into memory.

    All its blocks are reserved first: on a full disk, writing into the map would end the process (SIGBUS).
    """
    with files.cannot_write(path):
        try:
            with path.open("wb" if anew else "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
        except OSError:
            if anew:
                path.unlink(missing_ok=True)
            raise
        return np.memmap(path, dtype, "r+", shape=shape)


def _is_described(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a file is the one that its JSON describes, as far as that says (older ones hold no hash)."""
    return identity.get("sha256", "") in ("", files.content_hash([path]))


def _whole_blocks(
    partial: Path, progress_path: Path, wanted: Mapping[str, Any], chunk: int
) -> tuple[dict[str, dict[str, int]], np.memmap | None]:
    """The blocks of an unfinished file of this identity that fit their checksums, by first row, and the file.

    A damaged block is extracted again; so is everything where the note beside the file is damaged or of another kind.
    """
    progress = _read_progress(progress_path, wanted) if partial.is_file() else None
    if progress is None or progress["chunk"] != chunk:
        return {}, None
    n, dim, blocks = wanted["n"], progress["dim"], progress["blocks"]
    if partial.stat().st_size != n * dim * np.dtype(wanted["dtype"]).itemsize:
        return {}, None
    stored = np.memmap(partial, wanted["dtype"], "r+", shape=(n, dim))
    whole = {
        start: block
        for start, block in blocks.items()
        if zlib.crc32(stored[int(start) : int(start) + chunk].data) == block["crc32"]
    }
    if len(whole) < len(blocks):
        logger.warning(
            "{}: {} of {} blocks are damaged: extracting them again", partial, len(blocks) - len(whole), len(blocks)
        )
    return whole, stored


def _read_progress(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The note beside the beginning of a file, if it is of the same identity."""
    if not path.is_file():
        return None
    try:
        progress = schemas.read_json(path, schemas.RepsProgress)
    except InputError as error:
        logger.warning("extracting anew: {}", error)
        return None
    return progress.model_dump() if progress.identity == wanted else None
