"""Pack an image folder into one LMDB file, which reads faster than a million small files and moves as one.

    python univ/utils/folder2lmdb.py -f data/imagenet/ILSVRC -s train
    python univ/utils/folder2lmdb.py -f data/imagenet/ILSVRC -s val -p 4 --verify

reads <folder>/<split>/<class>/*.{jpg,jpeg,png,...} and writes <folder>/<split>.lmdb with the files' own bytes, so
nothing is lost by re-encoding. Images are numbered as torchvision's ImageFolder numbers them: classes sorted by name,
then paths. The file appears under its name only when it is complete. At the end it prints, for ImageNet's val:

    50,000 images of 1000 classes (6.7 GB) in data/imagenet/ILSVRC/val.lmdb
"""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import itertools
import json
import os
import signal
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import lmdb
from tqdm import tqdm

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))  # univ, when it is not installed

from univ import cli, files, runs
from univ.data.images import EXTENSIONS, decode_pillow, read_image_file, why_not_decoded
from univ.errors import InputError

# --- the record format -----------------------------------------------------------------------------------------------
# Image i lies under the key str(i). Its record is a header and the image file's bytes; the header is, little-endian, a
# mark, the CRC-32 of everything after it, and the label. No pickle anywhere.

FORMAT = "univ-images"
VERSION = 1
MARK = b"IMG1"
HEADER = struct.Struct("<4sIq")
META_KEY = b"__meta__"  # JSON: format, version, length, classes
LABELS_KEY = b"__labels__"  # all labels once more, as int64, so that they are known without touching the images


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


def encode_labels(labels: Iterable[int]) -> bytes:
    """All labels with their CRC-32 before them, as stored under LABELS_KEY."""
    values = _little_endian(array.array("q", labels)).tobytes()
    return struct.pack("<I", zlib.crc32(values)) + values


def decode_labels(stored: bytes) -> array.array:
    """The labels of `encode_labels`, type code q.

    Raises:
        ValueError: the checksum shows that they are damaged.
    """
    values = stored[4:]
    if len(stored) < 4 or len(values) % 8 or struct.unpack_from("<I", stored)[0] != zlib.crc32(values):
        raise ValueError(f"the checksum of {LABELS_KEY.decode()} is wrong: the file is damaged")
    return _little_endian(array.array("q", values))


def _little_endian(values: array.array) -> array.array:
    if sys.byteorder == "big":
        values.byteswap()
    return values


def encode_meta(length: int, classes: Sequence[str]) -> bytes:
    """What the file says about itself, as stored under META_KEY."""
    meta = {"format": FORMAT, "version": VERSION, "length": length, "classes": list(classes)}
    return json.dumps(meta).encode()


def decode_meta(stored: bytes) -> dict[str, Any]:
    """The fields of `encode_meta`.

    Raises:
        ValueError: not the JSON of this format, or a version this program does not know.
    """
    meta = json.loads(stored)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"its {META_KEY.decode()} is not that of format {FORMAT!r}")
    if meta.get("version") != VERSION:
        raise ValueError(f"it has version {meta.get('version')} of the format, this program reads version {VERSION}")
    if type(meta.get("length")) is not int or meta["length"] < 0:
        raise ValueError(f"it states the length {meta.get('length')!r}")
    classes = meta.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"its {META_KEY.decode()} has no list of class names")
    return meta


# --- writing ---------------------------------------------------------------------------------------------------------

COMMIT_BYTES = 64 * 2**20  # records are committed in portions of this size
FIRST_MAP_BYTES = 2**30  # the memory map starts so and doubles as needed, rather than reserve a terabyte of addresses


class _Writer:
    """Puts records into a fresh LMDB environment, in portions, enlarging its map when it is full."""

    def __init__(self, path: Path) -> None:
        # no lock file and no fsync per portion: `write_lmdb` sees to both
        self._env = lmdb.open(str(path), subdir=False, lock=False, map_size=FIRST_MAP_BYTES, sync=False)
        self._pending: list[tuple[bytes, bytes]] = []
        self._pending_bytes = 0

    def put(self, name: bytes, value: bytes) -> None:
        self._pending.append((name, value))
        self._pending_bytes += len(value)
        if self._pending_bytes >= COMMIT_BYTES:
            self._commit()

    def _commit(self) -> None:
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for name, value in self._pending:
                        transaction.put(name, value)
                break
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._pending, self._pending_bytes = [], 0

    def finish(self) -> None:
        self._commit()

    def close(self) -> None:
        self._env.close()


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
    with files.locked(path), files.atomic_path(path) as temporary, contextlib.ExitStack() as stack:
        try:
            writer = stack.enter_context(contextlib.closing(_Writer(temporary)))
            for image, label in records:
                writer.put(key(len(labels)), encode(image, label))
                labels.append(label)
            writer.put(LABELS_KEY, encode_labels(labels))
            writer.put(META_KEY, encode_meta(len(labels), classes))
            writer.finish()
        except lmdb.Error as error:
            raise InputError(f"cannot write {path}: {str(error).rpartition(': ')[2]} (is the disk full?)") from error
    return len(labels)


