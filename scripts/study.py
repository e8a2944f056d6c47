"""A study file: what it may say, and where its files are; scripts/Snakefile makes rules of it.

python scripts/study.py scripts/studies/digits.yaml eps=[eps1]     check it: one line that names key, value and fix

Prints the key `data` where it is folder:PATH, the path absolute.
"""

import argparse
import difflib
import importlib
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # the scripts and univ

from univ import cli
from univ.data import DatasetNames, dataset_name, find_dataset, folders, is_folder, trainable
from univ.eps import EPS, eps_value
from univ.errors import InputError
from univ.models import default_models, file_stem, find_checkpoint, seeded, split_seed
from univ.results import ResultFile

STAGES = ("download", "data", "train", "evaluate", "invert", "compare", "func", "subgroups", "probes", "figures")
SCRIPTS = {  # stage -> the module whose long flags are its keys
    "train": "cifar10_training",
    "evaluate": "cifar10_training",
    "invert": "inversion",
    "compare": "rep",
    "func": "func",
    "subgroups": "subgroup_sim",
    "probes": "train_probe",
    "figures": "univ.plots",
}
OWN_KEYS = ("launch", "workers")  # of a stage: they change how a job runs and not what it computes
Eps = Literal[EPS]
Input = Literal["standard", "inverted"]
Flags = dict[str, Any]


