"""Time minibatch CKA of all layers of a network with itself, beside what it cannot do without and beside packages.

What it cannot do without: a forward pass over the images, and the products of its HSIC sums (B x B inner products of
every layer, and one product of all of these). The packages are torch-cka and ckatorch, where they are installed; they
get the same network and layers, and one batch, as they are slow: their times are multiplied by the number of batches.
The network has random weights, and the batch statistics of the images.
"""

import argparse
import contextlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from univ import cli
from univ.compare import layers
from univ.compare.inputs import ImageSet, Models
from univ.data.images import TensorImages
from univ.measures.minibatch import MinibatchCKA, batch_gram
from univ.models import Classifier, build_model
from univ.reps.nodes import Reader, list_nodes

from .common import alternate, environment_line, markdown_table
from .measures import peak_memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", default="resnet50", help="ImageNet architecture")
    parser.add_argument("--num-images", type=cli.positive_int, default=2000, help="images")
    parser.add_argument("--image-size", type=cli.positive_int, default=64, help="side of the images, pixels")
    parser.add_argument("-b", "--batch", type=cli.positive_int, default=256, help="images per batch, at most")
    parser.add_argument("--repeats", type=cli.positive_int, default=1, help="timed runs of each, after one to warm up")
    parser.add_argument("--no-peers", action="store_true", help="leave the packages out")


def run(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    model = build_model(args.arch, "imagenet", seed=0).eval().to(device)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(args.num_images, 3, args.image_size, args.image_size, generator=generator)
    sizes = layers.batch_sizes(args.num_images, args.batch)
    names = list_nodes(model, pixels[:1])
    models = Models("imagenet", "eps0", {args.arch: Path("none")}, device, quiet=True)
    models._loaded[args.arch] = model
    vars(models)["hashes"] = {args.arch: "random weights"}
    images = ImageSet("imagenet", TensorImages(pixels, name="random"), torch.arange(len(pixels)))
    batches = [batch.to(device) for batch in pixels.split(sizes)]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of all the batches it sees, which is one
    with torch.no_grad():  # otherwise nearly all of an activation is its mean, and float32 sums of packages are nan
        model.train()(batches[0])
    model.eval()
    with torch.no_grad(), Reader(model, names) as reader:
        reps = reader(batches[0])

    def ours() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            how = {"pool": "flatten", "batch": args.batch, "seed": 0, "unfinished": Path(folder) / "unfinished"}
            return layers.minibatch_cka(models, images, {args.arch: names}, **how)[0]

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(batch)

    @torch.no_grad()
    def products() -> None:
        for _ in batches:
            grams = torch.stack([rep @ rep.T for rep in reps.values()]).double().flatten(1)
            torch.mm(grams, grams.T)

    seconds = alternate({"ours": ours, "forward": forward, "products": products}, repeats=args.repeats, device=device)
    reps = {}
    peak = peak_memory(ours, device)
    least = seconds["forward"] + seconds["products"]
    rows = [[name, f"{time:.1f} s", f"{time / least:.2f}", ""] for name, time in seconds.items()]
    for name, peer in PEERS.items() if not args.no_peers else ():
        if importlib.util.find_spec(name) is None:
            rows.append([name, "not installed", "", ""])
            continue
        with _quiet():
            one = alternate({name: partial(peer, model, names, batches[0])}, repeats=1, device=device, warm_up=False)
            error = (peer(model, names[-5:], batches[0]) - minibatch(model, names[-5:], batches[0])).abs().max()
        total = one[name] * len(batches)
        beside = f"{total / seconds['ours']:.1f}; equal to {error:.0e}"
        rows.append([name, f"{total:.1f} s", f"{total / least:.2f}", beside])
    print(
        f"{args.arch}, {len(names)} layers, {args.num_images} images of {args.image_size} pixels, {len(sizes)} batches"
    )
    print(environment_line(device))
    print(f"peak memory of ours: {peak:.2f} GB")
    print(markdown_table(["what", "time", "in forward passes + products", "in ours"], rows))


@torch.no_grad()
def minibatch(model: Classifier, names: list[str], batch: Tensor) -> Tensor:
    """Ours, on one batch."""
    sums = MinibatchCKA()
    with Reader(model, names, reduce=lambda _, rep: batch_gram(rep)) as reader:
        sums.update(torch.stack(list(reader(batch).values())))
    return sums.cka()


@torch.no_grad()
def torch_cka(model: Classifier, names: list[str], batch: Tensor) -> Tensor:
    """torch-cka, with the layers' names within the classifier."""
    from torch_cka import CKA

    own = [f"model.{name}" for name in names]
    try:
        peer = CKA(model, model, model1_layers=own, model2_layers=own, device=batch.device)
        peer.compare(DataLoader(TensorDataset(batch), batch_size=len(batch)))
        return peer.hsic_matrix.double()
    finally:
        for module in model.modules():  # the hooks that it leaves
            module._forward_hooks.clear()


@torch.no_grad()
def ckatorch(model: Classifier, names: list[str], batch: Tensor) -> Tensor:
    """Its `cka_batch` for every pair, as its class does; the class itself wants tokens, (B, T, D)."""
    from ckatorch import cka_batch

    with Reader(model, names) as reader:
        reps = [rep[None] for rep in reader(batch).values()]
    return torch.stack([torch.stack([cka_batch(a, b) for b in reps]) for a in reps]).cpu()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and progress bars of packages."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


PEERS: dict[str, Callable[[Classifier, list[str], Tensor], Tensor]] = {"torch_cka": torch_cka, "ckatorch": ckatorch}
