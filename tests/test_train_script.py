"""train.py end to end on 24 images: output, data sources, precision, objective, errors before anything is written."""

import itertools
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from forks import run_ranks
from runs import CPU, OPEN_FILES, TINY, VIEWS, assert_same_state, build, checkpoint, command, summary, write_images
from torch import Tensor
from torch.utils.data import DataLoader

from timm_p2be.data import MultiView
from timm_p2be.stem import find_embedding
from timm_p2be.training import run as train
from timm_p2be.training.epoch import Trainer

RGB = ('--model', 'test_resnet', '--img-size', '32')
pytestmark = OPEN_FILES


def batch(data: Path, output: Path, *flags: str, model: tuple[str, ...] = TINY) -> Tensor:
    """Return the images of a run's first batch."""
    return next(iter(build(*command(data, output, *flags, model=model)).loaders.training))[0]


def weights(output: Path) -> dict[str, Tensor]:
    return checkpoint(output / 'last.pth.tar')['state_dict']


def test_a_part_of_the_images_is_evenly_spaced(tmp_path, output):
    """Image folders are sorted by class, so that the first half would be one class."""
    data = write_images(tmp_path / 'data')
    loaders = build(*command(data, output, '--train-num-samples', '8', '--val-num-samples', '4')).loaders
    for loader, size in ((loaders.training, 8), (loaders.validation, 4)):
        labels = [label for _, batch in loader for label in batch.tolist()]
        assert sorted(labels) == [0] * (size // 2) + [1] * (size // 2)
    for flag, count in (('--train-num-samples', 25), ('--val-num-samples', 0)):
        with pytest.raises(ValueError, match=f'Got {count} images of split .*; take 1 to all'):
            build(*command(data, output, flag, str(count)))


def handlers() -> list[Any]:
    return [*(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)), *logging.root.handlers]


def test_output_folder_is_timms(data, output):
    """Signal and log handlers are left as found: quickstart.py calls main twice and goes on afterwards."""
    before = handlers()
    assert train.main(command(data, output, *VIEWS, '--epochs', '2', '--checkpoint-hist', '1')) == 0
    assert handlers() == before
    files = sorted(path.name for path in output.iterdir() if path.suffix != '.sha256')
    best = checkpoint(output / 'model_best.pth.tar')['epoch']
    names = ['args.yaml', f'checkpoint-{best}.pth.tar', 'curves.png', 'last.pth.tar', 'model_best.pth.tar']
    assert files == [*names, 'summary.csv']
    assert len([*output.glob('*.sha256')]) == 3
    rows = summary(output)
    columns = ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr']
    assert [key for key in rows[0] if key in columns] == columns
    for row in rows:
        parts = [float(row[f'train_{name}']) for name in ('loss', 'ce', 'jsd', 'smoothness')]
        assert parts[0] == pytest.approx(parts[1] + 12 * parts[2] + parts[3], rel=1e-5)
    state = checkpoint(output / 'last.pth.tar')
    own = {'metric', 'saver', 'label_names'}
    assert {'epoch', 'arch', 'state_dict', 'optimizer', 'version', 'args'} | own == state.keys()
    assert (state['epoch'], state['arch']) == (1, 'encoded')
    model = timm.create_model(
        'encoded', backbone='test_resnet', num_bits=8, num_classes=2, checkpoint_path=str(output / 'last.pth.tar')
    )
    assert find_embedding(model).weight is not None


def test_args_yaml_repeats_the_run(data, output):
    assert train.main(command(data, output, '--lr-base', '0.3', opt=('--opt', 'sgdp2be'))) == 0
    flags = yaml.safe_load((output / 'args.yaml').read_text())
    assert flags['p2be_lr'] == 1e-4
    assert flags['lr'] is None
    again = output.with_name('again')
    assert train.main(['-c', str(output / 'args.yaml'), '--experiment', 'again']) == 0
    assert_same_state(output / 'last.pth.tar', again / 'last.pth.tar')
    assert summary(output) == summary(again)


