"""Transforms and loaders of a run, built by timm; views come from a transform."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.data import create_loader, create_transform
from timm.utils import is_primary
from torch import nn
from torch.utils.data import IterableDataset
from torchvision.transforms import Compose

from timm_p2be.data import AugMix
from timm_p2be.data.transforms import MultiView, to_planes, zero_padded_crop
from timm_p2be.hub import run_folder
from timm_p2be.training.conflicts import reader
from timm_p2be.training.device_batches import DeviceBatches, ResidentImages
from timm_p2be.training.stopping import ignore_signals


@dataclass
class Loaders:
    """Training and validation batches of a run; `validation` is None without a validation split."""

    training: Any
    validation: Any
    data_config: dict[str, Any]


def build_loaders(
    args: argparse.Namespace, model: nn.Module, device: torch.device, training: Any, validation: Any
) -> Loaders:
    """Return the loaders; with --aug-splits N a training batch holds N views, all clean ones first."""
    data_config = _data_config(args, model)
    create = partial(
        create_loader,
        input_size=data_config['input_size'],
        mean=data_config['mean'],
        std=data_config['std'],
        pin_memory=args.pin_mem,
        img_dtype=getattr(torch, args.model_dtype) if args.model_dtype else torch.float32,
        device=device,
        distributed=args.distributed,
        # workers that start anew take their seeds from the epoch's: a resumed run sees the batches of an unbroken one
        persistent_workers=False,
    )
    if args.p2be_augmix is not None and args.p2be_augmix_device == 'auto':
        args.p2be_augmix_device = 'batch' if device.type == 'cuda' or args.data_on_device else 'workers'
    loader = _training_loader(args, training, data_config, create, device)
    if len(loader) == 0:
        raise ValueError(
            f'{len(training)} training images do not fill one batch of {args.batch_size} on each of {args.world_size} '
            'processes (the last, partial batch is dropped, as in timm); lower --batch-size.'
        )
    _probe(args, training)
    if validation is None:
        return Loaders(loader, None, data_config)
    workers = args.workers
    if args.distributed and reader(args) == 'wds':
        workers = min(2, workers)  # as timm: fewer shards that end at different times
    validation_loader = create(
        validation,
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
        num_workers=workers,
    )
    _probe(args, validation)
    return Loaders(loader, _with_calm_workers(validation_loader), data_config)


def _data_config(args: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    try:
        data_config = run_folder.data_config(vars(args), model, verbose=is_primary(args))
    except AssertionError as error:
        raise ValueError('--mean and --std take one value, or one for each channel.') from error
    if data_config['input_size'][0] not in (1, 3) and not args.input_img_mode:
        raise ValueError(
            f'{data_config["input_size"][0]} image channels need --input-img-mode, for example RGBA for 4 channels.'
        )
    return data_config


def _with_calm_workers(loader: Any) -> Any:
    """Return timm's loader with workers that outlive a signal."""
    loader.loader.worker_init_fn = partial(ignore_signals, worker_init=loader.loader.worker_init_fn)
    return loader


def _training_loader(
    args: argparse.Namespace,
    training: Any,
    data_config: dict[str, Any],
    create: Callable[..., Any],
    device: torch.device,
) -> Any:
    reading: dict[str, Any] = {'num_workers': args.workers, 'worker_seeding': args.worker_seeding}
    if args.data_on_device:
        training.transform = to_planes
        _probe(args, training)
        training = ResidentImages(training, data_config['input_size'], device)
        reading = {'num_workers': 0, 'collate_fn': np.array}
    interpolation = args.train_interpolation
    if args.no_aug or not interpolation:
        interpolation = data_config['interpolation']
    transform = {
        'train_crop_mode': args.train_crop_mode,
        'scale': args.scale,
        'ratio': args.ratio,
        'hflip': args.hflip,
        'vflip': args.vflip,
        'color_jitter': args.color_jitter,
        'auto_augment': args.aa,
        'interpolation': interpolation,
    }
    try:
        loader = create(
            training,
            batch_size=args.batch_size,
            is_training=True,
            no_aug=args.no_aug,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
            **reading,
            **transform,
        )
    except (AssertionError, KeyError) as error:
        raise ValueError(f'timm cannot build the training transform (--aa {args.aa}): {error!r}') from error
    if args.aug_splits or args.p2be_augmix is not None or args.p2be_crop_padding is not None:
        stages = create_transform(
            data_config['input_size'],
            is_training=True,
            separate=True,
            use_prefetcher=True,
            mean=data_config['mean'],
            std=data_config['std'],
            **transform,
        )
        training.transform = _with_ours(args, data_config['input_size'], *stages)
    loader = _with_calm_workers(loader)
    if not args.data_on_device and args.p2be_augmix_device != 'batch':
        return loader
    augment = None if args.p2be_augmix is None else AugMix(severity=args.p2be_augmix)
    return DeviceBatches(loader, augment, max(args.aug_splits, 1), args.p2be_crop_padding or 0, args.hflip)


def _with_ours(args: argparse.Namespace, input_size: tuple[int, ...], crop: Any, augment: Any, to_array: Any) -> Any:
    """Put our crop, AugMix and views into timm's three training stages where flags say so."""
    if args.p2be_crop_padding is not None:
        if input_size[1] != input_size[2]:
            raise ValueError(f'--p2be-crop-padding makes square images, but --input-size is {input_size}.')
        crop = zero_padded_crop(input_size[-1], args.p2be_crop_padding, args.hflip)
    if args.p2be_augmix_device == 'batch':
        return Compose([crop, to_array])
    if args.p2be_augmix is not None:
        augment = AugMix(severity=args.p2be_augmix)
    if args.aug_splits:
        return MultiView(crop, augment, args.aug_splits)
    return Compose([crop, augment, to_array])


def _probe(args: argparse.Namespace, dataset: Any) -> None:
    """Read and transform one image, so that a wrong column, mode or size shows before anything is written."""
    if isinstance(dataset, IterableDataset):
        return
    try:
        label = dataset[0][1]
    except KeyError as error:
        raise ValueError(f'The data has no column {error}; see --input-key and --target-key.') from error
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(f'Cannot read or transform the first image: {error}') from error
    if isinstance(label, int) and not 0 <= label < args.num_classes:
        raise ValueError(f'The first label is {label}; the model has --num-classes {args.num_classes}.')
