"""Agreement of all pairs of probes: the share of images to which two probes give the same class.

    python compare_probes.py
    python compare_probes.py --runs runs/digits --split val --out results/probing/probe_agreement.csv

Finds the best-accuracy checkpoints below --runs, predicts the representations each probe's model gave (val_reps.pt or
reps.pt, as train_probe.py wrote or named them) and compares the probes of each data set with each other. A probe that
was trained twice counts once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from univ import cli, files, results, runs
from univ.reps import agreement
from univ.reps.files import FILE_NAMES, read_identity
from univ.results import made


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--runs", type=cli.existing_dir, default=Path("runs"), help="folder below which the probes are")
    add("--cache-dir", type=cli.existing_dir, help="as given to train_probe.py; holds <run-name>/val_reps.pt")
    add("--split", choices=list(FILE_NAMES), default="val", help="part of the data the probes are compared on")
    default = Path("results/probing") / results.PROBES_NAME
    add("--out", type=cli.output_file, default=default, help="CSV of the agreements; a JSON beside it")
    add("--overwrite", action="store_true", help="compare anew what has been compared already")
    cli.add_common_arguments(parser, workers=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    starts = agreement.find_starts(args.runs, args.split, args.cache_dir)
    reps = {name: start.reps for start in starts for name in start.checkpoints}
    settings = {
        "split": args.split,
        "probes": {name: files.file_hash(path) for start in starts for name, path in start.checkpoints.items()},
        "reps": {name: {**read_identity(path), "sha256": files.content_hash(path)} for name, path in reps.items()},
    }
    if not args.overwrite and (status := made.check(args.out, settings)):
        logger.info(status.reason)
        return
    images = {name: recorded.get("fingerprint") for name, recorded in settings["reps"].items()}
    table, known = agreement.compare(starts, images, device=args.device, quiet=args.quiet)
    record = {"probes": known, "arguments": vars(args), **runs.provenance()}
    made.write_csv(args.out, table.to_csv(index=False), settings, record)
    arch = {name: about["arch"] for name, about in known.items()}
    different = [row.agreement for row in table.itertuples() if arch[row.probe_1] != arch[row.probe_2]]
    mean = f", mean over different architectures {sum(different) / len(different):.4f}" if different else ""
    logger.info("{} pairs of {} probes{}, wrote {}", len(table), len(known), mean, args.out)


if __name__ == "__main__":
    cli.run(main)
