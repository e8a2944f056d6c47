"""Reading files that others made, so that nothing in them can run: checkpoints, caches, pickled LMDB records.

A pickle is a program that may call any function it can name. Here no name is ever looked up: `_Reader` follows the
pickle's instructions, but every global it mentions becomes an inert `Global`, and "calling" one consults a table of our
own functions that only build plain values (numbers, containers, arrays, tensors). Names outside that table either
become a `Placeholder` (foreign objects in a checkpoint, which we do not need) or are refused (LMDB records).

Time and memory are bounded by the size of the file: what could grow faster (a tuple of itself, twice, as a key takes
2^n steps to hash; a small storage seen as a large tensor) is refused, here and so for whatever is done with the value.
"""

import io
import math
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from univ.errors import InputError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first of the pickles in a file that torch.save wrote before version 1.6
_CHUNK = 1 << 20
_KEY_ELEMENTS = 64  # of a tuple, nested ones included, that is a key of a dict or a member of a set
_DEPTH = 100  # of containers in containers
_SPARE = 1 << 20  # elements, or bytes, that a value may take beyond what its file holds


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle mentions. Not looked up, not callable, and without attributes that a pickle could set."""

    name: str


class Placeholder:
    """Stands for an object of a foreign class; what the pickle would have put into it is dropped."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


