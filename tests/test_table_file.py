"""The folder of a table: bit for bit there and back, and every damage refused before anything is used."""

import errno
import hashlib
import json
import os
import pickle
import re
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from published import PROVENANCE, Bomb

from timm_p2be.encodings.codes import onehot_codes
from timm_p2be.encodings.table_file import MAX_TABLE_BYTES, TableFile, codes_sha256, read_table_file

FILES = ('config.json', 'model.safetensors')
EDGES = [0.0, -0.0, 1e-9, -1e-9, 1e-45, -1e-45, 3e38, -3e38, 0.5, -0.5]


def _latents(num_bits):
    latents = torch.randn(256, num_bits, generator=torch.Generator().manual_seed(0))
    latents.view(-1)[: len(EDGES)] = torch.tensor(EDGES)
    return latents


def _table(num_bits=9, latents=None, **changes):
    latents = _latents(num_bits) if latents is None else latents
    return replace(TableFile('p2be', 'normal', (latents >= 0).float(), latents, None, '0.1.0'), **changes)


def _fixed(encoding, codes):
    return TableFile(encoding, 'normal', codes, None)


def _edit_config(folder, **changes):
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_tensors(folder, change):
    """Rewrite the tensors; config.json's sha256 follows the changed bits, so that it is not what is found wrong."""
    path = folder / 'model.safetensors'
    tensors = change(safetensors.torch.load_file(path))
    safetensors.torch.save_file(tensors, path)
    if 'codes' in tensors:
        _edit_config(folder, codes_sha256=hashlib.sha256(tensors['codes'].contiguous().numpy().tobytes()).hexdigest())


def _refused(folder, *words):
    with pytest.raises(ValueError, match='.*'.join(map(re.escape, words))):
        read_table_file(folder)


# there and back


@pytest.mark.parametrize('num_bits', [1, 8, 9, 4096])
def test_latents_come_back_bit_for_bit(tmp_path, num_bits):
    table = _table(num_bits, init='thermometer', provenance=PROVENANCE)
    table.write(tmp_path)
    read = read_table_file(tmp_path)
    assert torch.equal(read.latents.view(torch.int32), table.latents.view(torch.int32))
    assert torch.equal(read.codes, (table.latents >= 0).float())
    assert (read.codes.dtype, read.latents.dtype) == (torch.float32, torch.float32)
    assert (read.encoding, read.init, read.provenance) == ('p2be', 'thermometer', PROVENANCE)
    assert (tmp_path / 'model.safetensors').stat().st_size <= MAX_TABLE_BYTES < 5 * 2**20
    read.latents.zero_()  # what was read is the reader's own
    assert read_table_file(tmp_path).latents.any()


def test_bits_are_packed_highest_first_and_padded_with_zeros(tmp_path):
    table = _table(9)
    table.write(tmp_path)
    packed = safetensors.torch.load_file(tmp_path / 'model.safetensors')['codes']
    assert (packed.dtype, packed.shape) == (torch.uint8, (256, 2))
    rows = [''.join('1' if w >= 0 else '0' for w in row) + '0000000' for row in table.latents.tolist()]
    assert [f'{first:08b}{second:08b}' for first, second in packed.tolist()] == rows
    expected = hashlib.sha256(b''.join(int(row, 2).to_bytes(2, 'big') for row in rows)).hexdigest()
    assert codes_sha256(table.codes) == expected
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


def test_files_may_be_links_as_in_the_cache_of_the_hub(tmp_path):
    table = _table()
    table.write(tmp_path / 'blobs')
    (tmp_path / 'snapshot').mkdir()
    for name in FILES:
        (tmp_path / 'snapshot' / name).symlink_to(tmp_path / 'blobs' / name)
    assert torch.equal(read_table_file(tmp_path / 'snapshot').latents, table.latents)
    before = (tmp_path / 'blobs' / FILES[1]).read_bytes()
    _table(latents=-table.latents - 1).write(tmp_path / 'snapshot')
    assert (tmp_path / 'blobs' / FILES[1]).read_bytes() == before  # a link is replaced, not written through


# whole or not at all


@pytest.mark.parametrize('file', FILES)
def test_a_full_disk_leaves_no_mixture_of_two_tables(tmp_path, monkeypatch, file):
    _table().write(tmp_path)
    fsync, remaining = os.fsync, [1 if file == 'config.json' else 0]

    def full(descriptor):
        if not remaining[0]:
            raise OSError(errno.ENOSPC, 'No space left on device')
        remaining[0] -= 1
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        _table(latents=-_latents(9) - 1).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['model.safetensors']
    _refused(tmp_path, 'config.json')


NAN = _latents(9)
NAN[7, 3] = float('nan')
ONES = torch.ones(256, 9)


@pytest.mark.parametrize(('table', 'words'), [
    (_table(codes=torch.full((256, 9), 0.5)), ('2304 of 2304 bits',)),
    (_table(codes=torch.ones(255, 9)), ('levels is 255', '256')),
    (_fixed('p2be', ONES), ("'p2be'", 'no latents')),
    (_table(codes=ONES, latents=torch.ones(256, 8)), ('latents of shape (256, 8)', 'in the shape of its codes')),
    (_table(codes=ONES), ('of 2304 bits', 'signs of the latents')),
    (_table(latents=NAN), ('1 latents', 'NaN or infinite')),
    (_table(codes=ONES * 0, latents=torch.full((256, 9), -1e-60, dtype=torch.float64)), ('2304 of 2304 bits',)),
    (_fixed('thermometer', onehot_codes(9)), ("'thermometer'", 'the first at level 0, bit')),
    (_table(codes=onehot_codes(9), encoding='onehot'), ("'onehot'", "only 'p2be' has latents")),
    (_table(provenance={'lr': float('nan')}), ('Out of range float',)),
])  # fmt: skip
def test_nothing_is_written_that_could_not_be_read(tmp_path, table, words):
    _table().write(tmp_path)
    with pytest.raises(ValueError, match='.*'.join(map(re.escape, words))):
        table.write(tmp_path)
    assert torch.equal(read_table_file(tmp_path).latents, _latents(9))


