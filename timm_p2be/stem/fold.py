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
    folded = copy.deepcopy(model).eval()
    name, stem = encoded_stem(folded)
    if stem is None or not name:
        raise ValueError(
            f'{type(model).__name__} has no encoded stem to fold. Create an encoded model (timm_p2be.convert makes one '
            'of any timm model with a plain first convolution).'
        )
    parent_name, _, child = name.rpartition('.')
    parent = folded.get_submodule(parent_name)
    norm_name = _only_reader(folded, stem, parent)
    dtype = stem.weight.dtype
    exact = torch.promote_types(dtype, torch.float32)  # the table alone is rounded to `dtype`
    stem.to(exact)
    if norm_name:
        norm: Any = parent.get_submodule(norm_name).to(exact)
        stem = fuse_conv_bn_eval(stem, norm)
        setattr(parent, norm_name, nn.Sequential(norm.drop, norm.act) if hasattr(norm, 'act') else nn.Identity())
    setattr(parent, child, FoldedConv2d(stem, dtype).eval())
    return folded


def _only_reader(model: nn.Module, stem: EncodedConv2d, parent: nn.Module) -> str | None:
    """Return the name in `parent` of a batch normalization that is the only reader of the stem's output, if any."""
    # One forward decides: the norm's input must be the stem's output itself, and the autograd graph must have a single
    # edge to it, so that no addition or concatenation reads it too. A norm in another module stays, since the
    # module may be asked for what it gets (the first feature level of pre-activation networks).
    marked: list[Tensor] = []
    nodes: list[Any] = []
    readers: list[str] = []

    def mark(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        marked.append(output.detach().requires_grad_().clone())  # no leaf: an activation may work in place
        nodes.append(marked[-1].grad_fn)
        return marked[-1]

    def watch(name: str) -> Any:
        return lambda module, args: readers.append(name) if marked and args[0] is marked[-1] else None

    handles = [stem.register_forward_hook(mark)]
    for name, module in parent.named_children():
        if type(module) in (nn.BatchNorm2d, BatchNormAct2d) and getattr(module, 'running_mean', None) is not None:
            handles.append(module.register_forward_pre_hook(watch(name)))
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
    tensors = [outputs] if isinstance(outputs, Tensor) else outputs
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
