"""Measures and drivers on tensors that pretend to be on cuda:0: no mixed devices, no TF32, the CPU's scores.

FakeTensorMode carries no measure past its check for NaN, whose answer depends on the data; `pretend_cuda` does.
"""

import pytest
import torch
from pretend_cuda import Pretend, PretendCuda

from univ import compare
from univ.compare import uncertainty
from univ.measures import (
    FUNC_MEASURES,
    FUNC_STATISTICS,
    MORE_FUNC_MEASURES,
    MORE_REP_MEASURES,
    REP_MEASURES,
    REP_STATISTICS,
    Outputs,
    build,
)

REP = {**REP_MEASURES, **MORE_REP_MEASURES}
FUNC = {**FUNC_MEASURES, **MORE_FUNC_MEASURES}
SETTINGS = {"k": 7, "neighbors": 7, "batch": 40, "trials": 2}


@pytest.fixture(autouse=True)
def tf32():
    """What a caller may have switched on."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def representations(n=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 12, generator=generator)
    return {
        "a": x,
        "b": x[:, :9] + torch.randn(n, 9, generator=generator),
        "c": torch.randn(n, 70, generator=generator),
    }


def outputs(n=80):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (n,), generator=generator)
    return {
        name: (labels[:, None] == torch.arange(4)) + torch.randn(n, 4, generator=generator) for name in "abc"
    }, labels


def same(found, expected):
    for name, comparison in found.items():
        assert comparison.failure is None, comparison.failure
        for table in ("scores", "baseline", "low", "high"):
            mine, cpu = getattr(comparison, table), getattr(expected[name], table)
            assert (mine is None) == (cpu is None)
            if mine is not None:
                assert mine.to_numpy() == pytest.approx(cpu.to_numpy(), abs=1e-6, rel=1e-6, nan_ok=True), (name, table)


@pytest.mark.parametrize("key", REP)
@pytest.mark.parametrize("far", [0, 1e5])
def test_representations_on_a_device(key, far):
    reps = representations()
    names = ("a", "b") if key == "gulp" else ("a", "b", "c")
    reps = {name: reps[name].clone() for name in names}
    for rep in reps.values():
        rep[3] += far
    settings = {"permutations": 1, "ci": 0.9 if key == "cka" else None, "quiet": True}
    expected = compare.pairwise(reps, build(REP, [key], **SETTINGS), **settings)
    with PretendCuda():
        here = {name: Pretend(rep) for name, rep in reps.items()}
        same(compare.pairwise(here, build(REP, [key], **SETTINGS), **settings), expected)
        if far == 0:
            same(compare.pairwise(reps, build(REP, [key], **SETTINGS), device="cuda:0", **settings), expected)


@pytest.mark.parametrize("registry", [FUNC, FUNC_STATISTICS, REP_STATISTICS])
def test_predictions_and_statistics_on_a_device(registry, monkeypatch):
    monkeypatch.setattr(uncertainty, "BOOTSTRAP_DRAWS", 20)
    logits, labels = outputs()
    cpu, here = logits, {name: Pretend(values) for name, values in logits.items()}
    if registry is not REP_STATISTICS:
        cpu = {name: Outputs(values, labels) for name, values in cpu.items()}
        here = {name: Outputs(values, Pretend(labels)) for name, values in here.items()}
    settings = {"permutations": 2, "ci": 0.9, "quiet": True}
    expected = compare.pairwise(cpu, build(registry, registry), **settings)
    with PretendCuda():
        same(compare.pairwise(here, build(registry, registry), **settings), expected)
        same(compare.pairwise(cpu, build(registry, registry), device="cuda:0", **settings), expected)


def test_what_pretends_to_be_on_a_device_is_as_strict_as_one():
    here = Pretend(torch.randn(5, 3))
    with pytest.raises(RuntimeError, match="same device"):
        here + torch.ones(5, 3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.arange(5)[Pretend(torch.arange(2))]
    with pytest.raises(TypeError, match="cuda:0"):
        here.numpy()
    with pytest.raises(AssertionError, match="TF32"):
        here @ here.T
    assert here.cpu().device.type == "cpu"
    assert (here + 1)[torch.tensor([0, 2])].device == torch.device("cuda:0")
