"""Time the parts this repository is built for, each beside the method it replaces, in one run.

    python scripts/benchmark.py measures
    python scripts/benchmark.py training --device cuda
    python scripts/benchmark.py inversion
    python scripts/benchmark.py loading

Every topic prints a table (markdown, as in the README) with the hardware and versions it was measured on. Ours and
the peer's runs alternate and medians are given, so that a machine whose speed drifts still gives a fair ratio.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # univ, when it is not installed

from univ import cli, runs

TOPICS = ("measures", "training", "inversion", "loading")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    topics = parser.add_subparsers(dest="topic", required=True, metavar="{" + ",".join(TOPICS) + "}")
    for name in TOPICS:
        module = importlib.import_module(f"benchmarks.{name}")
        topic = topics.add_parser(
            name, description=module.__doc__, help=module.__doc__.splitlines()[0], formatter_class=cli.HelpFormatter
        )
        module.add_arguments(topic)
        cli.add_common_arguments(topic)
        topic.set_defaults(run=module.run)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    args.run(args)


if __name__ == "__main__":
    cli.run(main)
