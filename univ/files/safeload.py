"""Reading files of tensors that others made (checkpoints, caches, inverted images), so that nothing in them can run.

Their pickles are read by `unpickle`; here are the containers around them, and the functions that build tensors. A
storage is as large as the bytes that the file has for it, a tensor not larger than its storage.
"""

import io
import math
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from univ.errors import InputError
from univ.files.unpickle import CONTAINERS, SPARE, Builder, Placeholder, Reader, elements, is_shape, reason

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first of the pickles in a file that torch.save wrote before version 1.6
_CHUNK = 1 << 20


def load(path: Path | str, *, what: str = "checkpoint", mmap: bool = False) -> Any:
    """What `torch.save` (or safetensors) wrote to a file, on the CPU, without running anything that is in it.

    Tensors are plain ones without gradients. Objects of other classes, sparse tensors among them, are `Placeholder`s.
    Zip files, which PyTorch writes since 1.6, are compared with their checksums, where they have any. The older format
    has none: there a damaged weight is a different number, while damage to the structure is found.

    PyTorch reads nothing here: it believes what a pickle says of a storage's size (and reads past the end), has a zip
    reader that may see another file than the one checked here, such as a program, and does not look at checksums.

    Args:
        path: file in PyTorch's zip or older format; safetensors if the name ends in .safetensors.
        what: what the file should be, for messages.
        mmap: leave tensors on the disk until they are read; for a file that nothing changes meanwhile.

    Raises:
        FileNotFoundError: no such file.
        InputError: the file is damaged or not of these formats; names it.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected a {what} file")
    if not path.exists():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        return _load_zip(path, mmap=mmap) if is_zip else _load_legacy(path)
    except PermissionError:
        raise
    except Exception as error:  # whatever goes wrong on bytes of unknown origin means the same
        refusal = f"{path} is not a readable {what} (damaged, incomplete or of another kind)"
        raise InputError(f"{refusal}: {reason(error)}") from error


# --- tensors --------------------------------------------------------------------------------------------------------

_STORAGE_DTYPES = {
    f"torch.{device}{kind}Storage": getattr(torch, dtype)
    for device in ("", "cuda.")
    for kind, dtype in (
        *(("Float", "float32"), ("Double", "float64"), ("Half", "float16"), ("BFloat16", "bfloat16")),
        *(("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8"), ("Byte", "uint8")),
        *(("Bool", "bool"), ("storage.Untyped", "uint8")),
    )
}


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any, state: Any = None) -> Tensor:
    """A strided view of a storage, which is a 1-d tensor here; PyTorch checks that it stays inside."""
    if not (isinstance(storage, Tensor) and type(offset) is int and is_shape(size) and is_shape(stride)):
        raise pickle.UnpicklingError("it holds a malformed tensor")
    if math.prod(size) > max(SPARE, len(storage)):
        raise pickle.UnpicklingError(f"it holds {len(storage):,} numbers as a tensor of {math.prod(size):,}")
    return storage.as_strided(size, stride, storage.storage_offset() + offset)


_TENSORS: dict[str, Builder] = {
    **CONTAINERS,
    "torch.Size": lambda size=(): tuple(elements(size)),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_, state=None: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_, state=None: data,
}


def _storage_dtype(kind: Any) -> torch.dtype:
    name = kind.name if isinstance(kind, Placeholder) else type(kind).__name__
    if name not in _STORAGE_DTYPES:
        raise pickle.UnpicklingError(f"it holds a tensor of an unknown kind, {name}")
    return _STORAGE_DTYPES[name]


def _storage_key(pid: Any, length: int) -> str:
    """The name of a storage in a persistent id, which is a tuple ("storage", kind, name, device, count ...)."""
    if not (isinstance(pid, tuple) and len(pid) >= length and pid[0] == "storage" and isinstance(pid[2], str)):
        raise pickle.UnpicklingError("it refers to unknown data")
    return pid[2]


def _check_zip(archive: zipfile.ZipFile, size: int) -> None:
    """Compare every record of a zip file with its checksum, and its layout with what torch.save writes."""
    records = archive.infolist()
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise zipfile.BadZipFile("it is a TorchScript program, not a file of weights")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise zipfile.BadZipFile("its records are compressed, which torch.save never does")
    if any(record.external_attr & 0x10 for record in records):  # PyTorch would read nothing and keep quiet
        raise zipfile.BadZipFile("it marks data as a folder")
    if sum(record.file_size for record in records) > size:
        raise zipfile.BadZipFile("its records overlap")
    unchecked = all(record.CRC == 0 for record in records)  # under torch.serialization.set_crc32_options(False)
    for record in records:
        if unchecked:
            record.CRC = None  # zipfile would compare
            continue
        with archive.open(record) as file:
            while file.read(_CHUNK):  # zipfile compares at the end of the record
                pass


def _load_zip(path: Path, *, mmap: bool) -> Any:
    """The format of torch.save since version 1.6: a zip of `<name>/data.pkl` and one record per storage."""
    size = path.stat().st_size
    with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
        _check_zip(archive, size)
        names = archive.namelist()
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise zipfile.BadZipFile("it holds no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise zipfile.BadZipFile("it was written on a big-endian machine")
        whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if mmap else None
        storages: dict[str, Tensor] = {}

        def find_storage(pid: Any) -> Tensor:
            key = _storage_key(pid, 3)
            if key not in storages:
                record = archive.getinfo(f"{root}data/{key}")
                raw.seek(record.header_offset + 26)  # of the record's own header: lengths of its name and extra field
                start = record.header_offset + 30 + sum(struct.unpack("<2H", raw.read(4)))
                if not record.file_size:
                    storages[key] = torch.empty(0, dtype=torch.uint8)
                elif whole is not None and start % 16 == 0:  # torch.save aligns to 64 bytes, others may not
                    storages[key] = whole[start : start + record.file_size]
                else:
                    storages[key] = torch.from_numpy(np.fromfile(path, np.uint8, record.file_size, offset=start))
            return storages[key].view(_storage_dtype(pid[1]))

        data = io.BytesIO(archive.read(pickles[0]))
        return Reader(data, _TENSORS, size, find_storage).load()


def _load_legacy(path: Path) -> Any:
    """The format of torch.save before version 1.6: several pickles one after the other, then the storages' bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.peek(1)[:1] != pickle.PROTO:  # text, or a tar archive of PyTorch 0.1
            raise pickle.UnpicklingError("it was not written by torch.save")
        storages: dict[str, Tensor] = {}
        held = 0

        def find_storage(pid: Any) -> Tensor:
            nonlocal held
            key = _storage_key(pid, 6)
            if key not in storages:
                count, dtype = pid[4], _storage_dtype(pid[1])
                held += count * dtype.itemsize if type(count) is int and count >= 0 else size + 1
                if held > size:
                    raise pickle.UnpicklingError("it refers to more data than it holds")
                storages[key] = torch.empty(count, dtype=dtype)  # filled below: the bytes come after the pickles
            if pid[5] is None:
                return storages[key]
            _, offset, length = pid[5]
            return storages[key].narrow(0, offset, length)

        def read() -> Any:
            return Reader(file, _TENSORS, size, find_storage).load()

        if read() != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("it was not written by torch.save")
        read()  # protocol version
        system = read()
        if not (isinstance(system, dict) and system.get("little_endian") is True):
            raise pickle.UnpicklingError("it was written on a big-endian machine")
        value, keys = read(), read()
        if not (isinstance(keys, list) and all(isinstance(k, str) for k in keys) and sorted(keys) == sorted(storages)):
            raise pickle.UnpicklingError("its tensors and its data do not belong together")
        for key in keys:
            storage, header = storages[key], file.read(8)
            target = storage.view(torch.uint8).numpy() if len(storage) else np.empty(0, np.uint8)
            complete = len(header) == 8 and int.from_bytes(header, "little", signed=True) == len(storage)
            if not complete or file.readinto(memoryview(target)) != target.nbytes:
                raise pickle.UnpicklingError("it ends before its data do")
        return value
