"""Measures and drivers on tensors that pretend to be on cuda:0: no mixed devices, no TF32, the CPU's scores.

FakeTensorMode carries no measure past its check for NaN, whose answer depends on the data; `pretend_cuda` does.
"""

import pytest
import torch
from oracles import SETTINGS, outputs, related
from pretend_cuda import Pretend, PretendCuda

from univ import compare
from univ.compare import uncertainty
from univ.measures import CARDS, Outputs


@pytest.fixture(autouse=True)
def tf32():
    """What a caller may have switched on."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def same(found, expected):
    for name, comparison in found.items():
        assert comparison.failure is None, comparison.failure
        for table in ("scores", "baseline", "low", "high"):
            mine, cpu = getattr(comparison, table), getattr(expected[name], table)
            assert (mine is None) == (cpu is None)
            if mine is not None:
                assert mine.to_numpy() == pytest.approx(cpu.to_numpy(), abs=1e-6, rel=1e-6, nan_ok=True), (name, table)


@pytest.mark.parametrize("key", [key for key, card in CARDS.items() if card.of == "reps" and card.pairs])
@pytest.mark.parametrize("far", [0, 1e5])
def test_representations_on_a_device(key, far):
    reps = dict(zip("abc", [*related(), *related(p=70)[: key != "gulp"]]))
    for rep in reps.values():
        rep[3] += far
    settings = {"permutations": 1, "ci": 0.9 if key == "cka" else None, "quiet": True}
    expected = compare.pairwise(reps, [CARDS[key].build(SETTINGS)], **settings)
    with PretendCuda():
        here = {name: Pretend(rep) for name, rep in reps.items()}
        same(compare.pairwise(here, [CARDS[key].build(SETTINGS)], **settings), expected)
        if far == 0:
            same(compare.pairwise(reps, [CARDS[key].build(SETTINGS)], device="cuda:0", **settings), expected)


@pytest.mark.parametrize("of", ["reps", "outputs"])
def test_predictions_and_statistics_on_a_device(of, monkeypatch):
    monkeypatch.setattr(uncertainty, "BOOTSTRAP_DRAWS", 20)
    cpu = dict(zip("abc", outputs(classes=4, count=3)))
    here = {name: Outputs(Pretend(model.logits), Pretend(model.labels)) for name, model in cpu.items()}
    if of == "reps":
        cpu, here = ({name: model.logits for name, model in models.items()} for models in (cpu, here))
    kinds = [[card for card in CARDS.values() if card.of == of and card.pairs == pairs] for pairs in (False, True)]
    settings = {"permutations": 2, "ci": 0.9, "quiet": True}
    for cards in kinds if of == "outputs" else kinds[:1]:
        expected = compare.pairwise(cpu, [card.make() for card in cards], **settings)
        with PretendCuda():
            same(compare.pairwise(here, [card.make() for card in cards], **settings), expected)
            same(compare.pairwise(cpu, [card.make() for card in cards], device="cuda:0", **settings), expected)


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
