"""The embedding folder: bit for bit there and back, and every damage refused before anything is used."""

import copy
import errno
import hashlib
import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from test_provenance import PROVENANCE

from timm_p2be.encodings.codes import onehot_codes, thermometer_codes
from timm_p2be.hub.artifact import (
    FILES,
    MAX_BYTES,
    ArtifactError,
    artifact_config,
    check_config,
    codes_sha256,
    read_artifact,
    read_config,
    write_artifact,
)

EDGES = [0.0, -0.0, 1e-9, -1e-9, 1e-45, -1e-45, 3e38, -3e38, 0.5, -0.5]


def _latents(num_bits):
    latents = torch.randn(256, num_bits, generator=torch.Generator().manual_seed(0))
    latents.view(-1)[: len(EDGES)] = torch.tensor(EDGES)
    return latents


def _write(folder, num_bits=9, provenance=None, init='normal', latents=None):
    latents = _latents(num_bits) if latents is None else latents
    codes = (latents >= 0).float()
    write_artifact(folder, codes, latents, encoding='p2be', init=init, provenance=provenance, package_version='0.1.0')
    return latents


def _write_fixed(folder, codes, encoding):
    write_artifact(folder, codes, None, encoding=encoding, init='normal', provenance=None, package_version=None)


def _edit_config(folder, **changes):
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_tensors(folder, change):
    """Rewrite the tensors; the record's sha256 follows the changed bits, so that it is not what is found wrong."""
    path = folder / 'model.safetensors'
    tensors = change(safetensors.torch.load_file(path))
    safetensors.torch.save_file(tensors, path)
    if 'codes' in tensors:
        _edit_config(folder, codes_sha256=hashlib.sha256(tensors['codes'].contiguous().numpy().tobytes()).hexdigest())


# there and back


@pytest.mark.parametrize('num_bits', [1, 7, 8, 9, 64, 4096])
def test_latents_come_back_bit_for_bit(tmp_path, num_bits):
    latents = _write(tmp_path, num_bits, PROVENANCE, init='thermometer')
    artifact = read_artifact(tmp_path)
    assert torch.equal(artifact.latents.view(torch.int32), latents.view(torch.int32))
    assert torch.equal(artifact.codes, (latents >= 0).float())
    assert (artifact.codes.dtype, artifact.latents.dtype) == (torch.float32, torch.float32)
    assert (artifact.encoding, artifact.num_bits, artifact.init) == ('p2be', num_bits, 'thermometer')
    assert artifact.provenance == PROVENANCE
    assert artifact.codes_sha256 == codes_sha256(artifact.codes)
    assert (tmp_path / 'model.safetensors').stat().st_size <= MAX_BYTES < 5 * 2**20


@pytest.mark.parametrize('num_bits', [1, 9, 64])
@pytest.mark.parametrize(('encoding', 'build'), [('onehot', onehot_codes), ('thermometer', thermometer_codes)])
def test_fixed_codes_come_back(tmp_path, encoding, build, num_bits):
    _write_fixed(tmp_path, build(num_bits), encoding)
    artifact = read_artifact(tmp_path)
    assert torch.equal(artifact.codes, build(num_bits))
    assert (artifact.encoding, artifact.latents, artifact.provenance) == (encoding, None, None)
    assert list(safetensors.torch.load_file(tmp_path / 'model.safetensors')) == ['codes']


def test_bits_are_packed_highest_first_and_padded_with_zeros(tmp_path):
    latents = _write(tmp_path, 9)
    packed = safetensors.torch.load_file(tmp_path / 'model.safetensors')['codes']
    assert (packed.dtype, packed.shape) == (torch.uint8, (256, 2))
    rows = [''.join('1' if w >= 0 else '0' for w in row) + '0000000' for row in latents.tolist()]
    assert [f'{first:08b}{second:08b}' for first, second in packed.tolist()] == rows
    expected = hashlib.sha256(b''.join(int(row, 2).to_bytes(2, 'big') for row in rows)).hexdigest()
    assert json.loads((tmp_path / 'config.json').read_text()) == {
        'format': 'timm-p2be-embedding',
        'format_version': 1,
        'package_version': '0.1.0',
        'encoding': 'p2be',
        'levels': 256,
        'num_bits': 9,
        'plane_order': 'bit-major',
        'init': 'normal',
        'codes_sha256': expected,
        'provenance': None,
    }


