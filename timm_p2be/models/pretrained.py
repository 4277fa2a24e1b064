"""The one way from pretrained weights into our models: checked first, and safetensors only."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from timm_p2be.hub.fetch import resolved_commit, split_revision
from timm_p2be.hub.repository import fetch_verified
from timm_p2be.models.weights import verify_weights

_WEIGHTS = 'model.safetensors'


def build_checked(model_cls: Callable[..., Any], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """Return timm's build of `variant`, its pretrained weights verified before timm reads them.

    Shipped weights must have the sha256 they were released with. From a folder or the Hub only model.safetensors is
    ever opened, where timm alone would fall back to a pickle; what is loaded is the commit that was checked.
    """
    if pretrained:
        given, overlay = kwargs.pop('pretrained_cfg', None), kwargs.pop('pretrained_cfg_overlay', None)
        cfg = resolve_pretrained_cfg(variant, given, overlay)
        kwargs['pretrained_cfg'] = asdict(_checked(cfg, kwargs.get('cache_dir')))
        kwargs['pretrained_filter_fn'] = partial(_complete, cfg, kwargs.get('pretrained_filter_fn'))
    return build_model_with_cfg(model_cls, variant, pretrained, **kwargs)


def _complete(
    cfg: PretrainedCfg,
    fit: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None,
    state_dict: dict[str, Tensor],
    model: nn.Module,
) -> dict[str, Tensor]:
    """Return `state_dict`, fitted, if nothing of the model but its classifier is missing in it.

    With another number of classes timm loads what is there, and the rest of the network would stay random.
    """
    fitted = state_dict if fit is None else fit(state_dict, model)
    classifiers = (cfg.classifier,) if isinstance(cfg.classifier, str) else cfg.classifier or ()
    heads = tuple(f'{name}.' for name in classifiers)
    missing = [name for name in model.state_dict() if name not in fitted and not name.startswith(heads)]
    if missing:
        raise ValueError(
            f'The weights lack {len(missing)} tensors of the model, {missing[0]} for one. They are of another network.'
        )
    return fitted


def _checked(cfg: PretrainedCfg, cache_dir: str | Path | None) -> PretrainedCfg:
    """Return the cfg with its weights verified, and pinned where they come from the Hub."""
    if cfg.source == 'local-dir':
        fetch_verified(f'local-dir:{cfg.file}', cache_dir=cache_dir)
    elif cfg.source == 'hf-hub' or (cfg.hf_hub_id and not cfg.file and not cfg.state_dict):
        folder, _ = fetch_verified(f'hf-hub:{cfg.hf_hub_id}', cache_dir=cache_dir)
        # in the cache by now, and what a branch points to may have changed since
        pinned = f'{split_revision(cfg.hf_hub_id)[0]}@{resolved_commit(folder)}'
        return replace(cfg, hf_hub_id=pinned, hf_hub_filename=_WEIGHTS, custom_load=False)
    elif cfg.file:
        verify_weights(Path(cfg.file))
    return cfg
