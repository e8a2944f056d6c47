"""Attacks on images in [0, 1]: projected gradient descent, which inversion shares, and the ensemble AutoAttack."""

from univ.attacks.auto import PARTS, AutoAttack
from univ.attacks.projected import (
    LARGEST,
    STEP_RULES,
    TINY,
    Attack,
    FourierStep,
    L2MomentumStep,
    L2Step,
    LinfStep,
    Norm,
    StepRule,
    UnconstrainedStep,
    at_least_float32,
    frozen,
    image_norms,
    pgd,
)

__all__ = [
    "LARGEST",
    "PARTS",
    "STEP_RULES",
    "TINY",
    "Attack",
    "AutoAttack",
    "FourierStep",
    "L2MomentumStep",
    "L2Step",
    "LinfStep",
    "Norm",
    "StepRule",
    "UnconstrainedStep",
    "at_least_float32",
    "frozen",
    "image_norms",
    "pgd",
]
