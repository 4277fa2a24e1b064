"""Adversarial training: Eq. 11 and 12 against NumPy, the attack on a network in training, and runs that resume."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from forks import run_ranks
from runs import OPEN_FILES, assert_same_state, command, summary
from torch import Generator, Tensor, nn

from timm_p2be.encodings import pixel_levels
from timm_p2be.robustness.attacks import LSPGA, PGD
from timm_p2be.robustness.pixel_model import PixelModel
from timm_p2be.stem import EncodedConv2d, find_embedding
from timm_p2be.task import AdvTrainTask, ConTrainTask, P2BETask
from timm_p2be.training import run as train

pytestmark = OPEN_FILES
TASKS = (ConTrainTask, AdvTrainTask)
STEMS = ('p2be', 'onehot', 'thermometer', None)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def tiny(encoding: str | None = 'p2be') -> nn.Sequential:
    """Its running statistics stay as they are, so that two passes of training are attacked alike."""
    stem = EncodedConv2d(3, 4, 3, encoding, num_bits=8) if encoding else nn.Conv2d(3, 4, 3)
    norm = nn.BatchNorm2d(4, momentum=0)
    return nn.Sequential(stem, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    levels = torch.randint(0, 60, (size, 3, 8, 8), dtype=torch.uint8)
    return levels / 255, torch.randint(0, 5, (size,))


def make(task: type, model: nn.Module, **kwargs: Any) -> ConTrainTask | AdvTrainTask:
    learned = isinstance(model[0], EncodedConv2d) and model[0].embedding.weight is not None
    return task(model, **{'smoothness': float(learned), **kwargs})


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(log_p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q), summed over classes and averaged over images."""
    return float((np.exp(log_p) * (log_p - np.log(q))).sum(axis=1).mean())


@pytest.mark.parametrize('stem', STEMS)
@pytest.mark.parametrize(('alpha', 'lam', 'scale'), [(12.0, 1.0, 3.0), (2.0, 0.1, 300.0)])
def test_objectives_are_eq_11_and_12(stem: str | None, alpha: float, lam: float, scale: float) -> None:
    """In float64, from the logits of both views; the largest logits bring the mixture to its floor of 1e-7."""
    model = tiny(stem).eval()
    with torch.no_grad():
        model[-1].weight.mul_(scale)
    images, labels = batch()
    lam = lam if stem == 'p2be' else 0.0
    contrain, advtrain = ConTrainTask(model, alpha, lam), AdvTrainTask(model, lam)
    adversarial = copy.deepcopy(contrain).attack(model, images, labels)
    with torch.no_grad():
        log_p, log_adv = (log_softmax(model(views).double().numpy()) for views in (images, adversarial))
    mixture = np.clip((np.exp(log_p) + np.exp(log_adv)) / 2, 1e-7, 1)
    assert scale < 100 or mixture.min() == 1e-7
    consistency = (divergence(log_p, mixture) + divergence(log_adv, mixture)) / 2
    smoothness = 0.0
    if stem == 'p2be':
        w = find_embedding(model).weight.detach().double().numpy()
        lengths = np.linalg.norm(w, axis=1)
        smoothness = 1 - ((w[1:] * w[:-1]).sum(axis=1) / (lengths[1:] * lengths[:-1])).mean()
    rows = np.arange(len(labels)), labels.numpy()
    ce, ce_adv = -log_p[rows].mean(), -log_adv[rows].mean()
    error = 100 * (log_adv.argmax(axis=1) != labels.numpy()).mean()
    parts = {name: value.item() for name, value in contrain(images, labels).items() if name != 'output'}
    loss = ce + alpha * consistency + lam * smoothness
    expected = {'ce': ce, 'jsd': consistency, 'smoothness': smoothness, 'loss': loss, 'adversarial_error': error}
    assert parts == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert consistency > 1e-3 or stem != 'p2be'
    parts = {name: value.item() for name, value in advtrain(images, labels).items() if name != 'output'}
    expected = {'ce': ce_adv, 'jsd': 0, 'smoothness': smoothness, 'loss': ce_adv + lam * smoothness}
    assert parts == pytest.approx({**expected, 'adversarial_error': error}, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize('task', TASKS)
def test_the_table_learns_through_the_adversarial_codes(task: type) -> None:
    """As if the adversarial images were given: Eq. 10's objective on them has the same gradient, bit for bit."""
    model = tiny()
    images, labels = batch()
    trained = make(task, model, smoothness=0)
    adversarial = copy.deepcopy(trained).attack(model, images, labels)
    views = torch.cat([images, adversarial]) if task is ConTrainTask else adversarial
    weight = find_embedding(model).weight
    given = P2BETask(model, trained.alpha, smoothness=0, num_views=len(views) // len(labels))
    expected = torch.autograd.grad(given(views, labels)['loss'], weight)[0]
    got = torch.autograd.grad(trained(images, labels)['loss'], weight)[0]
    assert torch.equal(got, expected)
    only_adversarial = ~torch.isin(torch.arange(256), pixel_levels(images).long())
    assert got[only_adversarial].abs().max() > 0  # levels that no clean image has


@pytest.mark.parametrize('stem', STEMS)
def test_attack_is_the_papers_or_pgd_of_as_many_steps(stem: str | None) -> None:
    model = tiny(stem).train()
    images, labels = batch()
    task = make(ConTrainTask, model)
    got = task.attack(model, images, labels)
    seed = int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0])
    twin = copy.deepcopy(model)
    attack = LSPGA.official(twin) if stem else PGD(twin, 8, steps=7, step_size=20 / 7)
    expected = attack.ascend(pixel_levels(images), labels, Generator().manual_seed(seed))
    assert torch.equal(pixel_levels(got), expected)
    assert torch.equal(got, expected / 255)
    change = (expected.int() - pixel_levels(images).int()).abs()
    assert 0 < change.max() <= 8
    assert attack.cost().backwards == task.attack.steps == 7
    again = PixelModel(copy.deepcopy(twin).eval())
    losses = [nn.functional.cross_entropy(again(x), labels) for x in (pixel_levels(images), expected)]
    assert losses[1] > losses[0]


