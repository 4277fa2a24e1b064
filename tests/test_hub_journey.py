"""The way of one table: trained, published, pulled elsewhere, frozen under another network; every step a process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from runs import checkpoint, command, write_images
from safetensors.torch import load, load_file

from timm_p2be.data.digits import write_digits

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[1] / 'train_scripts' / 'train.py'
PUBLISHED = ('--tag', 'v1', '--dataset-name', 'Noise')
NETWORK, TABLE = 'tester/net', 'tester/table'
TRAINED = ('--model', 'wrn10_2_p2be', '--img-size', '32')
OTHER = ('--img-size', '32', '--model', 'encoded', '--model-kwargs', 'backbone=test_resnet')
AVERAGED = ('--model-ema', '--model-ema-decay', '0.5')
FROZEN = ('--p2be-embedding', f'{TABLE}@v1', '--p2be-freeze')
LOGITS = """\
import sys, timm, timm_p2be, torch
name, weights, images, output = sys.argv[1:]
if weights:
    model = timm.create_model(name, num_classes=2, checkpoint_path=weights)
else:
    model = timm.create_model(name, pretrained=True)
with torch.inference_mode():
    torch.save(model.eval()(torch.load(images)), output)
"""


@dataclass(frozen=True)
class Machine:
    """A computer that shares nothing with others but the Hub."""

    hub: HubServer
    home: Path

    def start(self, *words: str | Path, **environment: str) -> 'subprocess.Popen[str]':
        """Start Python with these arguments."""
        variables = os.environ | self.hub.environment(self.home) | {'OMP_NUM_THREADS': '1'} | environment
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str | Path, **environment: str) -> str:
        """Return what Python printed."""
        with self.start(*words, **environment) as process:
            said, complaints = process.communicate(timeout=300)
        assert process.returncode == 0, complaints
        assert HubServer.token not in said + complaints
        return said

    def command(self, *words: str | Path, **environment: str) -> str:
        """Return what `timm-p2be` printed."""
        return self.run('-m', 'timm_p2be.cli', *words, **environment)

    def logits(self, name: str, images: Path, weights: str | Path = '', **environment: str) -> torch.Tensor:
        """Return what a network says of images."""
        output = images.with_name('logits.pt')
        self.run('-c', LOGITS, name, weights, images, output, **environment)
        return torch.load(output)


@pytest.fixture
def machine(hub: HubServer, tmp_path: Path) -> Callable[[str], Machine]:
    """A machine of a name, with an empty cache the first time."""
    return lambda name: Machine(hub, tmp_path / name)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / 'images.pt'
    torch.save(torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), path)
    return path


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Another data set than the table's."""
    return write_digits(tmp_path / 'digits')


def interrupt(process: 'subprocess.Popen[str]') -> str:
    """Send SIGTERM to a run of train.py after its second update; return what it says from then on."""
    with process:
        assert process.stderr is not None
        head = []
        for line in process.stderr:
            head.append(line)
            if line.startswith('Train: 0 [   2/'):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 143, ''.join(head) + rest
    return rest


def saved(path: Path, key: str, name: str) -> torch.Tensor:
    """Return the only tensor of a checkpoint whose name ends so."""
    (found,) = [tensor for full, tensor in checkpoint(path)[key].items() if full.endswith(name)]
    return found


def test_from_a_run_to_a_frozen_table(
    hub: HubServer, machine: Callable[[str], Machine], images: Path, digits: Path, tmp_path: Path
) -> None:
    author, reader, stranger = map(machine, ('author', 'reader', 'stranger'))
    run = tmp_path / 'runs' / 'trained'
    learning = (*AVERAGED, '--p2be-lr', '0.05')
    author.run(TRAIN, *command(write_images(tmp_path / 'noise'), run, *learning, model=TRAINED))
    author.command('publish', run, '--repo-id', NETWORK, *PUBLISHED)
    author.command('publish', run, '--repo-id', TABLE, '--embedding-only', '--base-model', f'{NETWORK}@v1', *PUBLISHED)
    own = author.logits('wrn10_2_p2be', images, run / 'last.pth.tar')
    latents = load(hub.repos[TABLE].at('v1').files['model.safetensors'].content)['weight'].numpy().tobytes()
    assert saved(run / 'last.pth.tar', 'state_dict_ema', 'embedding.weight').numpy().tobytes() == latents
    assert saved(run / 'last.pth.tar', 'state_dict', 'embedding.weight').numpy().tobytes() != latents
    hub.put(NETWORK, {'config.json': b'{}'})  # what main holds does not matter to who has a tag
    hub.put(TABLE, {'config.json': b'{}'})

    reader.command('pull', f'{NETWORK}@v1')
    assert f'pinned  {TABLE}@{hub.repos[TABLE].tags["v1"]}' in reader.command('pull', f'{TABLE}@v1')
    assert torch.equal(reader.logits(f'hf-hub:{NETWORK}@v1', images), own)

    frozen = run.with_name('frozen')
    flags = (*FROZEN, *AVERAGED, '--weight-decay', '0.5', '--num-classes', '10', '--epochs', '2', '--batch-size', '32')
    words = command(digits, frozen, *flags, '--log-interval', '1', model=OTHER)
    said = interrupt(reader.start(TRAIN, *words))
    (recovery,) = frozen.glob('recovery-*.pth.tar')
    assert f'Stopped by SIGTERM; go on with --resume {recovery}' in said
    hub.fail('.', 503)
    asked = len(hub.requests)
    stranger.run(TRAIN, *words, '--resume', recovery)  # another machine, whose cache is empty
    for key in ('state_dict', 'state_dict_ema'):
        assert saved(frozen / 'last.pth.tar', key, 'embedding.weight').numpy().tobytes() == latents, key
        assert not torch.equal(saved(frozen / 'last.pth.tar', key, 'fc.weight'), saved(recovery, key, 'fc.weight'))

    off = {'HF_HUB_OFFLINE': '1'}
    assert torch.equal(reader.logits(f'hf-hub:{NETWORK}@v1', images, **off), own)
    reader.command('pull', f'{TABLE}@v1', '--output', tmp_path / 'table', **off)
    assert load_file(tmp_path / 'table' / 'model.safetensors')['weight'].numpy().tobytes() == latents
    shown = json.loads(reader.command('show', f'{TABLE}@v1', '--json', **off))
    assert shown['commit'] == hub.repos[TABLE].tags['v1']
    assert shown['provenance']['base_model'] == f'{NETWORK}@v1'
    assert len(hub.requests) == asked
