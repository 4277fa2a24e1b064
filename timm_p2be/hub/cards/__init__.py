"""Model cards, rendered from the `config.json` of an embedding or a model and from nothing else."""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import ModelCard

from timm_p2be.hub.cards.markdown import architecture, literal, of, repo_id
from timm_p2be.hub.cards.metadata import metadata
from timm_p2be.hub.cards.sections import attacks, limits, results, training, use
from timm_p2be.hub.provenance import check_provenance

__all__ = ['LICENSE', 'check_card', 'embedding_card', 'model_card']

LICENSE = 'apache-2.0'

_PAPER = '[Pixel to Binary Embedding Towards Robustness for CNNs](https://arxiv.org/abs/2206.05898)'
_CITATION = """\
```bibtex
@misc{kishida2022p2be,
  author = {Kishida, Ikki and Nakayama, Hideki},
  title = {Pixel to Binary Embedding Towards Robustness for {CNNs}},
  year = {2022},
  note = {arXiv:2206.05898},
  url = {https://arxiv.org/abs/2206.05898}
}
```"""
_AGAIN = 'Render it again with `timm-p2be publish --dry-run`.'
_HERE = 'path/to/this/folder'  # of a card that belongs to no repository
_CODES = {
    'p2be': 'the learned binary codes of P2BE',
    'onehot': 'fixed one-hot codes, a baseline of P2BE',
    'thermometer': 'fixed thermometer codes, a baseline of P2BE',
    'rgb': 'pixel values, the baseline of P2BE without codes',
}


def embedding_card(config: Mapping[str, Any], name: str | None = None, license: str = LICENSE) -> str:
    """Return the card of a table.

    Args:
        config: its `config.json`.
        name: 'org/name' or 'org/name@revision', for the usage block; None for a folder that is not on the Hub.
        license: identifier as the Hub spells it.

    Returns:
        Markdown with YAML metadata in front. Texts of `config` are escaped, sections without content left out.

    Raises:
        ValueError: malformed `config`, `name` or `license`.
    """
    provenance, encoding = config.get('provenance'), _encoding(config)
    check_provenance(provenance)
    learned = encoding == 'p2be'
    source, network = literal(name or _HERE), architecture(of(provenance, 'model') or 'wrn40_2_p2be')
    example = [f'table = timm_p2be.PixelEmbedding.from_pretrained({source})']
    if learned:  # a model with fixed codes builds them itself
        example = [f"model = timm.create_model('{network}', embedding={source}, freeze_embedding=True)", *example]
    intro = (
        f'A table of 256 binary codes of {_bits(config)} bits, one for each pixel level: {_CODES[encoding]}'
        f'{", trained as the first layer of a network" if learned and provenance else ""}. '
        f'Instead of a pixel value the network reads its code, see {_PAPER} (Kishida and Nakayama, 2022).'
    )
    parts = {
        'Use': use(*example),
        'Training': training(provenance),
        'Results of the network it was trained in': results(of(provenance, 'results')),
        'Attacks on that network': attacks(of(provenance, 'results')),
        'Limits': limits(provenance),
        'Integrity': f'sha256 of the packed bits, which loading verifies: `{_digest(config, "codes_sha256")}`',
    }
    kind = 'P2BE table' if learned else 'Code table'
    return _card(kind, intro, parts, provenance, encoding, name, license, 'image-feature-extraction')


