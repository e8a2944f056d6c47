"""Image folders and old LMDB files for the tests: real encoded images of every kind that ImageNet holds."""

import io
import pickle
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


def write_legacy_lmdb(path: Path, records: list[tuple[object, object]], protocol: int | None = None) -> None:
    """An LMDB file as the original folder2lmdb made it: every value a pickle, the keys listed in `__keys__`."""
    environment = lmdb.open(str(path), subdir=False, map_size=2**28)
    keys = [str(index).encode("ascii") for index in range(len(records))]
    with environment.begin(write=True) as transaction:
        for key, record in zip(keys, records):
            transaction.put(key, pickle.dumps(record, protocol=protocol))
        transaction.put(b"__keys__", pickle.dumps(keys))
        transaction.put(b"__len__", pickle.dumps(len(keys)))
    environment.close()
