"""How each result was made: the JSON beside every CSV -> runs, with arguments, commit, versions and files.

Results that one run made are told together: they share their arguments.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from univ import results
from univ.results import ResultFile, made


def result_csvs(root: Path) -> list[Path]:
    """Every CSV of scores or beside them (companions, single baseline scores), subgroups and agreement of probes."""
    others = itertools.chain(root.rglob(results.SUBGROUPS_NAME), root.rglob(results.PROBES_NAME))
    return sorted({*results.score_csvs(root), *others})


@dataclass(frozen=True)
class Made:
    """A result and how it was made.

    Attributes:
        path: relative to the results folder.
        file: what the path says; None for subgroups, probes and what lies beside scores.
        record: what the JSON beside it holds; empty if there is none that fits.
        problem: why there is no record.
    """

    path: Path
    file: ResultFile | None
    record: dict[str, Any]
    problem: str = ""

    @classmethod
    def read(cls, path: Path, root: Path) -> "Made":
        special = path.name in (results.SUBGROUPS_NAME, results.PROBES_NAME)
        record, problem = made.read(path)
        return cls(path.relative_to(root), None if special else results.parse_path(path, root), record, problem)

    @property
    def script(self) -> str:
        """The script that writes such a file; empty if the record does not tell rep.py from func.py."""
        if self.path.name == results.SUBGROUPS_NAME:
            return "subgroup_sim.py"
        if self.path.name == results.PROBES_NAME:
            return "compare_probes.py"
        arguments = self.record.get("arguments") or {}
        return "func.py" if "func" in arguments else "rep.py" if "rep" in arguments else ""

    @property
    def images(self) -> list[int]:
        """Numbers of images compared; several where models or radii differ in it."""
        return sorted(set(_numbers_of_images(self.record.get("settings", {}).get("inputs", {}))))

    @property
    def settings(self) -> str:
        """The settings that are one word or number; hashes and fingerprints stay in the JSON."""
        settings = self.record.get("settings", {})
        plain = {key: value for key, value in settings.items() if not isinstance(value, dict | list | type(None))}
        return ", ".join(f"{key}={value}" for key, value in plain.items())


def _numbers_of_images(inputs: Any) -> Iterator[int]:
    """Every `n` in the settings' nested description of the inputs."""
    for key, value in inputs.items() if isinstance(inputs, dict) else ():
        if key == "n" and isinstance(value, int):
            yield value
        else:
            yield from _numbers_of_images(value)


@dataclass(frozen=True)
class Run:
    """The results of one run of a script, in the order of their paths; there is at least one."""

    script: str
    arguments: dict[str, Any]
    commit: str
    versions: dict[str, str]
    made: list[Made]

    @property
    def software(self) -> tuple[str, str]:
        """Commit and versions as text."""
        return self.commit, ", ".join(f"{name} {version}" for name, version in self.versions.items()) or "unknown"

    @property
    def about(self) -> list[str]:
        """Data set, radii, kind of images and of comparison, in words."""
        parsed = [one.file for one in self.made if one.file is not None]
        settings = [one.record["settings"] for one in self.made]
        datasets = [file.dataset for file in parsed] or [found.get("dataset", "") for found in settings]
        inputs = [file.input for file in parsed] or [found.get("input", "") for found in settings]
        kinds = [file.kind for file in parsed if file.kind != "plain"]
        words = dict.fromkeys([*datasets, *(file.eps for file in parsed), *inputs, *kinds])
        return [word for word in words if word]


def runs_of(made: Sequence[Made]) -> list[Run]:
    """Group the results that have a record by run, in the order of the scripts, data sets and radii."""
    grouped: dict[str, list[Made]] = {}
    for one in made:
        if one.record:
            shared = [one.record.get(key) for key in ("arguments", "commit", "versions")]
            grouped.setdefault(one.script + json.dumps(shared, sort_keys=True), []).append(one)
    runs = []
    for group in grouped.values():
        record = group[0].record
        about = record.get("arguments") or {}, str(record.get("commit") or "unknown"), record.get("versions") or {}
        runs.append(Run(group[0].script, *about, group))
    scripts = ["rep.py", "func.py", "subgroup_sim.py", "compare_probes.py", ""]
    return sorted(runs, key=lambda run: (scripts.index(run.script), run.about))
