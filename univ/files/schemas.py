"""What is read back from disk or net, checked once: a value against a model of what it should hold, or one line.

In: JSON, tables and the fields of checkpoints, whoever wrote them. Out: models and tables of the right types; what is
missing, of another type or no JSON at all is an `InputError` that names the file and the field. Fields that a model
does not name are kept as they are.
"""

import functools
import json
import math
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from torch import Tensor

from univ import files
from univ.eps import eps_value
from univ.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
FILE_NAME_BYTES = 255  # the longest name of a file on Linux


class Schema(BaseModel):
    """A file's content: types as named, nothing converted but integers to floats, other fields kept."""

    model_config = ConfigDict(extra="allow", strict=True, arbitrary_types_allowed=True, protected_namespaces=())


# --- reading --------------------------------------------------------------------------------------------------------


def validate(value: Any, model: Callable[..., T], where: Path | str) -> T:
    """`value` as an instance of `model`, a `Schema` or any other type.

    Raises:
        InputError: names `where` (the file and the place in it), the field and what is wrong with it.
    """
    try:
        return _adapter(model).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise InputError(f"{where} is damaged or of another kind: {at[:100]} is missing") from error
        problem = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        found = reprlib.repr(first["input"])[:60]
        raise InputError(f"{where} is damaged or of another kind: {at[:100] or 'it'} {problem}, got {found}") from error


_adapter = functools.cache(TypeAdapter)


def parse_json(text: str | bytes, model: Callable[..., T], where: Path | str) -> T:
    """JSON as an instance of `model`.

    Raises:
        InputError: no JSON, nested too deeply, text with half a character, or another content; names `where`.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise InputError(f"{where} is damaged or of another kind: it is nested too deeply") from error
    except UnicodeEncodeError as error:  # JSON can spell half of a pair of surrogates, which no file can hold
        raise InputError(f"{where} is damaged or of another kind: it holds half a character") from error
    except ValueError as error:
        raise InputError(f"{where} is damaged or of another kind: it is not JSON ({error})") from error
    return validate(value, model, where)


def read_json(path: Path | str, model: Callable[..., T]) -> T:
    """A JSON file as an instance of `model`.

    Raises:
        FileNotFoundError: no such file.
        InputError: it is not UTF-8, or as `parse_json` says.
    """
    return parse_json(files.read_text(path), model, path)


def read_csv(path: Path | str, **options: Any) -> "pd.DataFrame":
    """`pandas.read_csv`, whose many ways to fail on what is there become one InputError."""
    import pandas as pd  # half a second, which those who read no table need not wait for

    try:
        return pd.read_csv(path, **options)
    except (ValueError, OverflowError, IndexError, TypeError) as error:  # its own errors are ValueErrors
        raise InputError(f"{path} is not a CSV: {str(error).strip()[:200]}") from error


def read_table(path: Path | str, row: type[Schema], needed: Sequence[str] = ()) -> "pd.DataFrame":
    """A CSV whose columns are the fields of a row's schema and whatever else it holds; numbers of rows are dropped.

    Args:
        needed: the columns that must be there; default: those of the fields without a default.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a CSV, a column is missing, or a cell is not what it should be; names column and row.
    """
    table = read_csv(path)
    needed = needed or [name for name, field in row.model_fields.items() if field.is_required()]
    if lacking := [name for name in needed if name not in table]:
        found = ", ".join(map(str, table.columns))[:300]
        raise InputError(f"{path} lacks the columns {', '.join(lacking)}; it has {found}")
    for name, field in row.model_fields.items():
        if name in table:
            kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            table[name] = validate(table[name].tolist(), list[kind], f"{path}, column {name}, row")
    return table.drop(columns=[column for column in table if str(column).startswith("Unnamed")])


# --- kinds of values ------------------------------------------------------------------------------------------------


def _radius(value: Any) -> Any:
    return eps_value(value) if isinstance(value, str) and value.startswith("eps") else value


def _radius_name(value: str) -> str:
    eps_value(value)
    return value


def _python_number(value: Any) -> Any:
    """A NumPy number, or a tensor of one, as Python's: training scripts save accuracies as any of them."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    return value


def _path_text(value: str) -> str:
    if "\0" in value or any(len(part.encode()) > FILE_NAME_BYTES for part in value.split("/")):
        raise ValueError("is no path that can exist")
    return value


