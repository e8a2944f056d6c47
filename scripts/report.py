"""Put a results folder into one HTML page: tables, figures, how each result was made, what is missing.

    python scripts/report.py
    python scripts/report.py --results smoke/results --data smoke/data --out smoke/report.html

The page needs no other file and no network; it reads on a phone and prints.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT))  # univ, when it is not installed

from loguru import logger

from univ import cli, files, runs
from univ.data import DATASETS
from univ.show import report
from univ.show.study import Study
from univ.show.summary import summarize


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--results", type=cli.folder, default=Path("results"), help="folder of the result CSVs")
    add("--data", type=cli.folder, default=Path("data"), help="folder of the data, for the grids of inverted images")
    add("--out", type=cli.output_file, help="the page; default: report.html in the results folder")
    add("-e", "--exp", help="tag of the results to show; default: all, pooled")
    add("-k", "--knn", type=cli.positive_int, default=10, help="neighbours of the Jaccard panels of the figures")
    text = "CSVs of the training scripts' --results-file; those called accuracy.csv or in folders accuracy are found"
    add("--accuracy", nargs="+", type=cli.existing_file, default=[], metavar="CSV", help=text)
    text = "Markdown whose section on differences from the original is repeated"
    add("--readme", type=cli.existing_file, default=ROOT / "docs/differences.md", help=text)
    text = "write summary.md about this data set, too, beside the page"
    add("--summary", choices=list(DATASETS), metavar="DATASET", help=text)
    add("--about", default="", help="a sentence for the summary: how the results were made")
    add("--quiet", action="store_true", help="warnings and errors only")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    study = Study(args.results, args.data, args.exp, args.knn, tuple(args.accuracy))
    page = report.build(study, args.readme)
    out = args.out or args.results / "report.html"
    files.write_text(out, page)
    logger.info("wrote {} ({:.1f} MB)", out, len(page.encode()) / 1e6)
    if args.summary:
        text = summarize(args.results, args.summary, args.results / "accuracy" / args.summary, scale=args.about)
        files.write_text(out.with_name("summary.md"), text)


if __name__ == "__main__":
    cli.run(main)
