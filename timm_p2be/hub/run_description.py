"""The training record of a run: what train.py was told, without anything that says where or by whom it was run."""

import re
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import timm
from torch import nn

from timm_p2be.hub.errors import FetchError
from timm_p2be.hub.fetch import split_revision
from timm_p2be.hub.run_folder import Run
from timm_p2be.stem import learned_embedding

# flags of train.py that are published, and the flag without which one has no effect
_PUBLISHED = (
    'opt opt_eps opt_betas opt_kwargs momentum weight_decay layer_decay clip_grad clip_mode batch_size '
    'grad_accum_steps sched lr min_lr warmup_epochs warmup_lr cooldown_epochs drop drop_path no_aug train_crop_mode '
    'hflip vflip color_jitter aa aug_splits jsd_loss reprob remode recount smoothing amp amp_dtype model_dtype '
    'model_ema model_ema_decay img_size input_size p2be_alpha p2be_augmix p2be_crop_padding p2be_init p2be_lr '
    'p2be_betas p2be_sched p2be_min_lr p2be_weight_decay p2be_freeze'
).split()
_ADVERSARIAL = ('p2be_adversarial', 'p2be_attack_eps', 'p2be_attack_steps', 'p2be_attack_step_size')
_OF_ANY_MODEL = ('p2be_augmix', 'p2be_crop_padding', 'p2be_alpha', *_ADVERSARIAL)
_NEEDS = {
    'clip_mode': 'clip_grad',
    'warmup_lr': 'warmup_epochs',
    'remode': 'reprob',
    'recount': 'reprob',
    'amp_dtype': 'amp',
    'model_ema_decay': 'model_ema',
    'p2be_alpha': 'jsd_loss',
    'p2be_betas': 'p2be_lr',
    'p2be_sched': 'p2be_lr',
    'p2be_min_lr': 'p2be_lr',
    'p2be_weight_decay': 'p2be_lr',
}
_STEPS = ('decay_epochs', 'decay_milestones', 'decay_rate')  # of the schedules that have them
_STARTS = ('pretrained', 'initial_checkpoint', 'pretrained_path')
_WORD = re.compile(r'[\w.,=-]+', re.ASCII)
_MODEL_NAME = re.compile(r'[\w.-]+(/[\w.-]+)?(@[\w.-]+)?', re.ASCII)
# --dataset of torchvision's sets: name, id on the Hub, validation split, images in it
_KNOWN_DATASETS = {
    'torch/cifar10': ('CIFAR-10', 'uoft-cs/cifar10', 'test', 10_000),
    'torch/cifar100': ('CIFAR-100', 'uoft-cs/cifar100', 'test', 10_000),
    'torch/imagenet': ('ImageNet-1k', 'ILSVRC/imagenet-1k', 'validation', 50_000),
}


@dataclass(frozen=True)
class Dataset:
    """Data set of a run, in words; a path says nothing to others."""

    name: str | None = None  # None takes that of a torchvision set, which --dataset names
    id: str | None = None  # on the Hub
    note: str | None = None  # what is particular about this copy
    test_images: int | None = None  # in the validation split
    train_split: str = 'train'
    test_split: str = 'validation'


def dataset_of(run: Run, given: Dataset) -> Dataset:
    """Return what a run was trained and validated on: what is given, else what its flags say."""
    name, hub_id, split, images = _KNOWN_DATASETS.get(run.flags.get('dataset') or '', (None, None, None, None))
    if run.flags.get('val_num_samples'):
        images = None
    return replace(
        given,
        name=given.name or name,
        id=given.id if given.name else given.id or hub_id,
        train_split=_word(run.flags.get('train_split'), 'train'),
        test_split=split or _word(run.flags.get('val_split'), 'validation'),
        test_images=given.test_images or images,
    )


def missing(run: Run, given: Dataset, base_model: str | None) -> list[str]:
    """Return what the flags of a run do not say and its card has to, as sentences with what to do."""
    sentences = []
    if not (given.name or run.flags.get('dataset') in _KNOWN_DATASETS):
        sentences.append(
            "args.yaml says where the data set was, not what it was. Pass --dataset-name, for example 'CIFAR-10', and "
            '--dataset-id if it is on the Hub.'
        )
    started = [name for name in _STARTS if run.flags.get(name)]
    if started and not (base_model or _base_model(run.flags)):
        sentences.append(
            f'The run started from other weights (--{started[-1].replace("_", "-")}); name them by --base-model, as '
            "'org/name@revision' on the Hub or as a name of timm."
        )
    return sentences


