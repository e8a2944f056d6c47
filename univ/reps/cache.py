"""Representations and logits on disk: one safetensors file per setting, a tensor per model, memory-mapped on reading.

`reps__<dataset>_<eps>_i<inv>` and `output__<dataset>_<eps>_i<inv>` hold the tensors of one (data set, radius, input)
setting, keyed by model (`<source>/<model>` on inverted images). The metadata say for every tensor which images, which
node and which weights it came from, so that a stale or foreign one is never compared, and its checksum, so that a
damaged one is not either.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from univ import files
from univ.files import schemas
from univ.files.tensors import TensorFile, checksum, checksum_of, write_tensors
from univ.reps.extract import Extraction
from univ.reps.identity import Identity


def _as_text(identity: Identity) -> str:
    return json.dumps(asdict(identity), sort_keys=True)


class RepCache:
    """The two files of one setting.

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
        extraction = self.get(key, identity)
        if extraction is None:
            extraction = extract()
            self.put(key, identity, extraction)
        return extraction

    def put(self, key: str, identity: Identity, extraction: Extraction) -> None:
        tensors = {"reps": extraction.reps, "logits": extraction.logits}
        metadata = {"key": key, "identity": _as_text(identity)}
        metadata |= {checksum_of(name): checksum(tensor) for name, tensor in tensors.items()}
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
                tensors, metadata = {}, {}
                if path.exists():
                    old = TensorFile(path)
                    tensors, metadata = {key: old[key] for key in old.names}, dict(old.metadata)
                for part in parts:
                    key = part.about("key")
                    tensors[key] = part[name]
                    metadata[key] = part.about("identity")
                    if (known := part.metadata.get(checksum_of(name))) is not None:  # never that of a damaged tensor
                        metadata[checksum_of(key)] = known
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
    identities = {key: schemas.parse_json(file.about(key), Identity, f"{file.path}, {key!r},") for key in file.names}
    return Cached({key: file[key] for key in file.names}, identities)
