"""The recipes: their values are those of the table in docs/protocol.md; test_arguments.py parses them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from timm.loss import JsdCrossEntropy
from timm.scheduler import create_scheduler_v2

from timm_p2be.encodings import PixelEmbedding

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / 'train_scripts' / 'recipes').glob('*.yaml'))}
UNSET = '–'  # noqa: RUF001  (the table's sign for "left to the default")


TIMMS = {path.stem: path for path in sorted((ROOT / 'train_scripts' / 'recipes' / 'timm').glob('*.yaml'))}


def _load(name: str, recipes: dict[str, Path] = RECIPES) -> dict[str, Any]:
    return yaml.safe_load(recipes[name].read_text(encoding='utf-8'))


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """{'opt_kwargs': {'nesterov': True}} -> {'opt_kwargs.nesterov': True}"""
    flat = {}
    for key, value in recipe.items():
        if isinstance(value, dict):
            flat.update({f'{key}.{name}': entry for name, entry in value.items()})
        else:
            flat[key] = value
    return flat


def _cell(text: str) -> Any:
    """The value that a cell of the table stands for; numbers compare as floats."""
    if ',' in text:
        return [_cell(part.strip()) for part in text.split(',')]
    if text in ('true', 'false'):
        return text == 'true'
    try:
        return float(text)
    except ValueError:
        return text


def _table() -> dict[str, dict[str, Any]]:
    """recipe -> {flag: value} of the table in docs/protocol.md; unset flags are left out."""
    text = (ROOT / 'docs' / 'protocol.md').read_text(encoding='utf-8')
    lines = re.search(r'^\| flag \|.*?(?=\n\n)', text, flags=re.MULTILINE | re.DOTALL)
    assert lines, 'docs/protocol.md has no table that starts with "| flag |"'
    header, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in lines[0].splitlines())
    names = [row[0] for row in rows]
    assert len(names) == len(set(names)), 'a flag has two rows'
    return {
        recipe: {row[0]: _cell(row[column]) for row in rows if row[column] != UNSET}
        for column, recipe in enumerate(header)
        if column
    }


def test_values_are_those_of_the_protocol() -> None:
    assert _table() == {name: _flat(_load(name)) for name in RECIPES}


@pytest.mark.parametrize('name', RECIPES)
def test_traps_of_the_defaults_are_closed(name: str) -> None:
    recipe = _load(name)
    expected = {'smoothing': 0.0, 'warmup_epochs': 0, 'color_jitter': 0.0, 'mean': [0.0] * 3, 'std': [1.0] * 3}
    assert expected.items() <= recipe.items()
    assert recipe['opt_kwargs']['filter_bias_and_bn'] is False
    augmix = name != 'cifar10_plain_cpu' and 'p2be_adversarial' not in recipe
    assert (recipe.get('jsd_loss'), recipe.get('aug_splits')) == ((True, 3) if augmix else (None, None))
    assert recipe.get('sched_on_updates', False) is (recipe['sched'] == 'cosine')


@pytest.mark.parametrize('name', TIMMS)
def test_recipes_of_timms_script_say_the_same_in_its_flags(name: str) -> None:
    """That its flags are known to timm is tested in test_timm_scripts.py."""
    ours, theirs = _flat(_load(name)), _flat(_load(name, TIMMS))
    assert theirs.pop('device_modules') == ['timm_p2be', 'timm_p2be.timm_script']
    assert ours.pop('opt_kwargs.timm_recipe') == f'{name}.yaml'
    # no flag of timm's, but its value
    assert ours.pop('p2be_alpha') == JsdCrossEntropy().alpha
    assert ours.pop('p2be_init') == PixelEmbedding().init
    renamed = {
        'aa': f'p2be-{ours.pop("p2be_augmix")}',
        'opt_kwargs.smoothness': ours.pop('p2be_smoothness'),
        'opt_kwargs.smoothness_reduction': ours.pop('p2be_reduction'),
        **{f'opt_kwargs.embedding_{key}': ours.pop(f'p2be_{key}') for key in ('lr', 'betas', 'weight_decay')},
    }
    if 'p2be_crop_padding' in ours:
        renamed['train_crop_mode'] = f'zeropad{ours.pop("p2be_crop_padding")}'
    ours.pop('recovery_minutes')  # timm counts updates instead
    # the table's cosine is the network's where that is one too and ends at the same rate; timm has no place for another
    floor = ours.pop('p2be_min_lr')
    cosine = ours['sched'] == ours.pop('p2be_sched') == 'cosine' and ours['sched_on_updates']
    assert cosine == (name != 'imagenet')
    assert not cosine or ours['min_lr'] == floor
    renamed['opt_kwargs.embedding_sched'] = 'follow' if cosine else 'constant'
    assert theirs == {**ours, **renamed}


def test_imagenet_learning_rate_falls_after_60_and_120_epochs() -> None:
    """timm applies milestone m after m - 1 epochs, hence 61 and 121 in the recipe."""
    recipe = _load('imagenet')
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe['lr'])
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched=recipe['sched'],
        num_epochs=recipe['epochs'],
        decay_milestones=recipe['decay_milestones'],
        decay_rate=recipe['decay_rate'],
        warmup_epochs=recipe['warmup_epochs'],
    )
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]['lr'])  # the rate that the epoch is trained with
        scheduler.step(epoch + 1)
    assert rates == pytest.approx([0.1] * 60 + [0.01] * 60 + [0.001] * 60)


@pytest.mark.parametrize(
    ('name', 'images'), [('cifar10_cpu', 50_000), ('cifar10_contrain_cpu', 50_000), ('quickstart', 1_438)]
)
def test_short_runs_keep_steps_times_rate_of_the_table(name: str, images: int) -> None:
    full, short = _load('cifar10'), _load(name)
    steps = short['epochs'] * (images // short['batch_size'])
    assert steps * short['p2be_lr'] == pytest.approx(78_000 * full['p2be_lr'], rel=0.05)
    assert short['p2be_min_lr'] / short['p2be_lr'] == pytest.approx(full['p2be_min_lr'] / full['p2be_lr'])
