"""A results folder and what of it to show -> the tables behind figures and reports, each read once, when needed."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from univ import cli, results
from univ.show import evidence, quantities


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `Sources.of` takes."""
    add = parser.add_argument
    add("--results", type=cli.folder, default=Path("results"), help="folder of the result CSVs")
    add("--data", type=cli.folder, default=Path("data"), help="folder of the data, for the grids of inverted images")
    add("-e", "--exp", help="tag of the results to show; default: all, pooled")
    add("-k", "--knn", type=cli.positive_int, default=10, help="neighbours of the Jaccard panels of the figures")
    text = "CSVs of the training scripts' --results-file; those called accuracy.csv or in folders accuracy are found"
    add("--accuracy", nargs="+", type=cli.existing_file, default=[], metavar="CSV", help=text)
    text = "changes of similarity over eps within +- this count as equivalent, for measures that end at 1"
    add("--margin", type=cli.positive_number, default=evidence.MARGIN, help=text)
    add("--quiet", action="store_true", help="warnings and errors only")


@dataclass(frozen=True)
class Sources:
    """Where the numbers and pictures of figures and reports come from.

    Attributes:
        exp: tag of the results to show; None pools all.
        knn: number of neighbours where a figure shows one.
        evaluated: CSVs of the training scripts' --results-file besides those found in the results folder.
        dataset: the only data set to show; None shows all.
        margin: changes over eps within -+margin count as equivalent.
    """

    results: Path = Path("results")
    data: Path = Path("data")
    exp: str | None = None
    knn: int = 10
    evaluated: tuple[Path, ...] = ()
    dataset: str | None = None
    margin: float = evidence.MARGIN

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Sources":
        return cls(args.results, args.data, args.exp, args.knn, tuple(args.accuracy), margin=args.margin)

    def _chosen(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows of the tag and the data set asked for; those that have no tag count for any."""
        if self.dataset is not None:
            rows = rows[rows["dataset"] == self.dataset]
        if self.exp is not None and "exp" in rows:
            rows = rows[rows["exp"].isin(["", results.canonical_exp(self.exp)])]
        return rows

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The long table, with the numbers of neighbours (knn) and of images compared."""
        return self.long_table("plain", ["knn", "images"])

    @cached_property
    def accuracies(self) -> pd.DataFrame:
        """On the compared images."""
        return self._chosen(results.load_accuracies(self.results))

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """On the test part, clean and attacked."""
        return self._chosen(results.load_evaluations(results.find_evaluations(self.results, self.evaluated)))

    @cached_property
    def bounds(self) -> pd.DataFrame:
        """Of agreement, by data set, input and radius."""
        return quantities.mean_bounds(results.complete_accuracies(self.accuracies, self.evaluations))

    @cached_property
    def kinds(self) -> list[str]:
        """Kinds of comparison besides the plain one: adv, sample, base."""
        parsed = (results.parse_path(path, self.results) for path in results.score_csvs(self.results))
        return sorted({file.kind for file in parsed if file is not None} - {"plain"})

    @cached_property
    def others(self) -> dict[str, pd.DataFrame]:
        """Kind of comparison besides the plain one -> its long table."""
        return {kind: self.long_table(kind, ["knn", "images"]) for kind in self.kinds}

    def long_table(self, kind: str, settings: Sequence[str]) -> pd.DataFrame:
        return self._chosen(results.load_long_table(self.results, settings=settings, kind=kind))

    def companions(self, name: str, kind: str) -> pd.DataFrame:
        """What goes beside the scores, see `results.load_companions`."""
        return self._chosen(results.load_companions(self.results, name, kind=kind))

    @cached_property
    def singles(self) -> pd.DataFrame:
        """Scores that are not about pairs."""
        return self._chosen(results.load_model_table(self.results))

    @cached_property
    def subgroups(self) -> pd.DataFrame:
        return self._chosen(results.load_subgroups(self.results))

    @cached_property
    def probes(self) -> pd.DataFrame:
        return self._chosen(results.load_probe_agreement(self.results))

    @cached_property
    def probe_accuracies(self) -> dict[str, float]:
        """Share of images each probe gets right; nan where it is not recorded."""
        paths = sorted(self.results.rglob(results.PROBES_NAME))
        recorded = [results.read_record(path).get("probes", {}) for path in paths]
        accuracies = {name: probe.get("accuracy") for probes in recorded for name, probe in probes.items()}
        return {name: math.nan if share is None else share for name, share in accuracies.items()}

    def left_out(self) -> list[Path]:
        """CSVs of scores that no table shows: another tag or preprocessing (uncentred, Euclidean neighbours, ...)."""
        shown, tag = set(), None if self.exp is None else results.canonical_exp(self.exp)
        for kind in ("plain", *self.others):
            found = results.find_results(self.results, kind=kind)
            shown |= {path for file, path in found.items() if tag in (None, file.exp)}
        paths = sorted(path for path in results.score_csvs(self.results) if path not in shown)
        return [path.relative_to(self.results) for path in paths if results.parse_path(path, self.results)]