def test_recipe_flags_of_the_table_are_dropped_without_one(data, output, tmp_path, caplog):
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text('p2be_lr: 0.01\np2be_smoothness: 2.0\np2be_init: thermometer\n')
    with caplog.at_level(logging.INFO):
        assert train.main([*command(data, output, model=RGB), '-c', str(recipe)]) == 0
    assert sum("Of the recipe's flags" in message for message in caplog.messages) == 1
    flags = yaml.safe_load((output / 'args.yaml').read_text())
    assert all(flags[name] is None for name in ('p2be_lr', 'p2be_smoothness', 'p2be_init', 'p2be_sched'))
    assert float(summary(output)[0]['train_smoothness']) == 0
    assert any('Total batch 8: 1 processes * 8 images * 1 batches' in message for message in caplog.messages)


ERRORS = [
    (('--model', 'resnet50_p2b'), '', 'unknown model resnet50_p2be'),
    ((*TINY[:-1], 'num_bits=0'), '', 'num_bits'),
    ((*TINY[:-1], 'color=3'), '', 'Cannot create encoded'),
    (TINY, '--p2be-min-lr 1', 'min_lr'),
    (TINY, '--p2be-augmix 11', 'severity=11'),
    (TINY, '--opt-kwargs color=3', '--opt-kwargs color'),
    (TINY, '--opt-kwargs embedding_lr=3', '--opt-kwargs --p2be-'),
    (TINY, '--opt-kwargs smoothness=2', 'smoothness=2 second time --p2be-smoothness 1.0'),
    (TINY, '--opt nonsense', 'nonsense'),
    (TINY, '--num-classes 1', '2 classes --num-classes'),
    (TINY, '--batch-size 25', '24 training images --batch-size'),
    (TINY, '--val-split testing', "no folder 'testing'"),
    (TINY, '--data-dir nowhere', '--data-dir nowhere no such folder'),
    (TINY, '--mean 0 0', '--mean each channel'),
    (TINY, '--in-chans 4', '--input-img-mode RGBA'),
    (TINY, '--pretrained', '--pretrained --pretrained-path'),
    (TINY, '--pretrained --pretrained-path nowhere', '--pretrained-path nowhere no such file'),
    (TINY, '--initial-checkpoint nowhere', '--initial-checkpoint nowhere no such file'),
    (TINY, '--torchcompile nonsense', '--torchcompile nonsense'),
    (TINY, '--sync-bn', '--sync-bn GPUs'),
    (TINY, '--dataset torch/cifar10', '--dataset-download'),
    (('--model', 'test_vit', '--img-size', '32'), '--grad-checkpointing --drop 0.5 --in-chans 5', '5 image channels'),
]


@pytest.mark.parametrize(('model', 'flags', 'words'), ERRORS)
def test_errors_come_before_anything_is_written(data, output, capsys, model, flags, words):
    assert train.main(command(data, output, *flags.split(), model=model)) == 2
    said = capsys.readouterr().err
    assert said.startswith('train.py: error: ') or '\ntrain.py: error: ' in said
    assert not [word for word in words.split() if word not in said]
    assert not output.parent.exists()


def test_cuda_is_used_only_where_it_is(data, output, capsys):
    if torch.cuda.is_available():
        pytest.skip('has CUDA')
    words = [word for word in command(data, output) if word not in CPU]
    run = build(*words)
    assert run.args.device == 'cpu'
    assert train.main([*words, '--device', 'cuda']) == 2
    assert '--device cuda, but this PyTorch finds no CUDA device' in capsys.readouterr().err


def test_flat_folder_only_without_validation(data, output):
    """timm would take the same images for training and validation."""
    flat = data / 'train'
    assert train.main(command(flat, output)) == 2
    assert train.main(command(flat, output, '--val-split', '')) == 0
    assert 'eval_top1' not in summary(output)[0]
    assert checkpoint(output / 'last.pth.tar')['args'].eval_metric == 'loss'  # which picks the best


def test_folders_and_weights_that_do_not_fit(tmp_path, output, capsys):
    folder, other = write_images(tmp_path / 'data'), tmp_path / 'other.pth'
    torch.save({'state_dict': {'x': torch.zeros(1)}}, other)
    assert train.main(command(folder, output, '--initial-checkpoint', str(other))) == 2
    assert 'other.pth hold weights of this model?' in capsys.readouterr().err
    for split in ('train', 'validation'):
        (tmp_path / 'empty' / split).mkdir(parents=True)
    assert train.main(command(tmp_path / 'empty', output)) == 2
    assert 'Found 0 images' in capsys.readouterr().err
    (folder / 'validation' / 'a').rename(folder / 'validation' / 'c')
    assert train.main(command(folder, output, '--num-classes', '3')) == 2
    assert 'different classes (a, c' in capsys.readouterr().err


