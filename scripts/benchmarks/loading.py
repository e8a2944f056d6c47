"""Reading ImageNet from an LMDB file, images per second: decode, resize, crop; ours beside its alternatives.

The first table is one core's work on one image at a time, with what each alternative does to the pixels. The second is
whole batches on the device, with worker processes: ours beside torchvision's transforms in a plain DataLoader, which
hand over floating point images. Without --data-path the images are photographs that scikit-learn ships, cut and
compressed to the sizes usual in ImageNet.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from univ import cli
from univ.data.images import EncodedImages, decode_fast, decode_pillow
from univ.data.lmdb import ImageFolderLMDB
from univ.data.loaders import batches
from univ.data.transforms import imagenet_transform
from univ.utils.folder2lmdb import write_lmdb

from .common import alternate, environment_line, markdown_table

RESIZE = imagenet_transform()
SIZES = (
    [(500, 375)] * 8 + [(500, 333)] * 5 + [(375, 500)] * 4 + [(333, 500)] * 2 + [(640, 480), (1024, 768), (300, 225)]
)


# --- one image, decoded and cropped to uint8 (3, 224, 224) -----------------------------------------------------------


def torchvision_recipe(encoded: bytes) -> Tensor:
    """The usual transforms, which end in floating point."""
    recipe = transforms.Compose([transforms.Resize(255), transforms.CenterCrop(224), transforms.ToTensor()])
    return recipe(decode_pillow(encoded))


def ours(encoded: bytes) -> Tensor:
    """Stays 8-bit; the loader divides by 255 on the device."""
    return RESIZE(decode_pillow(encoded))


def torch_decode_pillow_resize(encoded: bytes) -> Tensor:
    return RESIZE(Image.fromarray(decode_fast(encoded).permute(1, 2, 0).numpy()))


def pillow_draft(encoded: bytes) -> Tensor:
    """libjpeg decodes at 1/2, 1/4 or 1/8 of the size where that is still large enough."""
    image = Image.open(io.BytesIO(encoded))
    scale = 255 / min(image.size)
    image.draft("RGB", (int(image.width * scale), int(image.height * scale)))
    return RESIZE(image.convert("RGB"))


def ours_fast(encoded: bytes) -> Tensor:
    """What `fast=True` does."""
    return RESIZE(decode_fast(encoded))


PATHS: dict[str, Callable[[bytes], Tensor]] = {
    "Pillow, torchvision transforms to float": torchvision_recipe,
    "Pillow, 8-bit (ours, default)": ours,
    "torch decodes, Pillow resizes": torch_decode_pillow_resize,
    "Pillow draft mode": pillow_draft,
    "torch decodes and resizes (ours, fast)": ours_fast,
}


# --- whole batches ---------------------------------------------------------------------------------------------------


class _PlainDataset(Dataset):
    """The usual way: floating point images from the worker processes."""

    def __init__(self, images: EncodedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        encoded, label = self.images.record(index)
        return torchvision_recipe(encoded), label


def _read_all(loader: object, device: torch.device) -> None:
    for images, labels in loader:
        images.to(device), labels.to(device)


@contextlib.contextmanager
def _sample_lmdb(count: int) -> Iterator[Path]:
    """An LMDB file of photographs of the sizes usual in ImageNet, for the time of the benchmark."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)

    def records() -> Iterator[tuple[bytes, int]]:
        for index in range(count):
            photograph, (width, height) = photographs[index % 2], SIZES[index % len(SIZES)]
            scale = rng.uniform(0.7, 1) * min(photograph.width / width, photograph.height / height)
            cut = int(width * scale), int(height * scale)
            left, top = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(photograph.size, cut))
            image = photograph.crop((left, top, left + cut[0], top + cut[1])).resize((width, height))
            file = io.BytesIO()
            image.save(file, "JPEG", quality=95)
            yield file.getvalue(), index % 10

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.lmdb"
        write_lmdb(path, records(), [str(label) for label in range(10)])
        yield path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-path", type=cli.existing_file, help="LMDB file of ImageNet (default: sample photographs)"
    )
    parser.add_argument("-n", "--num-images", type=cli.positive_int, default=256, help="images read per repeat")
    parser.add_argument("-b", "--batch", type=cli.positive_int, default=64, help="batch size of the second table")
    parser.add_argument("--repeats", type=cli.positive_int, default=5, help="repeats; medians are reported")


def _pixels_table(images: EncodedImages, count: int, repeats: int) -> str:
    encoded = [images.record(index)[0] for index in range(count)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker process
    runs = {name: lambda path=path: [path(image) for image in encoded] for name, path in PATHS.items()}
    seconds = alternate(runs, repeats=repeats, device=torch.device("cpu"))
    torch.set_num_threads(threads)
    exact = [ours(image).int() for image in encoded]
    rows = []
    for name, path in PATHS.items():
        differences = []
        for image, reference in zip(encoded, exact):
            pixels = path(image)
            pixels = pixels if pixels.dtype == torch.uint8 else (pixels * 255).round()
            differences.append((pixels.int() - reference).abs())
        changed = torch.stack([difference.ne(0).float().mean() for difference in differences]).mean().item()
        largest = max(int(difference.max()) for difference in differences)
        first = seconds[next(iter(PATHS))]
        rows.append(
            [
                name,
                f"{count / seconds[name]:.0f}",
                f"{first / seconds[name]:.2f}",
                f"{100 * changed:.2f} %",
                f"{largest}",
            ]
        )
    headers = ["one core", "images/s", "relative", "pixels that differ", "by at most (of 255)"]
    return markdown_table(headers, rows)


def _batches_table(path: Path, count: int, args: argparse.Namespace) -> str:
    exact, fast = (ImageFolderLMDB(path, RESIZE, fast=fast) for fast in (False, True))
    indices = torch.arange(count)
    plain = torch.utils.data.Subset(_PlainDataset(exact), indices.tolist())
    options = {"num_workers": args.workers, "pin_memory": args.device.type == "cuda"}
    runs = {
        "torchvision transforms, DataLoader": lambda: _read_all(DataLoader(plain, args.batch, **options), args.device),
        **{
            name: lambda images=images: _read_all(
                batches(images, args.batch, device=args.device, workers=args.workers, indices=indices), args.device
            )
            for name, images in {"ours, default": exact, "ours, fast": fast}.items()
        },
    }
    seconds = alternate(runs, repeats=args.repeats, device=args.device)
    first = next(iter(seconds.values()))
    rows = [[name, f"{count / value:.0f}", f"{first / value:.2f}"] for name, value in seconds.items()]
    return markdown_table([f"{args.workers} workers, batches of {args.batch}", "images/s", "relative"], rows)


def run(args: argparse.Namespace) -> None:
    """Print both tables."""
    with contextlib.ExitStack() as stack:
        path = args.data_path or stack.enter_context(_sample_lmdb(args.num_images))
        images = ImageFolderLMDB(path, RESIZE)
        count = min(args.num_images, len(images))
        kilobytes = np.mean([len(images.record(index)[0]) for index in range(count)]) / 1e3
        print(f"{count} JPEG files of {kilobytes:.0f} kB on average. {environment_line(args.device)}\n")
        print(_pixels_table(images, count, args.repeats), end="\n\n")
        print(_batches_table(path, count, args))