def load(path: Path | str, *, what: str = "checkpoint", mmap: bool = False) -> Any:
    """What `torch.save` (or safetensors) wrote to a file, on the CPU, without running anything that is in it.

    Tensors are plain ones without gradients. Objects of other classes, sparse and quantised tensors among them, are
    `Placeholder`s. PyTorch's own reader is not used: it takes a file's word for the size of its storages, and 2^n steps
    where a pickle asks for them.

    Files of the zip format, that is from PyTorch 1.6 on, are first checked against their checksums, which PyTorch
    itself does not look at; a file written without checksums is read unchecked. The older format has none:
    there a damaged weight is a different number, while damage to the structure is found.

    Args:
        path: file in PyTorch's zip or older format; safetensors if the name ends in .safetensors.
        what: what the file should be, for messages.
        mmap: leave tensors on the disk until they are read; for a file that nothing changes meanwhile.

    Raises:
        FileNotFoundError: no such file.
        InputError: the file is damaged or not of these formats; names it.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected a {what} file")
    if not path.exists():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        return _load_zip(path, mmap=mmap) if is_zip else _load_legacy(path)
    # Whatever goes wrong on bytes of unknown origin means the same: this file cannot be read.
    except Exception as error:
        if isinstance(error, PermissionError):
            raise
        raise InputError(
            f"{path} is not a readable {what} (damaged, incomplete or of another kind): {_reason(error)}"
        ) from error


def unpickle_allowed(data: bytes, *, what: str) -> Any:
    """A pickle of containers, bytes, numbers and NumPy numbers or arrays of numbers.

    The only globals it may mention are the functions with which NumPy rebuilds arrays, dtypes and scalars, under
    their old and new module names, and `_codecs.encode`. Ours stand in for all of them.

    Args:
        data: the pickle, for example an old LMDB record.
        what: what it is, for messages ("record 17 of train.lmdb").

    Raises:
        InputError: another global is mentioned (names it), or the data are damaged.
    """
    try:
        return _Reader(io.BytesIO(data), _ARRAYS, size=len(data), strict=True).load()
    except Exception as error:
        raise InputError(f"{what} is not a readable record: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__


# --- pickles --------------------------------------------------------------------------------------------------------


class _Reader(pickle._Unpickler):
    """Reads a pickle of any protocol without looking up a global.

    Derived from the standard library's reader in Python, because each instruction that calls, modifies or hashes an
    object is replaced here; the one in C does so without asking.

    Args:
        file: binary file, positioned at the pickle.
        builders: global name -> function of ours that builds the value.
        size: of the whole file, in bytes.
        strict: refuse globals outside `builders` instead of putting placeholders in their place.
        find_storage: answers a persistent id, with which torch refers to the bytes of a tensor.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        file: BinaryIO,
        builders: Mapping[str, Callable[..., Any]],
        *,
        size: int,
        strict: bool,
        find_storage: Callable[[Any], Any] | None = None,
    ) -> None:
        # a claimed length is not allocated before there are so many bytes
        bounded = SimpleNamespace(read=lambda count: file.read(min(count, size)), readline=file.readline)
        super().__init__(bounded, encoding="latin1")  # pickles of Python 2 hold NumPy's bytes as text
        self._left = _SPARE + 2 * size  # elements and bytes that calls may still copy
        self._builders = builders
        self._strict = strict
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> Global:
        full = f"{module}.{name}"
        if self._strict and full not in self._builders:
            raise pickle.UnpicklingError(f"it refers to {full}, which is not allowed here")
        return Global(full)

    def persistent_load(self, pid: Any) -> Any:
        if self._find_storage is None:
            raise pickle.UnpicklingError("it refers to data outside itself")
        return self._find_storage(pid)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("it refers to a registered extension")

    def _spend(self, copied: Any) -> None:
        """Refuse a pickle that has the same contents copied over and over."""
        self._left -= len(copied) if isinstance(copied, _SIZED) else 0
        if self._left < 0:
            raise pickle.UnpicklingError("it asks for many times more memory than it has bytes")

    def _call(self, function: Any, args: tuple) -> Any:
        if not isinstance(function, Global):
            if isinstance(function, Placeholder):  # e.g. a foreign class that was itself rebuilt by a call
                return Placeholder(function.name)
            raise pickle.UnpicklingError(f"it calls a {type(function).__name__}")
        if function.name in self._builders:
            for arg in args:
                self._spend(arg)
            try:
                return self._builders[function.name](*args)
            except (pickle.UnpicklingError, TypeError, ValueError):
                if self._strict or function.name.startswith("torch."):
                    raise
                return Placeholder(function.name)  # e.g. a NumPy scalar that holds an object
        if self._strict:
            raise pickle.UnpicklingError(f"it calls {function.name}, which is not allowed here")
        return Placeholder(function.name)

    # Instructions that create an object by a call.

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments: only foreign classes are made this way
        self._load_newobj()

    def _load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        args = tuple(self.pop_mark())
        self.append(self._call(self.find_class(module, name), args))

    def _load_obj(self) -> None:
        function, *args = self.pop_mark()
        self.append(self._call(function, tuple(args)))

    # Instructions that change an object: only what was built here, and only plain containers.

    def _load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Array | _Dtype):
            for part in state if isinstance(state, tuple) else ():
                self._spend(part)
            target.set_state(state, strict=self._strict)
        elif not isinstance(target, Placeholder | Tensor | dict | set):
            # attributes of tensors and ordered dicts (a state dict's `_metadata`) are dropped
            raise pickle.UnpicklingError(f"it sets attributes of a {type(target).__name__}")

    def _add(self, target: Any, items: list) -> None:
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(map(_hashable, items))
        elif not isinstance(target, Placeholder):
            raise pickle.UnpicklingError(f"it adds elements to a {type(target).__name__}")

    def _set(self, target: Any, items: list) -> None:
        if type(target) is dict:
            target.update(zip(map(_hashable, items[::2]), items[1::2], strict=True))
        elif not isinstance(target, Placeholder):
            raise pickle.UnpicklingError(f"it sets items of a {type(target).__name__}")

    def _load_append(self) -> None:
        item = self.stack.pop()
        self._add(self.stack[-1], [item])

    def _load_appends(self) -> None:
        items = self.pop_mark()
        self._add(self.stack[-1], items)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        self._set(self.stack[-1], items)

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(self.stack[-1], items)

    def _load_frozenset(self) -> None:
        self.append(frozenset(map(_hashable, self.pop_mark())))

    def _load_bytearray8(self) -> None:
        data = self.read(int.from_bytes(self.read(8), "little"))  # the original allocates whatever length is claimed
        self.append(bytearray(data))

    def load(self) -> Any:
        """The pickled value, with arrays and dtypes as NumPy's, and placeholders for what is foreign."""
        try:
            value = super().load()
        except KeyError as error:  # the standard reader looks up instructions and memory cells in dicts
            raise pickle.UnpicklingError(f"it holds an unknown instruction or reference, {error}") from error
        self._held = 0
        value, weight = self._finished(value, {}, _DEPTH)
        if weight > _SPARE + 16 * self._held:
            raise pickle.UnpicklingError("it holds the same containers over and over: written out it would not end")
        return value

    def _finished(self, value: Any, seen: dict[int, tuple[Any, int] | None], depth: int) -> tuple[Any, int]:
        """The value with what was rebuilt inside its containers replaced by what it describes, and its weight.

        The weight is the number of values in it where one that is there twice counts twice, as for a comparison or
        a text of it.
        """
        if isinstance(value, Global):
            return Placeholder(value.name), 1
        if isinstance(value, _Array | _Dtype):
            return value.finish(strict=self._strict), 1
        if type(value) not in (list, tuple, dict):
            return value, 1
        if id(value) not in seen:
            if not depth:
                raise pickle.UnpicklingError(f"it holds containers in containers, more than {_DEPTH} deep")
            seen[id(value)] = None
            self._held += len(value)
            items = list(value.values() if type(value) is dict else value)
            finished = [self._finished(item, seen, depth - 1) for item in items]
            items[:] = [item for item, _ in finished]
            made: Any = value
            if type(value) is tuple:
                made = tuple(items)
            elif type(value) is list:
                value[:] = items
            else:
                value.update(zip(value, items))
            seen[id(value)] = made, 1 + sum(weight for _, weight in finished)
        if (found := seen[id(value)]) is None:
            raise pickle.UnpicklingError("it holds a container that holds itself")
        return found


