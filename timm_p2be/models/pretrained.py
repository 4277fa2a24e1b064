"""The one way from pretrained weights into our models: checked first, and safetensors only."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors
from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg

from timm_p2be.sources import SourceError, fetch, resolved_commit, split_revision
from timm_p2be.weights import file_sha256, is_shipped, verify_weights

_WEIGHTS = 'model.safetensors'
_CONFIG = 'config.json'


def build_checked(model_cls: Callable[..., Any], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """Return timm's build of `variant`, its pretrained weights verified before timm reads them.

    Shipped weights must have the sha256 they were released with. From a folder or the Hub only model.safetensors is
    ever opened, where timm alone would fall back to a pickle; what is loaded is the commit that was checked.

    Args:
        model_cls: class, or any callable that returns the network.
        variant: registered name.
        pretrained: load weights.
        **kwargs: of timm's `build_model_with_cfg`.

    Raises:
        ValueError: weights that are missing, damaged or not as their repository states.
        RuntimeError: `variant` has no weights.
    """
    if pretrained:
        given, overlay = kwargs.pop('pretrained_cfg', None), kwargs.pop('pretrained_cfg_overlay', None)
        cfg = resolve_pretrained_cfg(variant, given, overlay)
        kwargs['pretrained_cfg'] = asdict(_checked(cfg, kwargs.get('cache_dir')))
    return build_model_with_cfg(model_cls, variant, pretrained, **kwargs)


def _checked(cfg: PretrainedCfg, cache_dir: str | Path | None) -> PretrainedCfg:
    """Return the cfg with its weights verified, and pinned where they come from the Hub."""
    if cfg.source == 'local-dir':
        _fetch_weights(f'local-dir:{cfg.file}', cache_dir)
    elif cfg.source == 'hf-hub' or (cfg.hf_hub_id and not cfg.file and not cfg.state_dict):
        folder = _fetch_weights(f'hf-hub:{cfg.hf_hub_id}', cache_dir)
        # in the cache by now, and what a branch points to may have changed since
        pinned = f'{split_revision(cfg.hf_hub_id)[0]}@{resolved_commit(folder)}'
        return replace(cfg, hf_hub_id=pinned, hf_hub_filename=_WEIGHTS, custom_load=False)
    elif cfg.file and is_shipped(cfg.file):
        verify_weights(cfg.file)
    return cfg


def _fetch_weights(source: str, cache_dir: str | Path | None) -> Path:
    """Return a folder with config.json and a whole model.safetensors, which has the sha256 that the config states."""
    try:
        folder = fetch(source, (_CONFIG, _WEIGHTS), cache_dir=cache_dir)
    except SourceError as error:
        raise ValueError(
            f'{error} Weights are read from {_WEIGHTS} only, never from a pickle; timm writes it with '
            'safe_serialization=True.'
        ) from error
    weights = folder / _WEIGHTS
    try:
        with safetensors.safe_open(weights, 'pt'):  # checks the header and that nothing is cut off
            pass
        config = json.loads((folder / _CONFIG).read_text(encoding='utf-8'))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f'{source}: {_CONFIG} or {_WEIGHTS} is damaged ({error}). Fetch the folder again.') from error
    ours = config.get('timm_p2be') if isinstance(config, dict) else None
    stated = ours.get('weights_sha256') if isinstance(ours, dict) else None
    if stated is not None and (found := file_sha256(weights)) != stated:
        raise ValueError(
            f'{source}: {_WEIGHTS} has the sha256 {found}, but {_CONFIG} states {stated}: the two do not belong '
            'together. Fetch the folder again, or pin another revision.'
        )
    return folder
