"""A study on digits in seconds: random networks of three architectures and random "inverted" images with reports."""

from pathlib import Path

import pandas as pd
import torch

from univ import files
from univ.data import open_images
from univ.models import build_model, checkpoints

ARCHS = ["vgg11", "resnet10", "resnext14_4x32d"]
N_INVERTED = 40


def write_study(root: Path) -> Path:
    """Checkpoints in data/cnns and images in data/digits/inverted below `root`; every model inverts other targets."""
    generator = torch.Generator().manual_seed(0)
    images = open_images("digits")
    folder = root / "data/digits/inverted"
    for seed, arch in enumerate(ARCHS):
        model = build_model(arch, "digits", seed=seed)
        checkpoints.save_checkpoint(root / f"data/cnns/digits/eps1/{arch}.pt", model, epoch=1)
        targets = torch.randperm(len(images), generator=generator)[:N_INVERTED]
        pixels = torch.stack([images[int(target)][0] for target in targets])
        noise = torch.rand(pixels.shape, generator=generator)
        files.save_torch(folder / f"{arch}_eps1.pt", pixels / 2 + noise / 2)
        report = pd.DataFrame({"target_index": targets, "target_label": images.labels[targets]})
        report.to_csv(folder / f"{arch}_eps1.csv", index=False)
    return root


def flags(root: Path) -> list[str]:
    """What every command on the study needs."""
    places = ["--model-dir", str(root / "data/cnns"), "--inverted-imgs-dir", str(root / "data/digits/inverted")]
    models = ["-d", "digits", "-m", "digits", "-o", "eps1", "--model-names", *ARCHS]
    return [*models, *places, "--quiet", "--device", "cpu", "--workers", "0"]


def forward(root: Path, arch: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(representation, logits) by a plain forward pass with a hook of the tests' own."""
    model = build_model(arch, "digits").eval()
    model.load_state_dict(checkpoints.load_checkpoint(root / f"data/cnns/digits/eps1/{arch}.pt")["model"])
    inputs = []
    model.head.register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(1)))
    with torch.no_grad():
        logits = model(images)
    return inputs[0], logits


def own_images() -> tuple[torch.Tensor, torch.Tensor]:
    """All images of the data set and their labels."""
    images = open_images("digits")
    return torch.stack([images[i][0] for i in range(len(images))]), images.labels