_Reader.dispatch |= {
    pickle.REDUCE[0]: _Reader._load_reduce,
    pickle.NEWOBJ[0]: _Reader._load_newobj,
    pickle.NEWOBJ_EX[0]: _Reader._load_newobj_ex,
    pickle.INST[0]: _Reader._load_inst,
    pickle.OBJ[0]: _Reader._load_obj,
    pickle.BUILD[0]: _Reader._load_build,
    pickle.APPEND[0]: _Reader._load_append,
    pickle.APPENDS[0]: _Reader._load_appends,
    pickle.ADDITEMS[0]: _Reader._load_appends,
    pickle.SETITEM[0]: _Reader._load_setitem,
    pickle.SETITEMS[0]: _Reader._load_setitems,
    pickle.DICT[0]: _Reader._load_dict,
    pickle.FROZENSET[0]: _Reader._load_frozenset,
    pickle.BYTEARRAY8[0]: _Reader._load_bytearray8,
}


def _hashable(key: Any) -> Any:
    """The key of a dict or member of a set, if hashing it takes no time to speak of."""
    todo, count = [key], 0
    while todo:
        item, count = todo.pop(), count + 1
        if isinstance(item, tuple) and len(item) < _KEY_ELEMENTS and count < _KEY_ELEMENTS:
            todo += item
        elif (isinstance(item, int) and item.bit_length() > 64) or not isinstance(item, _KEYS):
            raise pickle.UnpicklingError(f"it has a key, a {type(item).__name__}, that is too large or is none")
    return key


# --- NumPy ----------------------------------------------------------------------------------------------------------
# NumPy's own functions trust their arguments (a forged dtype makes it follow pointers taken from the file), so the
# values are rebuilt here, from plain number types only.


_NUMBERS = re.compile(r"[<>=|]?([iuf][248]|[iu]1|b1|c8|c16)")


