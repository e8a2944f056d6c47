"""Every kind of file that is read back: how to make one, how to read it, and how to damage it."""

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
from univ.inversion.images import open_inverted
from univ.inversion.record import read_column
from univ.models import build_model, checkpoints
from univ.reps import cache, probes
from univ.reps import files as repfiles
from univ.reps.cache import RepCache, read_cache
from univ.reps.extract import Extraction
from univ.reps.identity import Identity, Inputs
from univ.results import made
from univ.show import provenance, quantities
from univ.show.study import Study
from univ.training import loop

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import download_data  # noqa: E402

SECONDS = 10  # longer is a hang


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: writes good files into a folder; the path of the one to damage.
        read: what the programs read of it, given its path.
        checked: whether its format, or what lies beside it, tells a changed value from the one written.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    checked: bool


KINDS_OF_FILE: dict[str, Kind] = {}


def kind(name: str, read: Callable[[Path], Any], *, checked: bool) -> Callable:
    """Register the decorated function, which makes the file."""

    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        KINDS_OF_FILE[name] = Kind(make, read, checked)
        return make

    return register


# --- results --------------------------------------------------------------------------------------------------------

CKA = results.ResultFile("cka", "digits", "digits", "eps1", exp="10")
MODELS = ("vgg11", "resnet10", "densenet17")
MATRIX = pd.DataFrame(np.arange(9.0).reshape(3, 3), index=MODELS, columns=MODELS)


def _read_result(path: Path) -> Any:
    root = path.parents[4]
    done = bool(results.check(root, CKA, {"knn": 3}))
    runs = provenance.runs_of(pd.DataFrame([provenance.describe(CKA.path(root), root)]))
    return done, results.load_long_table(root, settings=["knn"]), runs


@kind("scores", _read_result, checked=True)
def _(folder: Path) -> Path:
    return results.write(folder, CKA, MATRIX, {"knn": 3}, {"arguments": {"a": 1}, "versions": {"torch": "2"}})


@kind("JSON beside scores", _read_result, checked=False)
def _(folder: Path) -> Path:
    return made.record_path(results.write(folder, CKA, MATRIX, {"knn": 3}, {"versions": {"torch": "2"}}))


def _accuracies(root: Path) -> Any:
    return results.load_accuracies(root), Study(root).bounds


@kind("JSON beside disagreement", lambda path: _accuracies(path.parents[3]), checked=False)
def _(folder: Path) -> Path:
    write_scores(folder, eps=["eps0"], inputs=["standard"], ks=[10])
    return folder / "disagreement/standard/digits/dis_eps0_10.json"


@kind("JSON beside disagreement on inverted images", lambda path: _accuracies(path.parents[3]), checked=False)
def _(folder: Path) -> Path:
    write_scores(folder, eps=["eps0"], inputs=["inverted"], ks=[10])
    return folder / "disagreement/inverted/digits/dis_eps0_10.json"


@kind("subgroups", lambda path: results.load_subgroups(path.parents[3]), checked=True)
def _(folder: Path) -> Path:
    write_subgroups(folder)
    return folder / "subgroups/digits/standard" / results.SUBGROUPS_NAME


@kind("JSON beside subgroups", lambda path: results.load_subgroups(path.parents[3]), checked=False)
def _(folder: Path) -> Path:
    write_subgroups(folder)
    return (folder / "subgroups/digits/standard" / results.SUBGROUPS_NAME).with_suffix(".json")


@kind("agreement of probes", lambda path: results.load_probe_agreement(path.parents[1]), checked=True)
def _(folder: Path) -> Path:
    write_probe_agreement(folder)
    return folder / "probing" / results.PROBES_NAME


@kind("JSON beside agreement of probes", lambda path: results.load_probe_agreement(path.parents[1]), checked=False)
def _(folder: Path) -> Path:
    write_probe_agreement(folder)
    return (folder / "probing" / results.PROBES_NAME).with_suffix(".json")


EVALUATION = "model,dataset,acc,trained_eps,attack_eps\nvgg11,digits,91.5,eps1,0.0\nresnet10,digits,77.25,0.0,1.0\n"


@kind("accuracies", lambda path: results.load_evaluations([path]), checked=False)
def _(folder: Path) -> Path:
    path = folder / "accuracy.csv"
    path.write_text(EVALUATION)
    return path


# --- images, indices ------------------------------------------------------------------------------------------------


def _inverted(path: Path) -> Any:
    return open_inverted(path).floats(slice(None)).clone()


@kind("inverted images", _inverted, checked=True)
def _(folder: Path) -> Path:
    files.save_torch(folder / "vgg11_eps1.pt", torch.rand(3, 3, 4, 4))
    return folder / "vgg11_eps1.pt"


@kind("inverted images, NumPy", _inverted, checked=False)
def _(folder: Path) -> Path:
    np.save(folder / "vgg11_eps1.npy", np.random.default_rng(0).random((3, 3, 4, 4), np.float32))
    return folder / "vgg11_eps1.npy"


