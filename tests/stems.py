"""Images of levels and their code planes, for the tests of the stem."""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_levels(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def code_planes(levels: Tensor, codes: Tensor) -> Tensor:
    """Return the (B, M C, H, W) planes, bit-major, of (B, C, H, W) levels."""
    colors = [F.embedding(color.long(), codes).movedim(-1, 1) for color in levels.unbind(1)]  # each (B, M, H, W)
    return torch.stack(colors, dim=2).flatten(1, 2).detach()