def test_the_same_table_makes_the_same_files(tmp_path):
    _write(tmp_path / 'a', 9, PROVENANCE)
    _write(tmp_path / 'b', 9, PROVENANCE)
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_what_was_read_is_the_readers_own(tmp_path):
    _write(tmp_path, 9)
    artifact = read_artifact(tmp_path)
    artifact.latents.zero_()
    artifact.codes.zero_()
    assert read_artifact(tmp_path).latents.any()


def test_files_may_be_links_as_in_the_cache_of_the_hub(tmp_path):
    latents = _write(tmp_path / 'blobs', 9)
    (tmp_path / 'snapshot').mkdir()
    for name in FILES:
        (tmp_path / 'snapshot' / name).symlink_to(tmp_path / 'blobs' / name)
    assert torch.equal(read_artifact(tmp_path / 'snapshot').latents, latents)
    before = (tmp_path / 'blobs' / FILES[1]).read_bytes()
    _write(tmp_path / 'snapshot', 9, latents=-latents - 1)
    assert (tmp_path / 'blobs' / FILES[1]).read_bytes() == before  # a link is replaced, not written through


# whole or not at all


def test_a_half_written_folder_is_none_and_can_be_saved_again(tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(b'\x10\0\0')
    (tmp_path / '.model.safetensors.4194305').write_bytes(b'\x10')
    with pytest.raises(ArtifactError, match=r'config\.json does not exist: no embedding, or one whose saving was cut'):
        read_artifact(tmp_path)
    latents = _write(tmp_path, 9)
    assert torch.equal(read_artifact(tmp_path).latents, latents)


@pytest.mark.parametrize('file', FILES)
def test_a_full_disk_leaves_no_mixture_of_two_tables(tmp_path, monkeypatch, file):
    _write(tmp_path, 9)
    fsync, remaining = os.fsync, [1 if file == 'config.json' else 0]

    def full(descriptor):
        if not remaining[0]:
            raise OSError(errno.ENOSPC, 'No space left on device')
        remaining[0] -= 1
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        _write(tmp_path, 9, latents=-_latents(9) - 1)
    assert [path.name for path in tmp_path.iterdir()] == ['model.safetensors']
    with pytest.raises(ArtifactError, match='saving was cut short'):
        read_artifact(tmp_path)


NAN = _latents(9)
NAN[7, 3] = float('nan')


@pytest.mark.parametrize(('codes', 'latents', 'message'), [
    (torch.full((256, 9), 0.5), _latents(9), r'2304 of them neither 0 nor 1; allowed is'),
    (torch.ones(9), None, r'Got codes of shape \(9,\) on cpu, 0 of them.*; allowed is a \(256, M\) table of 0 and 1'),
    (torch.ones(256, 9, device='meta'), _latents(9), r'on meta, 2304 of them neither 0 nor 1; allowed'),
    (torch.ones(255, 9), _latents(9), r'levels is 255; allowed is 256'),
    (torch.ones(256, 4097), torch.ones(256, 4097), r'num_bits is 4097; allowed is an integer in 1\.\.4096'),
    (torch.ones(256, 0), torch.ones(256, 0), r'num_bits is 0; allowed is an integer in 1\.\.4096'),
    (torch.ones(256, 9), None, r"has encoding 'p2be' and no latents"),
    (torch.ones(256, 9), torch.ones(256, 8), r'latents of shape \(256, 8\); allowed is \(256, 9\)'),
    (torch.ones(256, 9), _latents(9), r'of 2304 bits are not those of the signs of the latents.*Correct it and save'),
    ((NAN >= 0).float(), NAN, r'1 latents are NaN or infinite'),
    (torch.zeros(256, 9), torch.full((256, 9), -1e-60, dtype=torch.float64), r'2304 of 2304 bits are not those of'),
])  # fmt: skip
def test_nothing_is_written_that_could_not_be_read(tmp_path, codes, latents, message):
    before = _write(tmp_path, 9)
    with pytest.raises(ArtifactError, match=message):
        write_artifact(
            tmp_path, codes, latents, encoding='p2be', init='normal', provenance=None, package_version='0.1.0'
        )
    assert torch.equal(read_artifact(tmp_path).latents, before)


def test_fixed_codes_are_checked_when_written(tmp_path):
    codes = onehot_codes(9)
    with pytest.raises(ArtifactError, match=r"bits are not those of encoding 'thermometer', the first at level 0, bit"):
        _write_fixed(tmp_path, codes, 'thermometer')
    with pytest.raises(ArtifactError, match=r"has encoding 'onehot' and latents; only 'p2be' has latents"):
        write_artifact(tmp_path, codes, codes, encoding='onehot', init='normal', provenance=None, package_version=None)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(('provenance', 'message'), [
    ({**PROVENANCE, 'seed': torch.tensor(3)}, r'provenance holds what JSON cannot \(Object of type Tensor'),
    ({**PROVENANCE, 'flags': {'lr': float('nan')}}, r'provenance holds what JSON cannot \(Out of range float'),
    ({**PROVENANCE, 'flags': {'text': 'x' * 2**20}}, r'The record has 10\d+ bytes; allowed are 1048576. Shorten its'),
    ({'model': 'wrn40_2_p2be'}, r'to be saved: provenance lacks .*every key has to be there'),
])  # fmt: skip
def test_provenance_is_checked_when_written(tmp_path, provenance, message):
    with pytest.raises(ArtifactError, match=message):
        _write(tmp_path, 9, provenance)
    assert not any(tmp_path.iterdir())


def test_the_record_is_a_copy():
    provenance = copy.deepcopy(PROVENANCE)
    config = artifact_config(
        onehot_codes(9), encoding='onehot', init='normal', provenance=provenance, package_version=None
    )
    provenance['flags']['lr'] = 5
    assert config['provenance'] == PROVENANCE


# config.json


@pytest.mark.parametrize(('content', 'message'), [
    (b'', r'config\.json is no JSON \(Expecting value'),
    (b'{"format": ', r'config\.json is no JSON'),
    (b'\xff\xfe{}', r"config\.json is no JSON \('utf-8' codec"),
    (b'[' * 200_000, r'config\.json is no JSON \(maximum recursion'),
    (b'{"seed": ' + b'9' * 5000 + b'}', r'config\.json is no JSON \(Exceeds the limit'),
    (b'["timm-p2be-embedding"]', r'config\.json holds a list; allowed is a JSON object. Download or save'),
    (b'{}', r"format is None; allowed is 'timm-p2be-embedding'"),
    (b'{"format": "gguf"}', r"format is 'gguf'; allowed is 'timm-p2be-embedding'"),
    (b'{"format": "timm-p2be-embedding"}', r'format_version is None; allowed is 1'),
    (b' ' * (2**20 + 1), r'config\.json has 1048577 bytes; allowed are at most 1048576'),
])  # fmt: skip
def test_records_that_are_none_are_refused(tmp_path, content, message):
    _write(tmp_path, 9)
    (tmp_path / 'config.json').write_bytes(content)
    for read in (read_artifact, read_config):
        with pytest.raises(ArtifactError, match=message):
            read(tmp_path)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'format_version': 2}, r'has format version 2, this timm-p2be reads up to 1. Update timm-p2be: pip install -U'),
    ({'format_version': 2, 'latents': 'int4'}, r'has format version 2, this timm-p2be reads up to 1. Update timm-p2be'),
    ({'format_version': 0}, r'format_version is 0; allowed is 1'),
    ({'format_version': True}, r'format_version is True; allowed is 1'),
    ({'format_version': 1.0}, r'format_version is 1\.0; allowed is 1'),
    ({'format_version': '1'}, r"format_version is '1'; allowed is 1"),
    ({'package_version': 3}, r'package_version is 3; allowed is a version or null'),
    ({'package_version': '\x1b[2J'}, r"package_version is '\\x1b\[2J'; allowed"),
    ({'encoding': 'rgb'}, r"encoding is 'rgb'; allowed is one of \['p2be', 'onehot', 'thermometer'\]"),
    ({'encoding': ['p2be']}, r"encoding is \['p2be'\]; allowed is one of"),
    ({'encoding': 'x' * 10_000}, r"encoding is '.{99}; allowed is one of"),
    ({'levels': 255}, r'levels is 255; allowed is 256'),
    ({'levels': 256.0}, r'levels is 256\.0; allowed is 256'),
    ({'num_bits': 0}, r'num_bits is 0; allowed is an integer in 1\.\.4096'),
    ({'num_bits': 4097}, r'num_bits is 4097; allowed is an integer in 1\.\.4096'),
    ({'num_bits': 9.0}, r'num_bits is 9\.0; allowed is an integer'),
    ({'num_bits': True}, r'num_bits is True; allowed is an integer'),
    ({'num_bits': '9'}, r"num_bits is '9'; allowed is an integer"),
    ({'plane_order': 'color-major'}, r"plane_order is 'color-major'; allowed is 'bit-major'"),
    ({'init': 'zeros'}, r"init is 'zeros'; allowed is one of \['normal', 'thermometer', 'linear'\]"),
    ({'encoding': 'onehot', 'init': 'thermometer'}, r"init is 'thermometer'; a fixed encoding has 'normal'"),
    ({'codes_sha256': 'a' * 63}, r"codes_sha256 is 'a{63}'; allowed is 64 hexadecimal digits"),
    ({'codes_sha256': 'A' * 64}, r"codes_sha256 is 'A{64}'; allowed is 64 hexadecimal digits"),
    ({'codes_sha256': None}, r'codes_sha256 is None; allowed is 64 hexadecimal digits'),
    ({'codes_sha256': 'a' * 64}, r'model\.safetensors: the codes have sha256 \w{64}, config\.json says a{64}. Downl'),
    ({'weights': '../../etc/passwd'}, r"config\.json has unknown keys: \['weights'\]"),
    ({'provenance': []}, r'config\.json: provenance is \[\]; allowed is an object or null. Download or save'),
])  # fmt: skip
def test_values_of_the_record_are_checked(tmp_path, changes, message):
    _write(tmp_path, 9)
    _edit_config(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(tmp_path)


@pytest.mark.parametrize('key', ['package_version', 'encoding', 'levels', 'num_bits', 'plane_order', 'init',
                                 'codes_sha256', 'provenance'])  # fmt: skip
def test_every_key_of_the_record_is_needed(tmp_path, key):
    _write(tmp_path, 9)
    config = json.loads((tmp_path / 'config.json').read_text())
    del config[key]
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=rf"config\.json lacks keys: \['{key}'\]"):
        read_artifact(tmp_path)


