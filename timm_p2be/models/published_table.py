"""A table from a folder or the Hub for a new model: the argument `embedding` of the encoded models."""

from pathlib import Path
from typing import Any

import torch

from timm_p2be.encodings import PixelEmbedding


def published_table(
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
