"""Inversion: seed and target images, a model -> images that it represents like the targets."""

from univ.inversion.optimise import MOMENTUM, Inversion, Inverted, Inverter
from univ.inversion.parts import Parts

__all__ = ["MOMENTUM", "Inversion", "Inverted", "Inverter", "Parts"]
