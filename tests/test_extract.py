"""Taps and extraction on small networks whose features are known."""

import pytest
import torch
from torch import nn

from univ.data.images import TensorImages
from univ.errors import InputError
from univ.models import DIGITS_ARCHS, HEAD_INPUT, build_model
from univ.reps.extract import extract
from univ.reps.nodes import Reader


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def run(model, images, chosen=(0, 1, 2, 3, 4, 5), **options):
    where = {"batch_size": 4, "device": torch.device("cpu"), "quiet": True}
    return extract(model, TensorImages(images, name="some"), torch.tensor(chosen), **where, **options)


@pytest.mark.parametrize("arch", DIGITS_ARCHS)
def test_one_pass_gives_both_and_hooks_are_gone(arch, images):
    model = build_model(arch, "digits", seed=0).eval()
    calls = []
    counter = model.model.register_forward_hook(lambda *_: calls.append(1))
    extraction = run(model, images, (5, 4, 3, 0, 1))
    counter.remove()
    assert len(calls) == 2  # two batches, one pass each
    with torch.no_grad():
        assert torch.allclose(extraction.logits, model(images)[[5, 4, 3, 0, 1]], atol=1e-5)
    assert extraction.preds.equal(extraction.logits.argmax(1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_densenet_node_is_before_its_relu(images):
    model = build_model("densenet17", "digits", seed=0).eval()
    before_relu = []
    hook = model.model.bn.register_forward_hook(lambda module, inputs, output: before_relu.append(output.clone()))
    extraction = run(model, images)
    hook.remove()
    before_relu = torch.cat(before_relu)
    assert (before_relu < 0).any()
    assert torch.allclose(extraction.reps, before_relu.mean(dim=(2, 3)), atol=1e-6)


def test_an_in_place_change_after_the_node_does_not_reach_the_representation(images):
    model = build_model("resnet10", "digits", seed=0).eval()
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    model.model = network
    with torch.no_grad(), Reader(model, "0") as tap:
        model(images)
        assert (tap.rep < 0).any()
        assert tap.rep.shape == (6, 4 * 30 * 30)
    with torch.no_grad(), Reader(model, "0", pool="none") as tap:
        model(images)
        assert tap.rep.shape == (6, 4, 30, 30)


def test_any_network_can_be_tapped(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()
    with torch.no_grad(), Reader(network, "0", pool="mean") as tap:
        network(images)
        assert torch.allclose(tap.rep, network[0](images).mean(dim=(2, 3)), atol=1e-6)
    with (
        pytest.raises(InputError, match="no node 'layer4'; the nearest are 0, 1, 2, 3"),
        Reader(network, "layer4"),
    ):
        pass
    with pytest.raises(InputError, match="names no node of its own"):
        Reader(network)
    assert run(network, images, node="3").reps.equal(run(network, images, node="3").logits)


def test_gradients_flow_through_the_head_input(images):
    model = build_model("vgg11", "digits", seed=0).eval()
    images.requires_grad_(True)
    with Reader(model, HEAD_INPUT) as tap:
        logits = model(images)
        assert torch.allclose(model.head(tap.rep), logits)
        (gradient,) = torch.autograd.grad(tap.rep.sum(), images)
    assert gradient.abs().sum() > 0


def test_wrong_use_is_answered(images):
    model = build_model("vgg11", "digits", seed=0)
    with pytest.raises(ValueError, match="training mode"):
        run(model, images)
    model.eval()
    no_module = pytest.raises(InputError, match="no node 'nowhere'; the nearest are features, classifier")
    with no_module, Reader(model, "nowhere"):
        pass
    with Reader(model) as tap, pytest.raises(RuntimeError, match="was not reached"):
        _ = tap.rep
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="vgg11: representations hold NaN"):
        run(model, images)
