"""From a run of train.py to the files of a repository: weights, configuration, results and card, nothing else."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn

import timm_p2be
from timm_p2be.checkpoints import weights_sha256
from timm_p2be.encodings.embedding import PixelEmbedding
from timm_p2be.encodings.statistics import code_statistics
from timm_p2be.files import atomic_folder, file_sha256, write_json
from timm_p2be.hub.card import LICENSE, write_card
from timm_p2be.hub.errors import FetchError
from timm_p2be.hub.repository import MODEL_FORMAT_VERSION, RELEASE_FILES, verify
from timm_p2be.hub.results import PUBLISHED, ROUNDED, collect_results, measure_clean
from timm_p2be.hub.run_description import Dataset, dataset_of, missing, training_record
from timm_p2be.hub.run_folder import Run, build_model, data_config, label_names, read_run
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel
from timm_p2be.stem import encoded_stem, learned_embedding

_WEIGHTS = 'model.safetensors'
# what the cfg of a registered model says of the weights that it came with, which these are not
_OF_OTHER_WEIGHTS = 'tag description label_names label_descriptions origin_url paper_name paper_ids notes'.split()
_PATH_FLAGS = 'output data_dir dataset config resume initial_checkpoint pretrained_path class_map'.split()


@dataclass(frozen=True)
class Release:
    """What to make of a run."""

    repo_id: str  # for the example in the card, as the tag
    tag: str | None = None
    checkpoint: str = 'last'  # 'best', or a path
    embedding_only: bool = False
    half: bool = False  # round weights of convolutions and linear layers to float16
    dataset: Dataset = field(default_factory=Dataset)
    results: Sequence[Path] = ()  # files of `timm-p2be benchmark`
    base_model: str | None = None  # what the run started from; for a table, the published network it is from
    license: str = LICENSE
    # images, given a side in pixels, on which to measure the weights as they are published; only their `source` and
    # `limit` count, for they are resized and cropped as config.json has it
    test: Callable[[int], ImageSet] | None = None
    test_split: str | None = None  # what the card calls them; None takes the run's validation split

    @property
    def name(self) -> str:
        """'org/name' or 'org/name@tag'."""
        return f'{self.repo_id}@{self.tag}' if self.tag else self.repo_id


def prepare(run_folder: Path, output: Path, release: Release) -> None:
    """Write the files of a repository to `output`, all of them or none.

    Of `RELEASE_FILES` a table lacks results.json, which its config.json holds; pictures are there as far as known.

    Args:
        run_folder: output folder of train.py.
        output: new folder, or one that holds an earlier release and nothing else.
        release: what to make of the run.
    """
    run = read_run(run_folder, release.checkpoint)
    problems = missing(run, release.dataset, release.base_model)
    if run.error is None and not release.results and release.test is None:
        problems.append(
            f'There are no results for {run.path}: {run.folder / "summary.csv"} has no eval_top1 at epoch {run.epoch}, '
            'and no --results were passed. Measure it with `timm-p2be benchmark`, or name test data; a card without '
            'results helps nobody.'
        )
    if problems:
        raise ValueError(' '.join(problems))
    model = build_model(run)
    foreign = sorted({path.name for path in output.iterdir()} - {*RELEASE_FILES}) if output.is_dir() else []
    if foreign or (output.exists() and not output.is_dir()):
        raise ValueError(f'{output} holds {foreign or "something else"}, which is no release. Choose another folder.')
    with atomic_folder(output.absolute()) as folder:
        write = _write_embedding if release.embedding_only else _write_model
        write(run, model, folder, release)
        verify(folder)
        _check_silent(run, folder)


def _write_model(run: Run, model: nn.Module, folder: Path, release: Release) -> None:
    dataset = dataset_of(run, release.dataset)
    own = ROUNDED if release.half else PUBLISHED
    known = {run.sha256: own, weights_sha256(model.state_dict()): own}
    if release.half:
        _round(model)
    config = data_config(run.flags, model)
    names = label_names(run, model)
    save_for_hf(
        model, str(folder), safe_serialization=True, data_config=config, model_config={'label_names': names or None}
    )
    digest = file_sha256(folder / _WEIGHTS)
    known |= {digest: PUBLISHED, weights_sha256(model.float().state_dict()): PUBLISHED}
    results = _results(run, model, release, known, dataset, PUBLISHED)
    provenance = training_record(run, model, dataset, release.base_model, results)
    path = folder / 'config.json'
    content: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    for key in _OF_OTHER_WEIGHTS:
        content['pretrained_cfg'].pop(key, None)
    content['pretrained_cfg']['license'] = release.license
    stem = encoded_stem(model)[1]
    content['timm_p2be'] = {
        'format_version': MODEL_FORMAT_VERSION,
        'package_version': timm_p2be.__version__,
        'encoding': stem.embedding.encoding if stem else 'rgb',
        'num_bits': stem.embedding.num_bits if stem else None,
        'provenance': provenance,
        'weights_sha256': digest,
    }
    write_json(path, content)
    write_json(folder / 'results.json', results)
    codes = stem.embedding.codes() if stem else None
    write_card(folder, codes, name=release.name, license=release.license)


def _write_embedding(run: Run, model: nn.Module, folder: Path, release: Release) -> None:
    embedding = learned_embedding(model)
    if embedding is None:
        what = 'fixed codes' if encoded_stem(model)[1] else 'pixel values'
        raise ValueError(f'{run.flags["model"]} reads {what}; only a p2be model has a learned table to publish.')
    if run.flags.get('p2be_freeze'):
        raise ValueError(
            'The run froze its table (--p2be-freeze), so it is the one it started from, '
            f'{run.flags.get("p2be_embedding") or run.flags["model"]}. Publish the run that trained it.'
        )
    if release.half:
        raise ValueError('A table is published as it is: its latents stay float32. Leave out --half.')
    dataset = dataset_of(run, release.dataset)
    network = 'of the network the table was trained in'
    known = {run.sha256: network, weights_sha256(model.state_dict()): network}
    results = _results(run, model, release, known, dataset, network)
    file = replace(
        embedding.table_file(),
        init=run.flags.get('p2be_init') or embedding.init,
        provenance=training_record(run, model, dataset, release.base_model, results),
    )
    file.write(folder)
    write_card(folder, file.codes, name=release.name, license=release.license)


def _results(
    run: Run, model: nn.Module, release: Release, known: dict[str, str], dataset: Dataset, state: str
) -> dict[str, Any]:
    """Return what results.json holds; `model` has the weights as they are published, `state` says so in words."""
    measured = None
    if release.test is not None:
        config = data_config(run.flags, model)
        pixels = PixelModel(model, config['mean'], config['std'], class_names=label_names(run, model))
        images, split = release.test(config['input_size'][-1]), release.test_split or dataset.test_split
        measured = measure_clean(pixels, images, config, split, state)
    found = collect_results(run, release.results, known, dataset.test_split, dataset.test_images, measured)
    return found | _learned(run, model)


def _learned(run: Run, model: nn.Module) -> dict[str, Any]:
    """Return how far a learned table is from the thermometer code, and from the table that the run was told to load."""
    embedding = learned_embedding(model)
    if embedding is None:
        return {}
    found = code_statistics(codes := embedding.codes())
    counts = {'distinct': found.distinct, 'bits': codes.numel(), 'unlike_thermometer': found.unlike_thermometer}
    if start := run.flags.get('p2be_embedding'):
        with suppress(FetchError, OSError):  # it is not to be had any more
            counts['moved'] = int((codes != PixelEmbedding.from_pretrained(start, local_files_only=True).codes()).sum())
    return {'codes': counts}


def _round(model: nn.Module) -> None:
    """Round the weights of convolutions and linear layers to float16; everything else stays float32."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            weight = module.weight.detach().half()
            if not bool(torch.isfinite(weight).all()):
                raise ValueError(f'{name}.weight has values beyond the range of float16. Leave out --half.')
            module.weight = nn.Parameter(weight, requires_grad=False)


def _check_silent(run: Run, folder: Path) -> None:
    """Raise if the texts of a release hold a path of this machine."""
    named = [str(run.flags.get(name) or '') for name in _PATH_FLAGS]
    named += [name.partition('/')[2] for name in named]  # after the reader, as in hfds//data/cifar10
    places = {str(Path.home()), str(Path.cwd()), str(run.folder.absolute()), str(run.folder.resolve()), *named}
    places = {place for place in places if Path(place).is_absolute() and len(place) > 4}
    for path in folder.iterdir():
        if path.suffix in ('.json', '.md'):
            text = path.read_text(encoding='utf-8')
            found = next((place for place in places if place in text or json.dumps(place)[1:-1] in text), None)
            if found:
                raise ValueError(f'{path.name} would publish the path {found}. Take it out of the notes and labels.')
