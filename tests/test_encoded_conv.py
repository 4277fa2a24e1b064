"""The encoded stem: `EncodedConv2d` by itself."""

import copy
import math

import pytest
import torch
from stems import code_planes, random_levels
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from timm_p2be.encodings import ENCODINGS
from timm_p2be.stem import EncodedConv2d

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
IMAGENET = (torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

every_encoding = pytest.mark.parametrize('encoding', ENCODINGS)
jit_is_deprecated = pytest.mark.filterwarnings('ignore:.*torch.jit.*deprecated')
jit_converts_shapes = pytest.mark.filterwarnings('ignore:Converting a tensor to a Python boolean')


def _normalized(batch: int = 2, size: int = 8) -> Tensor:
    mean, std = IMAGENET
    return (random_levels(batch, 3, size, size) / 255 - mean) / std


# forward


@every_encoding
@pytest.mark.parametrize('dtype', FLOATS, ids=str)
def test_levels_and_floats_agree(encoding, dtype):
    stem = EncodedConv2d(3, 6, 3, encoding, num_bits=5, padding=1)
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = stem(levels)
    assert expected.dtype == torch.float32
    features = stem((levels.double() / 255).to(dtype))
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


@pytest.mark.parametrize(
    ('encoding', 'images', 'bias'),
    [('p2be', random_levels(2, 3, 8, 8), True), ('onehot', random_levels(2, 3, 8, 8) / 255, False)],
    ids=['levels', 'floats'],
)
def test_output_has_the_weights_dtype_or_autocasts(encoding, images, bias):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        stem = EncodedConv2d(3, 6, 3, encoding, num_bits=4, bias=bias, dtype=dtype)
        assert stem.weight.dtype == dtype
        assert stem.embedding.codes().dtype == torch.float32
        assert stem(images).dtype == dtype
    stem = EncodedConv2d(3, 6, 3, encoding, num_bits=4, bias=bias)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast('cpu', dtype=dtype):
            assert stem(images).dtype == dtype
    assert stem(images).dtype == torch.float32


@pytest.mark.parametrize(
    ('encoding', 'bias', 'chans'), [('p2be', True, 3), ('onehot', False, 1), ('thermometer', True, 4)]
)
def test_forward_is_the_convolution_of_the_planes(encoding, bias, chans):
    stem = EncodedConv2d(
        chans, 6, (3, 5), encoding, num_bits=7, stride=(2, 1), padding=(1, 3), dilation=(1, 2), bias=bias
    )
    if bias:
        nn.init.normal_(stem.bias)
    levels = random_levels(2, chans, 11, 12)
    planes = code_planes(levels, stem.embedding.codes())
    expected = F.conv2d(planes, stem.weight, stem.bias, (2, 1), (1, 3), (1, 2))
    features = stem(levels)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    features.sum().backward()
    if bias:
        torch.testing.assert_close(stem.bias.grad, torch.full((6,), features[:, 0].numel() * 1.0))


@pytest.mark.parametrize('size', [(9, 10), (2, 3)])
@pytest.mark.parametrize('stride', [1, (2, 3)])
@pytest.mark.parametrize(('kernel', 'dilation'), [((3, 4), 1), (7, 1), (3, 2), ((2, 5), (2, 1))])
def test_same_padding_is_timms(size, stride, kernel, dilation):
    stem = EncodedConv2d(3, 5, kernel, num_bits=4, stride=stride, padding='same', dilation=dilation, bias=True)
    nn.init.normal_(stem.bias)
    conv = Conv2dSame(12, 5, kernel, stride, dilation=dilation)
    conv.load_state_dict({'weight': stem.weight.detach(), 'bias': stem.bias.detach()})
    levels = random_levels(2, 3, *size)
    features = stem(levels)
    torch.testing.assert_close(features, conv(code_planes(levels, stem.embedding.codes())), rtol=1e-4, atol=1e-5)
    assert "padding='same'" in repr(stem)


def test_valid_padding_is_none_and_other_words_are_refused():
    levels = random_levels(2, 3, 8, 9)
    stem = EncodedConv2d(3, 5, 3, num_bits=4, padding='valid')
    expected = F.conv2d(code_planes(levels, stem.embedding.codes()), stem.weight)
    torch.testing.assert_close(stem(levels), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="Invalid padding string 'full'"):
        EncodedConv2d(3, 5, 3, padding='full')


@pytest.mark.parametrize(('shape', 'dtype', 'words'), [
    ((2, 1, 8, 8), torch.uint8, r'\[2, 1, 8, 8\].*in_chans'),
    ((2, 8, 8, 3), torch.float32, r'\[2, 8, 8, 3\].*\(B, 3, H, W\)'),
    ((3, 8, 8), torch.float32, r'\[3, 8, 8\].*\(B, 3, H, W\)'),
    ((2, 3, 8, 8), torch.int64, 'torch.int64.*uint8'),
])  # fmt: skip
def test_other_images_are_refused(shape, dtype, words):
    with pytest.raises(ValueError, match=words):
        EncodedConv2d(3, 6, 3, num_bits=4)(torch.zeros(shape, dtype=dtype))


def test_an_empty_batch_passes():
    stem = EncodedConv2d(3, 6, 3, num_bits=4)
    assert stem(torch.rand(0, 3, 8, 8)).shape == stem(random_levels(0, 3, 8, 8)).shape == (0, 6, 6, 6)


# image gradient


@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor that is not a leaf')  # torch.compile's own
@pytest.mark.parametrize('compiled', [False, True])
def test_an_image_that_wants_a_gradient_gets_an_error(compiled):
    stem = EncodedConv2d(3, 6, 3, num_bits=4)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    features = (torch.compile(stem, backend='eager') if compiled else stem)(images)
    assert torch.equal(features, stem(images.detach()))
    with pytest.raises(RuntimeError, match=r'the image has no gradient.*attack_view'):
        features.sum().backward()
    assert images.grad is None
    with torch.no_grad():
        assert not stem(images).requires_grad


@every_encoding
def test_what_trains(encoding):
    stem = EncodedConv2d(3, 6, 3, encoding, num_bits=4, bias=True)
    assert ('embedding.weight' in dict(stem.named_parameters())) == (encoding == 'p2be')
    stem(torch.rand(2, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in stem.parameters())


def test_a_frozen_table_gets_no_gradient():
    stem = EncodedConv2d(3, 6, 3, num_bits=4, bias=True)
    stem.embedding.freeze()
    stem(torch.rand(2, 3, 8, 8)).square().sum().backward()
    assert {name for name, p in stem.named_parameters() if p.grad is not None} == {'weight', 'bias'}


# range of the values


@pytest.mark.parametrize('dtype', FLOATS, ids=str)
def test_a_normalised_batch_warns_once(dtype):
    stem = EncodedConv2d(3, 6, 3, num_bits=4)
    images = _normalized().to(dtype)
    with pytest.warns(UserWarning, match='normalized by a mean and std') as caught:
        stem(images)
    assert len(caught) == 1
    for _ in range(6):
        stem(images)  # a second warning would be an error


def test_only_the_first_batches_are_looked_at():
    late, early = EncodedConv2d(3, 6, 3, num_bits=4), EncodedConv2d(3, 6, 3, num_bits=4)
    for _ in range(4):
        late(torch.rand(2, 3, 8, 8))
    late(_normalized())  # a warning would be an error here
    for _ in range(3):
        early(torch.rand(2, 3, 8, 8))
        early(random_levels(2, 3, 8, 8))  # levels are always in range: they do not count
    with pytest.warns(UserWarning, match='normalized'):
        early(_normalized())


def test_compiled_code_is_not_looked_at():
    torch.compiler.reset()
    stem = EncodedConv2d(3, 6, 3, num_bits=4)
    compiled = torch.compile(stem, backend='eager', fullgraph=True)  # a look at the values would break the graph
    expected = copy.deepcopy(stem)
    with pytest.warns(UserWarning, match='normalized'):
        features = expected(_normalized())
    torch.testing.assert_close(compiled(_normalized()), features)
    torch.testing.assert_close(torch.export.export(stem, (_normalized(),)).module()(_normalized()), features)


@jit_is_deprecated
@jit_converts_shapes
def test_traced_and_scripted_code_is_not_looked_at():
    stem = EncodedConv2d(3, 6, 3, num_bits=4, bias=True)
    traced, scripted = torch.jit.trace(stem, _normalized(), check_trace=False), torch.jit.script(stem)
    with pytest.warns(UserWarning, match='normalized'):
        expected = stem(_normalized())
    for run in (traced, scripted):
        torch.testing.assert_close(run(_normalized()), expected)
    levels = random_levels(2, 3, 8, 8)
    checked = torch.jit.trace(stem, levels / 255)  # torch traces again, without gradients, and compares the graphs
    torch.testing.assert_close(checked(levels / 255), stem(levels))
    torch.testing.assert_close(scripted(levels), stem(levels))


# start


@pytest.mark.parametrize(
    ('chans', 'outputs', 'kernel', 'bits'), [(3, 64, 7, 64), (1, 128, 3, 256), (3, 256, (3, 5), 8)]
)
def test_kernel_starts_as_in_the_protocol(chans, outputs, kernel, bits):
    """N(0, sqrt(2 / (kh kw O))): the fan-out, so that the code length has no say."""
    torch.manual_seed(0)
    stem = EncodedConv2d(chans, outputs, kernel, num_bits=bits, bias=True)
    area = kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1]
    std = math.sqrt(2 / (area * outputs))
    draws = stem.weight.numel()
    assert stem.weight.shape[1] == bits * chans
    assert stem.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * draws))
    assert abs(stem.weight.mean().item()) < 5 * std / math.sqrt(draws)
    assert (stem.bias == 0).all()
