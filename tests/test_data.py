"""Data sets by name, digits, images held as a tensor, and batches of them."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from univ import data
from univ.data.images import TensorImages, resize_and_crop
from univ.data.loaders import Batches, TrainingBatches, stream
from univ.errors import InputError
from univ.models import ARCHS


@pytest.fixture(scope="module")
def digits():
    return data.open_training("digits")


def numbered(n=50, size=4, augment=None):
    """n images, every pixel of image i being i: a batch shows which images are in it."""
    pixels = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, size, size).contiguous()
    return TensorImages(pixels, torch.arange(n), name="numbered", augment=augment)


class AddNoise:
    """An augmentation whose draws can be read off the pixels."""

    def draw(self, count, generator):
        return {"noise": torch.rand(count, generator=generator)}

    def __call__(self, images, draws):
        return images + draws["noise"][:, None, None, None]


@pytest.mark.parametrize("dataset", data.DATASETS.values(), ids=list(data.DATASETS))
def test_table_is_complete(dataset):
    assert dataset.image_size in (32, 224)
    assert (dataset.mean is None) == (dataset.std is None) == (dataset.architectures is None)
    assert dataset.architectures is None or dataset.architectures in ARCHS
    assert dataset.inverted_path.as_posix() == f"data/{dataset.name}/inverted"


KNOWN = "choose from imagenet, imagenet100, imagenet50, cifar10, digits"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: data.open_images("mnist"), f"unknown data set 'mnist'; {KNOWN}, sat6"),
        (
            lambda: data.open_images("snli"),
            f"snli is a data set of sentences, .*; {KNOWN}, sat6",
        ),
        (lambda: data.open_training("sat6"), f"no models are trained on 'sat6': {KNOWN}, or folder:PATH$"),
        (lambda: data.open_images("digits", "test"), "unknown part 'test' of digits; choose from train, val"),
        (lambda: data.open_images("digits", purpose="training"), "choose from similarity, evaluation"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(ask, message):
    with pytest.raises(InputError, match=message):
        ask()


def test_digits_are_the_same_split_for_ever(digits):
    train, val = digits
    assert (len(train), len(val)) == (1437, 360)
    assert train.pixels.shape[1:] == (3, 32, 32) and train.pixels.dtype == torch.uint8
    counts = torch.bincount(val.labels)
    assert counts.min() >= 34 and counts.max() <= 37  # stratified: 20 % of 174 to 183
    content = hashlib.sha256(val.labels.numpy().tobytes() + val.pixels.numpy().tobytes()).hexdigest()
    assert content[:16] == "ac99b96b46d0472d"


def test_digits_statistics_are_those_of_the_training_part(digits):
    pixels = digits[0].pixels[:, 0].double() / 255
    table = data.DATASETS["digits"]
    assert table.mean == pytest.approx([pixels.mean().item()] * 3, abs=5e-5)
    assert table.std == pytest.approx([pixels.std(correction=0).item()] * 3, abs=5e-5)
    assert table.num_classes == len(digits[0].labels.unique())


def test_digits_keep_the_original_pixels(digits):
    from sklearn.datasets import load_digits

    _, val = digits
    originals = torch.from_numpy(load_digits().images).float() / 16
    # bilinear enlargement by 4 keeps the mean of an image whose border is not cut off: average 4x4 blocks and compare
    blocks = torch.nn.functional.avg_pool2d(val.floats(slice(None))[:, :1], 4)[:, 0]
    distances = torch.cdist(blocks.flatten(1), originals.flatten(1))
    nearest = distances.argmin(dim=1)
    assert torch.equal(torch.from_numpy(load_digits().target)[nearest], val.labels)
    assert len(nearest.unique()) == 360


def test_open_images_gives_floats_and_labels(digits):
    images = data.open_images("digits")
    pixels, label = images[-1]
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32
    assert pixels.min() >= 0 and pixels.max() <= 1
    assert isinstance(label, int) and label == int(digits[1].labels[-1])
    assert torch.equal(pixels, digits[1].pixels[-1].float() / 255)
    with pytest.raises(IndexError):
        images[360]


def test_fingerprint_tells_part_size_and_content_apart():
    images = data.open_images("digits")
    assert images.fingerprint == data.open_images("digits").fingerprint == images.to("cpu").fingerprint
    others = {data.open_images("digits", "train").fingerprint, data.open_images("digits", image_size=64).fingerprint}
    relabelled = TensorImages(images.pixels, images.labels.roll(1), name=images.name)
    changed = TensorImages(images.pixels.clone().index_fill_(0, torch.tensor([0]), 7), images.labels, name=images.name)
    assert len({images.fingerprint, relabelled.fingerprint, changed.fingerprint} | others) == 5


@pytest.mark.parametrize(("resize", "crop"), [(255, 224), (32, 32), (29, 20)])
def test_enlarging_is_pillows(resize, crop):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28), dtype=np.uint8))
    ours = resize_and_crop(pixels, resize, crop)
    for image, result in zip(pixels, ours):
        pillow = F.to_pil_image(image).resize((resize, resize), Image.Resampling.BILINEAR)
        theirs = F.pil_to_tensor(F.center_crop(pillow, [crop, crop]))
        assert (theirs.int() - result.int()).abs().max() <= 1  # Pillow rounds after each axis


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(2, 1, 4, 4), None),
        (torch.zeros(2, 3, 4), None),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int32), None),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3)),
    ],
)
def test_tensor_images_refuse_what_is_no_set_of_images(pixels, labels):
    with pytest.raises(ValueError, match="images"):
        TensorImages(pixels, labels, name="x")


@pytest.mark.parametrize("indices", [None, torch.tensor([7, 3, 3, 49, 0])])
def test_batches_are_in_order(indices):
    expected = torch.arange(50) if indices is None else indices
    loader = Batches(numbered(), 8, device="cpu", indices=indices)
    pairs = list(loader)
    assert len(loader) == len(pairs) == -(-len(expected) // 8)
    assert torch.equal(torch.cat([labels for _, labels in pairs]), expected)
    assert torch.equal(torch.cat([images for images, _ in pairs]), numbered().floats(expected))
    assert pairs[0][0].dtype == torch.float32 and pairs[0][1].dtype == torch.int64


def test_batches_of_no_images_and_of_images_that_are_not_there():
    assert list(Batches(numbered(), 2, device="cpu", indices=torch.tensor([]))) == []
    for index in (50, -1):
        with pytest.raises(InputError, match=rf"index {index} .* 50 images"):
            Batches(numbered(), 2, device="cpu", indices=torch.tensor([0, index]))


def test_batches_of_any_map_style_data_set():
    plain = torch.utils.data.TensorDataset(torch.rand(5, 3, 2, 2), torch.arange(5))
    pixels, labels = next(iter(Batches(plain, 5, device="cpu")))
    assert torch.equal(pixels, plain.tensors[0]) and torch.equal(labels, plain.tensors[1])


def test_stream_depends_on_every_key():
    draws = {
        torch.rand(1, generator=stream(*keys)).item() for keys in [(0, 0), (0, 1), (1, 0), (10,), (573098435098230, 0)]
    }
    assert len(draws) == 5
    assert torch.equal(torch.rand(4, generator=stream("order", 1)), torch.rand(4, generator=stream("order", 1)))


def epoch_of(loader, epoch, first_step=0):
    loader.set_epoch(epoch, first_step)
    return [(images[:, 0, 0, 0], labels) for images, labels in loader]


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_visits_every_image_once_in_another_order_each_time(drop_last):
    loader = TrainingBatches(numbered(), 8, device="cpu", seed=0, drop_last=drop_last)
    first, second = (torch.cat([labels for _, labels in epoch_of(loader, epoch)]) for epoch in (0, 1))
    assert len(loader) == (6 if drop_last else 7)
    assert len(first.unique()) == len(first) == (48 if drop_last else 50)
    assert not torch.equal(first, second)


def test_order_depends_on_seed_and_epoch_alone():
    loader, again = (TrainingBatches(numbered(), 8, device="cpu", seed=3) for _ in range(2))
    epoch_of(loader, 0)
    torch.manual_seed(1234)  # no global state takes part
    for (_, ours), (_, theirs) in zip(epoch_of(loader, 5), epoch_of(again, 5)):
        assert torch.equal(ours, theirs)
    other = TrainingBatches(numbered(), 8, device="cpu", seed=4)
    assert not torch.equal(epoch_of(other, 5)[0][1], epoch_of(again, 5)[0][1])


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_processes_share_the_batches_of_a_single_one(world_size):
    # 50 images in batches of 8: the last one holds 2, so that with 8 processes 6 slices are empty
    single = epoch_of(TrainingBatches(numbered(augment=AddNoise()), 8, device="cpu", seed=0), 2)
    shared = {"device": "cpu", "seed": 0, "world_size": world_size}
    loaders = [TrainingBatches(numbered(augment=AddNoise()), 8, rank=rank, **shared) for rank in range(world_size)]
    assert [loaders[0].global_size(step) for step in range(len(single))] == [8] * 6 + [2]
    ranks = [epoch_of(loader, 2) for loader in loaders]
    for step, (images, labels) in enumerate(single):
        shards = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([shard for shard, _ in shards]), images)
        assert torch.equal(torch.cat([shard for _, shard in shards]), labels)
        sizes = [len(shard) for _, shard in shards]
        assert max(sizes) - min(sizes) <= 1


def test_resumed_epoch_continues_as_if_never_interrupted():
    loader = TrainingBatches(numbered(augment=AddNoise()), 8, device="cpu", seed=0)
    whole, rest = epoch_of(loader, 1), epoch_of(loader, 1, first_step=4)
    assert len(rest) == 3
    for (images, labels), (resumed_images, resumed_labels) in zip(whole[4:], rest):
        assert torch.equal(images, resumed_images) and torch.equal(labels, resumed_labels)


def test_batches_too_small_for_the_processes_are_refused():
    with pytest.raises(InputError, match="batch of 2 images"):
        TrainingBatches(numbered(), 2, device="cpu", seed=0, world_size=3)
    with pytest.raises(InputError, match="do not fill one batch"):
        TrainingBatches(numbered(), 51, device="cpu", seed=0, drop_last=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensor_images_live_on_the_device():
    images = numbered()
    assert images.to("cuda") is images.to("cuda")
    pixels, labels = next(iter(TrainingBatches(images, 8, device="cuda", seed=0)))
    on_cpu, labels_on_cpu = next(iter(TrainingBatches(images, 8, device="cpu", seed=0)))
    assert pixels.is_cuda and torch.equal(labels.cpu(), labels_on_cpu)
    assert torch.allclose(pixels.cpu(), on_cpu)
