"""DGA: its jumps by hand, its passes, and that rough tables and targets hide nothing from it."""

import math

import pytest
import timm
import torch
from stems import random_levels
from torch import Tensor, nn

import timm_p2be
from timm_p2be.robustness.attacks import DGA, PGD
from timm_p2be.robustness.attacks.climbing import Pass
from timm_p2be.robustness.attacks.code_model import CodeModel
from timm_p2be.robustness.attacks.dga import PATIENCE, SHARE, _Jumps
from timm_p2be.robustness.pixel_model import PixelModel


def _harm(gradient: Tensor, table: Tensor, clean: Tensor, eps: int) -> Tensor:
    """First-order change of every level at every value, (N, 3, H, W, 256); -inf where it is not legal."""
    harm = (gradient @ table.T).permute(0, 3, 1, 2, 4)
    legal = (torch.arange(256) - clean.unsqueeze(-1).int()).abs() <= eps
    return harm.masked_fill(~legal, -math.inf)


@pytest.mark.parametrize('eps', [1, 8, 255])
def test_the_share_of_values_with_the_most_harmful_jumps_makes_them(eps: int) -> None:
    torch.manual_seed(0)
    clean, table = random_levels(2, 3, 8, 8), (torch.rand(256, 12) > 0.5).float()
    jumps = _Jumps(clean.float(), clean.float(), eps, table)
    gradient = torch.randn(2, 8, 8, 3, 12)
    jumps.move(0, torch.zeros(2), gradient)
    harm = _harm(gradient, table, clean, eps)
    gain = harm.amax(-1) - harm.gather(-1, clean.long().unsqueeze(-1)).squeeze(-1)
    count = math.ceil(SHARE * 3 * 8 * 8)
    for image in range(2):
        moved = jumps.current[image] != clean[image]
        assert int(moved.sum()) == count
        assert gain[image][moved].min() >= gain[image][~moved].max()
        chosen = harm[image].gather(-1, jumps.current[image].long().unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(chosen[moved], harm[image].amax(-1)[moved])


def test_an_image_that_gains_nothing_returns_and_halves_its_share() -> None:
    clean, table = random_levels(2, 3, 8, 8), torch.eye(256)
    jumps = _Jumps(clean.float(), clean.float(), 8, table)
    gradient = torch.randn(2, 8, 8, 3, 256)
    jumps.move(0, torch.tensor([5.0, 0.0]), gradient)  # the first never climbs again
    for step in range(1, PATIENCE + 1):
        assert not torch.equal(jumps.current[0], clean[0].float())
        jumps.move(step, torch.tensor([0.0, float(step)]), gradient)
    assert torch.equal(jumps.current[0], clean[0].float())
    assert jumps.step.flatten().tolist() == pytest.approx([SHARE / 2, SHARE])
    jumps.move(PATIENCE + 1, torch.tensor([0.0, 9.0]), gradient)
    assert int((jumps.current[0] != clean[0]).sum()) == math.ceil(SHARE / 2 * 192)


def test_gradients_are_averaged_over_steps() -> None:
    clean, table = random_levels(1, 3, 8, 8), (torch.rand(256, 12) > 0.5).float()
    jumps = _Jumps(clean.float(), clean.float(), 4, table)
    first, second = torch.randn(2, 1, 8, 8, 3, 12)
    jumps.move(0, torch.tensor([0.0]), first)
    jumps.move(1, torch.tensor([1.0]), second)
    mean = 0.75 * first / first.abs().mean() + second / second.abs().mean()
    expected = (mean @ table.T).permute(0, 3, 1, 2, 4)[..., 0]
    # the harm of level 0 is among the candidates of dark values only; look at one
    dark = clean[0] <= 4
    got = torch.stack([jumps.harm[0][c, y, x, 0] for c, y, x in dark.nonzero().tolist()])
    torch.testing.assert_close(got, expected[0][dark])


def test_the_gradient_is_that_of_the_codes_the_image_has() -> None:
    model = PixelModel(timm.create_model('wrn10_2_p2be', num_classes=5))
    attack, levels = DGA(model, 8), random_levels(2, 3, 32, 32)
    logits, planes = attack._see(levels.float(), with_gradient=True)
    assert torch.equal(planes.detach(), CodeModel(model).table()[levels.permute(0, 2, 3, 1).long()])
    torch.testing.assert_close(logits, model(levels), rtol=1e-4, atol=1e-4)


def test_passes_and_cost() -> None:
    attack = DGA(timm.create_model('wrn10_2_p2be', num_classes=3), steps=7)
    assert attack.passes == [Pass('margin'), Pass('ce', random=True), Pass('target', rank=0), Pass('target', rank=1)]
    assert attack.cost() == (5, 28)


class _Rough(nn.Module):
    """Class 1 leads where the left half's levels have codes of some random bit; neighbors say nothing of each other."""

    def __init__(self) -> None:
        super().__init__()
        stem = timm_p2be.EncodedConv2d(3, 2, 1, num_bits=16)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            stem.embedding.weight.copy_(torch.randn(256, 16, generator=generator))
            stem.weight.zero_()
            stem.weight[1, :3] = 1  # bit 0 of each color
        self.stem, self.num_classes = stem, 2
        self.register_buffer('offset', torch.tensor([2.0, 0.0]))

    def forward(self, images: Tensor) -> Tensor:
        return self.stem(images)[..., :4].mean(dim=(2, 3)) + self.offset


def test_a_rough_table_hides_nothing() -> None:
    """A random table keeps a gradient of smooth surrogates from every use; the exact one needs one look."""
    model, labels = PixelModel(_Rough()), torch.zeros(4, dtype=torch.int64)
    levels = random_levels(4, 3, 8, 8)
    assert (model(levels).argmax(1) == 0).all()
    assert (model(DGA(model, 2)(levels, labels)).argmax(1) == 1).all()
    wide = PGD(model, 2, surrogate='straight-through', steps=40)
    assert (model(wide(levels, labels)).argmax(1) == 0).any()


def test_one_pass_of_each_class() -> None:
    """The untargeted pass climbs towards the nearest class, which is out of reach; another one is not."""

    class Three(nn.Module):
        num_classes = 3

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(255.0))

        def forward(self, images: Tensor) -> Tensor:
            change = (images * self.scale).mean(dim=(1, 2, 3)) - 100
            near = 0.9 * torch.tanh(change)  # leads among the wrong ones, and never reaches class 0
            far = 0.3 * torch.relu(2 - change)
            return torch.stack([torch.ones_like(near), near + 0.05, far], dim=1)

    levels, labels = torch.full((1, 3, 8, 8), 101, dtype=torch.uint8), torch.tensor([0])
    model = PixelModel(Three())
    assert model(DGA(model, 8, targets=0)(levels, labels)).argmax() == 0
    assert model(DGA(model, 8, targets=2)(levels, labels)).argmax() == 2
