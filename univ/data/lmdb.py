"""Images in one LMDB file: the record format, its writer and its reader, who also reads the original's pickles.

Image i lies under the key str(i). Its record is a header and the image file's bytes; the header is, little-endian, a
mark, the CRC-32 of everything after it, and the label. The original's records are rebuilt by an allow-listed reader:
nothing in a file is executed. Opening reads a few hundred bytes, whatever the number of images.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import struct
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import lmdb
import numpy as np
import torch
from loguru import logger
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from univ import files
from univ.data.images import EncodedImages
from univ.errors import InputError
from univ.files import schemas
from univ.files.unpickle import unpickle_allowed

# --- the record format ----------------------------------------------------------------------------------------------

FORMAT, VERSION = "univ-images", 1
MARK = b"IMG1"
HEADER = struct.Struct("<4sIq")
META_KEY = b"__meta__"  # JSON: format, version, length, classes
LABELS_KEY = b"__labels__"  # all labels once more, as int64, so that they are known without touching the images
LEGACY_LENGTH_KEY = b"__len__"  # of the original's files


def key(index: int) -> bytes:
    """The key of image `index`."""
    return str(index).encode("ascii")


def encode(image: bytes, label: int) -> bytes:
    """The record of an image file's bytes and its label (0 <= label < 2^63)."""
    if not 0 <= label < 2**63:
        raise ValueError(f"a label is an integer from 0 to 2^63 - 1, got {label}")
    labelled = struct.pack("<q", label) + image
    return HEADER.pack(MARK, zlib.crc32(labelled), label) + image


def decode(record: bytes | memoryview) -> tuple[bytes, int]:
    """The image file's bytes and the label of a record.

    Raises:
        ValueError: no such record, or one whose checksum shows that it is damaged.
    """
    if len(record) < HEADER.size or bytes(record[: len(MARK)]) != MARK:
        raise ValueError("it does not begin like a record of this format")
    _, checksum, label = HEADER.unpack_from(record)
    if zlib.crc32(record[HEADER.size - 8 :]) != checksum:
        raise ValueError("its checksum is wrong: the file is damaged")
    return bytes(record[HEADER.size :]), label


def encode_labels(labels: Sequence[int]) -> bytes:
    """All labels with their CRC-32 before them, as stored under LABELS_KEY."""
    values = np.asarray(labels, dtype="<i8").tobytes()
    return struct.pack("<I", zlib.crc32(values)) + values


def decode_labels(stored: bytes) -> np.ndarray:
    """The labels of `encode_labels`, (N,) int64.

    Raises:
        ValueError: the checksum shows that they are damaged.
    """
    values = stored[4:]
    if len(stored) < 4 or len(values) % 8 or struct.unpack_from("<I", stored)[0] != zlib.crc32(values):
        raise ValueError(f"the checksum of {LABELS_KEY.decode()} is wrong: the file is damaged")
    return np.frombuffer(values, dtype="<i8").astype(np.int64)


class Meta(schemas.Schema):
    """What the file says about itself, as JSON under META_KEY."""

    format: Literal["univ-images"]
    version: Literal[1]
    length: Annotated[int, Field(ge=0)]
    classes: list[str]


def encode_meta(length: int, classes: Sequence[str]) -> bytes:
    """The stored form of `Meta`."""
    return json.dumps({"format": FORMAT, "version": VERSION, "length": length, "classes": list(classes)}).encode()


# --- writing --------------------------------------------------------------------------------------------------------

COMMIT_BYTES = 64 * 2**20  # records are committed in portions of this size
FIRST_MAP_BYTES = 2**30  # the memory map starts so and doubles as needed, rather than reserve a terabyte of addresses

Entry = tuple[bytes, bytes]  # key, value


def write_lmdb(path: Path, records: Iterable[tuple[bytes, int]], classes: Sequence[str]) -> int:
    """Write (image file's bytes, label) pairs to a new LMDB file at `path`, which is replaced if it exists.

    The file appears, or changes, only when all records are written and on the disk: whatever interrupts the writing,
    an exception raised by `records` included, leaves nothing behind.

    Returns:
        The number of records.

    Raises:
        InputError: another process is writing the same file, or it cannot be written.
    """
    labels = array.array("q")

    def entries() -> Iterator[Entry]:
        for image, label in records:
            yield key(len(labels)), encode(image, label)
            labels.append(label)
        yield LABELS_KEY, encode_labels(labels)
        yield META_KEY, encode_meta(len(labels), classes)

    with files.locked(path), files.atomic_path(path) as temporary:
        try:
            # no lock file and no fsync per portion: the line above sees to both
            environment = lmdb.open(str(temporary), subdir=False, lock=False, map_size=FIRST_MAP_BYTES, sync=False)
            with contextlib.closing(environment):
                for portion in _portions(entries()):
                    _commit(environment, portion)
        except lmdb.Error as error:
            raise InputError(f"cannot write {path}: {str(error).rpartition(': ')[2]} (is the disk full?)") from error
    return len(labels)


