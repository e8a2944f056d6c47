"""Robustness and universality of image classifiers: image -> representation -> score -> csv -> figure."""

import os

__version__ = "0.1.0"

# GNU OpenMP's threads spin between parallel regions: beside another busy process a 31 ms step then takes 500 ms.
# A short spin costs nothing on an idle machine. Read when torch loads, so it is set before anything of ours imports it.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
