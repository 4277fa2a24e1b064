"""attack_view: a model that gradient attacks of any library can use, with a stated gradient instead of none.

The lookup of a code has no derivative. Backward Pass Differentiable Approximation (Athalye, Carlini and Wagner,
"Obfuscated Gradients Give a False Sense of Security", ICML 2018) keeps the exact forward pass and puts the derivative
of a similar smooth function into the backward pass: a surrogate.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from timm_p2be.encodings import LEVELS, pixel_levels
from timm_p2be.encodings.statistics import code_statistics
from timm_p2be.robustness.pixel_model import PixelModel, as_pixel_model, tied_copy
from timm_p2be.stem import EncodedConv2d, encoded_stem

_logger = logging.getLogger(__name__)

SURROGATES = ('linear', 'kernel', 'straight-through', 'ramp')


def attack_view(model: nn.Module, surrogate: str = 'auto', eps: float = 8, sigma: float | None = None) -> nn.Module:
    """Return a differentiable stand-in of a model for gradient attacks: float images in [0, 1] to (B, K) logits.

    Forward it is the model itself: an image is rounded to levels, which on the pixel grid k / 255 changes nothing, and
    the logits are the model's, bit for bit. Backward, the code of a pixel counts as a smooth function of its value:

    - 'linear': the codes of neighboring levels joined by straight lines; at a level the mean of the slopes on both
      sides. Zero where neighbors share a code, so it misleads on smooth tables (thermometer); right for rough ones.
    - 'kernel': the mean of all codes under a Gaussian of `sigma` levels round the pixel, which sees the trend across
      equal neighbors. Misleads on rough tables where it is wider than the bound.
    - 'straight-through': the line that fits each bit best over all 256 levels; 'kernel' with a large sigma.
    - 'ramp', thermometer codes only: every bit falls linearly over the bin below its threshold, as in the attack
      that broke thermometer encoding (anishathalye/obfuscated-gradients, thermometer/robustml_attack.py).
    - 'auto': 'kernel', or 'straight-through' for a model of pixel values, whose only surrogate it is: the identity.

    No surrogate is right for every table: the attacks on codes themselves, `DGA` and `LSPGA`, need none. Mean and std
    are inside. The view shares weights with the model, follows its training, and is in evaluation mode; it can be
    differentiated twice. Round what an attack returns by `round_toward`, which keeps every bound.

    Args:
        model: timm model, encoded or not, or any module that takes images in [0, 1].
        surrogate: see above.
        eps: bound of the attack in levels, which the width follows.
        sigma: in levels, at least 1; None is eps / 2, but 1 at least and 4 at most.

    Example:
        >>> import timm
        >>> view = attack_view(timm.create_model('wrn10_2_p2be', num_classes=10))
        >>> images = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> bool(torch.autograd.grad(view(images).sum(), images)[0].abs().sum() > 0)
        True
    """
    pixel_model = as_pixel_model(model)
    view = tied_copy(pixel_model)
    name, stem = encoded_stem(view.model)
    surrogate = choose_surrogate(pixel_model, surrogate)
    sigma = min(max(eps / 2, 1.0), 4.0) if sigma is None else sigma
    if not 1 <= sigma < float('inf'):
        raise ValueError(
            f'Got sigma={sigma!r}; the kernel is at least 1 level wide. A narrower one sees neighboring levels alone, '
            "as surrogate='linear' does."
        )
    if stem is None:
        return _RoundedModel(view).eval()
    flips = code_statistics(stem.embedding.codes()).neighbors[1]
    width = f' of {sigma:g} levels' if surrogate == 'kernel' else ''
    _logger.info(f"{view.name}: surrogate '{surrogate}'{width}; {flips:.2f} bits flip from a level to the next.")
    view.model.set_submodule(name, _SurrogateStem(stem, surrogate, sigma))
    return view.eval()


def round_toward(images: Tensor, clean: Tensor) -> Tensor:
    """Return the levels next to adversarial images on the side of the clean ones, so that any Lp bound still holds.

    `images` are floats in [0, 1], `clean` and the result uint8 levels. Rounding to the nearest level can lengthen an L2
    perturbation (.25 becomes .2577 on a CIFAR image).

    Example:
        >>> round_toward(torch.tensor([10.9, 5.2]) / 255, torch.tensor([10, 6], dtype=torch.uint8)).tolist()
        [10, 6]
    """
    change = (images.double() * (LEVELS - 1)).clamp(0, LEVELS - 1) - clean
    # a whole number of levels may come out a little short of it in float32
    steps = (change.abs() + 1e-3).floor() * change.sign()
    return (clean + steps).round().to(torch.uint8)


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
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, ctx.stem.image_gradient(grad, *ctx.saved_tensors), None
