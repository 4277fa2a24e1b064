"""`PixelEmbedding` saved, published and pulled by the real client from a Hub on loopback."""

import copy
import json
import pickle
import warnings

import pytest
import safetensors.torch
import timm
import torch
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard, constants
from test_artifact import EDGES
from test_provenance import PROVENANCE

from timm_p2be.encodings import ENCODINGS, EmbeddingParameter, PixelEmbedding
from timm_p2be.hub.artifact import MAX_BYTES, ArtifactError, read_artifact
from timm_p2be.hub.sources import SourceError, fetch
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


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path):
    """The files of an embedding, as bytes by name."""
    _embedding().save_pretrained(tmp_path / 'saved')
    return _content(tmp_path / 'saved')


# folders


@pytest.mark.parametrize('num_bits', [1, 9, 64])
def test_a_learned_table_comes_back_bit_for_bit(tmp_path, num_bits):
    embedding = _embedding(num_bits)
    assert embedding.save_pretrained(tmp_path / 'table') is None
    loaded = PixelEmbedding.from_pretrained(tmp_path / 'table')
    assert _same(loaded, embedding)
    assert type(loaded.weight) is EmbeddingParameter
    assert loaded.weight.requires_grad
    assert (loaded.encoding, loaded.num_bits, loaded.init) == ('p2be', num_bits, 'thermometer')
    assert loaded.provenance == PROVENANCE
    assert {path.name for path in (tmp_path / 'table').iterdir()} == FILES
    assert _same(PixelEmbedding.from_pretrained(f'local-dir:{tmp_path}/table'), embedding)


@pytest.mark.parametrize('encoding', ['onehot', 'thermometer'])
def test_a_fixed_table_comes_back(tmp_path, encoding):
    embedding = PixelEmbedding(encoding, 9)
    embedding.save_pretrained(tmp_path)
    loaded = PixelEmbedding.from_pretrained(tmp_path)
    assert torch.equal(loaded.codes(), embedding.codes())
    assert (loaded.encoding, loaded.weight, loaded.provenance) == (encoding, None, None)


def test_saving_again_replaces_the_card_and_the_record_and_nothing_else(tmp_path):
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
    b'---\n: [\n',
    b'\xff\xfe',
    b'',
    None,
])  # fmt: skip
def test_a_readme_of_somebody_else_stays(tmp_path, content):
    path = tmp_path / 'README.md'
    path.mkdir() if content is None else path.write_bytes(content)
    embedding = _embedding()
    with pytest.warns(UserWarning, match=r'README\.md is no card of timm-p2be. It was left as it is') as caught:
        embedding.save_pretrained(tmp_path)
    assert caught[0].filename == __file__
    assert path.is_dir() if content is None else path.read_bytes() == content
    assert _same(PixelEmbedding.from_pretrained(tmp_path), embedding)


def _not_finite(embedding):
    with torch.no_grad():
        embedding.weight[3] = float('nan')


def _no_record(embedding):
    embedding.provenance = {'model': 'wrn40_2_p2be'}


def _odd_base(embedding):
    embedding.provenance['base_model'] = 'a model/of mine'


def _odd_dataset(embedding):
    embedding.provenance['dataset']['id'] = 'my pictures'


@pytest.mark.parametrize(('spoil', 'message'), [
    (_not_finite, r'9 of them neither 0 nor 1; .* none of them NaN'),
    (_no_record, r'provenance lacks'),
    (_odd_base, r"'a model/of mine'"),
    (_odd_dataset, r"'my pictures'"),
])  # fmt: skip
def test_what_cannot_be_saved_whole_changes_nothing(tmp_path, spoil, message):
    embedding = _embedding()
    embedding.save_pretrained(tmp_path / 'old')
    before = _content(tmp_path / 'old')
    spoil(embedding)
    for folder in ('old', 'new'):
        with pytest.raises(ValueError, match=message):
            embedding.save_pretrained(tmp_path / folder)
    assert _content(tmp_path / 'old') == before
    assert not (tmp_path / 'new').exists()


def test_float64_latents_are_saved_if_float32_holds_their_signs(tmp_path):
    embedding = _embedding().double()
    embedding.save_pretrained(tmp_path)
    assert _same(PixelEmbedding.from_pretrained(tmp_path), embedding.to(torch.float32))
    embedding.double()
    with torch.no_grad():
        embedding.weight[0, 0] = -1e-60
    with pytest.raises(ArtifactError, match='1 of 2304 bits are not those of the signs of the latents'):
        embedding.save_pretrained(tmp_path)


