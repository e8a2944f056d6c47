"""PGD: closed forms on a linear loss, equality with robustness.attacker, and what must not happen to the network."""

import copy
import functools
import math
import types

import pytest
import torch
from networks import CachesInEvaluation
from torch import nn
from torch.nn import functional

from univ import attacks
from univ.attacks import LARGEST, Attack, image_norms
from univ.errors import InputError

MEAN, STD = torch.tensor([0.4, 0.45, 0.5]), torch.tensor([0.2, 0.25, 0.3])
NORMS = ["l2", "linf", "unconstrained", "fourier"]


class Normalised(nn.Module):
    """A network behind the normaliser of the published models, which clamps to [0, 1] first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x.clamp(0, 1) - MEAN[:, None, None]) / STD[:, None, None])


@functools.cache
def _seeded(name: str) -> nn.Module:
    from robustness.cifar_models.resnet import BasicBlock, ResNet
    from robustness.cifar_models.vgg import VGG

    torch.manual_seed(0)
    network = VGG("VGG11", num_classes=10) if name == "vgg" else ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32))
    return network


def seeded(name: str = "resnet") -> nn.Module:
    """A network with random weights whose batch norm statistics are not the trivial ones."""
    return copy.deepcopy(_seeded(name))


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, 32, 32, generator=generator), torch.randint(10, (6,), generator=generator)


def plain_pgd(model, images, labels, attack: Attack) -> torch.Tensor:
    """The last iterate of L2 PGD, one image at a time, written from the definition."""
    results = []
    for image, label in zip(images, labels):
        x = image.clone()
        for _ in range(attack.steps):
            x.requires_grad_(True)
            loss = functional.cross_entropy(model(x[None]), label[None])
            (gradient,) = torch.autograd.grad(loss, x)
            with torch.no_grad():
                difference = x + attack.step_size * gradient / gradient.norm() - image
                if difference.norm() > attack.eps:
                    difference = difference * attack.eps / difference.norm()
                x = (image + difference).clamp(0, 1)
        results.append(x.detach())
    return torch.stack(results)


# closed forms


LINEAR = {  # norm: radius and step, steps, where a loss w.x ends, as a difference to the start
    "l2": ((0.5, 0.2), 5, lambda w: 0.5 * w / image_norms(w)),
    "linf": ((8 / 255, 3 / 255), 4, lambda w: 8 / 255 * w.sign()),
    "unconstrained": ((0.0, 0.02), 3, lambda w: 3 * 0.02 * w),
}


@pytest.mark.parametrize("norm", LINEAR)
@pytest.mark.parametrize("rows", [slice(None), slice(2, 3)], ids=["batch", "one"])
def test_a_linear_loss_is_followed_to_the_border_whatever_the_batch(norm, rows):
    generator = torch.Generator().manual_seed(0)
    origin = (0.5 + 0.01 * torch.randn(5, 3, 8, 8, generator=generator))[rows]
    weights = torch.randn(5, 3, 8, 8, generator=generator)[rows]
    lengths, steps, difference = LINEAR[norm]
    found, losses = attacks.pgd(
        lambda x: (weights * x).sum((1, 2, 3)), attacks.STEP_RULES[norm](origin, *lengths), steps=steps
    )
    expected = origin + difference(weights)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(losses, (weights * expected).sum((1, 2, 3)), atol=1e-4)


def test_fourier_is_gradient_ascent_on_the_logits_of_the_pixels():
    generator = torch.Generator().manual_seed(0)
    origin = 0.1 + 0.8 * torch.rand(3, 3, 8, 8, generator=generator)
    weights = torch.randn(3, 3, 8, 8, generator=generator)
    rule = attacks.FourierStep(origin, eps=0.0, step_size=0.7)
    assert torch.allclose(rule.to_image(rule.start()), origin, atol=1e-6)
    found, _ = attacks.pgd(lambda x: (weights * x).sum((1, 2, 3)), rule, steps=3, keep_best=False)
    logits = origin.logit()
    for _ in range(3):
        pixels = logits.sigmoid()
        logits = logits + 0.7 * weights * pixels * (1 - pixels)
    assert torch.allclose(found, logits.sigmoid(), atol=1e-5)


def test_momentum_by_hand():
    origin = torch.full((1, 1, 2, 2), 0.5)
    weights = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])  # unit gradient (0.6, 0, 0, 0.8)
    rule = attacks.L2MomentumStep(origin, eps=1000.0, step_size=0.5, momentum=0.9)
    found, _ = attacks.pgd(lambda x: -(weights * x).sum((1, 2, 3)), rule, steps=2)
    # the running mean is 0.1, then 0.19 times the unit gradient: 0.5 * 0.29 in total
    assert torch.allclose(found, origin - 0.145 * weights / 5, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_moves_nothing(norm):
    origin = 0.2 + 0.6 * torch.rand(2, 3, 8, 8)
    rule = attacks.STEP_RULES[norm](origin, 0.5, 0.2)
    found, _ = attacks.pgd(lambda x: 0 * x.sum((1, 2, 3)), rule, steps=2, keep_best=False)
    assert torch.allclose(found, origin, atol=1e-6)


def test_the_best_iterate_is_kept_per_image_the_first_and_the_last_included():
    # along the only free direction the loss has its peak at distance 0, 1 and 2 steps from the start
    peaks = torch.tensor([0.5, 0.6, 0.7])
    origin = torch.full((3, 1, 1, 1), 0.5)

    def loss(x):
        return -((x.flatten(1) - peaks[:, None]).abs() + 1e-3).sum(1)

    rule = attacks.LinfStep(origin, eps=1.0, step_size=0.1)
    found, losses = attacks.pgd(loss, rule, steps=2)
    assert torch.allclose(found.flatten(), peaks, atol=1e-6)
    assert torch.allclose(losses, torch.full((3,), -1e-3), atol=1e-6)


# the same as robustness, in float64: in float32 a rounding error that takes an activation across 0 changes a gradient,
# and with it all later iterates of that image, by much more than rounding; on which images depends on the processor


@pytest.mark.parametrize("build", ["resnet", "vgg"])
@pytest.mark.parametrize(("constraint", "norm", "eps", "step"), [("2", "l2", 1.0, 0.5), ("inf", "linf", 0.03, 0.01)])
@pytest.mark.parametrize("keep_best", [True, False], ids=["best", "last"])
def test_same_images_as_robustness(build, constraint, norm, eps, step, keep_best, batch, monkeypatch):
    from robustness.attacker import AttackerModel

    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)  # the library insists on CUDA
    network = seeded(build).double()
    theirs = AttackerModel(copy.deepcopy(network), types.SimpleNamespace(mean=MEAN, std=STD)).double().train()
    images, labels = batch[0].double(), batch[1]
    settings = {"constraint": constraint, "eps": eps, "step_size": step, "iterations": 4, "use_best": keep_best}
    _, expected = theirs(images, labels, make_adv=True, **settings)
    attack = Attack(norm, eps=eps, step_size=step, steps=4, keep_best=keep_best)
    found = attack(Normalised(network).train(), images, labels)
    assert not torch.allclose(found, images, atol=1e-3)
    # a sign step turns a rounding error of a gradient near 0 into a whole step: such pixels are rare, not absent
    differs = (found - expected).abs() > 1e-6
    assert differs.float().mean() < (2e-3 if norm == "linf" else 1e-9)


def test_l2_agrees_with_the_definition_one_image_at_a_time(batch):
    model = Normalised(seeded().double()).eval()
    images, labels = batch[0].double(), batch[1]
    attack = Attack("l2", eps=1.0, step_size=0.4, steps=3, keep_best=False)
    found = attack(model, images, labels)
    assert found.dtype == torch.float64
    assert torch.allclose(found, plain_pgd(model, images, labels, attack), rtol=0, atol=1e-9)


# what an attack is and is not


@pytest.mark.parametrize("norm", NORMS)
def test_the_network_is_left_as_it_was(norm, batch):
    model = Normalised(seeded()).train()
    model.network.bn1.eval()
    model.network.linear.bias.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    gradients = {name: weight.requires_grad for name, weight in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    found = Attack(norm, eps=0.5, step_size=0.2, steps=2)(model, *batch)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == gradients
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert not found.requires_grad and found.min() >= 0 and found.max() <= 1


def test_what_a_network_caches_in_evaluation_mode_is_not_used_after_a_step(batch):
    model = CachesInEvaluation(10).train()
    attack = Attack("l2", eps=1.0, step_size=0.5, steps=2)
    attack(model, *batch)
    with torch.no_grad():
        model.scale.neg_()
    fresh = CachesInEvaluation(10)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(attack(model, *batch), attack(fresh, *batch))


def test_the_state_of_the_network_comes_back_after_an_error(batch):
    model = Normalised(seeded()).train()
    with pytest.raises(IndexError):
        Attack()(model, batch[0], batch[1] + 100)
    assert model.network.bn1.training and all(weight.requires_grad for weight in model.parameters())


def test_no_gradient_of_a_weight_is_computed(batch):
    """Counts the convolution backward calls and which of their three gradients each was asked for."""
    from torch.utils._python_dispatch import TorchDispatchMode

    masks = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                masks.append(tuple(args[-1]))
            return func(*args, **(kwargs or {}))

    model = Normalised(seeded()).train()
    with Record():
        Attack("l2", 1.0, 0.5, steps=2)(model, *batch)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert masks == [(True, False, False)] * (2 * convolutions)


@pytest.mark.parametrize(("keep_best", "forwards"), [(True, 4), (False, 3)])
def test_one_forward_pass_per_step(keep_best, forwards, batch):
    model = Normalised(seeded())
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    Attack("l2", 1.0, 0.5, steps=3, keep_best=keep_best)(model, *batch)
    assert len(calls) == forwards


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.7), ("linf", 0.02)])
def test_every_image_stays_in_its_ball(norm, eps, batch):
    images, labels = batch
    generator = torch.Generator().manual_seed(0)
    attack = Attack(norm, eps, step_size=eps, steps=3, random_start=True)
    difference = attack(Normalised(seeded()), images, labels, generator=generator) - images
    radius = difference.flatten(1).norm(dim=1) if norm == "l2" else difference.abs().amax((1, 2, 3))
    assert radius.max() <= eps * (1 + 1e-5)
    assert radius.min() > eps / 2


@pytest.mark.parametrize("norm", ["l2", "linf", "unconstrained"])
@pytest.mark.parametrize("keep_best", [True, False])
def test_restarts_keep_the_worst_case_of_each_image(norm, keep_best, batch):
    images, labels = batch
    model = Normalised(seeded()).eval()

    def losses(x):
        return functional.cross_entropy(model(x), labels, reduction="none").detach()

    one = Attack(norm, 0.5, 0.3, steps=1, random_start=True, keep_best=keep_best)
    generator = torch.Generator().manual_seed(3)
    runs = torch.stack([losses(one(model, images, labels, generator=generator)) for _ in range(4)])
    assert (runs.argmax(0) != 3).any()  # the last run is not the worst for every image, or this would test nothing
    several = Attack(norm, 0.5, 0.3, steps=1, random_start=True, restarts=4, keep_best=keep_best)
    found = several(model, images, labels, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(losses(found), runs.amax(0), atol=1e-5)


def test_the_loss_scale_cancels(batch):
    model = Normalised(seeded())
    attack = Attack("unconstrained", step_size=5.0, steps=3)
    assert torch.allclose(attack(model, *batch), attack(model, *batch, loss_scale=1024.0), atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_step_of_any_length_ends_on_the_ball(norm, batch):
    """Squares of distances must not become infinite: the shrunken step would be none."""
    images, labels = batch
    model = seeded()
    moved = Attack(norm, eps=0.1, step_size=LARGEST, steps=1, keep_best=False)(model, images, labels)
    expected = Attack(norm, eps=0.1, step_size=1e3, steps=1, keep_best=False)(model, images, labels)
    assert (image_norms(moved - images) > 0.05).all()
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"norm": "l1"}, ValueError, "unknown norm"),
        ({"steps": -1}, ValueError, "steps >= 0"),
        ({"restarts": 2}, ValueError, "all alike"),
        ({"norm": "fourier", "random_start": True}, ValueError, "no random start"),
        # lengths that float32 cannot square
        *(
            ({name: value}, InputError, r"-o/--eps .* -l/--lr")
            for name, value in [
                ("eps", -1.0),
                ("step_size", 1e30),
                ("eps", 1e30),
                ("eps", math.nan),
                ("step_size", math.inf),
            ]
        ),
    ],
)
def test_impossible_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Attack(**settings)


def test_eps_0_and_0_steps_leave_the_images(batch):
    model = Normalised(seeded())
    assert torch.allclose(Attack("l2", eps=0.0)(model, *batch), batch[0], atol=1e-7)
    assert torch.equal(Attack("l2", steps=0)(model, *batch), batch[0])