class _Dtype:
    """A dtype being rebuilt: numbers and booleans only."""

    __slots__ = ("code",)

    def __init__(self, code: Any, *_: Any) -> None:
        # a class, such as one that dill wrote by value, has no code
        self.code = code if isinstance(code, str) else type(code).__name__

    def set_state(self, state: Any, *, strict: bool) -> None:
        """The byte order is the second element; the rest describes what numbers do not have."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("it holds a malformed dtype")
        self.code = order + self.code.lstrip("<>=|")

    def finish(self, *, strict: bool) -> np.dtype | Placeholder:
        if _NUMBERS.fullmatch(self.code):
            return np.dtype(self.code)
        if strict:
            raise pickle.UnpicklingError(f"it holds an array of type {self.code!r}: expected numbers")
        return Placeholder("numpy.dtype")


def _array_of(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("it holds an array without a dtype")
    kind = dtype.finish(strict=True)
    if isinstance(data, str):
        data = data.encode("latin1")  # Python 2's bytes
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("it holds a malformed array")
    if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
        raise pickle.UnpicklingError("it holds an array with a malformed shape")
    return np.frombuffer(data, kind).reshape(shape, order=order).copy()


class _Array:
    """An array being rebuilt: made empty, its shape, dtype and bytes arrive later."""

    __slots__ = ("array",)

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def set_state(self, state: Any, *, strict: bool) -> None:
        try:
            _, shape, dtype, is_fortran, data = state
            self.array = _array_of(data, dtype, shape, "F" if is_fortran else "C")
        except (pickle.UnpicklingError, TypeError, ValueError):
            if strict:
                raise

    def finish(self, *, strict: bool) -> np.ndarray | Placeholder:
        if self.array is None and strict:
            raise pickle.UnpicklingError("it holds an array without data")
        return Placeholder("numpy.ndarray") if self.array is None else self.array


_KEYS = (str, bytes, int, float, complex, type(None), np.generic, Placeholder, Global, _Dtype, _Array)
_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)


def _scalar(dtype: Any, data: Any) -> np.generic:
    return _array_of(data, dtype, (), "C")[()]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
    return _array_of(data, dtype, shape, "F" if order == "F" else "C")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not (isinstance(text, str) and encoding in ("latin1", "latin-1")):
        raise pickle.UnpicklingError("it encodes something else than bytes")
    return text.encode("latin1")


_ARRAYS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,  # how protocols up to 2 hold bytes
    "numpy.dtype": _Dtype,
    # only an argument of _reconstruct, where it stands for the kind of array
    "numpy.ndarray": _Array,
}
for _core in ("numpy.core", "numpy._core"):  # the name before and after NumPy 2
    _ARRAYS[f"{_core}.multiarray._reconstruct"] = _Array
    _ARRAYS[f"{_core}.multiarray.scalar"] = _scalar
    _ARRAYS[f"{_core}.numeric._frombuffer"] = _from_buffer

# --- tensors --------------------------------------------------------------------------------------------------------

_STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
_STORAGE_DTYPES |= {name.replace("torch.", "torch.cuda."): dtype for name, dtype in _STORAGE_DTYPES.items()}


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A strided view of a storage, which is a 1-d tensor here; PyTorch checks that it stays inside."""
    if not (isinstance(storage, Tensor) and type(offset) is int and _is_shape(size) and _is_shape(stride)):
        raise pickle.UnpicklingError("it holds a malformed tensor")
    if math.prod(size) > max(_SPARE, len(storage)):
        raise pickle.UnpicklingError(f"it holds {len(storage):,} numbers as a tensor of {math.prod(size):,}")
    return storage.as_strided(size, stride, storage.storage_offset() + offset)


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("it holds a malformed parameter")
    return data


def _create_array(_function: Any, _args: Any, state: Any, *_: Any) -> _Array:
    """dill's way of writing an array: what rebuilds it, and its state, in one call."""
    array = _Array()
    array.set_state(state, strict=False)
    return array


def _dict(items: Any = (), *_: Any) -> dict:
    return {_hashable(key): value for key, value in (items.items() if isinstance(items, dict) else items)}


_TENSORS: dict[str, Callable[..., Any]] = {
    **_ARRAYS,
    "dill._dill._create_array": _create_array,
    "dill._dill._load_type": lambda name: Global(f"builtins.{name}"),
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: {},
    "builtins.set": lambda items=(): set(map(_hashable, items)),
    "__builtin__.set": lambda items=(): set(map(_hashable, items)),
    "torch.Size": lambda size=(): tuple(size),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}


def _storage_dtype(kind: Any) -> torch.dtype:
    name = kind.name if isinstance(kind, Global) else type(kind).__name__
    if name not in _STORAGE_DTYPES:
        raise pickle.UnpicklingError(f"it holds a tensor of an unknown kind, {name}")
    return _STORAGE_DTYPES[name]