class StudyFile(BaseModel):
    """The keys of a study file; scripts/studies/example.yaml explains each."""

    model_config = ConfigDict(extra="forbid")

    name: str
    data: str
    recipe: Literal["", "imagenet", "cifar10"] = ""
    models: list[str] = []
    seeds: list[Annotated[int, Field(ge=0)]] = []
    eps: Annotated[list[Eps], Field(min_length=1)]
    inputs: Annotated[list[Input], Field(min_length=1)] = ["standard", "inverted"]
    published: list[Literal["models", "inverted"]] = []
    cached: list[Input] = ["standard"]
    exp: str = "0"
    checkpoints: str = ""
    inverted: str = ""
    images: str = ""
    labels: str = ""
    training: str = ""
    common: Flags = {}
    train: Flags = {}
    evaluate: Flags = {}
    invert: Flags = {}
    compare: Flags = {"rep": ["paper"], "knn": 10}
    more_knn: list[int] = []
    func: Flags = {}
    subgroups: Flags = {}
    probes: Flags = {}
    probe_eps: list[Eps] = []
    figures: Flags = {}
    notebooks: list[str] = []

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "StudyFile":
        """The study that Snakemake's merged files and KEY=VALUE words describe, its defaults filled in.

        Raises:
            InputError: names each wrong key, what is wrong, and what is valid.
        """
        try:
            study = cls.model_validate({key: value for key, value in config.items() if key != "stages"})
        except ValidationError as error:
            raise InputError("; ".join(map(_mistake, error.errors()))) from error
        if study.data not in (known := DatasetNames(trainable())):
            raise InputError(f"data: unknown {study.data!r}, choose from {', '.join(known)}")
        for stage in config.get("stages", []):
            if stage not in (*STAGES, "extract"):
                raise InputError(f"no stage {stage!r}: choose from {', '.join(STAGES)}")
        dataset, usual = find_dataset(study.data), Path("data/imagenet/images")
        study._decide_recipe()
        if is_folder(study.data):  # the scripts know where its images are
            dataset = replace(dataset, default_path=None, training_path=None)
        study.training = study.training or str(dataset.training_path or "")
        if study.data == "imagenet" and not study.images:  # the validation images, as files or as LMDB
            study.images = str(usual if usual.is_dir() else Path(study.training) / "val.lmdb")
            study.labels = study.labels or (str(dataset.labels_path) if usual.is_dir() else "")
        study.images = study.images or str(dataset.default_path or "")
        study.checkpoints = study.checkpoints or f"data/cnns/{dataset.name}"
        study.inverted = study.inverted or str(dataset.inverted_path)
        if study.seeds and "seed" in study.train:
            raise InputError(f"train: seed: seeds says it already, {study.seeds}: remove one of them")
        study.seeds = list(dict.fromkeys(study.seeds)) or [int({**study.common, **study.train}.get("seed", 0))]
        study.probe_eps = study.probe_eps or [study.eps[-1]]
        study.subgroups = {"eps": list(dict.fromkeys([study.eps[0], study.eps[-1]])), **study.subgroups}
        return study

    def _decide_recipe(self) -> None:
        """Which script trains; on pictures of one's own the file says so, or what was measured before."""
        if not is_folder(self.data):
            if self.recipe:
                raise InputError(f"recipe: is for data: folder:PATH, {self.data} has its own")
            self.recipe = "imagenet" if self.data.startswith("imagenet") else "cifar10"
            return
        path = folders.path_of(self.data)
        record = folders.read_record(path, folders.read_classes(path))
        measured = "" if record is None else record.recipe
        if self.recipe and measured not in ("", self.recipe):
            raise InputError(f"recipe: {path / folders.RECORD} is for that of {measured}: leave this out, or remove it")
        self.recipe = self.recipe or measured or "imagenet"
        if not self.models:
            raise InputError(f"models: name those to train on {self.data}")
        if self.training or self.published:
            key = "training" if self.training else "published"
            raise InputError(f"{key}: leave it out, {self.data} is what models are trained on, by this study")

    @property
    def name_of_data(self) -> str:
        """What the results are filed under."""
        return dataset_name(self.data)

    @property
    def suffix(self) -> str:
        return find_dataset(self.data).suffix

    def archs(self, eps: str) -> list[str]:
        """The architectures of a radius: those named, or those that the paper compares there."""
        return self.models or default_models(self.data, eps)

    def trained(self, eps: str) -> list[str]:
        """The models of a radius: each architecture with each seed."""
        return list(dict.fromkeys(seeded(*_seed_in(arch, seed)) for arch in self.archs(eps) for seed in self.seeds))

    def named(self, *radii: str) -> list[str]:
        """The models of some radii, where they are not what the scripts compare by themselves."""
        if not self.models and self.seeds == [0]:
            return []
        return list(dict.fromkeys(model for eps in radii for model in self.trained(eps)))

    def seed(self, stem: str) -> Flags:
        """The seed to train a model with; nothing where it is the scripts' own default."""
        seed = split_seed(self.arch(stem))[1] or 0
        return {"seed": seed} if seed or "seed" in {**self.common, **self.train} else {}

    def arch(self, stem: str) -> str:
        """The architecture, with its seed, that a part of a file name stands for."""
        return {file_stem(arch): arch for eps in self.eps for arch in self.trained(eps)}[stem]

    def pairs(self, radii: Iterable[str] | None = None) -> list[tuple[str, str]]:
        """(eps, part of a file name) of every model."""
        return [(eps, file_stem(arch)) for eps in radii or self.eps for arch in self.trained(eps)]

    def checkpoint(self, eps: str, stem: str) -> str:
        """The file of a model: the one that is there, however it is called, or the one to be made."""
        folder = Path(self.checkpoints) / eps
        try:
            return str(find_checkpoint(folder, self.arch(stem), self.data))
        except FileNotFoundError:
            return f"{folder}/{stem}{self.suffix}"

    def images_of(self, eps: str, stem: str) -> str:
        """The file of inverted images: published ones may be .npy."""
        path = f"{self.inverted}/{stem}_{eps}"
        return f"{path}.npy" if Path(f"{path}.npy").is_file() else f"{path}.pt"

    def data_files(self, *splits: str) -> list[str]:
        """The files that a job needs of the training data (`train`, `val`) or of `images`."""
        if is_folder(self.data):
            own = {split: str(folders.stored_in(folders.path_of(self.data), split)) for split in folders.PARTS}
            own["images"] = self.images or own["val"]
            return list(dict.fromkeys(own[split] for split in splits))
        if self.data == "cifar10":
            return [f"{self.training}/cifar-10-batches-py/test_batch"]
        files = [self.images if split == "images" else self.split(split) for split in splits]
        return list(dict.fromkeys(filter(None, files)))

    def split(self, name: str) -> str:
        """What a part of the training data is read from."""
        return f"{self.training}/{name}.lmdb" if self.training and self.data != "cifar10" else self.training

    def scores(self, stage: str, keys: Iterable[str], eps: str, input: str, exp: str = "") -> list[str]:
        """The CSVs of some measures."""
        flags = getattr(self, stage)
        about = {name: bool(flags.get(flag, 1)) and stage == "compare" for name, flag in _PREPARED.items()}
        about |= {"inverted": input == "inverted", "baseline": bool(flags.get("perturbs"))}
        about["function"] = flags.get("function", "cos_sim")
        files = (ResultFile(key, self.name_of_data, self.name_of_data, eps, exp or self.exp, **about) for key in keys)
        return [str(file.path("results")) for file in files]

    def attack(self, eps: str) -> Flags:
        """The attack of a training radius; its step 2/3 of it (Salman et al. 2020), by CIFAR-10's recipe half of it."""
        radius = f"{eps_value(eps):g}"
        step = f"{radius}/{2 if self.recipe == 'cifar10' and self.data != 'digits' else 1.5}"
        return {} if radius == "0" else {"eps": radius, "lr": step, "steps": 3}

    def flags(self, stage: str, defaults: Flags | None = None, *, network: bool = True, **fixed: Any) -> list[str]:
        """The words of a stage: defaults, what is common to all scripts that run networks, its own keys, `fixed`."""
        merged = {**(defaults or {}), **(self.common if network else {}), **getattr(self, stage), **fixed}
        return words({name: value for name, value in merged.items() if name not in OWN_KEYS})

    def how(self, stage: str) -> tuple[str, str]:
        """What runs a script of a stage, `python` or torchrun; the words that say how many processes decode images."""
        own = {**(self.common if stage not in ("subgroups", "figures") else {}), **getattr(self, stage)}
        return own.get("launch", "python"), shlex.join(words({"workers": own.get("workers")}))


