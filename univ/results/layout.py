"""Names of result files: measure and setting <-> results/<measure>/<standard|inverted>/...csv.

Layout and names are the published ones, so that the study's own files and ours are read alike; only this module knows
them. In words: `legend`.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from univ import files
from univ.data import DATASETS
from univ.measures.cards import CARDS, find_card

NEIGHBOR_FUNCTIONS = ("cos_sim", "euc")
COMPANIONS = {
    "ci": "confidence intervals over images: score, low, high (--ci)",
    "pvalue": "permutation p-values: score, p_value (-p)",
    "calibrated": "scores calibrated by permutations: score, calibrated (-p)",
}
"""Long tables beside a matrix, `<name>_<companion>.csv`: what they hold."""
PARTS = {
    "normalize": ("norm_", "representations were scaled to unit norm"),
    "center": ("mean_", "representations were centred: their mean over images was taken off"),
    "adversarial": ("adv_", "the images were made adversarial first (-v)"),
    "sample": ("sample_", "inverted images pooled over models: all models see the same (-s)"),
    "baseline": ("base_", "baseline: means over permutations of one model's images (-p)"),
    "singles": ("all_", "beside a baseline: the single scores of the permutations, a list in each cell"),
}
"""Attribute of `ResultFile` -> part of a file's name, in their order, and what it means."""
CKA_FOLDER = "10000"  # the published files lie below the number of images the study compared; a constant of the layout
SUBGROUPS_NAME = "repsim_subgroups.csv"
PROBES_NAME = "probe_agreement.csv"


def canonical_exp(tag: str | float) -> str:
    """One spelling per tag: the original rep.py writes 10 as `10.0` in file names, func.py as `10`; here it is `10`."""
    text = str(tag)
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def exp_spellings(tag: str | float) -> list[str]:
    """The tag as typed, then its other spelling if it has one: 10 -> 10, 10.0; 0.1 -> 0.1 only."""
    short = canonical_exp(tag)
    other = [f"{short}.0"] if re.fullmatch(r"-?\d+", short) else []
    return list(dict.fromkeys([str(tag), short, *other]))