def test_classes_are_counted_in_the_data(data, output, caplog):
    words = command(data, output, model=('--model', 'wrn10_2_p2be', '--img-size', '32'))
    at = words.index('--num-classes')
    del words[at : at + 2]
    with caplog.at_level(logging.INFO):
        assert train.main(words) == 0
    assert '--num-classes 2: the data has the classes a, b.' in caplog.text
    assert weights(output)['fc.bias'].shape == (2,)
    assert checkpoint(output / 'last.pth.tar')['label_names'] == ['a', 'b']


def test_validation_may_be_rarer_and_the_start_later(data, output):
    flags = ('--epochs', '5', '--start-epoch', '2', '--val-interval', '2', '--sched-on-updates')
    assert train.main(command(data, output, *flags)) == 0
    rows = summary(output)
    assert [row['epoch'] for row in rows] == ['3', '4']
    assert float(rows[-1]['lr']) == 0
    assert not (output / 'checkpoint-2.pth.tar').exists()
    run = build(*command(data, output.with_name('other'), '--epochs', '4', '--start-epoch', '3'))
    run.schedules.start(3, 0)
    assert run.optimizer.param_groups[0]['lr'] < 0.05


def test_img_size_sets_the_data_of_convolutional_networks(data, output):
    assert batch(data, output, '--img-size', '24').shape == (8, 3, 24, 24)
    assert build(*command(data, output, '--img-size', '64', model=('--model', 'test_vit'))).loaders


@pytest.mark.parametrize('flags', [('--in-chans', '1', '--img-size', '32'), ('--input-size', '1', '32', '32')])
def test_gray_images(data, output, flags):
    model = ('--model', 'encoded', '--model-kwargs', 'backbone=test_resnet', 'num_bits=8')
    assert batch(data, output, *VIEWS, '--mean', '0', '--std', '1', *flags, model=model).shape[:2] == (24, 1)


def test_transforms_follow_the_flags(data, output):
    def transform(*flags: str) -> Any:
        return build(*command(data, output, *flags)).loaders.training.dataset.transform

    assert 'RandomCrop(' in repr(transform('--p2be-crop-padding', '4'))
    assert 'ColorJitter' in repr(transform('--p2be-crop-padding', '4'))
    assert 'AugMix(severity=3.0' in repr(transform('--p2be-augmix', '3', '--train-crop-mode', 'rkrc'))
    assert 'ColorJitter' not in repr(transform('--p2be-augmix', '3'))
    assert 'ResizeKeepRatio' in repr(transform('--p2be-augmix', '3', '--train-crop-mode', 'rkrc'))
    assert 'RandomVerticalFlip' in repr(transform('--vflip', '0.5'))
    assert 'Random' not in repr(transform('--no-aug'))
    views = transform('--aug-splits', '2', '--jsd-loss', '--aa', 'augmix-m3')
    assert isinstance(views, MultiView)
    assert 'AugMixAugment' in repr(views)


def test_random_erasing_works_on_views(data, output):
    images = batch(data, output, *VIEWS, '--reprob', '1', '--remode', 'const', '--recount', '2')
    assert ((images == 0).all(dim=1).flatten(1).sum(dim=1) > 0).all()


def test_table_starts_as_p2be_init_says(data, output):
    def latents(*flags: str) -> Tensor:
        weight = find_embedding(build(*command(data, output, *flags)).task.trainable_module).weight
        return weight

    assert 0.4 < latents('--p2be-init', 'thermometer').abs().mean() < 0.6
    assert latents('--p2be-init', 'normal').std() > 0.9
    words = [*TINY, 'embedding_init=thermometer']
    run = build(*command(data, output, model=words))
    assert run.args.p2be_init == 'thermometer'
    assert find_embedding(run.task.trainable_module).weight.abs().mean() < 0.6  # type: ignore[union-attr]


