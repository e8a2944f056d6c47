"""How each result was made: the JSON beside every CSV -> a table of results, and the runs that made them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from univ import results
from univ.results import made

SCRIPTS = {results.SUBGROUPS_NAME: "subgroup_sim.py", results.PROBES_NAME: "compare_probes.py"}
ABOUT = ["dataset", "eps", "input", "kind"]
COLUMNS = ["path", "script", "arguments", "commit", "versions", *ABOUT, "images", "settings", "problem"]


def read(root: Path) -> pd.DataFrame:
    """Every result below a results folder (scores, subgroups, agreement of probes), as text.

    Returns:
        Columns path (below the folder), script (empty if the record does not tell rep.py from func.py), arguments
        (tuple of name and value, of those that were given), commit, versions, dataset, eps, input, kind (empty where
        that is not known), images (how many were compared), settings (those that are one word or number; hashes and
        fingerprints stay in the JSON), problem (why nothing is known of it; else empty).
    """
    paths = sorted({*results.score_csvs(root), *itertools.chain(*map(root.rglob, SCRIPTS))})
    return pd.DataFrame([describe(path, root) for path in paths], columns=COLUMNS)


def describe(path: Path, root: Path) -> dict[str, Any]:
    """One row of `read`."""
    record, problem = made.read(path)
    settings, arguments = record.get("settings", {}), record.get("arguments") or {}
    about = {"dataset": settings.get("dataset"), "eps": "", "input": settings.get("input"), "kind": ""}
    if path.name not in SCRIPTS and (file := results.parse_path(path, root)):
        kind = "" if file.kind == "plain" else file.kind
        about = {"dataset": file.dataset, "eps": file.eps, "input": file.input, "kind": kind}
    compared = "func.py" if "func" in arguments else "rep.py" if "rep" in arguments else ""
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    simple = {name: value for name, value in settings.items() if not isinstance(value, dict | list | type(None))}
    return {
        "path": str(path.relative_to(root)),
        "script": SCRIPTS.get(path.name, compared),
        "arguments": tuple((name, _text(arguments[name])) for name in sorted(arguments) if arguments[name] is not None),
        "commit": str(record.get("commit") or "unknown"),
        "versions": versions or "unknown",
        **{name: str(value or "") for name, value in about.items()},
        "images": ", ".join(map(str, sorted(set(_numbers_of_images(settings.get("inputs")))))),
        "settings": ", ".join(f"{name}={value}" for name, value in simple.items()),
        "problem": problem,
    }


def _text(argument: Any) -> str:
    return " ".join(map(str, argument)) if isinstance(argument, list) else str(argument)


def _numbers_of_images(inputs: Any) -> Iterator[int]:
    """Every `n` in the settings' nested description of the inputs."""
    for key, value in inputs.items() if isinstance(inputs, dict) else ():
        if key == "n" and isinstance(value, int):
            yield value
        else:
            yield from _numbers_of_images(value)


class Run(NamedTuple):
    """One run of a script; `about` is its data sets, radii, kinds of images and of comparison, `files` its results."""

    script: str
    about: list[str]
    arguments: dict[str, str]
    commit: str
    versions: str
    files: pd.DataFrame


def runs_of(table: pd.DataFrame) -> list[Run]:
    """The runs in the order of the scripts, data sets and radii; results that share their arguments are of one run.

    Args:
        table: rows of `read` without a problem.
    """
    found = []
    shared = ["script", "arguments", "commit", "versions"]
    for (script, arguments, commit, versions), files in table.groupby(shared, sort=False):
        about = [word for name in ABOUT for word in dict.fromkeys(files[name]) if word]
        found.append(Run(script, about, dict(arguments), commit, versions, files))
    scripts = ["rep.py", "func.py", *SCRIPTS.values(), ""]
    return sorted(found, key=lambda run: (scripts.index(run.script), run.about))
