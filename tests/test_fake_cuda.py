"""A step of training, attack, inversion and probes on `cuda:0` without one: no tensor is on another device.

Fake tensors have a shape, a dtype and a device, and operations refuse to mix devices as CUDA's kernels do. Backward
passes need a real device; what they give has the device and dtype of what it is the gradient of, so zeros stand in.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from univ import training
from univ.attacks import STEP_RULES, Attack
from univ.data.images import TensorImages
from univ.inversion import optimise as inversion
from univ.models import DIGITS_ARCHS, build_model
from univ.models.precision import arithmetic
from univ.reps import probes
from univ.runs import Distributed

CUDA = torch.device("cuda:0")


def convert(network: nn.Module, convert_tensor, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot exchange the memory of fake parameters: it makes new ones."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(convert_tensor(weight.detach()), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = convert_tensor(buffer)
    return network


def backward(loss: Tensor, *_, **__) -> None:
    """Zeros as the gradients of the leaves that `loss` depends on."""
    assert loss.device == CUDA and loss.ndim == 0
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        nodes += [earlier for earlier, _ in node.next_functions]


def gradient(loss: Tensor, x: Tensor) -> tuple[Tensor]:
    assert loss.device == x.device == CUDA and loss.requires_grad
    return (torch.zeros_like(x),)


def fused_step(weights: list[Tensor], *buffers: list[Tensor], **_) -> None:
    """What a fused optimiser's kernel takes for granted: the same device, dtype and layout."""
    for tensors in zip(weights, *(tensors for tensors in buffers if len(tensors) == len(weights)), strict=True):
        assert {tensor.device for tensor in tensors} == {CUDA}
        assert len({(tensor.dtype, tensor.stride()) for tensor in tensors if tensor.ndim}) == 1


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(nn.Module, "_apply", convert)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", gradient)
    monkeypatch.setattr(torch, "_fused_sgd_", fused_step)
    monkeypatch.setattr(torch, "_fused_adam_", fused_step)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode():
        yield SimpleNamespace(
            images=torch.rand(8, 3, 32, 32, device=CUDA), labels=torch.zeros(8, dtype=torch.int64, device=CUDA)
        )


def test_mixed_devices_are_found(fake):
    with pytest.raises(RuntimeError, match="two different devices"):
        fake.images + torch.rand(8, 3, 32, 32)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("arch", DIGITS_ARCHS)
def test_a_training_step(arch, precision, fake):
    images = TensorImages(
        torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64), name="some"
    )
    recipe = training.Recipe(epochs=1, batch_size=8, attack=Attack(steps=2), precision=precision)
    saving, data = training.Saving(None, tensorboard=False), training.Data(images, images)
    model = build_model(arch, "digits", seed=0)
    run = training.Trainer(model, data, recipe, saving, Distributed(CUDA), compile=False, quiet=True)
    for _ in range(2):  # the second with momentum
        run.train_step(1, fake.images, fake.labels)
    assert run.totals.sums.device == CUDA
    assert {weight.grad.dtype for weight in run.model.parameters()} == {torch.float32}
    assert {state["momentum_buffer"].device for state in run.optimizer.state.values()} == {CUDA}


@pytest.mark.parametrize("norm", STEP_RULES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_attack(norm, precision, fake):
    model = build_model("resnet10", "digits", seed=0).to(CUDA)
    with arithmetic(precision, CUDA):
        assert torch.is_autocast_enabled("cuda") == (precision == "bf16")
        adversarial = Attack(norm, steps=2)(training.AttackTarget(model).of_now(), fake.images, fake.labels)
    assert (adversarial.device, adversarial.dtype) == (CUDA, torch.float32)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("arch", DIGITS_ARCHS)
@torch.no_grad()
def test_an_iteration_of_an_inversion(arch, precision, fake):
    model = build_model(arch, "digits", seed=0).to(CUDA).eval()
    with arithmetic(precision, CUDA):
        inverter = inversion.Inverter(model, inversion.Inversion(), cuda_graph=False)
        target, scale = inversion.scaled(inversion.represent(inverter._network, fake.images))
        state = inversion._State.start(fake.images, target, scale)
        for _ in range(2):
            inverter._advance(state)
        distances = inverter.distances(state.best_x, fake.images)
    for tensor in (state.best_x, state.best_distance, state.mean, distances):
        assert (tensor.device, tensor.dtype) == (CUDA, torch.float32)


@pytest.mark.parametrize("named", ["cuda", "cuda:0"])
def test_a_step_of_the_probes(named, fake):
    """`cuda` is not equal to the `cuda:0` that tensors say they are on."""
    reps, labels = torch.rand(100, 6, device=CUDA), torch.zeros(100, dtype=torch.int64)
    weights, biases = (values.to(CUDA).requires_grad_() for values in probes.initial_weights(6, 3, [0, 1]))
    optimizer = torch.optim.Adam([weights, biases], fused=True)
    order = torch.arange(100).split(50)
    for rows, values in zip(order, probes._slices(reps, order, torch.device(named))):
        assert values.device == CUDA
        chosen = torch.zeros(2, 10, dtype=torch.int64, device=CUDA)
        losses = probes._step(optimizer, weights, biases, values[chosen], labels[rows].to(CUDA)[chosen])
    assert losses.shape == (2,) and losses.device == CUDA
    for logits, _ in probes._logits(weights, biases, reps.cpu(), torch.device(named)):
        assert logits.shape == (2, 100, 3) and logits.device == CUDA
