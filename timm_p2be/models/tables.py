"""The published table that a P2BE network starts from: given by `embedding`, or by a tag of the network's name.

'resnet18_p2be.table_m64_cifar10' is resnet18_p2be with the table hub_cards/p2be-m64-cifar10, which ships with the
package: with `pretrained=True` the table is loaded and kept fixed, and everything else starts afresh.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import DefaultCfg, resolve_pretrained_cfg

from timm_p2be.encodings import PixelEmbedding
from timm_p2be.encodings.table_file import names_table

_SHIPPED = Path(__file__).with_name('table_files')  # in an installed wheel
FOLDER = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[2] / 'hub_cards'
TABLES = {  # tag -> folder
    'table_m64_cifar10': 'p2be-m64-cifar10',
    'table_m64_digits': 'p2be-m64-digits',
    'table_m64_imagenet_1000_images': 'p2be-m64-imagenet-1000-images',
}


def table_path(tag: str) -> Path:
    """Return the folder of a shipped table by its tag."""
    if tag not in TABLES:
        raise ValueError(
            f'Got the tag {tag!r}; the tables that ship are {", ".join(TABLES)}. Give any other one by '
            "embedding='org/name[@revision]' (or a folder) and freeze_embedding=True, without a tag."
        )
    return FOLDER / TABLES[tag]


def add_tables(default_cfgs: dict[str, DefaultCfg]) -> None:
    """Add a tag for every shipped table to the cfgs of P2BE networks; it comes last and so is never the default."""
    for architecture, cfg in default_cfgs.items():
        if architecture.endswith('_p2be') or architecture == 'encoded':
            about = {'description': 'A learned table of pixel codes, kept fixed, under fresh weights.'}
            for tag in TABLES:
                cfg.cfgs[tag] = replace(cfg.default, file=str(table_path(tag)), label_names=None, **about)
            cfg.tags.extend(TABLES)


def tagged_table(variant: str, arguments: dict[str, Any]) -> tuple[str, str] | None:
    """Return the network's name with its tag, and the folder of the table that the tag stands for.

    None if the cfg among the `arguments` of the model stands for weights: those of a saved model that once had such a
    tag, and a file or a repository that the caller put in the table's place.
    """
    given = arguments.get('pretrained_cfg')
    if isinstance(given, str) and names_table(f'{variant}.{given}'):
        table_path(given)
    cfg = resolve_pretrained_cfg(variant, given, arguments.get('pretrained_cfg_overlay'))
    name = f'{variant}.{cfg.tag}'
    if not names_table(name) or cfg.source or cfg.state_dict or not cfg.file or Path(cfg.file).is_file():
        return None
    return name, f'local-dir:{cfg.file}'


def published_table(
    source: str | Path, encoding: str, arguments: dict[str, Any], named: str | None = None
) -> PixelEmbedding:
    """Return the table from a folder or repository, which errors call `named`.

    What else the caller asked for in the `arguments` of the model has to fit the table.
    """
    named = named or f'embedding={source!r}'
    num_bits, init = arguments.get('num_bits'), arguments.get('embedding_init')
    if not isinstance(source, str | Path) or not str(source):
        raise ValueError(f"Got {named}; write the path of a folder, 'org/name[@revision]', or None.")
    if encoding != 'p2be':
        raise ValueError(f"{named} needs a learned table; encoding {encoding!r} is fixed. Use 'p2be'.")
    if init is not None:
        raise ValueError(
            f'Got {named} and embedding_init={init!r}: the table is loaded, so it is not drawn. Leave one of them out.'
        )
    if torch.empty(0, device=arguments.get('device')).is_meta:  # also by `with torch.device('meta')`
        raise ValueError(
            f'Got {named} and the meta device, which holds no values; after to_empty() the table would be garbage. '
            'Create the model on a real device, or leave the table out and load a state dict.'
        )
    with torch.random.fork_rng(devices=[]):  # the network starts as it would with a table drawn at random
        table = PixelEmbedding.from_pretrained(source, cache_dir=arguments.get('cache_dir'))
    if table.weight is None:
        raise ValueError(
            f'Got {named}, which holds a fixed {table.encoding} table; a p2be model takes a p2be table. Use a model '
            f"with encoding='{table.encoding}' and no embedding."
        )
    if num_bits not in (None, table.num_bits):
        raise ValueError(
            f'Got num_bits={num_bits}, but the table of {named} has codes of {table.num_bits} bits. Use '
            f'{table.num_bits}, or leave num_bits out.'
        )
    return table
