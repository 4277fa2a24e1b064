"""A published table under another network: `embedding` and `freeze_embedding` of the models, flags of train.py."""

import json
import logging
import shutil
from pathlib import Path

import published
import pytest
import timm
import torch
import yaml
from runs import OPEN_FILES, TINY, VIEWS, assert_same_state, build, checkpoint, command
from timm.models import list_models, model_entrypoint, save_for_hf
from torch import Tensor, nn

from timm_p2be.encodings import EmbeddingParameter, PixelEmbedding
from timm_p2be.stem import find_embedding
from timm_p2be.training import run as train
from timm_p2be.training.arguments import parse_args

ROOT = Path(__file__).parents[1]
ID = 'someone/table'
BITS = 16
NET = ('--img-size', '32', '--model', 'encoded', '--model-kwargs', 'backbone=test_resnet')
LEARNED = [name for name in list_models('*_p2be') if model_entrypoint(name).__module__.startswith('timm_p2be.')]
FROZEN = (*VIEWS, '--epochs', '2', '--weight-decay', '0.5', '--model-ema', '--model-ema-decay', '0.5')
FROZEN += ('--amp', '--amp-dtype', 'bfloat16', '--p2be-freeze')
pytestmark = OPEN_FILES


@pytest.fixture(scope='module')
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a published table."""
    folder = tmp_path_factory.mktemp('table')
    published.embedding(folder, BITS)
    return folder


@pytest.fixture(scope='module')
def frozen(data: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run with the flags FROZEN and the table."""
    output = tmp_path_factory.mktemp('frozen') / 'run'
    assert train.main(command(data, output, *FROZEN, '--p2be-embedding', str(table), model=NET)) == 0
    return output


def latents(model: nn.Module) -> Tensor:
    return find_embedding(model).weight


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.detach().numpy().tobytes() == other.detach().numpy().tobytes()


def saved_table(path: Path, key: str = 'state_dict') -> Tensor:
    state = checkpoint(path)[key]
    return next(value for name, value in state.items() if name.endswith('embedding.weight'))


# models


@pytest.mark.parametrize(
    'name', ['encoded', *(n if n.startswith('wrn10') else pytest.param(n, marks=pytest.mark.slow) for n in LEARNED)]
)
def test_every_learned_model_takes_a_table(table, name):
    backbone = {'backbone': 'resnet10t'} if name == 'encoded' else {}
    model = timm.create_model(name, embedding=str(table), freeze_embedding=True, **backbone)
    embedding = find_embedding(model)
    assert same_bytes(latents(model), published.latents(BITS))
    assert isinstance(embedding.weight, EmbeddingParameter)
    assert (embedding.num_bits, embedding.init, embedding.weight.requires_grad) == (BITS, 'normal', False)
    assert embedding.provenance == published.PROVENANCE
    assert latents(timm.create_model(name, embedding=str(table), num_bits=BITS, **backbone)).requires_grad


def test_the_rest_of_the_network_starts_as_without_a_table(table):
    states = []
    for kwargs in ({'embedding': str(table)}, {'num_bits': BITS}):
        torch.manual_seed(0)
        states.append(timm.create_model('wrn10_2_p2be', **kwargs).state_dict())
    differing = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert differing == {'conv1.embedding.weight'}


def test_hub_table_is_fetched_once_and_pinned(hub, tmp_path):
    hub.put(ID, published.embedding(tmp_path / 'one', BITS), tag='v1')
    hub.put(ID, published.embedding(tmp_path / 'two', 8, seed=1))
    for _ in range(2):
        model = timm.create_model('wrn10_2_p2be', embedding=f'{ID}@v1', freeze_embedding=True)
        assert same_bytes(latents(model), published.latents(BITS))
    assert hub.count('GET .*/model.safetensors') == 1
    model = timm.create_model('wrn10_2_p2be', embedding=ID, cache_dir=tmp_path / 'elsewhere')
    assert same_bytes(latents(model), published.latents(8, seed=1))
    assert list((tmp_path / 'elsewhere').rglob('model.safetensors'))


