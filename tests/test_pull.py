"""`timm-p2be pull` by the real client from a Hub on loopback: pinned, verified, whole or not at all."""

import errno
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import timm
import torch
from forks import forked

from timm_p2be.cli import main
from timm_p2be.hub import repository
from timm_p2be.hub.pulling import pull
from timm_p2be.hub.repository import LOADING_ARGS, read_contents

TABLE = 'conv1.embedding.weight'


def _execute_usage(said: str) -> dict[str, Any]:
    """Run the Python that `pull` printed, and return its names."""
    lines = [line.removeprefix('use').strip() for line in said.splitlines() if line.startswith('use')]
    assert lines[0].startswith('import timm_p2be')
    names: dict[str, Any] = {}
    exec('\n'.join(lines), names)
    return names


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_embedding_by_tag_into_the_cache(hub, tmp_path, printed):
    commit = hub.put('tester/table', published.embedding(tmp_path / 'a'), tag='v1')
    hub.put('tester/table', published.embedding(tmp_path / 'b', seed=1))
    said = printed('pull', 'tester/table@v1')
    assert 'embedding, p2be codes of 16 bits' in said
    assert f'pinned  tester/table@{commit}\n' in said
    for name in ('config.json', 'model.safetensors', 'README.md'):
        assert f'{hub.repos["tester/table"].commits[commit].files[name].sha256}  {name}' in said
    # what is printed for Python works, and without the Hub
    hub.fail('.', 503)
    assert torch.equal(_execute_usage(said)['embedding'].weight.detach(), published.latents(16))
    assert not (tmp_path / 'hub-cache' / 'models--tester--table' / 'snapshots' / commit / 'results.json').exists()


def test_a_model_by_commit_into_the_cache(hub, tmp_path, printed):
    commit = hub.put('tester/net', published.model(tmp_path / 'net') | {'results.json': b'{}'})
    hub.put('tester/net', published.model(tmp_path / 'other', weights_sha256='0' * 64))
    said = printed('pull', f'tester/net@{commit}')
    assert 'model wrn10_2_p2be on p2be codes of 8 bits' in said
    assert 'results.json' in said
    assert f"timm.create_model('hf-hub:tester/net@{commit}', pretrained=True)" in said
    pulled = _execute_usage(said)['model'].eval()
    local = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pulled(images), local(images))


@pytest.mark.parametrize('kind', ['embedding', 'model'])
def test_into_a_folder(hub, tmp_path, printed, kind):
    files = getattr(published, kind)(tmp_path / 'source')
    hub.put('tester/it', files | {'pytorch_model.bin': b'a pickle'})
    output = tmp_path / 'deep' / 'output'
    said = printed('pull', 'tester/it', '--output', str(output))
    assert published.contents(output) == files
    assert all(not path.is_symlink() for path in output.iterdir())
    assert _files(output.parent) == {'output'}
    _execute_usage(said)
    # a second pull finds it
    before = output.stat().st_mtime_ns
    assert 'there already, identical' in printed('pull', 'tester/it', '--output', str(output))
    assert output.stat().st_mtime_ns == before


def test_overwriting(hub, tmp_path, printed, refused):
    output = tmp_path / 'output'
    old, new = published.embedding(tmp_path / 'a'), published.embedding(tmp_path / 'b', seed=1)
    hub.put('tester/table', old | {'results.json': b'{}'}, tag='v1')
    pull('tester/table@v1', output=output)
    hub.put('tester/table', new)
    assert 'holds another version already. Choose another --output, or pass --overwrite' in refused(
        'pull', 'tester/table', '--output', str(output)
    )
    assert published.contents(output) == old | {'results.json': b'{}'}
    assert '--overwrite needs --output' in refused('pull', 'tester/table', '--overwrite')
    printed('pull', 'tester/table', '--output', str(output), '--overwrite')
    assert published.contents(output) == new | {'results.json': b'{}'}
    assert _files(tmp_path) == {'a', 'b', 'output', 'hub-cache'}