@pytest.mark.parametrize('number', ['NaN', '-Infinity', '1e999'])
def test_numbers_that_json_does_not_have_are_refused(tmp_path, number):
    _write(tmp_path, 9, PROVENANCE)
    path = tmp_path / 'config.json'
    path.write_text(path.read_text().replace('"lr": 0.1', f'"lr": {number}'))
    with pytest.raises(ArtifactError, match=r'config\.json holds what JSON cannot \(Out of range float.*Download or'):
        read_config(tmp_path)


def test_a_parsed_record_is_checked_as_the_file_is(tmp_path):
    _write(tmp_path, 9, PROVENANCE)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert read_config(tmp_path) == config
    assert check_config(config, 'It') is None
    for changed, message in (
        ({**config, 'num_bits': 0}, r'^It: num_bits is 0; allowed is an integer in 1\.\.4096\. Download or save'),
        ({**config, 'a': 1, 'b': 2}, r"^It has unknown keys: \['a', 'b'\]\. Download"),
        ({'architecture': 'resnet18'}, r"^It holds a timm model \('resnet18'\)"),
    ):
        with pytest.raises(ArtifactError, match=message):
            check_config(changed, 'It')


def test_a_model_is_no_embedding(tmp_path):
    (tmp_path / 'config.json').write_text('{"architecture": "wrn40_2_p2be", "num_classes": 10}')
    message = r"holds a timm model \('wrn40_2_p2be'\); allowed is an embedding.*timm\.create_model\('hf-hub:ORG/NAME'"
    with pytest.raises(ArtifactError, match=message):
        read_artifact(tmp_path)


