"""Representations and logits on disk: one safetensors file per setting, a tensor per model, memory-mapped on reading.

`reps__<dataset>_<eps>_i<inv>` and `output__<dataset>_<eps>_i<inv>` hold the tensors of one (data set, radius, input)
setting, keyed by model (`<source>/<model>` on inverted images). The metadata say for every tensor which images, which
node and which weights it came from, so that a stale or foreign one is never compared.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from univ import files, schemas
from univ.activations import Extraction
from univ.errors import InputError

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Inputs:
    """Which images, in which order and how prepared: equal for two representations that may be compared."""

    dataset: str
    fingerprint: str
    transform: str
    indices: str
    n: int

    def require_same(self, other: "Inputs", what: str) -> None:
        """Refuse a comparison between different inputs.

        Raises:
            InputError: names the fields in which the two differ.
        """
        mine, theirs = asdict(self), asdict(other)
        differing = [f"{key} ({mine[key]} and {theirs[key]})" for key in mine if mine[key] != theirs[key]]
        if differing:
            raise InputError(f"{what} were not made from the same inputs: they differ in {', '.join(differing)}")


@dataclass(frozen=True)
class Identity:
    """Where a cached tensor comes from: the inputs, the architecture's node, the weights and the arithmetic."""

    inputs: Inputs
    arch: str
    node: str
    checkpoint: str
    precision: str = "fp32"


def hash_indices(indices: Tensor) -> str:
    """A short hash of an index vector, sensitive to order."""
    return hashlib.sha256(np.ascontiguousarray(indices.numpy(), dtype="<i8").tobytes()).hexdigest()[:16]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically and in constant memory, also when the tensors are memory-mapped themselves.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    # safetensors reads metadata in any order: sorted, the same content is the same bytes
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data to 8 bytes
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            for start in range(0, len(flat), _CHUNK_BYTES):
                file.write(flat[start : start + _CHUNK_BYTES].numpy().data)


class TensorFile:
    """A safetensors file opened for reading; tensors are views of the file until they are changed.

    Raises:
        InputError: the file is damaged or foreign.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            self.metadata: dict[str, str] = self._file.metadata() or {}
            self.names: list[str] = list(self._file.keys())
        except SafetensorError as error:
            raise InputError(f"{path} is not a cache of ours or is damaged ({error}): delete it") from error

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._file.get_tensor(name)
        except SafetensorError as error:
            raise InputError(f"{self.path} holds no tensor {name!r} ({error}): delete it") from error

    def about(self, name: str) -> str:
        """The metadata's entry `name`.

        Raises:
            InputError: there is none.
        """
        if name not in self.metadata:
            raise InputError(f"{self.path} does not say where {name!r} comes from: delete it")
        return self.metadata[name]


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
        wanted = json.dumps(asdict(identity), sort_keys=True)
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

    def put(self, key: str, identity: Identity, extraction: Extraction) -> None:
        """Store one model's extraction."""
        metadata = {"key": key, "identity": json.dumps(asdict(identity), sort_keys=True)}
        with files.locked(self.reps_path, wait=True):
            write_tensors(self._part(key), {"reps": extraction.reps, "logits": extraction.logits}, metadata)

    def finish(self) -> None:
        """Put the single files together; tensors of other models already in the cache are kept."""
        with files.locked(self.reps_path, wait=True):
            parts = [TensorFile(path) for path in sorted(self._parts.glob("*.safetensors"))]
            if not parts:
                return
            for path, name in ((self.reps_path, "reps"), (self.output_path, "logits")):
                old = TensorFile(path) if path.exists() else None
                tensors = {key: old[key] for key in old.names} if old is not None else {}
                metadata = dict(old.metadata) if old is not None else {}
                for part in parts:
                    tensors[part.about("key")] = part[name]
                    metadata[part.about("key")] = part.about("identity")
                write_tensors(path, tensors, metadata)
            shutil.rmtree(self._parts)


@dataclass(frozen=True)
class Cached:
    """What a cache file holds, by key: the tensors (memory-mapped) and the inputs they were made from."""

    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, Inputs]


def read_cache(folder: Path, kind: str, dataset: str, eps: str, *, inverted: bool = False) -> Cached:
    """Open `reps__…` or `output__…` of a setting.

    Args:
        kind: "reps" or "output".

    Raises:
        FileNotFoundError: there is no such cache (the message says which command writes it).
    """
    path = folder / f"{kind}__{dataset}_{eps}_i{int(inverted)}"
    if not path.is_file():
        raise FileNotFoundError(
            f"no cache {path}: make it with  python rep.py -d {dataset} -m <models> -o {eps} "
            f"-i {int(inverted)} --cache-dir {folder} --no-comparisons"
        )
    file = TensorFile(path)
    inputs = {}
    for key in file.names:
        made = schemas.parse_json(file.about(key), schemas.CacheIdentity, f"{path}, {key!r},")
        inputs[key] = Inputs(**dict(made.inputs))
    return Cached({key: file[key] for key in file.names}, inputs)
