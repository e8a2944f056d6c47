"""Write the labels of an LMDB file to a CSV file, which is read at once where an older LMDB takes minutes.

    python univ/utils/labels_csv.py data/imagenet100/train.lmdb
    python univ/utils/labels_csv.py data/imagenet/ILSVRC/val.lmdb --out data/imagenet/labels/labels.csv

One label per image, in the order of the images, in the layout of pandas: a header `,0`, then `row,label` lines.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))  # univ, when it is not installed

from univ import cli, runs
from univ.data.indices import write_labels
from univ.data.lmdb import ImageFolderLMDB
from univ.errors import InputError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("lmdb", type=cli.existing_file, help="LMDB file of images, of either format")
    parser.add_argument(
        "--out", type=cli.output_file, help="CSV file to write (default: <name>_labels.csv beside the LMDB file)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing CSV file")
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    out = args.out or args.lmdb.with_name(f"{args.lmdb.stem}_labels.csv")
    if out.exists() and not args.overwrite:
        raise InputError(f"{out} exists already: --overwrite replaces it, --out writes elsewhere")
    images = ImageFolderLMDB(args.lmdb)
    write_labels(out, images.labels)
    print(f"{len(images):,} labels of {len(images.labels.unique())} classes in {out}")


if __name__ == "__main__":
    cli.run(main)
