"""`fold`: an encoded model for inference, its stem one precomputed table."""

import copy
from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, register_notrace_module
from timm.models import get_model_input_config
from torch import Tensor, nn

from timm_p2be.lookup import code_table, sum_rows, table_conv2d
from timm_p2be.stem.encoded_conv import EncodedConv2d
from timm_p2be.stem.levels import LevelStem


@register_notrace_module
class FoldedConv2d(LevelStem, nn.Module):
    """First convolution over pixel codes with codes, kernel and bias folded into one table; for inference.

    Args:
        stem: what to fold.
        scale: (O,) factor of every output channel, or None.
        shift: (O,) addend of every output channel, or None.

    Attributes:
        table: (kh, C, kw, 257, O) in the dtype of the stem's kernel: what a level adds to an output pixel at each tap;
            row 256 of a tap belongs to padding. The first tap's rows contain the bias.

    Example:
        >>> stem = EncodedConv2d(3, 16, 3, padding=1)
        >>> images = torch.rand(1, 3, 8, 8)
        >>> torch.allclose(FoldedConv2d(stem)(images), stem(images), atol=1e-5)
        True
    """

    table: Tensor

    def __init__(self, stem: EncodedConv2d, scale: Tensor | None = None, shift: Tensor | None = None) -> None:
        super().__init__()
        self.in_chans = stem.in_chans
        self.out_channels = stem.out_channels
        self.kernel_size = stem.kernel_size
        self.stride = stem.stride
        self.padding = stem.padding
        self.dilation = stem.dilation
        self.same_padding = stem.same_padding
        self._range_checks = 0
        with torch.no_grad():
            table = code_table(stem.embedding.codes(), stem.weight, stem.in_chans)
            bias = torch.zeros(stem.out_channels).to(table) if stem.bias is None else stem.bias.to(table)
            if scale is not None:
                table, bias = table * scale.to(table), bias * scale.to(table)
            if shift is not None:
                bias = bias + shift.to(table)
            table[0, 0, 0] += bias  # every output pixel reads exactly one row of each tap
        self.register_buffer('table', table.to(stem.weight.dtype))

    def forward(self, images: Tensor) -> Tensor:
        """Return the (B, O, H', W') feature map of (B, C, H, W) images: uint8 levels, or floats in [0, 1].

        Raises:
            ValueError: another dtype, another number of axes or of channels.
        """
        levels = self.read_levels(images)
        stride, padding, dilation = self.geometry(levels)
        if torch.jit.is_scripting():
            if len(padding) == 2:
                padding = [padding[1], padding[1], padding[0], padding[0]]
            return sum_rows(levels, self.table, stride, padding, dilation).to(self.table.dtype)
        self.check_range(images)
        features = table_conv2d(levels, self.table, stride, padding, dilation)
        return self.refuse_image_gradient(features, images)

    def extra_repr(self) -> str:
        padding = "'same'" if self.same_padding else self.padding
        return (
            f'{self.in_chans}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={padding}, dilation={self.dilation}'
        )


def fold(model: nn.Module) -> nn.Module:
    """Return a copy of an encoded model for inference, its codes, first kernel and bias folded into one table.

    A batch normalization that alone reads the stem's output, and belongs to the same module as the stem, is folded in
    as well and gives way to its activation. The copy computes what the model does in eval mode, up to the order of
    float32 sums; it has neither codes nor first kernel any more, so it cannot be trained on, attacked through its codes
    or published as an embedding: keep the model. Its state_dict loads into another folded copy of the same model. It
    can be scripted, exported (`torch.export`) and written as ONNX.

    Args:
        model: a model with one `EncodedConv2d`, not wrapped by DDP or torch.compile.

    Returns:
        The copy, in eval mode, on the same device and of the same dtype.

    Raises:
        ValueError: the model has no encoded stem, or is folded already.

    Example:
        >>> import timm, timm_p2be
        >>> model = timm.create_model('wrn10_2_p2be').eval()
        >>> images = torch.rand(1, 3, 32, 32)
        >>> torch.allclose(fold(model)(images), model(images), atol=1e-4)
        True
    """
    folded = copy.deepcopy(model).eval()
    name = _stem_name(folded)
    stem = cast(EncodedConv2d, folded.get_submodule(name))
    parent = folded.get_submodule(name.rpartition('.')[0])
    scale = shift = None
    if norm_name := _folds_into(folded, stem, parent):
        norm = cast(nn.BatchNorm2d, getattr(parent, norm_name))
        scale, shift = _scale_and_shift(norm)
        setattr(
            parent, norm_name, nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        )
    setattr(parent, name.rpartition('.')[2], FoldedConv2d(stem, scale, shift).eval())
    return folded


def _stem_name(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, EncodedConv2d) and name:
            return name
        if isinstance(module, FoldedConv2d):
            raise ValueError(f'{type(model).__name__} is folded already; fold the model it was made from.')
    raise ValueError(
        f'{type(model).__name__} has no encoded stem to fold. Create an encoded model (timm_p2be.convert makes one of '
        'any timm model with a plain first convolution).'
    )


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the affine map a batch normalization is in eval mode, in float32 at least."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.detach().float(), norm.running_var.detach().float()
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().float()
        return scale, norm.bias.detach().float() - mean * scale
    return scale, -mean * scale


def _folds_into(model: nn.Module, stem: EncodedConv2d, parent: nn.Module) -> str | None:
    """Return the name in `parent` of a batch normalization that is the only reader of the stem's output, if any.

    One forward decides: the norm's input must be the stem's output itself, and the autograd graph must have a single
    edge to it, so that no addition or concatenation reads it too. A norm in another module stays, since the
    module may be asked for what it gets (the first feature level of pre-activation networks).
    """
    norms = {
        name: module
        for name, module in parent.named_children()
        if type(module) in (nn.BatchNorm2d, BatchNormAct2d) and getattr(module, 'running_mean', None) is not None
    }
    marked: list[Tensor] = []
    nodes: list[Any] = []
    readers: list[str] = []

    def mark(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        marked.append(output.detach().requires_grad_().clone())  # no leaf: an activation may work in place
        nodes.append(marked[-1].grad_fn)
        return marked[-1]

    def record(name: str) -> Any:
        return lambda module, args: readers.append(name) if marked and args[0] is marked[-1] else None

    handles = [stem.register_forward_hook(mark)]
    handles += [module.register_forward_pre_hook(record(name)) for name, module in norms.items()]
    image = torch.zeros(1, *get_model_input_config(model)['input_size'], device=stem.weight.device)
    try:
        with torch.enable_grad():
            output = model(image.to(stem.weight.dtype))
    finally:
        for handle in handles:
            handle.remove()
    if len(readers) != 1 or len(marked) != 1 or _edges_to(nodes[0], output) != 1:
        return None
    return readers[0]


def _edges_to(made_by: Any, outputs: Any) -> int:
    """Return how many operations that led to `outputs` (a tensor or several) read the result of the node `made_by`."""
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    pending = [tensor.grad_fn for tensor in tensors if isinstance(tensor, Tensor) and tensor.grad_fn is not None]
    seen = set(pending)
    edges = 0
    while pending:
        for node, _ in pending.pop().next_functions:
            if node is None:
                continue
            edges += node is made_by
            if node not in seen:
                seen.add(node)
                pending.append(node)
    return edges
