"""Measures that match units one to one, or align once and look at images: (N, D_a), (N, D_b) -> score."""

from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Rep, undefined
from univ.measures.cards import as_function, register
from univ.measures.centering import Center, Centered, cross_product

CORRELATED = {"range": (-1, 1), "invariances": ("permutation", "scaling", "translation", "padding")}


@register("hard_match", **CORRELATED)
def hard_match_measure() -> Measure:
    """Mean correlation of the units of the narrower model with those of the other, matched one to one.

    The assignment is the one of the largest sum of Pearson correlations. Constant units have none and are left out.

    Returns:
        Similarity in [-1, 1], 1 = the same units in another order (and units); unrelated models are above 0.
        Nan, with an `UndefinedScore` warning, if all units of a model are constant.

    Source: Li, Yosinski, Clune, Lipson and Hopcroft, 2016 (bipartite matching); as in ReSi (Klabunde et al., ICLR
    2025), where constant units count as correlations of 0.
    """
    return Measure(UnitColumns(), hard_match)


@register("soft_match", **CORRELATED)
def soft_match_measure() -> Measure:
    """Mean largest correlation of each unit with any unit of the other model, averaged over both directions.

    Returns:
        As `hard_correlation_match`.

    Source: Li et al., 2016 (semi-matching, one direction); both directions and their mean as in ReSi. Not the
    soft matching distance of Khosla and Williams, 2024.
    """
    return Measure(UnitColumns(), soft_match)


@register("perm_proc", larger_is_closer=False, invariances=("permutation", "padding"))
def permutation_procrustes_measure() -> Measure:
    """min over permutations P of |X P - Y|_F, not centred and not scaled, the narrower model padded with zeros.

    Returns:
        Distance >= 0 in the units of the activations, 0 = the same units in another order.

    Source: Williams et al., NeurIPS 2021; not squared, centred or scaled, as in ReSi (netrep's centres).
    """
    return Measure(Center(center=False, double=True), permutation_distance)


@register("aligned_cos", range=(-1, 1), invariances=("permutation", "orthogonal", "scaling", "padding"))
def aligned_cosine_measure() -> Measure:
    """Mean over images of the cosine of x_i Q and y_i, Q the orthogonal Procrustes rotation; not centred.

    Returns:
        Similarity in [-1, 1], 1 = equal up to rotation and the length of each row. A row of zeros counts as 0.

    Source: Hamilton, Leskovec and Jurafsky, ACL 2016, as in ReSi (whose card denies invariance to scaling: it is).
    """
    return Measure(Center(center=False, double=True), aligned_cosine)


hard_correlation_match = as_function(hard_match_measure, "hard_correlation_match")
soft_correlation_match = as_function(soft_match_measure, "soft_correlation_match")
permutation_procrustes = as_function(permutation_procrustes_measure, "permutation_procrustes")
aligned_cosine_similarity = as_function(aligned_cosine_measure, "aligned_cosine_similarity")


@dataclass(frozen=True)
class UnitColumns(Preparation):
    """Centred columns of norm 1, float64, without those that are constant."""

    def prepare(self, rep: Rep) -> Centered:
        centered = Center(double=True).prepare(rep)
        rows = centered.block(0, len(centered))
        norms = torch.linalg.vector_norm(rows, dim=0)
        rows = rows[:, norms > 0] / norms[norms > 0]
        return Centered(rows, None, rows.square().sum(dim=1))


def correlations(pair: Pair) -> Tensor | None:
    """(D_a, D_b) Pearson correlations of the units that vary; None where a model has none."""
    return cross_product(pair) if pair.a.width and pair.b.width else None


def assign(gains: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the one-to-one assignment of the largest sum."""
    from scipy.optimize import linear_sum_assignment

    return tuple(map(torch.from_numpy, linear_sum_assignment(gains.cpu().numpy(), maximize=True)))


def hard_match(pair: Pair) -> float:
    """Mean correlation of matched units of two models of `UnitColumns`."""
    found = pair.once(correlations)
    if found is None:
        return undefined("correlation match is not defined: all units of a representation are constant")
    return found[assign(found)].mean().item()


def soft_match(pair: Pair) -> float:
    """Mean of the largest correlations of two models of `UnitColumns`."""
    found = pair.once(correlations)
    if found is None:
        return undefined("correlation match is not defined: all units of a representation are constant")
    return (found.amax(dim=0).mean().item() + found.amax(dim=1).mean().item()) / 2


def permutation_distance(pair: Pair) -> float:
    """Permutation Procrustes distance of two `Centered` models."""
    a, b = (model.block(0, len(model)) for model in (pair.a, pair.b))
    width = max(a.shape[1], b.shape[1])
    a, b = (torch.nn.functional.pad(rows, (0, width - rows.shape[1])) for rows in (a, b))
    left, right = assign(a.T @ b)
    return torch.linalg.vector_norm(a[:, left] - b[:, right]).item()


def aligned_cosine(pair: Pair) -> float:
    """Mean cosine of the rows of two `Centered` models after the best rotation."""
    left, _, right = torch.linalg.svd(cross_product(pair), full_matrices=False)
    a, b = (model.block(0, len(model)) for model in (pair.a, pair.b))
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    products = ((a @ left) * (b @ right.T)).sum(dim=1)
    return torch.where(norms > 0, products / norms, 0.0).mean().item()
