"""Models whose first convolution reads pixel codes, over any timm backbone; the `encoded` entrypoint."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import (
    PretrainedCfg,
    adapt_input_conv,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    is_model,
    model_entrypoint,
    register_model,
    split_model_name_tag,
)
from torch import Tensor, nn

from timm_p2be.encodings import PixelEmbedding
from timm_p2be.models.pretrained import build_checked
from timm_p2be.stem import convert, encoded_stem, find_embedding

__all__: list[str] = []

# what an encoded model takes over from its backbone's cfg; the rest describes the backbone's own weights
_BACKBONE_FIELDS = (
    'input_size',
    'test_input_size',
    'min_input_size',
    'fixed_input_size',
    'interpolation',
    'crop_pct',
    'test_crop_pct',
    'crop_mode',
    'num_classes',
    'pool_size',
    'test_pool_size',
    'first_conv',
    'classifier',
)


def encoded_cfg(**fields: Any) -> dict[str, Any]:
    """Return the pretrained cfg of an untrained encoded model; `fields` replace or add to it.

    Mean 0 and std 1 make every timm loader hand over pixels in [0, 1], which is what the stem reads.
    """
    return {
        'url': '',
        'mean': (0.0, 0.0, 0.0),
        'std': (1.0, 1.0, 1.0),
        'license': 'apache-2.0',
        'paper_name': 'Pixel to Binary Embedding Towards Robustness for CNNs',
        'paper_ids': 'arXiv:2206.05898',
        **fields,
    }


def _build(
    backbone: str,
    encoding: str,
    table: PixelEmbedding | None,
    num_bits: int | None = None,
    embedding_init: str | None = None,
    freeze_embedding: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Return `backbone` without weights (RGB ones cannot fit), its first convolution replaced by an encoded one."""
    arch, tag = split_model_name_tag(backbone)
    model = model_entrypoint(arch)(pretrained=False, pretrained_cfg=tag or None, **kwargs)
    if table is not None:
        num_bits = table.num_bits
    convert(model, encoding, num_bits=64 if num_bits is None else num_bits, init=embedding_init or 'normal')
    if table is not None:
        stem = encoded_stem(model)[1]
        assert stem is not None
        stem.embedding = table.to(stem.weight.device)
        # timm saves these with its own: the weights can be loaded again without the table
        model._model_args = {'num_bits': table.num_bits}
    if freeze_embedding:
        find_embedding(model).freeze()
    return model