@pytest.mark.parametrize('name', FILES)
def test_a_missing_file_is_named(tmp_path, name):
    _write(tmp_path, 9)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=rf'{name} does not exist'):
        read_artifact(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ArtifactError, match=rf'{name} does not exist'):
        read_artifact(tmp_path)
    with pytest.raises(ArtifactError, match=r'config\.json does not exist'):
        read_artifact(tmp_path / 'nowhere')


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='root reads every file')
def test_an_unreadable_file_is_named(tmp_path):
    _write(tmp_path, 9)
    (tmp_path / 'model.safetensors').chmod(0)
    with pytest.raises(ArtifactError, match=r'model\.safetensors cannot be read \(.*Permission denied'):
        read_artifact(tmp_path)


# model.safetensors


def _set(tensor, index, value):
    changed = tensor.clone()
    changed[index] = value
    return changed


@pytest.mark.parametrize(('change', 'message'), [
    (lambda t: {'codes': t['codes']}, r"holds the tensors \{'codes'.*\}; allowed are exactly .*'weight': \('F32', \["),
    (lambda t: {'weight': t['weight']}, r"holds the tensors \{'weight'.*\}; allowed are exactly \{'codes': \('U8'"),
    (lambda t: {**t, 'bias': torch.zeros(1)}, r"holds the tensors .*'bias'.*; allowed are exactly"),
    (lambda t: {**t, 'weight': t['weight'].half()}, r"'weight': \('F16', \[256, 9\]\)\}; allowed are exactly"),
    (lambda t: {**t, 'weight': t['weight'][:255].clone()}, r"'weight': \('F32', \[255, 9\]\)\}; allowed are exactly"),
    (lambda t: {**t, 'weight': t['weight'].T.contiguous()}, r"'weight': \('F32', \[9, 256\]\)\}; allowed are exactly"),
    (lambda t: {**t, 'codes': t['codes'].int()}, r"'codes': \('I32', \[256, 2\]\).*; allowed are exactly"),
    (lambda t: {**t, 'codes': t['codes'][:, :1].clone()}, r"'codes': \('U8', \[256, 1\]\).*; allowed are exactly"),
    (lambda t: {f'layer{i}': torch.zeros(1) for i in range(500)}, r"holds the tensors .{1,301}; allowed are exactly"),
    (lambda t: {**t, 'weight': _set(t['weight'], (5, 1), float('nan'))}, r'1 latents are NaN or infinite; allowed'),
    (lambda t: {**t, 'weight': _set(t['weight'], 5, float('inf'))}, r'9 latents are NaN or infinite; allowed are fin'),
    (lambda t: {**t, 'weight': _set(t['weight'], (0, 0), -1e-9)},
     r'1 of 2304 bits are not those of the signs of the latents, the first at level 0, bit 0'),
    (lambda t: {**t, 'codes': _set(t['codes'], (200, 0), t['codes'][200, 0] ^ 0b00010000)},
     r'1 of 2304 bits are not those of the signs of the latents, the first at level 200, bit 3. Download or save'),
    (lambda t: {**t, 'codes': t['codes'] | 1}, r'bits beyond the 9 of a code are set; allowed is 0'),
])  # fmt: skip
def test_other_tables_are_refused(tmp_path, change, message):
    _write(tmp_path, 9)
    _edit_tensors(tmp_path, change)
    with pytest.raises(ArtifactError, match=rf'model\.safetensors.*{message}'):
        read_artifact(tmp_path)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda t: {'codes': _set(t['codes'], (3, 0), 0)}, r"1 of 2304 bits are not those of encoding 'onehot', the first"),
    (lambda t: {**t, 'weight': torch.zeros(256, 9)}, r"holds the tensors .*'weight'.*; allowed are exactly"),
])  # fmt: skip
def test_other_fixed_tables_are_refused(tmp_path, change, message):
    _write_fixed(tmp_path, onehot_codes(9), 'onehot')
    _edit_tensors(tmp_path, change)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(tmp_path)


