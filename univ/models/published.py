"""What the name of a published file says it is, and where it belongs below the data folder."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from univ.data import DATASETS
from univ.eps import eps_name, eps_value
from univ.errors import InputError
from univ.models.architectures import archs_of
from univ.models.names import HUGGING_FACE_ARCHS

TRAIN_SETS = tuple(name for name, dataset in DATASETS.items() if dataset.radii)  # those of the study
_DATASET_WORDS = {  # tried in this order, the most specific first
    "imagenet100": r"imagenet[-_ ]?100(?!\d)|\bin100\b",
    "imagenet50": r"imagenet[-_ ]?50(?!\d)|\bin50\b",
    "cifar10": r"cifar[-_ ]?10(?!\d)",
    "imagenet": r"imagenet|\bin1k\b|ilsvrc",
}
_KIND_WORDS = {"inverted": r"invert", "models": r"\bcnns?\b|checkpoint|weights|\bmodels?\b|\bnetworks?\b"}
_ARCH_NAMES = {arch: arch for dataset in TRAIN_SETS for arch in archs_of(dataset)} | HUGGING_FACE_ARCHS
_ARCH_NAMES |= {"tiny_vit": "tiny_vit_5m", "tinyvit": "tiny_vit_5m"}
_OTHER_NAME = {("cifar10", "vgg16_bn"): "vgg16"} | {
    (dataset, "vgg16"): "vgg16_bn" for dataset in ("imagenet", "imagenet100", "imagenet50")
}


@dataclass(frozen=True)
class Place:
    """What the name of a file says it is; None where the name does not say."""

    what: str | None = None  # models or inverted
    dataset: str | None = None
    eps: str | None = None
    model: str | None = None

    def is_complete(self) -> bool:
        return None not in (self.what, self.dataset, self.eps, self.model)

    def path(self, root: Path, suffix: str) -> Path:
        """Where it belongs below the data folder."""
        if self.what == "inverted":
            name = f"{self.model}_{self.eps}{'.npy' if suffix == '.npy' else '.pt'}"
            return root / DATASETS[self.dataset].inverted_path.relative_to("data") / name
        name = self.model + DATASETS[self.dataset].suffix
        return root / "cnns" / self.dataset / self.eps / name


def recognise(path: str, context: str = "") -> Place:
    """Read the place of a file off its path, innermost part first, then off its context (the record's title).

    >>> recognise("imagenet_eps3/wide_resnet50_2.ckpt")
    Place(what='models', dataset='imagenet', eps='eps3', model='wide_resnet50_2')
    """
    parts = [part.lower() for part in reversed(PurePosixPath(path).parts)]
    stem, suffix = PurePosixPath(parts[0]).stem, PurePosixPath(parts[0]).suffix
    around = [*parts, context.lower()]
    dataset = _first(_word(_DATASET_WORDS, text) for text in around)
    eps = _first(map(_eps, around))
    names = [name for name in _ARCH_NAMES if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", stem)]
    model = _ARCH_NAMES[max(names, key=len)] if names else None  # wide_resnet50_2 is no resnet50
    model = _OTHER_NAME.get((dataset, model), model)
    what = _first(
        (
            *(_word(_KIND_WORDS, part) for part in parts),
            "models" if suffix in (".ckpt", ".pth") or "_l2" in stem else None,
            "inverted" if suffix == ".npy" else None,
            _word(_KIND_WORDS, context.lower()),
            # our own names: <model>_<eps>.pt are inverted images, <model>.pt is a checkpoint
            ("inverted" if _eps(stem) else "models") if suffix == ".pt" else None,
        )
    )
    return Place(what, dataset, eps, model if dataset is None or model in archs_of(dataset) else None)


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value is not None), None)


def _word(words: dict[str, str], text: str) -> str | None:
    text = text.replace("_", " ").replace("-", " ")  # so that \b sees the ends of words
    found = [name for name, pattern in words.items() if re.search(pattern, text)]
    if found == ["inverted", "models"]:  # "models and inverted images" tells nothing
        return None
    return found[0] if found else None


def _eps(text: str) -> str | None:
    match = re.search(r"eps[-_ ]?(\d+(?:\.\d+)?)", text)
    if match is None:
        return None
    try:
        return eps_name(float(match[1]) if "." in match[1] else eps_value(f"eps{match[1]}"))
    except InputError:  # a radius such as 1.5, for which there is no folder name
        return None
