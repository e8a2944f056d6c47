"""How a file was made: settings, hashes and provenance in the JSON beside it -> is it what is asked for now?

A file counts as done for the settings recorded beside it and no others. A table that grows (`Rows`) records the
settings of each row.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from univ import files
from univ.errors import InputError
from univ.files import schemas

SHOWN_DIFFERENCES = 6  # in one message
ROW_COLUMN = "made"  # of a growing table: which entry of the JSON's `rows` holds the settings of this row
_ABSENT = object()


def record_path(path: Path | str) -> Path:
    """The JSON beside a file."""
    return Path(path).with_suffix(".json")


def plain(value: Any) -> Any:
    """A setting as JSON gives it back: tuples become lists, paths and devices strings, NumPy numbers Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


# --- settings against settings --------------------------------------------------------------------------------------


def differences(made: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """In what two settings differ, each as `knn was 10, now 500`."""
    return [f"{name} was {_shown(old)}, now {_shown(new)}" for name, old, new in _differing(plain(made), plain(asked))]


def listed(differing: list[str]) -> str:
    """Differences as one text; of many, the first ones."""
    more = len(differing) - SHOWN_DIFFERENCES
    return "; ".join(differing[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _differing(made: Mapping[str, Any], asked: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*asked, *made]):
        old, new = made.get(key, _ABSENT), asked.get(key, _ABSENT)
        if isinstance(old, dict) and new is None:
            new = dict.fromkeys(old)
        elif isinstance(new, dict) and old is None:
            old = dict.fromkeys(new)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differing(old, new, f"{within}{key} ")
        elif old != new and (old == old or new == new):  # nan is the same setting as nan
            yield f"{within}{key}", old, new


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not recorded"
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- whole files ----------------------------------------------------------------------------------------------------


def write_csv(
    path: Path | str, text: str, settings: Mapping[str, Any], record: Mapping[str, Any] | None = None
) -> None:
    """Write a CSV and the JSON that says how it was made, both atomically.

    The JSON goes first and holds the CSV's hash: a run killed between the two leaves a pair that does not fit, which
    `check` sees.

    Args:
        settings: what decides the numbers (settings of the measure, checkpoint hashes, the inputs' fingerprint ...).
        record: what else is worth knowing (all arguments, commit, versions, accuracies); never compared.
    """
    files.destination(path)  # before anything is written beside what is no file
    if Path(path).suffix == ".json":
        raise InputError(f"{path} is where the settings of a table go: call the table itself .csv")
    digest = hashlib.sha256(text.encode()).hexdigest()
    about = {"settings": plain(settings), **plain(record or {}), "csv_sha256": digest}
    with files.locked(path, wait=True):  # two writers would leave one's JSON beside the other's CSV
        files.write_json(record_path(path), about)
        files.write_text(path, text)


def read(path: Path | str) -> tuple[dict[str, Any], str]:
    """The JSON beside a CSV, and, where it is empty, what to say of the CSV: there is none, or none that fits."""
    path = Path(path)
    beside = record_path(path)
    try:
        record = schemas.read_json(beside, schemas.Sidecar)
    except FileNotFoundError:
        return {}, "no JSON beside it"
    except InputError as error:
        return {}, f"its JSON, {beside.name},{str(error).removeprefix(str(beside))}"
    if files.file_hash(path) not in (record.csv_sha256, record.csv_sha256_before):
        return {}, "does not fit its JSON (interrupted or edited)"
    return record.model_dump(exclude_unset=True), ""


@dataclass(frozen=True)
class Status:
    """Whether a result can be reused: truthy when done; `reason` is a sentence for the log in either case."""

    done: bool
    reason: str
    path: Path

    def __bool__(self) -> bool:
        return self.done


def check(path: Path, settings: Mapping[str, Any]) -> Status:
    """Whether a CSV is there and was made with these settings.

    A CSV without JSON, as published ones are, counts as done: `reason` then says that its settings are unknown.
    """
    if not path.is_file():
        return Status(False, f"{path} does not exist", path)
    files.remove_orphans(path)
    beside = record_path(path)
    if not beside.is_file():
        return Status(True, f"{path} has no {beside.name}: taken as done, with settings that are unknown", path)
    record, problem = read(path)
    if problem:
        return Status(False, f"{path}: {problem}", path)
    if differing := differences(record["settings"], settings):
        return Status(False, f"{path} was made with other settings ({listed(differing)})", path)
    return Status(True, f"{path} is there, made with the same settings", path)


# --- tables that grow -----------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """A CSV whose rows are made at different times with different settings, and what each was made with.

    Column `made` of a row names its entry in the JSON's `rows`; in a CSV without JSON, as nobody knows it, none.

    Attributes:
        table: the rows; `eps` and `made` as text.
        settings: entry -> settings of the rows that name it.
    """

    path: Path
    table: pd.DataFrame
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Rows":
        """What is there; empty if nothing is.

        Raises:
            InputError: the CSV is no table, or does not fit its JSON: rows that took long are not thrown away unasked.
        """
        if not path.is_file():
            return cls(path, pd.DataFrame())
        try:
            table = pd.read_csv(path, dtype={"eps": str, ROW_COLUMN: str})
        except (ValueError, UnicodeDecodeError) as error:  # pandas' parser and empty-file errors are ValueErrors
            raise InputError(f"{path} is not a CSV ({error}): restore or remove it") from error
        record, problem = read(path)
        if problem and record_path(path).is_file():
            raise InputError(f"{path}: {problem}: restore or remove it")
        if ROW_COLUMN not in table:
            table[ROW_COLUMN] = None
        return cls(path, table, record.get("rows", {}))

    @staticmethod
    def entry(settings: Mapping[str, Any]) -> str:
        """The entry of some settings: 12 hexadecimal digits."""
        return hashlib.sha256(json.dumps(plain(settings), sort_keys=True).encode()).hexdigest()[:12]

    def add(self, rows: pd.DataFrame, settings: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, each made with the settings at its position."""
        settings = list(settings)
        entries = [self.entry(each) for each in settings]
        rows = rows.assign(**{ROW_COLUMN: entries})
        self.table = rows if self.table.empty else pd.concat([self.table, rows], ignore_index=True)
        self.settings |= dict(zip(entries, map(plain, settings)))

    def write(self, settings: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Write CSV and JSON. Killed between the two, the JSON still fits the CSV that was there before.

        Args:
            settings, record: of the run that wrote last; see `write_csv`.
        """
        named = set(self.table[ROW_COLUMN].dropna())
        kept = {entry: made for entry, made in self.settings.items() if entry in named}
        before = files.file_hash(self.path) if self.path.is_file() else ""
        # the entries of rows that go with this write are kept until the next, for the CSV that is there before it
        about = {**record, "rows": self.settings, "csv_sha256_before": before}
        write_csv(self.path, self.table.to_csv(index=False), settings, about)
        self.settings = kept
