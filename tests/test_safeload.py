"""Files that others made: what they hold is read, nothing in them runs, damage is named."""

import io
import os
import pickle
import random
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import dill
import numpy as np
import pytest
import torch

from univ.errors import InputError
from univ.files import safeload
from univ.files.unpickle import Placeholder, unpickle_allowed

FORMATS = pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
PICKLERS = pytest.mark.parametrize("pickler", [pickle, dill], ids=["pickle", "dill"])


class Settings:
    """A class of someone else's, as found in published checkpoints."""

    def __init__(self):
        self.lr = 0.1


class Touch:
    """Pickles as a call that creates a file."""

    call = "touch"

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return {
            "touch": (Path.touch, (self.path,)),
            "system": (os.system, (f"touch {self.path}",)),
            "eval": (eval, (f"open({str(self.path)!r}, 'w').close()",)),
            "state": (Settings, (), {"lr": Touch(self.path)}),  # set on an innocent object
        }[self.call]


class TouchBySystem(Touch):
    call = "system"


class TouchByEval(Touch):
    call = "eval"


class TouchInState(Touch):
    call = "state"


ATTACKS = pytest.mark.parametrize("attack", [Touch, TouchBySystem, TouchInState, TouchByEval])


def weights() -> OrderedDict:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 3, generator=generator)
    return OrderedDict(
        a=a,
        transposed=a.t(),  # shares memory
        part=a[1:3],
        half=torch.randn(5, generator=generator).half(),
        count=torch.tensor(7),
        mask=torch.tensor([True, False]),
        empty=torch.empty(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
        bfloat=torch.ones(3).bfloat16(),
    )


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@FORMATS
@pytest.mark.parametrize("mmap", [False, True])
def test_tensors_of_every_kind_come_back(tmp_path, zip_format, mmap):
    path = tmp_path / "w.pt"
    torch.save({"model": weights(), "epoch": 3}, path, _use_new_zipfile_serialization=zip_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = safeload.load(path, mmap=mmap)
    assert found["epoch"] == 3
    assert_same(found["model"], weights())
    assert found["model"]["a"].data_ptr() == found["model"]["transposed"].data_ptr(), "shared memory is read once"


@FORMATS
@pytest.mark.parametrize("protocol", range(2, 6))
@PICKLERS
def test_foreign_objects_become_placeholders(tmp_path, zip_format, protocol, pickler):
    """dill files hold functions, classes, NumPy numbers: the weights beside them are read all the same."""
    path = tmp_path / "w.ckpt"
    content = {
        "model": weights(),
        "settings": Settings(),
        "function": (lambda x: x) if pickler is dill else len,
        "class": Settings,
        "adv_prec1": np.float64(61.5),
        "history": np.arange(3),
        "objects": np.array([Settings()], dtype=object),
        "default": defaultdict(list, a=[1]),
        "names": {"a", "b"},
        "dtype": torch.float32,
    }
    torch.save(
        content, path, pickle_module=pickler, pickle_protocol=protocol, _use_new_zipfile_serialization=zip_format
    )
    found = safeload.load(path)
    assert_same(found["model"], weights())
    assert found["adv_prec1"] == 61.5
    assert found["history"].tolist() == [0, 1, 2]
    assert found["names"] == {"a", "b"}
    assert found["default"] == {"a": [1]}
    for name in ("settings", "class", "function"):
        assert isinstance(found[name], Placeholder), name
    if pickler is pickle:  # dill writes classes of a test module by value
        assert "Settings" in repr(found["settings"])


@ATTACKS
@FORMATS
@PICKLERS
def test_nothing_in_a_checkpoint_runs(tmp_path, attack, zip_format, pickler):
    path, proof = tmp_path / "evil.ckpt", tmp_path / "ran"
    content = {"model": weights(), "schedule": attack(proof), "key": {(1, attack(proof)): [attack(proof)]}}
    torch.save(content, path, pickle_module=pickler, _use_new_zipfile_serialization=zip_format)
    assert_same(safeload.load(path)["model"], weights())
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the attack is real: the ordinary way of loading runs it
    assert proof.exists()


@ATTACKS
@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_record_runs(tmp_path, attack, protocol):
    proof = tmp_path / "ran"
    data = pickle.dumps(([b"jpeg"], attack(proof)), protocol=protocol)
    with pytest.raises(InputError, match=r"record 3 .*(Path|posix|system|Settings|eval|copyreg|getattr).*not allowed"):
        unpickle_allowed(data, what="record 3 of train.lmdb")
    assert not proof.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "label", [np.array(7), np.array([7]), np.int64(7), np.array([[1, 2], [3, 4]], order="F"), 7, np.uint8(7)]
)
def test_records_of_numbers_are_read(protocol, label):
    image, found = unpickle_allowed(pickle.dumps(([b"\xff\xd8jpeg"], label), protocol=protocol), what="record")
    assert image == [b"\xff\xd8jpeg"]
    assert type(found) is type(label)
    np.testing.assert_array_equal(found, label)
    assert getattr(found, "dtype", None) == getattr(label, "dtype", None)


@pytest.mark.parametrize("protocol", range(6))
def test_containers_in_a_pickle_are_read(protocol):
    shared = [1, "é", 2.5, None, True, 1 << 70]
    value = {
        "list": shared,
        "again": (shared, ()),
        b"bytes": {1: {"a": {}}},
        (1, "b"): bytearray(b"\0\xff"),
        None: b"\xff",
    }
    if protocol >= 4:  # older protocols name them, as in the test of foreign objects
        value |= {"set": {1, "a", (2, 3)}, "frozen": frozenset([1, b"c"])}
    if protocol < 5:
        del value[1, "b"]  # by a call of bytearray
    found = unpickle_allowed(pickle.dumps(value, protocol=protocol), what="record")
    assert found == value and list(found) == list(value) and found["list"] is found["again"][0]
    for name in found:
        assert type(found[name]) is type(value[name])


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_both_names_of_numpys_core_are_known_and_both_byte_orders(core):
    data = pickle.dumps((b"x", np.arange(3, dtype=">i4")), protocol=2)
    renamed = data.replace(b"numpy._core", b"NUMPY").replace(b"numpy.core", b"NUMPY").replace(b"NUMPY", core.encode())
    assert unpickle_allowed(renamed, what="record")[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("value", [np.array([Settings()]), np.array(["text"]), np.zeros(2, [("a", "i4")])])
def test_arrays_of_anything_but_numbers_are_refused(value):
    with pytest.raises(InputError, match="record 0 is not a readable record"):
        unpickle_allowed(pickle.dumps(value), what="record 0")


def test_pickles_cannot_change_what_they_mention():
    """Setting an attribute of a function or class would outlive the loading."""
    set_defaults = b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__N\x85s\x86b."
    with pytest.raises(InputError, match=r"sets attributes of _codecs\.encode"):
        unpickle_allowed(set_defaults, what="record")
    with pytest.raises(InputError, match="'int' object has no attribute 'append'"):
        unpickle_allowed(b"\x80\x02K\x01K\x02a.", what="record")


@pytest.mark.parametrize("kind", ["zip", "zip, foreign", "legacy", "record"])
def test_flipped_bytes_give_an_error_or_the_contents(tmp_path, kind):
    """Without checksums, as in the older format and in records, they may give other contents, but nothing worse."""
    path = tmp_path / "w.pt"
    content = {"model": weights(), "extra": Settings() if "foreign" in kind else 1}
    torch.save(content, path, _use_new_zipfile_serialization="zip" in kind)
    data, rng, refused = path.read_bytes(), random.Random(0), 0
    if kind == "record":
        data = pickle.dumps(([b"\xff\xd8" + bytes(200)], np.array([7])), protocol=4)
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 4])):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = unpickle_allowed(damaged, what=str(path)) if kind == "record" else safeload.load(path)
            if "zip" in kind:
                assert_same(found["model"], weights())
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 40


