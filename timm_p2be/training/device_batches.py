"""Training batches made on the device: AugMix and views there, and on request the images themselves."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from timm_p2be.data import AugMix
from timm_p2be.data.batch_augmix import affine, crop_matrices, mix_batch, to_device


class ResidentImages(Dataset[int]):
    """A training set held on a device as uint8 (N, C, H, W); what a loader reads of it are indices.

    `dataset` yields uint8 arrays of the shape `size` and labels.
    """

    def __init__(self, dataset: Any, size: tuple[int, ...], device: torch.device) -> None:
        needed, memory = len(dataset) * int(np.prod(size)), _memory(device)
        if needed > memory / 2:
            raise ValueError(
                f'--data-on-device: {len(dataset)} images of {size} take {needed / 2**30:.1f} GiB, more than half of '
                f'the {memory / 2**30:.1f} GiB of {device}. Leave it out, or take fewer by --train-num-samples.'
            )
        images = torch.empty((len(dataset), *size), dtype=torch.uint8)
        labels = torch.empty(len(dataset), dtype=torch.long)
        for index in range(len(dataset)):
            pixels, label = dataset[index]
            if pixels.shape != size:
                raise ValueError(
                    f'--data-on-device holds images of the size that the network takes, {size}; image {index} has '
                    f'{pixels.shape}. Resize the files, or leave the flag out: loaders crop images of any size.'
                )
            images[index], labels[index] = torch.from_numpy(pixels), label
        self.images, self.labels = images.to(device), labels.to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        return index


class DeviceBatches:
    """Stands in for timm's PrefetchLoader: the same batches, augmented here by draws made on the host.

    They come from a generator seeded by epoch, process (both in torch's seed) and number of the batch: a run resumed
    inside an epoch sees what an unbroken one sees, whatever the device. `num_views` > 1 puts the clean views first.
    """

    def __init__(self, loader: Any, augment: AugMix | None, num_views: int, padding: int, hflip: float) -> None:
        self.timms, self.loader = loader, loader.loader
        self.augment, self.num_views, self.padding, self.hflip = augment, num_views, padding, hflip
        self.dataset, self.sampler = loader.dataset, loader.sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seed = torch.initial_seed()
        for number, batch in enumerate(self.loader):
            images, labels = self._views(batch, np.random.default_rng((seed, number)))
            images = images.to(self.timms.img_dtype).sub_(self.timms.mean).div_(self.timms.std)
            if self.timms.random_erasing is not None:
                images = self.timms.random_erasing(images)
            yield images, labels.repeat(self.num_views)

    def _views(self, batch: Any, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the uint8 views of a batch (of images and labels, or of indices) and its labels."""
        device, dataset, copies = self.timms.device, self.dataset, max(1, self.num_views - 1)
        resident = isinstance(dataset, ResidentImages)
        count, size = (len(batch), dataset.images.shape[2:]) if resident else (len(batch[1]), batch[0].shape[2:])
        groups, drawn = self.augment.prepare_batch(generator, copies * count, size) if self.augment else ([], ())
        if resident:
            crops = crop_matrices(generator, count, size[1], self.padding, self.hflip)
            numbers, matrices, *moved = to_device([batch, crops, *drawn], device)
            chosen = numbers.long()
            labels = dataset.labels.index_select(0, chosen)
            images = affine(dataset.images.index_select(0, chosen), matrices)
        else:
            images, labels = (part.to(device, non_blocking=True) for part in batch)
            moved = list(to_device(drawn, device))
        if self.augment is None:
            return images, labels
        mixed = mix_batch(images.repeat(copies, 1, 1, 1), groups, *moved)
        return torch.cat([images, mixed]) if self.num_views > 1 else mixed, labels


def _memory(device: torch.device) -> int:
    if device.type == 'cuda':
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
