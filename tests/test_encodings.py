"""Pixel levels, the three tables, the gradient of the sign and the type of the learned table."""

import copy
import io
import math
import pickle

import pytest
import timm
import torch
from torch import nn

from timm_p2be.encodings import (
    ENCODINGS,
    EmbeddingParameter,
    PixelEmbedding,
    binarize,
    onehot_codes,
    pixel_levels,
    thermometer_codes,
    warn_if_not_pixels,
)
from timm_p2be.encodings.codes import linear_codes
from timm_p2be.lookup import operators

BITS = (1, 3, 64, 100, 255, 300)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

every_length = pytest.mark.parametrize('num_bits', BITS)
every_float = pytest.mark.parametrize('dtype', FLOATS, ids=str)


# tables


def _eq1(level: int, bit: int, num_bits: int) -> bool:
    """Eq. 1 of the paper for bit 1..M, its last bin closed, multiplied out to integers."""
    return (bit - 1) * 255 <= level * num_bits < bit * 255 or (level == 255 and bit == num_bits)


def _eq2(level: int, bit: int, num_bits: int) -> bool:
    """Eq. 2 of the paper for bit 1..M, its last bin closed, multiplied out to integers."""
    return level * num_bits < bit * 255 or (level == 255 and bit == num_bits)


@every_length
def test_tables_are_eq_1_and_2_with_the_last_bin_closed(num_bits):
    bits = range(1, num_bits + 1)
    onehot = [[int(_eq1(level, bit, num_bits)) for bit in bits] for level in range(256)]
    thermometer = [[int(_eq2(level, bit, num_bits)) for bit in bits] for level in range(256)]
    for codes, expected in ((onehot_codes(num_bits), onehot), (thermometer_codes(num_bits), thermometer)):
        assert codes.dtype == torch.float32
        assert codes.shape == (256, num_bits)
        assert codes.tolist() == expected


@pytest.mark.parametrize('num_bits', [16, 64, 256])
def test_level_rule_is_the_float_rule_of_the_official_code(num_bits):
    """floor(clamp(x M, 0, M - 1)) of x = k / 255 in float32, as a loader hands it over."""
    bins = torch.floor(torch.clamp(torch.arange(256).float().div(255) * num_bits, 0, num_bits - 1)).long()
    assert torch.equal(onehot_codes(num_bits).argmax(dim=1), bins)
    assert torch.equal(thermometer_codes(num_bits).argmax(dim=1), bins)


@pytest.mark.parametrize('num_bits', [0, -1, 2.0, True, '64', None])
@pytest.mark.parametrize('build', [onehot_codes, thermometer_codes, lambda bits: PixelEmbedding('p2be', bits)])
def test_code_length_is_checked(build, num_bits):
    with pytest.raises(ValueError, match=r'num_bits=.* must be an integer of at least 1'):
        build(num_bits)


# pixels


@every_float
def test_every_level_survives_every_float_type(dtype):
    """Rounded to 8 bits of mantissa, k / 255 is off by up to a quarter of a level near white."""
    levels = list(range(256))
    for images in (torch.tensor([k / 255 for k in levels], dtype=torch.float64).to(dtype),
                   torch.tensor(levels, dtype=dtype) / 255):  # fmt: skip
        found = pixel_levels(images)
        assert found.dtype == torch.uint8
        assert found.tolist() == levels
    outside = torch.tensor([-1e4, -0.1, -0.0, 1.0, 1.1, 300.0, math.inf, -math.inf], dtype=dtype)
    assert pixel_levels(outside).tolist() == [0, 0, 0, 255, 255, 255, 255, 0]


def test_floats_go_to_the_nearest_level_and_levels_pass_through():
    nearest = torch.tensor([[0.4, 0.6, 1.4], [127.6, 254.4, 254.6]]) / 255
    assert pixel_levels(nearest).tolist() == [[0, 1, 1], [128, 254, 255]]
    levels = torch.arange(256, dtype=torch.uint8).reshape(2, 4, 32)
    assert pixel_levels(levels) is levels


