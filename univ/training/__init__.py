"""Training: images -> checkpoints, standard and adversarially robust."""

from univ.training.loop import (
    BAR_STEPS,
    LOSS_SCALE_FP16,
    WARM_UP,
    AttackTarget,
    Data,
    Recipe,
    Run,
    Saving,
    Score,
    Totals,
    check_start,
    differences,
    evaluate,
    fit,
)

__all__ = [
    "BAR_STEPS",
    "LOSS_SCALE_FP16",
    "WARM_UP",
    "AttackTarget",
    "Data",
    "Recipe",
    "Run",
    "Saving",
    "Score",
    "Totals",
    "check_start",
    "differences",
    "evaluate",
    "fit",
]
