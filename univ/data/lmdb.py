"""Images in one LMDB file: what folder2lmdb writes, and the older files whose records are pickles.

Older records are rebuilt by an allow-listed reader; nothing in a file is executed. Opening reads a few hundred bytes,
whatever the number of images.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lmdb
import numpy as np
import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from univ.data.images import EncodedImages
from univ.errors import InputError
from univ.files.unpickle import unpickle_allowed
from univ.utils import folder2lmdb

LEGACY_LENGTH_KEY = b"__len__"
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
        found = self.path.stat()
        self.require_unreplaced()
        try:
            handle = lmdb.open(str(self.path), subdir=False, readonly=True, lock=False, readahead=False, create=False)
        except (lmdb.Error, OSError) as error:
            raise InputError(f"{self.path} is not a readable LMDB file: {error}") from error
        # pages past the end of the file would end the process (SIGBUS) when they are touched
        needed = (handle.info()["last_pgno"] + 1) * handle.stat()["psize"]
        if found.st_size < needed:
            handle.close()
            raise InputError(f"{self.path} is truncated: it has {found.st_size:,} bytes and should have {needed:,}")
        self._handle, self._process, self._file = handle, os.getpid(), found
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

    def entries(self) -> int:
        """Number of keys."""
        return self.handle().stat()["entries"]

    def close(self) -> None:
        """Close the file if this process opened it."""
        if self._handle is not None and self._process == os.getpid():
            self._handle.close()
        self._handle = None

    __del__ = close


class ImageFolderLMDB(EncodedImages):
    """Images and labels from an LMDB file in folder2lmdb's format or the older, pickled one; it tells them apart.

    Can be handed to worker processes, forked or spawned: each opens the file for itself.

    Args:
        path: the file, or a folder that holds `data.mdb`.
        transform: RGB image -> uint8 (3, H, W); None gives out Pillow images.
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
        meta = self._environment.get(folder2lmdb.META_KEY)
        self.is_legacy = meta is None
        self.classes: list[str] | None = None  # class names by label; older files do not say
        if meta is None:
            self._length = self._legacy_length()
        else:
            try:
                fields = folder2lmdb.decode_meta(meta)
            except ValueError as error:
                raise InputError(f"{self.path} is not a file of images: {error}") from error
            self._length, self.classes = fields["length"], fields["classes"]
        special = 0 if self.is_legacy else 2  # older files may lack __keys__, or hold more besides
        entries = self._environment.entries() - special
        if entries < self._length or (not self.is_legacy and entries > self._length):
            raise InputError(f"{self.path} is damaged: it states {self._length:,} images and holds {entries:,} records")
        if self._length == 0:
            raise InputError(f"{self.path} holds no images")
        if labels is not None and labels.shape != (self._length,):
            raise InputError(f"{len(labels):,} labels for the {self._length:,} images of {self.path}")

    def _legacy_length(self) -> int:
        stored = self._environment.get(LEGACY_LENGTH_KEY)
        if stored is None:
            raise InputError(
                f"{self.path} is not a file of images: it has neither "
                f"{folder2lmdb.META_KEY.decode()} nor {LEGACY_LENGTH_KEY.decode()} (folder2lmdb.py makes one)"
            )
        length = unpickle_allowed(stored, what=f"{self.path}, {LEGACY_LENGTH_KEY.decode()}")
        if not isinstance(length, int | np.integer) or isinstance(length, bool) or length < 0:
            raise InputError(f"{self.path}, {LEGACY_LENGTH_KEY.decode()}: {length!r} is no number of images")
        return int(length)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_environment"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._environment = _Environment.of(self.path)

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
        stored = self._environment.get(folder2lmdb.key(index))
        if stored is None:
            raise InputError(f"{self.location(index)} is missing")
        if self.is_legacy:
            image, label = _decode_legacy(stored, self.location(index))
        else:
            try:
                image, label = folder2lmdb.decode(stored)
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
        stored = self._environment.get(folder2lmdb.LABELS_KEY)
        if stored is None:
            raise InputError(f"{self.path} is damaged: {folder2lmdb.LABELS_KEY.decode()} is missing")
        try:
            labels = torch.from_numpy(np.array(folder2lmdb.decode_labels(stored), dtype=np.int64))
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