@pytest.mark.parametrize('dtype', [torch.int64, torch.bool], ids=str)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=rf'Got images of dtype {dtype}; allowed are uint8'):
        pixel_levels(torch.zeros(2, dtype=dtype))


def test_noise_that_scripts_warm_up_on_is_no_reason_to_warn():
    assert not warn_if_not_pixels(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(('values', 'found'), [
    ([0.2, 2.64], 'from 0.2 to 2.64'),
    ([-2.12, 0.5], 'from -2.12 to 0.5'),
    ([0.0, 255.0], 'from 0 to 255'),
    ([0.5, math.nan], 'from nan to nan'),
])  # fmt: skip
def test_values_far_outside_the_range_are_named(values, found):
    with pytest.warns(UserWarning, match=rf'{found}, but it reads pixels in \[0, 1\].*normalized by a mean and std'):
        assert warn_if_not_pixels(torch.tensor(values, requires_grad=True))
    for pixels in ([0.0, 1.0], [-0.4, 1.4], []):
        assert not warn_if_not_pixels(torch.tensor(pixels))


# sign and its gradient

GRID = [-1e30, -2.0, -1.5, -1.0, -0.999, -0.75, -0.5, -0.25, -1e-30, -0.0,
        0.0, 1e-30, 0.25, 0.5, 0.75, 0.999, 1.0, 1.5, 2.0, 1e30]  # fmt: skip


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_bits_are_exactly_0_and_1(dtype):
    """sign(0) = +1, for either zero; no approximation shows in the values, whatever the latent."""
    noise = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).tolist()
    for values in (GRID, noise, [w * 1e-3 for w in noise], [w * 1e-12 for w in noise]):
        latents = torch.tensor(values, dtype=dtype, requires_grad=True)
        bits = binarize(latents)
        assert bits.dtype == dtype
        assert bits.tolist() == [1.0 if w >= 0 else 0.0 for w in values]
        assert not torch.signbit(bits).any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_gradient_is_eq_5_times_eq_6(dtype):
    latents = torch.tensor(GRID, dtype=dtype, requires_grad=True)
    upstream = torch.linspace(-3, 5, len(GRID), dtype=dtype)
    (binarize(latents) * upstream).sum().backward()
    factors = [0.5 * (2 - 2 * abs(w)) if abs(w) < 1 else 0.0 for w in GRID]
    expected = torch.tensor(factors, dtype=dtype) * upstream
    torch.testing.assert_close(latents.grad, expected, rtol=1e-6, atol=1e-7)
    outside = torch.tensor([abs(w) >= 1 for w in GRID])
    assert (latents.grad[outside] == 0).all()


def test_table_is_binarised_once_per_pass(monkeypatch):
    shapes = []

    def counted(weight):
        shapes.append(tuple(weight.shape))
        return binarize(weight)

    monkeypatch.setattr(operators, 'bits_of', counted)
    model = timm.create_model('wrn10_2_p2be', num_bits=8)
    model(torch.rand(7, 3, 16, 16)).sum().backward()
    assert shapes == [(256, 8)] * 2  # forward and backward
    assert model.conv1.embedding.weight.grad.abs().sum() > 0


# embedding


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_embedding_returns_rows_of_its_table(encoding):
    embedding = PixelEmbedding(encoding, num_bits=6)
    codes = embedding.codes()
    assert codes.shape == (256, 6)
    assert codes.dtype == torch.float32
    assert codes.unique().tolist() == [0, 1]
    levels = torch.tensor([[0, 255], [17, 128], [128, 3]], dtype=torch.uint8)
    assert embedding(levels).tolist() == [[codes[k].tolist() for k in row] for row in levels.tolist()]


def test_fixed_table_is_not_trained_and_not_saved():
    embedding = PixelEmbedding('onehot', num_bits=8)
    assert embedding.half().codes().dtype == torch.float32
    assert list(embedding.parameters()) == []
    assert embedding.state_dict() == {}
    with pytest.raises(ValueError, match="'onehot' is fixed already"):
        embedding.freeze()


