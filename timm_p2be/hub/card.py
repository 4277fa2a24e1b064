"""Model cards, rendered by card.md.jinja from the `config.json` of a table or a model and from nothing else."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor

from timm_p2be.encodings.codes import ENCODINGS
from timm_p2be.files import content_of
from timm_p2be.hub.browsing import Entry, shipped_entries
from timm_p2be.hub.pictures import draw_pictures
from timm_p2be.hub.training_record import (
    RECORD,
    check_training_record,
    counts_of,
    is_on_training_images,
    part_of,
)

LICENSE = 'apache-2.0'

_TEMPLATE = Path(__file__).with_name('card.md.jinja')
_HERE = 'path/to/this/folder'  # of a card that belongs to no repository
_PLAIN_CODE = re.compile(r'(?! )[\w .,:+=/@()\[\]{}"\'%-]+(?<! )', re.ASCII)  # cannot end a code span or a cell
_CODES = {
    'p2be': 'the learned binary codes of P2BE',
    'onehot': 'fixed one-hot codes, a baseline of P2BE',
    'thermometer': 'fixed thermometer codes, a baseline of P2BE',
    'rgb': 'pixel values, the baseline of P2BE without codes',
}


def text(words: Any) -> str:
    """Return one line of Markdown that shows `words` and nothing else; '' for what is no text."""
    line = ''.join(letter if letter.isprintable() else ' ' for letter in (words if isinstance(words, str) else ''))
    line = line.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return re.sub(r'([\\`*_\[\]|~$!])', r'\\\1', line).strip()


def code(value: Any) -> str:
    """Return a JSON value as code, or escaped where it has characters that could end the code; '' for None."""
    if value is None:
        return ''
    shown = value if isinstance(value, str) else json.dumps(value)
    return f'`{shown}`' if _PLAIN_CODE.fullmatch(shown) else text(shown)


def write_card(folder: Path, codes: Tensor | None, **options: Any) -> None:
    """Draw the pictures of a release in `folder`, whose codes are given, and write its card, as `render_card` does."""
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    errors = part_of(config.get('timm_p2be', config), 'provenance', 'results', 'corruptions', 'by_corruption') or {}
    pictures = draw_pictures(folder, codes, errors)
    (folder / 'README.md').write_text(render_card(config, pictures=pictures, **options), encoding='utf-8')


@content_of('config.json')
def render_card(
    config: Mapping[str, Any],
    name: str | None = None,
    license: str = LICENSE,
    pictures: Collection[str] = (),
    shipped: str | None = None,
) -> str:
    """Return the card of a table or a model: Markdown with YAML metadata in front, texts of `config` escaped.

    Args:
        config: its `config.json`.
        name: 'org/name' or 'org/name@revision', for the usage block; None for a folder that is not on the Hub.
        license: identifier as the Hub spells it.
        pictures: names of the files beside it that it shows, `codes.png` and `corruptions.png`.
        shipped: name of timm by which the package has it, while there is no repository.
    """
    is_table = 'architecture' not in config
    ours = config if is_table else config['timm_p2be']
    record, encoding = ours['provenance'], ours['encoding']
    check_training_record(record)
    kind = 'Model' if not is_table else 'P2BE table' if encoding == 'p2be' else 'Code table'
    pipeline = 'image-feature-extraction' if is_table else 'image-classification'
    network = _architecture((part_of(record, 'model') or 'wrn40_2_p2be') if is_table else config['architecture'])
    backbone = part_of(config.get('model_args'), 'backbone')
    source = shipped or ('' if is_table else 'hf-hub:' if name else 'local-dir:') + (name or _HERE)
    repo = _repo_id(name) if name else None
    attacks = [entry for entry in part_of(record, 'results', 'attacks') or () if entry['accuracy'] is not None]
    card = ModelCard.from_template(
        _metadata(record, encoding, shipped or (repo or kind).rpartition('/')[2], license, pipeline),
        template_path=str(_TEMPLATE),
        kind=kind,
        is_table=is_table,
        network=network,
        backbone=_architecture(backbone) if backbone else None,
        source=repr(source),
        digest=ours['codes_sha256' if is_table else 'weights_sha256'],
        record=record or dict.fromkeys(RECORD),
        known=record is not None,
        repo=repo,
        shipped=shipped,
        pictures=pictures,
        siblings=_siblings(is_table, network, shipped or ''),
        on_training=is_on_training_images(record),
        codes=_CODES[encoding],
        learned=encoding == 'p2be',
        num_bits=ours['num_bits'],
        attacks=attacks,
        states=sorted({text(entry.get('weights')) for entry in attacks} - {''}),
        counts=counts_of(part_of(record, 'results', 'codes')),
        license=license,
        precision=_precision,
        text=text,
        code=code,
    )
    return f'{card.content}\n'


def _siblings(tables: bool, network: str, itself: str) -> list[Entry]:
    """Return what ships with the package beside `itself`: tables, or the same network under other encodings."""

    def is_one(name: str) -> bool:
        plain, other = (re.sub(rf'(_({"|".join(ENCODINGS)}))?(\..*)?$', '', word, count=1) for word in (name, network))
        return name.startswith('*') if tables else plain == other

    found = [entry for entry in shipped_entries() if is_one(entry.name)]
    return [entry for entry in found if not itself.endswith(entry.name.lstrip('*'))]


def _metadata(record: dict[str, Any] | None, encoding: str, name: str, license: str, pipeline: str) -> ModelCardData:
    """Return the metadata, which the Hub searches and shows."""
    if not re.fullmatch(r'[a-z0-9][a-z0-9.-]{0,40}', license):
        raise ValueError(f"Got license {license!r}; write it as the Hub does, for example 'apache-2.0' or 'cc-by-4.0'.")
    dataset, base, evaluations = part_of(record, 'dataset', 'id'), part_of(record, 'base_model'), _evaluations(record)
    kind = ('robustness',) if encoding == 'rgb' else (encoding, 'robustness', 'binary-embedding')
    return ModelCardData(
        license=license,
        library_name='timm-p2be',
        pipeline_tag=pipeline,
        tags=['timm-p2be', 'timm', *kind, pipeline],
        datasets=[_repo_id(dataset)] if dataset else None,
        metrics=['accuracy'] if evaluations else None,
        base_model=_repo_id(base) if base and '/' in base else None,
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )


def _evaluations(record: dict[str, Any] | None) -> list[EvalResult]:
    """Return the results for the Hub's model-index; percentages, as their names say."""
    results, dataset = part_of(record, 'results'), part_of(record, 'dataset') or {}
    clean, corruptions = part_of(results, 'clean'), part_of(results, 'corruptions')
    if not dataset.get('id'):  # the Hub wants one, and a made-up one would lead nowhere
        return []
    shown = dataset.get('name') or 'unknown'
    metrics: list[tuple[str, str, float | None]] = []
    if part_of(clean, 'error') is not None and not is_on_training_images(record):
        metrics.append(('accuracy', f'Clean accuracy{_precision(clean)}, %', round(100 - clean['error'], 6)))
    corrupted = part_of(corruptions, 'label') or 'corrupted images'
    for key, title in (('mean_corruption_error', 'Mean corruption error'), ('mce', 'mCE relative to AlexNet')):
        metrics.append((key, f'{title} on {corrupted}{_precision(corruptions)}, %', part_of(corruptions, key)))
    for attack in part_of(results, 'attacks') or ():
        title = f'Accuracy under {attack["name"]}, eps {attack["eps"]}/255, %'
        metrics.append(('accuracy', title, attack['accuracy']))
    return [
        EvalResult(
            task_type='image-classification',
            dataset_type=dataset['id'],
            dataset_name=shown,
            dataset_split=part_of(clean, 'split'),
            metric_type=kind,
            metric_name=title,
            metric_value=value,
        )
        for kind, title, value in metrics
        if value is not None
    ]


def _precision(result: Mapping[str, Any] | None) -> str:
    """Return the words for what a model was run in, if it was not float32."""
    precision = part_of(result, 'precision')
    return '' if precision in (None, 'float32') else f', in {text(precision)}'


def _architecture(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r'\w[\w.-]{0,127}', value, re.ASCII):
        raise ValueError(f'Got the architecture {value!r}; allowed is a name of timm.list_models().')
    return value


def _repo_id(value: str) -> str:
    """Return the id of a repository of the Hub, without a revision."""
    repo = value.partition('@')[0]
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"Got {value!r}, which is no id of the Hub such as 'org/name': {error}") from error
    return repo
