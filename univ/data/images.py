"""The two kinds of images: held as one tensor of 8-bit pixels, or encoded (JPEG, PNG …) and decoded when asked for.

Both give out float32 images in [0, 1].
"""

from __future__ import annotations

import copy
import hashlib
import io
import operator
import stat
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from univ import files
from univ.errors import InputError

HASHED_IMAGES = 1024  # images of a tensor at a time: it may be a file larger than memory


def to_float(pixels: Tensor) -> Tensor:
    """8-bit pixels as float32 in [0, 1]; floating point pixels as float32, their values kept."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def resize_and_crop(pixels: Tensor, resize: int, crop: int) -> Tensor:
    """Enlarge square images bilinearly to side `resize` and cut the central `crop` pixels: uint8 to uint8.

    Args:
        pixels: (B, 3, H, H) uint8 with H <= resize. Shrinking would need an anti-aliasing filter, which this is not.

    Returns:
        (B, 3, crop, crop) uint8, rounded; within 1 of what Pillow gives, which rounds after each axis.
    """
    side = pixels.shape[-1]
    if side != resize:
        assert side < resize, "resize_and_crop only enlarges"
        floats = functional.interpolate(pixels.float(), size=(resize, resize), mode="bilinear", align_corners=False)
        pixels = floats.round_().clamp_(0, 255).to(torch.uint8)
    corner = round((resize - crop) / 2)  # as torchvision's CenterCrop
    return pixels[..., corner : corner + crop, corner : corner + crop]


class TensorImages:
    """Images held as one tensor; a data set that needs no worker processes and can live on the device.

    Args:
        pixels: (N, 3, H, W), uint8, or floating point in [0, 1].
        labels: (N,) integers; None where the images have none (they read -1).
        name: identifies data set and part in the fingerprint, e.g. "digits/val".
        resize, crop: enlarge to `resize` and cut to `crop` when images are given out (uint8 only); None leaves them.
        augment: how `loaders.TrainingBatches` augments a batch; ignored elsewhere.
        path: the file that `pixels` is a memory map of, if it is.

    Raises:
        ValueError: pixels of another shape or type, or not as many labels as images.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor | None = None,
        *,
        name: str,
        resize: int | None = None,
        crop: int | None = None,
        augment: Callable | None = None,
        path: Path | None = None,
    ) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"{name}: images must be (N, 3, H, W), got {tuple(pixels.shape)}")
        if pixels.dtype != torch.uint8 and not pixels.dtype.is_floating_point:
            raise ValueError(f"{name}: images must be uint8 or floating point, got {pixels.dtype}")
        if labels is None:
            labels = torch.full((len(pixels),), -1)
        if labels.shape != (len(pixels),):
            raise ValueError(f"{name}: {len(pixels)} images but labels of shape {tuple(labels.shape)}")
        self.pixels = pixels
        self.labels = labels.to(torch.int64)
        self.name = name
        self.augment = augment
        self._resize, self._crop = resize, crop or resize
        self._path = path
        self._resident: dict[torch.device, TensorImages] = {}

    @property
    def transform_name(self) -> str:
        """What happens between the stored pixels and the images given out."""
        if self._resize is None:
            return "none"
        return f"resize{self._resize}" if self._crop == self._resize else f"resize{self._resize}-crop{self._crop}"

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits from name, shape, type, transform, all labels and all pixels.

        Pixels in memory take 2 s per GB; those of a file are read once, as long as it does not change.
        """
        digest = hashlib.sha256()
        digest.update(f"{self.name} {tuple(self.pixels.shape)} {self.pixels.dtype} {self.transform_name}".encode())
        digest.update(self.labels.cpu().numpy().tobytes())
        if self._path is not None:
            digest.update(files.content_hash(self._path).encode())
        else:
            for chunk in self.pixels.split(HASHED_IMAGES):
                digest.update(chunk.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image `index`, float32 (3, H, W) in [0, 1], and its label; negative indices count from the end."""
        position = range(len(self))[operator.index(index)]
        return self.floats(slice(position, position + 1))[0], int(self.labels[position])

    def uint8(self, positions: Tensor | slice) -> Tensor:
        """The images at `positions` as they are given out, still 8-bit where they are stored so."""
        pixels = self.pixels[positions]
        return pixels if self._resize is None else resize_and_crop(pixels, self._resize, self._crop)

    def floats(self, positions: Tensor | slice) -> Tensor:
        """The images at `positions`: float32 (B, 3, H, W) in [0, 1], on the device the pixels are on."""
        return to_float(self.uint8(positions))

    def to(self, device: torch.device | str) -> TensorImages:
        """The same images with pixels and labels on `device`; copied there once, however often it is asked for."""
        device = torch.device(device)
        if device == self.pixels.device:
            return self
        if device not in self._resident:
            moved = self._resident[device] = copy.copy(self)
            moved.pixels, moved.labels, moved._resident = self.pixels.to(device), self.labels.to(device), {}
        return self._resident[device]


# --- encoded images --------------------------------------------------------------------------------------------------

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # ImageFolder's
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # theirs; others that Pillow knows, such as EPS, run programs
MAX_PIXELS = 89_478_485  # from here on Pillow warns of a bomb: 256 MB decoded
MAX_ASPECT = 500  # long side / short side: resized to a short side of 256, an image has at most 33 million pixels
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below, in one line


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        InputError: it cannot be read, or is no regular file (a pipe or a device may never end).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"cannot read {path}: it is not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _open_image(encoded: bytes) -> Image.Image:
    """An image file's bytes as a Pillow image of which only the header is read.

    Raises:
        UnidentifiedImageError: none of FORMATS.
        ValueError, Image.DecompressionBombError: more pixels than fit into memory, now or resized.
    """
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels: more than {MAX_PIXELS:,}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{width:,} x {height:,} pixels: one side is more than {MAX_ASPECT} times the other")
    return image