# --- reading an image folder -----------------------------------------------------------------------------------------

CHUNK = 32  # files a reader process fetches at a time
CHUNKS_AHEAD = 4  # per reader process: bounds what waits in memory when the disk written to is the slower one


def find_images(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Class names, and (path, label) of every image, in the order of torchvision's ImageFolder.

    Raises:
        FileNotFoundError: no such folder, no class folders in it, or a class without images.
        InputError: a link leads to a folder that it lies in.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"{folder} holds no class folders: images belong in {folder}/<class>/")
    images: list[tuple[str, int]] = []
    empty = []
    for label, name in enumerate(classes):
        before = len(images)
        for parent, names in sorted(_walk(str(folder / name))):
            images += [
                (f"{parent}{os.sep}{file}", label) for file in sorted(names) if file.lower().endswith(EXTENSIONS)
            ]
        if len(images) == before:
            empty.append(name)
    if empty:
        listed = ", ".join(empty[:5]) + (" …" if len(empty) > 5 else "")
        raise FileNotFoundError(f"no images in {len(empty)} of the class folders of {folder}: {listed}")
    return classes, images


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder at and below `folder`, links followed, and the names of its files."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        for link in filter(Path.is_symlink, map(Path(parent).joinpath, folders)):
            if any(link.samefile(above) for above in link.parents):
                raise InputError(f"{link} is a link to a folder that it lies in: remove it")
        yield parent, names


def _damage(image: bytes) -> str | None:
    """Why an image does not decode; None if it does."""
    try:
        decode_pillow(image)
    except Exception as error:
        return why_not_decoded(error)
    return None


def _read(paths: Sequence[str], verify: bool) -> list[tuple[bytes, str | None]]:
    """Each file's bytes, and with `verify` why it does not decode."""
    contents = [read_image_file(Path(path)) for path in paths]
    return [(content, _damage(content) if verify else None) for content in contents]


def _start_reader() -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which stops its readers; end when it is killed."""
    runs.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def read_images(paths: Sequence[str], *, procs: int, verify: bool) -> Iterator[tuple[bytes, str | None]]:
    """Yield each file's bytes (and damage, see `_read`) in order, read ahead by `procs` processes (0: by this one)."""
    chunks = (paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK))
    if procs == 0:
        for chunk in chunks:
            yield from _read(chunk, verify)
        return
    executor = ProcessPoolExecutor(procs, initializer=_start_reader)
    try:
        waiting = collections.deque(
            executor.submit(_read, chunk, verify) for chunk in itertools.islice(chunks, CHUNKS_AHEAD * procs)
        )
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(executor.submit(_read, chunk, verify) for chunk in itertools.islice(chunks, 1))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def convert(folder: Path, path: Path, *, procs: int = 0, verify: bool = False, quiet: bool = False) -> str:
    """Pack the class folders in `folder` into an LMDB file at `path`.

    Returns:
        One line that says what was written.

    Raises:
        FileNotFoundError: no such folder, or a class without images.
        InputError: images that do not decode (with `verify`; all are named, nothing is written), or a file that cannot
            be read or written.
    """
    classes, images = find_images(folder)
    damaged: list[str] = []

    def records() -> Iterator[tuple[bytes, int]]:
        contents = read_images([name for name, _ in images], procs=procs, verify=verify)
        with tqdm(total=len(images), desc=path.name, unit="image", disable=quiet) as bar:
            for (name, label), (content, damage) in zip(images, contents, strict=True):
                if damage is not None:
                    damaged.append(f"{name}: {damage}")
                elif not damaged:  # after the first damaged image the rest is only looked at
                    yield content, label
                bar.update()
        if damaged:
            raise InputError(f"{len(damaged)} of {len(images)} images do not decode:\n  " + "\n  ".join(damaged))

    try:
        with contextlib.closing(records()) as pairs:  # stops the readers also when the writing fails
            count = write_lmdb(path, pairs, classes)
    except BrokenProcessPool as error:
        raise InputError(f"a reader process (-p) was killed: {error}") from error
    return f"{count:,} images of {len(classes)} classes ({path.stat().st_size / 1e9:.1f} GB) in {path}"


# --- the command -----------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        "-f", "--folder", type=cli.folder, required=True, help="folder that holds <split>/<class>/ images"
    )
    parser.add_argument("-s", "--split", default="train", help="sub-folder to pack")
    parser.add_argument(
        "--out", type=cli.output_dir, help="folder to write <split>.lmdb to (default: the folder of -f)"
    )
    parser.add_argument("-p", "--procs", type=cli.processes, default=0, help="reader processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing <split>.lmdb")
    parser.add_argument("--verify", action="store_true", help="decode every image; name those that do not and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    path = (args.out or args.folder) / files.file_name(f"{args.split}.lmdb", "--split")
    if path.exists() and not args.overwrite:
        files.remove_orphans(path)  # the lock of a run that was killed when all was done but that
        raise InputError(f"{path} exists already: --overwrite replaces it, --out writes elsewhere")
    print(convert(args.folder / args.split, path, procs=args.procs, verify=args.verify, quiet=args.quiet))


if __name__ == "__main__":
    cli.run(main)
