"""Pixel levels and their codes: the rule from pixel to level, the fixed tables, the sign of a learned one."""

import math
import warnings

import torch
from torch import Tensor, nn

ENCODINGS = ('p2be', 'onehot', 'thermometer')
INITS = ('normal', 'thermometer', 'smooth', 'linear')
LEVELS = 256

_LINEAR_BITS = 9  # eight binary digits, and the bit that is always on


def pixel_levels(images: Tensor) -> Tensor:
    """Return the uint8 levels of `images`, which are uint8 already or floats in [0, 1], of any shape.

    Floats become round(255 x), clamped to 0..255. Every k / 255 maps to k, also when it was rounded to float16 or
    bfloat16.

    Example:
        >>> pixel_levels(torch.tensor([0.0, 0.5, 1.0, 2.0])).tolist()
        [0, 128, 255, 255]
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(
            f'Got images of dtype {images.dtype}; allowed are uint8 levels (0..255) or floats in [0, 1]. '
            'Convert with images.to(torch.uint8) if they hold levels.'
        )
    # in place: on large images the copies are what memory peaks at
    return (images.detach().float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def warn_if_not_pixels(images: Tensor) -> bool:
    """Warn when float `images` lie far outside [0, 1], as an ImageNet-normalized batch does.

    A margin of 0.5 is allowed to augmentations that overshoot. Returns whether the warning was given.
    """
    if images.numel() == 0:
        return False
    low, high = torch.stack(images.detach().aminmax()).tolist()  # one wait for the device
    if low >= -0.5 and high <= 1.5:
        return False
    values = images.detach().float()
    # neighbors in the N(0, 1) on which timm's scripts warm up do not resemble each other, in an image they do
    if abs(values.square().mean() - 1) < 0.1 and abs((values[..., 1:] * values[..., :-1]).mean()) < 0.06:
        return False
    warnings.warn(
        f'The pixel encoding got values from {low:.3g} to {high:.3g}, but it reads pixels in [0, 1] (or uint8 levels) '
        'and clamps the rest. Has the batch been normalized by a mean and std? Encoded models declare mean 0 and '
        'std 1; pass --mean 0 0 0 --std 1 1 1, or use timm.data.resolve_data_config(model=model).',
        stacklevel=3,
    )
    return True


def check_num_bits(num_bits: int) -> None:
    if isinstance(num_bits, bool) or not isinstance(num_bits, int) or num_bits < 1:
        raise ValueError(f'Got num_bits={num_bits!r}; it must be an integer of at least 1 (the paper uses 64).')


def onehot_codes(num_bits: int) -> Tensor:
    """Return the (256, M) float32 one-hot table: bit i of level k is 1 iff i = min(floor(k M / 255), M - 1), else 0.

    Eq. 1 of the paper with its last bin closed as in nutszebra/Pixel-to-Binary-Embedding, third_party/
    ResNeXt_DenseNet_s/models/onehot.py; the reasons are in docs/protocol.md.

    Example:
        >>> onehot_codes(4)[128].tolist()
        [0.0, 0.0, 1.0, 0.0]
    """
    check_num_bits(num_bits)
    bins = (torch.arange(LEVELS) * num_bits // (LEVELS - 1)).clamp(max=num_bits - 1)  # integers are exact
    return nn.functional.one_hot(bins, num_bits).float()


def thermometer_codes(num_bits: int) -> Tensor:
    """Return the (256, M) thermometer table: bit i of level k is 1 iff min(floor(k M / 255), M - 1) <= i (ones last).

    Eq. 2 of the paper, its last bin closed as that of `onehot_codes`.

    Example:
        >>> thermometer_codes(4)[128].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    return onehot_codes(num_bits).cumsum(dim=1)


def linear_codes(num_bits: int) -> Tensor:
    """Return a table on whose codes every affine function of the level is linear: thermometer above, digits below.

    The levels are cut into cells of equal size (or one more), the last bit is always on, and for t + d + 1 bits

        level = sum over i < t of (width of cell i) * bit i  +  sum over i < d of 2^i * bit (t + i)

    Thermometer bits say which cell a level lies in, d binary digits where in the cell; d is as small as M allows.
    Neighboring levels differ in at most d + 1 bits: 8 for M = 9 (t = 1, d = 7), 3 for M = 64 (t = 60, d = 3), 1 for
    M = 256 (t = 255, d = 0). Beyond 256 bits some thermometer bits are equal.

    Example:
        >>> linear_codes(9)[130].tolist()
        [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """
    check_num_bits(num_bits)
    if num_bits < _LINEAR_BITS:
        raise ValueError(
            f'Got num_bits={num_bits}; a table on which the level is linear needs at least {_LINEAR_BITS} bits, eight '
            'digits and one that is always on. Use more bits, or another init (in convert: preserve=False).'
        )
    digits = next(d for d in range(9) if math.ceil(LEVELS / (num_bits - d)) <= 2**d)
    thermometer = num_bits - digits - 1
    levels = torch.arange(LEVELS)[:, None]
    starts = (torch.arange(thermometer + 1) * LEVELS // (thermometer + 1))[1:].clamp(min=1)
    reached = levels >= starts
    offsets = levels - (reached * starts).amax(dim=1, keepdim=True)
    below = (offsets >> torch.arange(digits)) & 1
    return torch.cat([reached, below.bool(), torch.ones(LEVELS, 1, dtype=torch.bool)], dim=1).float()


def smooth_latents(
    num_bits: int,
    length: float = 64,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return (256, M) latents N(0, 1), filtered along the levels by a Gaussian of standard deviation `length` levels.

    Rescaled to unit variance. Neighboring levels then differ in about 0.225 / length of their bits (the rate of zeros
    of a Gaussian process: Rice's formula), in 0.22 of 64 with a length of 64.
    """
    reach = int(4 * length) + 1
    noise = torch.randn(LEVELS + 2 * reach, num_bits, generator=generator, device=device)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=device) / length) ** 2)
    smooth = nn.functional.conv1d(noise.T[:, None], kernel[None, None])[:, 0].T
    return smooth / smooth.std()


def fixed_codes(encoding: str, num_bits: int) -> Tensor:
    """Return the (256, num_bits) table of the encoding 'onehot' or 'thermometer'."""
    return {'onehot': onehot_codes, 'thermometer': thermometer_codes}[encoding](num_bits)


def binarize(weight: Tensor) -> Tensor:
    """Return the codes (sign(w) + 1) / 2 of latents w, with the approximate-sign gradient of the paper.

    Forward: exactly 1 where w >= 0 and exactly 0 elsewhere (Eq. 4 and 5), in the dtype of `weight`. Backward:
    0.5 (2 - 2 abs(w)) inside (-1, 1) and 0 outside, the product of the factor in Eq. 5 and the derivative in Eq. 6.
    """
    clamped = weight.clamp(-1, 1)
    smooth = clamped - 0.5 * clamped * clamped.abs()  # its derivative is 1 - |w|
    return (weight >= 0).to(weight.dtype) + (smooth - smooth.detach())
