"""Every kind of file that is read back: how to make one, how to read it, and how to damage it."""

import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import random
import select
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from image_files import KINDS, encoded_image, write_legacy_lmdb
from loguru import logger
from synthetic_results import write_inversions, write_probe_agreement, write_scores, write_subgroups

from univ import files, inversion, results
from univ.data import cifar, indices
from univ.data.lmdb import ImageFolderLMDB, write_lmdb
from univ.errors import InputError
from univ.files import safeload, schemas
from univ.files.tensors import TensorFile
from univ.inversion.images import open_inverted
from univ.inversion.record import read_column
from univ.models import build_model, checkpoints
from univ.reps import files as repfiles
from univ.reps import probes
from univ.reps.cache import RepCache, read_cache
from univ.reps.extract import Extraction
from univ.reps.identity import Identity, Inputs
from univ.results import made
from univ.show import provenance, quantities
from univ.show.sources import Sources
from univ.training.log import read_log
from univ.training.recipe import Recipe, differences

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import download_data  # noqa: E402

SECONDS = 10  # longer is a hang


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the file that is damaged, below a folder.
        make: writes it, and what belongs beside it, given the folder.
        read: what the programs read of it, given its path.
        checked: whether its format, or what lies beside it, tells a changed value from the one written.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    checked: bool = False


def _written(name: str, content: Any) -> Callable[[Path], Any]:
    """Makes a file of a text, bytes, JSON, an array or a tensor."""

    def make(folder: Path) -> None:
        path = folder / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        elif isinstance(content, torch.Tensor):
            files.save_torch(path, content)
        else:
            text = content if isinstance(content, str | bytes) else json.dumps(content)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def _file(name: str, content: Any, read: Callable[[Path], Any], checked: bool = False) -> Kind:
    return Kind(name, _written(name, content), read, checked)


