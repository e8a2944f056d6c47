"""Files that are either whole or absent: written under a temporary name in the same folder, then renamed."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from univ.errors import InputError


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it otherwise.

    The data are on the disk before the rename, so a crash leaves the old file or the new one, never a part.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600; results are shared like any other file
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; paths and devices become strings."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def save_torch(path: Path | str, value: Any) -> None:
    """`torch.save` to `path` atomically.

    Raises:
        InputError: the disk is full, or the folder cannot be written (torch reports it as RuntimeError).
    """
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:  # given a path, torch keeps its random name inside the file
                torch.save(value, file)
        except RuntimeError as error:
            raise InputError(f"cannot write {path}: {str(error).splitlines()[0]} (is the disk full?)") from error


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
