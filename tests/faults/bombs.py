"""Pickles of a few hundred bytes that a trusting reader would take for ever, or all memory, to read."""

import io
import pickle
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from univ.errors import InputError
from univ.files import safeload
from univ.files.unpickle import unpickle_allowed

P = pickle
PROTO = b"\x80\x04"
DOUBLED = P.EMPTY_TUPLE + (P.DUP + P.TUPLE2) * 60  # t = (t, t), sixty times: 2^60 steps to hash, compare or print


def _deep(n: int) -> bytes:
    return P.EMPTY_TUPLE + P.TUPLE1 * n


def _text(value: str) -> bytes:
    return P.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def _global(module: str, name: str) -> bytes:
    return P.GLOBAL + f"{module}\n{name}\n".encode()


def _stored(*parts: bytes) -> bytes:
    """Parts of a pickle in its memory cells 1, 2 ..."""
    return b"".join(part + P.LONG_BINPUT + struct.pack("<I", n) + P.POP for n, part in enumerate(parts, 1))


def _called_over_and_over(function: bytes, argument: bytes, times: int = 50_000) -> bytes:
    """A list of many results of one function for one large argument."""
    call = P.BINGET + b"\1" + P.BINGET + b"\2" + P.TUPLE1 + P.REDUCE
    return _stored(function, argument) + P.MARK + call * times + P.LIST


def _called(module: str, name: str, *arguments: bytes) -> bytes:
    return _global(module, name) + P.MARK + b"".join(arguments) + P.TUPLE + P.REDUCE


def _reference(kind: bytes, key: bytes, count: bytes) -> bytes:
    """A tensor's reference to its storage."""
    return P.MARK + _text("storage") + kind + key + _text("cpu") + count + P.NONE + P.TUPLE + P.BINPERSID


_ONE = P.BININT1 + b"\1"
_PAIR = P.MARK + P.MARK + DOUBLED + P.NONE + P.TUPLE + P.LIST
_DOUBLED_LIST = (
    P.EMPTY_LIST + (P.BINPUT + b"\1" + P.POP + P.EMPTY_LIST + P.MARK + (P.BINGET + b"\1") * 2 + P.APPENDS) * 60
)
_BOTH = P.BINGET + b"\1" + P.BINGET + b"\2"
_LARGE_INTEGER = P.LONG4 + struct.pack("<i", 1 << 20) + b"\1" * (1 << 20)
_HUGE = (1 << 42).to_bytes(8, "little")

BODIES: dict[str, bytes] = {
    "doubled tuple as key": P.EMPTY_DICT + DOUBLED + P.NONE + P.SETITEM,
    "doubled tuple as one of several keys": P.EMPTY_DICT + P.MARK + DOUBLED + P.NONE + P.SETITEMS,
    "doubled tuple as key, old instruction": P.MARK + DOUBLED + P.NONE + P.DICT,
    "doubled tuple in a set": P.EMPTY_SET + P.MARK + DOUBLED + P.ADDITEMS,
    "doubled tuple in a frozen set": P.MARK + DOUBLED + P.FROZENSET,
    "doubled tuple in a called set": _called("builtins", "set", P.MARK + DOUBLED + P.LIST),
    "doubled tuple in a called dict": _called("collections", "OrderedDict", _PAIR),
    "doubled tuple in a counter": _called("collections", "Counter", P.MARK + DOUBLED + P.LIST),
    "doubled tuple": DOUBLED,
    "doubled list": _DOUBLED_LIST,
    "doubled tuple as dtype": _called("numpy", "dtype", DOUBLED),
    "doubled tuple as state": _called("numpy", "ndarray") + DOUBLED + P.BUILD,
    "doubled tuple as reference": DOUBLED + P.BINPERSID,
    "doubled tuple as storage": _reference(DOUBLED, _text("0"), _ONE),
    "doubled tuple as storage's key": _reference(_global("torch", "FloatStorage"), DOUBLED, _ONE),
    "list in itself": P.EMPTY_LIST + P.DUP + P.APPEND,
    "deep tuple": _deep(1_000_000),
    "deep tuple as key": P.EMPTY_DICT + _deep(1_000_000) + P.NONE + P.SETITEM,
    "deep list": P.EMPTY_LIST * 300_000 + P.APPEND * 299_999,
    "one large integer as many keys": _stored(_LARGE_INTEGER)
    + (P.EMPTY_DICT + P.MARK + (P.BINGET + b"\1" + P.NONE) * 50_000 + P.SETITEMS),
    "text encoded over and over": _called_over_and_over(_global("_codecs", "encode"), _text("x" * (1 << 20))),
    "list copied over and over": _called_over_and_over(_global("torch", "Size"), P.MARK + _ONE * (1 << 18) + P.LIST),
    "name copied over and over": _stored(_text("m"), _text("x" * (1 << 20)))
    + (P.MARK + (_BOTH + P.STACK_GLOBAL) * 50_000 + P.LIST),
    "arguments copied over and over": _stored(_global("m", "x"), P.MARK + P.NONE * (1 << 20) + P.TUPLE)
    + (P.MARK + (_BOTH + P.REDUCE) * 50_000 + P.LIST),
    "memory cell of a claimed index": P.NONE + P.LONG_BINPUT + struct.pack("<I", (1 << 32) - 1),
    "bytes of a claimed length": P.BINBYTES8 + _HUGE,
    "text of a claimed length": P.BINUNICODE8 + _HUGE,
    "bytearray of a claimed length": P.BYTEARRAY8 + _HUGE,
    "frame of a claimed length": P.FRAME + _HUGE,
    "integer of a claimed length": P.LONG4 + struct.pack("<i", (1 << 31) - 1),
    "bytearray of a claimed size": _called("builtins", "bytearray", P.LONG1 + b"\x06" + _HUGE[:6]),
}