@FORMATS
def test_a_truncated_file_is_an_error_at_any_length(tmp_path, zip_format):
    path = tmp_path / "w.pt"
    torch.save({"model": weights()}, path, _use_new_zipfile_serialization=zip_format)
    data = path.read_bytes()
    for length in range(0, len(data) - 1, max(1, len(data) // 60)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"w\.pt is not a readable checkpoint"):
            safeload.load(path)


def test_a_flipped_weight_is_found(tmp_path):
    """PyTorch reads a damaged weight as a different number; the checksum is there but not looked at."""
    path = tmp_path / "w.pt"
    values = torch.arange(100, dtype=torch.float32)
    torch.save({"model": {"a": values}}, path)
    data = bytearray(path.read_bytes())
    data[bytes(data).find(values.numpy().tobytes()) + 40] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path)["model"]["a"], values)
    with pytest.raises(InputError, match=r"w\.pt.*CRC"):
        safeload.load(path)


def test_files_written_without_checksums_are_read(tmp_path):
    path = tmp_path / "w.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": weights()}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(safeload.load(path)["model"], weights())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_programs_and_compressed_archives_are_refused(tmp_path):
    program = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), program)
    with pytest.raises(InputError, match="TorchScript"):
        safeload.load(program)
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(1 << 20))
    with pytest.raises(InputError, match="compressed"):
        safeload.load(bomb)


def test_tensors_stay_inside_their_storage(tmp_path):
    """A pickle that claims a larger shape than its bytes must not read other memory."""
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.ones(4)}}, buffer)
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"K\x04\x85") == 1  # the shape (4,)
                data = data.replace(b"K\x04\x85", b"K\xff\x85")
            target.writestr(name, data)
    with pytest.raises(InputError, match="out of bounds"):
        safeload.load(path)


def test_other_files_are_named(tmp_path):
    text = tmp_path / "notes.pt"
    text.write_text("hello")
    with pytest.raises(InputError, match=r"notes\.pt is not a readable cache"):
        safeload.load(text, what="cache")
    with pytest.raises(InputError, match="is a folder"):
        safeload.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*missing\.pt"):
        safeload.load(tmp_path / "missing.pt")


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2)}, path)
    assert torch.equal(safeload.load(path)["a"], torch.ones(2))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"w\.safetensors"):
        safeload.load(path)
