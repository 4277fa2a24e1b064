"""Command line of train.py: timm's defaults, recipes, and an error for every flag that would have no effect."""

import shlex
from pathlib import Path

import pytest
import yaml

from timm_p2be.training.arguments import build_parser, parse_args

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / 'train_scripts' / 'recipes'


def _error(capsys: pytest.CaptureFixture[str], *words: str, data: bool = True) -> str:
    """Return the message of a command line that must be refused."""
    with pytest.raises(SystemExit) as exit_info:
        parse_args([*(['--data-dir', 'data'] if data else []), *words])
    assert exit_info.value.code == 2
    return capsys.readouterr().err.split('train.py: error: ')[1]


def test_every_flag_is_read_somewhere() -> None:
    """timm reads some for us: resolve_data_config, create_model, optimizer_kwargs and scheduler_kwargs take them."""
    sources = [
        path for path in (ROOT / 'timm_p2be' / 'training').glob('*.py') if path.stem not in ('flags', 'conflicts')
    ]
    text = '\n'.join(path.read_text(encoding='utf-8') for path in sources)
    by_timm = {'mean', 'std', 'img_size', 'crop_pct', 'interpolation', 'opt_eps', 'opt_betas', 'momentum'}
    by_timm |= {'weight_decay', 'layer_decay', 'sched', 'min_lr', 'warmup_lr', 'warmup_epochs', 'warmup_prefix'}
    by_timm |= {'cooldown_epochs', 'decay_milestones', 'decay_epochs', 'decay_rate', 'drop', 'drop_path'}
    for action in build_parser()._actions:
        if action.dest not in by_timm | {'help', 'config'}:
            assert f'args.{action.dest}' in text, action.dest


def test_command_line_wins_over_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text('data_dir: d\nlr: 1e-3\nbatch_size: 4\nopt_kwargs:\n  nesterov: false\nchannels_last: true\n')
    parsed = parse_args(['-c', str(recipe), '--batch-size', '6'])
    args = parsed.args
    assert (args.lr, args.batch_size, args.opt_kwargs, args.channels_last) == (1e-3, 6, {'nesterov': False}, True)
    assert parsed.explicit == {'config', 'batch_size'}


@pytest.mark.parametrize('recipe', sorted(RECIPES.glob('*.yaml')), ids=lambda path: path.stem)
def test_recipes_parse_without_notes(recipe: Path) -> None:
    parsed = parse_args(['-c', str(recipe), '--data-dir', 'data'])
    assert parsed.notes == []
    for key, value in yaml.safe_load(recipe.read_text(encoding='utf-8')).items():
        assert getattr(parsed.args, key) == value


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('lr: fast', r"argument --lr: invalid float value: 'fast'"),
        ('dist_bn: never', 'argument --dist-bn: invalid choice'),
        ('amp: 1', 'amp: 1 is not true or false'),
        ('lr: true', 'lr: True is no value for it'),
        ('learning_rate: 1', "sets ['learning_rate'], which are no flags"),
        ('- lr', 'holds no flags'),
        ('lr: [', 'cannot be read as YAML'),
        ('a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n', 'alias'),
        ('a: &a [*a]', 'alias'),
        ('[' * 5000, 'cannot be read as YAML'),
        ('epochs: ' + '[' * 60 + ']' * 60, 'nested'),
        ('epochs: 2001-13-45', 'cannot be read as YAML'),
        ('? [a]\n: 1', 'cannot be read as YAML'),
        ('\x00', 'cannot be read as YAML'),
        ('a' * 2**21, 'more than'),
    ],
    ids=range(15),
)
def test_bad_recipes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(text)
    error = _error(capsys, '-c', str(recipe))
    assert message in error
    assert str(recipe) in error


def test_a_recipe_is_found_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['--data-dir', 'data']
    named, given = parse_args(['-c', 'cifar10', *words]), parse_args(['-c', str(RECIPES / 'cifar10.yaml'), *words])
    assert {**vars(named.args), 'config': None} == {**vars(given.args), 'config': None}
    assert named.args.config == 'cifar10.yaml'  # what cards say
    error = _error(capsys, '-c', 'cifar11')
    assert 'cannot read the recipe cifar11' in error
    assert 'Did you mean cifar10?' in error
    assert "--opt-kwargs: got 'nesterov'; write KEY=VALUE" in _error(capsys, *words, '--opt-kwargs', 'nesterov')
    assert all(path.stem in error for path in RECIPES.glob('*.yaml'))


