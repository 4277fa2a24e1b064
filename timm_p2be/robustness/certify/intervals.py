"""Interval bound propagation (Gowal et al., 2018, arXiv:1810.12715) through a traced timm model."""

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from timm_p2be.robustness.attacks.attack import check_eps, check_images
from timm_p2be.robustness.certify.stem_bounds import stem_bounds
from timm_p2be.robustness.pixel_model import PixelModel
from timm_p2be.stem import EncodedConv2d, encoded_stem

# an output falls nowhere when an input rises
_MONOTONE_MODULES = (
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.ELU, nn.Flatten, nn.Hardtanh, nn.Identity,
    nn.LeakyReLU, nn.MaxPool2d, nn.ReLU, nn.Sigmoid, nn.Softplus, nn.Tanh,
)  # fmt: skip
_MONOTONE_CALLS = {
    operator.add, operator.getitem, torch.add, torch.cat, torch.flatten, torch.relu, nn.functional.relu,
    nn.functional.adaptive_avg_pool2d, nn.functional.avg_pool2d, nn.functional.max_pool2d,
    'contiguous', 'flatten', 'mean', 'relu', 'reshape', 'view',
}  # fmt: skip


class Bounds(NamedTuple):
    """An activation of the given images, and the least and largest it has within the ball round them: equal shapes."""

    center: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def middle(self) -> Tensor:
        return (self.upper + self.lower) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2


class Propagation(NamedTuple):
    """What interval bounds say of a batch."""

    stem: Bounds  # (B, O, H', W') of the encoded stem; of the normalized image for a model of pixel values
    features: Bounds  # (B, F), what the classifier reads
    classifier: nn.Linear
    logits: Bounds  # (B, K)


class IntervalNetwork:
    """A classifier whose activations have bounds over all images within some levels of the given ones.

    Bounds of the stem are exact, those behind it are valid and grow looser with every layer. Convolutions, linear
    layers, batch normalization, monotone activations, pooling, sums and concatenations are understood; an error names
    anything else. Everything is computed in the dtype of the weights, without directed rounding. In training mode batch
    normalization takes its statistics from the given images.

    Args:
        model: classifier that torch.fx can trace and whose last layer is linear; it stays in its mode.

    Raises:
        ValueError: for a network with a layer whose bounds are not known.
    """

    def __init__(self, model: PixelModel) -> None:
        encoded_stem(model.model)  # refuses a folded one
        self._model = model
        self._graph = fx.GraphModule(model.model, _Tracer().trace(model.model))

    def propagate(self, levels: Tensor, eps: int, share: float = 1.0) -> Propagation:
        """Return bounds for images.

        Args:
            levels: uint8 (B, 3, H, W), on the model's device.
            eps: levels, 0 to 255.
            share: 0 to 1, shrinks the intervals behind the stem, for training that begins gently; only with 1 are they
                bounds.
        """
        check_eps(eps)
        check_images(levels)
        images: Tensor | Bounds = levels
        if self._model.encoding is None:
            low, high = (levels.int() - eps).clamp(min=0), (levels.int() + eps).clamp(max=255)
            dtype = next(self._model.parameters()).dtype
            pixels = (self._model.normalize(values.to(dtype) / 255).to(dtype) for values in (levels, low, high))
            images = _shrink(Bounds(*pixels), share)
        interpreter = _Intervals(self._graph, eps, share)
        logits = interpreter.run(images)
        stem = images if isinstance(images, Bounds) else interpreter.stem
        if stem is None or interpreter.classifier is None or interpreter.features is None:
            raise ValueError(f'{self._model.name} does not end in a linear classifier; certificates need one.')
        return Propagation(stem, interpreter.features, interpreter.classifier, logits)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        known = isinstance(module, (EncodedConv2d, nn.BatchNorm2d))  # timm's BatchNormAct2d is a BatchNorm2d
        return known or super().is_leaf_module(module, name)


