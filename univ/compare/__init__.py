"""Comparisons: which models on which images -> tables of scores."""

from univ.compare.drivers import pairwise, rowwise, stir
from univ.compare.scoring import AnyMeasure, Comparison
from univ.compare.subgroup_scores import subgroups

__all__ = ["AnyMeasure", "Comparison", "pairwise", "rowwise", "stir", "subgroups"]
