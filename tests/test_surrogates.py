"""attack_view: the model forward, a stated gradient backward."""

import pytest
import timm
import torch
from stems import random_levels
from torch import Tensor, nn
from torchvision.transforms import Normalize

import timm_p2be
from timm_p2be.encodings import onehot_codes, thermometer_codes
from timm_p2be.robustness.attacks.code_model import CodeModel
from timm_p2be.robustness.attacks.surrogates import (
    SURROGATES,
    attack_view,
    code_slopes,
    round_toward,
    surrogates_for,
)
from timm_p2be.robustness.pixel_model import PixelModel

# stems: 3x3; 7x7 with stride; dynamic 'same' padding; patches with a bias
STEMS = ('wrn10_2', 'resnet10t', 'tf_mobilenetv3_small_minimal_100', 'test_vit')


def _model(name: str, encoding: str | None = 'p2be') -> nn.Module:
    torch.manual_seed(0)
    size = {'img_size': 32} if name == 'test_vit' else {}
    model = timm.create_model(name, num_classes=5, **size)
    return timm_p2be.convert(model, encoding).eval() if encoding else model.eval()


def _smooth(codes: Tensor, surrogate: str, sigma: float, x: Tensor) -> Tensor:
    """The surrogates written as functions of a real pixel value; (...) -> (..., M)."""
    k = torch.arange(256.0)
    if surrogate == 'kernel':
        return torch.softmax(-(k - x.unsqueeze(-1)).square() / (2 * sigma**2), dim=-1) @ codes
    if surrogate == 'straight-through':
        design = torch.stack([torch.ones(256), k], dim=1).double()
        line = torch.linalg.lstsq(design, codes.double()).solution.float()
        return line[0] + x.unsqueeze(-1) * line[1]
    # bits that fall at the threshold t: 1 until t - width, 0 from t on
    bits = codes.shape[1]
    threshold = torch.tensor([min(k for k in range(257) if k == 256 or codes[k, i] == 0) for i in range(bits)])
    width = 256 / bits
    return 1 - ((x.unsqueeze(-1) - threshold + width) / width).clamp(0, 1)


@pytest.mark.parametrize(
    ('encoding', 'surrogate'),
    [('p2be', 'kernel'), ('onehot', 'kernel'), ('thermometer', 'straight-through'), ('thermometer', 'ramp')],
)
def test_slopes_are_derivatives(encoding: str, surrogate: str) -> None:
    codes = {
        'p2be': (torch.rand(256, 16, generator=torch.Generator().manual_seed(2)) > 0.5).float(),
        'onehot': onehot_codes(16),
        'thermometer': thermometer_codes(16),
    }[encoding]
    x = torch.arange(256.0, requires_grad=True)
    # on a kink of the ramp autograd takes either side: look just above the level
    value = _smooth(codes, surrogate, 4.0, x + (0.01 if surrogate == 'ramp' else 0))
    exact = torch.stack([torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0] for i in range(16)], dim=1)
    if surrogate == 'ramp':
        exact[:, -1] = 0  # the last bit is always 1
    torch.testing.assert_close(code_slopes(codes, surrogate, 4.0), exact, rtol=1e-3, atol=1e-5)
    assert exact.abs().max() > 1e-3


def test_linear_slopes_are_mean_differences() -> None:
    codes = torch.rand(256, 8).round()
    slopes = code_slopes(codes, 'linear')
    torch.testing.assert_close(slopes[7], (codes[8] - codes[6]) / 2)
    torch.testing.assert_close(slopes[0], codes[1] - codes[0])
    torch.testing.assert_close(slopes[255], codes[255] - codes[254])


@pytest.mark.parametrize(
    ('name', 'encoding'),
    [*((name, 'p2be') for name in STEMS), ('wrn10_2', 'onehot'), ('wrn10_2', 'thermometer'), ('resnet10t', None)],
)
def test_forward_is_the_model(name: str, encoding: str | None) -> None:
    model, levels = _model(name, encoding), random_levels(2, 3, 32, 32)
    for surrogate in surrogates_for(PixelModel(model)):
        view = attack_view(model, surrogate)
        assert not view.training
        images = (levels / 255).requires_grad_()
        reference = PixelModel(model)(levels)
        assert torch.equal(view(images), reference)
        assert torch.equal(view(images.detach() + 0.4 / 255), reference)  # rounded


@pytest.mark.parametrize(
    ('name', 'surrogate'),
    [*((name, 'kernel') for name in STEMS), *((STEMS[0], each) for each in SURROGATES)],
)
def test_gradient_is_that_of_the_planes_times_the_slope(name: str, surrogate: str) -> None:
    model, levels = _model(name, 'thermometer'), random_levels(2, 3, 32, 32)
    images = (levels / 255).requires_grad_()
    attack_view(model, surrogate)(images).square().sum().backward()
    network = CodeModel(PixelModel(model))
    planes = network.table()[levels.permute(0, 2, 3, 1).long()].requires_grad_()
    network(planes).square().sum().backward()
    slopes = code_slopes(network.table(), surrogate)[levels.permute(0, 2, 3, 1).long()]
    expected = 255 * (planes.grad * slopes).sum(-1).permute(0, 3, 1, 2)
    # an activation on the kink of a ReLU may fall on either side, hence not element by element
    assert (images.grad - expected).norm() < 0.01 * expected.norm()
    assert expected.abs().max() > 0


