"""Any classifier of timm as a function of pixel levels, its own mean and std wrapped round it."""

import copy
import difflib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

from timm_p2be.checkpoints import read_checkpoint, weights_sha256
from timm_p2be.encodings import pixel_levels
from timm_p2be.encodings.statistics import code_statistics
from timm_p2be.encodings.table_file import names_table
from timm_p2be.files import content_of, file_sha256
from timm_p2be.stem import EncodedConv2d, find_embedding
from timm_p2be.stem.keep_function import normalization

Module = TypeVar('Module', bound=nn.Module)


class PixelModel(nn.Module):
    """A timm model that takes pixel levels, or images in [0, 1], whatever mean and std it was trained with.

    The benchmarks hand every model the same uint8 images and leave normalization to this wrapper, so that no model
    can be measured with another one's. Models with an encoded stem get the levels themselves.

    Args:
        model: timm classifier of 3-channel images, or any other module that takes images in [0, 1], such as
            nn.Sequential(normalize, model); it is put into evaluation mode.
        mean: of the normalization, 3 values on the [0, 1] scale; None takes the model's own, of its `pretrained_cfg`.
        std: likewise.
        name: in reports; None takes the architecture's.
        sha256: digest of the checkpoint its weights came from, if any.
        class_names: of its outputs, where they are known.

    Example:
        >>> model = PixelModel(timm.create_model('resnet10t', num_classes=10))
        >>> model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str | None = None,
        sha256: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        cfg = getattr(model, 'pretrained_cfg', None) or {'mean': (0, 0, 0), 'std': (1, 1, 1)}
        self.architecture = cfg.get('architecture') or type(model).__name__
        self.name = name or self.architecture
        given = {name: value for name, value in (('mean', mean), ('std', std)) if value is not None}
        remedy = f'Pass --mean and --std of {self.name}, in Python PixelModel(model, mean, std); 0 and 1 for none.'
        self.mean, self.std = normalization({**cfg, **given}, 3, remedy)
        # those that the model states, or the outputs of its last linear layer
        linear = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
        self.num_classes = int(getattr(model, 'num_classes', linear[-1] if linear else 0) or 0)
        if self.num_classes < 2:
            raise ValueError(f'{self.name}: got a model of {self.num_classes} classes; a classifier has at least 2.')
        # a head that was made for other classes keeps the names of the weights it started from
        self.class_names = class_names if class_names and len(class_names) == self.num_classes else None
        self.input_size = tuple(cfg.get('input_size') or (3, 224, 224))
        stem = next((module for module in model.modules() if isinstance(module, EncodedConv2d)), None)
        self.encoding = stem.embedding.encoding if stem is not None else None  # None: a model of pixel values
        if (stem.in_chans if stem is not None else self.input_size[0]) != 3:
            raise ValueError(f'{self.name}: the benchmarks have color images; create the model with in_chans=3.')
        self.sha256 = sha256
        self._takes_levels = isinstance(getattr(model, 'pretrained_cfg', None), dict) and stem is not None
        self.model = model.eval()
        device = next((tensor.device for tensor in model.parameters()), None)
        self.register_buffer('_mean', torch.tensor(self.mean, device=device).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('_std', torch.tensor(self.std, device=device).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the (B, K) float32 logits of (B, 3, H, W) images, uint8 levels or floats in [0, 1]."""
        if images.dtype == torch.uint8 and not self._takes_levels:
            images = images.float() / 255
        return self.model(images if self.encoding else self.normalize(images)).float()

    def normalize(self, images: Tensor) -> Tensor:
        """Return images on the [0, 1] scale as the network wants them, which has no encoded stem."""
        return (images - self._mean) / self._std  # type: ignore[operator]

    def levels(self, images: Tensor) -> Tensor:
        """Return the nearest uint8 levels of normalized images, the inverse of `normalize`."""
        return pixel_levels(images * self._std + self._mean)  # type: ignore[operator]

    def numbers_of(self, names: Sequence[str] | None, count: int | None, data: str) -> Tensor | None:
        """Return the model's number of each class of a data set called `data`; None where both number alike.

        Raises:
            ValueError: the classes differ, by name where both sides have `names`, else by `count`.
        """
        own = [*(self.class_names or ())]
        if own and names:
            if unknown := [name for name in names if name not in own]:
                raise ValueError(
                    f'{data} has the class {unknown[0]!r}, {self.name} has {", ".join(own[:10])}'
                    f'{", ..." if own[10:] else ""}. Choose a model and data of the same classes, or give the '
                    "model's numbers of the data's by --class-map FILE."
                )
            return None if own[: len(names)] == [*names] else torch.tensor([own.index(name) for name in names])
        if count not in (None, self.num_classes):
            raise ValueError(
                f'{self.name} has {self.num_classes} classes, the data {count} ({data}). Choose a model of {count} '
                'classes; for folders with some of the classes only, pass --class-map FILE.'
            )
        return None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the model, JSON values only."""
        codes = find_embedding(self.model).codes() if self.encoding else None
        return {
            'name': self.name,
            'architecture': self.architecture,
            'encoding': self.encoding or 'rgb',
            # mean, from a level to the next: what an attack of one level moves
            'neighbor_distance': round(code_statistics(codes).neighbors[1], 3) if codes is not None else None,
            'num_classes': self.num_classes,
            'mean': self.mean,
            'std': self.std,
            'parameters': sum(parameter.numel() for parameter in self.model.parameters()),
            'checkpoint_sha256': self.sha256,
            'weights_sha256': weights_sha256(self.model.state_dict()),
        }


def as_pixel_model(model: nn.Module) -> PixelModel:
    """Return a model as attacks and benchmarks see it: a `PixelModel` is that already, any other one gets wrapped.

    The wrapper has a `tied_copy`: the model itself keeps its mode, and its training reaches the copy.
    """
    return model if isinstance(model, PixelModel) else PixelModel(tied_copy(model))


def tied_copy(module: Module) -> Module:
    """Return a copy in evaluation mode whose parameters and buffers are those of the original, not copies of them.

    Submodules can be replaced without touching the original; an optimizer's steps on either reach both.
    """
    tensors = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, tensors).eval()


def load_model(
    spec: str,
    num_classes: int | None = None,
    device: str | torch.device = 'cpu',
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> PixelModel:
    """Return the model that a command line names; `mean`, `std` and `num_classes` override those of its file.

    `spec` is 'NAME' for a model of timm with its pretrained weights, 'NAME=FILE' for weights of a file: a checkpoint of
    train.py (.pth.tar; its averaged weights if it has some, and the mean and std it was trained with), a state dict
    (.pth, .pt) or .safetensors. 'LABEL:NAME=FILE' gives it another name in reports. Weights are channels_last.
    """
    label, _, rest = spec.rpartition(':') if ':' in spec.partition('=')[0] else ('', '', spec)
    name, _, file = rest.partition('=')
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f'Unknown model {name!r} in {spec!r}{f"; did you mean one of {close}?" if close else ""}; write NAME, '
            'NAME=FILE or LABEL:NAME=FILE, with a NAME of timm.list_models(), for example '
            "'wrn10_2_p2be=output/train/RUN/last.pth.tar'."
        )
    if not file:
        if names_table(name) or not timm.is_model_pretrained(name):
            what = 'a table, but no trained weights' if names_table(name) else 'no pretrained weights'
            raise ValueError(f'{name} has {what}; name a checkpoint: {name}=FILE.')
        model = timm.create_model(name, pretrained=True, **({'num_classes': num_classes} if num_classes else {}))
        names = model.pretrained_cfg.get('label_names')
        found = PixelModel(model, mean, std, name=label or name, class_names=names)
        return found.to(device).to(memory_format=torch.channels_last)
    path = Path(file)
    checkpoint = read_checkpoint(path)
    state, args = checkpoint.state_dict, checkpoint.args
    with content_of(str(path)):
        kwargs = _recorded(name, state, args)
    classes = num_classes or kwargs.get('num_classes') or _classes(name, state, path)
    model = timm.create_model(name, **{**kwargs, 'num_classes': classes})
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f'{path} does not fit {name} with {classes} classes: {error}') from error
    mean = mean if mean is not None else args.get('mean')
    std = std if std is not None else args.get('std')
    with content_of(str(path)):
        names = checkpoint.raw.get('label_names')
        found = PixelModel(model, mean, std, label or name, file_sha256(path), names)
        side = (args.get('input_size') or [args.get('img_size')])[-1]
        if isinstance(side, int) and side > 0:
            found.input_size = (3, side, side)
        return found.to(device).to(memory_format=torch.channels_last)


def _recorded(name: str, state: dict[str, Tensor], args: dict[str, Any]) -> dict[str, Any]:
    """Return what train.py recorded of a model's shape: names, and numbers that its weights bear out."""
    if args.get('model') != name:
        return {}
    told = {**(args.get('model_kwargs') or {}), 'num_classes': args.get('num_classes')}
    shape = {key: told[key] for key in ('backbone', 'encoding', 'num_bits', 'num_classes') if told.get(key) is not None}
    sizes = {size for tensor in state.values() for size in tensor.shape}
    return {key: value for key, value in shape.items() if isinstance(value, str) or {value, 3 * value} & sizes}


def _classes(name: str, state: dict[str, Tensor], path: Path) -> int:
    """Return the number of classes in a state dict: the rows of the layer that the model calls its classifier."""
    classifier = (timm.get_pretrained_cfg(name, allow_unregistered=True) or timm.models.PretrainedCfg()).classifier
    weight = state.get(f'{classifier}.weight') if isinstance(classifier, str) else None
    if weight is None or not weight.ndim:
        raise ValueError(f'{path} does not show the number of classes of {name}; pass --num-classes.')
    return int(weight.shape[0])
