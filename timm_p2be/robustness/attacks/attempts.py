"""The book-keeping of attacks that try and keep the best, by queries alone."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from timm_p2be.robustness.attacks.attack import margin
from timm_p2be.robustness.pixel_model import PixelModel

BATCH = 512  # most images in one call of the model


class Attempts:
    """The best attempt at every image of a batch so far, uint8 (B, 3, H, W), and its margin, (B,).

    At first it is the image itself; without `clean` any attempt is better than that.
    """

    def __init__(self, model: PixelModel, levels: Tensor, labels: Tensor, clean: bool = True) -> None:
        self.levels = levels.clone()
        self.labels = labels
        self._model = model
        untried = torch.full(labels.shape, torch.inf, device=labels.device)
        self.margins = margins(model, levels, labels) if clean else untried

    def standing(self) -> Tensor:
        """Return the numbers of the images that have not fallen, int64 (N,)."""
        return (self.margins >= 0).nonzero().squeeze(1)

    def rounds(self, most: int) -> Iterator[tuple[int, Tensor]]:
        """Yield number and standing images of each round, until none stands or there were `most`."""
        for number in range(most):
            standing = self.standing()
            if len(standing) == 0:
                return
            yield number, standing

    def offer(self, images: Tensor, candidates: Tensor, always: bool = False) -> None:
        """Score one candidate, uint8 (N, 3, H, W), for each of N images; take those that are better, or all."""
        scores = margins(self._model, candidates, self.labels[images])
        taken = torch.ones_like(scores, dtype=torch.bool) if always else scores < self.margins[images]
        self.take(images[taken], candidates[taken], scores[taken])

    def take(self, images: Tensor, candidates: Tensor, scores: Tensor) -> None:
        """Make scored candidates, uint8 (N, 3, H, W) and float32 (N,), the best attempts at N images."""
        self.levels[images] = candidates
        self.margins[images] = scores


@torch.no_grad()
def margins(model: PixelModel, levels: Tensor, labels: Tensor) -> Tensor:
    """Return the margin of each uint8 image (B, 3, H, W), float32 (B,)."""
    chunks = [levels.new_empty(0, dtype=torch.float32)]
    for images, truth in zip(levels.split(BATCH), labels.split(BATCH), strict=True):
        chunks.append(margin(model(images), truth))
    return torch.cat(chunks)


def shift(levels: Tensor, offsets: Tensor) -> Tensor:
    """Return uint8 levels moved by int16 offsets of a shape that broadcasts, cut off at 0 and 255."""
    return (levels.to(torch.int16) + offsets).clamp_(0, 255).to(torch.uint8)


def signs(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return random -1 and 1, int16 on the CPU."""
    return 2 * torch.randint(0, 2, shape, generator=generator, dtype=torch.int16) - 1
