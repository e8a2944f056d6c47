"""What happens between a stored image and a model's input: evaluation transforms, and augmentation in training.

ImageNet: one Pillow image at a time, in the workers. CIFAR-10: a whole batch of 8-bit pixels at once, on the device.
Random numbers come from a generator and are drawn apart from their use, so that they can be fixed, sliced and tested.
The settings are those of the `robustness` library, which the published models were trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional

from univ.data.images import to_float

Channels = tuple[float, float, float]
Draws = dict[str, Tensor]

GREY = (0.2989, 0.587, 0.114)  # luminance of red, green, blue: ITU-R BT.601 as torchvision rounds it

# Eigenvalues and eigenvectors (columns) of the covariance of ImageNet's pixels (Krizhevsky et al. 2012, section 4.1).
PCA_EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
PCA_EIGENVECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """An RGB Pillow image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class ResizeAndCrop:
    """Resize the short side to `resize` (bilinear, anti-aliased), cut the central `crop` x `crop` pixels.

    Equal to torchvision's Resize and CenterCrop on Pillow images; on tensors, within 2/255 of that.
    """

    resize: int
    crop: int

    @property
    def name(self) -> str:
        return f"resize{self.resize}-crop{self.crop}"

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """RGB image (Pillow, or uint8 (3, H, W)) -> uint8 (3, crop, crop)."""
        width, height = image.size if isinstance(image, Image.Image) else image.shape[:0:-1]
        short = min(width, height)
        # the long side is truncated, the corner rounded half to even: as torchvision does
        width, height = int(self.resize * width / short), int(self.resize * height / short)
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        if isinstance(image, Tensor):
            return _resize_tensor(image, height, width)[:, top : top + self.crop, left : left + self.crop].contiguous()
        # Pillow's resize with a `box` would compute the crop alone, but takes it in float32: 1 % of pixels off by one
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        return to_uint8_tensor(image.crop((left, top, left + self.crop, top + self.crop)))


