"""The paper's augmentation under flags of timm's own train.py. Opt-in: it puts a function of ours before one of timm's.

    python train.py --device-modules timm_p2be timm_p2be.timm_script --aa p2be-3 --train-crop-mode zeropad4 ...

`--aa p2be-S` is `AugMix` at severity S; `--train-crop-mode zeropadN` is `zero_padded_crop`, a flip and a crop of the
image padded by N black pixels, for images of the network's size (`--scale` and `--ratio` say nothing then). timm by
itself refuses both names, so nothing else changes. Under `--aug-splits 3` it crops once and augments two copies, as
the paper does. `timm-p2be run` imports this module; docs/timm_scripts.md compares the result with `timm-p2be train`.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from timm.data import create_transform, transforms_factory
from torchvision.transforms import Compose

from timm_p2be.data import AugMix, zero_padded_crop


def _training_transform(
    timms: Callable[..., Any],
    img_size: int | tuple[int, int] = 224,
    *,
    train_crop_mode: str | None = None,
    auto_augment: str | None = None,
    hflip: float = 0.5,
    separate: bool = False,
    **others: Any,
) -> Any:
    """Do what `timms` does, with our crop and our AugMix in its three stages where they are asked for."""
    padding = _number_in(train_crop_mode, 'zeropad', r'zeropad(\d+)', '--train-crop-mode zeropadN, zeropad4 for CIFAR')
    severity = _number_in(auto_augment, 'p2be', r'p2be-(\d+\.?\d*)', '--aa p2be-SEVERITY, p2be-3 for CIFAR')
    known: dict[str, Any] = {'train_crop_mode': train_crop_mode, 'auto_augment': auto_augment, 'hflip': hflip}
    if padding is not None:
        known |= {'train_crop_mode': None, 'hflip': 0.0}
    if severity is not None:
        known |= {'auto_augment': None, 'color_jitter': None}  # timm's policies switch the jitter off, too
    try:
        crop, augment, convert = timms(img_size, **{**others, **known}, separate=True)
    except AssertionError as error:
        raise ValueError(
            f'timm refuses --train-crop-mode {train_crop_mode} with --aa {auto_augment}. {error} Crop modes are rrc, '
            'rkrc, rkrr and zeropadN; p2be-SEVERITY stands beside the policies of timm.'
        ) from error
    if padding is not None:
        crop = Compose([zero_padded_crop(img_size, int(padding), hflip), *crop.transforms[1:]])
    if severity is not None:
        augment = Compose([AugMix(severity), *augment.transforms])
    if separate:
        return crop, augment, convert
    return Compose([*crop.transforms, *augment.transforms, *convert.transforms])


def _number_in(value: str | None, name: str, pattern: str, allowed: str) -> float | None:
    if not value or not value.startswith(name):
        return None
    if not (found := re.fullmatch(pattern, value)):
        raise ValueError(f'Got {value!r}; allowed is {allowed}.')
    return float(found[1])


def _install() -> None:
    timms: Any = getattr(transforms_factory, 'transforms_imagenet_train', None)
    transforms_factory.transforms_imagenet_train = partial(_training_transform, timms)
    try:
        create_transform(32, is_training=True, train_crop_mode='zeropad4', auto_augment='p2be-3')
    except Exception as error:  # a timm of the future may fail in any way
        transforms_factory.transforms_imagenet_train = timms
        raise ImportError(
            f'timm {timm.__version__} makes its training transforms otherwise than by transforms_imagenet_train of '
            f'timm.data.transforms_factory ({error!r}), so that --aa p2be-S and --train-crop-mode zeropadN cannot be '
            'added. Install timm 1.0.31, or train by `timm-p2be train`.'
        ) from error


_install()
