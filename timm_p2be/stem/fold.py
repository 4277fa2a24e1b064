"""`fold`: an encoded model for inference, its stem one precomputed table."""

import copy
from typing import Any

import torch
from timm.layers import BatchNormAct2d, register_notrace_module
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from timm_p2be.lookup import table_conv2d
from timm_p2be.lookup.operators import code_table
from timm_p2be.lookup.plain import sum_rows
from timm_p2be.stem.encoded_conv import EncodedConv2d, LevelStem, encoded_stem


@register_notrace_module
class FoldedConv2d(LevelStem, nn.Module):
    """First convolution over pixel codes with codes, kernel and bias folded into one table."""

    table: Tensor  # as of `code_table`, but that the first tap's rows contain the bias

    def __init__(self, stem: EncodedConv2d, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        for name in ('in_chans', 'kernel_size', 'stride', 'padding', 'dilation', 'same_padding'):
            setattr(self, name, getattr(stem, name))
        self._range_checks = 0
        with torch.no_grad():
            table = code_table(stem.embedding.codes(), stem.weight, stem.in_chans)
            if stem.bias is not None:
                table[0, 0, 0] += stem.bias  # every output pixel reads exactly one row of each tap
        self.register_buffer('table', table.to(dtype or stem.weight.dtype))

    def forward(self, images: Tensor) -> Tensor:
        levels = self.read_levels(images)
        stride, padding, dilation = self.geometry(levels)
        if torch.jit.is_scripting():
            if len(padding) == 2:
                padding = [padding[1], padding[1], padding[0], padding[0]]
            return sum_rows(levels, self.table, stride, padding, dilation).to(self.table.dtype)
        self.check_range(images)
        features = table_conv2d(levels, self.table, stride, padding, dilation)
        return self.refuse_image_gradient(features, images)


def fold(model: nn.Module) -> nn.Module:
    """Return a copy of an encoded model for inference, its codes, first kernel and bias folded into one table.

    A batch normalization that alone reads the stem's output, in the same module, is folded in as well. The copy, in
    eval mode, computes what the model does up to the order of float32 sums, can be scripted, exported (`torch.export`)
    and written as ONNX, and its state_dict loads into another folded copy. It has no codes and no first kernel any
    more, so it cannot be trained, attacked through its codes or published. Unwrap DDP and torch.compile first.

    Example:
        >>> import timm, timm_p2be
        >>> model, images = timm.create_model('wrn10_2_p2be').eval(), torch.rand(1, 3, 32, 32)
        >>> torch.allclose(fold(model)(images), model(images), atol=1e-4)
        True
    """
    name, stem = encoded_stem(model)
    if stem is None or not name:
        raise ValueError(
            f'{type(model).__name__} has no encoded stem to fold. Create an encoded model (timm_p2be.convert makes one '
            'of any timm model with a plain first convolution).'
        )
    norm = _next_norm(model, name)
    if norm:
        # only if nothing else reads the stem's output; of trained or fresh statistics, float64 shows it
        exact = copy.deepcopy(model).double()
        size = get_model_input_config(model)['input_size']
        levels = torch.randint(256, (1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            outputs = [_replace_stem(exact, name, which)(levels.to(stem.weight.device)) for which in (norm, '')]
        try:
            torch.testing.assert_close(*outputs, rtol=1e-7, atol=1e-9)
        except AssertionError:
            norm = ''
    return _replace_stem(model, name, norm)


def _next_norm(model: nn.Module, name: str) -> str:
    """Return the name, in the module that holds the stem, of a batch normalization right after it, or ''."""
    parent_name, _, child = name.rpartition('.')
    following = iter(model.get_submodule(parent_name).named_children())
    for sibling, _ in following:
        if sibling == child:
            break
    norm, module = next(following, ('', None))
    has_statistics = getattr(module, 'running_mean', None) is not None
    return norm if type(module) in (nn.BatchNorm2d, BatchNormAct2d) and has_statistics else ''


def _replace_stem(model: nn.Module, name: str, norm_name: str) -> nn.Module:
    """Return a copy in eval mode with a folded stem, the normalization of that name, if any, folded into it."""
    folded = copy.deepcopy(model).eval()
    parent_name, _, child = name.rpartition('.')
    parent = folded.get_submodule(parent_name)
    stem: Any = parent.get_submodule(child)
    dtype = stem.weight.dtype
    exact = torch.promote_types(dtype, torch.float32)  # the table alone is rounded to `dtype`
    stem.to(exact)
    if norm_name:
        norm: Any = parent.get_submodule(norm_name).to(exact)
        stem = fuse_conv_bn_eval(stem, norm)
        setattr(parent, norm_name, nn.Sequential(norm.drop, norm.act) if hasattr(norm, 'act') else nn.Identity())
    setattr(parent, child, FoldedConv2d(stem, dtype).eval())
    return folded
