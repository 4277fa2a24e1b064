"""attack_view: a model that gradient attacks of any library can use, with a stated gradient instead of none.

The lookup of a code has no derivative. Backward Pass Differentiable Approximation (Athalye, Carlini and Wagner,
"Obfuscated Gradients Give a False Sense of Security", ICML 2018) keeps the exact forward pass and puts the derivative
of a similar smooth function into the backward pass: a surrogate.
"""

from typing import Any

import torch
from torch import Tensor, nn

from timm_p2be.encodings import LEVELS, pixel_levels
from timm_p2be.robustness.pixel_model import PixelModel, as_pixel_model, tied_copy
from timm_p2be.stem import EncodedConv2d, encoded_stem

SURROGATES = ('linear', 'kernel', 'straight-through', 'ramp')


def attack_view(model: nn.Module, surrogate: str = 'auto', sigma: float = 4.0) -> nn.Module:
    """Return a differentiable stand-in of a model for gradient attacks: float images in [0, 1] to (B, K) logits.

    Forward it is the model itself: an image is rounded to levels, which on the pixel grid k / 255 changes nothing, and
    the logits are the model's, bit for bit. Backward, the code of a pixel counts as a smooth function of its value:

    - 'linear': the codes of neighboring levels joined by straight lines; at a level the mean of the slopes on both
      sides. Zero where neighbors share a code.
    - 'kernel': the mean of all codes under a Gaussian of `sigma` levels round the pixel, which sees the trend across
      equal or noisy neighbors.
    - 'straight-through': the line that fits each bit best over all 256 levels; 'kernel' with a large sigma.
    - 'ramp', thermometer codes only: every bit falls linearly over the bin below its threshold, as in the attack
      that broke thermometer encoding (anishathalye/obfuscated-gradients, thermometer/robustml_attack.py).
    - 'auto': 'kernel', or 'straight-through' for a model of pixel values, whose only surrogate it is: the identity.

    Mean and std are inside. The view shares weights with the model, follows its training, and is in evaluation mode.

    Example:
        >>> import timm
        >>> view = attack_view(timm.create_model('wrn10_2_p2be', num_classes=10))
        >>> images = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> bool(torch.autograd.grad(view(images).sum(), images)[0].abs().sum() > 0)
        True
    """
    pixel_model = as_pixel_model(model)
    surrogate = choose_surrogate(pixel_model, surrogate)
    if not 0 < sigma < float('inf'):
        raise ValueError(f'Got sigma={sigma!r}; the width of the kernel is a positive number of levels.')
    view = tied_copy(pixel_model)
    name, stem = encoded_stem(view.model)
    if stem is None:
        return _RoundedModel(view).eval()
    view.model.set_submodule(name, _SurrogateStem(stem, surrogate, sigma))
    return view.eval()


def choose_surrogate(model: PixelModel, surrogate: str = 'auto') -> str:
    """Return a surrogate that fits a model; 'auto' becomes the best one."""
    allowed = ('auto', *surrogates_for(model))
    if surrogate not in allowed:
        reads = f'{model.encoding} codes' if model.encoding else 'pixel values'
        raise ValueError(
            f'Surrogate {surrogate!r} does not fit {model.name}, which reads {reads}; allowed are {list(allowed)}.'
        )
    if surrogate != 'auto':
        return surrogate
    return 'kernel' if model.encoding else 'straight-through'


def surrogates_for(model: PixelModel) -> tuple[str, ...]:
    """Return the surrogates that fit a model."""
    if model.encoding is None:
        return ('straight-through',)
    return SURROGATES if model.encoding == 'thermometer' else SURROGATES[:3]


def code_slopes(codes: Tensor, surrogate: str, sigma: float = 4.0) -> Tensor:
    """Return the derivative of a surrogate at every level, per level: (256, M) float32 from the (256, M) codes."""
    codes = codes.detach().float()
    levels = torch.arange(LEVELS, device=codes.device, dtype=torch.float32)
    if surrogate == 'linear':
        return torch.gradient(codes, dim=0)[0]
    if surrogate == 'ramp':
        width = LEVELS / codes.shape[1]
        # Eq. 2: bit i is 0 below a threshold that rises with i and 1 nowhere above it, so its last 1 comes before it
        threshold = codes.sum(dim=0)
        below = threshold - levels.unsqueeze(1)
        # the last bit never falls: its ramp would lie beyond level 255
        return torch.where((below > 0) & (below <= width) & (threshold < LEVELS), -1 / width, 0.0)
    if surrogate == 'straight-through':
        weights = torch.full((LEVELS, LEVELS), 1 / LEVELS, device=codes.device)
    else:
        weights = torch.softmax(-(levels - levels.unsqueeze(1)).square() / (2 * sigma * sigma), dim=1)
    # slope of the weighted mean: covariance of level and code; divided by the variance it is the fitted line's
    mean = weights @ levels
    covariance = (weights * (levels - mean.unsqueeze(1))) @ codes
    if surrogate == 'straight-through':
        return covariance / levels.var(correction=0)
    return covariance / (sigma * sigma)


class _RoundedModel(nn.Module):
    """A model of pixel values on the pixel grid; rounding passes gradients through."""

    def __init__(self, model: PixelModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        rounded = pixel_levels(images).to(images.dtype) / 255
        return self.model(rounded + (images - images.detach()))


class _SurrogateStem(nn.Module):
    """The encoded stem with a gradient for the image."""

    def __init__(self, stem: EncodedConv2d, surrogate: str, sigma: float) -> None:
        super().__init__()
        self.stem = stem
        self.surrogate = surrogate
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(pixel_levels(images))
        if not (images.requires_grad and torch.is_grad_enabled()):
            return features
        return _SurrogateGradient.apply(features, images, self)

    def image_gradient(self, grad: Tensor, images: Tensor) -> Tensor:
        """Return the surrogate gradient of (B, C, H, W) images in [0, 1] from that of the features."""
        stem = self.stem
        levels = pixel_levels(images)
        stride, borders, dilation = stem.geometry(levels)
        left, right, top, bottom = borders if len(borders) == 4 else (borders[1], borders[1], borders[0], borders[0])
        # a kernel of codes x slopes would be as large as the code table: one product of slopes and planes is enough
        slopes = code_slopes(stem.embedding.codes(), self.surrogate, self.sigma)
        weight = stem.weight.detach().float()
        result = []
        for part, seen in zip(levels.split(_IMAGES), grad.float().split(_IMAGES), strict=True):
            batch, channels, height, width = part.shape
            padded = (batch, weight.shape[1], height + top + bottom, width + left + right)
            planes = nn.grad.conv2d_input(padded, weight, seen, stride, 0, dilation)
            planes = planes[:, :, top : top + height, left : left + width].unflatten(1, (-1, channels))
            result.append(torch.einsum('bmchw,bchwm->bchw', planes, slopes[part.long()]))
        return (torch.cat(result) * (LEVELS - 1)).to(images.dtype)


_IMAGES = 32  # whose code planes are in memory at a time


class _SurrogateGradient(torch.autograd.Function):
    """Identity on the features; its second input, the images, gets the surrogate's gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, images: Tensor, stem: _SurrogateStem) -> Tensor:
        ctx.save_for_backward(images)
        ctx.stem = stem
        return features.view_as(features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, ctx.stem.image_gradient(grad, *ctx.saved_tensors), None
