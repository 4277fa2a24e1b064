"""Smoothness and divergence against formulas in numpy, the paper's Eq. 3 and 9 and timm's own AugMix loss."""

import numpy as np
import pytest
import torch
from timm.loss import JsdCrossEntropy

from timm_p2be.losses import jensen_shannon, smoothness_gradient, smoothness_loss


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def numpy_smoothness(w: np.ndarray) -> float:
    """Eq. 9, written as it stands."""
    pairs = range(len(w) - 1)
    return sum(1 - (w[k] @ w[k + 1]) / (np.linalg.norm(w[k]) * np.linalg.norm(w[k + 1])) for k in pairs)


def numpy_jsd(logits: np.ndarray, num_views: int) -> float:
    views = np.split(logits, num_views)
    probs = [np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in views]
    mix = np.clip(sum(probs) / num_views, 1e-7, 1)
    return np.mean([(p * np.log(p / mix)).sum(1).mean() for p in probs])


def test_smoothness_is_eq_9_or_its_mean():
    w = torch.randn(256, 64)
    expected = numpy_smoothness(w.double().numpy())
    assert smoothness_loss(w, 'sum').item() == pytest.approx(expected, rel=1e-6)
    assert smoothness_loss(w).item() == pytest.approx(expected / 255, rel=1e-6)


def test_rows_of_norm_zero_get_no_gradient_and_count_as_right_angles():
    w = torch.tensor([[1.0, 0.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0]], requires_grad=True)
    loss = smoothness_loss(w, 'sum')
    loss.backward()
    assert loss.item() == pytest.approx(2)
    assert w.grad[1].tolist() == [0, 0]
    assert w.grad.isfinite().all()


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('zeros', [[], [0], [2, 3], [1, 8]], ids=str)
def test_gradient_in_closed_form_is_autograds(zeros, reduction):
    w = torch.randn(9, 5, dtype=torch.float64)
    w[zeros] = 0
    expected = torch.autograd.functional.jacobian(lambda x: smoothness_loss(x, reduction), w)
    torch.testing.assert_close(smoothness_gradient(w, reduction), expected, rtol=1e-13, atol=1e-15)
    assert not smoothness_gradient(w, reduction)[zeros].any()


def test_gradient_in_closed_form_has_no_graph_and_at_least_float32():
    w = torch.randn(256, 64, requires_grad=True)
    gradient = smoothness_gradient(w)
    assert not gradient.requires_grad
    torch.testing.assert_close(gradient, torch.autograd.grad(smoothness_loss(w), w)[0], rtol=1e-4, atol=1e-9)
    assert smoothness_gradient(w.bfloat16()).dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(smoothness_gradient(w), gradient)


def test_smoothness_passes_on_nan():
    w = torch.tensor([[float('nan'), 1.0], [1.0, 1.0]])
    assert smoothness_loss(w).isnan()
    assert smoothness_gradient(w).isnan().all()


def test_losses_are_float32_under_autocast_and_from_bfloat16():
    w, logits = torch.randn(16, 8), torch.randn(6, 4)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(smoothness_loss(w), smoothness_loss(w.float()))
        assert smoothness_loss(w).dtype == jensen_shannon(logits, 3).dtype == torch.float32
        inside = smoothness_loss(w), jensen_shannon(logits, 3)
    assert inside == (smoothness_loss(w), jensen_shannon(logits, 3))
    assert jensen_shannon(logits.bfloat16(), 2) == jensen_shannon(logits.bfloat16().float(), 2)


@pytest.mark.parametrize('num_views', [2, 3])
def test_jensen_shannon_formula(num_views):
    logits = 3 * torch.randn(num_views * 5, 7, dtype=torch.float64)
    expected = numpy_jsd(logits.numpy(), num_views)
    assert jensen_shannon(logits, num_views).item() == pytest.approx(expected, rel=1e-9)
    assert jensen_shannon(logits.float(), num_views).item() == pytest.approx(expected, rel=1e-4)


def test_jensen_shannon_equals_timms_augmix_loss():
    logits = torch.randn(12, 10, requires_grad=True)
    labels = torch.randint(0, 10, (12,))
    expected = JsdCrossEntropy(num_splits=3, alpha=12, smoothing=0)(logits, labels)
    ours = torch.nn.functional.cross_entropy(logits[:4], labels[:4]) + 12 * jensen_shannon(logits, 3)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_jensen_shannon_of_extreme_logits_is_finite_and_clamped():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [200.0, 0.0]], requires_grad=True)
    loss = jensen_shannon(logits, 3)
    loss.backward()
    assert loss.item() == pytest.approx((2 * np.log(3 / 2) + np.log(3)) / 3, rel=1e-6)
    assert logits.grad.isfinite().all()


def test_arguments_are_checked():
    tables = (torch.randn(4), torch.randn(1, 4), torch.ones(4, 4, dtype=torch.int64))
    logits = (torch.randn(4, 4), torch.randn(6), torch.randn(0, 4))
    for loss, args, words in (
        (smoothness_loss, (torch.randn(4, 4), 'none'), "reduction 'none'.*'mean', 'sum'"),
        (smoothness_gradient, (torch.randn(4, 4), 'none'), "reduction 'none'.*'mean', 'sum'"),
        *((smoothness_loss, (table,), r'table of shape.*embedding\.weight') for table in tables),
        (jensen_shannon, (torch.randn(4, 4), 1), 'num_views=1.*at least 2'),
        *((jensen_shannon, (bad, 3), 'logits of shape.*num_views=3') for bad in logits),
    ):
        with pytest.raises(ValueError, match=words):
            loss(*args)
