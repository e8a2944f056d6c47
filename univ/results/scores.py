"""Matrices of scores and the tables beside them: written with how they were made, done or not, read, found."""

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger

from univ.errors import InputError
from univ.files import schemas
from univ.measures.cards import find_card
from univ.results import legend, made
from univ.results.layout import ResultFile, canonical_exp, parse_path, score_csvs


def write(
    root: Path | str,
    file: ResultFile,
    scores: pd.DataFrame,
    settings: Mapping[str, Any],
    record: Mapping[str, Any] | None = None,
    singles: pd.DataFrame | None = None,
) -> Path:
    """Write one result in the published layout, with its JSON; the first one in a folder with the legend.

    Args:
        root: the results folder.
        scores: table in the published orientation, as the drivers of `univ.compare` give it: model x model for pairs,
            on inverted images the COLUMN is the model whose images were used; one row named 0 for one number per model
            (mag, con; amb, disc per source) or, under the measure's name, per set of models (amb, disc).
        settings, record: see `made.write_csv`.
        singles: with a baseline, the single scores: like `scores`, each cell the list of n scores.

    Returns:
        The CSV's path.
    """
    path = file.path(root)
    legend.write(root)
    if singles is not None:
        if not file.baseline:
            raise ValueError("single scores belong to a baseline: the file has baseline=False")
        cells = singles.map(_list_text).reset_index(drop=True)
        made.write_csv(file.singles_path(root), cells.to_csv(), settings, record)
    made.write_csv(path, scores.to_csv(), settings, record)
    logger.info("wrote {}", path)
    return path


def write_companion(
    root: Path | str,
    file: ResultFile,
    companion: str,
    table: pd.DataFrame,
    settings: Mapping[str, Any],
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write a long table (columns model1, model2, ...; model1 the source of inverted images) beside the scores."""
    path = file.companion_path(root, companion)
    made.write_csv(path, table.to_csv(index=False), settings, record)
    return path


def _list_text(values: Iterable[float]) -> str:
    return "[" + ", ".join(repr(float(value)) for value in values) + "]"


def check(
    root: Path | str,
    file: ResultFile,
    settings: Mapping[str, Any],
    *,
    companions: Mapping[str, Mapping[str, Any]] | None = None,
) -> made.Status:
    """Whether the result exists and was made with these settings.

    A CSV without JSON, as published ones are, counts as done: `reason` then says that its settings are unknown. With a
    baseline the single scores must be there too, and so must the `companions` (such as `ci`) asked for, each made with
    settings of its own.
    """
    there = file.on_disk(root)
    if there is None:
        return made.Status(False, f"{file.path(root)} does not exist", file.path(root))
    path = there.path(root)
    status = made.check(path, settings)
    others = {there.companion_path(root, name): own for name, own in (companions or {}).items()}
    if file.baseline:
        others[there.singles_path(root)] = settings
    for other, own in others.items() if status else ():
        if not other.is_file():
            return made.Status(False, f"{path} is there but {other.name} is not", path)
        if not (second := made.check(other, own)):
            return replace(second, path=path)
    return status


def read_matrix(path: Path | str) -> pd.DataFrame:
    """A square matrix of scores as it stands in the file: columns are the models whose inverted images were used.

    Raises:
        InputError: the file is not a CSV whose rows and columns name the same models.
    """
    scores = schemas.read_csv(path, index_col=0)
    scores.index = scores.index.astype(str)
    if set(scores.index) != set(scores.columns) or scores.index.has_duplicates:
        raise InputError(f"{path} is not a square matrix: rows {list(scores.index)}, columns {list(scores.columns)}")
    try:
        return scores[list(scores.index)].astype(float)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} holds cells that are not numbers: {error}") from error


def read_record(path: Path | str) -> dict[str, Any]:
    """What the JSON beside a CSV holds: `settings` and the record; empty, said so once, if it is not one that fits."""
    record, problem = made.read(path)
    if problem and made.record_path(path).is_file():
        warn_once(f"{path}: {problem}: its settings are unknown")
    return record


@functools.cache
def warn_once(message: str) -> None:
    """Warn of a file that several tables are read from."""
    logger.warning("{}", message)


def find_results(
    root: Path | str,
    measures: Collection[str] | None = None,
    *,
    kind: str = "plain",
    center: bool = True,
    normalize: bool = True,
    function: str = "cos_sim",
) -> dict[ResultFile, Path]:
    """All CSVs of scores below a results folder, of one kind and one preprocessing (the study's by default).

    Where one result exists under both spellings of its tag, the one with a JSON that fits is taken; files name it by
    the canonical one.
    """
    found: dict[ResultFile, Path] = {}
    for path in score_csvs(root):
        file = parse_path(path, Path(root))
        if file is None or file.kind != kind or (measures is not None and file.measure not in measures):
            continue
        card = find_card(file.measure)
        if (card.neighbors and file.function != function) or (card.normalized and file.normalize != normalize):
            continue
        if card.studied and card.centered and file.center != center:  # others need not have a centred form
            continue
        file = replace(file, exp=canonical_exp(file.exp))
        if (other := found.get(file)) is not None:
            kept = path if read_record(path) else other
            logger.warning("{} and {} are the same result: taking {}", other, path, kept)
            path = kept
        found[file] = path
    return found
