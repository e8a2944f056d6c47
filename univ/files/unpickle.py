"""Reading pickles that others made, so that nothing in them can run.

A pickle is a program that may call any function it can name. Here no name is ever looked up: what a pickle names, calls
and fills is noted down in inert `Placeholder`s, and only when it has ended do functions of ours, found in a table by
that name, build plain values (numbers, containers, arrays; tensors in `safeload`) from the notes. Names outside the
table either stay `Placeholder`s (foreign objects in a checkpoint, which we do not need) or are refused (LMDB records).

Time and memory are bounded by the size of the file: what could grow faster (a tuple of itself, twice, as a key takes
2^n steps to hash; one text encoded over and over) is refused, here and so for whatever is done with the value.
"""

import io
import pickle
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import numpy as np

from univ.errors import InputError

SPARE = 1 << 20  # elements, or bytes, that a value may take beyond what its file holds
_KEY_ELEMENTS = 64  # of a tuple, nested ones included, that is a key of a dict or a member of a set
_DEPTH = 100  # of containers in containers
_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
Builder = Callable[..., Any]


def unpickle_allowed(data: bytes, *, what: str) -> Any:
    """A pickle of containers, bytes, numbers and NumPy numbers or arrays of numbers, such as an old LMDB record.

    The only globals it may mention are the functions with which NumPy rebuilds arrays, dtypes and scalars, under
    their old and new module names, and `_codecs.encode`. Ours stand in for all of them.

    Args:
        what: what it is, for messages ("record 17 of train.lmdb").

    Raises:
        InputError: another global is mentioned (names it), or the data are damaged.
    """
    try:
        return Reader(io.BytesIO(data), _ARRAYS, len(data)).load()
    except Exception as error:
        raise InputError(f"{what} is not a readable record: {reason(error)}") from error


def reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__


class Placeholder:
    """Stands for something a pickle names, and, called, for what that returns; what it is given is noted down.

    Without a function that builds its value it stays, and what it is given is dropped. It defines each method that the
    instructions of a pickle use, so that none of them finds an attribute of Python's to change.
    """

    __slots__ = ("args", "build", "items", "name", "state")

    def __init__(self, name: str, build: Builder | None = None, args: tuple | None = None) -> None:
        self.name, self.build, self.args = name, build, args
        self.state: Any = None
        self.items: list = []  # of a set; of a dict: a key, its value, the next key ...

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"

    def __call__(self, *args: Any) -> "Placeholder":
        if self.build is None:
            return Placeholder(self.name)
        if self.args is not None:
            raise pickle.UnpicklingError(f"it calls what {self.name} returned")
        if self.name == "dill._dill._load_type":  # a class of Python's by its name, here to be called
            return Placeholder("builtins.set", _set) if args == ("set",) else Placeholder(self.name)
        return Placeholder(self.name, self.build, args)

    def _check(self, change: str) -> bool:
        """Whether a change is noted down."""
        if self.build is not None and self.args is None:
            raise pickle.UnpicklingError(f"it {change} {self.name}")
        return self.build is not None

    def __setstate__(self, state: Any) -> None:
        if self._check("sets attributes of"):
            self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.extend((key, value))

    def append(self, item: Any) -> None:
        self.extend((item,))

    add = append

    def extend(self, items: Any) -> None:
        if self._check("adds elements to"):
            self.items.extend(items)


