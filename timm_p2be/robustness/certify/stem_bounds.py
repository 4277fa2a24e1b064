"""Bounds of an encoded first convolution over all images within eps levels: exact, and nearly free."""

import torch
from torch import Tensor, nn

from timm_p2be.encodings import LEVELS
from timm_p2be.lookup import lookup_conv2d
from timm_p2be.stem import EncodedConv2d


def stem_bounds(stem: EncodedConv2d, levels: Tensor, eps: int) -> tuple[Tensor, Tensor]:
    """Return the least and the largest feature map, (B, O, H', W'), over all images within `eps` of `levels`.

    A feature is a sum over taps of a number that depends on one pixel value, and every tap reads another value. So its
    largest value is the sum of the largest numbers within each window of 2 eps + 1 levels: a convolution of the same
    levels, uint8 (B, C, H, W), whose table went through a sliding maximum. Each feature attains its bounds; both have
    gradients with respect to table and kernel.

    Example:
        >>> stem = EncodedConv2d(3, 4, 3, padding=1)
        >>> lower, upper = stem_bounds(stem, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), eps=2)
        >>> bool((lower <= upper).all())
        True
    """
    codes = stem.embedding.codes().to(stem.weight.dtype)
    # (O, C kh kw, 256): what each level adds to each feature through each tap
    kernel = stem.weight.unflatten(1, (-1, stem.in_chans))
    table = torch.einsum('km,omcij->ocijk', codes, kernel)
    stride, padding, dilation = stem.geometry(levels)
    every_level = torch.eye(LEVELS, dtype=stem.weight.dtype, device=stem.weight.device)
    bounds = []
    for sign in (-1, 1):
        extreme = sign * nn.functional.max_pool1d((sign * table).flatten(1, 3), 2 * eps + 1, stride=1, padding=eps)
        planes = extreme.view_as(table).permute(0, 4, 1, 2, 3).flatten(1, 2)
        features = lookup_conv2d(levels, every_level, planes, stride, padding, dilation)
        bounds.append(features if stem.bias is None else features + stem.bias.view(-1, 1, 1))
    return bounds[0], bounds[1]