def _naming(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A reader whose messages name the file's content otherwise: by its address, or by its folder."""

    def named(path: Path) -> Any:
        try:
            return read(path)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    return named


# --- results --------------------------------------------------------------------------------------------------------

CKA = results.ResultFile("cka", "digits", "digits", "eps1", exp="10")
MODELS = ("vgg11", "resnet10", "densenet17")
MATRIX = pd.DataFrame(np.arange(9.0).reshape(3, 3), index=MODELS, columns=MODELS)
EVALUATION = "model,dataset,acc,trained_eps,attack_eps\nvgg11,digits,91.5,eps1,0.0\nresnet10,digits,77.25,0.0,1.0\n"


def _read_result(path: Path) -> Any:
    root = path.parents[4]
    done = bool(results.check(root, CKA, {"knn": 3}))
    runs = provenance.runs_of(pd.DataFrame([provenance.describe(CKA.path(root), root)]))
    return done, results.load_long_table(root, settings=["knn"]), runs


def _write_result(folder: Path) -> None:
    results.write(folder, CKA, MATRIX, {"knn": 3}, {"arguments": {"a": 1}, "versions": {"torch": "2"}})


def _accuracies(path: Path) -> Any:
    return results.load_accuracies(path.parents[3]), Sources(path.parents[3]).bounds


def _subgroups(path: Path) -> Any:
    return results.load_subgroups(path.parents[3])


def _agreement(path: Path) -> Any:
    return results.load_probe_agreement(path.parents[1])


def _disagreement(images: str) -> Kind:
    name = f"disagreement/{images}/digits/dis_eps0_10.json"
    return Kind(name, lambda folder: write_scores(folder, eps=["eps0"], inputs=[images], ks=[10]), _accuracies)


SCORES, SUBGROUPS = f"{CKA.path(Path())}", f"subgroups/digits/standard/{results.SUBGROUPS_NAME}"
PROBES = f"probing/{results.PROBES_NAME}"

RESULTS = {
    "scores": Kind(SCORES, _write_result, _read_result, checked=True),
    "JSON beside scores": Kind(str(made.record_path(Path(SCORES))), _write_result, _read_result),
    "JSON beside disagreement": _disagreement("standard"),
    "JSON beside disagreement on inverted images": _disagreement("inverted"),
    "subgroups": Kind(SUBGROUPS, write_subgroups, _subgroups, checked=True),
    "JSON beside subgroups": Kind(str(made.record_path(Path(SUBGROUPS))), write_subgroups, _subgroups),
    "agreement of probes": Kind(PROBES, write_probe_agreement, _agreement, checked=True),
    "JSON beside agreement of probes": Kind(str(made.record_path(Path(PROBES))), write_probe_agreement, _agreement),
    "accuracies": _file("accuracy.csv", EVALUATION, lambda path: results.load_evaluations([path])),
}

# --- images, indices ------------------------------------------------------------------------------------------------

ARRAY = np.random.default_rng(0).random((3, 3, 4, 4), np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
BATCH = pickle.dumps({"data": PIXELS, "labels": [1, 2, 3]}, protocol=2)
REPORT = "target_index,seed_index,target_label,final_distance\n5,7,3,0.1\n2,11,0,0.3\n"
RECORD = {"settings": {"iterations": 3, "init": "seed"}, "distance": {"min": 0.1}}
ENCODED = [(encoded_image(KINDS[i % len(KINDS)], seed=i), i) for i in range(5)]
OLD_RECORDS = [([image], np.array(label)) for image, label in ENCODED]


def _inverted(path: Path) -> Any:
    return open_inverted(path).floats(slice(None)).clone()


def _report(path: Path) -> Any:
    return read_column(path, "target_index"), read_column(path, "target_label")


def _inversions(path: Path) -> Any:
    found = quantities.load_inversions("digits", folder=path.parent, rows=3)
    for line in found.missing:
        logger.warning(line)
    return found


@contextlib.contextmanager
def _parts(folder: Path) -> Iterator[inversion.Parts]:
    parts = inversion.Parts(folder / "net_eps0.pt", {"iterations": 3}, count=4)
    parts.open()
    try:
        yield parts
    finally:
        parts.close()


def _write_part(folder: Path) -> None:
    values = torch.arange(4.0)
    with _parts(folder) as parts:
        parts.save(0, inversion.Inverted(torch.rand(4, 3, 2, 2), values, values, torch.arange(4)))


def _read_parts(path: Path) -> Any:
    with _parts(path.parents[1]) as parts:
        return parts.missing(4), parts.collect()


def _read_lmdb(path: Path) -> Any:
    images = ImageFolderLMDB(path, name="x")
    return images.labels, images.classes, [images.record(i) for i in range(len(images))]


def _write_lmdb(folder: Path) -> None:
    write_lmdb(folder / "x.lmdb", ENCODED, list("abcde"))


IMAGES = {
    "inverted images": _file("vgg11_eps1.pt", torch.tensor(ARRAY), _inverted, checked=True),
    "inverted images, NumPy": _file("vgg11_eps1.npy", ARRAY, _inverted),
    "report beside inverted images": _file("vgg11_eps1.csv", REPORT, _report),
    "report beside inverted images, in a figure": Kind(
        "vgg11_eps0.csv", lambda folder: write_inversions(folder, MODELS[:1], n=4), _inversions
    ),
    "JSON beside inverted images": _file(
        "vgg11_eps1.json", RECORD, lambda path: schemas.read_json(path, schemas.InversionRecord)
    ),
    "settings of parts of an inversion": Kind("net_eps0.parts/settings.json", _write_part, _read_parts, checked=True),
    "part of an inversion": Kind("net_eps0.parts/00000000-00000004.pt", _write_part, _read_parts, checked=True),
    "indices": Kind(
        "indices_0.csv",
        lambda folder: indices.write_indices(folder / "indices_0.csv", torch.arange(3, 17)),
        lambda path: indices.read_indices(path, 20),
    ),
    "labels": Kind(
        "labels.csv",
        lambda folder: indices.write_labels(folder / "labels.csv", torch.arange(14) % 5),
        lambda path: indices.read_labels(path, 14),
    ),
    "LMDB": Kind("x.lmdb", _write_lmdb, _read_lmdb),  # records and labels are checked, LMDB's own pages are not
    "older LMDB": Kind("x.lmdb", lambda folder: write_legacy_lmdb(folder / "x.lmdb", OLD_RECORDS), _read_lmdb),
    "CIFAR-10 batch": _file("data_batch_1", BATCH, cifar.read_batch),
}

# --- checkpoints ----------------------------------------------------------------------------------------------------

RECIPE = Recipe(epochs=3)
EPOCHS = "".join(json.dumps({"epoch": i, "train_loss": 0.5}) + "\n" for i in (1, 2, 3))


def _write_checkpoint(folder: Path) -> None:
    resume = {
        "recipe": {**vars(RECIPE)},
        "steps_per_epoch": 4,
        "step": 2,
        "totals": torch.zeros(3, dtype=torch.float64),
        "best": 50.0,
        "scaler": {},
        "random_states": [checkpoints.random_state()],
    }
    about = {"arch": "resnet10", "train_set": "digits", "resume": resume}
    model = build_model("resnet10", "digits", seed=0)
    checkpoints.save_checkpoint(folder / checkpoints.LATEST, model, epoch=2, nat_prec1=50.0, **about)


def _write_older_checkpoint(folder: Path) -> None:
    _write_checkpoint(folder)
    path = folder / checkpoints.LATEST
    torch.save(safeload.load(path), path, _use_new_zipfile_serialization=False)


@_naming
def _read_checkpoint(path: Path) -> Any:
    path, found = checkpoints.newest_readable(path.parent)
    model = build_model("resnet10", "digits", seed=1)
    checkpoints.load_weights(model, found["model"], path)
    if (resume := found.get("resume")) is not None:
        differences(found, RECIPE)
        checkpoints.restore_random_state(resume["random_states"][0])
    return found


def _write_probe(folder: Path) -> None:
    about = {"arch": "vgg11", "train_set": "digits", "eps": "eps1", "node": "head", "run": "r", "reps": {"val": "a/b"}}
    probes.save(folder / "best.pt", probes.Probe(torch.randn(3, 4), torch.randn(3), 0, 1, 0.5, 1.0), about)


CHECKPOINTS = {
    "checkpoint": Kind(checkpoints.LATEST, _write_checkpoint, _read_checkpoint, checked=True),
    "checkpoint in PyTorch's older format": Kind(checkpoints.LATEST, _write_older_checkpoint, _read_checkpoint),
    "probe": Kind("best.pt", _write_probe, probes.load, checked=True),
    "log.jsonl": _file("log.jsonl", EPOCHS, read_log),
}

# --- representations ------------------------------------------------------------------------------------------------

IDENTITY = Identity(Inputs("digits", "f00d", "as is", "1234", 5), "vgg11", "head", "abcd")
ABOUT_REPS = {"dataset": "digits", "arch": "vgg11", "node": "head", "checkpoint": "ab", "classifier_accuracy": 0.5}


def _cache(folder: Path) -> RepCache:
    return RepCache(folder, "digits", "eps1", inverted=False)


def _write_part_of_cache(folder: Path) -> None:
    _cache(folder).put("vgg11", IDENTITY, Extraction(torch.randn(5, 7), torch.randn(5, 3)))


def _write_cache(folder: Path) -> None:
    _write_part_of_cache(folder)
    _cache(folder).finish()


def _read_cache(path: Path) -> Any:
    found = _cache(path.parent).get("vgg11", IDENTITY)
    return found, *(read_cache(path.parent, which, "digits", "eps1") for which in ("reps", "output"))


def _finish_cache(path: Path) -> Any:
    store = _cache(path.parents[1])
    found = store.get("vgg11", IDENTITY)
    store.finish()
    tensors = TensorFile(store.reps_path)
    return found, {name: tensors[name] for name in tensors.names}


REPRESENTATIONS = {
    "representations": _file("reps.pt", torch.tensor(ARRAY[0, 0]), repfiles.open_reps, checked=True),
    "representations, NumPy": _file("reps.npy", ARRAY[0, 0], repfiles.open_reps),
    "reps.json": _file("reps.json", ABOUT_REPS, lambda path: repfiles.read_identity(path.with_suffix(".pt"))),
    "cache of representations": Kind("reps__digits_eps1_i0", _write_cache, _read_cache),
    "cache of outputs": Kind("output__digits_eps1_i0", _write_cache, _read_cache),
    "part of a cache": Kind(".parts__digits_eps1_i0/vgg11.safetensors", _write_part_of_cache, _finish_cache),
}

# --- the net --------------------------------------------------------------------------------------------------------

NEW = {"key": "cifar10_eps1.zip", "size": 10, "checksum": "md5:" + "0" * 32, "links": {"self": "https://x/y"}}
OLD = {"filename": "a.pt", "filesize": 10, "checksum": "0" * 32}
LFS = {"sha256": "0" * 64, "size": 12, "pointerSize": 1}
SIBLINGS = [{"rfilename": "resnet18_l2_eps3.ckpt", "size": 12, "lfs": LFS}, {"rfilename": "README"}]


def _listed(read: Callable[[], list]) -> Callable[[Path], Any]:
    """What is made of a service's answer."""

    def listed(path: Path) -> Any:
        answer = SimpleNamespace(content=path.read_bytes(), raise_for_status=lambda: None)
        download_data._session = lambda: SimpleNamespace(get=lambda url, timeout: answer)
        return list(map(vars, read()))

    return _naming(listed)


ANSWERS = {
    "record of Zenodo": _file(
        "17.json",
        {"metadata": {"title": "Networks"}, "files": [NEW, OLD]},
        _listed(lambda: download_data.list_zenodo("17")),
    ),
    "list of the hub": _file(
        "hub.json", {"id": "a/b", "sha": "c0", "siblings": SIBLINGS}, _listed(download_data.list_hugging_face)
    ),
}

KINDS_OF_FILE: dict[str, Kind] = RESULTS | IMAGES | CHECKPOINTS | REPRESENTATIONS | ANSWERS

# --- damage ---------------------------------------------------------------------------------------------------------

NUMBERS = (None, True, -1, 0, 2**70, 1.5, float("nan"))
VALUES = (*NUMBERS, "", "x", "\ud800", "a/../b", "y" * 5000, [], [[]], {}, {"": None})


def _places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The path of every element of nested dicts and lists, the whole value's last."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in list(items)[:30]:
        yield from _places(item, (*at, key))
    yield at


def _replaced(value: Any, at: tuple, new: Any) -> Any:
    """A copy with the element at a place replaced; by nothing if `new` is Ellipsis."""
    if not at:
        return None if new is ... else new
    made = list(value) if isinstance(value, tuple) else copy.copy(value)
    if len(at) == 1 and new is ...:
        del made[at[0]]
    else:
        made[at[0]] = _replaced(made[at[0]], at[1:], new)
    return tuple(made) if isinstance(value, tuple) else made


def _other_fields(data: bytes, rng: random.Random) -> bytes:
    """A valid file of the same kind, JSON or checkpoint, in which a field has another type or is missing."""
    tensors = (torch.zeros(2, 2).to_sparse(), torch.ones(3, requires_grad=True), torch.zeros(3, dtype=torch.int64))
    try:
        value = json.loads(data)
    except ValueError:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return b"\xff\xfe" + data
        value = torch.load(io.BytesIO(data), weights_only=True)
        at = rng.choice(list(_places(value)))
        buffer = io.BytesIO()
        torch.save(_replaced(value, at, rng.choice((*VALUES, *tensors, ...))), buffer)
        return buffer.getvalue()
    at = rng.choice(list(_places(value)))
    return json.dumps(_replaced(value, at, rng.choice((*VALUES, ...)))).encode()


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """How, and the bytes."""
    how = rng.choice(["flip", "flips", "cut", "zeros", "longer", "fields", "fields", "fields", "text", "deep"])
    made = bytearray(data)
    at = rng.randrange(len(made))
    if how in ("flip", "flips"):
        for _ in range(1 if how == "flip" else 8):
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del made[at:]
    elif how == "zeros":
        made[at : at + 64] = bytes(len(made[at : at + 64]))
    elif how == "longer":
        made += rng.randbytes(20)
    elif how == "fields":
        made = bytearray(_other_fields(data, rng))
    elif how == "text":
        made[at : at + 3] = rng.choice([b"\xff\xfe\xfd", b"nan", b",,\n", b'"""', b"1e9", b"\x00\x00\x00", b"9" * 400])
    elif how == "deep":
        made = bytearray(rng.choice([b"[" * 100_000, b'{"settings":' * 5000, b""]))
    return how, bytes(made)


# --- attempts -------------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Equal for equal values."""
    known = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            known.update(f"{part.dtype}{tuple(part.shape)}".encode())
            known.update(bytes(part.contiguous().view(-1).view(torch.uint8).numpy()) if part.numel() else b"")
        elif isinstance(part, pd.DataFrame):
            known.update(part.to_csv().encode("utf-8", "surrogatepass"))
        elif isinstance(part, dict):
            for key, item in part.items():
                add(key)
                add(item)
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        elif hasattr(part, "__dict__") and not isinstance(part, type):
            add(vars(part))
        else:
            known.update(repr(part).encode("utf-8", "surrogatepass"))

    add(value)
    return known.hexdigest()


def attempt(read: Callable[[Path], Any], path: Path) -> tuple[str, str]:
    """What reading a file in a process of its own comes to: its word, and the value's digest or the message.

    Words: read, said (with a warning), refused, traceback, crash, hang.
    """
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(inlet)
        warnings: list[str] = []
        logger.remove()
        logger.add(warnings.append, level="WARNING", format="{message}")
        try:
            answer = ("", digest(read(path)))
            answer = ("said" if warnings else "read", answer[1])
        except (InputError, FileNotFoundError) as error:
            line = str(error)
            good = "\n" not in line and len(line) < 2000 and (path.name in line or path.parent.name in line)
            answer = ("refused" if good else "traceback", line[:2000])
        except BaseException as error:
            answer = ("traceback", f"{type(error).__name__}: {error}"[:500])
        os.write(outlet, json.dumps(answer).encode())
        os._exit(0)
    os.close(outlet)
    text, deadline = b"", time.monotonic() + SECONDS
    while select.select([inlet], [], [], max(0, deadline - time.monotonic()))[0]:
        if not (piece := os.read(inlet, 1 << 16)):
            break
        text += piece
    else:
        os.kill(child, signal.SIGKILL)
    os.close(inlet)
    status = os.waitpid(child, 0)[1]
    if text:
        word, what = json.loads(text)
        return word, what
    return ("hang", "") if status == signal.SIGKILL and time.monotonic() > deadline else ("crash", f"status {status}")


def attempts(name: str, folder: Path, count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """(how it was damaged, what came of it, message) of `count` damaged files of a kind.

    Words: harmless (the same value), noticed (said in a warning), silent (another value), and those of `attempt`.
    """
    of_kind = KINDS_OF_FILE[name]
    of_kind.make(folder)
    good = folder / of_kind.name
    data = good.read_bytes()
    others = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    word, expected = attempt(of_kind.read, good)
    assert word == "read", (name, word, expected)
    rng = random.Random(f"{name} {seed}")
    for _ in range(count):
        how, made = damaged(data, rng)
        for path in [path for path in folder.rglob("*") if path.is_file() and path not in others]:
            path.unlink()
        for path, content in others.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        good.write_bytes(made)
        word, what = attempt(of_kind.read, good)
        if word in ("read", "said"):
            word = "harmless" if what == expected else "noticed" if word == "said" else "silent"
            what = ""
        yield how, word, what
