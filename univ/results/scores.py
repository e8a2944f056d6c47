"""Where a result lives and how it is written and read: scores -> results/<measure>/<standard|inverted>/...csv + json.

Layout, names and orientation are the published ones, so that the study's own files and ours are read alike; only this
module knows them. See `ResultFile` for the path, `write` and `check` for the files, `load_long_table` for what the
figures are drawn from.
"""

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from loguru import logger

from univ import files
from univ.data import DATASETS
from univ.eps import eps_value
from univ.errors import InputError
from univ.files import schemas
from univ.measures.cards import CARDS, find_card
from univ.results import made

NEIGHBOR_FUNCTIONS = ("cos_sim", "euc")
COMPANIONS = ("ci", "pvalue", "calibrated")
"""Long tables beside a matrix, `<name>_<companion>.csv`: intervals, permutation p-values, calibrated scores."""

CKA_FOLDER = "10000"  # the published files lie below the number of images the study compared; a constant of the layout

LONG_COLUMNS = ["model1", "model2", "score", "measure", "eps", "dataset", "input", "exp"]


def canonical_exp(tag: str | float) -> str:
    """One spelling per tag: the original rep.py writes 10 as `10.0` in file names, func.py as `10`; here it is `10`."""
    text = str(tag)
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def exp_spellings(tag: str | float) -> list[str]:
    """The tag as typed, then its other spelling if it has one: 10 -> 10, 10.0; 0.1 -> 0.1 only."""
    text = str(tag)
    short = canonical_exp(text)
    other = [short, f"{short}.0"] if re.fullmatch(r"-?\d+", short) else [short]
    return [text, *(spelling for spelling in other if spelling != text)]


@dataclass(frozen=True)
class ResultFile:
    """One result of one measure in one setting; `path` says where it lives.

    Attributes:
        measure: command-line key (`jacc`, `dis`, ...).
        dataset, models: the images compared on, and the training data of the models (part of the path on sat6 only).
        eps: name of the models' adversarial radius, such as eps3.
        exp: tag of the index file, as typed.
        inverted: compared on inverted images.
        center, normalize: representations were centred, scaled to unit norm; in the name where the measure has it.
        function: neighbour function of jacc, rank and rank_jacc.
        adversarial, sample, baseline: adversarial images (-v), inverted images pooled over models (-s), permuted
            inputs (-p).
    """

    measure: str
    dataset: str
    models: str
    eps: str
    exp: str = "0"
    inverted: bool = False
    center: bool = False
    normalize: bool = False
    function: str = "cos_sim"
    adversarial: bool = False
    sample: bool = False
    baseline: bool = False

    @property
    def input(self) -> str:
        """`standard` or `inverted`."""
        return "inverted" if self.inverted else "standard"

    @property
    def kind(self) -> str:
        """plain, or the parts of adv, sample and base that apply, joined by +."""
        flags = {"adv": self.adversarial, "sample": self.sample, "base": self.baseline}
        return "+".join(name for name, on in flags.items() if on) or "plain"

    @property
    def rowwise(self) -> bool:
        """Whether each model has its own images, so that cells (a, b) and (b, a) are different comparisons."""
        return self.inverted and not self.sample

    def folder(self, root: Path | str) -> Path:
        """The folder of this result below the results folder `root`.

        On a data set that is only compared on (sat6) the last part names the models' training data for every measure:
        without it the results of ImageNet and CIFAR-10 models on the same images would overwrite each other.
        """
        where = find_card(self.measure)
        for what in ("dataset", "models", "function"):
            files.file_name(getattr(self, what), what)
        folder = Path(root) / files.file_name(where.folder, "measure") / self.input
        if where.neighbors:
            folder /= self.function
        if self.measure == "cka":
            folder /= CKA_FOLDER
        folder /= self.dataset
        only_compared_on = self.dataset in DATASETS and DATASETS[self.dataset].architectures is None
        return folder / self.models if only_compared_on else folder

    def name(self, *, singles: bool = False) -> str:
        """File name, `<name>_<pre><type>[all_]<eps>_<exp>.csv`; `singles` is the list of single baseline scores."""
        where = find_card(self.measure)
        parts = [
            (where.normalized and self.normalize, "norm_"),
            (where.centered and self.center, "mean_"),
            (self.adversarial, "adv_"),
            (self.sample, "sample_"),
            (self.baseline, "base_"),
            (singles, "all_"),
        ]
        name = f"{where.file}_{''.join(text for on, text in parts if on)}{self.eps}_{self.exp}.csv"
        return files.file_name(name, "result")

    def path(self, root: Path | str) -> Path:
        """The CSV of scores."""
        return self.folder(root) / self.name()

    def singles_path(self, root: Path | str) -> Path:
        """The CSV with the single scores of a baseline (-p)."""
        return self.folder(root) / self.name(singles=True)

    def companion_path(self, root: Path | str, companion: str) -> Path:
        """The long table `<name>_<companion>.csv` beside the scores, such as the confidence intervals `_ci.csv`."""
        if companion not in COMPANIONS:
            raise ValueError(f"unknown companion {companion!r}: expected one of {', '.join(COMPANIONS)}")
        path = self.path(root)
        return path.with_name(f"{path.stem}_{companion}.csv")

    def on_disk(self, root: Path | str) -> "ResultFile | None":
        """This file, or the same under its tag's other spelling (10, 10.0), whichever exists; None if neither does."""
        spelled = (replace(self, exp=exp) for exp in exp_spellings(self.exp))
        return next((file for file in spelled if file.path(root).is_file()), None)


