"""The network behind the lookup: logits as a differentiable function of code planes instead of levels."""

import torch
from torch import Tensor, nn

from timm_p2be.encodings import LEVELS
from timm_p2be.robustness.pixel_model import as_pixel_model, tied_copy
from timm_p2be.stem import EncodedConv2d, encoded_stem


class CodeModel(nn.Module):
    """A model of any code planes, also mixtures of codes, which attacks on a relaxed code need.

    Shares its weights with the model it was made from. A model of pixel values counts as one whose code is the single
    number k / 255, so that the same attacks run on it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = tied_copy(as_pixel_model(model))
        name, stem = encoded_stem(self.network.model)
        self._stem = (stem,)  # in a tuple: its parameters are listed once, inside the network
        if stem is not None:
            self.network.model.set_submodule(name, _PlaneStem(stem))

    def table(self) -> Tensor:
        """Return the current codes, (256, M) float32, without gradient."""
        stem = self._stem[0]
        if stem is None:
            return torch.arange(LEVELS, device=self.network.device).unsqueeze(1) / (LEVELS - 1)
        return stem.embedding.codes().detach().float()

    def forward(self, planes: Tensor) -> Tensor:
        """Return the (B, K) float32 logits of (B, H, W, 3, M) code planes."""
        return self.network(planes.flatten(3).permute(0, 3, 1, 2))

    def gradient(self, planes: Tensor, labels: Tensor) -> Tensor:
        """Return the gradient of the summed cross-entropy with respect to the code planes."""
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(self(planes.requires_grad_()), labels, reduction='sum')
            return torch.autograd.grad(loss, planes)[0]

    def train(self, mode: bool = True) -> 'CodeModel':
        """Stay in evaluation mode: an attack never moves the statistics of batch normalization."""
        return super().train(False)


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
        # bit-major planes m C + c become color-major ones, c M + m
        weight = stem.weight.unflatten(1, (-1, stem.in_chans)).transpose(1, 2).flatten(1, 2).to(planes.dtype)
        bias = None if stem.bias is None else stem.bias.to(planes.dtype)
        return nn.functional.conv2d(planes, weight, bias, stride, borders, dilation)
