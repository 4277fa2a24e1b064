"""`PixelEmbedding` saved, published and pulled by the real client from a Hub on loopback."""

import copy
import pickle
import re

import pytest
import timm
import torch
from huggingface_hub import HfApi
from published import PROVENANCE, Bomb, contents
from test_table_file import EDGES

from timm_p2be.encodings import EmbeddingParameter, PixelEmbedding
from timm_p2be.encodings.table_file import MAX_TABLE_BYTES, read_table_file
from timm_p2be.hub.errors import FetchError
from timm_p2be.stem import find_embedding

NAME = 'someone/table'
FILES = {'README.md', 'config.json', 'model.safetensors'}


def _embedding(num_bits=9, seed=0):
    torch.manual_seed(seed)
    embedding = PixelEmbedding('p2be', num_bits, init='thermometer')
    with torch.no_grad():
        embedding.weight.view(-1)[: len(EDGES)] = torch.tensor(EDGES)
    embedding.provenance = copy.deepcopy(PROVENANCE)
    return embedding


def _same(one, other):
    latents = [e.weight.detach().view(torch.int32) for e in (one, other)]  # -0.0 is not 0.0
    return torch.equal(*latents) and torch.equal(one.codes(), other.codes())


@pytest.fixture
def saved(tmp_path):
    """The files of an embedding, as bytes by name."""
    _embedding().save_pretrained(tmp_path / 'saved')
    return contents(tmp_path / 'saved')


# folders


def test_a_learned_table_comes_back_bit_for_bit(tmp_path):
    embedding = _embedding()
    assert embedding.save_pretrained(tmp_path / 'table') is None
    loaded = PixelEmbedding.from_pretrained(tmp_path / 'table')
    assert _same(loaded, embedding)
    assert type(loaded.weight) is EmbeddingParameter
    assert loaded.weight.requires_grad
    assert (loaded.encoding, loaded.num_bits, loaded.init) == ('p2be', 9, 'thermometer')
    assert loaded.provenance == PROVENANCE
    assert {path.name for path in (tmp_path / 'table').iterdir()} == FILES
    assert _same(PixelEmbedding.from_pretrained(f'local-dir:{tmp_path}/table'), embedding)


def test_a_fixed_table_comes_back(hub, tmp_path):
    embedding = PixelEmbedding('onehot', 9)
    embedding.save_pretrained(tmp_path / 'table')
    embedding.push_to_hub(NAME)
    for source in (tmp_path / 'table', NAME):
        loaded = PixelEmbedding.from_pretrained(source)
        assert torch.equal(loaded.codes(), embedding.codes())
        assert (loaded.encoding, loaded.weight, loaded.provenance) == ('onehot', None, None)


def test_saving_again_replaces_the_card_and_the_table_and_nothing_else(tmp_path):
    _embedding(9).save_pretrained(tmp_path, model_card_kwargs={'name': NAME})
    card = (tmp_path / 'README.md').read_text()
    (tmp_path / 'picture.png').write_bytes(b'a picture')
    other = PixelEmbedding('p2be', 10)
    other.save_pretrained(str(tmp_path))
    assert _same(PixelEmbedding.from_pretrained(tmp_path), other)
    assert '10 bits' in (tmp_path / 'README.md').read_text() != card
    assert NAME in card
    assert (tmp_path / 'picture.png').read_bytes() == b'a picture'


@pytest.mark.parametrize('content', [
    b'# Our project\n\nlibrary_name: timm-p2be\n',
    b'---\nlibrary_name: timm\n---\n\n```yaml\n---\nlibrary_name: timm-p2be\n---\n```\n',
    b'\xff\xfe',
])  # fmt: skip
def test_a_readme_of_somebody_else_stays(tmp_path, content):
    path = tmp_path / 'README.md'
    path.write_bytes(content)
    embedding = _embedding()
    with pytest.warns(UserWarning, match=r'README\.md is no card of timm-p2be. It was left as it is') as caught:
        embedding.save_pretrained(tmp_path)
    assert caught[0].filename == __file__
    assert path.read_bytes() == content
    assert _same(PixelEmbedding.from_pretrained(tmp_path), embedding)


@pytest.mark.parametrize(('spoil', 'words'), [
    (lambda embedding: embedding.weight.data[3].fill_(float('nan')), 'NaN or infinite'),
    (lambda embedding: embedding.provenance.pop('seed'), 'provenance lacks'),
    (lambda embedding: embedding.provenance.update(base_model='a model/of mine'), 'a model/of mine'),
])  # fmt: skip
def test_what_cannot_be_saved_whole_changes_nothing(hub, tmp_path, spoil, words):
    embedding = _embedding()
    embedding.save_pretrained(tmp_path / 'old')
    before = contents(tmp_path / 'old')
    spoil(embedding)
    for folder in ('old', 'new'):
        with pytest.raises(ValueError, match=words):
            embedding.save_pretrained(tmp_path / folder)
    with pytest.raises(ValueError, match=words):
        embedding.push_to_hub(NAME)
    assert contents(tmp_path / 'old') == before
    assert not (tmp_path / 'new').exists()
    assert hub.requests == []


# publishing