def _tensor(*dtypes: torch.dtype, dims: int) -> AfterValidator:
    def check(value: Tensor) -> Tensor:
        if value.dtype not in dtypes or value.dim() != dims:
            raise ValueError(f"should be a {dims}-dimensional tensor of {' or '.join(map(str, dtypes))}")
        return value

    return AfterValidator(check)


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Radius = Annotated[float, BeforeValidator(_radius)]
"""As a name (eps025) or as a number."""
Word = Annotated[str, BeforeValidator(str)]
"""A cell of text, which pandas takes for a number where it looks like one."""
Count = Annotated[int, BeforeValidator(_python_number), Field(ge=0)]
Number = Annotated[float, BeforeValidator(_python_number)]
Name = Annotated[str, Field(max_length=FILE_NAME_BYTES), AfterValidator(_path_text)]
PathText = Annotated[str, Field(max_length=4095), AfterValidator(_path_text)]
Word32 = Annotated[int, Field(ge=0, lt=1 << 32)]
Input = Literal["standard", "inverted"]

# --- results --------------------------------------------------------------------------------------------------------


class Settings(Schema):
    """What decides a result's numbers; compared as it stands."""

    dataset: str | None = None
    input: Input | None = None
    knn: int | None = None


class ProbeAbout(Schema):
    """A probe as compare_probes.py describes it."""

    arch: str | None = None
    eps: Annotated[str, AfterValidator(_radius_name)] | None = None
    dataset: str | None = None
    accuracy: float | None = None


class Sidecar(Schema):
    """The JSON beside a CSV of results. `accuracy` is by model, on inverted images by source and model."""

    settings: Settings
    csv_sha256: str
    csv_sha256_before: str = ""
    rows: dict[str, dict[str, Any]] = Field(default_factory=dict)
    arguments: dict[str, Any] | None = None
    commit: str | None = None
    versions: dict[str, str] | None = None
    accuracy: dict[str, float] | dict[str, dict[str, float]] | None = None
    num_classes: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    widths: dict[str, int] | None = None
    probes: dict[str, ProbeAbout] | None = None


class SubgroupRow(Schema):
    """A row of subgroup_sim.py's table; `score` is nan where a group was too small."""

    metric: Word
    score: float
    model1: Word
    model2: Word
    k: float
    perc_k: float
    pred_type: Literal["agree", "disagree"]
    eps: Radius
    dataset: Word = ""
    input: Input = "standard"


class CompanionRow(Schema):
    """A row of what goes beside a matrix of scores: the ends of an interval, a p-value or a calibrated score."""

    model1: Word
    model2: Word
    score: float
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    calibrated: float = math.nan


class ProbeRow(Schema):
    """A row of compare_probes.py's table."""

    probe_1: Word
    probe_2: Word
    agreement: float


class EvaluationRow(Schema):
    """A row that evaluation appends to --results-file; `acc` in percent, `attack` and `norm` are "none" if clean."""

    model: Word
    dataset: Word
    acc: float
    trained_eps: Radius
    attack_eps: float
    attack: Word = ""  # older files do not say
    norm: Word = ""


# --- inversion and representations ----------------------------------------------------------------------------------


class InversionArguments(Schema):
    """What is read of inversion.py's command line: where its images came from."""

    dataset: str | None = None
    data_path: PathText | None = None
    labels_path: PathText | None = None


class InversionRecord(Schema):
    """The JSON beside a file of inverted images; older ones hold no hashes."""

    settings: dict[str, Any]
    arguments: InversionArguments | None = None
    images_sha256: str = ""
    csv_sha256: str = ""


