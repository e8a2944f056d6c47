"""Tensors in files: memory-mapped on reading, and nothing in them is executed.

Files that torch or NumPy saved are opened; safetensors files of ours hold several tensors and text on each: their
checksums and whatever else their writer says.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from univ import files
from univ.errors import InputError
from univ.files import safeload

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_CHUNK_BYTES = 64 << 20
_verified: set[tuple[Any, ...]] = set()  # tensors whose checksum this process has compared


def open_tensor(path: Path, what: str) -> Any:
    """What a .npy file, else one of torch's, holds: a tensor, or whatever else torch saved; `what` names it in errors.

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


# --- several tensors -----------------------------------------------------------------------------------------------


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, in pieces that fit into memory."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(0, len(flat), _CHUNK_BYTES):
        yield flat[start : start + _CHUNK_BYTES].numpy().data


def checksum(tensor: Tensor) -> str:
    """CRC-32 of a tensor's bytes: against damage, not forgery. 1.1 GiB/s on one core of a Xeon (SHA-256: 0.6)."""
    crc = 0
    for chunk in _chunks(tensor):
        crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically and in constant memory, also of tensors that are memory-mapped themselves."""
    # safetensors reads metadata in any order: sorted, the same content is the same bytes
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, tensor in tensors.items():
        span = [offset, offset := offset + tensor.numel() * tensor.element_size()]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data to 8 bytes
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for chunk in _chunks(tensor):
                file.write(chunk)


class TensorFile:
    """A safetensors file opened for reading; tensors are views of the file until they are changed.

    Raises:
        InputError: the file is damaged or foreign; or, where a tensor or an entry is asked for, lacks it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            state = path.stat()
            self._file_state = (path, state.st_ino, state.st_size, state.st_mtime_ns)
            self._file = safe_open(path, framework="pt")
            self.metadata: dict[str, str] = self._file.metadata() or {}
            self.names: list[str] = list(self._file.keys())
        except SafetensorError as error:
            raise InputError(f"{path} is not a cache of ours or is damaged ({error}): delete it") from error

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        """The tensor; its checksum is compared when a process reads it for the first time."""
        try:
            tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise InputError(f"{self.path} holds no tensor {name!r} ({error}): delete it") from error
        recorded = self.metadata.get(checksum_of(name))
        if recorded is not None and (*self._file_state, name) not in _verified:
            if checksum(tensor) != recorded:
                raise InputError(f"{self.path} is damaged: {name!r} does not fit its checksum: delete it")
            _verified.add((*self._file_state, name))
        return tensor

    def about(self, name: str) -> str:
        """The metadata's entry `name`, which must be there."""
        if name not in self.metadata:
            raise InputError(f"{self.path} does not say where {name!r} comes from: delete it")
        return self.metadata[name]


def checksum_of(name: str) -> str:
    """The entry of the metadata that holds a tensor's checksum."""
    return f"checksum of {name}"
