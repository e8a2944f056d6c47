"""Batches on a device: images in order for evaluation and extraction, shuffled and augmented ones for training.

Images held as one tensor are sliced on the device and need no worker processes. Encoded images are decoded by
DataLoader workers, which hand over 8-bit pixels; the division by 255 happens on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from univ import runs
from univ.data.entry import Images
from univ.data.images import EncodedImages, TensorImages, to_float
from univ.errors import InputError

RESIDENT_BYTES = 2**30  # tensors up to this size are moved to the device whole (CIFAR-10: 0.15 GB)


def stream(*keys: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on `keys` (seed, epoch, image …) and nothing else."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class _Reader(torch.utils.data.Dataset):
    """What workers do: read, decode and stack one batch of images that are not held as a tensor.

    A key is (epoch, index): the epoch travels with the index, so that workers can stay alive from epoch to epoch. An
    error the user can act on comes back as a value: DataLoader would bury its message in a worker's traceback.

    Args:
        seed: augments by random numbers from (seed, epoch, index) alone; None does not augment.
    """

    def __init__(self, images: Images, seed: int | None = None) -> None:
        self.images, self.seed = images, seed

    def _read(self, epoch: int, index: int) -> tuple[Tensor, ...]:
        if not isinstance(self.images, EncodedImages):
            return self.images[index]
        if self.seed is None:
            return self.images.uint8(index)
        return self.images.augmented(index, lambda: stream("image", self.seed, epoch, index))

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, ...] | InputError | OSError:
        try:
            stacked = default_collate([self._read(*key) for key in keys or [(0, 0)]])
            return tuple(part[: len(keys)] for part in stacked)  # an empty slice of a last batch has its shapes too
        except (InputError, OSError) as error:
            return error

    def loader(
        self, keys: Iterable[list], device: torch.device, workers: int, *, keep_workers: bool = False
    ) -> DataLoader:
        """Lists of keys in, stacked batches out, read by `workers` processes."""
        return DataLoader(
            self,
            batch_sampler=keys,
            collate_fn=_unchanged,
            num_workers=workers,
            worker_init_fn=runs.die_with_parent,
            pin_memory=device.type == "cuda",
            persistent_workers=keep_workers and workers > 0,
            # the seeds of its workers, which draw nothing, would come from the global generator: that of dropout
            generator=torch.Generator(),
        )


def _unchanged(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch  # __getitems__ has stacked it


def _batches_on(loader: DataLoader, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """What the workers read, as float images and labels on the device."""
    for batch in loader:
        if isinstance(batch, Exception):
            # a copy: an exception that the frame it passes through refers to keeps the workers alive in a cycle
            raise type(batch)(*batch.args)
        pixels, labels, *shift = (part.to(device, non_blocking=True) for part in batch)
        images = to_float(pixels)
        if shift:  # per-image colour offset of the lighting augmentation, (B, 3)
            images += shift[0][:, :, None, None]
        yield images, labels


class Batches:
    """Iterate over images in order: (float32 (B, 3, H, W) in [0, 1], int64 (B,)) pairs on `device`.

    Args:
        images: any `Images`.
        batch_size: images per batch, the last batch holds what is left; or those of every batch.
        device: where the batches are wanted.
        workers: processes that decode; not used for images held as a tensor.
        indices: (n,) positions to visit, in this order, repeats allowed; None visits all.

    Raises:
        InputError: an index is out of bounds.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int | list[int],
        *,
        device: torch.device | str,
        workers: int = 0,
        indices: Tensor | None = None,
    ) -> None:
        indices = torch.arange(len(images)) if indices is None else torch.as_tensor(indices, dtype=torch.int64).cpu()
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(images):
            worst = int(indices.max() if indices.max() >= len(images) else indices.min())
            raise InputError(f"image index {worst} is out of bounds: there are {len(images)} images")
        self._images, self._device, self._workers = images, torch.device(device), workers
        self._chunks = indices.split(batch_size) if len(indices) else ()

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(self._images, TensorImages):
            yield from self._slices(self._images)
            return
        keys = [[(0, index) for index in chunk.tolist()] for chunk in self._chunks]
        yield from _batches_on(_Reader(self._images).loader(keys, self._device, self._workers), self._device)

    def _slices(self, images: TensorImages) -> Iterator[tuple[Tensor, Tensor]]:
        if images.pixels.nbytes <= RESIDENT_BYTES:
            images = images.to(self._device)
        for chunk in self._chunks:
            pixels, labels = images.uint8(chunk.to(images.pixels.device)), images.labels[chunk.to(images.labels.device)]
            yield to_float(pixels.to(self._device)), labels.to(self._device)


