"""The metadata of a card, which the Hub searches and shows."""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from timm_p2be.hub.cards.markdown import of, repo_id


def metadata(provenance: dict[str, Any] | None, encoding: str, name: str, license: str, pipeline: str) -> ModelCardData:
    """Return the metadata.

    Args:
        provenance: checked record, or None.
        encoding: 'p2be', 'onehot', 'thermometer' or 'rgb'.
        name: of the model in the Hub's list of results.
        license: identifier as the Hub spells it.
        pipeline: task as the Hub spells it.

    Raises:
        ValueError: `license`, or an id of the record, is none of the Hub's.
    """
    if not re.fullmatch(r'[a-z0-9][a-z0-9.-]{0,40}', license):
        raise ValueError(f"Got license {license!r}; write it as the Hub does, for example 'apache-2.0' or 'cc-by-4.0'.")
    dataset, base, evaluations = of(provenance, 'dataset', 'id'), of(provenance, 'base_model'), _evaluations(provenance)
    kind = ('robustness',) if encoding == 'rgb' else (encoding, 'robustness', 'binary-embedding')
    return ModelCardData(
        license=license,
        library_name='timm-p2be',
        pipeline_tag=pipeline,
        tags=['timm-p2be', 'timm', *kind, pipeline],
        datasets=[repo_id(dataset)] if dataset else None,
        metrics=['accuracy'] if evaluations else None,
        base_model=repo_id(base) if base and '/' in base else None,
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )


def _evaluations(provenance: dict[str, Any] | None) -> list[EvalResult]:
    """Return the results for the Hub's model-index; percentages, as their names say."""
    results, dataset = of(provenance, 'results'), of(provenance, 'dataset') or {}
    clean, corruptions = of(results, 'clean'), of(results, 'corruptions')
    shown = dataset.get('name') or 'unknown'
    metrics: list[tuple[str, str, float | None]] = []
    if of(clean, 'error') is not None:
        metrics.append(('accuracy', 'Clean accuracy, %', round(100 - clean['error'], 6)))
    corrupted = of(corruptions, 'label') or 'corrupted images'
    for key, title in (('mean_corruption_error', 'Mean corruption error'), ('mce', 'mCE relative to AlexNet')):
        metrics.append((key, f'{title} on {corrupted}, %', of(corruptions, key)))
    for attack in of(results, 'attacks') or ():
        title = f'Accuracy under {attack["name"]}, eps {attack["eps"]}/255, %'
        metrics.append(('accuracy', title, attack['accuracy']))
    return [
        EvalResult(
            task_type='image-classification',
            # where there is no id: the Hub asks for one, and takes any word
            dataset_type=dataset.get('id') or re.sub('[^a-z0-9]+', '-', shown.lower()).strip('-') or 'unknown',
            dataset_name=shown,
            dataset_split=of(clean, 'split'),
            metric_type=kind,
            metric_name=title,
            metric_value=value,
        )
        for kind, title, value in metrics
        if value is not None
    ]
