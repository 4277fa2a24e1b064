"""HopSkipJump, which sees only the predicted class, through the Adversarial Robustness Toolbox.

Chen, Jordan and Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", IEEE S&P 2020;
Trusted-AI/adversarial-robustness-toolbox, art/attacks/evasion/hop_skip_jump.py. The toolbox minimizes the distance of
float images and knows neither a bound nor a budget of queries; both are kept here, on the side of the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from timm_p2be.encodings import LEVELS
from timm_p2be.robustness.attacks.attack import Cost
from timm_p2be.robustness.attacks.attempts import check_count
from timm_p2be.robustness.attacks.windows import check_eps, check_images
from timm_p2be.robustness.pixel_model import PixelModel

# Root mean square of the noise that probes the boundary, as a share of the distance to the clean image. ART's own is
# 0.0002 on 3x32x32 images: noise that rounding to levels removes, so that nearly all answers are the same.
PROBE = 0.1


class HopSkipJump:
    """Walks along the decision boundary towards the clean image, and ends where it comes within the bound.

    Every image that ART asks about is rounded to levels first, so that the walk never relies on values that no uint8
    image has. It starts from the nearest image of the batch that the model gives another class than the true one, or
    from uniform noise.

    Args:
        model: attacked; only its decisions are used.
        eps: bound in levels, 0 to 255.
        queries: most an image can cost, all included; at least 2.
        batch_size: most images in one call of the model.
        name: in reports; None is 'hop-skip-jump'.

    Raises:
        ValueError: an argument out of range.
    """

    kind = 'decision'

    def __init__(
        self, model: PixelModel, eps: int = 8, queries: int = 2000, batch_size: int = 512, name: str | None = None
    ) -> None:
        check_eps(eps)
        check_count('queries', queries, least=2)
        check_count('batch_size', batch_size)
        self.model = model
        self.eps = eps
        self.queries = queries
        self.batch_size = batch_size
        self.name = name or 'hop-skip-jump'

    def cost(self) -> Cost:
        """Return every query: of the clean image, the starts, the searches and the estimates of the direction."""
        return Cost(self.queries, 0)

    def __call__(self, levels: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        """Attack a batch, image by image; see `Attack`.

        Returns:
            uint8 (B, 3, H, W): a wrongly classified image within the bound, else the nearest wrongly classified one,
            moved into the bound; the clean image if no start was found.

        Raises:
            ValueError: `levels` is not uint8 (B, 3, H, W).
        """
        check_images(levels)
        generator = generator or torch.Generator().manual_seed(0)
        result = levels.clone()
        classes = decide(self.model, levels, self.batch_size)
        for index in (classes == labels).nonzero().squeeze(1).tolist():
            seed = int(torch.randint(2**32, (), generator=generator))
            oracle = Oracle(self.model, levels[index], int(labels[index]), self.eps, self.queries - 1, self.batch_size)
            others = levels[classes != labels[index]]
            with _numpy_seed(seed):
                result[index] = self._walk(oracle, others)
        return result

    def _walk(self, oracle: 'Oracle', others: Tensor) -> Tensor:
        """Return the attempt, uint8 (3, H, W), at the image of `oracle`; `others` have another class."""
        from art.attacks.evasion import HopSkipJump as Walk  # takes seconds to import
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork

        clean = _pixels(oracle.clean)
        classes = self.model.num_classes
        estimator = BlackBoxClassifierNeuralNetwork(oracle, clean.shape, classes, clip_values=(0.0, 1.0))
        walk = Walk(estimator, self.batch_size, norm=np.inf, max_iter=self.queries, verbose=False)
        walk.theta = PROBE / clean.size**0.5  # ART's noise has the norm theta * size * distance
        try:
            start = self._start(oracle, others)
            if start is not None:
                walk.generate(clean[None], np.array([oracle.label]), x_adv_init=start[None])
        except EndOfWalkError:
            pass
        return oracle.attempt()

    def _start(self, oracle: 'Oracle', others: Tensor) -> NDArray[np.float32] | None:
        """Return a wrongly classified image, float32 (3, H, W) in [0, 1], or None."""
        if len(others):
            distances = (others.float() - oracle.clean.float()).flatten(1).norm(dim=1)
            return _pixels(others[distances.argmin()])
        for _ in range(100):
            noise = np.random.uniform(size=oracle.clean.shape).astype(np.float32)
            if oracle(noise[None])[0].argmax() != oracle.label:
                return noise
        return None


class EndOfWalkError(Exception):
    """The walk has reached its aim or used up its queries."""


class Oracle:
    """Decides about images near one clean image, counts them, and ends the walk at its aim or its last query.

    Args:
        model: attacked.
        clean: uint8 (3, H, W).
        label: its true class.
        eps: bound in levels.
        queries: most it answers.
        batch_size: most images in one call of the model.
    """

    def __init__(self, model: PixelModel, clean: Tensor, label: int, eps: int, queries: int, batch_size: int) -> None:
        self.clean = clean
        self.label = label
        self._model = model
        self._eps = eps
        self._left = queries
        self._batch_size = batch_size
        self._nearest = clean
        self._distance = LEVELS

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the decisions, one-hot (N, K), on images, (N, 3, H, W) in [0, 1], rounded to levels.

        Raises:
            EndOfWalkError: one of them succeeds, or there are no queries left to decide on all of them.
        """
        room = len(pixels) <= self._left
        images = torch.from_numpy(np.rint(pixels[: self._left] * (LEVELS - 1)).clip(0, LEVELS - 1).astype(np.uint8))
        images = images.to(self.clean.device)
        self._left -= len(images)
        classes = decide(self._model, images, self._batch_size)
        self._remember(images[classes != self.label])
        if not room or self._distance <= self._eps:
            raise EndOfWalkError
        return np.eye(self._model.num_classes, dtype=np.float32)[classes.cpu().numpy()]

    def attempt(self) -> Tensor:
        """Return the nearest wrongly classified image so far, moved into the bound: uint8 (3, H, W)."""
        offsets = (self._nearest.to(torch.int16) - self.clean).clamp_(-self._eps, self._eps)
        return (self.clean + offsets).to(torch.uint8)

    def _remember(self, wrong: Tensor) -> None:
        if len(wrong):
            distances = (wrong.to(torch.int16) - self.clean).abs().flatten(1).amax(dim=1)
            distance, index = distances.min(dim=0)
            if distance < self._distance:
                self._distance, self._nearest = int(distance), wrong[index]


@torch.no_grad()
def decide(model: PixelModel, levels: Tensor, batch_size: int) -> Tensor:
    """Return the predicted classes, int64 (B,), of uint8 (B, 3, H, W) images."""
    decisions = [model(images).argmax(dim=1) for images in levels.split(batch_size)]
    return torch.cat(decisions) if decisions else levels.new_empty(0, dtype=torch.int64)


def _pixels(levels: Tensor) -> NDArray[np.float32]:
    """Return levels as float32 in [0, 1] of numpy."""
    return (levels.cpu().float() / (LEVELS - 1)).numpy()


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which ART draws from, and put its state back afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