def why_not_decoded(error: Exception) -> str:
    """What an exception of a decoder says about an image; they raise a dozen types on damaged data."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return f"damaged image ({str(error).partition(chr(10))[0] or type(error).__name__})"


def decode_pillow(encoded: bytes) -> Image.Image:
    """An image file's bytes as an RGB Pillow image; grey, CMYK and palette images are converted as torchvision does."""
    return _open_image(encoded).convert("RGB")


def decode_fast(encoded: bytes) -> Tensor:
    """An image file's bytes as uint8 (3, H, W). JPEG files of colours or grey skip Pillow, with the same pixels."""
    from torchvision.io import ImageReadMode, decode_jpeg  # a second to import, and needed here only
    from torchvision.transforms.functional import pil_to_tensor

    image = _open_image(encoded)
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        return decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)
    return pil_to_tensor(image.convert("RGB"))


class EncodedImages(ABC):
    """Images stored as the bytes of image files. Subclasses say where the bytes and the labels come from.

    Args:
        name: identifies data set and part in the fingerprint, e.g. "imagenet/val".
        transform: RGB image -> uint8 (3, H, W); its `name` enters the fingerprint. None: only records and labels are
            wanted.
        augment: (RGB image, generator) -> (uint8 (3, H, W), (3,) colour offset); what training sees instead.
        fast: decode and resize with torch in place of Pillow, nearly twice as fast (`scripts/benchmark.py loading`).
            Some pixels (usually 1 in 100) then differ by 1/255, a few by 2/255, and the fingerprint is another one.
    """

    def __init__(
        self, name: str, transform: Callable | None, augment: Callable | None = None, *, fast: bool = False
    ) -> None:
        self.name, self.transform, self.augment, self.fast = name, transform, augment, fast

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """(N,) int64, read without decoding an image."""

    @abstractmethod
    def record(self, index: int) -> tuple[bytes, int]:
        """The stored file's bytes and the label of image `index`, 0 <= index < N."""

    @abstractmethod
    def location(self, index: int) -> str:
        """Where image `index` is stored, for messages."""

    @property
    def transform_name(self) -> str:
        """What happens between the decoded image and the tensor given out."""
        return "none" if self.transform is None else self.transform.name + self.fast * "-fast"

    @abstractmethod
    def stored_in(self) -> Sequence[Path]:
        """The files that hold the images."""

    def labels_apart(self) -> Tensor | None:
        """(N,) labels that do not come from `stored_in`; None where there are none."""
        return None

    def labels_together(self) -> Tensor | None:
        """(N,) labels that are stored with the images, but not only beside each."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits from name, length, transform, and all stored image files with their labels.

        They are read once, at the speed of the disk or 0.5 GB/s, as long as the files that hold them do not change.
        """
        labels = self.labels_apart()
        apart = "" if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest()
        content = files.kept_hash(self.stored_in(), f"{len(self)} records {apart}", self._content)
        return hashlib.sha256(f"{self.name} {len(self)} {self.transform_name} {content}".encode()).hexdigest()[:16]

    def _content(self) -> str:
        """The same for the same images and labels, however they are stored."""
        digest, labels = hashlib.sha256(), torch.empty(len(self), dtype=torch.int64)
        for index in range(len(self)):
            encoded, labels[index] = self.record(index)
            digest.update(f"{len(encoded)} ".encode())
            digest.update(encoded)
        digest.update(labels.numpy().tobytes())
        together = self.labels_together()
        if together is not None and not together.equal(labels):
            digest.update(together.numpy().tobytes())
        return digest.hexdigest()

    def _decoded(self, index: int) -> tuple[Image.Image | Tensor, int]:
        """Image `index` in RGB before its transform, Pillow's or uint8 (3, H, W) if `fast`, and its label.

        Raises:
            IndexError: out of range; negative indices count from the end, as in a list.
            InputError: the stored bytes are no image, a damaged or a monstrous one; names file and record.
        """
        position = range(len(self))[operator.index(index)]
        encoded, label = self.record(position)
        try:
            return (decode_fast if self.fast else decode_pillow)(encoded), label
        except Exception as error:
            raise InputError(f"{self.location(position)}: {why_not_decoded(error)}") from error

    def uint8(self, index: int) -> tuple[Tensor, int]:
        """Image `index` after the transform, uint8 (3, H, W), and its label."""
        image, label = self._decoded(index)
        return self.transform(image), label

    def augmented(self, index: int, generator: Callable[[], torch.Generator]) -> tuple[Tensor, ...]:
        """Image `index` as training sees it: uint8 (3, H, W), label, and the colour offset if there is one.

        Args:
            generator: makes the generator of this image's random numbers.
        """
        if self.augment is None:
            return self.uint8(index)
        image, label = self._decoded(index)
        pixels, offset = self.augment(image, generator())
        return pixels, label, offset

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image `index`, float32 (3, H, W) in [0, 1], and its label."""
        pixels, label = self.uint8(index)
        return to_float(pixels), label
