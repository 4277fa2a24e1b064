"""Flags that several commands share: models, data, device. Names and meanings are those of timm's validate.py."""

import argparse
import os

import torch

from timm_p2be.robustness.images import ImageSet, read_images
from timm_p2be.robustness.pixel_model import PixelModel, load_model


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name models and where they run."""
    add = parser.add_argument_group('models').add_argument
    add(
        '--model',
        nargs='+',
        required=True,
        metavar='[LABEL:]NAME[=FILE]',
        help='models of timm; FILE is a checkpoint of train.py, a state dict or safetensors (default: pretrained)',
    )
    add('--num-classes', type=int, metavar='K', help="default: the checkpoint's")
    add('--mean', type=float, nargs='+', metavar='MEAN', help="override every model's own mean")
    add('--std', type=float, nargs='+', metavar='STD', help="override every model's own std")
    add('--device', default='cpu', help='default: %(default)s')


def add_data_flags(parser: argparse.ArgumentParser, title: str = 'data') -> None:
    """Add the flags that name clean images, under a `title` that says what these are for."""
    add = parser.add_argument_group(title).add_argument
    add('--data-dir', metavar='DIR', help='folder of the data')
    add('--dataset', default='', metavar='NAME', help="timm's name, as torch/cifar10 or hfds/FOLDER")
    add('--split', default='validation', help='default: %(default)s')
    add('--input-key', metavar='COLUMN', help='column of the images (hfds/)')
    add('--target-key', metavar='COLUMN', help='column of the labels (hfds/)')
    add('--class-map', default='', metavar='FILE', help='file of class names, one a line')
    add('--dataset-download', action='store_true', help='fetch a torch/ data set')
    add('--limit', type=int, metavar='N', help='only the first N images, for a quick look')


def names_images(args: argparse.Namespace, *more: str) -> bool:
    """Return whether the flags name images; those that say how to read them, and `more`, need some."""
    if args.dataset or args.data_dir:
        return True
    names = ('input_key', 'target_key', 'dataset_download', *more)
    if args.split != 'validation' or any(getattr(args, name) for name in names):
        raise ValueError('Got flags of clean images, but no such images. Pass --dataset or --data-dir too.')
    return False


def models_from(args: argparse.Namespace) -> list[PixelModel]:
    """Return the models that the flags name; their names are unique."""
    try:
        device = torch.device(args.device)
        if args.device == 'cuda' and (rank := os.environ.get('LOCAL_RANK')):  # torchrun's processes have one each
            device = torch.device('cuda', int(rank) % max(torch.cuda.device_count(), 1))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'--device {args.device}: {error}') from error
    models = [load_model(spec, args.num_classes, device, args.mean, args.std) for spec in args.model]
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f'Two models are called {twice[0]!r}; label them: --model a:{twice[0]}=FILE b:{twice[0]}=FILE.'
        )
    return models


def images_from(args: argparse.Namespace, size: int, resize: int | None = None) -> ImageSet:
    """Return the images that the flags name, `size` x `size`."""
    if not args.dataset and not args.data_dir:
        raise ValueError('No clean images: pass --data-dir DIR for an image folder, or --dataset NAME as in timm.')
    reader = {key: getattr(args, key) for key in ('input_key', 'target_key', 'class_map')}
    reader['download'] = args.dataset_download
    return read_images(args.dataset, args.data_dir, args.split, size, resize, args.limit, **reader)
