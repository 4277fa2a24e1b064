"""lookup_conv2d by itself: gradients, borders, precision, plane order; values are in test_lookup_property.py."""

from itertools import product

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from timm_p2be.encodings import binarize, onehot_codes, thermometer_codes
from timm_p2be.lookup import lookup_conv2d
from timm_p2be.lookup.operators import SWITCH
from timm_p2be.lookup.plain import convolve_codes


def _planes_convolved(levels: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution over explicit code planes, bit-major, in float64, padded by 1."""
    planes = codes.double()[levels.long()].movedim(-1, 1).flatten(1, 2)
    return F.conv2d(planes, weight.double(), padding=1)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _example(batch: int, chans: int, size: tuple[int, int], bits: int, kernel: int | tuple[int, int], seed: int = 0):
    """Return levels (few, so that codes repeat; black and white among them), a real-valued table and a kernel."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.tensor([0, 1, 7, 127, 128, 254, 255], dtype=torch.uint8)
    levels = few[torch.randint(len(few), (batch, chans, *size), generator=generator)]
    codes = torch.rand(256, bits, generator=generator)
    weight = torch.randn(5, bits * chans, *_pair(kernel), generator=generator)
    return levels, codes, weight


@pytest.mark.parametrize(('kernel', 'stride', 'padding', 'dilation', 'chans'), [
    (1, 1, 0, 1, 3),
    (3, 2, 1, 1, 1),
    ((2, 3), (2, 1), (1, 0, 2, 1), (1, 2), 2),
])  # fmt: skip
def test_gradcheck(kernel, stride, padding, dilation, chans):
    levels, codes, weight = _example(1, chans, (5, 6), 2, kernel)

    def used_rows(rows: Tensor, weight: Tensor) -> Tensor:
        """Finite differences over all 256 levels would take long: only those in the image enter."""
        table = codes.double().index_put((used,), rows)
        return lookup_conv2d(levels, table, weight, stride=stride, padding=padding, dilation=dilation)

    used = levels.flatten().long().unique()
    inputs = (codes[used].double().requires_grad_(), weight.double().requires_grad_())
    assert torch.autograd.gradcheck(used_rows, inputs)


def test_an_empty_batch_is_an_empty_feature_map():
    levels, codes, weight = _example(0, 3, (8, 8), 4, 3)
    assert lookup_conv2d(levels, codes, weight, padding=1).shape == (0, 5, 8, 8)


# border


@pytest.mark.parametrize('padding', [2, (2, 2), (2, 2, 2, 2)])
def test_padding_is_no_code_at_all(padding):
    """A thermometer's black is all ones: a border of black pixels would add weights, no code adds none."""
    levels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    codes, weight = thermometer_codes(4), torch.ones(1, 12, 3, 3)
    features = lookup_conv2d(levels, codes, weight, padding=padding)[0, 0]
    inside = torch.tensor([1.0, 2, 3, 3, 2, 1])  # pixels of the image under the kernel, along either axis
    torch.testing.assert_close(features, 12 * torch.outer(inside, inside))
    black_border = lookup_conv2d(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), codes, weight)[0, 0]
    torch.testing.assert_close(black_border, torch.full((6, 6), 12.0 * 9))


def test_codes_get_no_gradient_from_the_border():
    codes = torch.zeros(256, 1, requires_grad=True)
    levels = torch.full((1, 1, 2, 2), 9, dtype=torch.uint8)
    lookup_conv2d(levels, codes, torch.ones(1, 1, 3, 3), padding=1).sum().backward()
    expected = torch.zeros(256, 1)
    expected[9] = 16  # four pixels, each seen by four outputs
    assert torch.equal(codes.grad, expected)


def test_four_paddings_are_left_right_top_bottom():
    levels = torch.full((1, 1, 2, 3), 5, dtype=torch.uint8)
    codes = torch.zeros(256, 1).index_fill(0, torch.tensor([5]), 1.0)
    features = lookup_conv2d(levels, codes, torch.ones(1, 1, 1, 1), padding=(1, 2, 3, 4))[0, 0]
    assert features.shape == (3 + 2 + 4, 1 + 3 + 2)
    assert features.nonzero().tolist() == [[y, x] for y in (3, 4) for x in (1, 2, 3)]
    pair = lookup_conv2d(levels, codes, torch.ones(1, 1, 1, 1), padding=(3, 1))
    assert pair.shape == (1, 1, 3 + 2 + 3, 1 + 3 + 1)


# precision


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_output_has_the_dtype_of_weight_or_autocast(dtype):
    levels, codes, weight = _example(2, 3, (12, 12), 16, 3)
    exact = _planes_convolved(levels, codes, weight.to(dtype))
    found = [lookup_conv2d(levels, codes, weight.to(dtype), padding=1)]
    if dtype.itemsize == 2:
        with torch.autocast('cpu', dtype=dtype):
            found.append(lookup_conv2d(levels, codes, weight, padding=1))
            assert torch.is_autocast_enabled('cpu')
    for features in found:
        assert features.dtype == dtype
        assert _relative_error(features, exact) < {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 5e-3)


