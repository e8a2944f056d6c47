"""Comparisons: which models on which images -> tables of scores."""

from univ.compare.drivers import (
    BOOTSTRAP_DRAWS,
    JACKKNIFE_GROUPS,
    SIZE_MATCHED_REPEATS,
    SUBGROUP_COLUMNS,
    SUBGROUP_KS,
    SUBGROUP_MEASURES,
    SUBGROUP_PERCENTS,
    AnyMeasure,
    Cells,
    Comparison,
    pairwise,
    rowwise,
    stir,
    subgroups,
    to_device,
)

__all__ = [
    "BOOTSTRAP_DRAWS",
    "JACKKNIFE_GROUPS",
    "SIZE_MATCHED_REPEATS",
    "SUBGROUP_COLUMNS",
    "SUBGROUP_KS",
    "SUBGROUP_MEASURES",
    "SUBGROUP_PERCENTS",
    "AnyMeasure",
    "Cells",
    "Comparison",
    "pairwise",
    "rowwise",
    "stir",
    "subgroups",
    "to_device",
]
