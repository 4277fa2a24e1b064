"""LS-PGA against the dense form over all 256 levels, and what its arguments do."""

from typing import Any

import pytest
import timm
import torch
from planted import Planted, random_levels
from torch import Tensor, nn

from timm_p2be.robustness.attacks import LSPGA
from timm_p2be.robustness.attacks.code_model import CodeModel
from timm_p2be.robustness.attacks.windows import Windows
from timm_p2be.robustness.pixel_model import PixelModel

ENCODED = ('wrn10_2_p2be', 'wrn10_2_onehot', 'wrn10_2_thermometer')


def _model(name: str = 'wrn10_2_p2be', classes: int = 5) -> PixelModel:
    torch.manual_seed(0)
    return PixelModel(timm.create_model(name, num_classes=classes))


def _dense(model: PixelModel, levels: Tensor, labels: Tensor, eps: int, noise: Tensor, **arguments: Any) -> Tensor:
    """The attack as published: logits over all 256 levels, illegal ones at -1e10, gradients by autograd alone."""
    network, table = CodeModel(model), CodeModel(model).table()
    distance = (torch.arange(256) - levels.unsqueeze(-1).int()).abs()
    u = noise.masked_fill(distance > eps, -1e10)
    for k in range(arguments['steps']):  # T of the gradient k: the official loop changes it after rebuilding z
        temperature = arguments['anneal_rate'] ** (max(k - 1, 0) if arguments['anneal'] == 'flatten' else -k)
        u.requires_grad_()
        planes = torch.softmax(u / temperature, dim=-1) @ table  # (B, 3, H, W, M)
        loss = nn.functional.cross_entropy(network(planes.permute(0, 2, 3, 1, 4)), labels, reduction='sum')
        (grad,) = torch.autograd.grad(loss, u)
        u = (u + arguments['step_size'] * grad.sign()).detach()
    return u.argmax(dim=-1).to(torch.uint8)


@pytest.mark.parametrize('name', [*ENCODED, 'wrn10_2'])
@pytest.mark.parametrize(
    'arguments',
    [
        {'steps': 7, 'step_size': 1.0, 'anneal_rate': 1.2, 'anneal': 'flatten'},
        {'steps': 4, 'step_size': 0.3, 'anneal_rate': 1.5, 'anneal': 'sharpen'},
    ],
    ids=['official', 'sharpen'],
)
def test_window_form_equals_dense_form(name: str, arguments: dict[str, Any]) -> None:
    model, levels, labels, eps = _model(name), random_levels(), torch.tensor([0, 3]), 8
    noise = torch.randn((*levels.shape, 17), generator=torch.Generator().manual_seed(5))
    dense_noise = torch.randn(*levels.shape, 256)
    start = (levels.long() - eps).clamp(0, 256 - 17)
    dense_noise.scatter_(-1, start.unsqueeze(-1) + torch.arange(17), noise)
    expected = _dense(model, levels, labels, eps, dense_noise, **arguments)
    got = LSPGA(model, eps, **arguments)(levels, labels, torch.Generator().manual_seed(5))
    # the two sum the codes in different orders: a gradient of about 0 may get another sign
    assert (got != expected).float().mean() < 2e-3
    idle = LSPGA(model, eps, **{**arguments, 'steps': 1, 'step_size': 1e-9})
    first = idle(levels, labels, torch.Generator().manual_seed(5))
    assert (got != first).float().mean() > 0.02  # the gradients did something


@pytest.mark.parametrize(('eps', 'width'), [(0, 1), (1, 3), (8, 17), (127, 255), (128, 256), (255, 256)])
def test_windows_hold_the_legal_levels_once(eps: int, width: int) -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    windows = Windows(levels, eps)
    assert windows.width == width
    order = windows.sort(levels)
    candidates = torch.stack([windows.sort(windows.pick(torch.full((768,), j))) for j in range(width)], dim=1)
    for value in (0, 1, 5, 100, 250, 254, 255):
        row = (order == value).nonzero()[0, 0]
        assert sorted(candidates[row][windows.legal[row]].tolist()) == [k for k in range(256) if abs(k - value) <= eps]


@pytest.mark.parametrize(('eps', 'bits'), [(1, 24), (8, 1), (200, 24)])
def test_both_forms_of_the_products_agree(eps: int, bits: int) -> None:
    """The one of CPUs and that of other devices, also in an autocast region, which lowers neither."""
    levels = random_levels()
    table = torch.rand(256, bits, dtype=torch.float64)
    blocks, one = Windows(levels, eps), Windows(levels, eps, blocks=False)
    shares = torch.rand(levels.numel(), blocks.width, dtype=torch.float64) * blocks.legal
    with torch.autocast('cpu', torch.bfloat16):
        planes = [windows.mix(shares, table) for windows in (blocks, one)]
        products = [windows.compare(planes[0], table) for windows in (blocks, one)]
        lowered = one.mix(shares.float(), table.float())
    torch.testing.assert_close(*planes)
    torch.testing.assert_close(*products)
    torch.testing.assert_close(lowered.double(), planes[0], rtol=1e-5, atol=1e-6)
    direct = shares[0] @ table[one._candidates()[0]]
    torch.testing.assert_close(planes[1].flatten(0, 3)[one._order[0]], direct)


@pytest.mark.parametrize('name', ['wrn10_2_p2be', 'wrn10_2', 'resnet18_thermometer'])
def test_code_model_is_the_network_at_codes(name: str) -> None:
    model, levels = _model(name), random_levels(side=32)
    network = CodeModel(model).train()  # stays in evaluation mode
    planes = network.table()[levels.permute(0, 2, 3, 1).long()]
    torch.testing.assert_close(network(planes), model(levels), rtol=1e-4, atol=1e-5)


class _Fallible(Planted):
    """Class 1 is dark."""

    def lead(self, images: Tensor) -> Tensor:
        return 0.5 - images.mean(dim=(1, 2, 3))


def test_fallen_images_are_left_alone_and_the_smallest_margin_is_kept() -> None:
    model = PixelModel(_Fallible(4))
    levels = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (129, 250)])
    judged: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args: judged.append(len(args[0])) if args[0].dtype == torch.uint8 else None
    )
    got = LSPGA(model, eps=8, steps=7, restarts=3)(levels, torch.tensor([0, 0]))
    assert judged == [2, 1, 1]  # the first image falls at the first restart
    assert model(got).argmax(1).tolist() == [1, 0]
    assert got[1].float().mean() < 246


def test_presets_and_names() -> None:
    model = _model()
    official = LSPGA.official(model)
    assert (official.steps, official.step_size, official.anneal_rate, official.anneal) == (7, 1.0, 1.2, 'flatten')
    assert (official.name, official.cost()) == ('lspga-official', (1, 7))
    assert [LSPGA(model)._temperature(k) for k in range(4)] == pytest.approx([1, 1, 1.2, 1.44])
    assert [LSPGA(model, anneal='sharpen')._temperature(k) for k in range(3)] == pytest.approx([1, 1 / 1.2, 1 / 1.44])