_KEY_OF_FOLDER = {where.folder: key for key, where in CARDS.items()}
_NAME = re.compile(
    r"(?P<normalize>norm_)?(?P<center>mean_)?(?P<adversarial>adv_)?(?P<sample>sample_)?(?P<baseline>base_)?"
    r"(?P<singles>all_)?(?P<eps>eps\d+)_(?P<exp>.+)\.csv"
)
_NOT_SCORES = re.compile(rf"_({'|'.join(COMPANIONS)})\.csv$")


def parse_path(path: Path, root: Path) -> ResultFile | None:
    """The inverse of `ResultFile.path`; None for anything below `root` that is not a CSV of scores."""
    folder, kind, *middle = path.relative_to(root).parts[:-1]
    measure = _KEY_OF_FOLDER.get(folder, folder)
    where = find_card(measure)
    if kind not in ("standard", "inverted") or not path.name.startswith(f"{where.file}_"):
        return None
    match = _NAME.fullmatch(path.name[len(where.file) + 1 :])
    if match is None or match["singles"] or _NOT_SCORES.search(path.name):
        return None
    function = middle.pop(0) if middle and middle[0] in NEIGHBOR_FUNCTIONS else "cos_sim"
    if middle and middle[0].isdigit():  # cka's number of images
        middle.pop(0)
    if len(middle) not in (1, 2):
        return None
    flags = {name: match[name] is not None for name in ("normalize", "center", "adversarial", "sample", "baseline")}
    flags["inverted"] = kind == "inverted"
    return ResultFile(measure, middle[0], middle[-1], match["eps"], match["exp"], function=function, **flags)


# ---------------------------------------------------------------------------------------------------- writing


