"""Sources -> models: what a person types for a model, where its weights are, and the classifier; `load` does it all."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from loguru import logger

from univ import files
from univ.data import find_dataset, trainable
from univ.errors import InputError
from univ.models import checkpoints, names
from univ.models.architectures import archs_of, find_arch
from univ.models.classifier import Classifier, assemble
from univ.models.entry import Arch, Channels
from univ.models.libraries import LIBRARIES
from univ.models.published import recognise


@dataclass(frozen=True)
class Source:
    """A model that is there, and not loaded yet.

    Attributes:
        name: in tables, and through `names.file_stem` in files.
        arch: its architecture.
        train_set: what it was trained on, a data set's name; None where it needs none.
        checkpoint: the file of its weights; None where the code that builds it brings them.
        num_classes: None: those of the training set.
        mean, std: pixel statistics of a user's own network that does not normalise by itself.
    """

    name: str
    arch: str
    train_set: str | None
    checkpoint: Path | None
    num_classes: int | None = None
    mean: Channels | None = None
    std: Channels | None = None

    @property
    def spec(self) -> Arch:
        """The architecture's entry."""
        spec = find_arch(self.arch, self.train_set)
        return spec if self.mean is None else replace(spec, mean=self.mean, std=self.std)

    @property
    def image_size(self) -> int | None:
        """Side of the images it takes, pixels; None where nobody says."""
        return self.spec.input_size or (find_dataset(self.train_set).image_size if self.train_set else None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what decides its outputs: of the checkpoint, else of its weights, with the code that builds it."""
        spec = self.spec
        digests = [weights_hash(self.load()) if self.checkpoint is None else files.content_hash(self.checkpoint)]
        digests += [files.content_hash(spec.code)] if spec.code is not None else []
        digests += [f"{self.mean} {self.std}"] if self.mean is not None else []
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def __str__(self) -> str:
        return str(self.checkpoint or self.arch)

    def load(self, device: torch.device | str | None = None) -> Classifier:
        """The model in evaluation mode, its weights fixed.

        Raises:
            InputError: the file is damaged, or made for another architecture or number of classes: says which weight.
            FileNotFoundError: there is no such file.
        """
        state = None if self.checkpoint is None else checkpoints.read_weights(self.checkpoint)
        # seeded: the global generator is left alone
        model = assemble(self.spec, self.arch, self.train_set, self.num_classes, seed=0)
        if state is not None:
            checkpoints.load_weights(model, state, self.checkpoint)
        return model.eval().requires_grad_(False).to(device or "cpu")


def find_source(
    source: str | Path,
    *,
    folder: Path | str | None = None,
    dataset: str | None = None,
    num_classes: int | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
) -> Source:
    """Find out which model a text means and where its weights are; fetches published weights that are not here.

    Args: see `load`.

    Raises:
        InputError: no such model, or it is not clear which one.
        FileNotFoundError: its weights are not there; says where they may be put.
    """
    arch, path = names.parse_source(str(source))
    name = names.source_name(source)
    if path is not None and not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise FileNotFoundError(f"the checkpoint {path} {what}: expected FILE or ARCH=FILE")
    says: dict[str, object] = {}
    if path is not None and (arch is None or dataset is None):
        says = checkpoints.read_about(path)
    if arch is None:
        arch = _arch_of_file(path, says)
    if dataset is None:
        dataset = _dataset_of(arch, path, says, num_classes)
    spec = find_arch(arch, dataset)
    if (mean is None) != (std is None):
        raise InputError("--mean and --std go together: give both")
    if mean is not None and spec.code is None:
        raise InputError(f"--mean and --std are for module:FILE.py:FUNCTION; {name} has its own pixel statistics")
    if path is None:
        path = _find_weights(arch, spec, folder, dataset)
    statistics = {"mean": tuple(mean), "std": tuple(std)} if mean is not None else {}
    return Source(name, arch, dataset, path, num_classes, **statistics)


def find_sources(
    sources: Iterable[str | Path], *, mean: Channels | None = None, std: Channels | None = None, **where: object
) -> dict[str, Source]:
    """`find_source` of several models that are to be told apart, by name.

    Raises:
        InputError: also, statistics (--mean, --std) that none of them wants.
    """
    texts = names.source_names(sources)
    statistics = pixel_statistics(texts.values(), mean, std)
    found = {name: find_source(text, **where, **statistics[text]) for name, text in texts.items()}
    return {name: replace(source, name=name) for name, source in found.items()}


def pixel_statistics(
    texts: Iterable[str], mean: Channels | None, std: Channels | None
) -> dict[str, dict[str, Channels | None]]:
    """What --mean and --std say of each source: nothing but of a user's own network.

    Raises:
        InputError: none of the models is one.
    """
    own = {text: text.startswith("module:") for text in texts}
    if (mean or std) and not any(own.values()):
        raise InputError("--mean and --std are for module:FILE.py:FUNCTION: none of the models is one")
    return {text: {"mean": mean, "std": std} if is_own else {} for text, is_own in own.items()}


def load(
    source: str | Path,
    *,
    folder: Path | str | None = None,
    dataset: str | None = None,
    num_classes: int | None = None,
    device: torch.device | str | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
) -> Classifier:
    """A trained model in evaluation mode, its weights fixed: images in [0, 1] to logits.

    Args:
        source: `resnet50` (of the study), a checkpoint file, `ARCH=FILE`, `timm:NAME`, `torchvision:NAME[.WEIGHTS]`,
            `hub:USER/REPO`, `robustbench:NAME`; or `module:FILE.py:FUNCTION`, which runs that file. See README.
        folder: where checkpoints are looked for; what is published comes from the libraries' caches, or is fetched.
        dataset: what it was trained on; None: what the file or its path says, or what fits its number of classes.
        num_classes: None: those of the data set, else of the weights.
        device: None is the CPU.
        mean, std: (3,) pixel statistics of a `module:`; without them it normalises by itself.

    Raises:
        InputError: no such model, or weights that do not fit; names the tensor.
        FileNotFoundError: the weights are not there; says where they may be put.
    """
    given = {"folder": folder, "dataset": dataset, "num_classes": num_classes, "mean": mean, "std": std}
    return find_source(source, **given).load(device)


def load_model(
    arch: str,
    train_set: str,
    checkpoint: Path | str,
    *,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """`load` of an architecture and a file whose training set is known."""
    return Source(arch, arch, train_set, Path(checkpoint), num_classes).load(device)


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 of a model's state dict: names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _find_weights(arch: str, spec: Arch, folder: Path | str | None, dataset: str | None) -> Path | None:
    """The checkpoint in the folder, else a library's published weights; None: the code brings them."""
    if folder is not None and (path := names.held_checkpoint(folder, arch, dataset)) is not None:
        return path
    if spec.brings_weights:
        return None
    if spec.weights is not None:
        path = spec.weights()
        logger.info("{}: no checkpoint in {}, so the published weights, {}", arch, folder or "a folder", path)
        return path
    if arch.partition(":")[0] in LIBRARIES:
        beside = f", in {folder}" if folder is not None else ""
        raise FileNotFoundError(
            f"{arch}: no weights are published, and no checkpoint is there{beside}: give {arch}=FILE"
        )
    if folder is None:
        raise InputError(f"{arch}: which checkpoint? Name its folder, or give {arch}=FILE")
    return names.find_checkpoint(folder, arch, dataset)


def _arch_of_file(path: Path, says: dict[str, object]) -> str:
    """What the name of a checkpoint says, or what it says of itself: a name of ours or of a library, never code."""
    try:
        return names.arch_from_filename(path)
    except InputError as error:
        said = says.get("arch")
        if not isinstance(said, str):
            raise InputError(f"cannot tell the architecture of {path}: give it as ARCH={path}") from error
        if ":" not in said and "train_set" not in says:  # a training checkpoint of timm
            said = f"timm:{said}"
        if said.partition(":")[0] not in ("timm", "torchvision") and ":" in said:
            raise InputError(f"{path} says it is of {said}: give that as {said}={path}, if you trust it") from error
        return said


def _dataset_of(arch: str, path: Path | None, says: dict[str, object], num_classes: int | None) -> str | None:
    """The data set a model was trained on: what the file says, what its path says, or what fits its classes."""
    if isinstance(said := says.get("train_set"), str):
        return said
    if path is not None and (said := recognise(str(path)).dataset) is not None:
        return said
    library = arch.partition(":")[0] in LIBRARIES
    sets = [name for name in trainable() if library or names.split_seed(arch)[0] in archs_of(name)]
    if not library and path is not None and num_classes is None and sets:
        state, head = checkpoints.read_weights(path), find_arch(arch, sets[0]).head
        num_classes = len(state.get(f"model.{head}.weight", ())) or None
    elif library and num_classes is None:
        num_classes = find_arch(arch, None).num_classes
    fitting = [name for name in sets if num_classes in (None, find_dataset(name).num_classes)]
    if len(fitting) == 1:
        return fitting[0]
    if library:
        return None
    known = f"choose from {', '.join(fitting or sets)}" if sets else "no data set has such an architecture"
    raise InputError(f"{arch}: which data set was it trained on? Give dataset=...: {known}")
