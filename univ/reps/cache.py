"""Representations and logits on disk: one safetensors file per setting, a tensor per model, memory-mapped on reading.

`reps__<dataset>_<eps>_i<inv>` and `output__<dataset>_<eps>_i<inv>` hold the tensors of one (data set, radius, input)
setting, keyed by model (`<source>/<model>` on inverted images). The metadata say for every tensor which images, which
node and which weights it came from, so that a stale or foreign one is never compared, and its checksum, so that a
damaged one is not either.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from univ import files
from univ.errors import InputError
from univ.files import schemas
from univ.reps.extract import Extraction
from univ.reps.identity import Identity

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_CHUNK_BYTES = 64 << 20
_verified: set[tuple[Any, ...]] = set()  # tensors whose checksum this process has compared


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
    """Write a safetensors file atomically and in constant memory, also when the tensors are memory-mapped themselves.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
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
        InputError: the file is damaged or foreign.
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
        """The tensor; its checksum is compared when a process reads it for the first time.

        Raises:
            InputError: there is none of this name, or it is damaged.
        """
        try:
            tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise InputError(f"{self.path} holds no tensor {name!r} ({error}): delete it") from error
        recorded = self.metadata.get(_checksum_of(name))
        if recorded is not None and (*self._file_state, name) not in _verified:
            if checksum(tensor) != recorded:
                raise InputError(f"{self.path} is damaged: {name!r} does not fit its checksum: delete it")
            _verified.add((*self._file_state, name))
        return tensor

    def about(self, name: str) -> str:
        """The metadata's entry `name`.

        Raises:
            InputError: there is none.
        """
        if name not in self.metadata:
            raise InputError(f"{self.path} does not say where {name!r} comes from: delete it")
        return self.metadata[name]

    def identity(self, name: str) -> Identity:
        """What a tensor was made from.

        Raises:
            InputError: the file does not say.
        """
        return schemas.parse_json(self.about(name), Identity, f"{self.path}, {name!r},")


def _as_text(identity: Identity) -> str:
    return json.dumps(asdict(identity), sort_keys=True)


def _checksum_of(name: str) -> str:
    """The entry of the metadata that holds a tensor's checksum."""
    return f"checksum of {name}"


class RepCache:
    """Representations and logits of one setting on disk.

    `put` writes one model's result at once, so a killed run continues with the next model; `finish` puts the single
    files together into `reps__…` and `output__…`. Several processes may work on the same cache.
    """

    def __init__(self, folder: Path, dataset: str, eps: str, inverted: bool) -> None:
        setting = files.file_name(f"{dataset}_{eps}_i{int(inverted)}", "cache")
        self.reps_path = folder / f"reps__{setting}"
        self.output_path = folder / f"output__{setting}"
        self._parts = folder / f".parts__{setting}"
        folder.mkdir(parents=True, exist_ok=True)

    def _part(self, key: str) -> Path:
        return self._parts / files.file_name(f"{key.replace('/', '--')}.safetensors", "model")

    def get(self, key: str, identity: Identity) -> Extraction | None:
        """The extraction stored under `key`, if it was made from exactly this identity."""
        wanted = _as_text(identity)
        with files.locked(self.reps_path, wait=True):
            part = self._part(key)
            if part.exists():
                file = TensorFile(part)
                if file.metadata.get("identity") == wanted:
                    return Extraction(file["reps"], file["logits"])
            if self.reps_path.exists() and self.output_path.exists():
                reps, output = TensorFile(self.reps_path), TensorFile(self.output_path)
                if key in reps and key in output and reps.metadata.get(key) == output.metadata.get(key) == wanted:
                    return Extraction(reps[key], output[key])
        return None

    def fetch(self, key: str, identity: Identity, extract: Callable[[], Extraction]) -> Extraction:
        """The extraction stored under `key`; made and stored where there is none of this identity."""
        found = self.get(key, identity)
        if found is None:
            found = extract()
            self.put(key, identity, found)
        return found

    def put(self, key: str, identity: Identity, extraction: Extraction) -> None:
        """Store one model's extraction."""
        tensors = {"reps": extraction.reps, "logits": extraction.logits}
        metadata = {"key": key, "identity": _as_text(identity)}
        metadata |= {_checksum_of(name): checksum(tensor) for name, tensor in tensors.items()}
        with files.locked(self.reps_path, wait=True):
            write_tensors(self._part(key), tensors, metadata)

    def finish(self) -> None:
        """Put the single files together, if there are any; tensors of other models already in the cache are kept."""
        if not self._parts.is_dir():
            return
        with files.locked(self.reps_path, wait=True):
            parts = [TensorFile(path) for path in sorted(self._parts.glob("*.safetensors"))]
            if not parts:
                return
            for path, name in ((self.reps_path, "reps"), (self.output_path, "logits")):
                old = TensorFile(path) if path.exists() else None
                tensors = {key: old[key] for key in old.names} if old is not None else {}
                metadata = dict(old.metadata) if old is not None else {}
                for part in parts:
                    key = part.about("key")
                    tensors[key] = part[name]
                    metadata[key] = part.about("identity")
                    if (known := part.metadata.get(_checksum_of(name))) is not None:  # never that of a damaged tensor
                        metadata[_checksum_of(key)] = known
                write_tensors(path, tensors, metadata)
            shutil.rmtree(self._parts)


@dataclass(frozen=True)
class Cached:
    """What a cache file holds, by key: the tensors (memory-mapped) and what they were made from."""

    tensors: Mapping[str, Tensor]
    identities: Mapping[str, Identity]


def read_cache(folder: Path, which: str, dataset: str, eps: str, *, inverted: bool = False) -> Cached:
    """Open `reps__…` or `output__…` of a setting.

    Args:
        which: "reps" or "output".

    Raises:
        FileNotFoundError: there is no such cache (the message says which command writes it).
    """
    RepCache(folder, dataset, eps, inverted).finish()
    path = folder / f"{which}__{dataset}_{eps}_i{int(inverted)}"
    if not path.is_file():
        raise FileNotFoundError(
            f"no cache {path}: make it with  python rep.py -d {dataset} -m <models> -o {eps} "
            f"-i {int(inverted)} --cache-dir {folder} --no-comparisons"
        )
    file = TensorFile(path)
    return Cached({key: file[key] for key in file.names}, {key: file.identity(key) for key in file.names})
