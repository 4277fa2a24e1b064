"""What a model says of uint8 images: whether it is right, and how sure; smaller batches where memory runs out."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_p2be.robustness.pixel_model import PixelModel

Outcome = tuple[NDArray[np.bool_], NDArray[np.float32]]  # of a batch: (B,) correct, (B,) confidence
_OUT_OF_MEMORY = ('out of memory', 'not enough memory', "can't allocate memory")


class Judge:
    """Judges batches, and remembers for each model how many images fit into memory.

    Args:
        amp_dtype: torch.bfloat16 or torch.float16 for autocast; None computes in float32.
        say: told when a batch is halved.
    """

    def __init__(self, amp_dtype: torch.dtype | None, say: Callable[[str], None]) -> None:
        self.amp_dtype, self.say = amp_dtype, say
        self._fitting: dict[str, int] = {}

    def __call__(self, model: PixelModel, images: Tensor, labels: Tensor) -> Outcome:
        """Return correctness and confidence of uint8 images (B, 3, H, W) with int64 labels (B,).

        Raises:
            ValueError: a label that is no class of the model, logits that are not finite, one image is too much.
        """
        if not 0 <= int(labels.min()) <= int(labels.max()) < model.num_classes:
            raise ValueError(
                f'The data has labels from {int(labels.min())} to {int(labels.max())}, {model.name} has '
                f'{model.num_classes} classes (0 to {model.num_classes - 1}). Choose a model and data of the same '
                'classes.'
            )
        logits = self._logits(model, images)
        if not bool(torch.isfinite(logits).all()):
            raise ValueError(
                f'{model.name} gives logits that are not finite. Its training diverged, its file is damaged, or '
                '--amp-dtype float16 overflows.'
            )
        confidence, guess = logits.softmax(dim=1).max(dim=1)
        return (guess == labels).numpy(), confidence.numpy()

    def _logits(self, model: PixelModel, images: Tensor) -> Tensor:
        while True:
            size = self._fitting.get(model.name, len(images))
            try:
                return torch.cat([logits(model, chunk, self.amp_dtype) for chunk in images.split(size)])
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if size == 1:
                    raise ValueError(f'{model.name} runs out of memory with a single image: {error}') from error
            if model.device.type == 'cuda':
                torch.cuda.empty_cache()
            self._fitting[model.name] = half = max(min(size, len(images)) // 2, 1)
            self.say(f'{model.name}: out of memory, going on with {half} images at a time')


def logits(model: PixelModel, images: Tensor, amp_dtype: torch.dtype | None) -> Tensor:
    """Return float32 logits (B, K) on the CPU."""
    device = model.device
    with torch.inference_mode(), torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
        return model(images.to(device, non_blocking=True)).float().cpu()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        phrase in str(error).lower() for phrase in _OUT_OF_MEMORY
    )