@dataclass(frozen=True)
class ResultFile:
    """One result of one measure in one setting; `path` says where it lives.

    Attributes:
        measure: command-line key (`jacc`, `dis`, ...).
        dataset, models: the images compared on, and the training data of the models (part of the path on sat6 and on a
            folder's images only).
        eps: name of the models' adversarial radius, such as eps3.
        exp: tag of the index file, as typed.
        inverted: compared on inverted images.
        center, normalize: representations were centred, scaled to unit norm; in the name where the measure has it.
        function: neighbour function of jacc, rank and rank_jacc.
        adversarial, sample, baseline: adversarial images (-v), inverted images pooled over models (-s), permuted
            inputs (-p).
    """

    measure: str
    dataset: str
    models: str
    eps: str
    exp: str = "0"
    inverted: bool = False
    center: bool = False
    normalize: bool = False
    function: str = "cos_sim"
    adversarial: bool = False
    sample: bool = False
    baseline: bool = False

    @property
    def input(self) -> str:
        return "inverted" if self.inverted else "standard"

    @property
    def kind(self) -> str:
        """plain, or the parts of adv, sample and base that apply, joined by +."""
        flags = {"adv": self.adversarial, "sample": self.sample, "base": self.baseline}
        return "+".join(name for name, on in flags.items() if on) or "plain"

    @property
    def shown_dataset(self) -> str:
        """Name for tables and figures: on sat6 it includes the models' training data."""
        return self.dataset if self.models == self.dataset else f"{self.dataset}/{self.models}"

    @property
    def rowwise(self) -> bool:
        """Whether each model has its own images, so that cells (a, b) and (b, a) are different comparisons."""
        return self.inverted and not self.sample

    def folder(self, root: Path | str) -> Path:
        """The folder of this result below the results folder `root`.

        On a data set that is only compared on (sat6), and on a folder's images where the models were not trained on
        them, the last part names the models' training data for every measure: without it the results of ImageNet and
        CIFAR-10 models on the same images would overwrite each other.
        """
        card = find_card(self.measure)
        for what in ("dataset", "models", "function"):
            files.file_name(getattr(self, what), what)
        folder = Path(root) / files.file_name(card.folder, "measure") / self.input
        if card.neighbors:
            folder /= self.function
        if self.measure == "cka":
            folder /= CKA_FOLDER
        folder /= self.dataset
        known = DATASETS.get(self.dataset)
        apart = self.models != self.dataset if known is None else known.architectures is None
        return folder / self.models if apart else folder

    def name(self, *, singles: bool = False) -> str:
        """File name, `<name>_<parts><eps>_<exp>.csv`; `singles` is the list of single baseline scores."""
        card = find_card(self.measure)
        on = {part: singles if part == "singles" else getattr(self, part) for part in PARTS}
        on |= {"normalize": card.normalized and self.normalize, "center": card.centered and self.center}
        parts = "".join(text for part, (text, _) in PARTS.items() if on[part])
        return files.file_name(f"{card.file}_{parts}{self.eps}_{self.exp}.csv", "result")

    def path(self, root: Path | str) -> Path:
        return self.folder(root) / self.name()

    def singles_path(self, root: Path | str) -> Path:
        """The single scores of a baseline (-p)."""
        return self.folder(root) / self.name(singles=True)

    def companion_path(self, root: Path | str, companion: str) -> Path:
        """The long table `<name>_<companion>.csv` beside the scores, such as the confidence intervals `_ci.csv`."""
        if companion not in COMPANIONS:
            raise ValueError(f"unknown companion {companion!r}: expected one of {', '.join(COMPANIONS)}")
        path = self.path(root)
        return path.with_name(f"{path.stem}_{companion}.csv")

    def on_disk(self, root: Path | str) -> "ResultFile | None":
        """This file, or the same under its tag's other spelling (10, 10.0), whichever exists; None if neither does."""
        spelled = (replace(self, exp=exp) for exp in exp_spellings(self.exp))
        return next((file for file in spelled if file.path(root).is_file()), None)


def score_csvs(root: Path | str) -> list[Path]:
    """Every CSV of scores or beside them (companions, single baseline scores) below a results folder."""
    return [path for images in ("standard", "inverted") for path in sorted(Path(root).glob(f"*/{images}/**/*.csv"))]


_PATTERN = "".join(f"(?P<{part}>{text})?" for part, (text, _) in PARTS.items())
_NAME = re.compile(rf"{_PATTERN}(?P<eps>eps\d+)_(?P<exp>.+)\.csv")
_NOT_SCORES = re.compile(rf"_({'|'.join(COMPANIONS)})\.csv$")


def parse_path(path: Path, root: Path) -> ResultFile | None:
    """The inverse of `ResultFile.path`; None for anything below `root` that is not a CSV of scores."""
    folder, images, *middle = path.relative_to(root).parts[:-1]
    measure = next((key for key, card in CARDS.items() if card.folder == folder), folder)
    start = f"{find_card(measure).file}_"
    if images not in ("standard", "inverted") or not path.name.startswith(start):
        return None
    match = _NAME.fullmatch(path.name.removeprefix(start))
    if match is None or match["singles"] or _NOT_SCORES.search(path.name):
        return None
    function = middle.pop(0) if middle and middle[0] in NEIGHBOR_FUNCTIONS else "cos_sim"
    if middle and middle[0].isdigit():  # cka's number of images
        middle.pop(0)
    if len(middle) not in (1, 2):
        return None
    flags = {part: match[part] is not None for part in PARTS if part != "singles"} | {"inverted": images == "inverted"}
    return ResultFile(measure, middle[0], middle[-1], match["eps"], match["exp"], function=function, **flags)
