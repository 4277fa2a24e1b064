"""The convolution in which a timm model reads the image, and why some models have none that could read codes."""

from typing import Any, cast

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models import get_model_input_config
from torch import Tensor, nn

from timm_p2be.stem.levels import LevelStem

_PLAIN = (nn.Conv2d, Conv2dSame)
_STANDARDIZED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


class UnsupportedStemError(ValueError):
    """The model's first convolution cannot read pixel codes; the message says why."""


def _unsupported(model: nn.Module, problem: str) -> UnsupportedStemError:
    arch = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
    return UnsupportedStemError(f'{arch} {problem}; convert needs exactly one plain convolution that reads the image.')


def find_first_conv(model: nn.Module, standardized: bool) -> tuple[str, nn.Conv2d]:
    """Return name and module of the one first convolution that the model declares.

    Args:
        model: of timm.
        standardized: whether one that standardizes its weight will do.

    Raises:
        UnsupportedStemError: there is no such convolution, there are several, or it is of another kind.
    """
    name = (getattr(model, 'pretrained_cfg', None) or {}).get('first_conv')
    if not name:
        raise _unsupported(model, "declares no first convolution (pretrained_cfg['first_conv'])")
    if not isinstance(name, str):
        raise _unsupported(model, f'declares {len(name)} first convolutions {list(name)}')
    try:
        conv = model.get_submodule(name)
    except AttributeError:
        raise _unsupported(
            model,
            f'declares the first convolution {name!r} but has no such module (features_only renames it: convert first)',
        ) from None
    if isinstance(conv, LevelStem):
        raise _unsupported(model, 'already reads pixel codes')
    if type(conv) not in (
        *_PLAIN,
        *(_STANDARDIZED if standardized else ()),
    ):  # a subclass may change the weight, as weight standardization does
        remedy = ' (preserve=True takes its standardized weight over)' if type(conv) in _STANDARDIZED else ''
        raise _unsupported(model, f'has a {type(conv).__name__} as its first convolution {name!r}{remedy}')
    if conv.groups != 1 or conv.padding_mode != 'zeros':
        raise _unsupported(
            model, f'has a first convolution of {conv.groups} groups and {conv.padding_mode!r} padding (1 and zeros)'
        )
    return name, cast(nn.Conv2d, conv)


def check_sees_image(model: nn.Module, first_conv: str) -> None:
    """Run one forward and raise unless `first_conv`, and no other layer with weights, receives the image.

    Args:
        model: of timm.
        first_conv: name of a module.

    Raises:
        UnsupportedStemError: another layer reads it, or this one reads something else.
    """
    weight = next(model.parameters())
    size = get_model_input_config(model)['input_size']
    image = torch.rand((1, *size), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    readers: list[str] = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen = args[0] if args else None
            if isinstance(seen, Tensor) and seen.shape == image.shape:
                # a meta tensor has no values to compare
                if seen is image or (not image.is_meta and torch.equal(seen, image)):
                    readers.append(name)

        return hook

    layers = [(n, m) for n, m in model.named_modules() if not list(m.children()) and list(m.parameters())]
    handles = [module.register_forward_pre_hook(record(name)) for name, module in layers]
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()(image)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise _unsupported(model, f'fails on a random image of shape {size} ({error})') from error
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if first_conv not in readers:
        raise _unsupported(model, f'transforms the image before its first convolution {first_conv!r}')
    if set(readers) != {first_conv}:
        raise _unsupported(model, f'reads the image in several layers {sorted(set(readers))}')