class InvertedPart(Schema):
    """Some of the images of an unfinished inversion, see `inversion.Inverted`."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[Tensor, _tensor(torch.float32, torch.uint8, dims=4)]
    start_distance: Annotated[Tensor, _tensor(torch.float32, dims=1)]
    final_distance: Annotated[Tensor, _tensor(torch.float32, dims=1)]
    best_iteration: Annotated[Tensor, _tensor(torch.int64, dims=1)]


class RepsIdentity(Schema):
    """reps.json: where a file of representations comes from; files from elsewhere may say less."""

    dataset: str | None = None
    split: str | None = None
    fingerprint: str | None = None
    arch: str | None = None
    node: str | None = None
    checkpoint: str | None = None
    classifier_accuracy: float | None = None
    sha256: str = ""


class RepsBlock(Schema):
    """Some rows of an unfinished file of representations."""

    crc32: int
    correct: Annotated[int, Field(ge=0)]


class RepsProgress(Schema):
    """reps.pt.partial.json: how far the extraction is; blocks by their first row."""

    identity: dict[str, Any]
    chunk: Annotated[int, Field(ge=1)]
    blocks: dict[Annotated[str, Field(pattern=r"^\d{1,18}$")], RepsBlock]
    dim: Annotated[int, Field(ge=1)]


# --- data -----------------------------------------------------------------------------------------------------------


class FolderRecord(Schema):
    """dataset.json of a `folder:PATH` data set: recipe, side of the images in pixels, and, of images in [0, 1], the
    mean and standard deviation of each channel."""

    recipe: Literal["imagenet", "cifar10"]
    image_size: Annotated[int, Field(ge=1, le=4096)]
    mean: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
    classes: Annotated[list[str], Field(min_length=2)]


# --- training -------------------------------------------------------------------------------------------------------


class RunArguments(Schema):
    """args.json of a training run: what is read back of it."""

    model: Annotated[str, Field(validation_alias=AliasPath("arguments", "model"))]


class EpochRecord(Schema):
    """A line of log.jsonl."""

    epoch: Annotated[int, Field(ge=1)]


def _torch_state(value: Tensor) -> Tensor:
    if value.dtype != torch.uint8 or value.shape != torch.get_rng_state().shape:
        raise ValueError("is no state of torch's generator")
    return value


class RandomState(Schema):
    """State of every global generator, see `checkpoints.random_state`."""

    python: tuple[Literal[3], Annotated[tuple[Word32, ...], Field(min_length=625, max_length=625)], float | None]
    numpy: tuple[
        Literal["MT19937"],
        Annotated[list[Word32], Field(min_length=624, max_length=624)],
        Annotated[int, Field(ge=0, le=624)],
        int,
        float,
    ]
    torch: Annotated[Tensor, AfterValidator(_torch_state)]
    cuda: list[Tensor]


class Recipe(Schema):
    """What is read of a recipe by name; all of it is compared."""

    epochs: int
    attack: dict[str, Any] | None


class Resume(Schema):
    """What an exactly continued training run needs."""

    recipe: Recipe
    data: dict[str, str] = Field(default_factory=dict)
    steps_per_epoch: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=0)]
    totals: Annotated[Tensor, _tensor(torch.float64, dims=1)]
    best: float | None
    scaler: dict[str, Any]
    random_states: list[RandomState]


class CheckpointFields(Schema):
    """What is used of a checkpoint besides its weights and momentum."""

    epoch: Count | None = None
    arch: Name | None = None
    train_set: Name | None = None
    resume: Resume | None = None


class ProbeCheckpoint(Schema):
    """A probe's weight (C, D) and bias (C,), how it was trained, and the representations it reads."""

    weight: Annotated[Tensor, _tensor(*FLOATS, dims=2)]
    bias: Annotated[Tensor, _tensor(*FLOATS, dims=1)]
    seed: int = 0
    epoch: Count = 0
    accuracy: Number = math.nan
    loss: Number = math.nan
    arch: Name | None = None
    train_set: Name | None = None
    eps: Name | None = None
    node: str | None = None
    run: PathText | None = None
    reps: dict[str, PathText] | None = None


# --- the net --------------------------------------------------------------------------------------------------------


class ZenodoFile(Schema):
    """A file of a Zenodo record, by its present and its earlier interface."""

    name: Annotated[str, Field(min_length=1, validation_alias=AliasChoices("key", "filename"))]
    size: Annotated[int, Field(ge=0, validation_alias=AliasChoices("size", "filesize"))]
    checksum: Annotated[str, Field(pattern="^((md5:)?[0-9a-f]{32}|sha256:[0-9a-f]{64})$")]
    url: Annotated[str | None, Field(validation_alias=AliasPath("links", "self"))] = None


class ZenodoRecord(Schema):
    """A Zenodo record."""

    title: Annotated[str, Field(validation_alias=AliasPath("metadata", "title"))] = ""
    files: list[ZenodoFile] = []


class HubFile(Schema):
    """A large file of a repository on Hugging Face."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class HubSibling(Schema):
    """A file of a repository on Hugging Face, with `lfs` if it is a large one."""

    rfilename: str
    lfs: HubFile | None = None


class HubRepository(Schema):
    """A repository on Hugging Face at a commit."""

    sha: str
    siblings: list[HubSibling]


class ArchiveContents(Schema):
    """What a downloaded archive held: place (what, data set, radius, model) and suffix of each member."""

    checksum: str
    members: list[Annotated[list[Name], Field(min_length=5, max_length=5)]]