@pytest.mark.parametrize('sched', ['cosine', 'follow'])
def test_schedules_of_the_table(data, output, sched):
    flags = ['--epochs', '2', '--p2be-sched', sched, '--p2be-lr', '0.01', '--min-lr', '0.001']
    assert train.main(command(data, output, *flags)) == 0
    rates = [float(row['train_lr_embedding']) for row in summary(output)]
    # train.py writes the rate after the last update of an epoch, before the epoch's step
    expected = {'cosine': [(0.01 + 1e-6) / 2, 1e-6], 'follow': [0.01, 0.0055]}
    assert rates == pytest.approx(expected[sched])


def test_pretrained_path_adapts_the_head(data, straight, output):
    saved = weights(straight)
    words = ('--pretrained', '--pretrained-path', str(straight / 'last.pth.tar'), '--num-classes', '5')
    tuned = build(*command(data, output, *words)).task.trainable_module.state_dict()
    for name in saved:
        same = tuned[name].shape == saved[name].shape and torch.equal(tuned[name], saved[name])
        assert same != name.startswith('fc.'), name


@pytest.fixture(scope='module')
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights after a run with views."""
    output = tmp_path_factory.mktemp('plain') / 'run'
    assert train.main(command(data, output, *VIEWS)) == 0
    return weights(output)


@pytest.mark.parametrize(
    'flags', ['--channels-last --grad-checkpointing', pytest.param('--torchcompile', marks=pytest.mark.slow)]
)
def test_speed_options_leave_the_function(data, plain, output, flags):
    assert train.main(command(data, output, *VIEWS, *flags.split())) == 0
    ours = weights(output)
    assert ours.keys() == plain.keys()
    torch.testing.assert_close(ours['fc.weight'], plain['fc.weight'], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    'flags',
    [
        '--amp --amp-dtype bfloat16',
        '--model-dtype bfloat16',
        '--clip-grad 0.1',
        '--clip-grad 0.1 --clip-mode value',
        '--layer-decay 0.5',
    ],
)
def test_other_options_change_the_result(data, plain, output, flags):
    assert train.main(command(data, output, *VIEWS, *flags.split())) == 0
    ours = weights(output)
    assert ours.keys() == plain.keys()
    table = next(name for name in ours if name.endswith('embedding.weight'))
    assert ours[table].dtype == torch.float32
    assert not torch.equal(ours['fc.weight'], plain['fc.weight'])
    assert (ours['fc.weight'].dtype == torch.bfloat16) == ('--model-dtype' in flags)


def test_grad_accumulation_equals_a_big_batch(data, output):
    """With BatchNorm in eval mode, which otherwise sees the parts of a batch."""

    def update(*flags: str) -> dict[str, Tensor]:
        words = [*flags, '--no-aug', '--smoothing', '0', '--clip-grad', '1']
        run = build(*command(data, output, *words, opt=('--opt', 'sgd', '--lr', '0.1')))
        run.task.eval()
        loader = DataLoader(run.loaders.training.dataset, 16 // run.args.grad_accum_steps)
        batches = [
            (images.float() / 255, labels) for images, labels in itertools.islice(loader, run.args.grad_accum_steps)
        ]
        for index, (images, labels) in enumerate(batches):
            run.trainer._batch(images, labels, len(batches), update=index + 1 == len(batches))
        return run.task.trainable_module.state_dict()

    small, big = update('--grad-accum-steps', '2'), update()
    for name in small:
        torch.testing.assert_close(small[name], big[name], rtol=1e-4, atol=1e-6)


def test_last_update_of_an_epoch_takes_the_rest(data, output, monkeypatch):
    accumulated, batch = [], Trainer._batch
    monkeypatch.setattr(Trainer, '_batch', lambda *args: accumulated.append(args[3:]) or batch(*args))
    assert train.main(command(data, output, '--grad-accum-steps', '2', '--sched-on-updates', '--epochs', '2')) == 0
    assert float(summary(output)[1]['lr']) == 0  # 3 batches are 2 updates, so the cosine ends after 4
    assert accumulated == [(2, False), (2, True), (1, True)] * 2  # the loss is divided by as many


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(data, output, monkeypatch, capsys, caplog):
    with caplog.at_level(logging.INFO):
        assert train.main(command(data, output, '--log-interval', '2')) == 0
    lines = [message for message in caplog.messages if message.startswith('Train: ')]
    assert len(lines) == 2  # updates 2 and 3
    assert all(word in lines[0] for word in ('loss', 'ce', 'jsd', 'smoothness', 'img/s', 'epoch ends in'))
    assert 'epoch 0:' not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    assert train.main(command(data, output, '--experiment', 'bar')) == 0
    err = capsys.readouterr().err
    assert 'epoch 0:' in err
    assert 'img/s' in err


@pytest.fixture(scope='module')
def parquet(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The images as a parquet file for each split, with columns `img` and `fine`."""
    datasets = pytest.importorskip('datasets')
    folder = tmp_path_factory.mktemp('parquet')
    features = datasets.Features({'img': datasets.Image(), 'fine': datasets.ClassLabel(names=['a', 'b'])})
    for split in ('train', 'validation'):
        files = sorted((data / split).glob('*/*.png'), key=lambda path: path.stem)
        rows = {
            'img': [{'bytes': path.read_bytes(), 'path': None} for path in files],
            'fine': [path.parent.name for path in files],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f'{split}-0.parquet')
    return folder