# config.json


@pytest.mark.parametrize(('content', 'words'), [
    (b'', ('cannot be read as JSON', 'Expecting value')),
    (b'\xff\xfe{}', ('cannot be read as JSON', 'utf-8')),
    (b'[' * 200_000, ('cannot be read as JSON', 'recursion')),
    (b'{"seed": NaN}', ('cannot be read as JSON', 'NaN is no JSON value')),
    (b'{"seed": 1e999}', ('cannot be read as JSON', '1e999 is no JSON value')),
    (b'["timm-p2be-embedding"]', ('cannot be read as JSON', 'a list, not an object')),
    (b' ' * (2**20 + 1), ('cannot be read as JSON', 'more than 1048576 bytes')),
    (b'{"format": "gguf"}', ('lacks', 'codes_sha256')),
])  # fmt: skip
def test_what_is_no_config_is_refused(tmp_path, content, words):
    _table().write(tmp_path)
    (tmp_path / 'config.json').write_bytes(content)
    _refused(tmp_path, 'config.json', *words)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'format': 'gguf'}, ("format is 'gguf'", "allowed is 'timm-p2be-embedding'")),
    ({'format_version': 2}, ('format_version is 2', 'allowed is 1', 'pip install -U timm-p2be')),
    ({'package_version': '\x1b[2J'}, (r"package_version is '\x1b[2J'",)),
    ({'num_bits': 4097}, ('num_bits is 4097', '1..4096')),
    ({'plane_order': 'color-major'}, ("plane_order is 'color-major'", "'bit-major'")),
    ({'init': 'zeros'}, ("init is 'zeros'", "['normal', 'thermometer', 'smooth', 'linear']")),
    ({'encoding': 'onehot', 'init': 'thermometer'}, ("init is 'thermometer'", "a fixed encoding has 'normal'")),
    ({'codes_sha256': 'A' * 64}, ('codes_sha256 is', '64 hexadecimal digits')),
    ({'codes_sha256': 'a' * 64}, ('the codes have sha256', f'config.json says {"a" * 64}')),
    ({'weights': '../../etc/passwd'}, ("unknown keys ['weights']",)),
])  # fmt: skip
def test_values_of_the_config_are_checked(tmp_path, changes, words):
    _table().write(tmp_path)
    _edit_config(tmp_path, **changes)
    _refused(tmp_path, *words)


@pytest.mark.parametrize('name', FILES)
def test_a_missing_or_huge_file_is_named(tmp_path, name):
    _table().write(tmp_path)
    with (tmp_path / name).open('ab') as file:
        file.truncate(2**36)  # no blocks of it exist
    _refused(tmp_path, name, 'bytes')
    (tmp_path / name).unlink()
    _refused(tmp_path, name)
    (tmp_path / name).mkdir()
    _refused(tmp_path, name)


# model.safetensors


def _set(tensor, index, value):
    changed = tensor.clone()
    changed[index] = value
    return changed


@pytest.mark.parametrize(('change', 'words'), [
    (lambda t: {'codes': t['codes']}, ('holds the tensors', 'allowed are exactly', "'weight'")),
    (lambda t: {**t, 'weight': t['weight'].half()}, ('holds the tensors', 'allowed are exactly')),
    (lambda t: {**t, 'weight': _set(t['weight'], (5, 1), float('nan'))}, ('1 latents are NaN or infinite',)),
    (lambda t: {**t, 'weight': _set(t['weight'], (0, 0), -1e-9)}, ('1 of 2304 bits', 'at level 0, bit 0')),
    (lambda t: {**t, 'codes': _set(t['codes'], (200, 0), t['codes'][200, 0] ^ 0b00010000)},
     ('1 of 2304 bits', 'signs of the latents', 'at level 200, bit 3')),
])  # fmt: skip
def test_other_tables_are_refused(tmp_path, change, words):
    _table().write(tmp_path)
    _edit_tensors(tmp_path, change)
    _refused(tmp_path, 'model.safetensors', *words)


def test_a_file_cut_off_is_damaged_at_every_length(tmp_path):
    _table(1).write(tmp_path)
    path = tmp_path / 'model.safetensors'
    content = path.read_bytes()
    for damaged in (*(content[:length] for length in (0, 8, 100, len(content) - 1)), content + b'\0'):
        path.write_bytes(damaged)
        _refused(tmp_path, 'model.safetensors is damaged or no safetensors file')


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'last.pth.tar', 'model.safetensors'])
def test_pickles_are_never_opened(tmp_path, name):
    folder, planted = tmp_path / 'folder', tmp_path / 'planted'
    _table().write(folder)
    (folder / 'model.safetensors').unlink()
    content = pickle.dumps(Bomb(planted))
    (folder / name).write_bytes(content)
    _refused(folder, 'damaged' if name == 'model.safetensors' else 'never from a pickle')
    assert not planted.exists()
