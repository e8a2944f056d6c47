"""Tensors in files that torch or NumPy saved: memory-mapped, and nothing in them is executed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from univ.errors import InputError
from univ.files import safeload


def open_tensor(path: Path, what: str) -> Any:
    """What a .npy file, else one of torch's, holds: a tensor, or whatever else torch saved.

    Args:
        what: the file is, for messages.

    Raises:
        FileNotFoundError: no such file.
        InputError: damaged.
    """
    if path.suffix != ".npy":
        return safeload.load(path, what=what, mmap=True)
    if not path.exists():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        # copy-on-write: torch wants a writable array, and the file stays as it is
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        return torch.from_numpy(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))
    except PermissionError:
        raise
    except Exception as error:  # NumPy parses the header as Python source: damage surfaces as any of a dozen types
        reason = str(error).partition("\n")[0][:300] or type(error).__name__
        raise InputError(f"{path} is not a readable {what}: {reason}") from error