class Reader(pickle._Unpickler):
    """Reads a pickle of any protocol without looking up a global.

    Derived from the standard library's reader in Python. The one in C cannot be kept from hashing what it is told to
    (2^n steps), nor from allocating as many memory cells as an index claims.

    Args:
        builders: global name -> function of ours that builds the value.
        size: of the whole file, in bytes.
        find_storage: answers a persistent id, with which torch refers to the bytes of a tensor. Without it other names
            than those of `builders` are refused, instead of leaving placeholders in their place.
    """

    def __init__(
        self, file: BinaryIO, builders: Mapping[str, Builder], size: int, find_storage: Builder | None = None
    ) -> None:
        # a claimed length is not allocated before there are so many bytes
        bounded = SimpleNamespace(read=lambda count: file.read(min(count, size)), readline=file.readline)
        super().__init__(bounded, encoding="latin1")  # pickles of Python 2 hold NumPy's bytes as text
        self._left = SPARE + 2 * size  # elements and bytes that may still be copied
        self._builders, self._find_storage, self._strict = builders, find_storage, find_storage is None
        self._finished: dict[int, tuple[Any, int] | None] = {}  # of containers by id: value and weight
        self._held = 0  # values in all containers

    def _spend(self, copied: Any) -> None:
        """Refuse a pickle that has the same contents copied over and over."""
        if isinstance(copied, _SIZED):
            self._left -= len(copied)
        if self._left < 0:
            raise pickle.UnpicklingError("it asks for many times more memory than it has bytes")

    def find_class(self, module: str, name: str) -> Placeholder:
        full = f"{module}.{name}"
        self._spend(full)
        if self._strict and full not in self._builders:
            raise pickle.UnpicklingError(f"it refers to {full}, which is not allowed here")
        return Placeholder(full, self._builders.get(full))

    def persistent_load(self, pid: Any) -> Placeholder:
        if self._find_storage is None:
            raise pickle.UnpicklingError("it refers to data outside itself")
        self._spend(pid)
        # a call to come, not the tensor itself, on which an instruction could act
        return Placeholder("storage", lambda storage: storage, (self._find_storage(pid),))

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("it refers to a registered extension")

    # Instructions that would copy arguments for nothing, make a class (which a placeholder is not), hash keys before
    # they can be looked at, or allocate whatever length is claimed.

    def _load_reduce(self) -> None:
        self._spend(self.stack[-1])
        self.load_reduce()

    def _load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments: only foreign classes are made this way
        self._load_reduce()

    def _load_dict(self) -> None:
        items = self.pop_mark()  # which changes where to append
        self.append(Placeholder("dict", _flat_dict, (items,)))

    def _load_frozenset(self) -> None:
        members = self.pop_mark()
        self.append(Placeholder("set", _frozenset, (members,)))

    def _load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_reduce,
        pickle.NEWOBJ_EX[0]: _load_newobj_ex,
        pickle.EMPTY_DICT[0]: lambda self: self.append(Placeholder("dict", _dict, ())),
        pickle.DICT[0]: _load_dict,
        pickle.EMPTY_SET[0]: lambda self: self.append(Placeholder("set", _set, ())),
        pickle.FROZENSET[0]: _load_frozenset,
        pickle.BYTEARRAY8[0]: _load_bytearray8,
    }

    def load(self) -> Any:
        """The pickled value, with placeholders for what is foreign."""
        try:
            value = super().load()
        except KeyError as error:  # the standard reader looks up instructions and memory cells in dicts
            raise pickle.UnpicklingError(f"it holds an unknown instruction or reference, {error}") from error
        value, weight = self._finish(value, _DEPTH)
        if weight > SPARE + 16 * self._held:
            raise pickle.UnpicklingError("it holds the same containers over and over: written out it would not end")
        return value

    def _finish(self, value: Any, depth: int) -> tuple[Any, int]:
        """The value with what was noted down in it built, and its weight.

        The weight is the number of values in it where one that is there twice counts twice, as for a comparison or
        a text of it.
        """
        called = type(value) is Placeholder
        if type(value) not in _HOLDERS or (called and value.args is None):
            return value, 1
        if id(value) not in self._finished:
            if not depth:
                raise pickle.UnpicklingError(f"it holds containers in containers, more than {_DEPTH} deep")
            self._finished[id(value)] = None
            parts = (value.state, *value.args, *value.items) if called else value
            self._held += len(parts)
            made, weight = [], 1
            for part in parts:
                item, more = self._finish(part, depth - 1) if type(part) in _HOLDERS else (part, 1)
                made.append(item)
                weight += more
            self._finished[id(value)] = self._build(value, *made) if called else type(value)(made), weight
        if (found := self._finished[id(value)]) is None:
            raise pickle.UnpicklingError("it holds a container that holds itself")
        return found

    def _build(self, called: Placeholder, state: Any, *parts: Any) -> Any:
        """What a call returns, by our function."""
        args, items = parts[: len(called.args)], parts[len(called.args) :]
        for part in (*args, *state) if isinstance(state, tuple) else args:
            self._spend(part)
        given = {}
        if state is not None:
            given["state"] = state
        if items:
            given["items"] = items
        try:
            return called.build(*args, **given)
        except (pickle.UnpicklingError, TypeError, ValueError):
            if self._strict or not called.name.startswith(("numpy.", "dill.", "_codecs.")):
                raise
            return Placeholder(called.name)  # e.g. a NumPy scalar that holds an object