@pytest.mark.parametrize(
    ('name', 'kwargs', 'message'),
    [
        ('wrn10_2_p2be', {'num_bits': 8}, 'Got num_bits=8, but the table .* has codes of 16 bits. Use 16, or leave'),
        ('wrn10_2_p2be', {'embedding_init': 'thermometer'}, "and embedding_init='thermometer': the table is loaded"),
        ('wrn10_2_onehot', {}, "needs a learned table; encoding 'onehot' is fixed. Use 'p2be'"),
        ('encoded', {'backbone': 'wrn10_2', 'encoding': 'thermometer'}, "encoding 'thermometer' is fixed"),
        ('wrn10_2_p2be', {'pretrained': True}, 'whose weights bring their own table. Leave out embedding'),
    ],
)
def test_bad_arguments(table, name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, embedding=str(table), **kwargs)


@pytest.mark.parametrize('embedding', ['', True, 3, b'table'])
def test_what_is_no_name_is_refused(embedding, table, monkeypatch):
    monkeypatch.chdir(table)  # '' is not the current folder
    with pytest.raises(ValueError, match=r"Got embedding=.*; write the path of a folder, 'org/name\[@revision\]'"):
        timm.create_model('wrn10_2_p2be', embedding=embedding)
    assert same_bytes(latents(timm.create_model('wrn10_2_p2be', embedding=table)), published.latents(BITS))


def test_a_table_is_not_lost_on_the_meta_device(table):
    """By a context; by the argument `device`: test_tables.py."""
    with torch.device('meta'), pytest.raises(ValueError, match='the table would be garbage'):
        timm.create_model('encoded', backbone='wrn10_2', embedding=str(table))


def test_fixed_table_is_refused(tmp_path):
    published.embedding(tmp_path / 'table', 8, encoding='onehot')
    with pytest.raises(ValueError, match='holds a fixed onehot table; a p2be model takes a p2be table'):
        timm.create_model('wrn10_2_p2be', embedding=str(tmp_path / 'table'))


@pytest.mark.parametrize('features_only', [False, True])
def test_saved_model_does_not_need_its_table(hub, tmp_path, features_only):
    """timm records `embedding` among the model's arguments; with the weights it is never fetched again."""
    hub.put(ID, published.embedding(tmp_path / 'table', BITS))
    model = timm.create_model('encoded', backbone='wrn10_2', embedding=ID, freeze_embedding=True)
    with torch.no_grad():
        latents(model).add_(0.125)  # as if it had been trained
    save_for_hf(model, tmp_path / 'net', safe_serialization=True)
    assert json.loads((tmp_path / 'net' / 'config.json').read_text())['model_args']['embedding'] == ID
    asked = len(hub.requests)
    loaded = timm.create_model(f'local-dir:{tmp_path}/net', pretrained=True, features_only=features_only)
    assert same_bytes(latents(loaded), latents(model))
    assert not latents(loaded).requires_grad
    assert len(hub.requests) == asked
    fresh = timm.create_model(f'local-dir:{tmp_path}/net', features_only=features_only)
    assert same_bytes(latents(fresh), published.latents(BITS))
    assert len(hub.requests) > asked


# training


def test_frozen_table_does_not_move(data, frozen, output):
    """Through weight decay, moving average, half precision, views and a resumed run, which need not name it again."""
    resumed = ('--resume', str(frozen / 'checkpoint-0.pth.tar'))
    assert train.main(command(data, output, *FROZEN, *resumed, model=NET)) == 0
    assert_same_state(frozen / 'last.pth.tar', output / 'last.pth.tar')
    for key in ('state_dict', 'state_dict_ema'):
        assert same_bytes(saved_table(output / 'last.pth.tar', key), published.latents(BITS)), key
    state = checkpoint(output / 'last.pth.tar')
    names = {name for name in state['state_dict'] if 'num_batches' not in name and 'running' not in name}
    assert sum(len(group['params']) for group in state['optimizer']['param_groups']) == len(names) - 1