def test_frozen_table_has_no_gradient():
    embedding = PixelEmbedding('p2be', num_bits=8)
    assert embedding.freeze() is embedding
    assert not embedding.weight.requires_grad
    assert not embedding.codes().requires_grad
    copies = [copy.deepcopy(embedding), pickle.loads(pickle.dumps(embedding)), embedding.double()]
    embedding.load_state_dict(PixelEmbedding('p2be', num_bits=8).state_dict(), assign=True)
    for copied in (*copies, embedding):
        assert not copied.weight.requires_grad
        assert type(copied.weight) is EmbeddingParameter


def test_normal_start_is_the_papers():
    torch.manual_seed(0)
    latents = PixelEmbedding('p2be', num_bits=256).weight.detach()
    assert abs(latents.mean()) < 0.02  # 65,536 draws: five standard errors
    assert abs(latents.std() - 1) < 0.015
    assert abs((latents.abs() < 1).float().mean() - 0.6827) < 0.01


@pytest.mark.parametrize('num_bits', [1, 10, 64])
def test_thermometer_start_has_the_thermometers_bits(num_bits):
    torch.manual_seed(0)
    embedding = PixelEmbedding('p2be', num_bits=num_bits, init='thermometer')
    expected = thermometer_codes(num_bits)
    assert torch.equal(embedding.codes(), expected)
    noise = embedding.weight.detach() - (expected - 0.5)
    assert 0.03 < noise.std() < 0.07
    assert noise.abs().max() < 0.4


def test_linear_start_is_the_linear_codes_without_noise():
    embedding = PixelEmbedding('p2be', num_bits=9, init='linear')
    assert torch.equal(embedding.weight.detach(), linear_codes(9) - 0.5)
    with pytest.raises(ValueError, match='num_bits=8; a table on which the level is linear needs at least 9 bits'):
        PixelEmbedding('p2be', num_bits=8, init='linear')


def test_smooth_start_has_unit_variance_and_neighbors_that_differ_rarely():
    torch.manual_seed(0)
    weight = PixelEmbedding('p2be', num_bits=1024, init='smooth').weight.detach()
    assert weight.std().item() == pytest.approx(1)
    assert weight.mean().item() == pytest.approx(0, abs=0.1)
    flips = ((weight[1:] >= 0) != (weight[:-1] >= 0)).float().mean().item()
    assert flips == pytest.approx(0.225 / 64, rel=0.1)


@pytest.mark.parametrize('init', ['normal', 'thermometer', 'smooth'])
def test_reset_draws_anew_in_place(init):
    torch.manual_seed(0)
    embedding = PixelEmbedding('p2be', num_bits=8, init=init)
    weight, before = embedding.weight, embedding.weight.detach().clone()
    embedding.reset_parameters()
    assert embedding.weight is weight
    assert not torch.isclose(weight, before, rtol=0, atol=1e-6).all(dim=0).any()
    torch.manual_seed(0)
    embedding.reset_parameters()
    assert torch.equal(weight, before)


@pytest.mark.parametrize(('args', 'message'), [
    ({'encoding': 'rgb'}, r"Unknown encoding 'rgb'; choose one of \['p2be', 'onehot', 'thermometer'\]"),
    ({'init': 'zeros'}, r"Unknown init 'zeros'; choose one of \['normal', 'thermometer', 'smooth', 'linear'\]"),
    ({'encoding': 'onehot', 'init': 'thermometer'}, r"needs a learned table; encoding 'onehot' is fixed. Use 'p2be'"),
])  # fmt: skip
def test_unknown_names_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        PixelEmbedding(**args)


# precision

CASTS = {
    'half': lambda module: module.half(),
    'to bfloat16': lambda module: module.to('cpu', torch.bfloat16),
    'half, channels_last': lambda module: module.to(dtype=torch.float16, memory_format=torch.channels_last),
    'double, half': lambda module: module.double().half(),
}