def test_published_in_one_commit_and_pulled_by_tag_and_commit(hub, tmp_path):
    embedding, later = _embedding(), _embedding(seed=1)
    url = embedding.push_to_hub(NAME)
    first = hub.repos[NAME].head
    assert url == f'{hub.url}/{NAME}/commit/{first.sha}'
    assert set(first.files) == FILES | {'.gitattributes'}
    assert len(hub.repos[NAME].commits) == 2  # creation and ours
    assert hub.count('POST .*/commit/main') == 1
    assert f"from_pretrained('{NAME}')" in first.files['README.md'].content.decode()
    HfApi().create_tag(NAME, tag='v1')
    later.save_pretrained(tmp_path, push_to_hub=True, repo_id=NAME, commit_message='longer training')
    assert _same(PixelEmbedding.from_pretrained(tmp_path), later)
    assert hub.repos[NAME].head.title == 'longer training'
    assert _same(PixelEmbedding.from_pretrained(NAME), later)
    assert _same(PixelEmbedding.from_pretrained(f'{NAME}@v1'), embedding)
    assert _same(PixelEmbedding.from_pretrained(NAME, revision=first.sha), embedding)
    assert _same(PixelEmbedding.from_pretrained(f'hf-hub:{NAME}', force_download=True), later)
    assert PixelEmbedding.from_pretrained(f'{NAME}@v1').provenance == PROVENANCE


@pytest.mark.parametrize(('name', 'options', 'words'), [
    ('table', {}, "write 'org/name'"),
    ('some one/table', {}, "'some one/table'"),
    (NAME, {'token': 'hf_sec\u00e9t'}, 'The token contains'),
])  # fmt: skip
def test_what_is_no_name_or_token_is_not_sent(hub, name, options, words):
    with pytest.raises(ValueError, match=words) as raised:
        _embedding().push_to_hub(name, **options)
    assert 'hf_sec' not in str(raised.value)
    assert hub.requests == []


# pulling


def test_only_the_two_files_are_downloaded_and_no_pickle_is_opened(hub, saved, tmp_path):
    planted = tmp_path / 'planted'
    bad = pickle.dumps(Bomb(planted))
    hub.put(NAME, {**saved, 'pytorch_model.bin': bad, 'other.safetensors': b'', 'run.py': b''})
    PixelEmbedding.from_pretrained(NAME)
    resolved = {path.rpartition('/')[2] for _, path in hub.requests if '/resolve/' in path}
    assert resolved == {'config.json', 'model.safetensors'}
    del saved['model.safetensors']
    hub.put('someone/other', {**saved, 'pytorch_model.bin': bad, 'model.pkl': bad})
    with pytest.raises(FetchError, match=r"has no file 'model\.safetensors'.*pytorch_model\.bin"):
        PixelEmbedding.from_pretrained('someone/other')
    assert hub.count(r'(bin|pkl)$') == 0
    assert not planted.exists()


@pytest.mark.parametrize(('damage', 'words'), [
    (lambda files: {**files, 'config.json': b'{"num_bits": 9}'}, 'describes neither'),
    (lambda files: {**files, 'model.safetensors': bytes(MAX_TABLE_BYTES + 1)}, f'at most {MAX_TABLE_BYTES} are acce'),
    (lambda files: {**files, 'config.json': b'{"architecture": "wrn40_2_p2be"}'}, 'no table.*timm.create_model'),
])  # fmt: skip
def test_a_damaged_repository_gives_no_table(hub, saved, damage, words):
    hub.put(NAME, damage(saved))
    with pytest.raises(ValueError, match=words):
        PixelEmbedding.from_pretrained(NAME)
    if 'at most' in words or 'no table' in words:
        assert not hub.count('GET .*safetensors')


# in a model


def test_a_table_file_is_copied_into_a_stem_in_place(tmp_path):
    embedding = _embedding()
    embedding.save_pretrained(tmp_path)
    file = read_table_file(tmp_path)
    model = timm.create_model('wrn10_2_p2be', num_bits=9)
    stem = find_embedding(model.half())
    weight = stem.weight
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stem.load_table_file(file)
    assert stem.weight is weight
    assert any(weight is parameter for parameter in optimizer.param_groups[0]['params'])
    assert (weight.dtype, weight.requires_grad) == (torch.float32, True)
    assert (stem.init, stem.provenance) == ('thermometer', PROVENANCE)
    file.latents.zero_()
    file.provenance['seed'] = 43
    assert _same(stem, embedding)
    assert stem.provenance == PROVENANCE


@pytest.mark.parametrize(('embedding', 'words'), [
    (PixelEmbedding('p2be', 8), "encoding 'p2be' and 9 bits; allowed here is 'p2be' and 8 bits"),
    (PixelEmbedding('onehot', 9), "allowed here is 'onehot' and 9 bits. Create the model with encoding 'p2be'"),
    (PixelEmbedding('p2be', 9).to('meta'), 'on the meta device, which holds no values. Load it after to_empty'),
])  # fmt: skip
def test_a_table_file_needs_a_place(tmp_path, embedding, words):
    _embedding().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)):
        embedding.load_table_file(read_table_file(tmp_path))


def test_provenance_stays_with_its_table_and_no_longer():
    embedding = _embedding()
    for copied in (copy.deepcopy(embedding), pickle.loads(pickle.dumps(embedding)), embedding.half().float()):
        assert copied.provenance == PROVENANCE
        assert copied._hub_mixin_config == {'encoding': 'p2be', 'num_bits': 9, 'init': 'thermometer'}
    state = PixelEmbedding('p2be', 9).state_dict()
    assert list(state) == ['weight']
    embedding.load_state_dict(state)
    assert embedding.provenance is None
    embedding.provenance = PROVENANCE
    embedding.reset_parameters()
    assert embedding.provenance is None
