"""APGD and AutoAttack, images per second: ours beside `torchattacks`, with the same parts, steps and queries.

Both attack the same network: ours folded and frozen, as evaluation does; the peer as it is, frozen. The robust
accuracies show that both are as strong.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from univ import cli
from univ.attacks import PARTS, AutoAttack, Norm
from univ.data import open_training
from univ.models import Classifier, load_model
from univ.training import AttackTarget

from .common import alternate, environment_line, markdown_table

NORMS: dict[Norm, tuple[str, float]] = {"l2": ("L2", 1.0), "linf": ("Linf", 8 / 255)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "DATA:ARCH:FILE, checkpoints that take the images of --images"
    parser.add_argument("--networks", nargs="+", required=True, metavar="NETWORK", help=text)
    parser.add_argument("--images", choices=("digits", "cifar10"), default="digits", help="whose test images")
    parser.add_argument("-n", type=cli.positive_int, default=100, help="images, in one batch")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of AutoAttack")
    parser.add_argument("--steps", type=cli.positive_int, default=20, help="of APGD and FAB, per target class")
    parser.add_argument("--queries", type=cli.positive_int, default=300, help="of Square")
    parser.add_argument("--repeats", type=cli.positive_int, default=1, help="timed runs of each")


def peer_attack(model: Classifier, norm: Norm, args: argparse.Namespace) -> Callable[[Tensor, Tensor], Tensor]:
    """The same parts of `torchattacks`: images and labels -> adversarial images."""
    import torchattacks
    from torchattacks.wrappers.multiattack import MultiAttack

    name, eps = NORMS[norm]
    ball = {"norm": name, "eps": eps, "seed": args.seed}
    targeted = {"steps": args.steps, "n_classes": model.num_classes, **ball}
    made = {
        "apgd-ce": lambda: torchattacks.APGD(model, steps=args.steps, loss="ce", **ball),
        "apgd-t": lambda: torchattacks.APGDT(model, **targeted),
        "fab-t": lambda: torchattacks.FAB(model, multi_targeted=True, **targeted),
        "square": lambda: torchattacks.Square(model, n_queries=args.queries, **ball),
    }
    parts = [made[part]() for part in args.parts]
    return MultiAttack(parts) if len(parts) > 1 else parts[0]


def our_attack(model: Classifier, norm: Norm, args: argparse.Namespace) -> Callable[[Tensor, Tensor], Tensor]:
    """Ours, as evaluation runs it."""
    network = AttackTarget(model).of_now()
    attack = AutoAttack(norm, NORMS[norm][1], tuple(args.parts), args.steps, queries=args.queries)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        return attack(network, images, labels, generator=torch.Generator(args.device).manual_seed(args.seed))

    return run


def run(args: argparse.Namespace) -> None:
    _, images = open_training(args.images, None, augment=False)
    pixels, labels = images.floats(slice(0, args.n)).to(args.device), images.labels[: args.n].to(args.device)
    rows = [_row(network, norm, pixels, labels, args) for network in args.networks for norm in NORMS]
    settings = f"{args.n} images, {' + '.join(args.parts)}, {args.steps} steps, {args.queries} queries"
    print(f"{environment_line(args.device)}; {settings}")
    headers = ("data", "network", "norm", "torchattacks, images/s", "ours, images/s", "ratio", "robust %: peer", "ours")
    print(markdown_table(headers, rows))


def _row(network: str, norm: Norm, pixels: Tensor, labels: Tensor, args: argparse.Namespace) -> tuple[object, ...]:
    train_set, _, rest = network.partition(":")
    arch, _, checkpoint = rest.rpartition(":")  # the name of an architecture may have a colon, as timm:convnext_tiny
    model = load_model(arch, train_set, checkpoint, device=args.device).requires_grad_(False)
    attacks = {"peer": peer_attack(model, norm, args), "ours": our_attack(model, norm, args)}
    found: dict[str, Tensor] = {}

    def attack(name: str) -> None:
        found[name] = attacks[name](pixels, labels)

    runs = {name: partial(attack, name) for name in attacks}
    seconds = alternate(runs, repeats=args.repeats, device=args.device, warm_up=False)
    with torch.no_grad():
        robust = [f"{100 * (model(found[name]).argmax(1) == labels).double().mean():.1f}" for name in attacks]
    rates = [f"{len(labels) / seconds[name]:.2f}" for name in attacks]
    return train_set, arch, norm, *rates, f"{seconds['peer'] / seconds['ours']:.2f}", *robust
