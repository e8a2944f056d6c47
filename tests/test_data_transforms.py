"""Our transforms against torchvision's on the same parameters, and our draws against torchvision's distributions."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

from univ.data.loaders import stream
from univ.data.transforms import (
    PCA_EIGENVALUES,
    PCA_EIGENVECTORS,
    ImageNetAugmentation,
    ImageNetDraw,
    ResizeAndCrop,
    SmallImageAugmentation,
    color_jitter,
    crop_and_flip,
    imagenet_transform,
    rotate,
)


def photo(width, height, seed=0):
    """A picture with smooth areas, edges and noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


SIZES = [
    (500, 375),
    (375, 500),
    (255, 300),
    (256, 256),
    (257, 255),
    (224, 231),
    (90, 61),
    (640, 481),
    (1021, 333),
    (300, 1999),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resize", [255, 256])
def test_resize_and_crop_is_torchvisions(size, resize):
    image = photo(*size)
    theirs = T.Compose([T.Resize(resize), T.CenterCrop(224), T.PILToTensor()])(image)
    assert torch.equal(ResizeAndCrop(resize, 224)(image), theirs)


def test_resize_and_crop_is_torchvisions_on_many_sizes():
    rng = np.random.default_rng(1)
    for width, height in rng.integers(40, 700, (40, 2)):
        image = photo(width, height)
        theirs = T.Compose([T.Resize(64), T.CenterCrop(56), T.PILToTensor()])(image)
        assert torch.equal(ResizeAndCrop(64, 56)(image), theirs), (width, height)


def test_similarity_and_evaluation_differ_in_the_short_side():
    assert imagenet_transform().name == "resize255-crop224"
    assert imagenet_transform(purpose="evaluation").name == "resize256-crop224"
    assert imagenet_transform(384, "evaluation") == ResizeAndCrop(439, 384)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_imagenet_augmentation_is_torchvisions(flip, order):
    image = photo(320, 240)
    jitter = tuple((kind, (0.93, 1.08, 0.95)[kind]) for kind in order)
    draw = ImageNetDraw((30, 20, 251, 181), flip, jitter, torch.tensor([0.01, -0.02, 0.03]))
    pixels, offset = ImageNetAugmentation().apply(image, draw)

    theirs = F.resized_crop(image, 20, 30, 161, 221, [224, 224])
    theirs = F.hflip(theirs) if flip else theirs
    for kind, factor in jitter:
        theirs = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[kind](theirs, factor)
    assert torch.equal(pixels, F.pil_to_tensor(theirs))
    assert torch.equal(offset, draw.offset)


def test_imagenet_draws_are_distributed_as_torchvisions():
    width, height, n = 500, 375, 2000
    ours = [ImageNetAugmentation().draw(width, height, stream(i)) for i in range(n)]
    boxes = np.array([draw.box for draw in ours])
    torch.manual_seed(0)
    image = photo(width, height)
    theirs = np.array([T.RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(n)])
    ours_tlhw = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1)
    for quantile in (0.1, 0.5, 0.9):  # of top, left, height, width; standard error about 5 pixels
        assert np.abs(np.quantile(ours_tlhw, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)).max() < 25
    assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
    assert np.mean([draw.flip for draw in ours]) == pytest.approx(0.5, abs=0.05)

    factors = np.array([[factor for _, factor in sorted(draw.jitter)] for draw in ours])
    assert factors.min() >= 0.9 and factors.max() <= 1.1
    assert factors.mean(axis=0) == pytest.approx([1] * 3, abs=0.006)
    assert factors.std(axis=0) == pytest.approx([0.2 / 12**0.5] * 3, rel=0.05)
    orders = {tuple(kind for kind, _ in draw.jitter) for draw in ours}
    assert len(orders) == 6

    # covariance of the offset: 0.05^2 V diag(eigenvalues^2) V'
    offsets = torch.stack([draw.offset for draw in ours])
    expected = 0.05**2 * PCA_EIGENVECTORS @ torch.diag(PCA_EIGENVALUES**2) @ PCA_EIGENVECTORS.T
    assert torch.allclose(offsets.T @ offsets / n, expected, atol=0.1 * expected.max().item())


@pytest.mark.parametrize(("size", "expected"), [((4000, 10), (1993, 0, 2006, 10)), ((10, 4000), (0, 1993, 10, 2006))])
def test_a_crop_that_never_fits_is_the_central_one(size, expected):
    # hardly any crop of ratio 3/4 to 4/3 fits a 4000 x 10 image: torchvision's fallback is 13 x 10 from its centre
    augmentation = ImageNetAugmentation(scale=(0.9, 1))
    left, top, right, bottom = augmentation.draw(*size, stream(0)).box
    torch.manual_seed(0)
    i, j, h, w = T.RandomResizedCrop.get_params(photo(*size), [0.9, 1], [3 / 4, 4 / 3])
    assert (left, top, right, bottom) == (j, i, j + w, i + h) == expected