@pytest.mark.parametrize('cast', CASTS.values(), ids=CASTS)
def test_latents_stay_float32(cast):
    """float16 would turn -1e-9 into -0 and so a 0 into a 1; bfloat16 would not move at this learning rate."""
    model = timm.create_model('wrn10_2_p2be', num_bits=4)
    embedding = model.conv1.embedding
    with torch.no_grad():
        embedding.weight[0] = torch.tensor([-1e-9, 1e-9, -1e-30, 1.0001])
    embedding.weight.grad = torch.full_like(embedding.weight, 1e-9)
    before = embedding.weight.detach().clone()
    cast(model)
    assert {n for n, p in model.named_parameters() if p.dtype == torch.float32} == {'conv1.embedding.weight'}
    assert type(embedding.weight) is EmbeddingParameter
    assert torch.equal(embedding.weight, before)
    assert embedding.codes()[0].tolist() == [0, 1, 0, 1]
    assert embedding.weight.grad.dtype == torch.float32
    assert (embedding.weight.grad == torch.tensor(1e-9)).all()


def test_float64_is_allowed():
    embedding = PixelEmbedding('p2be', num_bits=4).double()
    with torch.no_grad():
        embedding.weight[0] = torch.tensor([-1e-60, 1e-60, -1.0, 1.0], dtype=torch.float64)
    assert type(embedding.weight) is EmbeddingParameter
    loaded = PixelEmbedding('p2be', num_bits=4)
    loaded.load_state_dict(embedding.state_dict(), assign=True)
    for copied in (embedding, copy.deepcopy(embedding), pickle.loads(pickle.dumps(embedding)), loaded):
        assert copied.weight.dtype == torch.float64
        assert copied.codes().dtype == torch.float64
        assert copied.codes()[0].tolist() == [0, 1, 0, 1]  # float32 would round the first to -0, hence to 1


# type of the parameter


def _saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _assigned_from_half(module: nn.Module) -> nn.Module:
    other = timm.create_model('wrn10_2_p2be', num_bits=4)
    with torch.no_grad():  # values that float16 holds
        module.conv1.embedding.weight.copy_(module.conv1.embedding.weight.half())
    other.load_state_dict({name: value.half() for name, value in module.state_dict().items()}, assign=True)
    return other.float()


COPIES = {
    'deepcopy': copy.deepcopy,
    'torch.save': _saved_and_loaded,
    'assign float16': _assigned_from_half,
}


@pytest.mark.parametrize('duplicate', COPIES.values(), ids=COPIES)
def test_table_keeps_its_type(duplicate):
    model = timm.create_model('wrn10_2_p2be', num_bits=4)
    copied = duplicate(model)
    marked = [name for name, parameter in copied.named_parameters() if isinstance(parameter, EmbeddingParameter)]
    assert marked == ['conv1.embedding.weight']
    weight = copied.conv1.embedding.weight
    assert weight.dtype == torch.float32
    assert weight.requires_grad
    assert torch.equal(weight, model.conv1.embedding.weight)
    copied.train()(torch.rand(2, 3, 16, 16)).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_pickled_table_is_still_the_optimizers():
    """An optimizer pickled with its model holds the model's parameters, not others of the same values."""
    model = nn.Sequential(PixelEmbedding('p2be', num_bits=4))
    copied, optimizer = pickle.loads(pickle.dumps((model, torch.optim.SGD(model.parameters(), lr=1))))
    assert optimizer.param_groups[0]['params'][0] is copied[0].weight


def test_table_is_materialised_from_meta():
    with torch.device('meta'):
        embedding = PixelEmbedding('p2be', num_bits=4)
    embedding.to(torch.float16).to_empty(device='cpu')
    embedding.reset_parameters()
    assert type(embedding.weight) is EmbeddingParameter
    assert embedding.weight.dtype == torch.float32
    assert 0.8 < embedding.weight.std() < 1.2


@pytest.mark.parametrize('refill', ['reset_parameters', 'init_non_persistent_buffers'])
def test_fixed_table_is_refilled_after_meta(refill):
    """No checkpoint holds it, so it answers the calls torch's and timm's tools make then."""
    with torch.device('meta'):
        embedding = PixelEmbedding('thermometer', num_bits=4)
    embedding.to_empty(device='cpu').table.fill_(7)
    getattr(embedding, refill)()
    assert torch.equal(embedding.codes(), thermometer_codes(4))
