"""Binary pixel codes: the 256 x M tables of P2BE, one-hot and thermometer encoding.

A pixel level k (0..255) is replaced by its code e_k in {0,1}^M, the k-th row of a table. One-hot and thermometer
tables are fixed, P2BE's is the sign of a learned latent table. Everything downstream only sees the table.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ENCODINGS = ('p2be', 'onehot', 'thermometer')
INITS = ('normal', 'thermometer')
LEVELS = 256

_THERMOMETER_LATENT = 0.5  # magnitude of the latents after init='thermometer': the bit flips when they cross 0


class EmbeddingParameter(nn.Parameter):
    """Learned latent table of a `PixelEmbedding`; its type tells optimizers which parameter the table is.

    A type survives `copy.deepcopy` and pickling, an attribute set on a parameter does not.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        return EmbeddingParameter, (self.detach(), self.requires_grad)


def pixel_levels(images: Tensor) -> Tensor:
    """Return the pixel levels of `images`.

    Args:
        images: uint8 levels, or floats in [0, 1] (float32, float16 or bfloat16), any shape.

    Returns:
        uint8 tensor of the same shape; floats become round(255 x), clamped to 0..255. Every k / 255 maps to k, also
        when it was rounded to float16 or bfloat16.

    Raises:
        ValueError: `images` has another dtype.

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


def _level_bins(num_bits: int) -> Tensor:
    """Return the bin min(floor(k M / 255), M - 1) of every level k, (256,) int64, in exact integer arithmetic."""
    levels = torch.arange(LEVELS)
    return (levels * num_bits // (LEVELS - 1)).clamp(max=num_bits - 1)


def onehot_codes(num_bits: int) -> Tensor:
    """Return the one-hot table: bit i of level k is 1 iff i = min(floor(k M / 255), M - 1).

    Eq. 1 of the paper with its last bin closed as in nutszebra/Pixel-to-Binary-Embedding, third_party/
    ResNeXt_DenseNet_s/models/onehot.py; the reasons are in docs/protocol.md.

    Args:
        num_bits: M, at least 1.

    Returns:
        (256, num_bits) float32 tensor of 0 and 1.

    Raises:
        ValueError: `num_bits` is not a positive integer.

    Example:
        >>> onehot_codes(4)[128].tolist()
        [0.0, 0.0, 1.0, 0.0]
    """
    _check_num_bits(num_bits)
    return nn.functional.one_hot(_level_bins(num_bits), num_bits).float()


def thermometer_codes(num_bits: int) -> Tensor:
    """Return the thermometer table: bit i of level k is 1 iff min(floor(k M / 255), M - 1) <= i (ones last).

    Eq. 2 of the paper with its last bin closed as in nutszebra/Pixel-to-Binary-Embedding, third_party/
    ResNeXt_DenseNet_s/models/thermometer.py; the reasons are in docs/protocol.md.

    Args:
        num_bits: M, at least 1.

    Returns:
        (256, num_bits) float32 tensor of 0 and 1.

    Raises:
        ValueError: `num_bits` is not a positive integer.

    Example:
        >>> thermometer_codes(4)[128].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    return onehot_codes(num_bits).cumsum(dim=1)


def binarize(weight: Tensor) -> Tensor:
    """Return the codes (sign(w) + 1) / 2 of latents w, with the approximate-sign gradient of the paper.

    Forward: exactly 1 where w >= 0 and exactly 0 elsewhere (Eq. 4 and 5). Backward: 0.5 (2 - 2 |w|) inside (-1, 1)
    and 0 outside, the product of the factor in Eq. 5 and the derivative in Eq. 6.

    Args:
        weight: latents, any shape, floating point.

    Returns:
        Tensor of 0 and 1 of the shape and dtype of `weight`.
    """
    clamped = weight.clamp(-1, 1)
    smooth = clamped - 0.5 * clamped * clamped.abs()  # its derivative is 1 - |w|
    return (weight >= 0).to(weight.dtype) + (smooth - smooth.detach())


def _check_num_bits(num_bits: int) -> None:
    if isinstance(num_bits, bool) or not isinstance(num_bits, int) or num_bits < 1:
        raise ValueError(f'Got num_bits={num_bits!r}; it must be an integer of at least 1 (the paper uses 64).')


