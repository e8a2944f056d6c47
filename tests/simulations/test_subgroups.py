"""Images split at random into a large and a small group: what subgroup_sim.py makes of groups that do not differ."""

import itertools

import pandas as pd
import pytest
import torch

from univ.compare import subgroups
from univ.show.differences import subgroup_difference, subgroup_rows

pytestmark = pytest.mark.slow

IMAGES, DIFFER, MODELS = 2000, 196, 6


def at_random(size_matched: bool, seed: int) -> dict[str, tuple[float, float]]:
    """Measure -> similarity where predictions agree minus where they differ, at random images, and its p.

    A model is a random map of 20 features that all share into 128, and as much noise of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    shared, reps = torch.randn(IMAGES, 20, generator=generator), {}
    for number in range(MODELS):
        weights = torch.randn(20, 128, generator=generator) / 20**0.5
        reps[f"m{number}"] = shared @ weights + torch.randn(IMAGES, 128, generator=generator)
    parts = []
    for a, b in itertools.combinations(reps, 2):
        preds = {a: torch.zeros(IMAGES, dtype=torch.long), b: torch.zeros(IMAGES, dtype=torch.long)}
        preds[b][torch.randperm(IMAGES, generator=generator)[:DIFFER]] = 1
        both = {name: reps[name] for name in (a, b)}
        parts.append(subgroups(both, preds, ["cka", "proc", "jacc"], size_matched=size_matched, quiet=True))
    tests = {
        measure: subgroup_difference(subgroup_rows(pd.concat(parts), measure, 10))
        for measure in ("cka", "proc", "jacc")
    }
    return {measure: (test.mean, test.p) for measure, test in tests.items()}


def test_groups_of_unequal_size_differ_for_their_size_alone():
    """The numbers of docs/differences.md: Procrustes -0.197, Jaccard -0.109, p = 0.031 for both."""
    found = at_random(size_matched=False, seed=0)
    assert found["proc"] == pytest.approx((-0.197, 2 / 2**MODELS), abs=0.001)
    assert found["jacc"] == pytest.approx((-0.109, 2 / 2**MODELS), abs=0.001)
    assert abs(found["cka"][0]) < 0.02 and found["cka"][1] > 0.05


def test_groups_cut_to_one_size_do_not_differ():
    """Twenty rounds: the mean difference is 0 within 3 standard errors, and p < 0.05 as rarely as it says.

    With a chance of at most 5 % each, more than 4 of 20 rounds are below 0.05 with probability 0.003.
    """
    rounds = [at_random(size_matched=True, seed=seed) for seed in range(20)]
    for measure in ("cka", "proc", "jacc"):
        means = torch.tensor([found[measure][0] for found in rounds], dtype=torch.float64)
        assert abs(means.mean()) < 3 * means.std() / len(means) ** 0.5 and abs(means.mean()) < 0.003, measure
        assert sum(found[measure][1] < 0.05 for found in rounds) <= 4, measure
