"""What `import univ` offers: plain networks and arrays in, tensors and tables out. No files, no flags.

models = {"mine": net, "robust": univ.load("data/cnns/imagenet/eps3/resnet50.ckpt")}
reps = univ.extract(models, images)
scores = univ.compare(reps, ["cka", "proc", "jacc"])
univ.heatmap(scores, "cka")
inverted = univ.invert(models["robust"], seeds, targets)
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from univ.compare import compare
from univ.errors import InputError
from univ.inversion.optimise import Inversion, Inverted, Inverter
from univ.measures.base import Rep, as_tensor
from univ.models import load
from univ.models.precision import arithmetic
from univ.reps import probes, reading
from univ.show.maps import heat_map

__all__ = ["compare", "extract", "heatmap", "invert", "load", "train_probe"]


def extract(
    models: nn.Module | Mapping[str, nn.Module],
    images: reading.Source,
    node: str | Sequence[str] = "head",
    *,
    pool: str | None = None,
    batch: int = 64,
    device: torch.device | str | None = None,
    quiet: bool = False,
) -> dict[str, Tensor] | Tensor:
    """Representations of images, one pass over the images for all models.

    Args:
        models: networks by name, or one network. They run in evaluation mode, and are afterwards as before.
        images: tensor or array (N, ...), Dataset, DataLoader, or a folder of image files.
        node: where to read: `head` (the input of the last layer), a dotted module name, `logits`, or several.
        pool: what becomes of maps and tokens: `mean`, `cls`, `flatten` or `none`; see `reps.nodes.Reader`.
        batch: images per forward pass, unless a DataLoader says so.
        device: where to compute; the models are moved there. Default: where each of them is.
        quiet: no progress bar.

    Returns:
        Model name -> representation (N, D) on the CPU, row i from image i, float32 (float64 of a float64 network). Of
        several nodes the keys are `<model>/<node>`. Of a single network: its tensor, or node -> tensor.

    Raises:
        InputError: no such node, no images, or NaN or infinity.
    """
    single = isinstance(models, nn.Module)
    networks = {"model": models} if single else dict(models)
    nodes = [node] if isinstance(node, str) else list(node)
    found = reading.read(networks, images, nodes, pool=pool, batch=batch, device=device, quiet=quiet)
    if single:
        return found["model", node] if isinstance(node, str) else {at: found["model", at] for at in nodes}
    if isinstance(node, str):
        return {name: found[name, node] for name in networks}
    return {f"{name}/{at}": found[name, at] for name in networks for at in nodes}


def heatmap(scores: pd.DataFrame, measure: str | None = None) -> Figure:
    """Similarity of every pair of models, ordered so that similar models are neighbours.

    Args:
        scores: what `compare` returns.
        measure: which of its measures; needed where there are several.

    Raises:
        InputError: no scores of this measure.
    """
    there = list(dict.fromkeys(scores["measure"]))
    if measure is None and len(there) == 1:
        measure = there[0]
    if measure not in there:
        raise InputError(f"no scores of {measure!r}: there are {', '.join(there) or 'none'}")
    return heat_map(scores[scores["measure"] == measure], measure)


def invert(
    model: nn.Module,
    seeds: Tensor,
    targets: Tensor,
    *,
    iterations: int = 1000,
    step_size: float = 1 / 8,
    tol: float | None = None,
    batch: int = 64,
    device: torch.device | str | None = None,
    quiet: bool = False,
) -> Inverted:
    """Change seed images until the model represents them like the target images, at the input of its last layer.

    Args:
        model: any classifier of images in [0, 1]; not changed.
        seeds, targets: (n, 3, H, W) in [0, 1], float or uint8, row i towards row i.
        iterations, step_size, tol: see `inversion.optimise.Inversion`.
        batch: images at a time.
        device: where to compute; default: where the model is.
        quiet: no progress bar.

    Returns:
        `images` (n, 3, H, W) on the CPU, `start_distance`, `final_distance` (n,), relative to the target's norm, and
        `best_iteration` (n,).

    Raises:
        InputError: seeds and targets that do not go together, pixels outside [0, 1], or distances that are NaN.
    """
    seeds, targets = (reading.pixels_of(as_tensor(images)) for images in (seeds, targets))
    if seeds.shape != targets.shape or seeds.ndim != 4 or seeds.shape[1] != 3 or not len(seeds):
        shapes = f"{tuple(seeds.shape)} and {tuple(targets.shape)}"
        raise InputError(f"seeds and targets are (n, 3, H, W), one seed for every target, got {shapes}")
    for name, images in {"seeds": seeds, "targets": targets}.items():
        if not (images.min() >= 0 and images.max() <= 1):
            raise InputError(f"{name}: expected pixels in [0, 1], got {images.min():g} to {images.max():g}")
    place = torch.device(device) if device is not None else reading.device_of(model)
    classifier = reading.as_classifier(model.to(place), seeds.shape[-1]).to(place)
    with reading.frozen(classifier), arithmetic("fp32", place):
        inverter = Inverter(classifier, Inversion(iterations, step_size, tol))
        with tqdm(total=len(seeds) * iterations, desc="invert", unit="img·it", unit_scale=True, disable=quiet) as bar:
            parts = [
                inverter(start.to(place), target.to(place), on_step=bar.update)
                for start, target in zip(seeds.split(batch), targets.split(batch))
            ]
    return Inverted(*(torch.cat([vars(part)[name].cpu() for part in parts]) for name in vars(parts[0])))


def train_probe(
    reps: Rep,
    labels: Rep,
    val_reps: Rep,
    val_labels: Rep,
    *,
    num_classes: int | None = None,
    epochs: int = 10,
    batch: int = 1024,
    lr: float = 5e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> probes.Probe:
    """A linear classifier of representations; the epoch that is best on the validation part.

    Args:
        reps, val_reps: (N, D), tensors or arrays.
        labels, val_labels: (N,) classes from 0.
        num_classes: default: the largest label and one.
        epochs, batch, lr: Adam, its learning rate falling to 1e-6 on a cosine.

    Returns:
        `weight` (C, D), `bias` (C,), `epoch`, and `accuracy` and `loss` (nats) on the validation part.

    Raises:
        InputError: not as many labels as representations, or values that are NaN or infinite.
    """
    parts = []
    for what, values, classes in (("training", reps, labels), ("validation", val_reps, val_labels)):
        part = probes.Labelled(as_tensor(values).flatten(1), as_tensor(classes).long())
        if part.labels.shape != (len(part.reps),):
            raise InputError(f"{what}: {len(part.reps)} representations, labels of shape {tuple(part.labels.shape)}")
        parts.append(part)
    classes = num_classes or int(max(part.labels.max() for part in parts)) + 1
    best, settings = probes.Best(), probes.Training(epochs, batch, lr, seed=seed)
    for epoch in probes.train(*parts, classes, [seed], settings, device=torch.device(device), quiet=quiet):
        best.update(epoch.probes)
    return best.by_accuracy[0]
