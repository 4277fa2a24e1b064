"""fold: the copy computes what the model does, from one table instead of codes and kernel, and can be exported."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_models import ENCODED, create
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

import timm_p2be
from timm_p2be.stem import EncodedConv2d, convert, fold
from timm_p2be.stem.fold import FoldedConv2d

QUICK = ('wrn10_2_p2be', 'densenetbc100_12_onehot', 'resnext29_4x32d_thermometer')
SMALL = 'resnext29_4x32d_p2be'  # its norm folds, and its images are small
# backbone -> whether its first batch normalization folds in
BACKBONES = {
    'tf_mobilenetv3_small_minimal_100': True,  # 'same' padding
    'test_resnet': True,  # a deep stem: the first of three convolutions, its norm beside it
    'test_convnext': False,  # layer normalization
    'test_vit': False,  # bias, kernel as large as its stride
}


def _trained(model: nn.Module) -> nn.Module:
    """Return the model in eval mode, its batch normalizations far from those of a fresh one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(std=0.1, generator=generator)
            if isinstance(module, EncodedConv2d) and module.bias is not None:
                module.bias.normal_(generator=generator)
    return model.eval()


def _create(name: str, **kwargs: Any) -> nn.Module:
    """Return a network of few layers, trained by the look of it."""
    torch.manual_seed(0)
    return _trained(create(name, num_classes=10, **kwargs))


def _images(model: nn.Module, batch: int = 2) -> Tensor:
    side = model.default_cfg['input_size'][-1]
    return torch.randint(256, (batch, 3, side, side), generator=torch.Generator().manual_seed(1)) / 255


def _close(found: Tensor, expected: Tensor) -> None:
    """Sums in another order: off by the rounding of the largest, which later layers carry to every output."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.detach().abs().max()) + 1e-6)


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _check(model: nn.Module, norm_folds: bool) -> None:
    images = _images(model)
    folded = fold(model)
    with torch.inference_mode():
        _close(folded(images), model(images))
        assert torch.equal(folded((images * 255).round().byte()), folded(images))
        pairs = zip(
            folded.forward_intermediates(images, intermediates_only=True),
            model.forward_intermediates(images, intermediates_only=True),
            strict=True,
        )
        for found, expected in pairs:
            _close(found, expected)
    assert _norms(model) - _norms(folded) == norm_folds
    stems = [module for module in folded.modules() if isinstance(module, FoldedConv2d)]
    assert len(stems) == 1
    assert not any(isinstance(module, EncodedConv2d) for module in folded.modules())
    assert list(dict(stems[0].named_parameters())) == []
    assert list(stems[0].state_dict()) == ['table']


@pytest.mark.parametrize('name', [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ENCODED[1:]])
def test_our_models(name: str) -> None:
    # pre-activation networks hand the stem's output out as their first feature level, so their norm stays
    _check(_create(name), norm_folds=name.startswith('res'))


@pytest.mark.parametrize('backbone', BACKBONES)
def test_other_backbones(backbone: str) -> None:
    model = _create('encoded', backbone=backbone, encoding='p2be', num_bits=8)
    _check(model, norm_folds=BACKBONES[backbone])


def test_the_model_itself_is_left_alone() -> None:
    model = _create(SMALL).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold(model)
    assert not folded.training
    assert model.training
    assert isinstance(model.conv1, EncodedConv2d)
    assert not model.conv1._forward_hooks
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_state_dict_loads_into_another_folded_copy(tmp_path: Path) -> None:
    first, second = fold(_create(SMALL)), fold(timm.create_model(SMALL, num_classes=10, depth=11))
    images = _images(first)
    torch.save(first.state_dict(), tmp_path / 'folded.pth')
    second.load_state_dict(torch.load(tmp_path / 'folded.pth', weights_only=True))
    with torch.inference_mode():
        assert torch.equal(second(images), first(images))


def test_bfloat16() -> None:
    model = _create(SMALL)
    images = _images(model)
    folded, cast = fold(model), fold(model.bfloat16())
    assert cast.conv1.table.dtype == torch.bfloat16
    with torch.inference_mode():
        exact = folded.conv1(images)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            features = folded.conv1(images), cast.conv1(images)
        for found in (*features, cast.conv1(images.bfloat16())):
            assert found.dtype == torch.bfloat16
            assert (found.float() - exact).norm() < 0.01 * exact.norm()


def test_an_activation_in_place_after_the_stem_and_no_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 3))
    model.pretrained_cfg = {'first_conv': '0', 'input_size': (3, 16, 16)}  # type: ignore[assignment]
    model, images = _trained(convert(model, 'p2be', num_bits=4)), torch.rand(2, 3, 16, 16)
    _close(fold(model)(images), model(images))


def test_norm_with_another_reader_or_without_statistics_stays() -> None:
    class Shortcut(nn.Module):
        """The stem's output goes into the norm and round it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.bn1 = BatchNormAct2d(8)
            self.pretrained_cfg = {'first_conv': 'conv1', 'input_size': (3, 16, 16)}

        def forward(self, images: Tensor) -> Tensor:
            features = self.conv1(images)
            return features + self.bn1(features)

    images = torch.rand(2, 3, 16, 16)
    model = _trained(convert(Shortcut(), 'p2be', num_bits=4))
    folded = fold(model)
    assert isinstance(folded.bn1, BatchNormAct2d)
    _close(folded(images), model(images))
    model = _create(SMALL)
    model.bn1 = nn.BatchNorm2d(64, track_running_stats=False)  # it normalizes by each batch
    _close(fold(model)(_images(model)), model.eval()(_images(model)))


@pytest.mark.parametrize('padding', [(1, 2), 'same'])
def test_a_scripted_stem_of_uneven_geometry(padding: Any) -> None:
    stem = FoldedConv2d(EncodedConv2d(3, 4, (3, 5), num_bits=4, padding=padding, stride=(2, 1), bias=True))
    images = torch.rand(2, 3, 9, 8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings('ignore', '.*torch.jit.*deprecated')
        _close(torch.jit.script(stem)(images), stem(images))


def test_bad_input() -> None:
    folded = fold(_create('wrn10_2_p2be'))
    with pytest.raises(RuntimeError, match='the image has no gradient'):
        folded(_images(folded).requires_grad_()).sum().backward()
    with pytest.warns(UserWarning, match='reads pixels in'), torch.inference_mode():
        folded(torch.randn(2, 3, 32, 32) * 2)
    for call, words in (
        (lambda: fold(timm.create_model('wrn10_2')), 'no encoded stem to fold.*convert'),
        (lambda: fold(EncodedConv2d(3, 4, 1)), 'no encoded stem to fold.*convert'),  # a stem alone has no parent
        (lambda: fold(folded), 'has been folded.*the model it was folded from'),
        (lambda: timm_p2be.find_embedding(folded), 'has been folded.*the model it was folded from'),
        (lambda: folded(torch.rand(2, 1, 32, 32)), r'\[2, 1, 32, 32\].*\(B, 3, H, W\)'),
    ):
        with pytest.raises(ValueError, match=words):
            call()