NO_EFFECT = [
    '--aa original --no-aug',
    '--p2be-augmix 3 --no-aug',
    '--p2be-crop-padding 0 --no-aug',
    '--aug-splits 3 --jsd-loss --no-aug',
    '--scale 0.5 1 --p2be-crop-padding 4',
    '--train-crop-mode rrc --p2be-crop-padding 4',
    '--color-jitter 0.4 --p2be-augmix 3',
    '--aa original --p2be-augmix 3',
    '--p2be-alpha 3',
    '--pretrained-path f.pth',
    '--model-ema-decay 0.9',
    '--amp-dtype bfloat16',
    '--remode rand',
    '--lr-base 0.2 --lr 0.1',
    '--p2be-min-lr 0.1 --p2be-sched constant',
    '--p2be-lr 0.1 --p2be-freeze',
    '--p2be-sched follow --model-kwargs freeze_embedding=True',
    '--p2be-reduction sum --p2be-freeze',
    '--p2be-init normal --p2be-embedding a/b',
    '--p2be-init normal --model-kwargs embedding=a/b',
    '--p2be-embedding a/b --pretrained',
    '--p2be-embedding a/b --initial-checkpoint f.pth',
    '--p2be-init normal --pretrained',
    '--p2be-init normal --model-kwargs embedding_init=thermometer',
    '--p2be-lr 0.1 --model wrn10_2',
    '--p2be-freeze --model wrn10_2',
    '--p2be-embedding a/b --model wrn10_2_onehot',
    '--p2be-init normal --model encoded --model-kwargs encoding=thermometer',
    '--p2be-lr 1 --opt sgd',
    '--p2be-attack-eps 4',
    '--p2be-attack-step-size 1 --model wrn10_2',
    '--p2be-alpha 3 --p2be-adversarial advtrain',
    '--aug-splits 3 --jsd-loss --p2be-adversarial contrain',
    '--p2be-augmix 3 --p2be-adversarial contrain',
    '--p2be-augmix-device batch',
    '--worker-seeding part --data-on-device',
]
P2BE = ('--model', 'wrn10_2_p2be', '--opt', 'sgdp2be')


