"""Scores of all pairs of eight models, at the study's size: ours beside the plain form of each definition.

The models are random: rectified linear maps of shared latent points with a falling spectrum, as wide as the study's.
A peer computes one pair from its definition in float32 (Gram matrices, all neighbours and Python sets, full SVD, loops
over images), as released code does. It is timed on one pair of about mean width and multiplied by the number of pairs;
ours is timed on all pairs, preparation included. Errors are those of that one pair, against float64.
"""

import argparse
import itertools
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from univ import cli, compare
from univ.errors import InputError
from univ.measures import FUNC_MEASURES, REP_MEASURES, Outputs, build

from .common import alternate, environment_line, markdown_table

WIDTHS = (512, 2048, 2048, 2048, 2048, 2048, 2208, 4096)
LATENT = 256
GROUPS = ("cka", "proc", "jacc", "cka+proc+jacc", "cos", "rank", "dis", "kappa", "jsd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-images", type=cli.positive_int, default=10_000, help="images per representation")
    parser.add_argument("--widths", type=cli.positive_int, nargs="+", default=WIDTHS, help="columns of each model")
    parser.add_argument("--num-classes", type=cli.positive_int, default=1000, help="classes of the functional measures")
    parser.add_argument("--knn", type=cli.positive_int, default=500, help="neighbours of jacc and rank")
    parser.add_argument("--repeats", type=cli.positive_int, default=1, help="timed runs of each, after one to warm up")
    text = f"measures to time; a+b are computed together; also {', '.join(PEERS.keys() - set(GROUPS))}"
    parser.add_argument("--measures", nargs="+", default=GROUPS, metavar="KEY", help=text)


def representations(n: int, widths: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """Model name -> (n, width) float32: max(0, points @ weights + noise - bias), seeded."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(n, LATENT, generator=generator) * torch.arange(1, LATENT + 1) ** -0.5
    found = {}
    for number, width in enumerate(widths):
        rep = points @ torch.randn(LATENT, width, generator=generator)
        rep += 0.3 * torch.randn(n, width, generator=generator) - 0.3
        found[f"model{number}_{width}"] = rep.clamp_(min=0).to(device)
    return found


def outputs(n: int, classes: int, models: list[str], device: torch.device) -> dict[str, Outputs]:
    """Model name -> logits (n, classes) that are right about as often as a robust ImageNet model, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    shared = torch.randn(n, classes, generator=generator)
    shared[torch.arange(n), labels] += 3.5
    return {
        name: Outputs((shared + 0.7 * torch.randn(n, classes, generator=generator)).to(device), labels.to(device))
        for name in models
    }


# The plain forms: one pair, float32


def plain_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 - the symbols of the paper
    n = len(k)
    kl = k @ l
    return (kl.trace() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * kl.sum() / (n - 2)) / (n * (n - 3))


def plain_cka(x: Tensor, y: Tensor) -> float:
    k, l = ((rep @ rep.T).fill_diagonal_(0) for rep in (x, y))  # noqa: E741
    return (plain_hsic(k, l) / (plain_hsic(k, k) * plain_hsic(l, l)).sqrt()).item()


def plain_procrustes(x: Tensor, y: Tensor) -> float:
    x, y = (rep - rep.mean(dim=0) for rep in (x, y))
    x, y = (rep / rep.norm() for rep in (x, y))
    return (x.norm() ** 2 + y.norm() ** 2 - 2 * torch.linalg.matrix_norm(x.T @ y, ord="nuc")).item()


def plain_similarity(rep: Tensor) -> Tensor:
    rep = torch.nn.functional.normalize(rep - rep.mean(dim=0), dim=1)
    return (rep @ rep.T).fill_diagonal_(-1)


def plain_neighbors(x: Tensor, y: Tensor, k: int) -> zip:
    return zip(*(plain_similarity(rep).topk(k, dim=1).indices.tolist() for rep in (x, y)))


def plain_jaccard(x: Tensor, y: Tensor, k: int) -> float:
    pairs = ((set(a), set(b)) for a, b in plain_neighbors(x, y, k))
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs]))


def plain_rank(x: Tensor, y: Tensor, k: int) -> float:
    scores = []
    for a, b in plain_neighbors(x, y, k):
        rank_a, rank_b = ({v: i + 1 for i, v in enumerate(found)} for found in (a, b))
        common = rank_a.keys() & rank_b.keys()
        total = sum(2 / ((1 + abs(rank_a[v] - rank_b[v])) * (rank_a[v] + rank_b[v])) for v in common)
        scores.append(total / sum(1 / i for i in range(1, len(common) + 1)) if common else 0.0)
    return float(np.mean(scores))


def plain_cosine(x: Tensor, y: Tensor) -> float:
    a, b = (plain_similarity(rep).fill_diagonal_(0) for rep in (x, y))
    return torch.nn.functional.cosine_similarity(a, b, dim=1).mean().item()


def plain_disagreement(a: Outputs, b: Outputs) -> float:
    return float(np.mean([int(p.argmax() != q.argmax()) for p, q in zip(a.logits, b.logits)]))


def plain_kappa(a: Outputs, b: Outputs) -> float:
    classes = a.logits.shape[1]
    table = np.zeros((classes, classes))
    for p, q in zip(a.logits, b.logits):
        table[p.argmax(), q.argmax()] += 1
    table /= len(a.logits)
    expected = sum(table[c].sum() * table[:, c].sum() for c in range(classes))
    return float((np.trace(table) - expected) / (1 - expected))