def _fit_stem(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit an encoded checkpoint's stem to other image channels, bit by bit, by timm's rule for RGB stems."""
    name, stem = encoded_stem(model)
    assert stem is not None
    bits, table, weight = stem.embedding.num_bits, f'{name}.embedding.weight', f'{name}.weight'
    if weight not in state_dict or state_dict[weight].ndim != stem.weight.ndim:
        return state_dict
    # of float16 weights too, sums over channels are rounded once, in the model
    state_dict = {**state_dict, weight: state_dict[weight].float()}
    fits = state_dict[weight].shape[1] == stem.weight.shape[1]
    outputs, planes, *kernel = state_dict[weight].shape
    cfg = cast(dict[str, Any], model.pretrained_cfg)  # the weights'
    chans: int = stem.in_chans if fits else cfg['input_size'][0]
    saved_bits = state_dict[table].shape[1] if table in state_dict else planes // chans
    if saved_bits != bits:
        raise ValueError(f'Got num_bits={bits}, but the weights have codes of {saved_bits} bits. Use {saved_bits}.')
    if fits or planes != bits * chans:
        return state_dict
    per_bit = state_dict[weight].reshape(outputs * bits, chans, *kernel)  # planes are bit-major
    adapted = adapt_input_conv(stem.in_chans, per_bit, base_chans=chans)
    # of the fitted weights; timm reads it next, and would report a stem that it has to leave as it is
    cfg['input_size'] = (stem.in_chans, *cfg['input_size'][1:])
    return {**state_dict, weight: adapted.reshape(outputs, bits * stem.in_chans, *kernel)}


def _published_table(
    embedding: str | Path, encoding: str, pretrained: bool, arguments: dict[str, Any]
) -> PixelEmbedding | None:
    """Return the table that a model is to start from, or None with weights that were saved with it: they hold it.

    What else the caller asked for in the `arguments` of the model has to fit the table.
    """
    saved = (arguments.get('pretrained_model_args') or {}).get('embedding') == embedding  # timm hands it in again
    if pretrained and not saved:
        raise ValueError(
            f'Got embedding={embedding!r} and pretrained=True, whose weights bring their own table. Leave out '
            'embedding to use that one, or pretrained to start the network afresh.'
        )
    if pretrained:
        return None
    num_bits, init = arguments.get('num_bits'), arguments.get('embedding_init')
    if not isinstance(embedding, str | Path) or not str(embedding):
        raise ValueError(f"Got embedding={embedding!r}; write the path of a folder, 'org/name[@revision]', or None.")
    if encoding != 'p2be':
        raise ValueError(f"embedding={embedding!r} needs a learned table; encoding {encoding!r} is fixed. Use 'p2be'.")
    if init is not None:
        raise ValueError(
            f'Got embedding={embedding!r} and embedding_init={init!r}: the table is loaded, so it is not drawn. Leave '
            'one of them out.'
        )
    if torch.empty(0, device=arguments.get('device')).is_meta:  # also by `with torch.device('meta')`
        raise ValueError(
            f'Got embedding={embedding!r} and the meta device, which holds no values; after to_empty() the table would '
            'be garbage. Create the model on a real device, or leave out embedding and load a state dict.'
        )
    cfg = arguments.get('pretrained_cfg')
    if saved and isinstance(cfg, dict) and cfg.get('source') == 'hf-hub':
        embedding = f'hf-hub:{embedding}'  # a config.json of the Hub names no folder of this machine
    with torch.random.fork_rng(devices=[]):  # the network starts as it would with a table drawn at random
        table = PixelEmbedding.from_pretrained(embedding, cache_dir=arguments.get('cache_dir'))
    if table.weight is None:
        raise ValueError(
            f'Got embedding={embedding!r}, which holds a fixed {table.encoding} table; a p2be model takes a p2be '
            f"table. Use a model with encoding='{table.encoding}' and no embedding."
        )
    if num_bits not in (None, table.num_bits):
        raise ValueError(
            f'Got num_bits={num_bits}, but the table {embedding!r} has codes of {table.num_bits} bits. Use '
            f'{table.num_bits}, or leave num_bits out.'
        )
    return table


def create_encoded(
    variant: str,
    backbone: str,
    encoding: str,
    pretrained: bool = False,
    embedding: str | None = None,
    **kwargs: Any,
) -> Any:
    """Return timm's build of the encoded model registered as `variant`.

    timm resolves the cfg, loads weights and wraps for `features_only`; inside it, the backbone's own entrypoint builds
    the RGB network. (`build_model_with_cfg` takes any callable for a class.)

    Args:
        variant: whose weights `pretrained` loads.
        backbone: timm name of the RGB network, with or without a tag.
        encoding: 'p2be', 'onehot' or 'thermometer'.
        pretrained: load weights.
        embedding: P2BE only: table to start from, 'org/name[@revision]' on the Hub or a folder.
        **kwargs: `num_bits` (64, or the table's); for P2BE also `embedding_init` (one of `codes.INITS`) and
            `freeze_embedding` (False); timm's build arguments; everything else goes to the backbone.
    """
    table = None if embedding is None else _published_table(embedding, encoding, pretrained, kwargs)
    build = partial(_build, backbone, encoding, table)
    return build_checked(build, variant, pretrained, pretrained_filter_fn=_fit_stem, **kwargs)


default_cfgs = generate_default_cfgs({'encoded': encoded_cfg()})


def _merge_cfg(backbone: str, given: Any) -> dict[str, Any]:
    """Return the cfg of `encoded`: its own, with the backbone's input and head, with what the caller changed.

    timm passes as `given` None, a saved model's cfg, or (its scripts) that of `encoded` with an overlay applied.
    """
    own = get_pretrained_cfg('encoded', allow_unregistered=False).to_dict()
    given = asdict(given) if isinstance(given, PretrainedCfg) else dict(given or {})
    if given.get('source') in ('hf-hub', 'local-dir'):
        return given
    base = asdict(get_pretrained_cfg(backbone) or PretrainedCfg())
    taken = {field: base[field] for field in _BACKBONE_FIELDS if base[field] is not None}
    changed = {field: value for field, value in given.items() if value is not None and value != own.get(field)}
    return {**own, **taken, **changed}


def _wrap_features(model: nn.Module, kwargs: dict[str, Any]) -> nn.Module:
    """Return `model` behind timm's feature wrapper, by default the getter: it asks the model, so it fits every kind."""
    levels = len(getattr(model, 'feature_info', ()))
    feature_cfg = {
        'feature_cls': 'getter',
        # as timm's own defaults: all levels of a pyramid, the last three blocks of a plain transformer
        'out_indices': tuple(range(levels)) if levels <= 5 else 3,
        **kwargs,
    }

    def ready(**_: Any) -> nn.Module:
        return model

    return build_model_with_cfg(
        ready, 'encoded', False, pretrained_cfg=model.pretrained_cfg, feature_cfg=feature_cfg, features_only=True
    )


@register_model
def encoded(
    pretrained: bool = False,
    backbone: str | None = None,
    encoding: str = 'p2be',
    pretrained_cfg: Any = None,
    features_only: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Any timm backbone whose first convolution reads pixel codes: `backbone='convnext_atto', encoding='p2be'`."""
    if not backbone or not is_model(backbone) or split_model_name_tag(backbone)[0] == 'encoded':
        raise ValueError(
            f'Got backbone={backbone!r}; allowed is the name of an RGB network in timm.list_models(), for example '
            "timm.create_model('encoded', backbone='resnet18', encoding='p2be')."
        )
    if not isinstance(pretrained_cfg, str):  # a string is a tag, which timm looks up
        pretrained_cfg = _merge_cfg(backbone, pretrained_cfg)
    feature_args = dict(kwargs.pop('feature_cfg', None) or {})
    if features_only:
        feature_args |= {key: kwargs.pop(key) for key in ('out_indices', 'feature_cls') if key in kwargs}
    model = create_encoded('encoded', backbone, encoding, pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
    return _wrap_features(model, feature_args) if features_only else model