@pytest.mark.parametrize('stem', ['p2be', None])
@pytest.mark.parametrize('fails', [False, True])
def test_attack_leaves_the_network_as_it_was(stem: str | None, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it fails half way; one of the modules is in evaluation mode on purpose."""
    model = tiny(stem).train()
    model[2].eval()
    task = make(ConTrainTask, model)
    before = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    calls = []
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: calls.append(grad))
        parameter.register_post_accumulate_grad_hook(lambda parameter: calls.append(parameter))
    if fails:
        monkeypatch.setattr(torch.Tensor, 'sign_', lambda *_: 1 / 0)
        monkeypatch.setattr(torch.Tensor, 'sign', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            task(*batch())
    else:
        task.attack(model, *batch())
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not calls
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_forward_in_train_mode_sees_both_views() -> None:
    model = tiny().train()
    sizes = []
    model[1].register_forward_pre_hook(lambda module, args: sizes.append((len(args[0]), module.training)))
    images, labels = batch()
    tasks = make(ConTrainTask, model), make(AdvTrainTask, model)
    sizes.clear()
    for task in tasks:
        task(images, labels)
    assert [size for size in sizes if size[1]] == [(12, True), (6, True)]
    assert model[1].num_batches_tracked == 2


def test_attack_sees_tensors_that_were_replaced() -> None:
    """As when a network moves to another device."""
    model = tiny().train()
    images, labels = batch()
    task = make(ConTrainTask, model)
    model[1].running_mean = model[1].running_mean + 3 * torch.randn(4)
    expected = make(ConTrainTask, model).attack(model, images, labels)
    assert torch.equal(task.attack(model, images, labels), expected)


def test_noise_is_a_function_of_seed_process_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    images, labels = batch()
    tasks = [make(ConTrainTask, model, seed=seed) for seed in (0, 0, 1)]
    first, second = (tasks[0].attack(model, images, labels) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, tasks[2].attack(model, images, labels))
    tasks[1].load_checkpoint_state(model.state_dict(), {'batches': 1})
    assert torch.equal(second, tasks[1].attack(model, images, labels))
    assert tasks[0].get_checkpoint_state()['task_state'] == {'batches': 2}
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 1)
    tasks[0].load_task_state({'batches': 0})
    assert not torch.equal(first, tasks[0].attack(model, images, labels))
    state = torch.get_rng_state()
    tasks[0](images, labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('stem', ['p2be', None])
def test_under_autocast_gradients_are_those_of_the_training_pass_alone(stem: str | None) -> None:
    """The attack comes first and must not leave casts of weights behind that cut the graph."""
    model = tiny(stem).train()
    images, labels = batch()
    task = make(ConTrainTask, model)
    with torch.autocast('cpu', torch.bfloat16):
        adversarial = copy.deepcopy(task).attack(model, images, labels)
    given = P2BETask(model, 12.0, task.smoothness, num_views=2)
    gradients = []
    for trained, views in ((given, torch.cat([images, adversarial])), (task, images)):
        with torch.autocast('cpu', torch.bfloat16):
            result = trained(views, labels)
        assert result['output'].dtype == torch.bfloat16
        assert result['loss'].dtype == torch.float32
        gradients.append(torch.autograd.grad(result['loss'], list(model.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[1])


def test_normalization_of_pixel_values_is_kept() -> None:
    """A network of normalized images is attacked as its twin of pixels in [0, 1]."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    model = tiny(None).eval()
    images, labels = batch()
    task = AdvTrainTask(model, smoothness=0, mean=mean, std=std)
    got = task.attack(model, (images - shift) / scale, labels)

    class Normalized(nn.Module):
        num_classes = 5

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model((x - shift) / scale)

    twin = Normalized()
    expected = AdvTrainTask(twin, smoothness=0).attack(twin, images, labels)
    torch.testing.assert_close(got * scale + shift, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('stem', ['p2be', None])
def test_arguments_are_checked(task: type, stem: str | None) -> None:
    for kwargs, words in (
        ({'eps': 0}, 'Got eps=0.*1 to 255'),
        ({'eps': 256}, 'Got eps=256'),
        ({'eps': 8 / 255}, 'Got eps=0.03.*eps=8'),
        ({'steps': 0}, 'steps=0'),
        ({'step_size': 0.0}, 'step_size=0.0.*positive'),
    ):
        with pytest.raises(ValueError, match=words):
            make(task, tiny(stem), **kwargs)


def test_alpha_and_models_are_checked() -> None:
    with pytest.raises(ValueError, match='alpha=-1'):
        ConTrainTask(tiny(), alpha=-1)
    with pytest.raises(ValueError, match=r'smoothness=1.0.*no learned table'):
        AdvTrainTask(tiny('onehot'))
    with pytest.raises(ValueError, match='in_chans=3'):
        AdvTrainTask(timm.create_model('wrn10_2_p2be', in_chans=1, num_classes=10))
    with pytest.raises(ValueError, match='0 classes'):
        AdvTrainTask(timm.create_model('wrn10_2_p2be', num_classes=0))


def test_labels_that_the_model_has_no_class_for() -> None:
    for labels, words in (([0, 5], r'labels from .* has 5 classes \(0 to 4\)'), ([0, 1, 2], '2 images and 3 labels')):
        with pytest.raises(ValueError, match=words):
            AdvTrainTask(tiny())(torch.rand(2, 3, 8, 8), torch.tensor(labels))


ADVERSARIAL = ('--p2be-adversarial', 'contrain', '--p2be-attack-steps', '2')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['contrain', 'advtrain'])
def test_a_run_logs_its_parts(data: Path, tmp_path: Path, name: str) -> None:
    assert train.main(command(data, tmp_path / 'run', *ADVERSARIAL, '--p2be-adversarial', name)) == 0
    (row,) = summary(tmp_path / 'run')
    parts = {part: float(row[f'train_{part}']) for part in ('loss', 'ce', 'jsd', 'smoothness', 'adversarial_error')}
    alpha = 12 if name == 'contrain' else 0
    assert parts['loss'] == pytest.approx(parts['ce'] + alpha * parts['jsd'] + parts['smoothness'], rel=1e-5)
    assert (parts['jsd'] > 0) is (name == 'contrain')
    assert 0 <= parts['adversarial_error'] <= 100


@pytest.mark.parametrize(
    ('name', 'flags'),
    [
        ('recovery-0-1', '--model-ema'),  # after two of three batches, each with noise of its own
        pytest.param('recovery-1-0', '--epochs 2 --grad-accum-steps 2', marks=pytest.mark.slow),
        pytest.param(
            'checkpoint-0',  # PGD on timm's mean and std
            '--epochs 2 --p2be-adversarial advtrain --model test_resnet --model-kwargs --amp --amp-dtype bfloat16',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_resumes(data: Path, tmp_path: Path, name: str, flags: str) -> None:
    whole, words = tmp_path / 'whole', (*ADVERSARIAL, *flags.split(), '--recovery-interval', '1')
    assert train.main(command(data, whole, *words)) == 0
    copied = shutil.copy(whole / f'{name}.pth.tar', tmp_path)
    assert train.main(command(data, tmp_path / 'parts', *words, '--resume', str(copied))) == 0
    assert_same_state(whole / 'last.pth.tar', tmp_path / 'parts' / 'last.pth.tar')
    assert summary(whole)[-1] == summary(tmp_path / 'parts')[-1]


def attack_together() -> tuple[list[float], list[float]]:
    """The gradients after two batches, and the first batch's adversarial images."""
    dist.init_process_group('gloo')
    torch.manual_seed(0)
    task, (images, labels), seen = ConTrainTask(tiny(), verbose=False), batch(), []
    task.prepare_distributed()
    task.trainable_module.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    for _ in range(2):
        task(images, labels)['loss'].backward()
    gradients = torch.cat([p.grad.flatten() for p in task.get_trainable_module().parameters()])
    return gradients.tolist(), seen[0][6:].flatten().tolist()


def test_processes_draw_differently_and_share_gradients() -> None:
    one, other = run_ranks(attack_together)
    assert one[0] == other[0]
    assert one[1] != other[1]