def test_run_records_the_commit_and_repeats_it(hub, data, output, tmp_path, monkeypatch, capsys):
    """From args.yaml the same table comes again, even after the branch has moved on; --resume asks nobody."""
    first = hub.put(ID, published.embedding(tmp_path / 'one', BITS))
    monkeypatch.setattr(logging.root, 'handlers', [])  # as in a process of its own
    flags = ('--p2be-embedding', f'hf-hub:{ID}', '--p2be-freeze')
    assert train.main(command(data, output, *flags, '--epochs', '2', model=NET)) == 0
    said = capsys.readouterr().err
    assert 'Validation' in said
    assert 'HTTP' not in said  # a word of the client's library
    assert hub.count('GET .*/model.safetensors') == 1
    hub.put(ID, published.embedding(tmp_path / 'two', 8, seed=1))
    recorded = yaml.safe_load((output / 'args.yaml').read_text())
    assert (recorded['p2be_embedding'], recorded['p2be_freeze']) == (f'{ID}@{first}', True)
    assert recorded['model_kwargs'] == {'backbone': 'test_resnet', 'num_bits': BITS}
    assert recorded['p2be_init'] is None
    args = checkpoint(output / 'last.pth.tar')['args']
    assert (args.p2be_embedding, args.model_kwargs) == (recorded['p2be_embedding'], recorded['model_kwargs'])

    asked = len(hub.requests)
    assert train.main(['-c', str(output / 'args.yaml'), '--experiment', 'again']) == 0
    assert_same_state(output / 'last.pth.tar', output.with_name('again') / 'last.pth.tar')
    assert len(hub.requests) == asked  # a commit in the cache

    shutil.rmtree(tmp_path / 'hub-cache')
    parts = output.with_name('parts')
    resumed = (*flags, '--epochs', '2', '--resume', str(output / 'checkpoint-0.pth.tar'))
    assert train.main(command(data, parts, *resumed, model=NET)) == 0
    assert len(hub.requests) == asked
    assert_same_state(output / 'last.pth.tar', parts / 'last.pth.tar')
    again = yaml.safe_load((parts / 'args.yaml').read_text())
    assert (again['p2be_embedding'], again['model_kwargs']) == (f'{ID}@{first}', recorded['model_kwargs'])
    # without the source: a model of the recorded arguments takes the weights
    model = timm.create_model(
        'encoded', num_classes=2, checkpoint_path=output / 'last.pth.tar', **recorded['model_kwargs']
    )
    assert same_bytes(latents(model), published.latents(BITS))


def test_resume_when_the_folder_is_gone(data, table, output, tmp_path):
    """A table that is trained on: the checkpoint's, not the published one."""
    copy = shutil.copytree(table, tmp_path / 'table')
    flags = ('--p2be-embedding', str(copy), '--p2be-lr', '0.01', '--epochs', '2')
    assert train.main(command(data, output, *flags, model=NET)) == 0
    assert not same_bytes(saved_table(output / 'last.pth.tar'), published.latents(BITS))
    shutil.rmtree(copy)
    parts = output.with_name('parts')
    resumed = ('--resume', str(output / 'checkpoint-0.pth.tar'))
    assert train.main(command(data, parts, *flags, *resumed, model=NET)) == 0
    assert_same_state(output / 'last.pth.tar', parts / 'last.pth.tar')


def test_model_kwargs_say_the_same(data, table, output):
    """As timm's own train.py has them; here they become the flags, with all that follows from these."""
    run = build(*command(data, output, model=(*NET, f'embedding={table}', 'freeze_embedding=True')))
    assert (run.args.p2be_embedding, run.args.p2be_freeze) == (str(table), True)
    assert run.args.model_kwargs == {'backbone': 'test_resnet', 'num_bits': BITS}
    assert same_bytes(latents(run.task.trainable_module), published.latents(BITS))
    assert run.args.p2be_smoothness is None


def test_a_name_that_is_a_table_says_the_same(data, output):
    """Its table is loaded and frozen, whatever start the recipe has, and may be trained on if the command says so."""
    model = ('--img-size', '32', '--model', 'wrn10_2_p2be.table_m64_digits', '--pretrained')
    shipped = PixelEmbedding.from_pretrained(ROOT / 'hub_cards' / 'p2be-m64-digits').weight
    for more, freeze in (((), True), (('--model-kwargs', 'freeze_embedding=False'), False)):
        run = build(*command(data, output, model=(*model, *more)))
        assert same_bytes(latents(run.task.trainable_module), shipped)
        assert latents(run.task.trainable_module).requires_grad != freeze
        assert (run.args.p2be_freeze, run.args.p2be_init, run.args.model_kwargs) == (freeze, None, {'num_bits': 64})
        assert (run.args.p2be_smoothness is None) == freeze
    run = build(*command(data, output, '--p2be-init', 'thermometer', model=model[:-1]))
    assert run.args.p2be_freeze is False
    assert latents(run.task.trainable_module).requires_grad


