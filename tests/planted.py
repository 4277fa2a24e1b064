"""Models whose weakness is known image by image, and attacks with known answers."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from timm_p2be.robustness.attacks.attack import Cost
from timm_p2be.robustness.attacks.judge import attack_batch, is_correct, seeded
from timm_p2be.robustness.evaluation.attack_suite import build_suite
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

SIDE = 4


class Planted(nn.Module):
    """A classifier as timm has them, of pixels in [0, 1] and two classes, whose logits are -lead and lead."""

    def __init__(self, side: int, scale: float = 1.0) -> None:
        super().__init__()
        self.num_classes = 2
        self.pretrained_cfg = {'mean': (0, 0, 0), 'std': (1, 1, 1), 'input_size': (3, side, side), 'architecture': 'th'}
        self.weight = nn.Parameter(torch.tensor(scale))

    def lead(self, images: Tensor) -> Tensor:
        """Return by how much class 1 leads, before scaling."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        lead = self.lead(images) * self.weight
        return torch.stack([-lead, lead], dim=1)


class Threshold(Planted):
    """Class 1 iff the first pixel value is above the middle: image i of `planted_images` falls to i + 1 levels."""

    def __init__(self) -> None:
        super().__init__(SIDE)

    def lead(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, 0] - 127.5 / 255


class Corner(Planted):
    """Class 1 iff the upper left corner is brighter than 120.2 levels on average.

    Masked, the lead is rounded to steps of a quarter of a level: its gradient is 0 almost everywhere, which is what
    quantized inputs do to a network.
    """

    def __init__(self, masked: bool = False) -> None:
        super().__init__(8, scale=30.0)
        self.masked = masked

    def lead(self, images: Tensor) -> Tensor:
        lead = 255 * images[:, :, :2, :2].mean(dim=(1, 2, 3)) - 120.2
        return ((lead * 4).floor() / 4 if self.masked else lead) / 255


def random_levels(count: int = 2, side: int = 8) -> Tensor:
    """Images of noise, the first with values at both ends of the range."""
    images = torch.randint(
        0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    images[0, 0, 0, :6] = torch.tensor([0, 1, 5, 250, 254, 255])
    return images


def planted_model() -> PixelModel:
    return PixelModel(Threshold())


def planted_images(count: int = 20, wrong: tuple[int, ...] = ()) -> ImageSet:
    """Images with first value 128 + i and label 1; those in `wrong` have label 0, which the model gets wrong."""
    pairs = []
    for index in range(count):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[0, 0, 0] = 128 + index
        pairs.append((Image.fromarray(pixels), int(index not in wrong)))
    return ImageSet(pairs, 'planted', SIDE)


class Push:
    """Lowers the first value by `depth`, of the images in `only` if that is given; remembers whom it attacked.

    `before` is called with the images first, and may raise.
    """

    def __init__(
        self, name: str, depth: int, only: set[int] | None = None, kind: str = 'white-box', eps: int = 8
    ) -> None:
        self.name, self.kind, self.eps = name, kind, eps
        self.depth, self.only = depth, only
        self.faced: list[list[int]] = []
        self.before: Callable[[Tensor], object] = len

    def cost(self) -> Cost:
        return Cost(1, self.depth)

    def __call__(self, levels: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        self.before(levels)
        numbers = [int(value) - 128 for value in levels[:, 0, 0, 0]]
        self.faced.append(numbers)
        moved = levels.clone()
        for row, number in enumerate(numbers):
            if self.only is None or number in self.only:
                moved[row, 0, 0, 0] -= self.depth
        return moved


class Toss(Push):
    """Fells by the toss of a coin."""

    def __call__(self, levels: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        self.faced.append([])
        heads = torch.rand(len(levels), generator=generator) < 0.5
        return torch.where(heads.view(-1, 1, 1, 1), torch.zeros_like(levels), levels)


def standing_after(model: PixelModel, names: list[str], eps: int, levels: Tensor, labels: Tensor) -> Tensor:
    """Return which images stand, (N,) bool, after attacks of the suite in turn, each on what the others left."""
    standing = torch.from_numpy(is_correct(model, levels, labels))
    for attack in build_suite(model, eps, names):
        left = standing.nonzero().squeeze(1)
        if len(left):
            _, fell = attack_batch(model, attack, levels[left], labels[left], eps, seeded(model.name, attack.name))
            standing[left[torch.from_numpy(fell)]] = False
    return standing
