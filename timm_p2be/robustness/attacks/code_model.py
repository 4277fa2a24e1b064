"""The network behind the lookup: logits as a differentiable function of code planes instead of levels."""

from typing import cast

import torch
from torch import Tensor, nn

from timm_p2be.encodings import LEVELS
from timm_p2be.robustness.attacks.sharing import share_tensors
from timm_p2be.robustness.pixel_model import PixelModel
from timm_p2be.stem import EncodedConv2d, encoded_stem


class CodeModel(nn.Module):
    """A model of any code planes, also mixtures of codes, which attacks on a relaxed code need.

    Shares its weights with the model it was made from and stays in evaluation mode whatever that one does. A model of
    pixel values counts as one whose code is the single number k / 255, so that the same attacks run on it.

    Args:
        model: encoded or not.

    Example:
        >>> import timm
        >>> network = CodeModel(PixelModel(timm.create_model('resnet10t', num_classes=10)))
        >>> network.table().shape, network(torch.rand(2, 32, 32, 3, 1)).shape
        (torch.Size([256, 1]), torch.Size([2, 10]))
    """

    def __init__(self, model: PixelModel) -> None:
        super().__init__()
        shared = cast(PixelModel, share_tensors(model)).eval()
        name, stem = encoded_stem(shared.model)
        self._stem = (stem,)  # in a tuple: its parameters are listed once, inside the network
        self.network: nn.Module = shared
        if stem is not None:
            self.network = replace_stem(shared.model, name, _PlaneStem(stem))

    def table(self) -> Tensor:
        """Return the current codes, (256, M) float32, without gradient."""
        stem = self._stem[0]
        if stem is None:
            device = next(self.network.parameters()).device
            return torch.arange(LEVELS, device=device).unsqueeze(1) / (LEVELS - 1)
        return stem.embedding.codes().detach().float()

    def forward(self, planes: Tensor) -> Tensor:
        """Return the (B, K) float32 logits of (B, H, W, 3, M) code planes."""
        return self.network(planes.flatten(3).permute(0, 3, 1, 2)).float()

    def train(self, mode: bool = True) -> 'CodeModel':
        """Stay in evaluation mode: an attack never moves the statistics of batch normalization."""
        return super().train(False)


def replace_stem(model: nn.Module, name: str, stem: nn.Module) -> nn.Module:
    """Put another module in place of the stem `name` and return the model."""
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, stem)
    return model


class _PlaneStem(nn.Module):
    """The stem's convolution of (B, 3 M, H, W) planes, color-major: that order comes out of a table without a copy."""

    def __init__(self, stem: EncodedConv2d) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, planes: Tensor) -> Tensor:
        stem = self.stem
        stride, borders, dilation = stem.geometry(planes)
        if len(borders) == 4:
            planes, borders = nn.functional.pad(planes, borders), [0, 0]
        weight = color_major(stem.weight, stem.in_chans).to(planes.dtype)
        bias = None if stem.bias is None else stem.bias.to(planes.dtype)
        return nn.functional.conv2d(planes, weight, bias, stride, borders, dilation)


def color_major(weight: Tensor, in_chans: int) -> Tensor:
    """Return a (O, M C, kh, kw) kernel of bit-major planes m C + c for color-major ones, c M + m."""
    return weight.unflatten(1, (-1, in_chans)).transpose(1, 2).flatten(1, 2)