def test_frozen_random_table_is_an_ablation_that_is_logged(data, output, caplog):
    with caplog.at_level(logging.INFO):
        run = build(*command(data, output, '--p2be-freeze', '--p2be-init', 'thermometer', model=NET))
    assert 0.4 < latents(run.task.trainable_module).abs().mean() < 0.6
    assert 'The table is frozen as it was drawn (--p2be-init thermometer): nothing has been learned.' in caplog.messages
    assert (run.args.p2be_init, run.args.p2be_lr) == ('thermometer', None)


def test_recipe_gives_way(data, table, output, tmp_path, caplog):
    """To the model, which may have no table; to the command line: test_arguments.py."""
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(f'p2be_embedding: {table}\np2be_freeze: true\n')
    with caplog.at_level(logging.INFO):
        for model in (('--model', 'test_resnet', '--img-size', '32'), (*NET, 'encoding=onehot')):
            run = build(*command(data, output, model=model), '-c', str(recipe))
            assert (run.args.p2be_embedding, run.args.p2be_freeze) == (None, False)
    why = "Of the recipe's flags, these have no effect with --model test_resnet: p2be_embedding p2be_freeze."
    assert why in caplog.messages


def test_saved_models_are_known_by_their_config(data, table, output, tmp_path, capsys):
    """Their architecture, and whether they were saved frozen."""
    for name, kwargs in (('wrn10_2_p2be', {'freeze_embedding': True}), ('wrn10_2', {})):
        save_for_hf(timm.create_model(name, **kwargs), tmp_path / name, safe_serialization=True)
    learned, rgb = (('--img-size', '32', '--model', f'local-dir:{tmp_path / n}') for n in ('wrn10_2_p2be', 'wrn10_2'))
    run = build(*command(data, output, '--p2be-embedding', str(table), model=learned))
    assert same_bytes(latents(run.task.trainable_module), published.latents(BITS))
    for flags, model, message in (
        (('--p2be-sched', 'follow'), learned, '--p2be-sched has no effect with --p2be-freeze'),
        (('--p2be-embedding', str(table)), rgb, '--p2be-embedding has no effect with --model'),
    ):
        with pytest.raises(SystemExit):
            parse_args(command(data, output, *flags, model=model))
        assert message in capsys.readouterr().err


def test_a_table_that_cannot_be_fetched_stops_the_run_before_anything_is_written(data, output, capsys):
    assert train.main(command(data, output, '--p2be-embedding', 'nobody/nothing', model=NET)) == 2
    assert 'HF_HUB_OFFLINE' in capsys.readouterr().err
    assert not output.parent.exists()


def test_resume_with_another_table_is_refused(data, table, frozen, straight, output, capsys):
    source, fresh = ('--p2be-embedding', str(table)), straight
    for run, flags, message in (
        (frozen, ('--p2be-embedding', 'a/b', '--p2be-freeze'), f'started from {table}. Leave the flag as it was.'),
        (fresh, source, 'which started afresh. Leave the flag out.'),
        (frozen, source, 'same freezing: --p2be-freeze'),
        (fresh, ('--p2be-freeze',), 'same freezing: --p2be-freeze'),
    ):
        model = NET if run == frozen else TINY
        words = command(data, output.with_name('x'), *flags, '--resume', str(run / 'last.pth.tar'), model=model)
        assert train.main(words) == 2
        assert message in capsys.readouterr().err
        assert not output.with_name('x').exists()
    thawed = ('--resume', str(frozen / 'last.pth.tar'), '--no-resume-opt', '--epochs', '3', '--p2be-lr', '0.01')
    assert train.main(command(data, output.with_name('x'), *thawed, model=NET)) == 0
    assert not same_bytes(saved_table(output.with_name('x') / 'last.pth.tar'), published.latents(BITS))
