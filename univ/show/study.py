"""The files of a study -> the tables that figures and reports show; each file is read once, when it is needed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from univ import results
from univ.show import quantities


@dataclass(frozen=True)
class Study:
    """Where the numbers and pictures of figures and reports come from.

    Attributes:
        results, data: the folders of the results and of the data.
        exp: tag of the results to show; None pools all.
        knn: number of neighbours where a figure shows one.
        evaluated: CSVs of the training scripts' --results-file besides those found in the results folder.
    """

    results: Path = Path("results")
    data: Path = Path("data")
    exp: str | None = None
    knn: int = 10
    evaluated: tuple[Path, ...] = ()

    def of_tag(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows of the tag asked for, and those that have no tag."""
        return rows if self.exp is None else rows[rows["exp"].isin(["", results.canonical_exp(self.exp)])]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The long table, with the number of neighbours."""
        return self.of_tag(results.load_long_table(self.results, settings=["knn"]))

    @cached_property
    def accuracies(self) -> pd.DataFrame:
        """On the compared images, as `results.load_accuracies` gives them."""
        return self.of_tag(results.load_accuracies(self.results))

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """On the test part, clean and attacked, as `results.load_evaluations` gives them."""
        return results.load_evaluations(results.find_evaluations(self.results, self.evaluated))

    @cached_property
    def bounds(self) -> pd.DataFrame:
        """Of agreement, by data set, input and radius: `quantities.mean_bounds`."""
        return quantities.mean_bounds(results.complete_accuracies(self.accuracies, self.evaluations))

    @cached_property
    def subgroups(self) -> pd.DataFrame:
        """As `results.load_subgroups` gives them."""
        return results.load_subgroups(self.results)

    @cached_property
    def probes(self) -> pd.DataFrame:
        """As `results.load_probe_agreement` gives them."""
        return results.load_probe_agreement(self.results)