class PixelEmbedding(nn.Module):
    """Table of binary codes, one for each of the 256 pixel levels.

    Args:
        encoding: 'p2be' (learned), 'onehot' or 'thermometer' (fixed).
        num_bits: code length M, at least 1.
        init: how P2BE's latents start: 'normal' is N(0, 1) as in the paper (Algorithm 1), 'thermometer' is +0.5
            where the thermometer code is 1 and -0.5 where it is 0, plus noise of standard deviation 0.05: neighbouring
            levels share their bits from the first step, which short runs need.

    Attributes:
        weight: latent table, `EmbeddingParameter` (256, num_bits) float32, or None for a fixed encoding. It stays
            float32 when the module is cast: float16 would turn -1e-9 into -0 and so a 0 into a 1, and a bfloat16
            latent does not move at the learning rates used here.

    Raises:
        ValueError: unknown `encoding` or `init`, `num_bits` below 1, or an `init` given to a fixed encoding.

    Example:
        >>> PixelEmbedding('thermometer', num_bits=4).codes().shape
        torch.Size([256, 4])
    """

    def __init__(self, encoding: str = 'p2be', num_bits: int = 64, init: str = 'normal') -> None:
        super().__init__()
        if encoding not in ENCODINGS:
            raise ValueError(f'Unknown encoding {encoding!r}; choose one of {list(ENCODINGS)}.')
        if init not in INITS:
            raise ValueError(f'Unknown init {init!r}; choose one of {list(INITS)}.')
        if encoding != 'p2be' and init != 'normal':
            raise ValueError(f"init={init!r} needs a learned table; encoding {encoding!r} is fixed. Use 'p2be'.")
        _check_num_bits(num_bits)
        self.encoding = encoding
        self.num_bits = num_bits
        self.init = init
        self.weight: EmbeddingParameter | None = None
        self.table: Tensor | None
        if encoding == 'p2be':
            self.weight = EmbeddingParameter(torch.empty(LEVELS, num_bits, dtype=torch.float32))
        # a fixed table is code, not state: rebuilt from its name, absent from checkpoints
        fixed = None if encoding == 'p2be' else torch.empty(LEVELS, num_bits, dtype=torch.float32)
        self.register_buffer('table', fixed, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the latents anew as `init` says, or fill the fixed table."""
        if self.weight is None:
            self.init_non_persistent_buffers()
            return
        with torch.no_grad():
            if self.init == 'normal':
                self.weight.normal_()
            else:
                signs = thermometer_codes(self.num_bits).to(self.weight.device) * 2 - 1
                self.weight.normal_(std=0.05).add_(signs * _THERMOMETER_LATENT)

    def init_non_persistent_buffers(self) -> None:
        """Fill the fixed table, which `to_empty` leaves blank; timm's reinit_non_persistent_buffers calls this."""
        if self.table is not None:
            build = {'onehot': onehot_codes, 'thermometer': thermometer_codes}[self.encoding]
            self.table.copy_(build(self.num_bits))

    def codes(self) -> Tensor:
        """Return the (256, num_bits) float32 table of 0 and 1; differentiable in `weight` (Eq. 5 and 6)."""
        if self.weight is not None:
            return binarize(self.weight)
        assert self.table is not None
        return self.table

    def freeze(self) -> 'PixelEmbedding':
        """Exclude the table from training and return the module.

        Raises:
            ValueError: the encoding has no learned table.
        """
        if self.weight is None:
            raise ValueError(f'Encoding {self.encoding!r} is fixed already; only a p2be table can be frozen.')
        self.weight.requires_grad_(False)
        return self

    def forward(self, levels: Tensor) -> Tensor:
        """Return the codes of uint8 `levels` of shape (...), as (..., num_bits)."""
        return nn.functional.embedding(levels.long(), self.codes())

    def extra_repr(self) -> str:
        return f'{self.encoding!r}, num_bits={self.num_bits}'

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'PixelEmbedding':
        """Move the table as asked, but never change its dtype (float64 for gradient checks excepted)."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype in (torch.float32, torch.float64):
                return applied
            return tensor.to(applied.device, torch.float32)

        super()._apply(keep_dtype, recurse)
        self._restore_type()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._restore_type()

    def _restore_type(self) -> None:
        """torch hands back a plain parameter after materialising or assigning one; mark the table again."""
        weight = self.weight
        if weight is not None and not isinstance(weight, EmbeddingParameter):
            latents = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
            self.weight = EmbeddingParameter(latents, requires_grad=weight.requires_grad)


def warn_if_not_pixels(images: Tensor) -> bool:
    """Warn when float `images` lie far outside [0, 1], as an ImageNet-normalised batch does.

    Args:
        images: float tensor, nominally in [0, 1]; a margin of 0.5 is allowed to augmentations that overshoot.

    Returns:
        True if the images were out of range and the warning was given.
    """
    if images.numel() == 0:
        return False
    low, high = (bound.item() for bound in images.detach().aminmax())
    if low >= -0.5 and high <= 1.5:
        return False
    warnings.warn(
        f'The pixel encoding got values from {low:.3g} to {high:.3g}, but it reads pixels in [0, 1] (or uint8 levels) '
        'and clamps the rest. Has the batch been normalised by a mean and std? Encoded models declare mean 0 and '
        'std 1; pass --mean 0 0 0 --std 1 1 1, or use timm.data.resolve_data_config(model=model). (Random noise, on '
        'which some scripts warm up, is harmless.)',
        stacklevel=3,
    )
    return True
