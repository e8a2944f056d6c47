"""Measures of how alike two models are: by their representations (N, D) or by their predictions.

Needs torch (and NumPy, SciPy or gudhi where a measure does), and nothing else of this project:

    from univ.measures import cka, jaccard, procrustes
    cka(x, y), procrustes(x, y), jaccard(x, y, k=10)

x and y are tensors or arrays (N, D_x) and (N, D_y), row i of both from the same image; other numbers of images, NaN and
infinity are a ValueError. To compare many models, make a measure once and prepare each model once (`univ.compare` does
it for whole sets):

    measure = REP_MEASURES["jacc"](k=10)
    prepared = [measure.prepare(rep) for rep in reps]
    measure.compare(prepared[0], prepared[1])
"""

from univ.measures.base import Measure, Pair, Preparation, Prepared, UndefinedScore
from univ.measures.cards import (
    CARDS,
    FUNC_MEASURES,
    FUNC_STATISTICS,
    MORE_FUNC_MEASURES,
    MORE_REP_MEASURES,
    REP_MEASURES,
    REP_STATISTICS,
    SHOWN,
    Card,
    build,
    find_card,
    find_modules,
)
from univ.measures.cca import eigenspace_overlap_score, pwcca, svcca
from univ.measures.cka import cka, rbf_cka
from univ.measures.cknna import cknna
from univ.measures.cosine import second_order_cosine
from univ.measures.distances import distance_correlation, imd, rsm_norm_difference, uniformity_difference
from univ.measures.functional import (
    Outputs,
    SetStatistic,
    ambiguity,
    capa,
    churn,
    disagreement,
    discrepancy,
    error_consistency,
    jsd,
    kappa,
    normalized_disagreement,
)
from univ.measures.gulp import gulp
from univ.measures.matching import (
    aligned_cosine_similarity,
    hard_correlation_match,
    permutation_procrustes,
    soft_correlation_match,
)
from univ.measures.neighbors import jaccard, joint_similarity, mutual_knn, rank_similarity
from univ.measures.predictivity import linear_predictivity
from univ.measures.procrustes import procrustes
from univ.measures.rsa import rsa
from univ.measures.rtd import rtd, rtd_lite
from univ.measures.shape import shape_distance
from univ.measures.statistics import Statistic, concentricity, magnitude
from univ.measures.streaming import StreamedPair

find_modules()

__all__ = [
    "CARDS",
    "FUNC_MEASURES",
    "FUNC_STATISTICS",
    "MORE_FUNC_MEASURES",
    "MORE_REP_MEASURES",
    "REP_MEASURES",
    "REP_STATISTICS",
    "SHOWN",
    "Card",
    "Measure",
    "Outputs",
    "Pair",
    "Preparation",
    "Prepared",
    "SetStatistic",
    "Statistic",
    "StreamedPair",
    "UndefinedScore",
    "aligned_cosine_similarity",
    "ambiguity",
    "build",
    "capa",
    "churn",
    "cka",
    "cknna",
    "concentricity",
    "disagreement",
    "discrepancy",
    "distance_correlation",
    "eigenspace_overlap_score",
    "error_consistency",
    "find_card",
    "gulp",
    "hard_correlation_match",
    "imd",
    "jaccard",
    "joint_similarity",
    "jsd",
    "kappa",
    "linear_predictivity",
    "magnitude",
    "mutual_knn",
    "normalized_disagreement",
    "permutation_procrustes",
    "procrustes",
    "pwcca",
    "rank_similarity",
    "rbf_cka",
    "rsa",
    "rsm_norm_difference",
    "rtd",
    "rtd_lite",
    "second_order_cosine",
    "shape_distance",
    "soft_correlation_match",
    "svcca",
    "uniformity_difference",
]