def _base_model(flags: dict[str, Any]) -> str | None:
    """Return the weights that --model and --pretrained name, by their id on the Hub or else their name of timm."""
    name: str = flags['model']
    if not flags.get('pretrained') or flags.get('pretrained_path') or flags.get('initial_checkpoint'):
        return None
    if ':' in name:
        return _hub_name(name.removeprefix('hf-hub:'))
    kwargs = flags.get('model_kwargs') or {}
    preserved = kwargs.get('backbone') if kwargs.get('preserve') else None
    cfg = timm.get_pretrained_cfg(preserved or name, allow_unregistered=False)
    return None if cfg is None else cfg.hf_hub_id or f'{cfg.architecture}.{cfg.tag}'


def training_record(
    run: Run, model: nn.Module, dataset: Dataset, base_model: str | None, results: dict[str, Any]
) -> dict[str, Any]:
    """Return the training record of what a run trained, see `timm_p2be.hub.training_record`."""
    flags = run.flags
    base_model = base_model or _base_model(flags)
    if base_model is not None and not _MODEL_NAME.fullmatch(base_model):
        raise ValueError(f"Got base_model={base_model!r}; write 'org/name', 'org/name@revision' or a name of timm.")
    learned = learned_embedding(model) is not None
    trains_table = learned and not flags.get('p2be_freeze')
    return {
        'dataset': {'name': dataset.name, 'id': dataset.id, 'split': dataset.train_split, 'note': dataset.note},
        'model': model.pretrained_cfg['architecture'],  # type: ignore[index]
        'recipe': PurePath(flags['config']).name if flags.get('config') else None,
        'flags': _published_flags(run, learned),
        'seed': flags['seed'],
        'epochs': run.epoch + 1,
        'smoothness': flags.get('p2be_smoothness') if trains_table else None,
        'reduction': flags.get('p2be_reduction') if trains_table else None,
        'base_model': base_model,
        'results': {key: value for key, value in results.items() if key != 'files'},
    }


def _published_flags(run: Run, learned: bool) -> dict[str, Any]:
    flags = {**run.flags, 'lr': run.checkpoint.args.get('lr', run.flags.get('lr'))}  # args.yaml may have its base only
    names = [name for name in _PUBLISHED if name not in _NEEDS or flags.get(_NEEDS[name])]
    if flags.get('p2be_adversarial'):
        names += [*_ADVERSARIAL, *(['p2be_alpha'] if flags['p2be_adversarial'] == 'contrain' else [])]
    names += [name for name in _STEPS if flags.get('sched') in ('step', 'multistep')]
    shown = {name: flags.get(name) for name in names if learned or not name.startswith('p2be_')}
    if not learned:
        shown |= {name: flags.get(name) for name in names if name in _OF_ANY_MODEL}
    if run.epoch + 1 != flags.get('epochs'):
        shown['epochs'] = flags.get('epochs')
    if isinstance(shown['opt_kwargs'], dict):  # a recipe's mark for other scripts is none of the optimizer's settings
        shown['opt_kwargs'] = {name: value for name, value in shown['opt_kwargs'].items() if name != 'timm_recipe'}
    plain = {name: value for name, value in shown.items() if not _is_off(value) and _is_plain(value)}
    if flags.get('p2be_embedding') or any(map(flags.get, _STARTS)):
        plain.pop('p2be_init', None)  # the table was loaded
    if flags.get('p2be_embedding'):
        plain['p2be_embedding'] = _hub_name(flags['p2be_embedding']) or 'a local folder'
    return plain


def _hub_name(source: str) -> str | None:
    """Return 'org/name@revision' if that is what a source is; a path says nothing to others."""
    try:
        _, revision = split_revision(source.removeprefix('hf-hub:'))
    except FetchError:
        return None
    return source.removeprefix('hf-hub:') if revision else None  # train.py pins ids, so the rest are folders


def _is_off(value: Any) -> bool:
    """Return whether a flag was not given; 0 is a value."""
    return value is None or value is False or value in ('', [], {})


def _is_plain(value: Any) -> bool:
    """Return whether a flag's value is made of numbers and words, which a path is not."""
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float) or (isinstance(value, str) and _WORD.fullmatch(value) is not None)


def _word(value: Any, default: str) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else default
