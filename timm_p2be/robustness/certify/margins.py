"""From bounds of activations to certified decisions."""

import math

import torch
from torch import Tensor, nn

from timm_p2be.robustness.attacks.attack import check_labels
from timm_p2be.robustness.certify.intervals import IntervalNetwork, Propagation
from timm_p2be.robustness.pixel_model import as_pixel_model


def margin_bounds(bounds: Propagation, labels: Tensor) -> Tensor:
    """Return the least lead of the label's logit over each class's within the ball, (B, K), 0 for the label itself.

    The classifier is taken into the difference of two logits, which is tighter than the difference of their bounds.
    """
    weight, features = bounds.classifier.weight, bounds.features
    lead = weight[labels].unsqueeze(1) - weight  # (B, K, F)
    least = torch.einsum('bkf,bf->bk', lead, features.middle) - torch.einsum('bkf,bf->bk', lead.abs(), features.radius)
    bias = bounds.classifier.bias
    return least if bias is None else least + bias[labels].unsqueeze(1) - bias


@torch.no_grad()
def certified(model: nn.Module, levels: Tensor, labels: Tensor, eps: int = 1) -> Tensor:
    """Return, as (B,) bool, which uint8 images (B, 3, H, W) keep their label under any change of at most `eps` levels.

    The timm classifier, encoded or not, is judged in evaluation mode; eps=0 asks for its decision on the images.

    Raises:
        ValueError: for a network with a layer whose bounds are not known; see `IntervalNetwork`.
    """
    pixel_model = as_pixel_model(model).eval()
    check_labels(pixel_model, labels)
    labels = labels.to(pixel_model.device)
    bounds = IntervalNetwork(pixel_model).propagate(levels.to(pixel_model.device), eps)
    others = margin_bounds(bounds, labels).scatter(1, labels.unsqueeze(1), math.inf)
    return others.amin(dim=1) > 0