def model_card(config: Mapping[str, Any], name: str | None = None, license: str = LICENSE) -> str:
    """Return the card of a classifier.

    Args:
        config: its `config.json`, as timm writes it and with the entry `timm_p2be`.
        name: 'org/name' or 'org/name@revision', for the usage block; None for a folder that is not on the Hub.
        license: identifier as the Hub spells it.

    Returns:
        Markdown with YAML metadata in front. Texts of `config` are escaped, sections without content left out.

    Raises:
        ValueError: malformed `config`, `name` or `license`.
    """
    ours = config.get('timm_p2be')
    if not isinstance(ours, dict):
        raise ValueError("The config.json has no entry 'timm_p2be'; write it with `timm-p2be publish`.")
    provenance, encoding = ours.get('provenance'), _encoding(ours)
    if not isinstance(provenance, dict):
        raise ValueError(f'The config.json has the provenance {provenance!r}; a model needs one to have a card.')
    check_provenance(provenance)
    backbone = of(config.get('model_args'), 'backbone')
    over = f' over `{architecture(backbone)}`' if backbone else ''
    bits = '' if encoding == 'rgb' else f', {_bits(ours)} bits a color'
    intro = (
        f'An image classifier, `{architecture(config.get("architecture"))}`{over} of timm-p2be, whose first '
        f'convolution reads {_CODES[encoding]}{bits}, see {_PAPER} (Kishida and Nakayama, 2022).'
    )
    source = literal(f'hf-hub:{name}' if name else f'local-dir:{_HERE}')
    parts = {
        'Use': use(
            f'model = timm.create_model({source}, pretrained=True)',
            'data_config = timm.data.resolve_data_config(model=model)  # mean, std and image size as trained',
        ),
        'Training': training(provenance),
        'Results': results(of(provenance, 'results')),
        'Attacks': attacks(of(provenance, 'results')),
        'Limits': limits(provenance),
        'Integrity': f'sha256 of `model.safetensors`: `{_digest(ours, "weights_sha256")}`',
    }
    return _card('Model', intro, parts, provenance, encoding, name, license, 'image-classification')


def check_card(text: str) -> None:
    """Raise unless `text` is a card as the functions here render them: complete metadata and a usable first example.

    Nothing is sent anywhere; on upload the Hub checks the metadata once more.

    Raises:
        ValueError: what is missing or malformed.
    """
    try:
        data = ModelCard(text).data.to_dict()
    except (yaml.YAMLError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split())  # PyYAML's takes several lines
        raise ValueError(f"The card's metadata cannot be read: {reason}. {_AGAIN}") from error
    missing = [key for key in ('license', 'library_name', 'tags', 'pipeline_tag') if not data.get(key)]
    if missing:
        raise ValueError(f'The card lacks the metadata {missing}. {_AGAIN}')
    if '```python\nimport timm_p2be\n' not in text:
        raise ValueError(
            f"The card's example does not begin with `import timm_p2be`, so it would not run as it is. {_AGAIN}"
        )


def _card(
    kind: str,
    intro: str,
    parts: Mapping[str, str | None],
    provenance: dict[str, Any] | None,
    encoding: str,
    name: str | None,
    license: str,
    pipeline: str,
) -> str:
    repo = repo_id(name) if name else None
    data = metadata(provenance, encoding, (repo or kind).rpartition('/')[2], license, pipeline)
    sections = {**parts, 'License': license, 'Citation': _CITATION}
    body = '\n\n'.join(f'## {head}\n\n{part}' for head, part in sections.items() if part)
    title = f'{kind} `{repo}`' if repo else kind
    text = f'---\n{data.to_yaml().rstrip()}\n---\n\n# {title}\n\n{intro}\n\n{body}\n'
    check_card(text)
    return text


def _encoding(config: Mapping[str, Any]) -> str:
    encoding = config.get('encoding')
    if encoding not in _CODES:
        raise ValueError(f'Got the encoding {encoding!r}; allowed are {list(_CODES)}.')
    return encoding


def _bits(config: Mapping[str, Any]) -> int:
    bits = config.get('num_bits')
    if not isinstance(bits, int) or isinstance(bits, bool) or bits < 1:
        raise ValueError(f'Got num_bits={bits!r}; allowed is an integer of at least 1.')
    return bits


def _digest(config: Mapping[str, Any], key: str) -> str:
    digest = config.get(key)
    if not isinstance(digest, str) or not re.fullmatch('[0-9a-f]{64}', digest):
        raise ValueError(f'Got {key} {digest!r}; allowed are 64 hexadecimal digits.')
    return digest
