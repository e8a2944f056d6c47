"""Time the parts this repository is built for, each beside the method it replaces, in one run.

    python scripts/benchmark.py measures
    python scripts/benchmark.py training --device cuda
    python scripts/benchmark.py inversion
    python scripts/benchmark.py attacks --networks digits:resnet10:data/cnns/digits/eps1/resnet10.pt
    python scripts/benchmark.py loading
    python scripts/benchmark.py layers

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

TOPICS = ("measures", "training", "inversion", "attacks", "loading", "layers")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in TOPICS:
        parser = cli.Parser(description=__doc__)
        parser.add_argument("topic", choices=TOPICS, help="what to time; `benchmark.py <topic> --help` has its flags")
        parser.parse_args(words)  # ends with the help, or with what is wrong
    module = importlib.import_module(f"benchmarks.{words[0]}")
    parser = cli.Parser(prog=f"benchmark.py {words[0]}", description=module.__doc__)
    module.add_arguments(parser)
    cli.add_common_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser.parse_args(words[1:])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    args.run(args)


if __name__ == "__main__":
    cli.run(main)
