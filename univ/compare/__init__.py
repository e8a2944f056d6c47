"""Comparisons: which models on which images -> tables of scores.

The package can be called: `univ.compare(reps, measures)` is `univ.compare.compare(reps, measures)`.
"""

import inspect
import sys
from types import ModuleType

from univ.compare.drivers import pairwise, rowwise, stir
from univ.compare.scoring import AnyMeasure, Comparison
from univ.compare.subgroup_scores import subgroups
from univ.compare.tidy import compare

__all__ = ["AnyMeasure", "Comparison", "compare", "pairwise", "rowwise", "stir", "subgroups"]


class _Package(ModuleType):
    """A package that is also the function of its name, so that neither hides the other in `univ`."""

    __call__ = staticmethod(compare)


sys.modules[__name__].__class__ = _Package
sys.modules[__name__].__signature__ = inspect.signature(compare)  # or `help` would take the first argument for self