def _report(path: Path) -> Any:
    return read_column(path, "target_index"), read_column(path, "target_label")


@kind("report beside inverted images", _report, checked=False)
def _(folder: Path) -> Path:
    path = folder / "vgg11_eps1.csv"
    path.write_text("target_index,seed_index,target_label,final_distance\n5,7,3,0.1\n2,11,0,0.3\n")
    return path


def _inversions(path: Path) -> Any:
    found = quantities.load_inversions("digits", folder=path.parent, rows=3)
    for line in found.missing:
        logger.warning(line)
    return found


@kind("report beside inverted images, in a figure", _inversions, checked=False)
def _(folder: Path) -> Path:
    write_inversions(folder, MODELS[:1], n=4)
    return folder / "vgg11_eps0.csv"


@kind("JSON beside inverted images", lambda path: schemas.read_json(path, schemas.InversionRecord), checked=False)
def _(folder: Path) -> Path:
    path = folder / "vgg11_eps1.json"
    path.write_text(json.dumps({"settings": {"iterations": 3, "init": "seed"}, "distance": {"min": 0.1}}))
    return path


def _parts(path: Path) -> Any:
    parts = inversion.Parts(path.parents[1] / "net_eps0.pt", {"iterations": 3}, count=4)
    parts.open()
    try:
        return parts.missing(4), parts.collect()
    finally:
        parts.close()


def _write_part(folder: Path) -> inversion.Parts:
    parts = inversion.Parts(folder / "net_eps0.pt", {"iterations": 3}, count=4)
    parts.open()
    values = torch.arange(4.0)
    parts.save(0, inversion.Inverted(torch.rand(4, 3, 2, 2), values, values, torch.arange(4)))
    parts.close()
    return parts


@kind("settings of parts of an inversion", _parts, checked=True)
def _(folder: Path) -> Path:
    return _write_part(folder).folder / "settings.json"


@kind("part of an inversion", _parts, checked=True)
def _(folder: Path) -> Path:
    return next(_write_part(folder).folder.glob("*.pt"))


@kind("indices", lambda path: indices.read_indices(path, 20), checked=False)
def _(folder: Path) -> Path:
    indices.write_indices(folder / "indices_0.csv", torch.arange(3, 17))
    return folder / "indices_0.csv"


@kind("labels", lambda path: indices.read_labels(path, 14), checked=False)
def _(folder: Path) -> Path:
    indices.write_labels(folder / "labels.csv", torch.arange(14) % 5)
    return folder / "labels.csv"


ENCODED = [(encoded_image(KINDS[i % len(KINDS)], seed=i), i) for i in range(5)]


def _read_lmdb(path: Path) -> Any:
    images = ImageFolderLMDB(path, name="x")
    return images.labels, images.classes, [images.record(i) for i in range(len(images))]


@kind("LMDB", _read_lmdb, checked=False)  # records and labels are checked, LMDB's own pages are not
def _(folder: Path) -> Path:
    write_lmdb(folder / "x.lmdb", ENCODED, list("abcde"))
    return folder / "x.lmdb"


@kind("older LMDB", _read_lmdb, checked=False)
def _(folder: Path) -> Path:
    write_legacy_lmdb(folder / "x.lmdb", [([image], np.array(label)) for image, label in ENCODED])
    return folder / "x.lmdb"


@kind("CIFAR-10 batch", cifar.read_batch, checked=False)
def _(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": pixels, "labels": [1, 2, 3]}, protocol=2))
    return folder / "data_batch_1"


# --- checkpoints ----------------------------------------------------------------------------------------------------

RECIPE = loop.Recipe(epochs=3)


def _checkpoint(folder: Path, *, zip_format: bool) -> Path:
    model = build_model("resnet10", "digits", seed=0)
    resume = {
        "recipe": {**vars(RECIPE)},
        "steps_per_epoch": 4,
        "step": 2,
        "totals": torch.zeros(3, dtype=torch.float64),
        "best": 50.0,
        "scaler": {},
        "random_states": [checkpoints.random_state()],
    }
    path = folder / checkpoints.LATEST
    about = {"arch": "resnet10", "train_set": "digits", "resume": resume}
    checkpoints.save_checkpoint(path, model, epoch=2, nat_prec1=50.0, **about)
    if not zip_format:
        torch.save(safeload.load(path), path, _use_new_zipfile_serialization=False)
    return path


def _read_checkpoint(path: Path) -> Any:
    try:
        path, found = checkpoints.newest_readable(path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    model = build_model("resnet10", "digits", seed=1)
    checkpoints.load_weights(model, found["model"], path)
    if (resume := found.get("resume")) is not None:
        loop.differences(found, RECIPE)
        checkpoints.restore_random_state(resume["random_states"][0])
    return found


@kind("checkpoint", _read_checkpoint, checked=True)
def _(folder: Path) -> Path:
    return _checkpoint(folder, zip_format=True)


@kind("checkpoint in PyTorch's older format", _read_checkpoint, checked=False)
def _(folder: Path) -> Path:
    return _checkpoint(folder, zip_format=False)


@kind("probe", probes.load, checked=True)
def _(folder: Path) -> Path:
    about = {"arch": "vgg11", "train_set": "digits", "eps": "eps1", "node": "head", "run": "r", "reps": {"val": "a/b"}}
    probes.save(folder / "best.pt", probes.Probe(torch.randn(3, 4), torch.randn(3), 0, 1, 0.5, 1.0), about)
    return folder / "best.pt"


@kind("log.jsonl", loop._read_log, checked=False)
def _(folder: Path) -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps({"epoch": i, "train_loss": 0.5}) + "\n" for i in (1, 2, 3)))
    return folder / "log.jsonl"


