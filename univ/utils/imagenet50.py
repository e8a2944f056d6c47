"""Make ImageNet-50, the study's subset of 50 classes, from an ImageNet-100 LMDB file.

    python univ/utils/imagenet50.py -f data/imagenet/imagenet100 -s train --out data/imagenet50
    python univ/utils/imagenet50.py -f data/imagenet/imagenet100 -s val --out data/imagenet50

reads <folder>/<split>.lmdb (of either format) and writes to the --out folder

    <split>.lmdb                                         the images of the 50 classes, in their order
    <split>_labels.csv                                   their labels, 0 to 49
    <split>_imagenet100_to_imagenet50_labelmap.json      ImageNet-100 label -> ImageNet-50 label

The classes are drawn with a fixed seed, so they are the published ones; they are numbered in order of appearance.
"""

import argparse
import contextlib
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))  # univ, when it is not installed

from univ import cli, files, runs
from univ.data.indices import write_labels
from univ.data.lmdb import ImageFolderLMDB, write_lmdb
from univ.errors import InputError
from univ.files import schemas

SEED = 34786567  # the study's
NUM_CLASSES, NUM_CHOSEN = 100, 50


def chosen_classes() -> list[int]:
    """The 50 ImageNet-100 labels that make up ImageNet-50, ascending."""
    return sorted(random.Random(SEED).sample(range(NUM_CLASSES), NUM_CHOSEN))


def label_map_path(folder: Path, split: str) -> Path:
    """Where the JSON lies that tells how the labels were renumbered."""
    return folder / f"{split}_imagenet100_to_imagenet50_labelmap.json"


def make_subset(
    source: ImageFolderLMDB, folder: Path, split: str, *, quiet: bool = False
) -> tuple[int, dict[int, int]]:
    """Write the images of the chosen classes and their labels; see the top of this file.

    Returns:
        The number of images, and the map ImageNet-100 label -> ImageNet-50 label.

    Raises:
        InputError: the source does not hold exactly the 100 classes, or a part made earlier numbers them otherwise.
    """
    if source.classes is not None and len(source.classes) != NUM_CLASSES:
        raise InputError(f"{source.path} has {len(source.classes)} classes, ImageNet-100 has {NUM_CLASSES}")
    chosen = chosen_classes()
    label_map: dict[int, int] = {}
    labels: list[int] = []
    names: list[str] = []  # by new label; filled while the images are written, written after them

    def records() -> Iterator[tuple[bytes, int]]:
        seen = set()
        # our format tells the labels beforehand, so that only half of the images are read; an older file must be read
        known = None if source.is_legacy else source.labels.tolist()
        for index in tqdm(range(len(source)), desc=f"{split}.lmdb", unit="image", disable=quiet):
            if known is not None and known[index] not in chosen:
                seen.add(known[index])
                continue
            image, label = source.record(index)
            seen.add(label)
            if label in chosen:
                if label not in label_map:
                    label_map[label] = len(label_map)
                    names.append(source.classes[label] if source.classes else f"imagenet100:{label}")
                labels.append(label_map[label])
                yield image, labels[-1]
        if seen != set(range(NUM_CLASSES)):
            raise InputError(
                f"{source.path} is not ImageNet-100: its {len(seen)} labels run from {min(seen)} to {max(seen)}, "
                f"expected each of 0 to {NUM_CLASSES - 1}"
            )
        _check_numbering(folder, split, label_map)
        write_labels(folder / f"{split}_labels.csv", torch.tensor(labels))
        files.write_json(label_map_path(folder, split), label_map)

    with contextlib.closing(records()) as pairs:
        write_lmdb(folder / f"{split}.lmdb", pairs, names)  # appears last: where it is, the rest is too
    return len(labels), label_map


def _check_numbering(folder: Path, split: str, label_map: dict[int, int]) -> None:
    """Training and validation part must number the classes alike."""
    for path in sorted(folder.glob(label_map_path(Path(), "*").name)):
        if path == label_map_path(folder, split):
            continue
        try:
            other = {int(old): new for old, new in schemas.read_json(path, dict[str, int]).items()}
        except ValueError as error:
            raise InputError(f"{path} is not a map of labels: remove it and its part, and make that again") from error
        if other != label_map:
            raise InputError(f"the classes appear in another order than in {path}: their labels would not agree")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        "-f",
        "--folder",
        type=cli.existing_dir,
        default=Path("data/imagenet/imagenet100"),
        help="folder that holds <split>.lmdb",
    )
    parser.add_argument("-s", "--split", default="train", help="part to make")
    parser.add_argument("--out", type=cli.output_dir, default=Path("data/imagenet50"), help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    target = args.out / files.file_name(f"{args.split}.lmdb", "--split")
    with files.locked(args.out, wait=True):  # both parts, which must number the classes alike
        if target.exists() and not args.overwrite:
            raise InputError(f"{target} exists already: --overwrite replaces it, --out writes elsewhere")
        source = ImageFolderLMDB(args.folder / f"{args.split}.lmdb")
        if target.exists() and target.samefile(source.path):
            raise InputError(f"--out {args.out} would replace the file that is read, {source.path}")
        count, label_map = make_subset(source, args.out, args.split, quiet=args.quiet)
    print(f"{count:,} images of {len(label_map)} classes ({target.stat().st_size / 1e9:.1f} GB) in {target}")


if __name__ == "__main__":
    cli.run(main)
