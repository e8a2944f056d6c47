"""AutoAttack: exact on a linear network, within its ball, its parts as defined, and beside torchattacks."""

import math

import pytest
import torch
from networks import shake, tiny
from scipy import optimize
from torch import nn

from univ.attacks import PARTS, Attack, AutoAttack, apgd, fab, image_norms, square
from univ.data import open_training
from univ.errors import InputError
from univ.models import build_model
from univ.runs import Distributed
from univ.training import AttackTarget, Data, Recipe, Saving, Trainer

SETTINGS = [("l2", 0.5), ("linf", 0.01)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(classes, 3 * 8 * 8, generator=generator(), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weights.T


@pytest.fixture(scope="module")
def some():
    """A network whose weights are random, images, and its own predictions as labels but for two."""
    model = tiny(seed=1)
    shake(model)
    model.eval()
    images = torch.rand(24, 3, 32, 32, generator=generator(1))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 10
    return model, images, labels


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("parts", [PARTS[:2], PARTS[2:3], PARTS], ids=["apgd", "fab", "all"])
def test_on_a_linear_network_exactly_the_images_nearer_to_a_boundary_than_eps_are_fooled(norm, parts):
    model = Linear()
    images = 0.5 + 0.02 * torch.randn(40, 3, 8, 8, generator=generator(2), dtype=torch.float64)
    logits = model(images).detach()
    labels = logits.argmax(1)
    dual = 2 if norm == "l2" else 1  # the distance to a plane is the margin over the dual norm of its normal
    lengths = torch.linalg.vector_norm(model.weights[labels][:, None] - model.weights, ord=dual, dim=2).detach()
    away = (logits.gather(1, labels[:, None]) - logits) / lengths
    away = away.scatter(1, labels[:, None], torch.inf).amin(1)
    eps = away.sort().values[19:21].mean().item()
    attack = AutoAttack(norm, eps, parts, queries=20)
    found = attack(model, images, labels, generator=generator())
    assert found.min() >= 0 and found.max() <= 1
    # an attack comes near a boundary: the images within 2 % of it may fall on either side
    clear = (away / eps - 1).abs() > 0.02
    assert clear.sum() > 30
    assert torch.equal((model(found).argmax(1) != labels)[clear], (away < eps)[clear])


@pytest.mark.parametrize(("norm", "eps"), SETTINGS)
@pytest.mark.parametrize("parts", [PARTS[:1], PARTS[1:2], PARTS[3:], PARTS], ids="+".join)
def test_within_the_ball_by_seed_and_never_above_pgd(norm, eps, parts, some):
    model, images, labels = some
    attack = AutoAttack(norm, eps, parts, steps=25, targets=4, queries=60)
    found, again = (attack(model, images, labels, generator=generator(7)) for _ in range(2))
    assert torch.equal(found, again) and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1
    difference = (found - images).double()
    length = image_norms(difference).flatten() if norm == "l2" else difference.abs().amax((1, 2, 3))
    assert length.max() <= eps + 1e-6  # differences of float32 pixels are rounded to 6e-8
    assert torch.equal(found[:2], images[:2])  # classified wrong already
    with torch.no_grad():
        right = [(model(x).argmax(1) == labels).sum() for x in (images, found)]
        pgd = Attack(norm, eps, 2.5 * eps / 20, steps=20)(model, images, labels)
        if parts == PARTS:
            assert right[1] <= (model(pgd).argmax(1) == labels).sum() < right[0]
    assert right[1] < right[0] or parts == ("square",)


def test_what_is_not_fooled_is_the_worst_that_apgd_saw(some):
    model, images, labels = some
    found = AutoAttack("l2", 0.05, ("apgd-ce",), steps=10)(model, images, labels, generator=generator())
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(model(x), labels, reduction="none") for x in (images, found))
        robust = model(found).argmax(1) == labels
    assert robust.sum() > 5 and (after > before)[robust].all()


def test_an_image_is_attacked_alike_alone_and_in_a_batch(some):
    """Those that are fooled leave, which must not touch the others; FAB draws nothing at random."""
    model, images, labels = (some[0].double(), some[1].double(), some[2])
    attack = AutoAttack("l2", 0.5, ("fab-t",), steps=20, targets=2)
    together = attack(model, images[2:10], labels[2:10])
    alone = [attack(model, images[i : i + 1], labels[i : i + 1]) for i in range(2, 10)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)
    some[0].float()


def test_the_step_size_is_looked_at_where_the_paper_says():
    assert sorted(apgd.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert max(apgd.checkpoints(7)) <= 7


def test_the_ratio_of_logits_by_hand():
    logits = torch.tensor([[5.0, 3.0, 1.0, 0.0, -2.0]])
    loss = apgd.targeted_dlr(logits, torch.tensor([0]), torch.tensor([1]))
    assert loss.item() == pytest.approx(-(5 - 3) / (5 - (1 + 0) / 2))
    moved = apgd.targeted_dlr(10 * logits + 3, torch.tensor([0]), torch.tensor([1]))
    assert moved.item() == pytest.approx(loss.item())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_nearest_point_of_a_plane_within_the_pixels(norm):
    draw = generator(3)
    x = torch.rand(12, 1, 2, 4, generator=draw, dtype=torch.float64)
    normal = torch.randn(12, 1, 2, 4, generator=draw, dtype=torch.float64)
    normal[0, 0, 0, 0] = 0
    rise = 3 * torch.randn(12, generator=draw, dtype=torch.float64)
    rise[1] = 1e3  # out of reach
    found = fab.to_hyperplane(x, normal, rise, norm).flatten(1).numpy()
    for step, point, w, gain in zip(found, x.flatten(1).numpy(), normal.flatten(1).numpy(), rise.numpy()):
        room = [(-p, 1 - p) for p in point]
        most = sum(max(v * low, v * high) if gain > 0 else -min(v * low, v * high) for v, (low, high) in zip(w, room))
        if most < abs(gain):
            assert abs(w @ step) == pytest.approx(most)
        elif norm == "linf":  # min s with |d_i| <= s, as a linear programme
            rows = [[(i == j) * sign for j in range(8)] + [-1] for i in range(8) for sign in (1, -1)]
            best = optimize.linprog([0] * 8 + [1], rows, [0] * 16, [[*w, 0]], [gain], [*room, (0, None)])
            assert w @ step == pytest.approx(gain) and abs(step).max() == pytest.approx(best.fun, abs=1e-7)
        else:
            plane = {"type": "eq", "fun": lambda d, w=w, gain=gain: w @ d - gain}
            best = optimize.minimize(lambda d: d @ d, step * 0, bounds=room, constraints=plane, method="SLSQP")
            assert w @ step == pytest.approx(gain) and step @ step == pytest.approx(best.fun, rel=1e-4)
        assert (point + step).min() >= -1e-12 and (point + step).max() <= 1 + 1e-12


def test_the_pattern_of_a_square_by_hand():
    up = torch.tensor([1 / 4, 1 + 1 / 4, 1 / 4], dtype=torch.float64)
    down = torch.tensor([[1 / 4, 1 / 4, 1 / 4], [1 / 4, 1 + 1 / 4, 1 / 4]], dtype=torch.float64)
    expected = torch.cat([up[None] / up.norm(), -down / down.norm()]) / math.sqrt(2)
    torch.testing.assert_close(square.bump(3), expected)


def test_squares_shrink_as_in_the_paper():
    shares = [square.share_of_pixels(query, 5000) for query in (0, 5, 6, 4999)]
    assert shares == [0.8, 0.8, 0.4, 0.8 / 512]


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda: AutoAttack("fourier"), "-c 2 or inf"),
        (lambda: AutoAttack(eps=0.0), "--eps 0"),
        (lambda: AutoAttack(eps=math.nan), "--eps nan"),
        (lambda: AutoAttack()(Linear(3), torch.rand(2, 3, 8, 8).double(), torch.tensor([0, 1])), "got 3 classes"),
    ],
)
def test_what_it_cannot_do_is_said(attack, message):
    with pytest.raises(InputError, match=message):
        attack()


