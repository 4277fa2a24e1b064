"""`timm-p2be publish`: from a run of train.py to a repository, by the real client to a Hub on loopback."""

import argparse
import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import ModelCard, constants
from PIL import Image
from published import contents
from runs import OPEN_FILES, checkpoint, command, rewrite, summary
from safetensors.torch import load_file

import timm_p2be
from timm_p2be import PixelEmbedding
from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.cli import main
from timm_p2be.files import write_json
from timm_p2be.hub.publishing import publish
from timm_p2be.hub.release import Release, prepare
from timm_p2be.hub.repository import RELEASE_FILES
from timm_p2be.hub.run_description import Dataset
from timm_p2be.hub.run_folder import build_model, read_run
from timm_p2be.hub.training_record import check_training_record
from timm_p2be.robustness.corruptions import CORRUPTIONS as CORRUPTION_NAMES
from timm_p2be.robustness.pixel_model import PixelModel
from timm_p2be.training import run as train

pytestmark = OPEN_FILES
ROOT = Path(__file__).parents[1]
REPO = 'tester/net'
NAMED = ('--repo-id', REPO, '--dataset-name', 'Noise')
RELEASE = Release(REPO, dataset=Dataset('Noise'))
FILES = {*RELEASE_FILES} - {'corruptions.png'}  # of a model whose errors under corruptions are not known


@pytest.fixture(scope='module')
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run of two epochs with recovery files, by a recipe."""
    folder = tmp_path_factory.mktemp('runs')
    recipe = folder / 'tiny.yaml'
    recipe.write_text('p2be_smoothness: 0.5\nopt_kwargs: {nesterov: true, timm_recipe: tiny.yaml}\n')
    flags = ('--config', str(recipe), '--epochs', '2', '--recovery-interval', '2', '--mean', '0', '--std', '1')
    assert train.main(command(data, folder / 'run', *flags)) == 0
    return folder / 'run'


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return shutil.copytree(trained, tmp_path / 'a run')


@pytest.fixture
def refused(refused: Callable[..., str]) -> Callable[..., str]:
    """Run `publish` with arguments that fail, and return what it said."""
    return partial(refused, 'publish', silent=False)


def network(run: Path, name: str = 'last.pth.tar') -> torch.nn.Module:
    """The run's network as train.py had it."""
    model = timm.create_model('encoded', backbone='test_resnet', num_bits=8, num_classes=2)
    model.load_state_dict(checkpoint(run / name)['state_dict'])
    return model.eval()


def texts(folder: Path) -> str:
    return ''.join(path.read_text() for path in folder.iterdir() if path.suffix in ('.json', '.md'))


def uploaded(hub: HubServer, repo_id: str = REPO) -> dict[str, bytes]:
    files = hub.repos[repo_id].head.files
    return {path: file.content for path, file in files.items() if path != '.gitattributes'}


def test_a_model_from_run_to_logits(hub, trained, capsys):
    assert main(['publish', str(trained), *NAMED, '--tag', 'v1']) == 0
    said = capsys.readouterr().out
    repo = hub.repos[REPO]
    assert uploaded(hub).keys() == FILES
    assert len(repo.commits) == 2  # the Hub's own first one and ours
    assert repo.tags == {'v1': repo.head.sha}
    assert f'Published {REPO}@v1 at commit {repo.head.sha}: {hub.url}/{REPO}' in said
    for name, file in repo.head.files.items():
        assert name == '.gitattributes' or f'{name}: {len(file.content):,} bytes, sha256 {file.sha256}' in said
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = timm.create_model(f'hf-hub:{REPO}@v1', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(images), network(trained)(images))
    assert model.pretrained_cfg['label_names'] == ['a', 'b']
    config = timm.data.resolve_data_config(model=model)
    assert config['input_size'] == (3, 32, 32)
    assert (tuple(config['mean']), tuple(config['std'])) == ((0.0,) * 3, (1.0,) * 3)


def test_a_dry_run_writes_what_would_be_uploaded_and_asks_nobody(hub, trained, tmp_path):
    assert main(['publish', str(trained), *NAMED, '--tag', 'v1', '--dry-run', str(tmp_path / 'release')]) == 0
    assert not hub.requests
    assert main(['publish', str(trained), *NAMED, '--tag', 'v1', '--dry-run', str(tmp_path / 'release')]) == 0
    assert [*tmp_path.glob('.release*')] == []
    assert main(['publish', str(trained), *NAMED, '--tag', 'v1']) == 0
    assert contents(tmp_path / 'release') == uploaded(hub)
    (tmp_path / 'release/thesis.tex').write_text('precious')
    with pytest.raises(ValueError, match=r"holds \['thesis\.tex'\], which is no release"):
        prepare(trained, tmp_path / 'release', RELEASE)
    assert (tmp_path / 'release/thesis.tex').read_text() == 'precious'


