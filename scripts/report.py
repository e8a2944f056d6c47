"""Put a results folder into one HTML page: tables, figures, how each result was made, what is missing.

    python scripts/report.py
    python scripts/report.py --results smoke/results --data smoke/data --out smoke/report.html

The page needs no other file and no network; it reads on a phone and prints. Beside it go two long tables for
statistics of one's own: scores.csv (every score of a pair of models, with what is known of its interval, p-value and
calibration, and what it may be compared with) and evidence.csv (means and rises over eps, with intervals over
architectures).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT))  # univ, when it is not installed

from loguru import logger

from univ import cli, files, runs
from univ.data import DATASETS, DatasetNames, dataset_name
from univ.show import report, tidy
from univ.show.sources import Sources, add_arguments
from univ.show.summary import summarize


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    add_arguments(parser)
    add = parser.add_argument
    add("--out", type=cli.output_file, help="the page; default: report.html in the results folder")
    text = "write summary.md about this data set, too, beside the page"
    add("--summary", choices=DatasetNames(DATASETS), metavar="DATASET", help=text)
    add("--about", default="", help="a sentence for the summary: how the results were made")
    text = "Markdown whose section on differences from the original is repeated"
    add("--readme", type=cli.existing_file, default=ROOT / "docs/differences.md", help=text)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    sources = Sources.of(args)
    page = report.build(sources, args.readme)
    out = args.out or args.results / "report.html"
    files.write_text(out, page)
    logger.info("wrote {} ({:.1f} MB)", out, len(page.encode()) / 1e6)
    for name, table in (("scores", tidy.scores(sources)), ("evidence", tidy.evidence(sources))):
        files.write_text(out.with_name(f"{name}.csv"), table.to_csv(index=False))
        logger.info("wrote {} ({:,} rows)", out.with_name(f"{name}.csv"), len(table))
    if args.summary:
        text = summarize(args.results, dataset_name(args.summary), scale=args.about, margin=args.margin)
        files.write_text(out.with_name("summary.md"), text)


if __name__ == "__main__":
    cli.run(main)
