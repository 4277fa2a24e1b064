"""What the entrypoints of encoded models share: an RGB network whose first convolution is made to read pixel codes."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from timm.models import adapt_input_conv, model_entrypoint, register_model, split_model_name_tag
from torch import Tensor, nn

from timm_p2be.encodings import PixelEmbedding
from timm_p2be.models.pretrained import build_checked
from timm_p2be.models.tables import published_table, tagged_table
from timm_p2be.stem import convert, encoded_stem, find_embedding

_OWN_ARGUMENTS = ('num_bits', 'embedding', 'embedding_init', 'freeze_embedding', 'backbone', 'encoding', 'preserve')


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


def build_encoded(
    backbone: str,
    encoding: str,
    table: PixelEmbedding | None,
    rgb: dict[str, Any] | None,
    num_bits: int | None = None,
    embedding_init: str | None = None,
    freeze_embedding: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Return `backbone`, its first convolution replaced by an encoded one.

    With `rgb`, arguments of the backbone's entrypoint that say what it loads, the new stem computes what the old one
    did. Without, the backbone has no weights (a fresh stem voids them).
    """
    arch, tag = split_model_name_tag(backbone)
    try:
        model = model_entrypoint(arch)(pretrained_cfg=tag or None, **kwargs, **(rgb or {}))
    except TypeError as error:
        _, _, word = str(error).partition('unexpected keyword argument ')
        close = difflib.get_close_matches(word.strip("'"), _OWN_ARGUMENTS, n=1, cutoff=0.5)
        if not close:
            raise
        raise TypeError(f'{error}; did you mean {close[0]}?') from error
    if table is not None:
        num_bits = table.num_bits
    preserve = rgb is not None
    init = embedding_init if preserve else embedding_init or 'normal'
    convert(model, encoding, num_bits=64 if num_bits is None else num_bits, init=init, preserve=preserve)
    if table is not None:
        stem = encoded_stem(model)[1]
        assert stem is not None
        stem.embedding = table.to(stem.weight.device)
        # timm saves these with its own: the weights can be loaded again without the table
        model._model_args = {'num_bits': table.num_bits, 'freeze_embedding': freeze_embedding}
    if freeze_embedding:
        find_embedding(model).freeze()
    return model


def fit_stem(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
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


def _first_table(
    variant: str, embedding: Any, encoding: str, pretrained: bool, arguments: dict[str, Any]
) -> tuple[PixelEmbedding | None, bool]:
    """Return the published table that a network starts from, None for a drawn one, and whether to load weights.

    A network whose tag stands for a table gets `freeze_embedding` among its `arguments`.
    """
    tagged = tagged_table(variant, arguments)
    if tagged and pretrained:
        if embedding is not None:
            raise ValueError(
                f'Got embedding={embedding!r} and pretrained=True for {tagged[0]}, which is a table itself. Leave out '
                'embedding or the tag.'
            )
        arguments.setdefault('freeze_embedding', True)
        return published_table(tagged[1], encoding, arguments, named=tagged[0]), False
    if embedding is None:
        return None, pretrained
    saved = (arguments.get('pretrained_model_args') or {}).get('embedding') == embedding  # timm hands it in again
    if pretrained and saved:
        return None, True  # the weights hold it
    if pretrained:
        raise ValueError(
            f'Got embedding={embedding!r} and pretrained=True, whose weights bring their own table. Leave out '
            'embedding to use that one, or pretrained to start the network afresh.'
        )
    cfg = arguments.get('pretrained_cfg')
    if saved and isinstance(cfg, dict) and cfg.get('source') == 'hf-hub':
        embedding = f'hf-hub:{embedding}'  # a config.json of the Hub names no folder of this machine
    return published_table(embedding, encoding, arguments), False


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
        pretrained: load weights; with a tag that stands for a table (`timm_p2be.models.tables`), the table alone.
        embedding: P2BE only: table to start from, 'org/name[@revision]' on the Hub or a folder.
        **kwargs: `num_bits` (64, or the table's); for P2BE also `embedding_init` (one of `codes.INITS`) and
            `freeze_embedding` (False); timm's build arguments; everything else goes to the backbone.
    """
    table, pretrained = _first_table(variant, embedding, encoding, pretrained, kwargs)
    build = partial(build_encoded, backbone, encoding, table, None)
    return build_checked(build, variant, pretrained, pretrained_filter_fn=fit_stem, **kwargs)


def entrypoint(
    module: str, name: str, prepare: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> Callable[..., Any]:
    """Register {backbone}_{encoding} with timm as a function of `module`, and return it.

    `prepare` is applied to the arguments of the model.
    """
    backbone, _, encoding = name.rpartition('_')

    def create(pretrained: bool = False, **kwargs: Any) -> Any:
        return create_encoded(name, backbone, encoding, pretrained, **prepare(kwargs))

    create.__module__, create.__name__, create.__qualname__ = module, name, name
    return register_model(create)