def write(
    root: Path | str,
    file: ResultFile,
    scores: pd.DataFrame,
    settings: Mapping[str, Any],
    record: Mapping[str, Any] | None = None,
    singles: pd.DataFrame | None = None,
) -> Path:
    """Write one result in the published layout, with its JSON.

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


# ---------------------------------------------------------------------------------------------------- is it done?


def check(
    root: Path | str, file: ResultFile, settings: Mapping[str, Any], *, companions: Collection[str] = ()
) -> made.Status:
    """Whether the result exists and was made with these settings.

    A CSV without JSON, as published ones are, counts as done: `reason` then says that its settings are unknown. With a
    baseline the single scores must be there too, and so must the `companions` (such as `ci`) asked for.
    """
    there = file.on_disk(root)
    if there is None:
        return made.Status(False, f"{file.path(root)} does not exist", file.path(root))
    path = there.path(root)
    status = made.check(path, settings)
    others = [there.companion_path(root, companion) for companion in companions]
    if file.baseline:
        others.append(there.singles_path(root))
    for other in others if status else ():
        if not other.is_file():
            return made.Status(False, f"{path} is there but {other.name} is not", path)
        if not (second := made.check(other, settings)):
            return replace(second, path=path)
    return status


# ---------------------------------------------------------------------------------------------------- reading


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


def read_singles(path: Path | str) -> pd.DataFrame:
    """The single baseline scores: like `read_matrix`, with a list of floats in each cell."""
    cells = schemas.read_csv(path, index_col=0, dtype=str)
    cells.index = cells.columns
    return cells.map(lambda text: [float(word) for word in text.strip("[] \n").replace(",", " ").split()])


def read_record(path: Path | str) -> dict[str, Any]:
    """What the JSON beside a CSV holds: `settings` and the record; empty, said so once, if it is not one that fits."""
    record, problem = made.read(path)
    if problem and made.record_path(path).is_file():
        _say_once(f"{path}: {problem}: its settings are unknown")
    return record


@functools.cache
def _say_once(message: str) -> None:
    logger.warning("{}", message)


@dataclass(frozen=True)
class Found:
    """A result on the disk."""

    file: ResultFile
    path: Path

    @property
    def dataset(self) -> str:
        """Name for tables and figures: on sat6 it includes the models' training data."""
        return self.file.dataset if self.file.models == self.file.dataset else f"{self.file.dataset}/{self.file.models}"


def find_results(
    root: Path | str,
    measures: Collection[str] | None = None,
    *,
    kind: str = "plain",
    center: bool = True,
    normalize: bool = True,
    function: str = "cos_sim",
) -> list[Found]:
    """All CSVs of scores below a results folder, of one kind and one preprocessing (the study's by default).

    Where one result exists under both spellings of its tag, the one with a JSON that fits is taken.
    """
    root = Path(root)
    chosen: dict[ResultFile, Found] = {}
    for path in sorted(root.glob("*/standard/**/*.csv")) + sorted(root.glob("*/inverted/**/*.csv")):
        file = parse_path(path, root)
        if file is None or file.kind != kind or (measures is not None and file.measure not in measures):
            continue
        where = find_card(file.measure)
        if (where.neighbors and file.function != function) or (where.normalized and file.normalize != normalize):
            continue
        if where.studied and where.centered and file.center != center:  # others need not have a centred form
            continue
        key = replace(file, exp=canonical_exp(file.exp))
        if key in chosen:
            keep = Found(key, path) if read_record(path) else chosen[key]
            logger.warning("{} and {} are the same result: taking {}", chosen[key].path, path, keep.path)
            chosen[key] = keep
        else:
            chosen[key] = Found(key, path)
    return list(chosen.values())


def load_long_table(
    results_dir: Path | str,
    measures: Collection[str] | None = None,
    *,
    settings: Sequence[str] = (),
    kind: str = "plain",
    center: bool = True,
    normalize: bool = True,
    function: str = "cos_sim",
) -> pd.DataFrame:
    """Every pairwise score below a results folder, one row per comparison of two different models.

    Regular images: each unordered pair once, model1 the one that comes first in the file. Inverted images: both cells,
    because they are different comparisons; model1 is the model whose inverted images were used (the file's column).
    Pooled inverted images (kind `sample`) are the same for all models: each pair once. A measure beyond the study's
    list is read once per pair where its matrix is symmetric, else in both directions.

    Args:
        measures: command-line keys to read; None for all.
        settings: settings to add as columns from the JSON beside each CSV, such as `knn`; nan where there is none.
        kind, center, normalize, function: which of several results of the same measure, see `find_results`.

    Returns:
        Columns model1, model2, score, measure (key), eps (float), dataset, input (standard | inverted), exp (`10` for
        both 10 and 10.0), then `settings`. Empty, with these columns, if there is nothing.
    """
    rows: list[tuple[Any, ...]] = []
    for found in find_results(results_dir, measures, kind=kind, center=center, normalize=normalize, function=function):
        file = found.file
        if not find_card(file.measure).pairs:
            continue
        made_with = read_record(found.path).get("settings", {})
        extra = [made_with.get(name, np.nan) for name in settings]
        about = (file.measure, eps_value(file.eps), found.dataset, file.input, file.exp, *extra)
        rows += [(*cell, *about) for cell in _cells(file, read_matrix(found.path))]
    table = pd.DataFrame(rows, columns=[*LONG_COLUMNS, *settings])
    return table.astype({"score": float, "eps": float})


