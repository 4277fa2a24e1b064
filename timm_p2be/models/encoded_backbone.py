"""`encoded`: any timm backbone whose first convolution reads pixel codes."""

import difflib
from dataclasses import asdict
from functools import partial
from typing import Any

from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    is_model,
    list_models,
    register_model,
    split_model_name_tag,
)
from torch import nn

from timm_p2be.models.encoded import build_encoded, create_encoded, encoded_cfg, fit_stem
from timm_p2be.models.pretrained import build_checked
from timm_p2be.models.tables import TABLES, add_tables, tagged_table

# what an encoded model takes over from its backbone's cfg; the rest describes the backbone's own weights
_BACKBONE_FIELDS = (
    'input_size test_input_size min_input_size fixed_input_size interpolation crop_pct test_crop_pct crop_mode '
    'num_classes pool_size test_pool_size first_conv classifier'
).split()
_SAVED = ('hf-hub', 'local-dir')  # sources of a cfg that came with weights of ours

default_cfgs = generate_default_cfgs({'encoded': encoded_cfg()})
add_tables(default_cfgs)


def _changed(given: Any) -> dict[str, Any]:
    """Return what the caller changed in the cfg of `encoded`, or the whole cfg of a saved model.

    timm passes as `given` None, a saved model's cfg, or (its scripts) that of `encoded` with an overlay applied.
    """
    own = get_pretrained_cfg('encoded', allow_unregistered=False).to_dict()
    given = asdict(given) if isinstance(given, PretrainedCfg) else dict(given or {})
    if given.get('source') in _SAVED:
        return given
    return {field: value for field, value in given.items() if value is not None and value != own.get(field)}


def _merge_cfg(backbone: str, changed: dict[str, Any]) -> dict[str, Any]:
    """Return the cfg of `encoded`: its own, with the backbone's input and head, with what the caller `changed`."""
    if changed.get('source') in _SAVED:
        return changed
    own = get_pretrained_cfg('encoded', allow_unregistered=False).to_dict()
    base = asdict(get_pretrained_cfg(backbone) or PretrainedCfg())
    taken = {field: base[field] for field in _BACKBONE_FIELDS if base[field] is not None}
    return {**own, **taken, **changed}


def _create_preserved(
    backbone: str, encoding: str, pretrained: bool, given: dict[str, Any], embedding: Any = None, **kwargs: Any
) -> Any:
    """Return `encoded` with a stem that computes what the backbone's computes.

    `pretrained` loads the backbone's weights, RGB ones, from where its tag or what the caller changed in the cfg
    (`given`, and the overlay among `kwargs`) says; or those of a saved model, which has an encoded stem already.
    """
    if embedding is not None or tagged_table('encoded', {'pretrained_cfg': given}):
        raise ValueError(
            'Got preserve=True and a published table; the function of an RGB stem is kept by a table of its own '
            '(linear_codes). Leave one of them out.'
        )
    saved = given.get('source') in _SAVED
    rgb: dict[str, Any] = {}
    if pretrained and not saved:
        overlay = {**given, **(kwargs.pop('pretrained_cfg_overlay', None) or {})}
        rgb = {'pretrained': True, 'pretrained_cfg_overlay': overlay, 'cache_dir': kwargs.get('cache_dir')}
        given = {}
    kwargs['pretrained_cfg'] = _merge_cfg(backbone, given)
    build = partial(build_encoded, backbone, encoding, None, rgb)
    return build_checked(build, 'encoded', pretrained and saved, pretrained_filter_fn=fit_stem, **kwargs)


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
    preserve: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Any timm backbone whose first convolution reads pixel codes: `backbone='convnext_atto', encoding='p2be'`.

    With `preserve` the new stem computes what the backbone's own did, as `timm_p2be.convert` has it, and `pretrained`
    loads the backbone's RGB weights, those of its tag ('convnext_atto.d2_in1k') or of a file in the overlay.
    """
    if not backbone or not is_model(backbone) or split_model_name_tag(backbone)[0] == 'encoded':
        close = difflib.get_close_matches(backbone or '', list_models(), n=1)
        raise ValueError(
            f'Got backbone={backbone!r}; allowed is the name of an RGB network in timm.list_models(), for example '
            f"timm.create_model('encoded', backbone={(close or ['resnet18'])[0]!r}, encoding='p2be')."
        )
    if isinstance(pretrained_cfg, str) and pretrained_cfg in TABLES:
        pretrained_cfg = get_pretrained_cfg(f'encoded.{pretrained_cfg}')
    feature_args = dict(kwargs.pop('feature_cfg', None) or {})
    if features_only:
        feature_args |= {key: kwargs.pop(key) for key in ('out_indices', 'feature_cls') if key in kwargs}
    if isinstance(pretrained_cfg, str):  # a tag, which timm refuses
        model = create_encoded('encoded', backbone, encoding, pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
    elif preserve:
        model = _create_preserved(backbone, encoding, pretrained, _changed(pretrained_cfg), **kwargs)
    else:
        cfg = _merge_cfg(backbone, _changed(pretrained_cfg))
        model = create_encoded('encoded', backbone, encoding, pretrained, pretrained_cfg=cfg, **kwargs)
    return _wrap_features(model, feature_args) if features_only else model