def _code_gradient(precision: str) -> Tensor:
    """The gradient of codes that each sum over tens of thousands of pixels."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(3, (64, 3, 32, 32), generator=generator, dtype=torch.uint8)
    codes = onehot_codes(256)[:, :4].clone().requires_grad_()
    weight = torch.randn(6, 12, 3, 3, generator=generator)
    grad = torch.rand(64, 6, 32, 32, generator=generator)  # of one sign: a sum in bfloat16 would stop growing
    match precision:
        case 'autocast':
            with torch.autocast('cpu', dtype=torch.bfloat16):
                features = lookup_conv2d(levels, codes, weight, padding=1)
        case 'weight':
            features = lookup_conv2d(levels, codes, weight.bfloat16(), padding=1)
        case 'kernels':  # what another device than the CPU computes in
            features = convolve_codes(levels, codes, weight.bfloat16(), [1, 1], [1, 1], [1, 1])
        case _:
            features = lookup_conv2d(levels, codes, weight, padding=1)
    features.backward(grad.to(features.dtype))
    assert codes.grad.dtype == torch.float32
    return codes.grad


@pytest.mark.parametrize('precision', ['autocast', 'weight', 'kernels'])
def test_code_gradients_are_summed_in_float32(precision):
    assert _relative_error(_code_gradient(precision), _code_gradient('float32')) < 1e-2


# errors


IMAGE = (torch.uint8, (1, 3, 8, 8))


@pytest.mark.parametrize(('levels', 'codes', 'weight', 'geometry', 'words'), [
    ((torch.float32, (1, 3, 8, 8)), (256, 4), (5, 12, 3, 3), {}, 'torch.float32 and 4 axes.*uint8'),
    ((torch.uint8, (3, 8, 8)), (256, 4), (5, 12, 3, 3), {}, r'3 axes.*\(B, C, H, W\)'),
    (IMAGE, (255, 4), (5, 12, 3, 3), {}, r'codes of shape \[255, 4\].*256'),
    ((torch.uint8, (1, 1, 8, 8)), (256, 4), (5, 12, 3, 3), {}, 'images of 1 channels.*in_chans=1'),
    (IMAGE, (256, 4), (5, 3, 3, 3), {}, 'need 0.75'),
    (IMAGE, (256, 0), (5, 3, 3, 3), {}, 'bits.*at least 1'),
    (IMAGE, (256, 4), (5, 12, 0, 3), {}, 'kernel must be at least 1'),
    (IMAGE, (256, 4), (5, 12, 3, 3), {'padding': (1, 1, 1)}, r'padding=\(1, 1, 1\).*\(left, right, top, bottom\)'),
    (IMAGE, (256, 4), (5, 12, 3, 3), {'stride': [1]}, r'stride=\[1\].*\(height, width\)\.$'),
])  # fmt: skip
def test_bad_arguments(levels, codes, weight, geometry, words):
    dtype, shape = levels
    with pytest.raises(ValueError, match=words):
        lookup_conv2d(torch.zeros(shape, dtype=dtype), torch.zeros(codes), torch.zeros(weight), **geometry)


@pytest.mark.filterwarnings('ignore:.*torch.jit.script.*deprecated')  # torch's own, on the first use of jvp
def test_forward_mode_is_refused():
    levels, codes, weight = _example(1, 3, (6, 6), 2, 3)
    with pytest.raises(NotImplementedError, match='has no forward-mode derivative'):
        torch.func.jvp(lambda kernel: lookup_conv2d(levels, codes, kernel), (weight,), (weight,))


# plane order


def test_planes_are_bit_major():
    """One plane at a time: its weight answers to bit m of color c and to nothing else."""
    bits, chans = 4, 3
    levels = torch.tensor([10, 100, 250], dtype=torch.uint8).reshape(1, chans, 1, 1)
    codes = thermometer_codes(bits)
    for m, c in product(range(bits), range(chans)):
        weight = torch.zeros(1, bits * chans, 1, 1)
        weight[0, m * chans + c] = 1
        assert lookup_conv2d(levels, codes, weight).item() == codes[levels[0, c, 0, 0].item(), m].item()


@pytest.mark.parametrize('encoding', ['p2be', 'thermometer'])
def test_gray_model_from_a_color_checkpoint_sees_gray_images_alike(encoding, tmp_path):
    """timm sums consecutive planes to adapt a checkpoint to one channel: they must be the colors of one bit."""
    name = f'wrn10_2_{encoding}'
    torch.manual_seed(0)
    color = timm.create_model(name, num_bits=8).eval()
    file = tmp_path / 'color.pth'
    torch.save(color.state_dict(), file)
    overlay = {'file': str(file), 'num_classes': color.num_classes}
    gray = timm.create_model(name, num_bits=8, in_chans=1, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert gray.conv1.weight.shape == (16, 8, 3, 3)
    images = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        expected = color(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(gray(images), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(color(images.expand(-1, 3, -1, -1).flip(3)), expected, atol=1e-3)


@pytest.mark.parametrize('path', ['auto', 'plain'])
def test_latents_are_read_as_binarize_reads_them(path, monkeypatch):
    """Bit for bit, gradients included; latents on the edges of the approximate sign among them."""
    monkeypatch.setenv(SWITCH, path)
    levels, codes, weight = _example(2, 3, (6, 7), bits=9, kernel=3)
    start = torch.randn(codes.shape, generator=torch.Generator().manual_seed(1))
    start[:8, :7] = torch.tensor([-1.0, 1.0, 0.0, -0.0, 1.5, -1.5, 1e-12])
    results = []
    for latent in (True, False):
        latents, kernel = start.clone().requires_grad_(), weight.clone().requires_grad_()
        table = latents if latent else binarize(latents)
        features = lookup_conv2d(levels, table, kernel, padding=1, latent=latent)
        features.sin().sum().backward()
        results.append((features.detach(), latents.grad, kernel.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert results[0][1].count_nonzero() > 0