def test_the_card_says_what_the_class_says(tmp_path):
    _embedding().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / 'README.md').data
    ours = PixelEmbedding._hub_mixin_info.model_card_data
    assert (card.library_name, card.license) == (ours.library_name, ours.license) == ('timm-p2be', 'apache-2.0')
    assert set(ours.tags) - {'model_hub_mixin'} <= set(card.tags)


def test_arguments_of_the_constructor_are_refused(saved, tmp_path):
    with pytest.raises(TypeError, match='num_bits'):
        PixelEmbedding.from_pretrained(tmp_path / 'saved', num_bits=8)


# publishing


def test_published_in_one_commit_and_pulled_by_tag_and_commit(hub):
    embedding, later = _embedding(), _embedding(seed=1)
    url = embedding.push_to_hub(NAME)
    first = hub.repos[NAME].head
    assert url == f'{hub.url}/{NAME}/commit/{first.sha}'
    assert set(first.files) == FILES | {'.gitattributes'}
    assert len(hub.repos[NAME].commits) == 2  # creation and ours
    assert hub.count('POST .*/commit/main') == 1
    assert f"from_pretrained('{NAME}')" in first.files['README.md'].content.decode()
    HfApi().create_tag(NAME, tag='v1')
    later.push_to_hub(NAME, commit_message='longer training')
    assert hub.repos[NAME].head.title == 'longer training'
    assert _same(PixelEmbedding.from_pretrained(NAME), later)
    assert _same(PixelEmbedding.from_pretrained(f'{NAME}@v1'), embedding)
    assert _same(PixelEmbedding.from_pretrained(NAME, revision='v1'), embedding)
    assert _same(PixelEmbedding.from_pretrained(NAME, revision=first.sha), embedding)
    assert _same(PixelEmbedding.from_pretrained(f'hf-hub:{NAME}', force_download=True), later)
    assert PixelEmbedding.from_pretrained(f'{NAME}@v1').provenance == PROVENANCE


def test_saved_and_published_in_one_call(hub, tmp_path):
    embedding = _embedding()
    url = embedding.save_pretrained(tmp_path / 'mine', push_to_hub=True, repo_id=NAME, commit_message='mine')
    assert url == f'{hub.url}/{NAME}/commit/{hub.repos[NAME].head.sha}'
    assert hub.repos[NAME].head.title == 'mine'
    for source in (NAME, tmp_path / 'mine'):
        assert _same(PixelEmbedding.from_pretrained(source), embedding)
    with pytest.raises(ValueError, match="Got repo_id='mine'; the card shows how to load it, so write 'org/name'"):
        embedding.save_pretrained(tmp_path / 'mine', push_to_hub=True)


@pytest.mark.parametrize('encoding', ['onehot', 'thermometer'])
def test_a_fixed_table_is_published_too(hub, encoding):
    PixelEmbedding(encoding, 9).push_to_hub(NAME)
    assert PixelEmbedding.from_pretrained(NAME).encoding == encoding


def test_nothing_is_created_for_what_cannot_be_published(hub):
    embedding = _embedding()
    with pytest.raises(ValueError, match=r"Got repo_id='table'; the card shows how to load it, so write 'org/name'"):
        embedding.push_to_hub('table')
    with pytest.raises(ValueError, match="'some one/table'"):
        embedding.push_to_hub('some one/table')
    with torch.no_grad():
        embedding.weight[0] = float('inf')
    with pytest.raises(ArtifactError, match='9 latents are NaN or infinite'):
        embedding.push_to_hub(NAME)
    assert hub.requests == []


def test_a_wrong_token_is_not_shown(hub):
    with pytest.raises(SourceError, match='hf auth login') as raised:
        _embedding().push_to_hub(NAME, token='hf_secret')
    assert 'hf_secret' not in str(raised.value)
    assert NAME not in hub.repos


@pytest.mark.parametrize('token', ['hf_secr\u00e9t', 'hf_sec ret', 'hf_secret\nX: 1'])
def test_a_token_that_is_none_is_not_sent(hub, monkeypatch, token):
    with pytest.raises(SourceError, match=r'The token contains .*; log in with `hf auth login`') as raised:
        _embedding().push_to_hub(NAME, token=token)
    assert 'hf_sec' not in str(raised.value)
    monkeypatch.setenv('HF_TOKEN', token.replace('\n', ' '))
    with pytest.raises(SourceError, match='The token contains'):
        _embedding().push_to_hub(NAME)
    assert hub.requests == []


def test_without_a_connection_no_folder_is_suggested(hub, monkeypatch):
    with HubServer() as gone:
        url = gone.url
    monkeypatch.setattr(constants, 'ENDPOINT', url)
    with pytest.raises(SourceError, match=r'cannot be reached for someone/table .*, and try again') as raised:
        _embedding().push_to_hub(NAME)
    assert 'folder' not in str(raised.value)


