"""Taps and extraction on small networks whose features are known."""

import pytest
import torch
from torch import nn

from univ.errors import InputError
from univ.models import DIGITS_ARCHS, build_model
from univ.reps.extract import Tap, extract, head_input


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def batches(images, size):
    return [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in images.split(size)]


@pytest.mark.parametrize("arch", DIGITS_ARCHS)
def test_one_pass_gives_both_and_hooks_are_gone(arch, images):
    model = build_model(arch, "digits", seed=0).eval()
    calls = []
    counter = model.model.register_forward_hook(lambda *_: calls.append(1))
    found = extract(model, batches(images, 4), len(images), quiet=True)
    counter.remove()
    assert len(calls) == 2  # two batches, one pass each
    with torch.no_grad():
        assert torch.allclose(found.logits, model(images), atol=1e-5)
    assert found.preds.equal(found.logits.argmax(1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_densenet_node_is_before_its_relu(images):
    model = build_model("densenet17", "digits", seed=0).eval()
    before_relu = []
    hook = model.model.bn.register_forward_hook(lambda module, inputs, output: before_relu.append(output.clone()))
    found = extract(model, batches(images, 6), 6, quiet=True)
    hook.remove()
    assert (before_relu[0] < 0).any()
    assert torch.allclose(found.reps, before_relu[0].mean(dim=(2, 3)), atol=1e-6)


def test_an_in_place_change_after_the_node_does_not_reach_the_representation(images):
    model = build_model("resnet10", "digits", seed=0).eval()
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    model.model = network
    with torch.no_grad(), Tap(model, node="0") as tap:
        model(images)
        assert (tap.rep < 0).any()
        assert tap.rep.shape == (6, 4 * 30 * 30)
    with torch.no_grad(), Tap(model, node="0", flatten=False) as tap:
        model(images)
        assert tap.rep.shape == (6, 4, 30, 30)


def test_any_network_can_be_tapped(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()
    with torch.no_grad(), Tap(network, node="0", pool=True) as tap:
        network(images)
        assert torch.allclose(tap.rep, network[0](images).mean(dim=(2, 3)), atol=1e-6)
    with pytest.raises(InputError, match="no module 'layer4'; it holds 0, 1, 2, 3"), Tap(network, node="layer4"):
        pass
    with pytest.raises(InputError, match="names no node of its own"):
        Tap(network)


def test_gradients_flow_through_the_head_input(images):
    model = build_model("vgg11", "digits", seed=0).eval()
    images.requires_grad_(True)
    with head_input(model) as tap:
        logits = model(images)
        assert torch.allclose(model.head(tap.rep), logits)
        (gradient,) = torch.autograd.grad(tap.rep.sum(), images)
    assert gradient.abs().sum() > 0


def test_wrong_use_is_answered(images):
    model = build_model("vgg11", "digits", seed=0)
    with pytest.raises(ValueError, match="training mode"):
        extract(model, batches(images, 6), 6, quiet=True)
    model.eval()
    with pytest.raises(ValueError, match="the batches hold 6"):
        extract(model, batches(images, 6), 7, quiet=True)
    with pytest.raises(ValueError, match="hold more"):
        extract(model, batches(images, 3), 4, quiet=True)
    with (
        pytest.raises(InputError, match="no module 'nowhere'; it holds features, classifier"),
        Tap(model, node="nowhere"),
    ):
        pass
    with Tap(model) as tap, pytest.raises(RuntimeError, match="was not reached"):
        _ = tap.rep
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="vgg11: representations hold NaN"):
        extract(model, batches(images, 6), 6, quiet=True)
