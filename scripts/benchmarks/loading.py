"""Reading ImageNet from an LMDB file, images per second: decode, resize, crop; ours beside its alternatives.

The first table is one core's work on one image at a time, with what each alternative does to the pixels. The second is
whole batches on the device, with worker processes: ours beside torchvision's transforms in a plain DataLoader, which
hand over floating point images. Without --data-path the images are photographs that scikit-learn ships, cut and
compressed to the sizes usual in ImageNet.
"""

import argparse
import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from univ import cli
from univ.data.images import decode_fast, decode_pillow
from univ.data.lmdb import ImageFolderLMDB, write_lmdb
from univ.data.loaders import Batches
from univ.data.transforms import imagenet_transform

from .common import alternate, environment_line, markdown_table

RESIZE = imagenet_transform()
TORCHVISION = transforms.Compose([transforms.Resize(255), transforms.CenterCrop(224), transforms.ToTensor()])
SIZES = (
    [(500, 375)] * 8 + [(500, 333)] * 5 + [(375, 500)] * 4 + [(333, 500)] * 2 + [(640, 480), (1024, 768), (300, 225)]
)


def torchvision_recipe(encoded: bytes) -> Tensor:
    """The usual transforms, which end in floating point."""
    return TORCHVISION(decode_pillow(encoded))


def pillow_draft(encoded: bytes) -> Tensor:
    """libjpeg decodes at 1/2, 1/4 or 1/8 of the size where that is still large enough."""
    image = Image.open(io.BytesIO(encoded))
    scale = 255 / min(image.size)
    image.draft("RGB", (int(image.width * scale), int(image.height * scale)))
    return RESIZE(image.convert("RGB"))


OURS = "Pillow, 8-bit (ours, default)"  # the loader divides by 255 on the device
PATHS: dict[str, Callable[[bytes], Tensor]] = {  # an image's file -> (3, 224, 224), uint8 but for the first
    "Pillow, torchvision transforms to float": torchvision_recipe,
    OURS: lambda encoded: RESIZE(decode_pillow(encoded)),
    "torch decodes, Pillow resizes": lambda encoded: RESIZE(
        Image.fromarray(decode_fast(encoded).permute(1, 2, 0).numpy())
    ),
    "Pillow draft mode": pillow_draft,
    "torch decodes and resizes (ours, fast)": lambda encoded: RESIZE(decode_fast(encoded)),
}


def _read_all(loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
    for images, labels in loader:
        images.to(device), labels.to(device)


@contextlib.contextmanager
def _sample_lmdb(count: int) -> Iterator[Path]:
    """An LMDB file of photographs of the sizes usual in ImageNet, for the time of the benchmark."""
    from sklearn.datasets import load_sample_images

    photographs = itertools.cycle([Image.fromarray(image) for image in load_sample_images().images])
    rng = np.random.default_rng(0)

    def records() -> Iterator[tuple[bytes, int]]:
        for index, photograph, (width, height) in zip(range(count), photographs, itertools.cycle(SIZES)):
            scale = rng.uniform(0.7, 1) * min(photograph.width / width, photograph.height / height)
            cut = int(width * scale), int(height * scale)
            left, top = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(photograph.size, cut))
            image, file = photograph.crop((left, top, left + cut[0], top + cut[1])), io.BytesIO()
            image.resize((width, height)).save(file, "JPEG", quality=95)
            yield file.getvalue(), index % 10

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.lmdb"
        write_lmdb(path, records(), [str(label) for label in range(10)])
        yield path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, text = parser.add_argument, "LMDB file of ImageNet (default: sample photographs)"
    add("--data-path", type=cli.existing_file, help=text)
    add("-n", "--num-images", type=cli.positive_int, default=256, help="images read per repeat")
    add("-b", "--batch", type=cli.positive_int, default=64, help="batch size of the second table")
    add("--repeats", type=cli.positive_int, default=5, help="repeats; medians are reported")


def _pixels_table(encoded: list[bytes], repeats: int) -> str:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker process
    contenders = {name: lambda path=path: [path(image) for image in encoded] for name, path in PATHS.items()}
    seconds = alternate(contenders, repeats=repeats, device=torch.device("cpu"))
    torch.set_num_threads(threads)
    exact, rows = [PATHS[OURS](image).int() for image in encoded], []
    for name, path in PATHS.items():
        pixels = map(path, encoded)
        pixels = (image if image.dtype == torch.uint8 else (image * 255).round() for image in pixels)
        differences = [(image.int() - reference).abs() for image, reference in zip(pixels, exact)]
        changed = torch.stack([difference.ne(0).float().mean() for difference in differences]).mean().item()
        speed = f"{len(encoded) / seconds[name]:.0f}", f"{next(iter(seconds.values())) / seconds[name]:.2f}"
        rows.append((name, *speed, f"{100 * changed:.2f} %", max(int(difference.max()) for difference in differences)))
    return markdown_table(["one core", "images/s", "relative", "pixels that differ", "by at most (of 255)"], rows)


def _batches_table(path: Path, count: int, args: argparse.Namespace) -> str:
    exact, fast = (ImageFolderLMDB(path, RESIZE, fast=fast) for fast in (False, True))
    usual = torch.utils.data.Subset(ImageFolderLMDB(path, TORCHVISION), range(count))
    options = {"num_workers": args.workers, "pin_memory": args.device.type == "cuda"}

    def ours(images: ImageFolderLMDB) -> None:
        chosen = torch.arange(count)
        _read_all(Batches(images, args.batch, device=args.device, workers=args.workers, indices=chosen), args.device)

    contenders = {
        "torchvision transforms, DataLoader": lambda: _read_all(DataLoader(usual, args.batch, **options), args.device),
        "ours, default": lambda: ours(exact),
        "ours, fast": lambda: ours(fast),
    }
    seconds = alternate(contenders, repeats=args.repeats, device=args.device)
    first = next(iter(seconds.values()))
    rows = [(name, f"{count / value:.0f}", f"{first / value:.2f}") for name, value in seconds.items()]
    return markdown_table([f"{args.workers} workers, batches of {args.batch}", "images/s", "relative"], rows)


def run(args: argparse.Namespace) -> None:
    with contextlib.ExitStack() as stack:
        path = args.data_path or stack.enter_context(_sample_lmdb(args.num_images))
        images = ImageFolderLMDB(path, RESIZE)
        encoded = [images.record(index)[0] for index in range(min(args.num_images, len(images)))]
        kilobytes = np.mean([len(image) for image in encoded]) / 1e3
        print(f"{len(encoded)} JPEG files of {kilobytes:.0f} kB on average. {environment_line(args.device)}\n")
        print(_pixels_table(encoded, args.repeats), end="\n\n")
        print(_batches_table(path, len(encoded), args))