# pulling


def test_offline_from_the_cache(hub, saved, tmp_path, monkeypatch):
    commit = hub.put(NAME, saved, tag='v1')
    expected = PixelEmbedding.from_pretrained(f'{NAME}@v1')
    hub.requests.clear()
    assert _same(PixelEmbedding.from_pretrained(NAME, revision=commit), expected)
    assert _same(PixelEmbedding.from_pretrained(NAME, revision='v1', local_files_only=True), expected)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert _same(PixelEmbedding.from_pretrained(f'{NAME}@v1'), expected)
    with pytest.raises(SourceError, match=r'someone/table@v2 is not in the cache.*Run `timm-p2be pull'):
        PixelEmbedding.from_pretrained(f'{NAME}@v2')
    with pytest.raises(SourceError, match=r'is not in the cache'):
        PixelEmbedding.from_pretrained(f'{NAME}@v1', cache_dir=tmp_path / 'empty')
    assert hub.requests == []


def test_a_revision_that_is_not_there(hub, saved):
    hub.put(NAME, saved)
    with pytest.raises(SourceError, match='no such revision'):
        PixelEmbedding.from_pretrained(f'{NAME}@v9')
    with pytest.raises(SourceError, match='someone/other'):
        PixelEmbedding.from_pretrained('someone/other')
    with pytest.raises(SourceError, match="Got the revision ''; name a branch, a tag or a commit"):
        PixelEmbedding.from_pretrained(NAME, revision='')


def test_a_hub_out_of_order_is_asked_once(hub, saved):
    hub.put(NAME, saved)
    hub.fail('GET /api/models/', 503)
    with pytest.raises(SourceError, match=r'out of order'):
        PixelEmbedding.from_pretrained(NAME)
    requests = len(hub.requests)
    hub.requests.clear()
    with pytest.raises(SourceError, match=r'out of order'):
        fetch(NAME, ['config.json'])
    assert len(hub.requests) == requests


class _CreatesFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_repository_of_pickles_is_refused_unopened(hub, saved, tmp_path):
    del saved['model.safetensors']
    planted = tmp_path / 'planted'
    bad = pickle.dumps(_CreatesFile(planted))
    hub.put(NAME, {**saved, 'pytorch_model.bin': bad, 'model.pkl': bad})
    with pytest.raises(SourceError, match=r"has no file 'model\.safetensors'.*pytorch_model\.bin"):
        PixelEmbedding.from_pretrained(NAME)
    assert hub.count(r'(bin|pkl)$') == 0
    assert not planted.exists()


def test_only_the_two_files_are_downloaded(hub, saved):
    hub.put(NAME, {**saved, 'pytorch_model.bin': b'', 'other.safetensors': b'', 'run.py': b''})
    PixelEmbedding.from_pretrained(NAME)
    resolved = {path.rpartition('/')[2] for _, path in hub.requests if '/resolve/' in path}
    assert resolved == {'config.json', 'model.safetensors'}


def _config(**changes):
    return lambda files: {**files, 'config.json': json.dumps({**json.loads(files['config.json']), **changes}).encode()}


def _tensors(change):
    def changed(files):
        tensors = safetensors.torch.load(files['model.safetensors'])
        return {**files, 'model.safetensors': safetensors.torch.save(change(tensors))}

    return changed


@pytest.mark.parametrize(('damage', 'message'), [
    (_config(codes_sha256='0' * 64), r'the codes have sha256 \w{64}, config\.json says 0{64}'),
    (_config(format_version=2), r'has format version 2, this timm-p2be reads up to 1. Update timm-p2be'),
    (_config(num_bits=8), r'holds the tensors .*allowed are exactly'),
    (_config(encoding='onehot', init='normal'), r'holds the tensors .*allowed are exactly'),
    (_config(encoding='onehot', num_bits=10**9), r'num_bits is 1000000000; allowed is an integer in 1\.\.4096'),
    (_config(provenance={'model': 'x'}), r'provenance lacks'),
    (lambda files: {**files, 'config.json': b'{"num_bits": 9}'}, r"format is None; allowed is 'timm-p2be-embedding'"),
    (lambda files: {**files, 'config.json': b'PK\x03\x04'}, r'config\.json is no JSON'),
    (_tensors(lambda t: {'codes': t['codes']}), r'holds the tensors .*allowed are exactly'),
    (_tensors(lambda t: {'weight': t['weight']}), r'holds the tensors .*allowed are exactly'),
    (_tensors(lambda t: {**t, 'weight': t['weight'][:, :8].clone()}), r'holds the tensors .*allowed are exactly'),
    (_tensors(lambda t: {**t, 'weight': t['weight'] * float('nan')}), r'2304 latents are NaN or infinite'),
    (_tensors(lambda t: {**t, 'weight': -t['weight']}), r'bits are not those of the signs of the latents'),
    (lambda files: {**files, 'model.safetensors': files['model.safetensors'][:-1]}, r'is damaged or no safetensors'),
    (lambda files: {**files, 'model.safetensors': b''}, r'is damaged or no safetensors'),
])  # fmt: skip
def test_a_damaged_repository_gives_no_table(hub, saved, damage, message):
    hub.put(NAME, damage(saved))
    with pytest.raises(ArtifactError, match=message):
        PixelEmbedding.from_pretrained(NAME)


