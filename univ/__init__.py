"""Robustness and universality of image classifiers: image -> representation -> score -> csv -> figure.

    import univ

    reps = univ.extract({"mine": net, "theirs": univ.load("resnet50.ckpt")}, images)
    scores = univ.compare(reps, ["cka", "proc"])
    univ.heatmap(scores, "cka")

`load`, `extract`, `compare`, `heatmap`, `invert` and `train_probe` are loaded when they are first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from univ import compare
    from univ.api import extract, heatmap, invert, load, train_probe

__version__ = "0.1.0"
__all__ = ["compare", "extract", "heatmap", "invert", "load", "train_probe"]

# GNU OpenMP's threads spin between parallel regions: beside another busy process a 31 ms step then takes 500 ms.
# A short spin costs nothing on an idle machine. Read when torch loads, so it is set before anything of ours imports it.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> Any:
    if name == "compare":
        return importlib.import_module("univ.compare")
    if name in __all__:
        return getattr(importlib.import_module("univ.api"), name)
    raise AttributeError(f"module 'univ' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
