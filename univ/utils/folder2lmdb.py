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
import collections
import contextlib
import itertools
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))  # univ, when it is not installed

from univ import cli, files, runs
from univ.data.folders import find_images
from univ.data.images import decode_pillow, read_image_file, why_not_decoded
from univ.data.lmdb import write_lmdb
from univ.errors import InputError

CHUNK = 32  # files a reader process fetches at a time
CHUNKS_AHEAD = 4  # per reader process: bounds what waits in memory when the disk written to is the slower one


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
