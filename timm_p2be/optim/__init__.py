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

for _name, _momentum in (('SGDP2BE', True), ('AdamWP2BE', False)):
    if _name.lower() not in default_registry.list_optimizers():
        default_registry.register(
            OptimInfo(
                name=_name.lower(),
                opt_class=f'{__name__}.{_name}',  # by name, so that a reload of this package serves its new classes
                description=f'{_name.removesuffix("P2BE")} for the network, AdamW for the pixel embedding (timm-p2be)',
                has_eps=not _momentum,
                has_momentum=_momentum,
                has_betas=not _momentum,
            )
        )
