"""What a model says of uint8 images: whether it is right, and how sure; smaller batches where memory runs out."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_p2be.robustness.attacks.attack import check_labels
from timm_p2be.robustness.evaluation.results import Bits
from timm_p2be.robustness.evaluation.runner import Memory
from timm_p2be.robustness.pixel_model import PixelModel

Outcome = tuple[Bits, NDArray[np.float32]]  # of a batch: (B,) correct, (B,) confidence


class Judge:
    """Judges batches, in autocast if `amp_dtype` is given, and remembers for each model how many fit into memory."""

    def __init__(self, amp_dtype: torch.dtype | None, say: Callable[[str], None]) -> None:
        self.amp_dtype, self.memory = amp_dtype, Memory(say)

    def __call__(self, model: PixelModel, images: Tensor, labels: Tensor) -> Outcome:
        """Return correctness and confidence of uint8 images (B, 3, H, W) with int64 labels (B,)."""
        check_labels(model, labels)
        count = len(images)
        scores = torch.cat(
            self.memory.parts(model.name, count, count, lambda part: logits(model, images[part], self.amp_dtype))
        )
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f'{model.name} gives logits that are not finite. Its training diverged, its file is damaged, or '
                '--amp-dtype float16 overflows.'
            )
        confidence, guess = scores.softmax(dim=1).max(dim=1)
        return (guess == labels).numpy(), confidence.numpy()


def logits(model: PixelModel, images: Tensor, amp_dtype: torch.dtype | None = None) -> Tensor:
    """Return float32 logits (B, K) on the CPU."""
    device = model.device
    with torch.inference_mode(), torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
        return model(images.to(device, non_blocking=True)).float().cpu()


def check_size(model: PixelModel, side: int) -> None:
    """Raise a ValueError if the model does not take images of `side` x `side`."""
    try:
        logits(model, torch.zeros(1, 3, side, side, dtype=torch.uint8))
    except Exception as error:  # models raise whatever they like
        raise ValueError(
            f'{model.name} does not take images of {side}x{side} pixels (it was made for {model.input_size}): {error}. '
            'Choose a suite of its size, or see --img-size and --resize.'
        ) from error
