"""Clean labeled images as uint8 levels, read by any reader of timm, in a fixed order."""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from timm_p2be.data.image_files import Images, check_folder, hash_files, image_files
from timm_p2be.extras import require
from timm_p2be.robustness.pixel_model import PixelModel

Pixels = NDArray[np.uint8]
RESIZE = {'cifar': None, 'imagenet': 256}  # suite of corruptions -> shorter side before the central crop


class ImageSet(Dataset[tuple[Pixels, int]]):
    """Images and labels, read one at a time: uint8 levels (size, size, 3), int.

    Args:
        source: sequence of (PIL image, label).
        name: what reports call the data.
        size: side of the images in pixels.
        resize: shorter side before the central crop of `size`; None takes images only if they have `size` already.
        limit: the first `limit` images only; None takes all.
        files: a digest of the files that the images come from, part of the fingerprint.

    Attributes:
        class_names: of the labels 0, 1, ..., as the reader of `source` has them; None where it has none.
        num_classes: of the data, None where that is unknown.

    Example:
        >>> data = ImageSet([(Image.new('RGB', (32, 32)), 3)], 'black', size=32)
        >>> data[0][0].shape, data[0][1]
        ((32, 32, 3), 3)
    """

    def __init__(
        self,
        source: Any,
        name: str,
        size: int,
        resize: int | None = None,
        limit: int | None = None,
        files: str = '',
    ) -> None:
        if isinstance(source, IterableDataset) or not hasattr(source, '__len__'):
            raise ValueError(
                f'{name} is a stream; benchmarks need images by index. Use its map-style reader, as hfds/.'
            )
        if limit is not None and limit < 1:
            raise ValueError(f'Got limit={limit}; take at least 1 image.')
        if len(source) == 0:
            raise ValueError(f'{name} has no images.')
        self.source = source
        self.name = name
        self.size = size
        self.limit = limit
        self.files = files
        self.class_names = class_names(source)
        self.num_classes = len(self.class_names) if self.class_names else None
        self._numbers: Tensor | None = None  # a model's own, of the labels
        self._crop = Compose([Resize(resize, InterpolationMode.BILINEAR), CenterCrop(size)]) if resize else None
        self.transform = f'Resize({resize}, bilinear), CenterCrop({size})' if resize else f'none ({size}x{size})'

    def __len__(self) -> int:
        return len(self.source) if self.limit is None else min(self.limit, len(self.source))

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image, label = self.source[index]
        image = image.convert('RGB')
        if self._crop is not None:
            image = self._crop(image)
        label = int(label if self._numbers is None else self._numbers[label])
        return as_pixels(image, self.size, f'Image {index} of {self.name}'), label

    def numbered_for(self, model: PixelModel) -> 'ImageSet':
        """Return these images, labeled by the model's own numbers of the classes; see `PixelModel.numbers_of`."""
        numbered = copy.copy(self)
        if (numbers := model.numbers_of(self.class_names, self.num_classes, self.name)) is not None:
            numbered._numbers, numbered.class_names = numbers, model.class_names
        return numbered

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data.

        The fingerprint covers the number of images, 16 of them spread evenly, and name and size of every file.
        """
        digest = hashlib.sha256(f'{len(self)}{self.files}'.encode())
        for index in np.linspace(0, len(self) - 1, 16, dtype=int).tolist():
            image, label = self[index]
            digest.update(image.tobytes() + str(label).encode())
        return {
            'name': self.name,
            'images': len(self),
            'subset': 'all' if len(self) == len(self.source) else f'first {len(self)} of {len(self.source)}',
            'transform': self.transform,
            'fingerprint': digest.hexdigest(),
        }


def class_names(source: Any) -> Sequence[str] | None:
    """Return the names of a data set's classes by their number; None where its reader does not name them all."""
    found = getattr(getattr(source, 'reader', source), 'class_to_idx', None) or {}
    names = {index: str(name) for name, index in reversed(found.items())}  # of synonyms the first
    return [names[index] for index in range(len(names))] if names and names.keys() == {*range(len(names))} else None


def as_pixels(image: Image.Image, size: int, name: str) -> Pixels:
    """Return uint8 levels (size, size, 3) of an RGB image of that size, which errors call `name`."""
    if image.size != (size, size):
        raise ValueError(
            f'{name} has {image.width}x{image.height} pixels, not {size}x{size}. Choose the suite of that size, or '
            'resize the clean images (`benchmark attacks` does by --resize): later it would change a corruption.'
        )
    return np.asarray(image)


def read_images(
    dataset: str,
    data_dir: str | None = None,
    split: str = 'validation',
    size: int = 32,
    resize: int | None = None,
    limit: int | None = None,
    **reader: Any,
) -> ImageSet:
    """Return the `ImageSet` that timm's flags name: a data set, such as 'torch/cifar10', or '' for an image folder.

    `reader` holds more arguments of timm.data.create_dataset: `input_key`, `target_key`, `class_map`, `download`.
    """
    if dataset.lower().startswith('hfds/'):
        require('datasets', extra='data')
    try:
        if not dataset and data_dir:
            check_folder(Path(data_dir), split)
        source = create_dataset(dataset, root=data_dir, split=split, is_training=False, **reader)
        files = _hash_of(source, dataset)
        source = Images(source) if isinstance(source, ImageDataset) else source
    except Exception as error:  # readers and the libraries below them raise whatever they like
        where = dataset + (f' in {data_dir}' if data_dir else '') if dataset else str(data_dir)
        raise ValueError(f'No images read from {where}, split {split!r}: {error or type(error).__name__}') from error
    name = (dataset or str(data_dir)).rstrip('/').rpartition('/')[2]
    images = ImageSet(source, f'{name} ({split})', size, resize, limit, files)
    if reader.get('class_map'):  # which gives the model's numbers
        images.class_names = None
    return images


def _hash_of(source: Any, dataset: str) -> str:
    """Return a digest of the files of a data set: images, parquet, or the arrays that torchvision made of them."""
    if isinstance(arrays := getattr(source, 'data', None), np.ndarray | torch.Tensor):
        return hashlib.sha256(np.asarray(arrays).tobytes()).hexdigest()
    reader = getattr(source, 'reader', source)
    samples = [Path(name) for name, *_ in getattr(reader, 'samples', ()) if isinstance(name, str)]
    folder = Path(dataset.partition('/')[2])
    root = folder if folder.is_dir() else Path(getattr(reader, 'root', None) or '.')
    if dataset.lower().startswith('hfds/') and folder.is_dir():
        samples = image_files(folder)
    elif dataset.lower().startswith('hfds/') and (cached := reader.dataset.cache_files):
        samples = [Path(file['filename']) for file in cached]
        root = samples[0].parent
    return hash_files(samples or [root], root)


def as_batch(data: ImageSet, indices: list[int] | range) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images `indices` as uint8 levels (B, 3, H, W), and their int64 labels (B,)."""
    return collate([data[index] for index in indices])


def collate(pairs: list[tuple[Pixels, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels as a batch, see `as_batch`."""
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([label for _, label in pairs])
