"""Representation inversion, image iterations per second: ours beside the published procedure.

The published procedure is `robustness.attacker.AttackerModel` driven by the study's momentum step and loss: two forward
passes and one backward pass per iteration, batch norm unfolded, the default memory layout. Both start from the
same images on the same weights, so the final distances are compared too. Where arithmetic is all that counts (3x3
convolutions of many channels at fp32) saving one of three passes is all there is to gain, a ratio of some 1.5.
"""

import argparse

import torch
from torch import Tensor, nn

from univ import cli
from univ.data import DATASETS, open_images
from univ.data.loaders import stream
from univ.inversion import MOMENTUM, Inversion, Inverter
from univ.models import DIGITS_ARCHS, Classifier, build_model
from univ.models.precision import PRECISIONS, arithmetic

from .common import alternate, cuda_only_on_cuda, environment_line, markdown_table, peer

ON_CPU = (*(f"digits:{arch}" for arch in DIGITS_ARCHS), "cifar10:resnet18", "imagenet:resnet50")
ON_CUDA = ("cifar10:resnet18", "imagenet:resnet50", "imagenet:vgg16_bn", "imagenet:densenet161", "imagenet:tiny_vit_5m")


def published_inversion(model: Classifier, start: Tensor, targets: Tensor, inversion: Inversion) -> Tensor:
    """Inverted images, (n, 3, H, W), by the published procedure; arguments as those of `univ.inversion.Inverter`."""
    from robustness.attack_steps import L2Step

    class MomentumStep(L2Step):
        mean: Tensor | float = 0.0

        def step(self, x: Tensor, g: Tensor) -> Tensor:
            norm = torch.norm(g.reshape(len(g), -1), dim=1).view(-1, 1, 1, 1)
            self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * g / (norm + 1e-10)
            return x + self.step_size * self.mean

    def loss(network: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, None]:
        _, rep = network(x, with_latent=True)
        return torch.norm(rep - target, dim=1) / torch.norm(target, dim=1), None

    attacker = peer(model).eval()
    with torch.no_grad():
        (_, target), _ = attacker(targets, with_latent=True)
    settings = {"eps": 1000, "step_size": inversion.step_size, "iterations": inversion.iterations}
    how = {"constraint": MomentumStep, "targeted": True, "custom_loss": loss}
    with cuda_only_on_cuda(start.device):
        _, inverted = attacker(start, target.clone(), make_adv=True, **how, **settings)
    return inverted.detach()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "<data set>:<arch> (default: those of the digits and two more; on CUDA larger ones)"
    add("--models", nargs="+", help=text)
    add("--precisions", nargs="+", choices=PRECISIONS, help="ours (default: fp32; all on CUDA)")
    add("--images", type=cli.positive_int, help="per batch (default: 64; on the CPU 8, of ImageNet 4)")
    add("--iterations", type=cli.positive_int, help="per run (default: CPU 20, CUDA 100)")
    add("--repeats", type=cli.positive_int, default=3, help="runs of each, in turn, of which the median")


def trained_statistics(dataset: str, arch: str, device: torch.device) -> Classifier:
    """A network with random weights whose batch norm knows its inputs, as it does after training."""
    model = build_model(arch, dataset, seed=0).to(device)
    with torch.no_grad():
        for part in pictures(dataset, 64, "statistics").split(16):
            model(part.to(device))
    return model.eval()


def pictures(dataset: str, n: int, name: str) -> Tensor:
    """(n, 3, H, W) images: digits, or else coarse random patterns, which need no download."""
    if dataset == "digits":
        images = open_images("digits")
        chosen = torch.randperm(len(images), generator=stream(name))[:n]
        return images.floats(chosen)
    coarse = torch.rand(n, 3, 8, 8, generator=stream(name))
    return nn.functional.interpolate(coarse, size=DATASETS[dataset].image_size, mode="bilinear")


def run(args: argparse.Namespace) -> None:
    device, cuda = args.device, args.device.type == "cuda"
    rows = []
    for name in args.models or (ON_CUDA if cuda else ON_CPU):
        dataset, _, arch = name.partition(":")
        n = args.images or (64 if cuda or dataset == "digits" else 8 if DATASETS[dataset].image_size == 32 else 4)
        inversion = Inversion(args.iterations or (100 if cuda else 20), step_size=1.0 if dataset == "digits" else 1 / 8)
        model = trained_statistics(dataset, arch, device)
        start, targets = (pictures(dataset, n, part).to(device) for part in ("seeds", "targets"))
        judge = Inverter(model, inversion)  # measures the images of all with the same fp32 network

        def published(model=model, start=start, targets=targets, inversion=inversion) -> Tensor:
            with arithmetic("fp32", start.device):
                return published_inversion(model, start, targets, inversion)

        contenders = {"published": published}
        for precision in args.precisions or (PRECISIONS if cuda else ("fp32",)):
            with arithmetic(precision, device):
                inverter = Inverter(model, inversion)

            def ours(inverter=inverter, precision=precision, start=start, targets=targets) -> Tensor:
                with arithmetic(precision, device):
                    return inverter(start, targets).images

            contenders[precision] = ours
        distances = {name: judge.distances(images(), targets).median().item() for name, images in contenders.items()}
        seconds = alternate(contenders, repeats=args.repeats, device=device)
        for contender in contenders:
            rate = n * inversion.iterations / seconds[contender]
            ratio = seconds["published"] / seconds[contender]
            row = (name, n, inversion.iterations, contender, f"{rate:,.1f}", f"{ratio:.2f}")
            rows.append((*row, f"{distances[contender]:.4f}"))
    headers = ("model", "images", "iterations", "procedure", "image iterations/s", "ratio", "median distance")
    print(markdown_table(headers, rows))
    print(f"\n{environment_line(device)}; medians of {args.repeats} runs in turn")