def _cells(file: ResultFile, scores: pd.DataFrame) -> Iterator[tuple[str, str, float]]:
    """(model1, model2, score) of a published matrix, without the diagonal."""
    values = scores.to_numpy()
    once = not file.rowwise
    if once and not find_card(file.measure).symmetric:
        once = bool(np.allclose(values, values.T, rtol=1e-6, atol=1e-6, equal_nan=True))
    models = list(scores.index)
    for i, first in enumerate(models):
        for j, second in enumerate(models):
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
    for found in find_results(results_dir, measures, kind=kind):
        file = found.file
        if find_card(file.measure).pairs:
            continue
        about = (file.measure, eps_value(file.eps), found.dataset, file.input, file.exp)
        of_set = file.measure in ("amb", "disc")
        if of_set or not file.rowwise:
            for name, score in _only_row(found.path).items():
                source, model = ("", str(name)) if not of_set else (str(name) if file.rowwise else "", "")
                rows.append((source, model, score, *about))
        else:
            scores = read_matrix(found.path)
            rows += [(source, model, scores.loc[model, source], *about) for source in scores for model in scores.index]
    return pd.DataFrame(rows, columns=["source", "model", *LONG_COLUMNS[2:]]).astype({"score": float, "eps": float})


def _only_row(path: Path) -> dict[str, float]:
    table = schemas.read_csv(path, index_col=0)
    if len(table) != 1:
        raise InputError(f"{path} holds {len(table)} rows, expected one of scores")
    return schemas.validate({str(name): cell for name, cell in table.iloc[0].items()}, dict[str, float], path)


def load_accuracies(results_dir: Path | str) -> pd.DataFrame:
    """Accuracies on the compared images, as func.py records them in the JSON beside each disagreement CSV.

    Returns:
        Columns source (whose inverted images; empty on regular ones), model, accuracy (share), num_classes, eps,
        dataset, input, exp. Published CSVs have no JSON: theirs are not in the table.
    """
    rows: list[tuple[Any, ...]] = []
    for found in find_results(results_dir, ["dis"]):
        file, record = found.file, read_record(found.path)
        accuracy, num_classes = record.get("accuracy"), record.get("num_classes")
        if not accuracy or num_classes is None:
            continue
        by_source = accuracy if file.rowwise else {"": accuracy}
        if not all(isinstance(of_model, dict) for of_model in by_source.values()):
            _say_once(f"{made.record_path(found.path).name} holds accuracies of another kind of images: left out")
            continue
        about = (num_classes, eps_value(file.eps), found.dataset, file.input, file.exp)
        rows += [
            (source, model, value, *about)
            for source, of_model in by_source.items()
            for model, value in of_model.items()
        ]
    return pd.DataFrame(rows, columns=["source", "model", "accuracy", "num_classes", "eps", "dataset", "input", "exp"])


def find_evaluations(root: Path | str, named: Iterable[Path | str] = ()) -> list[Path]:
    """The CSVs of accuracies named, and those below a results folder: accuracy.csv, and all in folders `accuracy`."""
    root = Path(root)
    found = [*map(Path, named), *root.glob("accuracy.csv"), *sorted(root.glob("**/accuracy/*.csv"))]
    return list({path.resolve(): path for path in found}.values())


