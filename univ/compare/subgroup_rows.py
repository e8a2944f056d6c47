"""The table of subgroups, which grows: cached representations -> the rows that are not there yet.

The JSON beside the table says how each row was made: what is in it already is not computed again, rows of other radii,
images or procedures stay.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger
from torch import Tensor

from univ import results
from univ.compare.subgroup_scores import subgroups
from univ.errors import InputError
from univ.files import schemas
from univ.reps.cache import Cached, read_cache
from univ.reps.identity import Identity, require_same
from univ.results import made

KEY = ["metric", "model1", "model2"]
PROCEDURE = ("function", "published", "size_matched", "seed")
"""What decides the numbers beside the images and the models."""


@dataclass(frozen=True)
class CachedModels:
    """Models that are compared with each other, by name: what the cache holds of them for the same images."""

    reps: dict[str, Tensor]
    preds: dict[str, Tensor]
    identities: dict[str, Identity]


def cached_models(
    folder: Path, dataset: str, eps: str, *, inverted: bool, names: Sequence[str] | None = None
) -> Iterator[CachedModels]:
    """What to compare with each other.

    On regular images all models; on inverted ones (keys source/model) each source with every other model on its images.

    Args:
        folder: the cache.
        names: these models only; None for all.

    Raises:
        InputError: a model asked for is not in the cache; representations and outputs are of different images,
            checkpoints or precisions.
    """
    reps, outputs = (read_cache(folder, which, dataset, eps, inverted=inverted) for which in ("reps", "output"))
    held = list(dict.fromkeys(_name(key) for key in reps.tensors))
    if missing := [name for name in names or () if name not in held]:
        raise InputError(f"--models {' '.join(missing)}: not in the cache of {eps}, which holds {', '.join(held)}")
    chosen = [name for name in held if names is None or name in names]
    if "/" in next(iter(reps.tensors)):
        sets = [(f"{source}/{source}", f"{source}/{other}") for source, other in itertools.permutations(chosen, 2)]
    else:
        sets = [tuple(chosen)]
    for keys in sets:
        _require_one_origin(reps, outputs, keys)
        yield CachedModels(
            {_name(key): reps.tensors[key] for key in keys},
            {_name(key): outputs.tensors[key].argmax(dim=1) for key in keys},
            {_name(key): reps.identities[key] for key in keys},
        )


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _require_one_origin(reps: Cached, outputs: Cached, keys: Sequence[str]) -> None:
    first = reps.identities[keys[0]]
    for key in keys:
        mine = reps.identities[key]
        if key not in outputs.identities:
            raise InputError(f"the cache holds the representations of {key}, but not its outputs: run rep.py again")
        require_same(mine, outputs.identities[key], f"the representations and the outputs of {key}")
        require_same(first.inputs, mine.inputs, f"the representations of {keys[0]} and {key}")
        if first.precision != mine.precision:
            raise InputError(
                f"the representations of {keys[0]} and {key} were made in {first.precision} and {mine.precision}: "
                "run rep.py again with one --precision"
            )


def read_rows(path: Path) -> made.Rows:
    """The rows that are there. Those of a table with one JSON for all rows get an entry each by radius."""
    if path.is_file():
        schemas.read_table(path, schemas.SubgroupRow)  # says what is wrong with a damaged or foreign one
    rows = made.Rows.read(path)
    of_all = results.read_record(path).get("settings", {})
    if not rows.settings and of_all and not rows.table.empty:
        for eps, group in rows.table.groupby("eps"):
            settings = {**{key: of_all.get(key) for key in ("dataset", "input", *PROCEDURE)}, "eps": eps}
            rows.settings[made.Rows.entry(settings)] = settings
            rows.table.loc[group.index, made.ROW_COLUMN] = made.Rows.entry(settings)
    if "input" not in rows.table and not rows.table.empty:
        rows.table["input"] = of_all.get("input", "inverted" if path.parent.name == "inverted" else "standard")
    return rows


def add_rows(
    rows: made.Rows,
    models: CachedModels,
    measures: Sequence[str],
    common: Mapping[str, Any],
    eps: str,
    record: Mapping[str, Any],
    *,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Compute what is not there yet, and write the table after each measure.

    Args:
        common: dataset, input and procedure, which all rows of this run share.
        eps: the models' radius, as the table has it.
        record: for the JSON beside the table.
        overwrite: compute anew what is there.
        options: of `subgroups`, besides the procedure.
    """
    about = {**common, "eps": eps}
    settings = {
        pair: {**about, "models": {name: asdict(models.identities[name]) for name in pair}}
        for pair in itertools.combinations(models.reps, 2)
    }
    done = set() if overwrite else _done(rows, settings, about)
    options |= {name: common[name] for name in PROCEDURE}
    for measure in measures:
        if pairs := [pair for pair in settings if (measure, *pair) not in done]:
            new = subgroups(models.reps, models.preds, [measure], pairs=pairs, **options)
            _remove_replaced(rows, new, about)
            new = new.assign(**{name: about[name] for name in ("eps", "dataset", "input")})
            rows.add(new, [settings[pair] for pair in zip(new["model1"], new["model2"])])
            rows.write(common, record)


def _done(
    rows: made.Rows, wanted: Mapping[tuple[str, str], Mapping[str, Any]], about: Mapping[str, Any]
) -> set[tuple[str, str, str]]:
    """(metric, model1, model2) of the rows that were made with the settings wanted for their pair.

    So count rows that nobody knows the settings of, as published ones are. Says of the others what differs.
    """
    done, differing = set(), {}
    for row in rows.table.itertuples(index=False):
        settings, entry = wanted.get((row.model1, row.model2)), getattr(row, made.ROW_COLUMN)
        if settings is None or (row.eps, row.input) != (about["eps"], about["input"]):
            continue
        known = rows.settings.get(entry)
        if known is None or made.Rows.entry(settings) == entry:
            done.add((row.metric, row.model1, row.model2))
        elif _without_models(known) == dict(about):
            differing[row.model1, row.model2] = made.differences(known, settings)
    for (model1, model2), words in differing.items():
        logger.info("{} and {} are computed anew: {}", model1, model2, made.listed(words))
    return done


def _remove_replaced(rows: made.Rows, new: pd.DataFrame, about: Mapping[str, Any]) -> None:
    """Drop the rows that new ones of the same measure, pair and procedure replace."""
    table = rows.table
    if table.empty:
        return
    same = {entry for entry, settings in rows.settings.items() if _without_models(settings) == dict(about)}
    unknown = table[made.ROW_COLUMN].isna() & (table["eps"] == about["eps"]) & (table["input"] == about["input"])
    again = pd.MultiIndex.from_frame(table[KEY]).isin(pd.MultiIndex.from_frame(new[KEY]))
    rows.table = table[~((table[made.ROW_COLUMN].isin(same) | unknown) & again)].reset_index(drop=True)


def _without_models(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a row from others of the same models and measure."""
    return {key: value for key, value in settings.items() if key != "models"}
