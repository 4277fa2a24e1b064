"""What the 32x32 networks of the paper share: 3x3 stem, three stages of strides 1, 2 and 2, pooling, classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, create_classifier, get_device_dtype
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F

from timm_p2be.models.pretrained import build_checked
from timm_p2be.models.weights import weights_path

_STAGES = ('layer1', 'layer2', 'layer3')
_CIFAR10_LABELS = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


def cifar_cfg(**fields: Any) -> dict[str, Any]:
    """Return the pretrained cfg of an untrained 32x32 network; `fields` replace or add to it.

    Inputs are x / 255 without normalization, as in nutszebra/Pixel-to-Binary-Embedding cifar_augmix.py.
    """
    return {
        'url': '',
        'num_classes': 10,
        'input_size': (3, 32, 32),
        'pool_size': (8, 8),
        'crop_pct': 1.0,
        'interpolation': 'bilinear',
        'mean': (0.0, 0.0, 0.0),
        'std': (1.0, 1.0, 1.0),
        'first_conv': 'conv1',
        'classifier': 'fc',
        'license': 'apache-2.0',
        **fields,
    }


def cifar10_weights(name: str) -> dict[str, Any]:
    """Return the cfg fields of shipped weights, for `cifar_cfg`; `name` is architecture and tag."""
    return {
        'file': weights_path(name),
        'description': 'Trained by this project on a copy of CIFAR-10 whose images had been JPEG-compressed once.',
        'label_names': _CIFAR10_LABELS,
    }


def with_features(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a model with which `features_only=True` gives all four levels, unless they say which."""
    return {**kwargs, 'feature_cfg': {'out_indices': (0, 1, 2, 3), **(kwargs.get('feature_cfg') or {})}}


def create_cifar_net(model_cls: type['CifarNet'], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """Return timm's build of the registered RGB network `variant`, a `model_cls` made from `kwargs`."""
    return build_checked(model_cls, variant, pretrained, **with_features(kwargs))


def factory_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return device and dtype among the arguments of a network, for its layers."""
    return {name: kwargs.get(name) for name in ('device', 'dtype')}


def _absolute_indices(indices: int | Sequence[int] | None, levels: int) -> list[int]:
    """Return feature `indices` as absolute ones: None is all of them, an int n the last n, negatives count back."""
    asked = indices if isinstance(indices, Sequence) else range(-(levels if indices is None else indices), 0)
    return [range(levels)[index] for index in asked]


def repeats(depth: int, per_repeat: int, rest: int, name: str) -> int:
    """Return n of a network with `depth` = `per_repeat` n + `rest` weight layers."""
    n, left = divmod(depth - rest, per_repeat)
    if left or n < 1:
        examples = ', '.join(str(per_repeat * n + rest) for n in (1, 2, 3, 6, 16))
        raise ValueError(f'Got depth={depth}; a {name} has {per_repeat} n + {rest} layers: {examples}, for example.')
    return n


class CifarNet(nn.Module):
    """Network on 32x32 images whose subclasses give the three stages.

    Feature level 0 is the stem's output, levels 1 to 3 are the stages', the last one after the final norm; their
    reductions are 1, 1, 2 and 4. Methods are those of timm's networks.

    Args:
        stages: the three stages; `layer2` and `layer3` halve the resolution.
        widths: output channels of stem and stages.
        preact: blocks start with norm and activation: none after the stem, one after the last stage.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        stages: Sequence[nn.Sequential],
        widths: Sequence[int],
        preact: bool,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = float(drop_rate)
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False, **dd)
        self.bn1 = nn.Identity() if preact else BatchNormAct2d(widths[0], **dd)
        self.layer1, self.layer2, self.layer3 = stages
        self.norm = BatchNormAct2d(widths[-1], **dd) if preact else nn.Identity()

        names = ('bn1', 'layer1', 'layer2', 'norm')
        self.feature_info: list[dict[str, Any]] = [
            {'num_chs': width, 'reduction': reduction, 'module': name}
            for width, reduction, name in zip(widths, (1, 1, 2, 4), names, strict=True)
        ]
        self.num_features = widths[-1]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialize convolutions N(0, sqrt(2 / (k k out))), BatchNorm 1 and 0, the classifier's bias 0.

        As third_party/ of google-research/augmix does (ResNeXt_DenseNet/models, WideResNet_pytorch/wideresnet.py).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        self._init_classifier()

    def _init_classifier(self) -> None:
        """Zero the bias; the weights keep torch's default."""
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's parameter groups: the stem, then every block (or stage if `coarse`), the norm with the last."""
        last = (r'^norm', (99999,))  # timm's mark for "belongs to the previous group"
        return {'stem': r'^conv1|^bn1', 'blocks': [(r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)', None), last]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and the pooling unless `global_pool` is None."""
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        dd = get_device_dtype(self)
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool_type, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self._init_classifier()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the output of `forward_features` and the asked feature levels.

        `norm` is kept for timm: the last level always is the final norm's output, the others have none.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"Got output_fmt={output_fmt!r}; this network only gives 'NCHW'.")
        taken = _absolute_indices(indices, len(self.feature_info))
        x = self.bn1(self.conv1(x))
        features = [x] if 0 in taken else []
        for level, name in enumerate(_STAGES[: max(taken)] if stop_early else _STAGES, start=1):
            stage = getattr(self, name)
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if level == len(_STAGES):
                x = self.norm(x)
            if level in taken:
                features.append(x)
        return features if intermediates_only else (x, features)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what lies behind the last feature level asked for, and return the absolute indices.

        `prune_norm` is kept for timm: the final norm goes with the last level only; the head goes with any stage.
        """
        taken = _absolute_indices(indices, len(self.feature_info))
        last = max(taken)
        for name in _STAGES[last:]:
            setattr(self, name, nn.Sequential())
        if last < len(_STAGES):
            self.norm = nn.Identity()
            self.num_features = self.feature_info[last]['num_chs']
        if prune_head or last < len(_STAGES):
            self.reset_classifier(0, '')
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the unpooled features (B, num_features, H / 4, W / 4) of images (B, C, H, W)."""
        x = self.bn1(self.conv1(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        else:
            x = self.layer3(self.layer2(self.layer1(x)))
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of unpooled features, or the classifier's input (B, head_hidden_size) if `pre_logits`."""
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