class TrainingBatches:
    """Shuffled, augmented batches whose content depends only on (seed, epoch, step), never on how they are computed.

    The order of an epoch is one permutation from (seed, epoch), cut into global batches; each process gets a
    contiguous slice of every global batch. So N processes together see exactly the batches of a single one,
    augmentation included, and a resumed run (`set_epoch(epoch, first_step)`) sees those of an uninterrupted one. The
    number of workers changes nothing.

    Args:
        images: the training part from `open_training`, which carries its augmentation.
        batch_size: images per step over all processes. The slices of a batch differ by at most one image; in a last
            batch of fewer images than processes some are empty.
        device: where the batches are wanted; images held as a tensor are moved there whole.
        workers: processes that decode; not used for images held as a tensor.
        seed: of order and augmentation.
        rank, world_size: this process and the number of processes.
        drop_last: leave out a last batch that is not full.

    Raises:
        InputError: fewer images than one batch with drop_last, or a batch with fewer images than processes.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        device: torch.device | str,
        workers: int = 0,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        if batch_size < world_size:
            raise InputError(f"a batch of {batch_size} images cannot be split over {world_size} processes (-b/--batch)")
        if drop_last and len(images) < batch_size:
            raise InputError(f"{len(images)} images do not fill one batch of {batch_size} (-b/--batch)")
        self._device = torch.device(device)
        self._images = images.to(self._device) if isinstance(images, TensorImages) else images
        self._order = _EpochOrder(len(images), batch_size, seed, rank, world_size, drop_last)
        self._workers = workers
        self._loader: DataLoader | None = None

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch that the next iteration runs through, and the step it begins at."""
        self._order.set_epoch(epoch, first_step)

    def __len__(self) -> int:
        """Steps of a whole epoch, wherever the iteration begins."""
        return self._order.steps

    def global_size(self, step: int) -> int:
        """Images in the batch of `step` over all processes: what a mean over the batch divides by."""
        return len(self._order.batches[step])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (float32 (B, 3, H, W), int64 (B,)) on the device; pixels in [0, 1] up to the augmentation."""
        return self._sliced() if isinstance(self._images, TensorImages) else self._decoded()

    def _sliced(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, augment, order = self._images, self._images.augment, self._order
        for step in range(order.first_step, order.steps):
            shard = order.shard(step)
            chosen = order.batches[step][shard].to(self._device)
            pixels, labels = images.uint8(chosen), images.labels[chosen]
            if augment is None:
                yield to_float(pixels), labels
                continue
            # drawn for the whole global batch, so that a slice gets what it would get in a single process
            draws = augment.draw(self.global_size(step), stream("batch", order.seed, order.epoch, step))
            yield augment(pixels, {name: draw[shard].to(self._device) for name, draw in draws.items()}), labels

    def _decoded(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._loader is None:  # kept, and its workers with it, from epoch to epoch
            reader = _Reader(self._images, self._order.seed)
            self._loader = reader.loader(self._order, self._device, self._workers, keep_workers=True)
        yield from _batches_on(self._loader, self._device)


class _EpochOrder:
    """Which images are in which batch of an epoch; as DataLoader's batch sampler it lists this process's share.

    An object of its own, because TrainingBatches and its DataLoader referring to each other would leave the worker
    processes to the garbage collector, which may run in a forked worker and there shut down its siblings.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int, world_size: int, drop_last: bool) -> None:
        self._length, self._batch_size, self._rank, self._world_size = length, batch_size, rank, world_size
        self.seed = seed
        full, rest = divmod(length, batch_size)
        self.steps = full if drop_last or not rest else full + 1
        self.set_epoch(0, 0)

    def set_epoch(self, epoch: int, first_step: int) -> None:
        self.epoch, self.first_step = epoch, first_step
        order = torch.randperm(self._length, generator=stream("order", self.seed, epoch))
        self.batches = order.split(self._batch_size)[: self.steps]

    def shard(self, step: int) -> slice:
        """The slice of the global batch of `step` that is this process's."""
        share, extra = divmod(len(self.batches[step]), self._world_size)
        first = self._rank * share + min(self._rank, extra)
        return slice(first, first + share + (self._rank < extra))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """This process's slice of each batch, as (epoch, index) pairs."""
        for step in range(self.first_step, self.steps):
            yield [(self.epoch, index) for index in self.batches[step][self.shard(step)].tolist()]

    def __len__(self) -> int:
        return self.steps - self.first_step
