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
from univ.measures.cca import pwcca, pwcca_measure, svcca, svcca_measure
from univ.measures.cka import biased_cka_measure, cka, cka_measure, rbf_cka, rbf_cka_measure
from univ.measures.cosine import second_order_cosine, second_order_cosine_measure
from univ.measures.functional import (
    Outputs,
    SetStatistic,
    ambiguity,
    ambiguity_statistic,
    capa,
    capa_measure,
    churn,
    churn_measure,
    disagreement,
    disagreement_measure,
    discrepancy,
    discrepancy_statistic,
    error_consistency,
    error_consistency_measure,
    jsd,
    jsd_measure,
    kappa,
    kappa_measure,
    normalized_disagreement,
    normalized_disagreement_measure,
)
from univ.measures.gulp import gulp, gulp_measure
from univ.measures.neighbors import (
    cknna,
    cknna_measure,
    jaccard,
    jaccard_measure,
    joint_measure,
    joint_similarity,
    mutual_knn,
    mutual_knn_measure,
    rank_measure,
    rank_similarity,
)
from univ.measures.predictivity import linear_predictivity, linear_predictivity_measure
from univ.measures.procrustes import procrustes, procrustes_measure
from univ.measures.rsa import rsa, rsa_measure
from univ.measures.rtd import rtd, rtd_lite, rtd_lite_measure, rtd_measure
from univ.measures.shape import shape_distance, shape_measure
from univ.measures.statistics import (
    Statistic,
    concentricity,
    concentricity_statistic,
    magnitude,
    magnitude_statistic,
)
from univ.measures.streaming import StreamedPair

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
MORE_REP_MEASURES: dict[str, Callable[..., Measure]] = {  # beyond the study's list
    "mutual_knn": mutual_knn_measure,
    "cknna": cknna_measure,
    "cka_biased": biased_cka_measure,
    "cka_rbf": rbf_cka_measure,
    "linreg": linear_predictivity_measure,
    "svcca": svcca_measure,
    "pwcca": pwcca_measure,
    "rsa": rsa_measure,
    "rtd_lite": rtd_lite_measure,
}
FUNC_MEASURES: dict[str, Callable[..., Measure]] = {
    "dis": disagreement_measure,
    "norm": normalized_disagreement_measure,
    "kappa": kappa_measure,
    "jsd": jsd_measure,
    "churn": churn_measure,
}
MORE_FUNC_MEASURES: dict[str, Callable[..., Measure]] = {
    "error_consistency": error_consistency_measure,
    "capa": capa_measure,
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
    "MORE_FUNC_MEASURES",
    "MORE_REP_MEASURES",
    "REP_MEASURES",
    "REP_STATISTICS",
    "Measure",
    "Outputs",
    "Pair",
    "Preparation",
    "Prepared",
    "SetStatistic",
    "Statistic",
    "StreamedPair",
    "UndefinedScore",
    "ambiguity",
    "build",
    "capa",
    "churn",
    "cka",
    "cknna",
    "concentricity",
    "disagreement",
    "discrepancy",
    "error_consistency",
    "gulp",
    "jaccard",
    "joint_similarity",
    "jsd",
    "kappa",
    "linear_predictivity",
    "magnitude",
    "mutual_knn",
    "normalized_disagreement",
    "procrustes",
    "pwcca",
    "rank_similarity",
    "rbf_cka",
    "rsa",
    "rtd",
    "rtd_lite",
    "second_order_cosine",
    "shape_distance",
    "svcca",
]
