"""A training step reads nothing back from the device; losses are read one step late, and before a checkpoint."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import OPEN_FILES, TINY, VIEWS, command
from test_triton import _Operations
from torch import Tensor
from torch.overrides import TorchFunctionMode

from timm_p2be.robustness.attacks import lspga
from timm_p2be.robustness.attacks.windows import Windows
from timm_p2be.training import run as train
from timm_p2be.training.stopping import StopSignal

pytestmark = OPEN_FILES
OPERATIONS = {'_local_scalar_dense', 'item', 'is_nonzero', 'nonzero', 'masked_select', 'equal', 'unique_consecutive'}
METHODS = {Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero}  # of which a CPU's tensors dispatch nothing
OPERATIONS |= {method.__name__ for method in METHODS}
TASKS = {
    'views': (*VIEWS, '--model-ema', '--clip-grad', '1', '--amp', '--amp-dtype', 'bfloat16'),
    'LS-PGA': ('--p2be-adversarial', 'contrain', '--p2be-attack-steps', '2'),
    'PGD': ('--p2be-adversarial', 'advtrain', '--p2be-attack-steps', '2'),
}


class _Methods(TorchFunctionMode):
    """Notes what is read of tensors but `arrived`, which lies in the host's memory."""

    def __init__(self, seen: list[str], arrived: Tensor | None) -> None:
        super().__init__()
        self.seen, self.arrived = seen, arrived

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in METHODS and args[0] is not self.arrived:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


class _Steps:
    """Steps of a run on random images."""

    def __init__(self, data: Path, output: Path, name: str, *flags: str) -> None:
        model, opt = (('--model', 'test_resnet', '--img-size', '32'), 'sgd') if name == 'PGD' else (TINY, 'sgdp2be')
        words = command(data, output, *TASKS[name], *flags, model=model, opt=('--opt', opt, '--lr', '0.1'))
        self.run = train.Run(train.parse_args(words), StopSignal())
        self.run.task.train()
        self.images = torch.rand(self.run.task.num_views * 4, 3, 32, 32, device=self.run.args.device)
        self.labels = torch.arange(4, device=self.images.device) % 2

    def step(self) -> None:
        self.run.trainer._batch(self.images, self.labels, 1, True)
        self.run.trainer._after_update(self.run.trainer.position.update + 1)

    def reads(self) -> list[str]:
        seen: list[str] = []
        sent = self.run.trainer._sent
        with _Operations(seen), _Methods(seen, sent and sent.values):
            self.step()
        return [name for name in seen if name in OPERATIONS]


@pytest.mark.parametrize('name', TASKS)
def test_no_number_is_read_back(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lspga, 'Windows', partial(Windows, blocks=False))  # the form that GPUs take
    steps = _Steps(data, tmp_path / 'run', name)
    assert steps.reads() != []  # the range of the pixels, and the labels' that are attacked
    for _ in range(3):
        steps.step()
    # AdamW's number of steps lies on the CPU
    assert steps.reads() == ([] if name == 'PGD' else ['_local_scalar_dense'])


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', TASKS)
def test_no_step_waits_for_a_gpu(name: str, data: Path, tmp_path: Path) -> None:
    steps = _Steps(data, tmp_path / 'run', name, '--device', 'cuda')
    for _ in range(5):
        steps.step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        steps.step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