def plain_jsd(a: Outputs, b: Outputs) -> float:
    scores = []
    for p, q in zip(a.logits.softmax(dim=1), b.logits.softmax(dim=1)):
        m = (p + q) / 2
        scores.append((((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2).item())
    return float(np.mean(scores))


def plain_rtd(x: Tensor, y: Tensor) -> float:
    """One of ten trials, by the whole matrix instead of its lower triangle."""
    from gudhi.sklearn.rips_persistence import RipsPersistence

    images = torch.randperm(len(x))[:500]
    distances = [torch.cdist(rep[images].double(), rep[images].double()).cpu().numpy() for rep in (x, y)]
    r1, r2 = (r / np.quantile(r, 0.9) for r in distances)
    total = 0.0
    for first, second in ((r1, r2), (r2, r1)):
        matrix = np.block([[np.zeros_like(first), first], [first, np.minimum(first, second)]])
        bars = RipsPersistence(homology_dimensions=1, input_type="full distance matrix").fit_transform([matrix])[0]
        total += np.sum(bars[:, 1] - bars[:, 0]) / 2
    return total


PEERS: dict[str, Callable[..., float]] = {
    "cka": plain_cka,
    "proc": plain_procrustes,
    "jacc": plain_jaccard,
    "rank": plain_rank,
    "cos": plain_cosine,
    "rtd": plain_rtd,
    "dis": plain_disagreement,
    "kappa": plain_kappa,
    "jsd": plain_jsd,
}
SCALE = {"rtd": 10}  # what a peer's time is multiplied by to make a whole pair
EXACT = ("cka", "proc")  # peers that tell the errors when they work in float64


def peak_memory(run: Callable[[], Any], device: torch.device) -> float:
    """The most memory (GB) that the process had while `run` ran (on CUDA: that torch had)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) / 1e9
    statm, read, done = Path("/proc/self/statm"), [], threading.Event()

    def watch() -> None:
        while statm.exists() and not done.wait(0.01):
            read.append(4096 * int(statm.read_text().split()[1]))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(read, default=math.nan) / 1e9


def run(args: argparse.Namespace) -> None:
    if unknown := {key for group in args.measures for key in group.split("+")} - PEERS.keys():
        raise InputError(f"--measures: unknown {sorted(unknown)}; choose from {', '.join(PEERS)}")
    device = torch.device(args.device)
    reps = representations(args.num_images, tuple(args.widths), device)
    logits = outputs(args.num_images, args.num_classes, list(reps), device)
    names = list(reps)
    pairs = list(itertools.combinations(names, 2))
    mean = sum(args.widths) / len(args.widths)  # a peer's time goes with the sum or the product of the widths
    typical = min(pairs, key=lambda pair: sum(abs(reps[name].shape[1] - mean) for name in pair))
    rows = []
    for group in tqdm(args.measures, desc="benchmark", unit="row", disable=args.quiet):
        rows.append(_time_group(group, args, reps, logits, typical, len(pairs), device))
    print(f"{args.num_images} images, {len(names)} models of {' '.join(map(str, args.widths))} columns, k = {args.knn}")
    print(environment_line(device))
    print("peers: one pair of", " and ".join(str(reps[name].shape[1]) for name in typical), "columns x", len(pairs))
    headers = ["measure", "ours, all pairs", "peak memory", "peer, all pairs", "times as fast", "our error", "peer's"]
    print(markdown_table(headers, rows))


def _time_group(
    group: str,
    args: argparse.Namespace,
    reps: Mapping[str, Tensor],
    logits: Mapping[str, Outputs],
    typical: tuple[str, str],
    pairs: int,
    device: torch.device,
) -> list[str]:
    keys = group.split("+")
    functional = keys[0] in FUNC_MEASURES
    inputs: Mapping[str, Any] = logits if functional else reps
    measures = build(FUNC_MEASURES if functional else REP_MEASURES, keys, **({} if functional else {"k": args.knn}))
    one_pair = [inputs[name] for name in typical]
    last: dict[str, Any] = {}

    def ours() -> None:
        last["ours"] = compare.pairwise(inputs, measures, quiet=True)

    def peer() -> None:
        for key in keys:
            settings = {"k": args.knn} if key in ("jacc", "rank") else {}
            last[key] = PEERS[key](*one_pair, **settings)

    memory = peak_memory(ours, device)
    warm_up = device.type == "cuda"  # on the CPU ours has just had one, and a peer takes up to minutes
    seconds = alternate({"ours": ours, "peer": peer}, repeats=args.repeats, device=device, warm_up=warm_up)
    theirs = seconds["peer"] * pairs * SCALE.get(group, 1)
    errors = ["", ""]
    if group in EXACT:
        exact = PEERS[group](*(rep.double() for rep in one_pair))
        scores = (last["ours"][group].scores.at[typical], last[group])
        errors = [f"{abs(score - exact):.0e}" for score in scores]
    times = [f"{seconds['ours']:.3g} s", f"{memory:.2f} GB", f"{theirs:.3g} s", f"{theirs / seconds['ours']:.3g}"]
    return [" + ".join(keys), *times, *errors]