def test_a_flipped_bit_is_found(tmp_path):
    _write(tmp_path, 9)
    path = tmp_path / 'model.safetensors'
    tensors = safetensors.torch.load_file(path)
    tensors['codes'][17, 0] ^= 1
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ArtifactError, match=r'the codes have sha256 \w{64}, config\.json says \w{64}'):
        read_artifact(tmp_path)


def test_a_truncated_file_is_damaged_at_every_length(tmp_path):
    _write(tmp_path, 1)
    path = tmp_path / 'model.safetensors'
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r'model\.safetensors is damaged or no safetensors file'):
            read_artifact(tmp_path)
    path.write_bytes(content + b'\0')
    with pytest.raises(ArtifactError, match=r'model\.safetensors is damaged or no safetensors file'):
        read_artifact(tmp_path)


@pytest.mark.parametrize('name', FILES)
def test_a_huge_file_is_not_read(tmp_path, name):
    _write(tmp_path, 9)
    with (tmp_path / name).open('ab') as file:
        file.truncate(2**36)  # no blocks of it exist
    with pytest.raises(ArtifactError, match=rf'{name} has 68719476736 bytes; allowed are at most \d+'):
        read_artifact(tmp_path)


class _CreatesFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pth', 'last.pth.tar', 'model.safetensors'])
def test_pickles_are_never_opened(tmp_path, name):
    folder, planted = tmp_path / 'folder', tmp_path / 'planted'
    _write(folder, 9)
    (folder / 'model.safetensors').unlink()
    content = pickle.dumps(_CreatesFile(planted))
    (folder / name).write_bytes(content)
    named = 'damaged' if name == 'model.safetensors' else rf"does not exist, only \['{name}'\]: pickles, which can run"
    with pytest.raises(ArtifactError, match=named):
        read_artifact(folder)
    assert not planted.exists()
    pickle.loads(content).close()
    assert planted.exists()  # it would have
