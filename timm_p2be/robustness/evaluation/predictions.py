"""What a model says of uint8 images: whether it is right, and how sure; smaller batches where memory runs out."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_p2be.robustness.attacks.attack import check_labels
from timm_p2be.robustness.attacks.judge import Bits, logits
from timm_p2be.robustness.evaluation.runner import Memory
from timm_p2be.robustness.pixel_model import PixelModel

Outcome = tuple[Bits, NDArray[np.float32]]  # of a batch: (B,) correct, (B,) confidence


def judge(
    model: PixelModel, images: Tensor, labels: Tensor, memory: Memory, amp_dtype: torch.dtype | None = None
) -> Outcome:
    """Return correctness and confidence of uint8 images (B, 3, H, W) with int64 labels (B,)."""
    check_labels(model, labels)
    count = len(images)
    scores = torch.cat(memory.parts(model.name, count, count, lambda part: logits(model, images[part], amp_dtype)))
    confidence, guess = scores.softmax(dim=1).max(dim=1)
    return (guess == labels).numpy(), confidence.numpy()


@torch.no_grad()
def check_size(model: PixelModel, side: int) -> None:
    """Raise a ValueError if the model does not take images of `side` x `side`."""
    try:
        model(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=model.device))
    except Exception as error:  # models raise whatever they like
        raise ValueError(
            f'{model.name} does not take images of {side}x{side} pixels (it was made for {model.input_size}): {error}. '
            'Choose a suite of its size, or see --img-size and --resize.'
        ) from error
