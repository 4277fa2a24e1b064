"""The optimizers 'sgdp2be' and 'adamwp2be': SGD or AdamW for the network, AdamW for the pixel embedding's table.

Importing this package registers both with timm, so that `timm.optim.create_optimizer_v2(model, 'sgdp2be', ...)` and
`--opt sgdp2be` in timm's unmodified train.py work. The names have no underscore because timm's factory keeps only what
follows the last one.
"""

from timm.optim import OptimInfo

# timm has no public way to register an optimizer: what it exports only reads the registry
from timm.optim._optim_factory import default_registry

from timm_p2be.optim.optimizers import SGDP2BE, AdamWP2BE
from timm_p2be.optim.schedule import EmbeddingCosine, learning_rates

__all__ = ['SGDP2BE', 'AdamWP2BE', 'EmbeddingCosine', 'learning_rates']


def _register() -> None:
    # classes by dotted name: when this package is reloaded timm finds the new ones, and nothing is to be overwritten
    known = default_registry.list_optimizers()
    for name, has_momentum in (('SGDP2BE', True), ('AdamWP2BE', False)):
        info = OptimInfo(
            name=name.lower(),
            opt_class=f'{__name__}.{name}',
            description=f'{name.removesuffix("P2BE")} for the network, AdamW for the pixel embedding (timm-p2be)',
            has_eps=not has_momentum,
            has_momentum=has_momentum,
            has_betas=not has_momentum,
        )
        if info.name not in known:
            default_registry.register(info)


_register()