def test_pixel_values_get_their_own_gradient() -> None:
    model, levels = _model('resnet10t', None), random_levels(2, 3, 32, 32)
    images = (levels / 255).requires_grad_()
    attack_view(model)(images).square().sum().backward()
    plain = (levels / 255).requires_grad_()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
    model((plain - mean) / std).square().sum().backward()
    torch.testing.assert_close(images.grad, plain.grad)


def test_view_leaves_the_model_alone_and_follows_it() -> None:
    model = _model('resnet10t')
    model.train()
    view = attack_view(model)
    assert model.training
    assert not view.training
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(view(images), PixelModel(model.eval())(images))


@pytest.mark.parametrize(
    ('encoding', 'arguments', 'words'),
    [
        ('p2be', {'surrogate': 'identity'}, ("'identity'", "['auto', 'linear', 'kernel'")),
        ('p2be', {'surrogate': 'ramp'}, ("'ramp' does not fit resnet10t", 'p2be codes')),
        (None, {'surrogate': 'kernel'}, ('reads pixel values', "['auto', 'straight-through']")),
        ('p2be', {'sigma': 0.3}, ('sigma=0.3', "surrogate='linear'")),
    ],
)
def test_bad_input(encoding: str | None, arguments: dict[str, object], words: tuple[str, str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words are looked for below
        attack_view(_model('resnet10t', encoding), **arguments)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_folded_model_is_refused() -> None:
    folded = timm_p2be.fold(_model('resnet10t'))
    with pytest.raises(ValueError, match=r'has been folded .* Take the model it was folded from'):
        attack_view(folded, 'straight-through')


@pytest.mark.parametrize(('eps', 'sigma'), [(0, 1.0), (4, 2.0), (255, 4.0)])
def test_the_kernel_follows_the_bound(eps: int, sigma: float) -> None:
    model, images = _model('wrn10_2', 'thermometer'), (random_levels(2, 3, 32, 32) / 255).requires_grad_()
    got, expected = (
        torch.autograd.grad(view(images).square().sum(), images)[0]
        for view in (attack_view(model, eps=eps), attack_view(model, 'kernel', sigma=sigma))
    )
    assert torch.equal(got, expected)


def test_a_second_derivative_is_that_of_the_network() -> None:
    """As GradAlign and curvature penalties take it: the change of the gradient along a weight."""
    model = _model('wrn10_2').double()
    view, images = attack_view(model), (random_levels(1, 3, 32, 32) / 255.0).double().requires_grad_()
    weight = model.get_parameter('fc.weight')

    def slope() -> Tensor:
        return torch.autograd.grad(view(images).square().sum(), images, create_graph=True)[0].square().sum()

    (exact,) = torch.autograd.grad(slope(), weight)
    step = 1e-2  # logits are float32
    with torch.no_grad():
        weight[1, 2] += step
    above = slope().item()
    with torch.no_grad():
        weight[1, 2] -= 2 * step
    below = slope().item()
    assert exact[1, 2].item() == pytest.approx((above - below) / (2 * step), rel=2e-2)
    assert exact[1, 2] != 0


def test_any_module_on_images_is_taken() -> None:
    model, levels = _model('resnet10t', None), random_levels(2, 3, 32, 32)
    mean, std = (model.pretrained_cfg[key] for key in ('mean', 'std'))
    stacked = nn.Sequential(Normalize(mean, std), model)
    for images in (levels, levels / 255):
        torch.testing.assert_close(attack_view(stacked)(images), PixelModel(model)(levels))
    encoded = _model('resnet10t')
    behind = attack_view(nn.Sequential(nn.Identity(), encoded))
    assert torch.equal(behind(levels), PixelModel(encoded)(levels))
    assert PixelModel(stacked).num_classes == 5


def test_rounding_toward_the_clean_image_keeps_every_bound() -> None:
    clean = random_levels(4, 3, 32, 32)
    change = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    change *= 0.25 / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    images = clean / 255 + 8 * change
    rounded = round_toward(images, clean)
    for order in (1, 2, float('inf')):
        before, after = ((x - clean / 255).flatten(1).norm(order, dim=1) for x in (images, rounded / 255))
        assert (after <= before + 1e-5).all()
    assert (rounded != clean).any()
    other = random_levels(4, 3, 32, 32).flip(0)
    assert torch.equal(round_toward(other / 255, clean), other)