def _check_zip(path: Path) -> None:
    """Compare every record of a zip file with its checksum, and its layout with what torch.save writes."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise zipfile.BadZipFile("it is a TorchScript program, not a file of weights")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise zipfile.BadZipFile("its records are compressed, which torch.save never does")
        if any(record.external_attr & 0x10 for record in records):  # PyTorch would read nothing and keep quiet
            raise zipfile.BadZipFile("it marks data as a folder")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise zipfile.BadZipFile("its records overlap")
        if all(record.CRC == 0 for record in records):
            return  # written under torch.serialization.set_crc32_options(False)
        for record in records:
            with archive.open(record) as file:
                while file.read(_CHUNK):  # zipfile compares at the end of the record
                    pass


def _load_zip(path: Path, *, mmap: bool = False) -> Any:
    """The format of torch.save since version 1.6: a zip of `<name>/data.pkl` and one record per storage."""
    _check_zip(path)
    size = path.stat().st_size
    with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
        for record in archive.infolist():
            record.CRC = None  # compared already, where there are any
        names = archive.namelist()
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise zipfile.BadZipFile("it holds no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise zipfile.BadZipFile("it was written on a big-endian machine")
        whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if mmap else None
        storages: dict[str, Tensor] = {}

        def find_storage(pid: Any) -> Tensor:
            tag, kind, key, *_ = pid
            if tag != "storage" or not isinstance(key, str):
                raise pickle.UnpicklingError("it refers to unknown data")
            if key not in storages:
                record = archive.getinfo(f"{root}data/{key}")
                raw.seek(record.header_offset + 26)  # of the record's own header: lengths of its name and extra field
                name_and_extra = struct.unpack("<2H", raw.read(4))
                start = record.header_offset + 30 + sum(name_and_extra)
                if not record.file_size:
                    storages[key] = torch.empty(0, dtype=torch.uint8)
                elif whole is not None and start % 16 == 0:  # torch.save aligns to 64 bytes, others may not
                    storages[key] = whole[start : start + record.file_size]
                else:
                    storages[key] = torch.from_numpy(np.fromfile(path, np.uint8, record.file_size, offset=start))
            return storages[key].view(_storage_dtype(kind))

        with archive.open(pickles[0]) as file:
            data = file.read()
        return _Reader(io.BytesIO(data), _TENSORS, size=size, strict=False, find_storage=find_storage).load()


def _load_legacy(path: Path) -> Any:
    """The format of torch.save before version 1.6: several pickles one after the other, then the storages' bytes."""
    file_size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            kind = "an archive of PyTorch 0.1" if tarfile.is_tarfile(path) else "not written by torch.save"
            raise pickle.UnpicklingError(f"it is {kind}")
        file.seek(0)
        storages: dict[str, Tensor] = {}
        held = 0

        def find_storage(pid: Any) -> Tensor:
            nonlocal held
            tag, kind, key, _, count, view = pid
            if tag != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
                raise pickle.UnpicklingError("it refers to unknown data")
            if key not in storages:
                dtype = _storage_dtype(kind)
                held += count * dtype.itemsize
                if held > file_size:
                    raise pickle.UnpicklingError("it refers to more data than it holds")
                storages[key] = torch.empty(count, dtype=dtype)  # filled below: the bytes come after the pickles
            if view is None:
                return storages[key]
            _, offset, length = view
            return storages[key].narrow(0, offset, length)

        def read() -> Any:
            return _Reader(file, _TENSORS, size=file_size, strict=False, find_storage=find_storage).load()

        if read() != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("it was not written by torch.save")
        read()  # protocol version
        system = read()
        if not (isinstance(system, dict) and system.get("little_endian") is True):
            raise pickle.UnpicklingError("it was written on a big-endian machine")
        value = read()
        keys = read()
        if not (
            isinstance(keys, list) and all(isinstance(key, str) for key in keys) and sorted(keys) == sorted(storages)
        ):
            raise pickle.UnpicklingError("its tensors and its data do not belong together")
        for key in keys:
            storage = storages[key]
            header = file.read(8)
            count = int.from_bytes(header, "little", signed=True)
            target = storage.view(torch.uint8).numpy() if len(storage) else np.empty(0, np.uint8)
            complete = len(header) == 8 and count == len(storage)
            if not complete or file.readinto(memoryview(target)) != target.nbytes:
                raise pickle.UnpicklingError("it ends before its data do")
        return value
