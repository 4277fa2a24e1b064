"""Stem weights with which an encoded model computes the function that an RGB model computed.

An RGB stem convolves v_c(k) = (k / 255 - mean_c) / std_c for level k of color c, and pads with zeros after
normalizing. Code planes are padded with zeros, too. So if the codes satisfy e_k . a_c = v_c(k) for every level, and
plane m of color c gets the kernel a_c[m] W[:, c], both stems agree, borders included. Mean and std have to go into the
planes: absorbed into the bias, the mean would also be subtracted where the image does not reach.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def keep_function(conv: nn.Conv2d, stem: nn.Conv2d, codes: Tensor, cfg: Mapping[str, Any]) -> None:
    """Set weight and bias of an encoded stem so that it computes on levels what the RGB `conv` does on their values.

    Plane m C + c of `stem` is bit m, by `codes` (256, M), of color c; `cfg` is the model's `pretrained_cfg`.
    """
    if conv.weight.is_meta:
        raise ValueError('preserve=True needs weights, and these are on the meta device. Load them first.')
    remedy = 'Pass mean= and std= to convert, as the model was trained with.'
    factors = plane_factors(codes, *normalization(cfg, conv.in_channels, remedy))
    kernel = applied_kernel(conv)
    planes = stem.weight.unflatten(1, tuple(factors.shape))
    for plane, factor in zip(planes.unbind(1), factors, strict=True):  # bit by bit: a ViT has gigabytes of them
        plane.copy_((kernel * factor.view(1, -1, 1, 1)).to(plane.dtype))
    if stem.bias is not None and conv.bias is not None:
        stem.bias.copy_(conv.bias)


def normalization(cfg: Mapping[str, Any], in_chans: int, remedy: str) -> tuple[list[float], list[float]]:
    """Return `mean` and `std` of every color; `cfg` has one for each or one for all. Errors end in `remedy`."""
    found = []
    for name in ('mean', 'std'):
        values = [float(value) for value in cfg.get(name) or ()]
        values = values * in_chans if len(values) == 1 else values
        if len(values) != in_chans or not all(map(math.isfinite, values)) or (name == 'std' and min(values) <= 0):
            raise ValueError(
                f'Got {name}={cfg.get(name)!r} for images of {in_chans} channels; allowed are {in_chans} finite values '
                f'(of std: positive), or 1 for all. {remedy}'
            )
        found.append(values)
    return found[0], found[1]


def plane_factors(codes: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return the (M, C) float64 factors a_c of the code planes with which every level weighs its normalized value.

    Of the least-squares solutions the one of least norm: bits that are always equal share their weight. Consecutive
    levels that share a code get the mean of their values, the middle of their range: (n - 1) / 2 levels off in a bin of
    n.
    """
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    values = (levels - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std, dtype=torch.float64)
    return torch.linalg.lstsq(codes.detach().cpu().double(), values, driver='gelsd').solution


def applied_kernel(conv: nn.Conv2d) -> Tensor:
    """Return the (O, C, kh, kw) float64 kernel that `conv` applies to an image.

    What a layer with weight standardization applies is not its parameter; so the layer is shown unit impulses.
    """
    probe = copy.deepcopy(conv).cpu().double()
    probe.bias = None
    probe.dilation = (1, 1)
    probe.padding = (0, 0)
    probe.stride = probe.kernel_size  # TensorFlow's padding, found from the image's size, is 0 then
    taps = conv.weight[0].numel()
    impulses = torch.eye(taps, dtype=torch.float64).view(taps, *conv.weight.shape[1:])
    return probe(impulses).flatten(1).T.reshape(conv.weight.shape)
