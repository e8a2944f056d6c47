"""Image folders and old LMDB files for the tests: real encoded images of every kind that ImageNet holds."""

import io
import pickle
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

KINDS = ("rgb", "grey", "cmyk", "png", "png-alpha", "png-palette", "odd")
MODES = {"grey": "L", "cmyk": "CMYK", "png-alpha": "RGBA", "png-palette": "P"}


def encoded_image(kind: str, seed: int, size: tuple[int, int] | None = None) -> bytes:
    """A JPEG or PNG file with smooth areas and noise; without `size` its sides are 20 to 90 pixels."""
    rng = np.random.default_rng(seed)
    width, height = size or ((1, 75) if kind == "odd" else rng.integers(20, 90, 2).tolist())
    coarse = Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse).astype(int) + rng.integers(-15, 16, (height, width, 3))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(MODES.get(kind, "RGB"))
    file = io.BytesIO()
    image.save(file, "PNG" if kind.startswith("png") else "JPEG")
    return file.getvalue()


def monsters() -> dict[str, bytes]:
    """Files called like images that are not to be decoded: a program, and pixels that fill the memory."""

    def png(width: int, height: int) -> bytes:
        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        rows = zlib.compressobj(9)
        pixels = b"".join([*(rows.compress(bytes(1 + 3 * width)) for _ in range(min(height, 200))), rows.flush()])
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    jpeg = encoded_image("rgb", 0, (32, 32))
    size = jpeg.index(b"\xff\xc0") + 5  # height and width in the frame's header
    huge = jpeg[:size] + struct.pack(">HH", 60_000, 60_000) + jpeg[size + 4 :]
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n"
    tall = io.BytesIO()
    Image.new("RGB", (1, 60_000)).save(tall, "PNG")
    flat = io.BytesIO()
    Image.new("RGB", (60_000, 1)).save(flat, "JPEG")
    return {
        "script.jpg": script,
        "tall.png": tall.getvalue(),
        "flat.jpeg": flat.getvalue(),
        "bomb.png": png(60_000, 60_000),
        "warned.png": png(10_000, 9_000),
        "bomb.jpg": huge,
        "bomb.ppm": b"P6 60000 60000 255\n" + bytes(100),
    }


def make_image_folder(folder: Path, num_classes: int, per_class: int) -> None:
    """`<folder>/n00000/…`: names and suffixes in mixed case, a nested folder, and files that are no images."""
    for label in range(num_classes):
        parent = folder / f"n{label:05d}"
        (parent / "deeper").mkdir(parents=True)
        (parent / "notes.txt").write_text("not an image")
        for number in range(per_class):
            kind = KINDS[(label + number) % len(KINDS)]
            suffix = ".PNG" if kind.startswith("png") else (".JPEG", ".jpg")[number % 2]
            name = f"deeper/z{number}{suffix}" if number == 1 else f"{'aB'[number % 2]}{number}{suffix}"
            (parent / name).write_bytes(encoded_image(kind, seed=1000 * label + number))


SHAPES = ("disc", "stripes", "checks", "cross")


def make_pictures(folder: Path, shapes: Sequence[str] = SHAPES[:3], *, train: int = 12, val: int = 6) -> Path:
    """A `folder:` data set: `<folder>/{train,val}/<shape>/…`, PNG and JPEG files of 40 to 80 pixels, any colours.

    Args:
        shapes: the classes, of SHAPES.
        train, val: pictures of each class.
    """
    for split, count in (("train", train), ("val", val)):
        for label, shape in enumerate(shapes):
            (folder / split / shape).mkdir(parents=True)
            for number in range(count):
                seed = [label, number, split == "val"]
                picture = Image.fromarray(drawn(shape, np.random.default_rng(seed)))
                picture.save(folder / split / shape / f"{number:03d}.{'jpg' if number % 2 else 'png'}")
    return folder


def drawn(shape: str, rng: np.random.Generator) -> np.ndarray:
    """A picture of a shape, (H, W, 3) uint8: where it is, how large, and both colours differ from one to the next."""
    height, width = rng.integers(40, 80, 2)
    y, x = np.mgrid[:height, :width] - rng.uniform(10, 30, 2)[:, None, None]
    period = rng.uniform(8, 14)
    inside = {
        "disc": (x - 10) ** 2 + (y - 10) ** 2 < (2 * period) ** 2,
        "stripes": np.sin(2 * np.pi * y / period) > 0,
        "checks": np.sin(2 * np.pi * y / period) * np.sin(2 * np.pi * x / period) > 0,
        "cross": (abs(x - 10) < period / 2) | (abs(y - 10) < period / 2),
    }[shape]
    dark, light = rng.integers(0, 90, 3), rng.integers(150, 256, 3)
    noisy = np.where(inside[..., None], light, dark) + rng.normal(0, 8, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def write_raw_lmdb(path: Path, pairs: dict[bytes, bytes]) -> None:
    """Put pairs into an LMDB file, new or old."""
    environment = lmdb.open(str(path), subdir=False, map_size=2**28)
    with environment.begin(write=True) as transaction:
        for key, value in pairs.items():
            transaction.put(key, value)
    environment.close()


def write_legacy_lmdb(path: Path, records: list[tuple[object, object]], protocol: int | None = None) -> None:
    """An LMDB file as the original folder2lmdb made it: every value a pickle, the keys listed in `__keys__`."""
    pairs = {str(index).encode("ascii"): pickle.dumps(record, protocol) for index, record in enumerate(records)}
    ends = {b"__keys__": pickle.dumps(list(pairs)), b"__len__": pickle.dumps(len(pairs))}
    write_raw_lmdb(path, pairs | ends)


class Dangerous:
    """Makes a file when it is unpickled as pickle does it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")