# beside torchattacks


def trained(arch: str, train_set: str, robust: bool):
    """A network trained for a moment on digits, and test images; CIFAR-10's ResNet-18 takes digits as well."""
    train, val = open_training("digits", None, augment=False)
    model = build_model(arch, train_set, seed=0)
    recipe = Recipe(
        epochs=2, batch_size=64, lr=0.05, schedule="onecycle", attack=Attack("l2", 1, 2 / 3) if robust else None
    )
    if arch == "resnet18":
        train.pixels, train.labels = train.pixels[:640], train.labels[:640]
        recipe = Recipe(epochs=1, batch_size=32, lr=0.02)
    saving = Saving(None, validate_every=1000, tensorboard=False)
    run = Trainer(model, Data(train, val), recipe, saving, Distributed(torch.device("cpu")), quiet=True)
    for epoch in range(1, recipe.epochs + 1):
        run.train_epoch(epoch)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "train_set", "robust", "count", "steps", "queries"),
    [
        ("vgg11", "digits", False, 100, 10, 100),
        ("resnet10", "digits", True, 100, 10, 100),
        ("resnet18", "cifar10", False, 100, 5, 10),
    ],
)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_robust_accuracy_is_that_of_torchattacks(arch, train_set, robust, count, steps, queries, norm):
    """All four parts of both, with the same number of steps: within one image in a hundred, never above PGD-20's."""
    torchattacks = pytest.importorskip("torchattacks")
    from torchattacks.wrappers.multiattack import MultiAttack

    model = trained(arch, train_set, robust)
    _, val = open_training("digits", None, augment=False)
    images, labels = val.floats(slice(0, count)), val.labels[:count]
    eps = {"l2": 1.0, "linf": 8 / 255}[norm]
    network = AttackTarget(model).of_now()
    ours = AutoAttack(norm, eps, steps=steps, queries=queries)(network, images, labels, generator=generator())
    ball = {"norm": norm.capitalize(), "eps": eps, "seed": 0}
    theirs = MultiAttack(
        [
            torchattacks.APGD(network, steps=steps, loss="ce", **ball),
            torchattacks.APGDT(network, steps=steps, n_classes=10, **ball),
            torchattacks.FAB(network, steps=steps, multi_targeted=True, n_classes=10, **ball),
            torchattacks.Square(network, n_queries=queries, **ball),
        ]
    )(images, labels)
    pgd = Attack(norm, eps, 2.5 * eps / 20, steps=20)(network, images, labels)
    with torch.no_grad():
        right = [(model(x).argmax(1) == labels).sum().item() for x in (ours, theirs, pgd)]
    assert abs(right[0] - right[1]) <= count // 100
    assert right[0] <= right[2]
