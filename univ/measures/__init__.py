"""Measures of how alike two models are: by their representations (N, D) or by their predictions.

Needs torch (and NumPy, SciPy or gudhi where a measure does), and nothing else of this project:

    from univ.measures import cka, jaccard, procrustes
    cka(x, y), procrustes(x, y), jaccard(x, y, k=10)      # x, y: tensors or arrays, row i from image i

To compare many models, make a measure once and prepare each model once (`univ.compare` does it for whole sets):

    measure = REP_MEASURES["jacc"](k=10)
    prepared = [measure.prepare(rep) for rep in reps]
    measure.compare(prepared[0], prepared[1])
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from univ.measures.base import Measure, Pair, Preparation, Prepared, UndefinedScore
from univ.measures.cka import cka, cka_measure
from univ.measures.cosine import second_order_cosine, second_order_cosine_measure
from univ.measures.functional import (
    Outputs,
    SetStatistic,
    ambiguity,
    ambiguity_statistic,
    churn,
    churn_measure,
    disagreement,
    disagreement_measure,
    discrepancy,
    discrepancy_statistic,
    jsd,
    jsd_measure,
    kappa,
    kappa_measure,
    normalized_disagreement,
    normalized_disagreement_measure,
)
from univ.measures.gulp import gulp, gulp_measure
from univ.measures.neighbors import (
    jaccard,
    jaccard_measure,
    joint_measure,
    joint_similarity,
    rank_measure,
    rank_similarity,
)
from univ.measures.procrustes import procrustes, procrustes_measure
from univ.measures.rtd import rtd, rtd_measure
from univ.measures.shape import shape_distance, shape_measure
from univ.measures.statistics import (
    Statistic,
    concentricity,
    concentricity_statistic,
    magnitude,
    magnitude_statistic,
)

# Command-line key -> factory. A factory takes its settings by keyword and returns a Measure (or a statistic).
REP_STATISTICS: dict[str, Callable[..., Statistic]] = {
    "mag": magnitude_statistic,
    "con": concentricity_statistic,
}
REP_MEASURES: dict[str, Callable[..., Measure]] = {
    "cos": second_order_cosine_measure,
    "jacc": jaccard_measure,
    "rank": rank_measure,
    "rank_jacc": joint_measure,
    "proc": procrustes_measure,
    "shape": shape_measure,
    "cka": cka_measure,
    "gulp": gulp_measure,
    "rtd": rtd_measure,
}
FUNC_MEASURES: dict[str, Callable[..., Measure]] = {
    "dis": disagreement_measure,
    "norm": normalized_disagreement_measure,
    "kappa": kappa_measure,
    "jsd": jsd_measure,
    "churn": churn_measure,
}
FUNC_STATISTICS: dict[str, Callable[..., SetStatistic]] = {
    "amb": ambiguity_statistic,
    "disc": discrepancy_statistic,
}

T = TypeVar("T")


def build(registry: Mapping[str, Callable[..., T]], keys: Iterable[str], **settings: Any) -> list[T]:
    """Measures `keys` of a registry, each with those of the settings that it knows.

    Raises:
        ValueError: an unknown key, or a setting that no measure of this registry knows.
    """
    accepted = {key: inspect.signature(factory).parameters for key, factory in registry.items()}
    unknown = set(settings) - {name for parameters in accepted.values() for name in parameters}
    if unknown:
        raise ValueError(f"no measure has the settings {sorted(unknown)}")
    built = []
    for key in keys:
        if key not in registry:
            raise ValueError(f"unknown measure {key!r}: choose from {', '.join(registry)}")
        built.append(registry[key](**{name: value for name, value in settings.items() if name in accepted[key]}))
    return built


__all__ = [
    "FUNC_MEASURES",
    "FUNC_STATISTICS",
    "REP_MEASURES",
    "REP_STATISTICS",
    "Measure",
    "Outputs",
    "Pair",
    "Preparation",
    "Prepared",
    "SetStatistic",
    "Statistic",
    "UndefinedScore",
    "ambiguity",
    "build",
    "churn",
    "cka",
    "concentricity",
    "disagreement",
    "discrepancy",
    "gulp",
    "jaccard",
    "joint_similarity",
    "jsd",
    "kappa",
    "magnitude",
    "normalized_disagreement",
    "procrustes",
    "rank_similarity",
    "rtd",
    "second_order_cosine",
    "shape_distance",
]
