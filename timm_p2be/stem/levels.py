"""What every stem over pixel codes does first: check the images, turn them into levels, find the padding."""

from typing import Any

import torch
from torch import Tensor

from timm_p2be.encodings import pixel_levels, warn_if_not_pixels

_RANGE_CHECKS = 4  # eager float batches whose range a stem looks at


class _NoImageGradient(torch.autograd.Function):
    """Identity on the feature map that refuses to pretend the image had a gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, images: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(
            'The pixel encoding is a table lookup, so the image has no gradient; a zero would make an attack look '
            'weak. Attack a differentiable stand-in of the model (attack_view), or detach the images if only the '
            'parameters are trained.'
        )


class LevelStem:
    """Mixin of the modules that stand in for a first convolution.

    Attributes:
        in_chans: C, colors of the image.
        kernel_size: (height, width), like the next three named as in `torch.nn.Conv2d`.
        stride: (height, width).
        padding: (height, width).
        dilation: (height, width).
        same_padding: whether padding is TensorFlow's dynamic 'same' instead.
    """

    in_chans: int
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any
    same_padding: bool
    _range_checks: int

    def read_levels(self, images: Tensor) -> Tensor:
        """Return the levels of (B, C, H, W) images.

        Raises:
            ValueError: another dtype, another number of axes or of channels.
        """
        # a trace would warn that it fixes the outcome of the comparison
        if not torch.jit.is_tracing() and (images.ndim != 4 or images.shape[1] != self.in_chans):
            raise ValueError(
                f'Got images of shape {list(images.shape)}; this stem reads (B, {self.in_chans}, H, W). '
                'Set in_chans when the model is created to read another number of channels.'
            )
        return pixel_levels(images)

    def geometry(self, levels: Tensor) -> tuple[list[int], list[int], list[int]]:
        """Return stride, padding and dilation for a lookup in `levels`."""
        return [self.stride[0], self.stride[1]], self._borders(levels), [self.dilation[0], self.dilation[1]]

    def _borders(self, levels: Tensor) -> list[int]:
        """Return the padding: (height, width), or (left, right, top, bottom) if it depends on the image's size."""
        if not self.same_padding:
            return [self.padding[0], self.padding[1]]
        top, bottom = self._same_padding(0, levels.shape[2])
        left, right = self._same_padding(1, levels.shape[3])
        return [left, right, top, bottom]

    def _same_padding(self, axis: int, size: int) -> tuple[int, int]:
        """Return the padding before and after one axis that makes the output ceil(size / stride) long."""
        stride, dilation, kernel = self.stride[axis], self.dilation[axis], self.kernel_size[axis]
        outputs = (size + stride - 1) // stride
        total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        return total // 2, total - total // 2

    @torch.jit.unused
    def check_range(self, images: Tensor) -> None:
        """Look at the range of the first eager float batches: a loader's mistake shows there, later ones are free."""
        if self._range_checks >= _RANGE_CHECKS or images.dtype == torch.uint8 or images.is_meta:
            return
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        self._range_checks = _RANGE_CHECKS if warn_if_not_pixels(images) else self._range_checks + 1

    @torch.jit.unused
    def refuse_image_gradient(self, features: Tensor, images: Tensor) -> Tensor:
        """Return `features` such that back-propagation to `images` raises an error instead of finding nothing."""
        if images.requires_grad and torch.is_grad_enabled():
            return _NoImageGradient.apply(features, images)
        return features