# --- representations ------------------------------------------------------------------------------------------------


@kind("representations", repfiles.open_reps, checked=True)
def _(folder: Path) -> Path:
    torch.save(torch.rand(5, 4), folder / "reps.pt")
    return folder / "reps.pt"


@kind("representations, NumPy", repfiles.open_reps, checked=False)
def _(folder: Path) -> Path:
    np.save(folder / "reps.npy", np.random.default_rng(0).random((5, 4), np.float32))
    return folder / "reps.npy"


@kind("reps.json", lambda path: repfiles.read_identity(path.with_suffix(".pt")), checked=False)
def _(folder: Path) -> Path:
    identity = {"dataset": "digits", "arch": "vgg11", "node": "head", "checkpoint": "ab", "n": 5}
    (folder / "reps.json").write_text(json.dumps({**identity, "classifier_accuracy": 0.5}))
    return folder / "reps.json"


INPUTS = Inputs("digits", "f00d", "as is", "1234", 5)
IDENTITY = Identity(INPUTS, "vgg11", "head", "abcd")
EXTRACTION = Extraction(torch.randn(5, 7), torch.randn(5, 3))


def _read_cache(path: Path) -> Any:
    found = RepCache(path.parent, "digits", "eps1", inverted=False).get("vgg11", IDENTITY)
    return found, *(read_cache(path.parent, which, "digits", "eps1") for which in ("reps", "output"))


def _cache(folder: Path, *, finish: bool) -> RepCache:
    store = RepCache(folder, "digits", "eps1", inverted=False)
    store.put("vgg11", IDENTITY, EXTRACTION)
    if finish:
        store.finish()
    return store


@kind("cache of representations", _read_cache, checked=False)
def _(folder: Path) -> Path:
    return _cache(folder, finish=True).reps_path


@kind("cache of outputs", _read_cache, checked=False)
def _(folder: Path) -> Path:
    return _cache(folder, finish=True).output_path


def _finish_cache(path: Path) -> Any:
    store = RepCache(path.parents[1], "digits", "eps1", inverted=False)
    found = store.get("vgg11", IDENTITY)
    store.finish()
    return found, {name: cache.TensorFile(store.reps_path)[name] for name in cache.TensorFile(store.reps_path).names}


@kind("part of a cache", _finish_cache, checked=False)
def _(folder: Path) -> Path:
    store = _cache(folder, finish=False)
    return store._part("vgg11")


# --- the net --------------------------------------------------------------------------------------------------------


def _listed(path: Path, read: Callable[[], list]) -> Any:
    """What is made of a service's answer."""
    answer = SimpleNamespace(content=path.read_bytes(), raise_for_status=lambda: None)
    download_data._session = lambda: SimpleNamespace(get=lambda url, timeout: answer)
    try:
        return list(map(vars, read()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error  # named after its address


@kind("record of Zenodo", lambda path: _listed(path, lambda: download_data.list_zenodo("17")), checked=False)
def _(folder: Path) -> Path:
    entry = {"key": "cifar10_eps1.zip", "size": 10, "checksum": "md5:" + "0" * 32, "links": {"self": "https://x/y"}}
    old = {"filename": "a.pt", "filesize": 10, "checksum": "0" * 32}
    (folder / "17.json").write_text(json.dumps({"metadata": {"title": "Networks"}, "files": [entry, old]}))
    return folder / "17.json"


@kind("list of the hub", lambda path: _listed(path, download_data.list_hugging_face), checked=False)
def _(folder: Path) -> Path:
    lfs = {"sha256": "0" * 64, "size": 12, "pointerSize": 1}
    siblings = [{"rfilename": "resnet18_l2_eps3.ckpt", "size": 12, "blobId": "x", "lfs": lfs}, {"rfilename": "README"}]
    (folder / "hub.json").write_text(json.dumps({"id": "a/b", "modelId": "a/b", "sha": "c0", "siblings": siblings}))
    return folder / "hub.json"


# --- damage ---------------------------------------------------------------------------------------------------------

VALUES = (
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    "\ud800",
    "a/../b",
    "y" * 5000,
    [],
    [[]],
    {},
    {"": None},
)


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
    good = of_kind.make(folder)
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