@pytest.mark.parametrize('words', NO_EFFECT)
def test_a_flag_without_effect_is_an_error(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = words.split()[0]
    assert f'{first} has no effect with' in _error(capsys, *P2BE, *shlex.split(words))


def test_recipe_and_command_line_name_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / 'recipe.yaml'
    words = ['-c', str(recipe), '--data-dir', 'data', *P2BE]
    recipe.write_text('p2be_init: thermometer\np2be_lr: 0.1\n')
    parsed = parse_args([*words, '--p2be-embedding', 'a/b', '--p2be-freeze'])
    assert (parsed.args.p2be_init, parsed.args.p2be_lr) == (None, None)
    assert [note.split(': ')[-1] for note in parsed.notes] == ['p2be_lr.', 'p2be_init.']
    recipe.write_text('p2be_embedding: a/b\np2be_freeze: true\n')
    parsed = parse_args([*words, '--p2be-init', 'thermometer'])
    assert (parsed.args.p2be_embedding, parsed.args.p2be_init, parsed.args.p2be_freeze) == (None, 'thermometer', True)
    assert parse_args([*words, '--pretrained']).args.p2be_embedding is None
    assert '--p2be-lr has no effect with --p2be-freeze' in _error(capsys, *words, '--p2be-lr', '0.1', data=False)
    recipe.write_text('model_kwargs:\n  embedding: a/b\n  freeze_embedding: true\n')
    parsed = parse_args([*words, '--p2be-embedding', 'c/d'])
    assert (parsed.args.p2be_embedding, parsed.args.p2be_freeze, parsed.args.model_kwargs) == ('c/d', True, {})
    parsed = parse_args([*words, '--model-kwargs', 'embedding=None'])  # as in Python: no table
    assert (parsed.args.p2be_embedding, parsed.args.p2be_freeze, parsed.args.model_kwargs) == (None, False, {})


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ("--p2be-embedding ''", 'names no table'),
        ('--aug-splits 1', 'at least 2'),
        ('--aug-splits 3', 'go together'),
        ('--jsd-loss', 'go together'),
        ('--jsd-loss --aug-splits 3 --color-jitter 0', 'nothing makes the views differ'),
        ('--epochs 0', '--epochs 0: must be at least 1'),
        ('--amp --model-dtype bfloat16', '--amp needs float32 weights'),
        ('--p2be-adversarial contrain --model-dtype float16', '--p2be-adversarial needs float32 weights'),
        ('--p2be-adversarial contrain --p2be-attack-eps 0', '--p2be-attack-eps 0: must be at least 1'),
        ('--p2be-adversarial advtrain --p2be-attack-steps 0', '--p2be-attack-steps 0: must be at least 1'),
        ('--dataset cifar10', 'torch/..., hfds/'),
        ('--min-lr nan', '--min-lr nan'),
        ('--model-ema --model-ema-decay 2', '--model-ema-decay 2'),
        ('--lr -1', '--lr -1'),
        ('--lr inf', '--lr inf'),
        ('--max-bad-samples -1', '--max-bad-samples -1'),
        ('--batchsize 4', 'did you mean --batch-size for --batchsize?'),
        ('--mixup 0.2', 'timm-p2be run train.py'),
        ('--data-on-device --dataset wds/a', '--dataset wds/a is a stream; read it by hfds/'),
        ('--data-on-device --dataset hfids/a', '--dataset hfids/a is a stream'),
        ('--data-on-device --no-aug', 'by --p2be-crop-padding only: 4 for CIFAR, 0 for no crop'),
        ('--data-on-device --p2be-augmix 3 --p2be-augmix-device workers', 'leave out --p2be-augmix-device workers'),
        ('--data-on-device --p2be-crop-padding 4', 'not by --color-jitter 0.4; set --color-jitter 0'),
        ('--data-on-device --p2be-crop-padding 4 --aa rand-m9', 'not by --aa rand-m9 and --color-jitter'),
    ],
)
def test_wrong_values(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in _error(capsys, *shlex.split(words))


def test_data_dir_is_needed_for_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert '--data-dir is missing' in _error(capsys, data=False)
    assert '--data-dir is missing' in _error(capsys, '--dataset', 'torch/cifar10', data=False)
    assert parse_args(['--dataset', 'hfds/user/name']).args.data_dir is None


def test_data_dir_must_not_be_the_hfds_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """timm would write its cache there and read it as data afterwards."""
    words = ['--dataset', f'hfds/{tmp_path}', '--data-dir', str(tmp_path / 'cache')]
    assert 'Leave --data-dir out' in _error(capsys, *words, data=False)
    assert parse_args([*words[:2], '--data-dir', str(tmp_path.parent / 'cache')])


def test_command_line_voids_what_it_replaces_in_a_recipe() -> None:
    recipe = ['-c', str(RECIPES / 'cifar10.yaml'), '--data-dir', 'data']
    plain = parse_args([*recipe, '--no-aug'])
    assert (plain.args.p2be_augmix, plain.args.aug_splits, plain.args.jsd_loss) == (None, 0, False)
    assert 'p2be_augmix' in plain.notes[0]
    other = parse_args([*recipe, '--aa', 'rand-m9'])
    assert (other.args.p2be_augmix, other.args.aa, other.args.aug_splits) == (None, 'rand-m9', 3)
    adversarial = parse_args([*recipe, '--p2be-adversarial', 'contrain'])
    assert (adversarial.args.p2be_augmix, adversarial.args.aug_splits, adversarial.args.jsd_loss) == (None, 0, False)
    assert adversarial.args.p2be_alpha == 12
    assert 'with --p2be-adversarial contrain: p2be_augmix' in adversarial.notes[0]
    adam = parse_args([*recipe, '--opt', 'adamwp2be', '--opt-kwargs', 'filter_bias_and_bn=False'])
    assert adam.args.opt_kwargs == {'filter_bias_and_bn': False}