def records() -> dict[str, bytes]:
    """Every bomb as a pickle."""
    return {name: PROTO + body + P.STOP for name, body in BODIES.items()}


def _zip(data: bytes, storage: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w/data.pkl", data)
        archive.writestr("w/data/0", storage)
    return buffer.getvalue()


def _legacy(data: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(value, protocol=2) for value in head) + data + pickle.dumps([], protocol=2)


def _tensor(size: int, stride: int, count: int) -> bytes:
    """A file's content with a tensor of `size` numbers over a storage said to hold `count`."""
    rebuilt = _rebuilt(size, stride, count)
    return PROTO + P.EMPTY_DICT + _text("model") + P.EMPTY_DICT + _text("a") + rebuilt + P.SETITEM * 2 + P.STOP


def _rebuilt(size: int, stride: int, count: int) -> bytes:
    long = [P.LONG1 + b"\x08" + n.to_bytes(8, "little") for n in (size, stride, count)]
    storage = _reference(_global("torch", "FloatStorage"), _text("0"), long[2])
    view = (P.BININT1 + b"\0", long[0] + P.TUPLE1, long[1] + P.TUPLE1, P.NEWFALSE, P.EMPTY_DICT)
    return _called("torch._utils", "_rebuild_tensor_v2", storage, *view)


def files() -> dict[str, bytes]:
    """Every bomb in both formats of torch.save, and some that only archives can be."""
    made = {f"{name}, zip": _zip(data) for name, data in records().items()}
    made |= {f"{name}, legacy": _legacy(data) for name, data in records().items()}
    made["keys that are doubled tuples, legacy"] = _legacy(PROTO + P.NONE + P.STOP)[:-4] + (
        PROTO + P.MARK + DOUBLED + DOUBLED + P.LIST + P.STOP
    )
    made["four bytes seen as a large tensor"] = _zip(_tensor(1 << 40, 0, 1), bytes(4))
    made["storage larger than its record"] = _zip(_tensor(1 << 20, 1, 1 << 20), bytes(4))
    count = 1 << 18
    for name in (("torch", "Size"), ("builtins", "set"), ("collections", "OrderedDict")):
        calls = _called_over_and_over(_global(*name), _rebuilt(count, 1, count), 1000)
        made[f"elements of a tensor copied by {name[1]}"] = _zip(PROTO + calls + P.STOP, bytes(4 * count))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w/data.pkl", PROTO + P.NONE + P.STOP)
        archive.writestr("w/data/0", bytes(1 << 20))
        archive.filelist += [archive.filelist[-1]] * 30_000  # 30 GB to compare with their checksums
    made["records that overlap"] = buffer.getvalue()
    return made


def read_all(folder: Path) -> None:
    """Print what becomes of each bomb: `<seconds> <name>: <answer>`; with 1 GiB of memory for all of them."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def read(name: str, reader: Callable[[], object]) -> None:
        start = time.monotonic()
        try:
            answer = f"read as {type(reader()).__name__}"
        except InputError as error:
            answer = str(error)
        print(f"{time.monotonic() - start:.2f} {name}: {answer}", flush=True)

    for name, data in records().items():
        read(f"{name}, record", lambda data=data: unpickle_allowed(data, what="record 1"))
    for name, data in files().items():
        path = folder / "bomb.pt"
        path.write_bytes(data)
        read(name, lambda path=path: safeload.load(path))


if __name__ == "__main__":
    read_all(Path(sys.argv[1]))