def _portions(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    portion, size = [], 0
    for entry in entries:
        portion.append(entry)
        size += len(entry[1])
        if size >= COMMIT_BYTES:
            yield portion
            portion, size = [], 0
    yield portion


def _commit(environment: lmdb.Environment, portion: list[Entry]) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for name, value in portion:
                    transaction.put(name, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


# --- reading --------------------------------------------------------------------------------------------------------

SLOW_LABELS = 20_000  # from so many records on, reading them all for their labels is worth a line in the log


class _Environment:
    """An LMDB file opened for reading, once per process however many data sets use it, and anew after a fork.

    liblmdb allows a file to be open only once in a process, and its handles do not survive a fork.
    """

    _open: ClassVar[weakref.WeakValueDictionary[Path, _Environment]] = weakref.WeakValueDictionary()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: lmdb.Environment | None = None
        self._process = -1
        self._file: os.stat_result | None = None

    @classmethod
    def of(cls, path: Path) -> _Environment:
        """The environment of a file, shared by all who ask for it in this process."""
        path = path.resolve()
        environment = cls._open.get(path)
        if environment is None:
            cls._open[path] = environment = cls(path)
        return environment

    def handle(self) -> lmdb.Environment:
        """The open file.

        Raises:
            FileNotFoundError: no such file.
            InputError: it is no LMDB file, is truncated, or was replaced since it was opened.
        """
        if self._handle is not None and self._process == os.getpid():
            return self._handle
        if self._handle is not None:  # inherited through a fork: without locks, closing it concerns this process alone
            self._handle.close()
            self._handle = None
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no LMDB file {self.path}")
        status = self.path.stat()
        self.require_unreplaced()
        try:
            handle = lmdb.open(str(self.path), subdir=False, readonly=True, lock=False, readahead=False, create=False)
        except (lmdb.Error, OSError) as error:
            raise InputError(f"{self.path} is not a readable LMDB file: {error}") from error
        # pages past the end of the file would end the process (SIGBUS) when they are touched
        needed = (handle.info()["last_pgno"] + 1) * handle.stat()["psize"]
        if status.st_size < needed:
            handle.close()
            raise InputError(f"{self.path} is truncated: it has {status.st_size:,} bytes and should have {needed:,}")
        self._handle, self._process, self._file = handle, os.getpid(), status
        return handle

    def require_unreplaced(self) -> None:
        """Refuse to speak of a file when another one has come into its place since it was opened.

        Raises:
            InputError: so it is.
        """
        if self._file is not None and not os.path.samestat(self.path.stat(), self._file):
            raise InputError(f"{self.path} was replaced while it was in use: start again")

    def get(self, key: bytes) -> bytes | None:
        """The value under a key; None if there is none.

        Raises:
            InputError: the file is damaged.
        """
        try:
            with self.handle().begin() as transaction:
                return transaction.get(key)
        except lmdb.Error as error:
            raise InputError(f"{self.path}, key {key.decode('ascii', 'replace')!r}: {error}") from error

    def __reduce__(self) -> tuple:
        return _Environment.of, (self.path,)  # a process opens the file for itself

    def __del__(self) -> None:
        if self._handle is not None and self._process == os.getpid():
            self._handle.close()


class ImageFolderLMDB(EncodedImages):
    """Images and labels from an LMDB file in folder2lmdb's format or the older, pickled one; it tells them apart.

    Can be handed to worker processes, forked or spawned: each opens the file for itself.

    Args:
        path: the file, or a folder that holds `data.mdb`.
        transform: RGB image -> uint8 (3, H, W); None is for who wants `record` and `labels` only.
        augment, fast: see `EncodedImages`.
        labels: (N,) to give out instead of the stored ones; for older files also much faster than those.
        name: data set and part, for the fingerprint; by default the file's name without suffix.

    Raises:
        FileNotFoundError: no such file.
        InputError: not an LMDB file, a truncated one, or one of another kind; or not as many labels as images.
    """

    def __init__(
        self,
        path: Path | str,
        transform: Callable | None = None,
        *,
        augment: Callable | None = None,
        labels: Tensor | None = None,
        name: str | None = None,
        fast: bool = False,
    ) -> None:
        path = Path(path)
        self.path = path / "data.mdb" if path.is_dir() else path
        super().__init__(name or path.stem, transform, augment, fast=fast)
        self._environment = _Environment.of(self.path)
        self._labels = labels
        self._labels_are_given = labels is not None
        stored = self._environment.get(META_KEY)
        records = self._environment.handle().stat()["entries"]
        self.is_legacy = stored is None
        self.classes: list[str] | None = None  # class names by label; older files do not say
        if stored is None:
            self._length = self._legacy_length()
            complete = records >= self._length  # there may be __keys__, and more besides
        else:
            meta = schemas.parse_json(stored, Meta, f"{self.path}, {META_KEY.decode()},")
            self._length, self.classes = meta.length, meta.classes
            records -= 2  # META_KEY, LABELS_KEY
            complete = records == self._length
        if not complete:
            raise InputError(f"{self.path} is damaged: it states {self._length:,} images and holds {records:,} records")
        if self._length == 0:
            raise InputError(f"{self.path} holds no images")
        if labels is not None and labels.shape != (self._length,):
            raise InputError(f"{len(labels):,} labels for the {self._length:,} images of {self.path}")

    def _legacy_length(self) -> int:
        stored = self._environment.get(LEGACY_LENGTH_KEY)
        if stored is None:
            raise InputError(
                f"{self.path} is not a file of images: it has neither "
                f"{META_KEY.decode()} nor {LEGACY_LENGTH_KEY.decode()} (folder2lmdb.py makes one)"
            )
        length = unpickle_allowed(stored, what=f"{self.path}, {LEGACY_LENGTH_KEY.decode()}")
        if not isinstance(length, int | np.integer) or isinstance(length, bool) or length < 0:
            raise InputError(f"{self.path}, {LEGACY_LENGTH_KEY.decode()}: {length!r} is no number of images")
        return int(length)

    def __len__(self) -> int:
        return self._length

    def stored_in(self) -> Sequence[Path]:
        """The one file.

        Raises:
            InputError: it was replaced since it was opened.
        """
        self._environment.require_unreplaced()
        return [self.path]

    def labels_apart(self) -> Tensor | None:
        """The labels given in place of the stored ones."""
        return self._labels if self._labels_are_given else None

    def labels_together(self) -> Tensor | None:
        """The labels, where the file holds them beside each image and once more together."""
        return None if self.is_legacy or self._labels_are_given else self.labels

    def location(self, index: int) -> str:
        """File and record, for messages."""
        return f"{self.path}, record {index}"

    def record(self, index: int) -> tuple[bytes, int]:
        """The stored image file's bytes and the label of image `index`, 0 <= index < N.

        Raises:
            InputError: the record is missing or damaged; names file and record.
        """
        stored = self._environment.get(key(index))
        if stored is None:
            raise InputError(f"{self.location(index)} is missing")
        if self.is_legacy:
            image, label = _decode_legacy(stored, self.location(index))
        else:
            try:
                image, label = decode(stored)
            except ValueError as error:
                raise InputError(f"{self.location(index)}: {error}") from error
        return image, int(self._labels[index]) if self._labels_are_given else label

    @property
    def labels(self) -> Tensor:
        """(N,) int64. An older file is read from end to end for them, once; labels from a file avoid it.

        Raises:
            InputError: the labels, or a record, are missing or damaged.
        """
        if self._labels is None:
            self._labels = self._scanned_labels() if self.is_legacy else self._stored_labels()
        return self._labels

    def _stored_labels(self) -> Tensor:
        stored = self._environment.get(LABELS_KEY)
        if stored is None:
            raise InputError(f"{self.path} is damaged: {LABELS_KEY.decode()} is missing")
        try:
            labels = torch.from_numpy(decode_labels(stored))
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from error
        if len(labels) != len(self):
            raise InputError(f"{self.path} is damaged: it holds {len(labels):,} labels for {len(self):,} images")
        return labels

    def _scanned_labels(self) -> Tensor:
        slow = len(self) >= SLOW_LABELS
        if slow:
            logger.info("reading all {:,} records of {} for their labels", len(self), self.path)
        indices = tqdm(range(len(self)), desc="labels", unit="record", disable=not slow)
        return torch.tensor([self.record(index)[1] for index in indices], dtype=torch.int64)


def _decode_legacy(stored: bytes, where: str) -> tuple[bytes, int]:
    """An older record: a pickled pair of a one-element list with the image file's bytes, and an integer array."""
    value = unpickle_allowed(stored, what=where)
    match value:
        case ([bytes() as image], label) if np.size(label) == 1 and np.issubdtype(np.asarray(label).dtype, np.integer):
            return image, int(np.asarray(label).reshape(()))
    raise InputError(f"{where} is no pair of an image's bytes and a label")
