"""The images of a run, opened by timm's readers and checked before anything is built on them."""

import argparse
import logging
import math
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, IterableImageDataset, create_dataset
from timm.utils import is_primary
from torch.utils.data import Subset

from timm_p2be.data.image_files import Images, check_folder
from timm_p2be.data.streams import Stream
from timm_p2be.extras import require
from timm_p2be.robustness.images import class_names
from timm_p2be.training.conflicts import reader

_logger = logging.getLogger('train')


def open_data(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return training and validation images, the latter None without a split; sets --num-classes if it is not given."""
    training = _dataset(args, args.train_split, is_training=True)
    validation = _dataset(args, args.val_split, is_training=False) if args.val_split else None
    _check_classes(args, training, validation)
    return training, validation


class _Some(Subset[Any]):
    """Some images of a data set, evenly spaced: image folders are sorted by class. Its transform is the data set's."""

    def __init__(self, dataset: Any, count: int) -> None:
        super().__init__(dataset, [index * len(dataset) // count for index in range(count)])
        self.reader = getattr(dataset, 'reader', dataset)  # knows the classes

    @property
    def transform(self) -> Any:
        return self.dataset.transform  # type: ignore[attr-defined]

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform  # type: ignore[attr-defined]


def _dataset(args: argparse.Namespace, split: str, is_training: bool) -> Any:
    kind = reader(args)
    count = args.train_num_samples if is_training else args.val_num_samples
    channels = args.input_size[0] if args.input_size else args.in_chans or 3
    if kind == '':
        if not Path(args.data_dir).exists():
            raise ValueError(f'--data-dir {args.data_dir}: no such folder.')
        check_folder(Path(args.data_dir), split)
    if kind in ('hfds', 'hfids', 'wds'):
        require('webdataset' if kind == 'wds' else 'datasets', extra='data')
    try:
        dataset = create_dataset(
            args.dataset,
            root=args.data_dir,
            split=split,
            is_training=is_training,
            class_map=args.class_map,
            download=args.dataset_download,
            batch_size=args.batch_size,
            seed=args.seed,
            input_img_mode=args.input_img_mode or ('RGB' if channels == 3 else 'L'),
            input_key=args.input_key,
            target_key=args.target_key,
            num_samples=count,
        )
    except Exception as error:  # readers and the libraries below them raise whatever they like
        reason = str(error) or type(error).__name__
        hint = ' Add --dataset-download to fetch it.' if kind == 'torch' and not args.dataset_download else ''
        source = ' in '.join(filter(None, (args.dataset, args.data_dir)))
        raise ValueError(
            f'No images read from {source}, split {split!r}: {reason}{hint} Check --data-dir, --dataset and the splits.'
        ) from error
    if kind == '' and Path(args.data_dir).is_dir() and args.val_split and dataset.reader.root == args.data_dir:
        # timm would read the whole folder, the same images for training and validation
        raise ValueError(
            f'--data-dir {args.data_dir} has no folder {split!r} (nor a synonym). Name the folders by --train-split '
            "and --val-split, or train on all of it without validation by --val-split ''."
        )
    # what is measured on other images than it should be is no figure
    max_bad = args.max_bad_samples if is_training else 0
    if isinstance(dataset, IterableImageDataset):
        return Stream(dataset, max_bad)
    if isinstance(dataset, ImageDataset):
        dataset = Images(dataset, max_bad)
    if count is None:
        return dataset
    if not 1 <= count <= len(dataset):
        raise ValueError(f'Got {count} images of split {split!r}, which has {len(dataset)}; take 1 to all of them.')
    return _Some(dataset, count)


def _check_classes(args: argparse.Namespace, training: Any, validation: Any) -> None:
    """Refuse labels that the model has no output for, and splits that number their classes differently."""
    classes = [class_names(dataset) or [] for dataset in (training, validation) if dataset is not None]
    if args.num_classes is None and classes[0]:
        args.num_classes = len(classes[0])
        if is_primary(args):
            _logger.info(f'--num-classes {len(classes[0])}: the data has the classes {", ".join(classes[0][:10])}.')
    if max(map(len, classes)) > (args.num_classes or math.inf):
        raise ValueError(f'The data has {len(classes[0])} classes, the model {args.num_classes}; pass --num-classes.')
    if 0 < len(classes[0]) < (args.num_classes or 0) and is_primary(args):
        _logger.warning(f'--num-classes {args.num_classes}, but the data has {len(classes[0])} classes.')
    if classes[0] != classes[-1]:
        names = sorted({*classes[0]} ^ {*classes[-1]})[:5]
        raise ValueError(
            f'Training and validation split have different classes ({", ".join(names)}, ...), so that their labels '
            'would not agree. Complete the folders, or number the classes by --class-map.'
        )