@pytest.mark.parametrize('reader', ['hfds', 'hfids'])
def test_hugging_face_data_with_three_views(parquet, output, tmp_path, reader):
    """'hfids' streams: views that come from indexing the data set, as timm's AugMixDataset makes them, cannot."""
    flags = ['--dataset', f'{reader}/{parquet}', '--input-key', 'img', '--target-key', 'fine']
    if reader == 'hfids':
        flags += ['--train-num-samples', '24', '--val-num-samples', '8']
    assert train.main(command(tmp_path / 'cache', output, *flags, *VIEWS, '--workers', '1')) == 0
    assert len(summary(output)) == 1
    words = command(tmp_path / 'cache', output.with_name('other'), *flags, *VIEWS)
    images, labels = next(iter(build(*words).loaders.training))
    assert images.shape == (24, 3, 32, 32)
    assert torch.equal(labels[:8], labels[8:16])


def test_wrong_column_is_named(parquet, output, tmp_path, capsys):
    flags = ['--dataset', f'hfds/{parquet}', '--input-key', 'img', '--target-key', 'coarse']
    assert train.main(command(tmp_path / 'cache', output, *flags)) == 2
    assert 'coarse' in capsys.readouterr().err


@pytest.mark.slow
def test_inductor_trains(data, output):
    assert train.main(command(data, output, '--torchcompile', 'reduce-overhead')) == 0


def train_together(words: list[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Train, and return the images that came and the weights."""
    seen, runs = [], []
    step, init = Trainer._batch, train.Run.__init__
    Trainer._batch = lambda self, images, *rest: seen.append(images.clone()) or step(self, images, *rest)
    train.Run.__init__ = lambda self, *args: runs.append(self) or init(self, *args)
    assert train.main(words) == 0
    return seen, runs[0].task.get_checkpoint_state()['state_dict']


@pytest.mark.slow
@pytest.mark.parametrize('flags', [(), ('--model-ema', '--grad-accum-steps', '2')], ids=' '.join)
def test_two_processes(data, output, flags):
    """One writer, BatchNorm averaged, different augmentation on each process, weights alike."""
    words = command(data, output, *VIEWS, *flags, '--batch-size', '4', '--workers', '1')
    (images, state), (others, other) = run_ranks(train_together, words)
    assert len(images) == len(others) == 3
    assert not torch.equal(images[0], others[0])
    for name, value in state.items():
        assert torch.equal(value, other[name]), name
        assert torch.equal(value, weights(output)[name]), name
    assert len(summary(output)) == 1


def test_the_moving_average_moves(data, output):
    """With a decay of 0 it is the weights, after every update."""
    assert train.main(command(data, output, '--model-ema', '--model-ema-decay', '0')) == 0
    saved = checkpoint(output / 'last.pth.tar')
    for name, weight in saved['state_dict'].items():
        torch.testing.assert_close(saved['state_dict_ema'][name], weight)
