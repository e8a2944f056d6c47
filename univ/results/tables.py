"""Results as long tables, one row per number: what figures, the summary and the report are made from."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from loguru import logger

from univ.data import DATASETS
from univ.eps import eps_value
from univ.errors import InputError
from univ.files import schemas
from univ.measures.cards import CARDS, find_card, in_study
from univ.results import made
from univ.results.layout import PROBES_NAME, SUBGROUPS_NAME, ResultFile
from univ.results.scores import find_results, read_matrix, read_record, warn_once

LONG_COLUMNS = ["model1", "model2", "score", "measure", "eps", "dataset", "input", "exp"]
ACCURACY_COLUMNS = ["source", "model", "accuracy", "num_classes", "eps", "dataset", "input", "exp"]
EVALUATION_COLUMNS = ["model", "dataset", "eps", "attack_eps", "attack", "norm", "accuracy"]
SUBGROUP_COLUMNS = ["metric", "score", "model1", "model2", "k", "perc_k", "pred_type", "eps"]
PROBE_COLUMNS = ["probe_1", "probe_2", "agreement"]


def load_long_table(
    results_dir: Path | str, measures: Collection[str] | None = None, *, settings: Sequence[str] = (), **which: Any
) -> pd.DataFrame:
    """Every pairwise score below a results folder, one row per comparison of two different models.

    Regular images: each unordered pair once, model1 the one that comes first in the file. Inverted images: both cells,
    because they are different comparisons; model1 is the model whose inverted images were used (the file's column).
    Pooled inverted images (kind `sample`) are the same for all models: each pair once. A measure beyond the study's
    list is read once per pair where its matrix is symmetric, else in both directions.

    Args:
        measures: command-line keys to read; None for all.
        settings: settings to add as columns from the JSON beside each CSV, such as `knn`; nan where there is none.
            `images` is the number of images compared, `widths` a dict of the representations' widths by model.
        which: of several results of the same measure: kind, center, normalize, function, see `find_results`.

    Returns:
        Columns model1, model2, score, measure (key), eps (float), dataset, input (standard | inverted), exp (`10` for
        both 10 and 10.0), then `settings`. Empty, with these columns, if there is nothing.
    """
    rows: list[tuple[Any, ...]] = []
    for file, path in find_results(results_dir, measures, **which).items():
        if find_card(file.measure).pairs:
            record = read_record(path)
            made_with = {"widths": record.get("widths", np.nan), **record.get("settings", {})}
            extra = [made_with.get(name, np.nan) for name in settings]
            for cell in _cells(file, read_matrix(path)):
                if "images" in settings:
                    source = cell[0] if file.rowwise else "all"
                    extra[settings.index("images")] = _images(made_with.get("inputs"), source)
                rows.append((*cell, *_about(file), *extra))
    table = pd.DataFrame(rows, columns=[*LONG_COLUMNS, *settings])
    return table.astype({"score": float, "eps": float})


def load_companions(results_dir: Path | str, companion: str, *, kind: str = "plain") -> pd.DataFrame:
    """What goes beside the scores of pairs: their confidence intervals, p-values or calibrated scores.

    Args:
        companion: `ci`, `pvalue` or `calibrated`; see `layout.COMPANIONS`.
        kind: as for `find_results`; p-values and calibrated scores lie beside a baseline (`base`).

    Returns:
        LONG_COLUMNS (both orders of a pair; score: the one that it was made with), then low and high, p_value or
        calibrated, and level (of the interval, else nan).
    """
    values = {"ci": ["low", "high"], "pvalue": ["p_value"], "calibrated": ["calibrated"]}[companion]
    tables = [pd.DataFrame(columns=[*LONG_COLUMNS, *values, "level"])]
    for file, path in find_results(results_dir, kind=kind).items():
        beside = path.with_name(f"{path.stem}_{companion}.csv")
        if beside.is_file():
            table = schemas.read_table(beside, schemas.CompanionRow, ["model1", "model2", "score", *values])
            level = read_record(beside).get("settings", {}).get("level", np.nan)
            about = dict(zip(LONG_COLUMNS[3:], _about(file)))
            tables.append(table.assign(**about, level=level)[list(tables[0])])
    filled = [table for table in tables if len(table)]
    return (pd.concat(filled, ignore_index=True) if filled else tables[0]).astype({"eps": float})


def _images(inputs: Any, source: str) -> float:
    """Number of images, by the settings' description of the inputs; nan where it does not say."""
    described = inputs.get(source) if isinstance(inputs, dict) else None
    return float(described.get("n", np.nan)) if isinstance(described, dict) else np.nan


def _about(file: ResultFile) -> tuple[str, float, str, str, str]:
    """The last five of LONG_COLUMNS."""
    return file.measure, eps_value(file.eps), file.shown_dataset, file.input, file.exp


def _cells(file: ResultFile, scores: pd.DataFrame) -> Iterator[tuple[str, str, float]]:
    """(model1, model2, score) of a published matrix, without the diagonal."""
    values = scores.to_numpy()
    once = not file.rowwise
    if once and not find_card(file.measure).symmetric:
        once = bool(np.allclose(values, values.T, rtol=1e-6, atol=1e-6, equal_nan=True))
    for (i, first), (j, second) in itertools.product(enumerate(scores.index), repeat=2):
        if i == j or (once and i > j):
            continue
        # once: row i < column j; a triangle left empty is read from the other side
        score = values[i, j] if once else values[j, i]
        yield first, second, values[j, i] if once and np.isnan(score) else score


def load_model_table(
    results_dir: Path | str, measures: Collection[str] | None = None, *, kind: str = "plain"
) -> pd.DataFrame:
    """Scores that are not about pairs (mag, con, amb, disc), one row per number.

    Returns:
        Columns source (whose inverted images; empty on regular ones), model (empty for a score of the whole set),
        score, measure, eps, dataset, input, exp.
    """
    rows: list[tuple[Any, ...]] = []
    for file, path in find_results(results_dir, measures, kind=kind).items():
        card = find_card(file.measure)
        if card.pairs:
            continue
        if card.per == "set":
            scores = [(name if file.rowwise else "", "", score) for name, score in _only_row(path).items()]
        elif file.rowwise:
            scores = [(*names, score) for names, score in read_matrix(path).unstack().items()]
        else:
            scores = [("", name, score) for name, score in _only_row(path).items()]
        rows += [(*score, *_about(file)) for score in scores]
    return pd.DataFrame(rows, columns=["source", "model", *LONG_COLUMNS[2:]]).astype({"score": float, "eps": float})


def _only_row(path: Path) -> dict[str, float]:
    table = schemas.read_csv(path, index_col=0)
    if len(table) != 1:
        raise InputError(f"{path} holds {len(table)} rows, expected one of scores")
    return schemas.validate({str(name): cell for name, cell in table.iloc[0].items()}, dict[str, float], path)


# --- accuracies -----------------------------------------------------------------------------------------------------


def load_accuracies(results_dir: Path | str) -> pd.DataFrame:
    """Accuracies on the compared images, as func.py records them in the JSON beside each disagreement CSV.

    Returns:
        Columns source (whose inverted images; empty on regular ones), model, accuracy (share), num_classes, eps,
        dataset, input, exp. Published CSVs have no JSON: theirs are not in the table.
    """
    rows: list[tuple[Any, ...]] = []
    for file, path in find_results(results_dir, ["dis"]).items():
        record = read_record(path)
        accuracy, num_classes = record.get("accuracy"), record.get("num_classes")
        if not accuracy or num_classes is None:
            continue
        by_source = accuracy if file.rowwise else {"": accuracy}
        if not all(isinstance(of_model, dict) for of_model in by_source.values()):
            warn_once(f"{made.record_path(path).name} holds accuracies of another kind of images: left out")
            continue
        about = (num_classes, *_about(file)[1:])
        rows += [(source, *item, *about) for source, of_model in by_source.items() for item in of_model.items()]
    return pd.DataFrame(rows, columns=ACCURACY_COLUMNS)


def find_evaluations(root: Path | str, named: Iterable[Path | str] = ()) -> list[Path]:
    """The CSVs of accuracies named, and those below a results folder: accuracy.csv, all below folders `accuracy`."""
    root = Path(root)
    found = [*map(Path, named), *root.glob("accuracy.csv"), *sorted(root.glob("**/accuracy/**/*.csv"))]
    return list({path.resolve(): path for path in found}.values())


def load_evaluations(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Accuracies on the test part, clean and attacked, as the training scripts append them (--results-file).

    Returns:
        Columns model, dataset, eps (trained with), attack_eps (0: clean), attack and norm (the flags' defaults where
        an older file does not say; "none" where it is clean), accuracy (share). The last of each.

    Raises:
        InputError: a file that is no such CSV.
    """
    tables = [schemas.read_table(path, schemas.EvaluationRow) for path in paths]
    if not tables:
        return pd.DataFrame(columns=EVALUATION_COLUMNS)
    rows = pd.concat(tables, ignore_index=True)
    rows = rows.assign(eps=rows["trained_eps"], accuracy=rows["acc"] / 100).reindex(columns=EVALUATION_COLUMNS)
    for column, usual in (("attack", "pgd"), ("norm", "l2")):
        rows[column] = rows[column].astype(object).fillna(usual).where(rows["attack_eps"] > 0, "none")
    return rows.drop_duplicates(EVALUATION_COLUMNS[:-1], keep="last", ignore_index=True)


def complete_accuracies(recorded: pd.DataFrame, evaluations: pd.DataFrame) -> pd.DataFrame:
    """Accuracies on the compared images; where none are recorded, the clean ones on the whole test part."""
    clean = evaluations[evaluations["attack_eps"] == 0].assign(source="", input="standard", exp="")
    clean["num_classes"] = [DATASETS[name].num_classes if name in DATASETS else None for name in clean["dataset"]]
    clean = clean.dropna(subset=["eps", "num_classes"])[ACCURACY_COLUMNS]
    covered = set(zip(recorded["dataset"], recorded["eps"], recorded["input"]))
    new = [setting not in covered for setting in zip(clean["dataset"], clean["eps"], clean["input"])]
    parts = [part for part in (recorded, clean[np.array(new, dtype=bool)]) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else recorded


# --- subgroups and probes -------------------------------------------------------------------------------------------


def _csvs(path: Path | str, name: str) -> list[Path]:
    """The file itself, or every file called `name` below a folder."""
    path = Path(path)
    return [path] if path.is_file() else sorted(path.rglob(name))


_KEY_OF_METRIC = {name: key for key in in_study("reps") for name in (CARDS[key].folder, CARDS[key].file)}


def load_subgroups(path: Path | str) -> pd.DataFrame:
    """Similarity where two models agree and where they differ, from a CSV of subgroup_sim.py or all below a folder.

    Returns:
        Columns metric (key of the measure), score, model1, model2, k, perc_k, pred_type (agree | disagree), eps
        (float), dataset, input, and whatever else the files hold. A file that does not name its data set or input is
        understood by its JSON, then by the folder `<dataset>/<standard|inverted>` it lies in; else they are '' and
        standard. Scores that could not be computed are nan. Of several procedures (as with subgroup_sim.py's
        --published) in one file, data set and input, the one that was added last.
    """
    tables = []
    for csv in _csvs(path, SUBGROUPS_NAME):
        table = schemas.read_table(csv, schemas.SubgroupRow)
        record = read_record(csv)
        settings, folder = record.get("settings", {}), csv.parent
        by_folder = (folder.parent.name, folder.name) if folder.name in ("standard", "inverted") else ("", "standard")
        for name, value in zip(("dataset", "input"), by_folder):
            if name not in table:
                table[name] = settings.get(name) or value
        if made.ROW_COLUMN in table:
            table = _one_procedure(csv, table, record.get("rows", {}))
        table["metric"] = table["metric"].replace(_KEY_OF_METRIC)
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=[*SUBGROUP_COLUMNS, "dataset", "input"])
    return pd.concat(tables, ignore_index=True)


def _one_procedure(csv: Path, table: pd.DataFrame, made_with: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of the procedure added last: rows of several must not be averaged."""
    apart = ("eps", "dataset", "input", "models")
    words = {
        entry: ", ".join(f"{name} {value}" for name, value in settings.items() if name not in apart)
        for entry, settings in made_with.items()
    }
    procedure = table[made.ROW_COLUMN].map(words).fillna("unknown")
    last = procedure.groupby([table["dataset"], table["input"]]).transform("last")
    if left_out := sorted(set(procedure[procedure != last])):
        logger.warning("{}: left out rows of other procedures ({})", csv, "; ".join(left_out))
    return table[procedure == last].copy()


def load_probe_agreement(path: Path | str) -> pd.DataFrame:
    """Agreement of all pairs of probes, from a CSV of compare_probes.py or from all below a folder.

    Returns:
        Columns probe_1, probe_2, agreement (share of images), and, from the JSON beside the CSV where there is one,
        arch_1, arch_2, eps (float, nan if unknown) and dataset. Without JSON the architecture is the name of the run.
    """
    tables = []
    for csv in _csvs(path, PROBES_NAME):
        table = schemas.read_table(csv, schemas.ProbeRow)
        about = read_record(csv).get("probes", {})
        for side in "12":
            names = table[f"probe_{side}"]
            table[f"arch_{side}"] = [about.get(name, {}).get("arch") or name.split("/")[0] for name in names]
        first = [about.get(name, {}) for name in table["probe_1"]]
        table["eps"] = [eps_value(probe["eps"]) if probe.get("eps") else np.nan for probe in first]
        table["dataset"] = [probe.get("dataset") or "" for probe in first]
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=[*PROBE_COLUMNS, "arch_1", "arch_2", "eps", "dataset"])
    return pd.concat(tables, ignore_index=True)