def _resize_tensor(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, height, width), bilinear and anti-aliased."""
    return functional.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)[0]


def imagenet_transform(image_size: int = 224, purpose: str = "similarity") -> ResizeAndCrop:
    """How ImageNet is seen without augmentation: short side 255 (similarity, inversion) or 256 (evaluation), crop 224.

    Models of another input size get both numbers in proportion.
    """
    short = 255 if purpose == "similarity" else 256
    return ResizeAndCrop(round(short * image_size / 224), image_size)


@dataclass(frozen=True)
class ImageNetDraw:
    """The random numbers of one augmented image."""

    box: tuple[int, int, int, int]  # left, top, right, bottom of the crop, pixels
    flip: bool
    jitter: tuple[tuple[int, float], ...]  # (0 brightness, 1 contrast, 2 saturation; factor), in order of application
    offset: Tensor  # (3,) added to red, green, blue of the image in [0, 1]


@dataclass(frozen=True)
class ImageNetAugmentation:
    """Random resized crop, horizontal flip, colour jitter and PCA lighting.

    The distributions are torchvision's RandomResizedCrop and ColorJitter. The lighting offset is returned, not added:
    it comes last, on floating point pixels, and `loaders` adds it on the device. It can take pixels out of [0, 1].
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)  # area of the crop / area of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    jitter: float = 0.1  # factors are uniform in 1 +- jitter
    lighting: float = 0.05  # standard deviation along each principal component

    def draw(self, width: int, height: int, generator: torch.Generator) -> ImageNetDraw:
        """Draw the parameters for an image of the given size."""
        uniform = torch.rand(48, generator=generator, dtype=torch.float64).tolist()
        box = self._crop_box(width, height, uniform[:40])
        flip, *factors = uniform[40:44]
        order = torch.randperm(3, generator=generator).tolist()
        jitter = tuple((adjustment, 1 + self.jitter * (2 * factors[adjustment] - 1)) for adjustment in order)
        alpha = self.lighting * torch.randn(3, generator=generator)
        return ImageNetDraw(box, flip < 0.5, jitter, PCA_EIGENVECTORS @ (alpha * PCA_EIGENVALUES))

    def _crop_box(self, width: int, height: int, uniform: list[float]) -> tuple[int, int, int, int]:
        """Up to ten tries (four numbers each) at a crop that fits, else the largest central one of allowed ratio."""
        low, high = (math.log(ratio) for ratio in self.ratio)
        for scale, ratio, x, y in zip(*[iter(uniform)] * 4):
            area = width * height * (self.scale[0] + scale * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + ratio * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, top, left + w, top + h
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = (width, height) if aspect == width / height else (width, round(width / aspect))
        if h > height:
            w, h = round(height * aspect), height
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def apply(self, image: Image.Image | Tensor, draw: ImageNetDraw) -> tuple[Tensor, Tensor]:
        """RGB image (Pillow, or uint8 (3, H, W)) -> uint8 (3, size, size) and the (3,) colour offset."""
        if isinstance(image, Tensor):
            return self._apply_to_tensor(image, draw), draw.offset
        image = image.crop(draw.box).resize((self.size, self.size), Image.Resampling.BILINEAR)
        if draw.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for adjustment, factor in draw.jitter:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[adjustment]
            image = enhance(image).enhance(factor)
        return to_uint8_tensor(image), draw.offset

    def _apply_to_tensor(self, image: Tensor, draw: ImageNetDraw) -> Tensor:
        left, top, right, bottom = draw.box
        image = _resize_tensor(image[:, top:bottom, left:right], self.size, self.size)
        if draw.flip:
            image = image.flip(2)
        order = torch.tensor([[adjustment for adjustment, _ in draw.jitter]])
        factor = torch.tensor([[factor for _, factor in sorted(draw.jitter)]])
        return (color_jitter(to_float(image[None]), order, factor)[0] * 255).round().to(torch.uint8)

    def __call__(self, image: Image.Image | Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw and apply."""
        width, height = image.size if isinstance(image, Image.Image) else image.shape[:0:-1]
        return self.apply(image, self.draw(width, height, generator))


@dataclass(frozen=True)
class SmallImageAugmentation:
    """Crop with padding, flip, colour jitter in random order and rotation, each drawn per image, for a whole batch.

    What torchvision's RandomCrop(side, padding=4), RandomHorizontalFlip, ColorJitter(.25, .25, .25) and
    RandomRotation(2) do one image at a time. Pixels stay floating point between the steps, where Pillow truncates to
    8 bits after each and so darkens by up to 4/255, 1.3/255 on average.
    """

    padding: int = 4  # zeros around the image, pixels
    jitter: float = 0.25  # factors are uniform in 1 +- jitter
    degrees: float = 2  # angles are uniform in +- degrees

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Parameters for `count` images; every tensor has one row per image."""

        def symmetric(*shape: int) -> Tensor:  # uniform in [-1, 1)
            return 2 * torch.rand(*shape, generator=generator) - 1

        return {
            "corner": torch.randint(2 * self.padding + 1, (count, 2), generator=generator),  # top, left
            "flip": torch.rand(count, generator=generator) < 0.5,
            "order": torch.rand(count, 3, generator=generator).argsort(dim=1),  # 0 brightness, 1 contrast, 2 saturation
            "factor": 1 + self.jitter * symmetric(count, 3),  # of brightness, contrast, saturation
            "angle": self.degrees * symmetric(count),  # degrees, counter-clockwise
        }

    def __call__(self, pixels: Tensor, draws: Draws) -> Tensor:
        """(B, 3, H, W) uint8 -> float32 in [0, 1]; `draws` lie on the same device."""
        images = to_float(crop_and_flip(pixels, draws["corner"], draws["flip"], self.padding))
        images = color_jitter(images, draws["order"], draws["factor"])
        return rotate(images, draws["angle"])


def crop_and_flip(images: Tensor, corner: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Surround images by `padding` zeros, cut each back to its size at its own corner, mirror those to be flipped.

    Args:
        images: (B, C, H, W).
        corner: (B, 2) top and left of the cut in the padded image, 0 to 2 * padding.
        flip: (B,) bool.
    """
    count, channels, height, width = images.shape
    device = images.device
    padded = functional.pad(images, [padding] * 4)
    rows = corner[:, :1] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, -1)
    columns = corner[:, 1:] + torch.where(flip[:, None], columns.flip(1), columns)
    image = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def color_jitter(images: Tensor, order: Tensor, factor: Tensor) -> Tensor:
    """Brightness, contrast and saturation, in each image's own order.

    All three blend the image with another one, f * image + (1 - f) * other, and clamp to [0, 1]: with black, with the
    mean of the image's grey version, with the grey version itself.

    Args:
        images: (B, 3, H, W) in [0, 1].
        order: (B, 3) the adjustment (0 brightness, 1 contrast, 2 saturation) made first, second, third.
        factor: (B, 3) of brightness, contrast and saturation; 1 changes nothing.
    """
    weights = images.new_tensor(GREY)[None, :, None, None]
    for step in range(3):
        adjustment = order[:, step]
        grey = (images * weights).sum(dim=1, keepdim=True)
        others = torch.stack([torch.zeros_like(grey), grey.mean(dim=(2, 3), keepdim=True).expand_as(grey), grey])
        other = others[adjustment, torch.arange(len(images), device=images.device)]
        f = factor.gather(1, adjustment[:, None])[:, :, None, None]
        images = torch.lerp(other, images, f).clamp(0, 1)
    return images


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate each image about its centre, nearest pixel, black where nothing was.

    Args:
        images: (B, C, H, W).
        angle: (B,) degrees, counter-clockwise.
    """
    height, width = images.shape[-2:]
    radians = torch.deg2rad(angle)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # affine_grid's coordinates run from -1 to 1 along both axes, whatever the sides
    matrix = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)