def test_folders_of_others_are_never_replaced(hub, tmp_path, refused):
    hub.put('tester/table', published.embedding(tmp_path / 'a'))
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'thesis.tex').write_text('years')
    said = refused('pull', 'tester/table', '--output', str(mine), '--overwrite')
    assert "holds files that no pull wrote, such as 'thesis.tex'" in said
    assert _files(mine) == {'thesis.tex'}
    file = mine / 'thesis.tex'
    assert 'is not a folder' in refused('pull', 'tester/table', '--output', str(file), '--overwrite')
    assert file.read_text() == 'years'
    link = tmp_path / 'link'
    link.symlink_to(mine)
    assert 'is not a folder' in refused('pull', 'tester/table', '--output', str(link), '--overwrite')
    (tmp_path / 'empty').mkdir()
    assert pull('tester/table', output=tmp_path / 'empty').is_new


def _config(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    return files | {'config.json': json.dumps(json.loads(files['config.json']) | changes).encode()}


def _net(**ours: Any) -> Callable[[Path], dict[str, bytes]]:
    return lambda folder: published.model(folder, **ours)


def _net_config(**changes: Any) -> Callable[[Path], dict[str, bytes]]:
    return lambda folder: _config(published.model(folder), **changes)


def _half_latents(folder: Path) -> dict[str, bytes]:
    published.model(folder)
    return published.edit(folder, lambda state: state | {TABLE: state[TABLE].half()})


def _cut_off(folder: Path) -> dict[str, bytes]:
    files = _config(published.model(folder), timm_p2be={'weights_sha256': None})
    return files | {'model.safetensors': files['model.safetensors'][:5000]}


BROKEN: list[tuple[Callable[[Path], dict[str, bytes]], str]] = [
    (lambda folder: _config(published.embedding(folder), codes_sha256='0' * 64), 'codes have sha256.*says 000'),
    (_net(weights_sha256='0' * 64), 'has sha256 .*, but config.json states 000'),
    (lambda folder: published.model(folder) and published.poison(folder), 'layer1.0.conv1.weight.*not finite'),
    (_cut_off, 'truncated or no safetensors'),
    (_half_latents, 'embedding.weight is .*float16, .256, 8..; allowed is .*float32, .256, 8.'),
    (_net_config(model_args={'num_bits': 2_000_000}), 'num_bits is 2000000; allowed is an integer in 1..4096'),
    (_net_config(architecture='wrn10_2_p2be.\x1b[2J'), r"'wrn10_2_p2be\.\\x1b\[2J'; allowed is a name of timm"),
    (_net(provenance={'seed': 1}), 'provenance lacks'),
    (_net_config(model_args={'encoding': 'onehot', 'num_bits': 8}), 'model_args must not name encoding'),
    (_net_config(pretrained_cfg={'hf_hub_filename': 'pytorch_model.bin'}), 'without hf_hub_filename'),
    (lambda folder: published.embedding(folder) | {'config.json': b'{}'}, 'neither an embedding .* nor a model of'),
]


@pytest.mark.parametrize(('files', 'message'), BROKEN)
def test_what_is_not_what_it_claims_is_refused(hub, tmp_path, refused, files, message):
    hub.put('tester/it', files(tmp_path / 'source'))
    output = tmp_path / 'output'
    said = refused('pull', 'tester/it', '--output', str(output))
    assert re.search(message, said), said
    assert _files(tmp_path) == {'source', 'hub-cache'}, 'no folder, and nothing half beside it'


def test_every_argument_of_timm_for_loading_is_refused(tmp_path):
    assert {'checkpoint_path', 'pretrained_cfg', 'pretrained_strict'} <= LOADING_ARGS
    files = published.model(tmp_path)
    for name in LOADING_ARGS:
        (tmp_path / 'config.json').write_bytes(_config(files, model_args={name: {}})['config.json'])
        with pytest.raises(ValueError, match=f'model_args must not name {name};'):
            read_contents(tmp_path)


def test_a_config_as_timm_once_wrote_it(tmp_path):
    """All on one level, which timm still reads."""
    config = json.loads(published.model(tmp_path, 'wrn10_2')['config.json'])
    flat = {'architecture': 'wrn10_2', 'num_features': 64, 'labels': ['a'] * 10, **config['pretrained_cfg']}
    (tmp_path / 'config.json').write_text(json.dumps(flat))
    assert read_contents(tmp_path).describe() == 'model wrn10_2 on pixel values'
    assert timm.create_model(f'local-dir:{tmp_path}', pretrained=True).num_classes == 10
    (tmp_path / 'config.json').write_text(json.dumps(flat | {'hf_hub_filename': 'a.bin'}))
    with pytest.raises(ValueError, match='without hf_hub_filename'):
        read_contents(tmp_path)


def test_all_files_are_of_one_commit(hub, tmp_path, monkeypatch):
    files = published.model(tmp_path / 'a') | {'results.json': b'1'}
    newer = published.model(tmp_path / 'b', package_version='2') | {'README.md': b'newer', 'results.json': b'2'}
    commit = hub.put('tester/net', files)

    def late(folder: Path) -> Any:
        hub.put('tester/net', newer)  # between two requests of ours
        return read_contents(folder)

    monkeypatch.setattr(repository, 'read_contents', late)
    assert pull('tester/net', output=tmp_path / 'output').commit == commit
    assert published.contents(tmp_path / 'output') == files


def test_a_damaged_cache_is_reported_offline_and_mended(hub, tmp_path, refused, monkeypatch):
    commit = hub.put('tester/table', published.embedding(tmp_path / 'a'), tag='v1')
    weights = pull('tester/table@v1').folder / 'model.safetensors'
    whole = weights.read_bytes()
    weights.resolve().write_bytes(whole[:-8] + bytes(8))
    with monkeypatch.context() as offline:
        offline.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
        assert 'model.safetensors' in refused('pull', 'tester/table@v1')
        assert 'is not in the cache' in refused('pull', 'tester/table@v2')
    pulled = pull(f'tester/table@{commit}')
    assert (pulled.folder / 'model.safetensors').read_bytes() == whole


@pytest.mark.parametrize('kind', ['SIGKILL', 'SIGTERM'])
def test_a_killed_pull_leaves_no_folder(hub, tmp_path, capfd, kind):
    hub.put('tester/net', published.model(tmp_path / 'net'))
    hub.slow('GET .*model.safetensors', 60, after=2000)
    output = tmp_path / 'output'
    with forked(lambda told: sys.exit(main(['pull', 'tester/net', '--output', str(output)]))) as (process, _):
        while not hub.count('GET .*model.safetensors'):
            assert process.is_alive()
            time.sleep(0.01)
        os.kill(process.pid, getattr(signal, kind))
        process.join()
    assert process.exitcode == (130 if kind == 'SIGTERM' else -signal.SIGKILL)
    assert capfd.readouterr().err.endswith('interrupted. Nothing was written to --output.\n') == (kind == 'SIGTERM')
    assert _files(tmp_path) == {'net', 'hub-cache'}
    hub.heal()
    assert pull('tester/net', output=output).is_new
    assert published.contents(output) == published.contents(tmp_path / 'net')


def test_what_a_pull_killed_yesterday_left_is_removed(hub, tmp_path):
    hub.put('tester/table', published.embedding(tmp_path / 'a'))
    left = tmp_path / f'.output.{platform.node()}.4194305'
    (left / 'new').mkdir(parents=True)
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    pull('tester/table', output=tmp_path / 'output')
    assert _files(tmp_path) == {'a', 'output', 'hub-cache'}


def test_a_failed_replacement_keeps_the_old_folder(hub, tmp_path, monkeypatch, refused):
    old = published.embedding(tmp_path / 'a')
    hub.put('tester/table', old)
    output = tmp_path / 'output'
    pull('tester/table', output=output)
    hub.put('tester/table', published.embedding(tmp_path / 'b', seed=1))
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name == 'new':
            raise OSError(errno.ENOSPC, 'No space left on device', str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, 'rename', full)
    assert 'No space left' in refused('pull', 'tester/table', '--output', str(output), '--overwrite')
    assert published.contents(output) == old
    assert _files(tmp_path) == {'a', 'b', 'output', 'hub-cache'}


def test_a_plain_model_of_timm_is_taken_with_a_note(hub, tmp_path, printed):
    """As timm's own push_to_hf_hub writes it: no key of ours, hence no sha256 to compare with."""
    files = published.model(tmp_path / 'net')
    config = json.loads(files['config.json'])
    del config['timm_p2be']
    hub.put('tester/net', files | {'config.json': json.dumps(config).encode()})
    assert 'config.json states no sha256 of the weights' in printed('pull', 'tester/net')