def test_imagenet_augmentation_depends_on_its_generator_alone():
    augmentation, image = ImageNetAugmentation(), photo(300, 260)
    (first, offset), (second, same_offset) = (augmentation(image, stream("image", 0, 3, 17)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(offset, same_offset)
    assert not torch.equal(augmentation(image, stream("image", 0, 4, 17))[0], first)


@pytest.fixture(scope="module")
def pixels():
    return torch.stack([F.pil_to_tensor(photo(32, 32, seed)) for seed in range(12)])


@pytest.fixture(scope="module")
def draws():
    return SmallImageAugmentation().draw(12, torch.Generator().manual_seed(0))


def test_batched_crop_and_flip_is_torchvisions(pixels, draws):
    ours = crop_and_flip(pixels, draws["corner"], draws["flip"], 4)
    assert ours.dtype == torch.uint8
    for image, result, (top, left), flip in zip(pixels, ours, draws["corner"].tolist(), draws["flip"]):
        theirs = F.crop(F.pad(image, [4]), top, left, 32, 32)
        assert torch.equal(result, F.hflip(theirs) if flip else theirs)


def test_batched_jitter_is_torchvisions(pixels, draws):
    images = pixels.float() / 255
    ours = color_jitter(images, draws["order"], draws["factor"])
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for image, result, order, factor in zip(images, ours, draws["order"].tolist(), draws["factor"].tolist()):
        for kind in order:
            image = adjust[kind](image, factor[kind])
        assert torch.allclose(result, image, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (32, 20), (17, 32)])
def test_batched_rotation_is_torchvisions(pixels, shape):
    images = pixels[..., : shape[0], : shape[1]].float() / 255
    angles = torch.linspace(-40, 37.3, len(images))
    for image, result, angle in zip(images, rotate(images, angles), angles.tolist()):
        assert torch.equal(result, F.rotate(image, angle, InterpolationMode.NEAREST))


@pytest.mark.parametrize("rotated", [False, True])
def test_whole_augmentation_is_what_pillow_gives_image_by_image(pixels, draws, rotated):
    draws = draws | {"angle": draws["angle"] * rotated}
    ours = SmallImageAugmentation()(pixels, draws)
    assert ours.dtype == torch.float32 and ours.min() >= 0 and ours.max() <= 1
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for number, pixel in enumerate(pixels):
        (top, left), flip = draws["corner"][number].tolist(), draws["flip"][number]
        image = F.crop(F.pad(F.to_pil_image(pixel), [4]), top, left, 32, 32)
        image = F.hflip(image) if flip else image
        for kind in draws["order"][number].tolist():
            image = adjust[kind](image, draws["factor"][number, kind].item())
        image = F.rotate(image, draws["angle"][number].item(), InterpolationMode.NEAREST)
        difference = 255 * (F.to_tensor(image) - ours[number]).abs()
        # a rotated pixel whose source lies between two may take the other one: few do
        assert difference.quantile(0.97 if rotated else 1.0) < 4


def test_small_image_draws_have_the_stated_ranges():
    draws = SmallImageAugmentation().draw(4000, torch.Generator().manual_seed(0))
    assert draws["corner"].unique().tolist() == list(range(9))
    assert draws["flip"].float().mean() == pytest.approx(0.5, abs=0.03)
    assert draws["factor"].aminmax() == pytest.approx((0.75, 1.25), abs=1e-3)
    assert draws["angle"].aminmax() == pytest.approx((-2, 2), abs=5e-3)
    assert len(draws["order"].unique(dim=0)) == 6


def test_neutral_draws_change_nothing(pixels):
    n = len(pixels)
    neutral = {
        "corner": torch.full((n, 2), 4),
        "flip": torch.zeros(n, dtype=torch.bool),
        "order": torch.tensor([[0, 1, 2]]).expand(n, -1),
        "factor": torch.ones(n, 3),
        "angle": torch.zeros(n),
    }
    assert torch.allclose(SmallImageAugmentation()(pixels, neutral), pixels.float() / 255, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batched_augmentation_on_the_device(pixels, draws):
    ours = SmallImageAugmentation()(pixels.cuda(), {name: draw.cuda() for name, draw in draws.items()})
    on_cpu = SmallImageAugmentation()(pixels, draws)
    assert ((ours.cpu() - on_cpu).abs() > 1e-5).float().mean() < 0.01  # a rotation may round to a neighbouring pixel


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tensors_are_resized_within_one_of_pillow(size):
    image = photo(*size)
    ours = ResizeAndCrop(255, 224)(F.pil_to_tensor(image))
    difference = (ours.int() - ResizeAndCrop(255, 224)(image).int()).abs()
    assert ours.shape == (3, 224, 224) and difference.max() <= 1 and difference.float().mean() < 0.3


def test_tensors_are_augmented_as_pillow_images():
    image, augmentation = photo(320, 240), ImageNetAugmentation()
    for seed in range(8):
        (ours, offset), (pillow, same_offset) = (
            augmentation(kind, stream(seed)) for kind in (F.pil_to_tensor(image), image)
        )
        difference = (ours.int() - pillow.int()).abs()
        assert torch.equal(offset, same_offset)
        assert difference.max() <= 5 and difference.float().mean() < 2  # Pillow truncates after each adjustment