def test_the_record_of_a_run(trained, tmp_path):
    prepare(trained, tmp_path / 'release', RELEASE)
    config = json.loads((tmp_path / 'release/config.json').read_text())
    results = json.loads((tmp_path / 'release/results.json').read_text())
    ours, provenance = config['timm_p2be'], config['timm_p2be']['provenance']
    check_training_record(provenance)
    assert config['architecture'] == provenance['model'] == 'encoded'
    assert config['model_args'].items() >= {'backbone': 'test_resnet', 'num_bits': 8, 'num_classes': 2}.items()
    assert (ours['encoding'], ours['num_bits'], ours['package_version']) == ('p2be', 8, timm_p2be.__version__)
    assert provenance['dataset'] == {'name': 'Noise', 'id': None, 'split': 'train', 'note': None}
    assert provenance['recipe'] == 'tiny.yaml'
    assert (provenance['seed'], provenance['epochs']) == (42, 2)
    assert (provenance['smoothness'], provenance['reduction']) == (0.5, 'mean')
    assert provenance['flags']['opt_kwargs'] == {'nesterov': True}  # without the recipe's mark
    assert provenance['flags'].items() >= {'opt': 'sgdp2be', 'lr': 0.05, 'batch_size': 8, 'img_size': 32}.items()
    top1 = float(summary(trained)[-1]['eval_top1'])
    assert results['clean'] == {
        'error': 100 - top1,
        'images': None,
        'split': 'validation',
        'weights': 'as published',
        'source': 'summary.csv of the run, after epoch 1',
    }
    assert results == {**provenance['results'], 'files': {}}
    codes = timm_p2be.find_embedding(network(trained)).codes().detach()
    levels = [set(code.nonzero().flatten().tolist()) for code in codes]
    unlike = sum(len(level ^ set(range(k * 8 // 256, 8))) for k, level in enumerate(levels))
    assert results['codes'] == {
        'distinct': len(set(map(frozenset, levels))),
        'bits': 2048,
        'unlike_thermometer': unlike,
    }
    assert f'| {100 - top1:.2f} |' in (tmp_path / 'release/README.md').read_text()


def test_how_many_bits_moved_from_the_start(run, tmp_path):
    start = PixelEmbedding('p2be', 8)
    start.save_pretrained(tmp_path / 'start')
    _flags(p2be_embedding=str(tmp_path / 'start'))(run, {})
    prepare(run, tmp_path / 'release', RELEASE)
    moved = int((start.codes() != timm_p2be.find_embedding(network(run)).codes()).sum())
    assert json.loads((tmp_path / 'release/results.json').read_text())['codes']['moved'] == moved > 0
    assert f'| bits moved from its start | `{moved}` of `2048` |' in (tmp_path / 'release/README.md').read_text()
    shutil.rmtree(tmp_path / 'start')
    prepare(run, tmp_path / 'release', RELEASE)
    assert 'moved' not in texts(tmp_path / 'release')


def test_nothing_tells_where_or_by_whom_it_was_trained(trained, data, tmp_path):
    prepare(trained, tmp_path / 'release', RELEASE)
    said = texts(tmp_path / 'release')
    for place in (trained, data, Path.home(), ROOT, trained.parent / 'tiny.yaml'):
        assert str(place) not in said
    assert trained.parent.parent.name not in said
    escaped = shutil.copytree(trained, tmp_path / 'Läufe_1')  # in JSON and in Markdown
    for run, place in ((trained, data), (escaped, escaped)):
        with pytest.raises(ValueError, match=rf'\.(json|md) would publish the path {place}\. Take it out of the notes'):
            prepare(run, tmp_path / 'other', Release(REPO, dataset=Dataset('Noise', note=f'from {place}')))
        assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_dry_run_leaves_nothing(trained, data, tmp_path, monkeypatch, number):
    # the weights are written by then
    monkeypatch.setattr(PixelModel, 'forward', lambda *_: signal.raise_signal(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
    try:
        words = [*NAMED, '--data-dir', str(data), '--dry-run', str(tmp_path / 'release')]
        assert main(['publish', str(trained), *words]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert [*tmp_path.iterdir()] == []


def test_checkpoints_have_their_own_error_and_averaged_weights_go_first(run, tmp_path):
    content = checkpoint(run / 'last.pth.tar')
    content['state_dict_ema'] = {name: tensor * 0.5 for name, tensor in content['state_dict'].items()}
    rewrite(run / 'last.pth.tar', content)
    rows = ['epoch,eval_top1', '0,62.5', '1,12.5', '1,25.0']  # the last row of an epoch counts
    (run / 'summary.csv').write_text('\n'.join(rows) + '\n')
    rewrite(run / 'model_best.pth.tar', checkpoint(run / 'checkpoint-0.pth.tar'))
    for name, error, epochs in (
        ('best', 37.5, 1),
        ('last', 75.0, 2),
        (str(run / 'checkpoint-0.pth.tar'), 37.5, 1),
    ):
        prepare(run, tmp_path / 'release', Release(REPO, checkpoint=name, dataset=Dataset('Noise')))
        provenance = json.loads((tmp_path / 'release/config.json').read_text())['timm_p2be']['provenance']
        assert (provenance['results']['clean']['error'], provenance['epochs']) == (error, epochs)
        assert ('epochs' in provenance['flags']) == (epochs == 1)  # a run that was to be longer
        if name == 'last':
            state = load_file(tmp_path / 'release/model.safetensors')
            assert torch.equal(state['fc.weight'], content['state_dict_ema']['fc.weight'])


@pytest.mark.parametrize('what', [(), ('--half',), ('--embedding-only',)])
def test_the_clean_error_can_be_measured_on_what_is_published(run, data, tmp_path, what):
    (run / 'summary.csv').unlink()
    flags = ('--data-dir', str(data), '--split', 'validation', '--limit', '5', '--dry-run', str(tmp_path / 'release'))
    assert main(['publish', str(run), *NAMED, *what, *flags]) == 0
    config = json.loads((tmp_path / 'release/config.json').read_text())
    clean = config.get('timm_p2be', config)['provenance']['results']['clean']
    model, wrong = network(run), 0
    if '--half' in what:
        model.load_state_dict(load_file(tmp_path / 'release/model.safetensors'))
    files = sorted((data / 'validation').glob('*/*.png'))[:5]  # by class, as timm reads folders
    for file in files:
        pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None]
        wrong += int(model(pixels).argmax()) != 'ab'.index(file.parent.name)
    assert clean == {
        'error': 100 * wrong / 5,
        'images': 5,
        'split': 'validation, first 5 images',
        'weights': 'of the network the table was trained in' if '--embedding-only' in what else 'as published',
        'source': 'measured in float32 by timm-p2be publish',
    }


@pytest.mark.parametrize(
    'flags',
    [
        {'crop_pct': 0.95, 'interpolation': 'bicubic'},  # floor and round differ: 33 and 34
        {'crop_pct': 0.9, 'crop_mode': 'border', 'mean': [0.5, 0.25, 0.75], 'std': [0.25]},
        {'crop_pct': 0.8, 'img_size': None, 'input_size': [3, 24, 40]},
    ],
)
def test_test_images_are_resized_and_cropped_as_by_timm(trained, tmp_path, monkeypatch, flags):
    generator, folder = np.random.default_rng(0), tmp_path / 'data'
    for index, size in enumerate(((40, 52), (64, 33), (32, 32), (20, 30))):
        (folder / 'test' / 'ab'[index % 2]).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(folder / 'test' / 'ab'[index % 2] / f'{index}.png')
    state = timm.create_model('wrn10_2', num_classes=2).state_dict()
    run, output = imitate(trained, tmp_path / 'run', 'wrn10_2', state, **flags), tmp_path / 'release'
    forward, seen = PixelModel.forward, []

    def watched(model: PixelModel, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return forward(model, images)

    monkeypatch.setattr(PixelModel, 'forward', watched)
    assert (
        main(['publish', str(run), *NAMED, '--data-dir', str(folder), '--split', 'test', '--dry-run', str(output)]) == 0
    )
    assert json.loads((output / 'results.json').read_text())['clean']['split'] == 'test'
    model = timm.create_model(f'local-dir:{output}', pretrained=True)
    config = timm.data.resolve_data_config(model=model, use_test_size=True)  # as validate.py
    dataset = timm.data.create_dataset('', root=str(folder), split='test')
    ((images, _),) = timm.data.create_loader(dataset, batch_size=4, use_prefetcher=False, num_workers=0, **config)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ('mean', 'std'))
    assert torch.equal(torch.cat(seen), ((images * std + mean) * 255).round().byte())


def test_a_table_alone(hub, trained, tmp_path):
    words = ('--embedding-only', '--base-model', f'{REPO}@v1', '--tag', 'v2', '--test-images', '8')
    assert main(['publish', str(trained), *NAMED, *words]) == 0
    assert uploaded(hub).keys() == FILES - {'results.json'}
    table = PixelEmbedding.from_pretrained(f'{REPO}@v2')
    assert table.weight is not None
    assert torch.equal(table.weight, timm_p2be.find_embedding(network(trained)).weight)
    assert table.provenance is not None
    assert table.provenance['base_model'] == f'{REPO}@v1'
    assert table.provenance['results']['clean']['images'] == 8
    card = uploaded(hub)['README.md'].decode()
    assert f'base_model: {REPO}\n' in card
    assert f"embedding='{REPO}@v2'" in card


def test_rounding_leaves_latents_and_vectors(trained, tmp_path):
    prepare(trained, tmp_path / 'half', Release(REPO, half=True, dataset=Dataset('Noise')))
    exact, state = network(trained).state_dict(), load_file(tmp_path / 'half/model.safetensors')
    assert state.keys() == exact.keys()
    rounded = {name for name, tensor in state.items() if tensor.dtype == torch.float16}
    assert rounded == {name for name, tensor in exact.items() if tensor.ndim > 1 and 'embedding' not in name}
    assert all(torch.equal(state[name], exact[name]) for name in state.keys() - rounded)
    assert all(torch.equal(state[name], exact[name].half()) for name in rounded)
    clean = json.loads((tmp_path / 'half/results.json').read_text())['clean']
    assert clean['weights'] == 'before rounding to float16'
    model = timm.create_model(f'local-dir:{tmp_path / "half"}', pretrained=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def imitate(trained: Path, folder: Path, model: str, state: dict[str, torch.Tensor], **flags: Any) -> Path:
    """Write a run of another network, with the flags of `trained` where there are no others."""
    folder.mkdir()
    flags = {**yaml.safe_load((trained / 'args.yaml').read_text()), 'model': model, 'model_kwargs': {}, **flags}
    (folder / 'args.yaml').write_text(yaml.safe_dump(flags))
    (folder / 'summary.csv').write_text('epoch,eval_top1\n7,79.69\n')
    content = {'arch': model, 'epoch': 7, 'args': argparse.Namespace(**flags), 'state_dict': state}
    content['label_names'] = ['a', 'b']
    torch.save(content, folder / 'last.pth.tar')
    return folder


@pytest.fixture
def measured_run(trained: Path, tmp_path: Path) -> Path:
    """A run whose weights are those that the committed benchmark files measured."""
    state = load_file(ROOT / 'benchmarks/networks/wrn10_2_p2be.safetensors')
    return imitate(trained, tmp_path / 'run', 'wrn10_2_p2be', state, num_classes=10, dataset='torch/cifar10')


CORRUPTIONS = ROOT / 'benchmarks/results/corruptions/results.json'
ATTACKS = ROOT / 'benchmarks/results/attacks/p2be.attacks.json'
ATTACKS_EPS1 = ROOT / 'benchmarks/results/attacks_eps1/p2be.attacks.json'


def test_benchmarks_of_these_weights(measured_run, tmp_path):
    prepare(measured_run, tmp_path / 'release', Release(REPO, results=[CORRUPTIONS, ATTACKS_EPS1, ATTACKS]))
    results = json.loads((tmp_path / 'release/results.json').read_text())
    assert results['clean']['images'] == 10_000  # all of torchvision's, so before the benchmarks' 2,000 and 1,000
    assert results['clean']['error'] == 20.31
    summary = json.loads(CORRUPTIONS.read_text())['summary']['p2be']
    assert results['corruptions']['mean_corruption_error'] == round(100 * summary['mean_corruption_error'], 4)
    assert results['corruptions']['mce'] is None  # of ImageNet-C only
    assert list(results['corruptions']['by_corruption'])[:15] == list(CORRUPTION_NAMES)
    assert Image.open(tmp_path / 'release/corruptions.png').width == 1200
    assert results['attacks'][-1]['name'] == 'worst case of all'
    assert (results['attacks'][-1]['images'], results['attacks'][-1]['accuracy']) == (1000, 0.0)
    assert {entry['weights'] for entry in (results['corruptions'], *results['attacks'])} == {'as published'}
    assert {entry['eps'] for entry in results['attacks']} == {1, 8}
    assert list(results['files'].values()) == ['results.json', 'p2be.attacks.json', 'p2be.attacks.json']
    card = (tmp_path / 'release/README.md').read_text()
    assert 'The strongest leaves 0.00 % of the images right' in card
    assert 'datasets:\n- uoft-cs/cifar10\n' in card
    assert '](corruptions.png)' in card
    assert {result.dataset_type for result in ModelCard(card).data.eval_results} == {'uoft-cs/cifar10'}


def test_benchmarks_of_rounded_weights_go_before_the_runs_own(measured_run, tmp_path):
    release = Release(REPO, half=True, results=[CORRUPTIONS])
    prepare(measured_run, tmp_path / 'release', release)
    results = json.loads((tmp_path / 'release/results.json').read_text())
    assert results['corruptions']['weights'] == results['clean']['weights'] == 'before rounding to float16'
    content = json.loads(CORRUPTIONS.read_text())
    model = next(model for model in content['config']['models'] if model['name'] == 'p2be')
    weights = json.loads((tmp_path / 'release/config.json').read_text())['timm_p2be']['weights_sha256']
    model |= {'checkpoint_sha256': weights, 'weights_sha256': '0' * 64}
    content['config']['precision'] = 'bfloat16'
    write_json(tmp_path / 'rounded.json', content)
    prepare(measured_run, tmp_path / 'release', Release(REPO, half=True, results=[tmp_path / 'rounded.json']))
    results = json.loads((tmp_path / 'release/results.json').read_text())
    assert results['corruptions']['weights'] == results['clean']['weights'] == 'as published'
    assert (results['clean']['images'], results['clean']['source']) == (2000, 'rounded.json')
    card = (tmp_path / 'release/README.md').read_text()
    assert [line.split(' | ')[0].endswith(', in bfloat16') for line in card.splitlines() if ' error, %, ' in line] == [
        True
    ] * 2
    same = json.loads((tmp_path / 'release/config.json').read_text())['timm_p2be']['weights_sha256']
    assert same == weights


def test_results_of_other_weights_are_refused(trained, tmp_path, refused):
    said = refused(trained, *NAMED, '--results', ATTACKS, '--dry-run', tmp_path / 'release')
    assert 'measured other weights' in said
    assert json.loads(ATTACKS.read_text())['model']['checkpoint_sha256'] in said
    run = read_checkpoint(trained / 'last.pth.tar')
    assert run.raw['epoch'] == 1
    assert subprocess.check_output(['sha256sum', trained / 'last.pth.tar'], text=True).split()[0] in said
    assert not (tmp_path / 'release').exists()


@pytest.mark.parametrize(
    ('file', 'change', 'message'),
    [
        (CORRUPTIONS, lambda content: content.update(complete=False), 'is incomplete. Run the benchmark to its end'),
        (CORRUPTIONS, lambda content: content.update(schema_version=9), 'schema version 9; this version reads'),
        (CORRUPTIONS, lambda content: None, 'is a second file of corruptions'),
        (ATTACKS, lambda content: content['alone']['square'].pop('accuracy'), 'is incomplete. Run the benchmark'),
        (None, None, 'No such file'),
    ],
)
def test_unfit_result_files(measured_run, tmp_path, refused, file, change, message):
    if file:
        content = json.loads(file.read_text())
        change(content)
        write_json(tmp_path / 'changed.json', content)
    files = (tmp_path / 'changed.json', CORRUPTIONS)
    assert message in refused(measured_run, '--repo-id', REPO, '--dry-run', tmp_path / 'out', '--results', *files)


def _nothing(run: Path, content: dict[str, Any]) -> None:
    pass


def _flags(**changes: Any) -> Callable[[Path, dict[str, Any]], Any]:
    def change(run: Path, content: dict[str, Any]) -> None:
        flags = yaml.safe_load((run / 'args.yaml').read_text()) | changes
        (run / 'args.yaml').write_text(yaml.safe_dump(flags))

    return change


def _weight(value: float) -> Callable[[Path, dict[str, Any]], Any]:
    return lambda run, content: content['state_dict']['fc.weight'][0].fill_(value)


UNFIT: list[tuple[Callable[[Path, dict[str, Any]], Any], tuple[str, ...], str]] = [
    (_nothing, ('--checkpoint', 'recovery-*.tar'), 'There are no results for'),
    (lambda run, content: (run / 'summary.csv').write_text('epoch,eval_top1\n1,-5\n'), (), 'error is 105.0; allowed'),
    (lambda run, content: (run / 'args.yaml').unlink(), (), 'Name the output folder of a run of train.py.'),
    (lambda run, content: content.pop('epoch'), (), 'is no training checkpoint'),
    (_weight(float('nan')), (), 'fc.weight holds values that are not finite'),
    (_weight(1e5), ('--half',), 'fc.weight has values beyond the range of float16'),
    (lambda run, content: content.update(arch='resnet18'), (), 'Name one of that run.'),
    (lambda run, content: content['state_dict'].pop('fc.weight'), (), 'does not fit encoded as args.yaml describes it'),
    (lambda run, content: content.update(args=os.getcwd), (), 'it holds Python objects, which are never loaded'),
    (_flags(p2be_freeze=True, p2be_embedding='a/b@v1'), ('--embedding-only',), 'is the one it started from, a/b@v1'),
    (_nothing, ('--repo-id', f'{REPO}@v1'), 'name the repository alone, and the release by --tag'),
    (_nothing, ('--tag', 'main'), "Got the tag 'main', which is the name of the branch"),
    (_nothing, ('--private',), 'Got --dry-run and --private'),
    (_nothing, ('--test-images', '0'), 'Got --test-images 0'),
    (_nothing, ('--split', 'test', '--input-key', 'img'), 'Got flags of clean images, but no such images'),
    (_nothing, ('--embedding-only', '--half'), 'its latents stay float32. Leave out --half'),
    (_nothing, ('--license', 'MIT!'), "Got license 'MIT!'"),
    (_nothing, ('--base-model', '/a/path'), "Got base_model='/a/path'"),
    (_nothing, ('--dataset-id', 'a/b/c'), 'no id of the Hub'),
    (_nothing, ('--dataset-note', 'two\nlines'), 'provenance.dataset: note'),
]


@pytest.mark.parametrize(('spoil', 'flags', 'message'), UNFIT)
def test_unfit_runs_are_refused(run, tmp_path, refused, spoil, flags, message):
    content = checkpoint(run / 'last.pth.tar')
    spoil(run, content)
    rewrite(run / 'last.pth.tar', content)
    words = [str(next(run.glob(word))) if '*' in word else word for word in flags]
    assert message in refused(run, *NAMED, *words, '--dry-run', tmp_path / 'release')
    assert not (tmp_path / 'release').exists()


@pytest.mark.parametrize('source', ['hf-hub', 'local-dir'])
def test_runs_that_started_from_a_release(hub, trained, release, tmp_path, source):
    publish(release, REPO, 'v1')
    name = f'{source}:{REPO}@v1' if source == 'hf-hub' else f'{source}:{release}'
    run = imitate(trained, tmp_path / 'run', name, network(trained).state_dict(), pretrained=True)
    other = Release('tester/tuned', dataset=Dataset('Noise'))
    if source == 'local-dir':
        with pytest.raises(ValueError, match=r'started from other weights \(--pretrained\); name them by --base-model'):
            prepare(run, tmp_path / 'tuned', other)
        other = dataclasses.replace(other, base_model=f'{REPO}@v1')
    prepare(run, tmp_path / 'tuned', other)
    config = json.loads((tmp_path / 'tuned/config.json').read_text())
    assert config['architecture'] == config['timm_p2be']['provenance']['model'] == 'encoded'
    assert config['timm_p2be']['provenance']['base_model'] == f'{REPO}@v1'
    assert str(tmp_path) not in texts(tmp_path / 'tuned')
    assert (tmp_path / 'tuned/model.safetensors').read_bytes() == (release / 'model.safetensors').read_bytes()


@pytest.mark.parametrize(
    ('name', 'base'), [('wrn16_2_p2be', 'wrn16_2_p2be.augmix_cifar10'), ('resnet18', 'timm/resnet18.a1_in1k')]
)
def test_a_fine_tune_says_what_it_is(trained, tmp_path, name, base):
    state = timm.create_model(name, num_classes=2).state_dict()
    run = imitate(trained, tmp_path / 'run', name, state, pretrained=True, p2be_init='normal', num_classes=2)
    prepare(run, tmp_path / 'net', RELEASE)
    config = json.loads((tmp_path / 'net/config.json').read_text())
    provenance = config['timm_p2be']['provenance']
    assert provenance['base_model'] == base
    assert 'p2be_init' not in provenance['flags']  # the table was loaded
    assert not {'description', 'tag', 'label_names', 'paper_ids', 'origin_url'} & config['pretrained_cfg'].keys()
    assert config['label_names'] == ['a', 'b']
    assert (f'base_model: {base}\n' in (tmp_path / 'net/README.md').read_text()) == ('/' in base)


def test_the_size_of_a_network_may_be_in_its_arguments(trained, tmp_path):
    state = timm.create_model('test_vit', num_classes=2, img_size=64).state_dict()
    flags = {'model_kwargs': {'img_size': 64}, 'img_size': None}
    model = build_model(read_run(imitate(trained, tmp_path / 'run', 'test_vit', state, **flags)))
    assert torch.equal(model.pos_embed, state['pos_embed'])


def test_all_that_is_missing_is_named_at_once(run, tmp_path, refused):
    _flags(initial_checkpoint='a.pth')(run, {})
    (run / 'summary.csv').unlink()
    said = refused(run, '--repo-id', REPO, '--dry-run', tmp_path / 'release')
    assert 'Pass --dataset-name' in said
    assert '(--initial-checkpoint); name them by --base-model' in said
    assert 'There are no results for' in said


def test_a_run_on_a_shipped_table_names_it(trained, tmp_path):
    name = 'wrn10_2_p2be.table_m64_digits'
    state = timm.create_model(name, pretrained=True, num_classes=2).state_dict()
    run = imitate(trained, tmp_path / 'run', name, state, pretrained=True, p2be_freeze=True)
    prepare(run, tmp_path / 'net', RELEASE)
    provenance = json.loads((tmp_path / 'net/config.json').read_text())['timm_p2be']['provenance']
    assert (provenance['model'], provenance['base_model']) == ('wrn10_2_p2be', name)
    with pytest.raises(ValueError, match=f'is the one it started from, {name}'):
        prepare(run, tmp_path / 'table', dataclasses.replace(RELEASE, embedding_only=True))


@pytest.mark.parametrize(('name', 'what'), [('wrn10_2_onehot', 'fixed codes'), ('wrn10_2', 'pixel values')])
def test_only_learned_tables_are_published_alone(trained, tmp_path, refused, name, what):
    state = timm.create_model(name, num_classes=2).state_dict()
    run = imitate(trained, tmp_path / 'run', name, state)
    said = refused(run, *NAMED, '--embedding-only', '--dry-run', tmp_path / 'table')
    assert f'{name} reads {what}; only a p2be model has a learned table' in said
    prepare(run, tmp_path / 'release', RELEASE)
    ours = json.loads((tmp_path / 'release/config.json').read_text())['timm_p2be']
    assert ours['encoding'] == ('onehot' if 'onehot' in name else 'rgb')
    assert ours['provenance']['smoothness'] is None
    assert not [flag for flag in ours['provenance']['flags'] if flag.startswith('p2be_')]


def test_adversarial_training_is_published(trained, tmp_path):
    state = timm.create_model('wrn10_2', num_classes=2).state_dict()
    run = imitate(trained, tmp_path / 'run', 'wrn10_2', state, p2be_adversarial='contrain')
    prepare(run, tmp_path / 'release', RELEASE)
    flags = json.loads((tmp_path / 'release/config.json').read_text())['timm_p2be']['provenance']['flags']
    expected = {'p2be_adversarial': 'contrain', 'p2be_attack_eps': 8, 'p2be_attack_steps': 7, 'p2be_alpha': 12.0}
    assert {flag: value for flag, value in flags.items() if flag.startswith('p2be_')} == expected


@pytest.fixture
def release(trained: Path, tmp_path: Path) -> Path:
    prepare(trained, tmp_path / 'release', RELEASE)
    return tmp_path / 'release'


def test_only_the_four_files_are_uploaded_and_a_tag_never_moves(hub, release, trained):
    shutil.copy(trained / 'last.pth.tar', release)
    publish(release, REPO, 'v1')
    assert uploaded(hub).keys() == FILES
    before = copy.deepcopy(uploaded(hub)), len(hub.requests)
    with pytest.raises(ValueError, match=r"tester/net has the tag 'v1' already.*Choose another tag"):
        publish(release, REPO, 'v1')
    assert uploaded(hub) == before[0]
    assert not [path for _, path in hub.requests[before[1] :] if 'preupload' in path or 'commit' in path]


def test_another_kind_of_release_leaves_no_stale_file(hub, release, trained, tmp_path):
    publish(release, REPO, 'v1')
    prepare(trained, tmp_path / 'table', Release(REPO, embedding_only=True, dataset=Dataset('Noise')))
    publish(tmp_path / 'table', REPO, 'v2')
    assert uploaded(hub) == contents(tmp_path / 'table')
    repo = hub.repos[REPO]
    assert len(repo.commits) == 3
    assert 'results.json' in repo.at('v1').files


def test_private_stays_private(hub, release):
    publish(release, REPO, private=True)
    assert hub.repos[REPO].private
    hub.put('tester/open', {})
    with pytest.raises(ValueError, match='tester/open exists and is public'):
        publish(release, 'tester/open', private=True)
    assert uploaded(hub, 'tester/open') == {}


@pytest.mark.parametrize('where', ['PUT /lfs/', 'POST .*/commit/', 'POST .*/tag/'])
def test_an_interrupted_release_is_completed(hub, release, monkeypatch, where):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # the client tries again five times
    hub.fail(where, 503)
    with pytest.raises(ValueError, match='out of order'):
        publish(release, REPO, 'v1')
    assert uploaded(hub) == (contents(release) if 'tag' in where else {})
    hub.heal()
    published = publish(release, REPO, 'v1')
    assert (uploaded(hub), len(hub.repos[REPO].commits)) == (contents(release), 2)
    assert hub.repos[REPO].tags == {'v1': published.oid}


@pytest.mark.parametrize(
    ('match', 'status', 'message'),
    [
        ('POST /api/repos/create', 403, r'The Hub refused tester/net \(403\).*hf auth login'),
        ('POST .*/commit/', 409, r'Somebody changed tester/net meanwhile \(409\)'),
        ('POST /api/validate-yaml', 400, 'a fault for the test'),  # what it has against the metadata
    ],
)
def test_refusals_of_the_hub(hub, release, monkeypatch, caplog, match, status, message):
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    hub.fail(match, status)
    with pytest.raises(ValueError, match=message) as error:
        publish(release, REPO, 'v1')
    assert hub.token not in f'{error.getrepr(style="long", showlocals=False)} {error.value} {caplog.text}'
    if REPO in hub.repos:
        assert uploaded(hub) == {}
        assert hub.repos[REPO].tags == {}


def test_somebody_elses_commit_in_between_is_not_overwritten(hub, release):
    put, answers = hub.put, []

    class Meanwhile(dict):  # type: ignore[type-arg]
        """Commits as soon as the client uploads weights."""

        def __setitem__(self, key: str, value: bytes) -> None:
            super().__setitem__(key, value)
            answers.append(put(REPO, {'notes.txt': b'mine'}))

    hub.lfs = Meanwhile()
    with pytest.raises(ValueError, match=r'Somebody changed tester/net meanwhile \(412\)'):
        publish(release, REPO, 'v1')
    assert answers
    assert uploaded(hub) == {'notes.txt': b'mine'}


def test_a_wrong_or_missing_token(hub, trained, refused, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong_secret')
    said = refused(trained, *NAMED)
    assert '(401)' in said
    assert 'hf_wrong_secret' not in said
    monkeypatch.setenv('HF_TOKEN', 'hf_gehe\u00fcm')
    requests = len(hub.requests)
    said = refused(trained, *NAMED)
    assert 'The token contains spaces, line breaks or other characters no token has' in said
    assert 'gehe' not in said
    assert len(hub.requests) == requests
    monkeypatch.delenv('HF_TOKEN')
    said = refused(trained, *NAMED)
    assert '(401)' in said
    assert 'hf auth login' in said
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert 'HF_HUB_OFFLINE=1' in refused(trained, *NAMED)
    assert hub.repos == {}


def test_only_sound_releases_are_uploaded(hub, release):
    weights = (release / 'model.safetensors').read_bytes()
    (release / 'model.safetensors').write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ValueError, match='sha256'):
        publish(release, REPO)
    (release / 'model.safetensors').write_bytes(weights)
    (release / 'README.md').unlink()
    with pytest.raises(ValueError, match=r'README\.md'):
        publish(release, REPO)
    assert hub.requests == []