def _seed_in(arch: str, seed: int) -> tuple[str, int]:
    """A model's architecture and seed: the one in its name, if it has one."""
    name, own = split_seed(arch)
    return name, seed if own is None else own


_PREPARED = {"center": "center", "normalize": "norm"}


def words(flags: Mapping[str, Any]) -> list[str]:
    """{epochs: 6, overwrite: true, rep: [cka, proc]} -> --epochs 6 --overwrite --rep cka proc."""
    found = []
    for name, value in flags.items():
        said = str(value).lower()  # Snakemake reads the words of its command line as text
        if said not in ("none", "false"):
            values = [] if said == "true" else value if isinstance(value, list) else [value]
            found += [f"--{name}", *map(str, values)]
    return found


def check(study: StudyFile) -> None:
    """Look up every stage's keys among the long flags of its script.

    Raises:
        InputError: a key is no flag, or its value none that the flag takes.
    """
    for stage, module in SCRIPTS.items():
        options = parser_of(module)._option_string_actions
        for name, value in getattr(study, stage).items():
            if name in OWN_KEYS:
                continue
            if (action := options.get(f"--{name}")) is None:
                raise InputError(f"{stage}: {name!r} is no flag of its script{_nearest(name, options)}")
            try:
                if action.nargs != 0:
                    parser_of(module)._get_values(action, words({name: value})[1:])
            except argparse.ArgumentError as error:
                raise InputError(f"{stage}: {error}") from error


class _Built(Exception):
    """Carries a parser out of the function that builds it."""


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of a script."""

    def stop(parser: argparse.ArgumentParser, argv: Any) -> Any:
        raise _Built(parser)

    with mock.patch.object(cli.Parser, "parse_args", stop):
        try:
            importlib.import_module(module).parse_args([])
        except _Built as built:
            return built.args[0]
    raise AssertionError(f"{module} builds no parser")


def _mistake(error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_nearest(key, StudyFile.model_fields)}"
    return f"{key}: {error['msg'].lower()}, got {error['input']!r}"


def _nearest(word: str, valid: Iterable[str]) -> str:
    names = [name.removeprefix("--") for name in valid if len(name.removeprefix("-")) > 1]
    close = difflib.get_close_matches(word, names)
    return f": did you mean {' or '.join(close)}?" if close else f": choose from {', '.join(names)}"


def main() -> None:
    config: dict[str, Any] = {}
    files = []
    for word in sys.argv[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            files.append(Path(word).name)
        try:
            read = yaml.safe_load(value if equals else Path(word).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"{word}: {' '.join(str(error).split())}") from error
        if not equals and not isinstance(read, dict):
            raise InputError(f"{word}: no study: expected lines of KEY: VALUE")
        config.update({key: read} if equals else read)
    try:
        if is_folder(config.get("data")):  # as typed where the command was given, which may be another place than here
            place = Path(config["data"].removeprefix(folders.PREFIX)).expanduser()
            config["data"] = f"{folders.PREFIX}{Path(os.environ.get('UNIV_HERE', '.'), place).resolve()}"
            print(f"data={config['data']}")
        check(StudyFile.read(config))
    except (InputError, FileNotFoundError) as error:
        raise InputError(f"{' with '.join(files)}: {error}") from error


if __name__ == "__main__":
    cli.run(main)