def load_evaluations(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Clean accuracies from the CSVs the training scripts append to (--results-file), in `load_accuracies`' columns.

    They are accuracies on the whole test part: a substitute where a disagreement CSV has no JSON. Of several
    evaluations of a model the last one counts.

    Raises:
        InputError: a file that is no such CSV.
    """
    tables = [schemas.read_table(path, schemas.EvaluationRow) for path in paths]
    columns = ["source", "model", "accuracy", "num_classes", "eps", "dataset", "input", "exp"]
    if not tables:
        return pd.DataFrame(columns=columns)
    table = pd.concat(tables, ignore_index=True)
    table = table[table["attack_eps"] == 0].assign(eps=table["trained_eps"])
    table["num_classes"] = [DATASETS[name].num_classes if name in DATASETS else None for name in table["dataset"]]
    table = table.dropna(subset=["eps", "num_classes"]).drop_duplicates(["model", "dataset", "eps"], keep="last")
    return table.assign(source="", input="standard", exp="", accuracy=table["acc"] / 100)[columns]


def _csvs(path: Path | str, name: str) -> list[Path]:
    """The file itself, or every file called `name` below a folder."""
    path = Path(path)
    return [path] if path.is_file() else sorted(path.rglob(name))


SUBGROUPS_NAME = "repsim_subgroups.csv"
SUBGROUP_COLUMNS = ["metric", "score", "model1", "model2", "k", "perc_k", "pred_type", "eps"]
_KEY_OF_METRIC = {name: key for key in ("cka", "proc", "rtd", "jacc") for name in (CARDS[key].folder, CARDS[key].file)}


def load_subgroups(path: Path | str) -> pd.DataFrame:
    """Similarity on the images where two models agree and where they differ, as subgroup_sim.py writes it.

    Args:
        path: a CSV, or a folder: every `repsim_subgroups.csv` below it is read.

    Returns:
        Columns metric (key of the measure), score, model1, model2, k, perc_k, pred_type (agree | disagree), eps
        (float), dataset, input, and whatever else the files hold. A file that does not name its data set or input is
        understood by its JSON, then by the folder `<dataset>/<standard|inverted>` it lies in; else they are '' and
        standard. Scores that could not be computed are nan. Of several procedures (such as subgroup_sim.py's
        --size-matched) in one file, data set and input, the one that was added last.
    """
    tables = []
    for csv in _csvs(path, SUBGROUPS_NAME):
        table = schemas.read_table(csv, schemas.SubgroupRow)
        record = read_record(csv)
        settings = record.get("settings", {})
        in_layout = csv.parent.name in ("standard", "inverted")
        found = {
            "dataset": settings.get("dataset") or (csv.parent.parent.name if in_layout else ""),
            "input": settings.get("input") or (csv.parent.name if in_layout else "standard"),
        }
        table = table.assign(**{name: value for name, value in found.items() if name not in table})
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


PROBES_NAME = "probe_agreement.csv"
PROBE_COLUMNS = ["probe_1", "probe_2", "agreement"]


def load_probe_agreement(path: Path | str) -> pd.DataFrame:
    """Agreement of all pairs of probes, as compare_probes.py writes it.

    Args:
        path: a CSV, or a folder: every `probe_agreement.csv` below it is read.

    Returns:
        Columns probe_1, probe_2, agreement (share of images), and, from the JSON beside the CSV where there is one,
        arch_1, arch_2, eps (float, nan if unknown) and dataset. Without JSON the architecture is the name of the run.
    """
    tables = []
    for csv in _csvs(path, PROBES_NAME):
        table = schemas.read_table(csv, schemas.ProbeRow)
        about = read_record(csv).get("probes", {})
        for side in ("1", "2"):
            names = table[f"probe_{side}"]
            table[f"arch_{side}"] = [about.get(name, {}).get("arch") or name.split("/")[0] for name in names]
        first = [about.get(name, {}) for name in table["probe_1"]]
        table["eps"] = [eps_value(probe["eps"]) if probe.get("eps") else np.nan for probe in first]
        table["dataset"] = [probe.get("dataset") or "" for probe in first]
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=[*PROBE_COLUMNS, "arch_1", "arch_2", "eps", "dataset"])
    return pd.concat(tables, ignore_index=True)
