"""The two regularizers of the paper's objectives: smoothness of the embedding and consistency between views."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from timm_p2be.lookup import operators

REDUCTIONS = ('mean', 'sum')

_MIN_MIX = 1e-7  # floor of the mixture's probabilities, as in AugMix


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32, or as it is in float64; no autocast region lowers the operations used below."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def smoothness_loss(weight: Tensor, reduction: str = 'mean') -> Tensor:
    """Return the embedding smoothness loss: 1 - cos(w_k, w_{k+1}) over all neighboring pixel levels.

    Eq. 9 of the paper sums over the 255 pairs; the authors' code (nutszebra/Pixel-to-Binary-Embedding,
    pixel_to_binary_embedding.py) takes the mean, to which the paper's lambda belongs. A row of norm zero has no
    direction: its cosines count as 0 and it gets no gradient.

    Args:
        weight: (levels, M) latent table w (not its codes), floating point, at least two rows.
        reduction: 'mean', in [0, 2], or 'sum' (Eq. 9). The scalar is float32 (float64 for a float64 table).

    Example:
        >>> smoothness_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]), 'sum')
        tensor(1.)
    """
    return _Smoothness.apply(weight, reduction)


def smoothness_gradient(weight: Tensor, reduction: str = 'mean') -> Tensor:
    """Return the gradient of `smoothness_loss`, without a graph; arguments and dtype are as there."""
    return _loss_and_gradient(weight.detach(), reduction)[1]


class _Smoothness(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, reduction: str) -> Tensor:
        loss, gradient = _loss_and_gradient(weight, reduction)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.saved_tensors[0], None


def _loss_and_gradient(weight: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of a table without a graph, on a GPU in one kernel.

    With d_k = w_k / |w_k| and s_k = d_{k-1} + d_{k+1}, of which the ends have one, row k of the gradient is
    ((s_k d_k) d_k - s_k) / |w_k|. A row of norm zero has d = 0 and a norm of inf.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f'Unknown reduction {reduction!r}; choose one of {list(REDUCTIONS)}.')
    if weight.ndim != 2 or len(weight) < 2 or not weight.is_floating_point():
        raise ValueError(
            f'Got a table of shape {list(weight.shape)} and dtype {weight.dtype}; allowed is a floating-point '
            '(levels, M) with at least 2 levels. Pass the latents, embedding.weight.'
        )
    w, mean = at_least_float32(weight), reduction == 'mean'
    if (found := operators.smoothness(w, mean)) is not None:
        return found
    norms = w.norm(dim=1, keepdim=True)
    norms = torch.where(norms == 0, torch.inf, norms)
    directions = w / norms
    angles = 1 - (directions[:-1] * directions[1:]).sum(dim=1)
    neighbors = torch.zeros_like(directions)
    neighbors[1:] += directions[:-1]
    neighbors[:-1] += directions[1:]
    along = (neighbors * directions).sum(dim=1, keepdim=True)
    gradient = (along * directions - neighbors) / norms
    return (angles.mean(), gradient / len(angles)) if mean else (angles.sum(), gradient)


def jensen_shannon(logits: Tensor, num_views: int) -> Tensor:
    """Return the Jensen-Shannon divergence between the predictions for several views of the same images.

    JSD = mean over views i of KL(p_i || mix), with mix = clamp(mean over views of p_i, 1e-7, 1); KL sums over classes
    and averages over images. Eq. 3 of the paper with three views, its ConTrain loss (Eq. 11) with two; as in
    google-research/augmix, cifar.py.

    Args:
        logits: (V B, K) class scores, views-major: all B images of the first view, then all of the second, ...
        num_views: V, at least 2. The scalar, in [0, log V], is float32 (float64 for float64 logits).

    Example:
        >>> jensen_shannon(torch.tensor([[99.0, 0.0], [0.0, 99.0]]), num_views=2)
        tensor(0.6931)
    """
    if num_views < 2:
        raise ValueError(f'Got num_views={num_views}; a divergence between views needs at least 2.')
    if logits.ndim != 2 or len(logits) == 0 or len(logits) % num_views:
        raise ValueError(
            f'Got logits of shape {list(logits.shape)}; allowed is (num_views * batch, classes) with '
            f'num_views={num_views}, the views one after another.'
        )
    log_p = torch.log_softmax(at_least_float32(logits), dim=1).unflatten(0, (num_views, -1))
    p = log_p.exp()
    log_mix = p.mean(dim=0).clamp(_MIN_MIX, 1).log()
    return (p * (log_p - log_mix)).sum(dim=2).mean()
