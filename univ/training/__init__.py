"""Training: images -> checkpoints, standard and adversarially robust."""

from univ.training.evaluation import AttackTarget, Score, evaluate
from univ.training.loop import Trainer
from univ.training.recipe import Data, Recipe, Saving

__all__ = ["AttackTarget", "Data", "Recipe", "Saving", "Score", "Trainer", "evaluate"]