class _Intervals(fx.Interpreter):
    """Runs a graph on `Bounds` instead of tensors."""

    def __init__(self, graph: fx.GraphModule, eps: int, share: float) -> None:
        super().__init__(graph)
        self._eps, self._share = eps, share
        self.stem: Bounds | None = None
        self.features: Bounds | None = None
        self.classifier: nn.Linear | None = None

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module, given = self.fetch_attr(target), args[0]
        if isinstance(module, EncodedConv2d):
            self.stem = _shrink(Bounds(module(given), *stem_bounds(module, given, self._eps)), self._share)
            return self.stem
        if isinstance(module, nn.Linear):
            self.features, self.classifier = given, module
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            return _linear(module, given)
        if isinstance(module, nn.BatchNorm2d):
            return _batch_norm(module, given)
        if isinstance(module, nn.Dropout) and not (module.training and module.p):
            return given
        if isinstance(module, _MONOTONE_MODULES):
            return Bounds(*map(module, given))
        raise ValueError(f'Bounds of {type(module).__name__} ({target}) are not known; allowed are {_allowed()}.')

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(super().call_function, target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(super().call_method, target, args, kwargs)

    def _call(self, call: Any, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(isinstance(leaf, Bounds) for leaf in _leaves(args)):
            return call(target, args, kwargs)
        if target not in _MONOTONE_CALLS:
            name = target if isinstance(target, str) else target.__name__
            raise ValueError(f'Bounds of {name}() are not known; allowed are {_allowed()}.')
        return Bounds(*(call(target, _part(args, index), kwargs) for index in range(3)))


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)) and not isinstance(value, Bounds):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _part(value: Any, index: int) -> Any:
    """Return arguments with every `Bounds` replaced by one of its tensors."""
    if isinstance(value, Bounds):
        return value[index]
    if isinstance(value, (list, tuple)):
        return type(value)(_part(item, index) for item in value)
    return value


def _allowed() -> str:
    names = sorted({kind.__name__ for kind in (*_MONOTONE_MODULES, nn.BatchNorm2d, nn.Conv2d, nn.Dropout, nn.Linear)})
    return f'{", ".join(names)}, sums and concatenations'


def _linear(module: nn.Linear | nn.Conv2d, given: Bounds) -> Bounds:
    if isinstance(module, nn.Linear):
        spread = nn.functional.linear(given.radius, module.weight.abs())
    else:
        spread = module._conv_forward(given.radius, module.weight.abs(), None)  # with padding as the module does it
    moved = module(given.middle)
    return Bounds(module(given.center), moved - spread, moved + spread)


def _batch_norm(module: nn.BatchNorm2d, given: Bounds) -> Bounds:
    center = nn.BatchNorm2d.forward(module, given.center)
    if module.training:
        mean, variance = given.center.mean((0, 2, 3)), given.center.var((0, 2, 3), unbiased=False)
    else:
        assert module.running_mean is not None
        assert module.running_var is not None
        mean, variance = module.running_mean, module.running_var
    scale = (module.weight / (variance + module.eps).sqrt()).view(-1, 1, 1)
    offset = module.bias.view(-1, 1, 1) - mean.view(-1, 1, 1) * scale
    moved, spread = given.middle * scale + offset, given.radius * scale.abs()
    after = Bounds(center, moved - spread, moved + spread)
    # timm's BatchNormAct2d: dropout without effect, then an activation
    act = getattr(module, 'act', None)
    if act is None:
        return after
    if not isinstance(act, _MONOTONE_MODULES):
        raise ValueError(f'Bounds of {type(act).__name__} are not known; allowed are {_allowed()}.')
    return Bounds(*map(act, after))


def _shrink(bounds: Bounds, share: float) -> Bounds:
    center, lower, upper = bounds
    return Bounds(center, center.lerp(lower, share), center.lerp(upper, share))  # with 1 the same to the last bit