_HOLDERS = (list, tuple, Placeholder)
_KEYS = (str, bytes, int, float, complex, type(None), np.generic, Placeholder)


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


def elements(value: Any) -> Any:
    """What a container is made of, if it is one itself: the elements of a tensor take more memory than the tensor."""
    if not isinstance(value, list | tuple | set | frozenset):
        raise pickle.UnpicklingError(f"it makes a container of a {type(value).__name__}")
    return value


def _flat_dict(flat: Any, *, items: Any = ()) -> dict:
    """Of a key, its value, the next key ..."""
    flat = [*flat, *items]
    return dict(zip(map(_hashable, flat[::2]), flat[1::2], strict=True))


def _dict(pairs: Any = (), *_: Any, items: Any = (), state: Any = None) -> dict:
    """Of pairs, and of what was set later; `state`, such as a state dict's `_metadata`, is dropped."""
    first = {_hashable(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else elements(pairs))}
    return first | _flat_dict(items)


def _set(members: Any = (), *, items: Any = ()) -> set:
    return set(map(_hashable, (*elements(members), *items)))


def _frozenset(members: Any) -> frozenset:
    return frozenset(_set(members))


# --- NumPy ----------------------------------------------------------------------------------------------------------
# NumPy's own functions trust their arguments (a forged dtype makes it follow pointers taken from the file), so the
# values are rebuilt here, from plain number types only.


_NUMBERS = re.compile(r"[<>=|]?([iuf][248]|[iu]1|b1|c8|c16)")


def _dtype(code: Any, *_: Any, state: Any = None) -> np.dtype:
    """Numbers and booleans only. The state's second element is the byte order, the rest is not about numbers."""
    if isinstance(code, str) and isinstance(state, tuple) and len(state) > 1 and isinstance(state[1], str):
        code = state[1] + code.lstrip("<>=|")
    elif state is not None:
        raise pickle.UnpicklingError("it holds a malformed dtype")
    if not (isinstance(code, str) and _NUMBERS.fullmatch(code)):
        kind = code if isinstance(code, str) else type(code).__name__  # the text of a doubled tuple would not end
        raise pickle.UnpicklingError(f"it holds an array of type {kind!r}: expected numbers")
    return np.dtype(code)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> np.ndarray:
    if not isinstance(dtype, np.dtype):
        raise pickle.UnpicklingError("it holds an array without a dtype")
    if isinstance(data, str):
        data = data.encode("latin1")  # Python 2's bytes
    if not (isinstance(data, bytes | bytearray) and is_shape(shape)):
        raise pickle.UnpicklingError("it holds a malformed array")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C").copy()


def _array(*_: Any, state: Any = None) -> np.ndarray:
    """An array that is made empty; its shape, dtype, order and bytes are the state."""
    if not (isinstance(state, tuple) and len(state) == 5):
        raise pickle.UnpicklingError("it holds an array without data")
    _, shape, dtype, is_fortran, data = state
    return _from_buffer(data, dtype, shape, "F" if is_fortran else "C")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not (isinstance(text, str) and encoding in ("latin1", "latin-1")):
        raise pickle.UnpicklingError("it encodes something else than bytes")
    return text.encode("latin1")


def is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


_ARRAYS: dict[str, Builder] = {
    "_codecs.encode": _encode,  # how protocols up to 2 hold bytes
    "numpy.dtype": _dtype,
    "numpy.ndarray": _array,  # mostly an argument of _reconstruct, where it stands for the kind of array
}
for _core in ("numpy.core", "numpy._core"):  # the name before and after NumPy 2
    _ARRAYS[f"{_core}.multiarray._reconstruct"] = _array
    _ARRAYS[f"{_core}.multiarray.scalar"] = lambda dtype, data: _from_buffer(data, dtype, ())[()]
    _ARRAYS[f"{_core}.numeric._frombuffer"] = _from_buffer

CONTAINERS: dict[str, Builder] = {
    **_ARRAYS,
    # dill's way of writing an array: what rebuilds it, and its state, in one call
    "dill._dill._create_array": lambda _function, _args, state, *_: _array(state=state),
    "dill._dill._load_type": lambda *_: None,  # see Placeholder
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_, items=(), state=None: _dict(items=items),
    "builtins.set": _set,
    "__builtin__.set": _set,
}
