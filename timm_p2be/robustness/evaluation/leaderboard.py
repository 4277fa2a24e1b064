"""A page that ranks the models of many result files, each with those measured on the same images."""

from collections.abc import Mapping, Sequence
from typing import Any

from timm_p2be.files import content_of
from timm_p2be.robustness.evaluation.entries import Entry, entries_of
from timm_p2be.robustness.evaluation.report import Report, Section, Table
from timm_p2be.robustness.evaluation.results import interval, interval_of_differences

_LIMITS = (
    'Intervals are of 95 % and cover the choice of images only: not training again with another seed. Differences are '
    'paired, image by image, to the model above all others.',
    'Under attack every error is a lower bound: of the attacks that were run, on a model that may mask gradients.',
)


@content_of('The result file')
def leaderboard(contents: Sequence[Mapping[str, Any]]) -> Report:
    """Return the page of the contents of finished result files, of corruptions and of attacks.

    Raises:
        ValueError: a file is not finished.
    """
    boards: dict[tuple[str, str], list[Entry]] = {}
    for content in contents:
        _check_finished(content)
        for place, entry in entries_of(content):
            boards.setdefault(place, []).append(entry)
    sections = [
        Section(title, texts=[f'Images: SHA-256 {images}'], table=_ranked(entries))
        for (title, images), entries in sorted(boards.items())
    ]
    return Report('Leaderboard', [*sections, Section('Limits', texts=_LIMITS)])


def _check_finished(content: Mapping[str, Any]) -> None:
    if content['kind'] == 'attacks':
        name, finished = content['model']['name'], not content['worst_case'] or content['worst_case'].get('complete')
    else:
        name, finished = content['config']['data']['label'], content['complete']
    if not finished:
        raise ValueError(f'The result file of {name} is not finished. Finish it by the command that began it.')


def _ranked(entries: Sequence[Entry]) -> Table:
    header = ['', 'model', 'encoding', 'weights, SHA-256', 'clean error, %', 'error, %', '95 % interval']
    rows = []
    ranked = sorted(entries, key=lambda entry: entry.errors.mean())
    for place, entry in enumerate(ranked, start=1):
        model, clean = entry.model, '-' if entry.clean is None else f'{100 * entry.clean:.1f}'
        row = [str(place), model['name'], model['encoding'], model['weights_sha256'][:12], clean]
        row += [f'{100 * entry.errors.mean():.1f}', interval(entry.errors)]
        rows.append([*row, interval_of_differences(entry.errors - ranked[0].errors) if place > 1 else '-', entry.note])
    return Table([*header, 'more than the first', ''], rows)