@pytest.mark.parametrize('size', [9, MAX_BYTES + 1])
def test_a_model_is_no_embedding(hub, size):
    config = json.dumps({'architecture': 'wrn40_2_p2be', 'num_classes': 10}).encode()
    hub.put(NAME, {'config.json': config, 'model.safetensors': bytes(size)})
    with pytest.raises(ArtifactError, match=r"holds a timm model \('wrn40_2_p2be'\).*timm\.create_model\('hf-hub:"):
        PixelEmbedding.from_pretrained(NAME)
    assert hub.count('GET .*safetensors') == (size < MAX_BYTES)


def test_a_table_too_large_is_not_downloaded(hub, saved):
    hub.put(NAME, {**saved, 'model.safetensors': bytes(MAX_BYTES + 1)})
    with pytest.raises(SourceError, match=rf'has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are accepted'):
        PixelEmbedding.from_pretrained(NAME)
    assert hub.count('GET .*safetensors') == 0


# in a model


def test_an_artifact_is_copied_into_a_stem_in_place(tmp_path):
    embedding = _embedding()
    embedding.save_pretrained(tmp_path)
    artifact = read_artifact(tmp_path)
    model = timm.create_model('wrn10_2_p2be', num_bits=9)
    stem = find_embedding(model.half())
    weight = stem.weight
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stem.load_artifact(artifact)
    assert stem.weight is weight
    assert any(weight is parameter for parameter in optimizer.param_groups[0]['params'])
    assert (weight.dtype, weight.requires_grad) == (torch.float32, True)
    assert _same(stem, embedding)
    assert (stem.init, stem.provenance) == ('thermometer', PROVENANCE)
    artifact.latents.zero_()
    artifact.provenance['seed'] = 43
    assert _same(stem, embedding)
    assert stem.provenance == PROVENANCE


@pytest.mark.parametrize(('embedding', 'message'), [
    (PixelEmbedding('p2be', 8), r"Got a table of encoding 'p2be' and 9 bits; allowed here is 'p2be' and 8 bits"),
    (PixelEmbedding('onehot', 9), r"allowed here is 'onehot' and 9 bits. Create the model with encoding 'p2be' and"),
])  # fmt: skip
def test_an_artifact_of_another_kind_is_refused(tmp_path, embedding, message):
    _embedding().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        embedding.load_artifact(read_artifact(tmp_path))


def test_an_artifact_needs_a_place(tmp_path):
    _embedding().save_pretrained(tmp_path)
    with torch.device('meta'):
        embedding = PixelEmbedding('p2be', 9)
    with pytest.raises(ValueError, match=r'on the meta device, which holds no values. Load it after to_empty'):
        embedding.load_artifact(read_artifact(tmp_path))
    with pytest.raises(ArtifactError, match='on meta'):
        embedding.save_pretrained(tmp_path)


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


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of torch.jit
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_a_loaded_table_can_be_scripted_exported_and_compiled(tmp_path, encoding):
    embedding = _embedding() if encoding == 'p2be' else PixelEmbedding(encoding, 9)
    embedding.save_pretrained(tmp_path)
    model = timm.create_model(f'wrn10_2_{encoding}', num_bits=9).eval().requires_grad_(False)
    find_embedding(model).load_artifact(read_artifact(tmp_path))
    images = torch.rand(2, 3, 16, 16)
    expected = model(images)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the tracers
        forms = {
            'script': torch.jit.script(model),
            'trace': torch.jit.trace(model, images),
            'export': torch.export.export(model, (images,)).module(),
            'compile': torch.compile(model, backend='eager', fullgraph=True),
        }
        for name, form in forms.items():
            torch.testing.assert_close(form(images), expected, rtol=1e-4, atol=1e-4, msg=name)
