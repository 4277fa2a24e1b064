"""What a trained run is worth: its error under corruptions and under LS-PGA, by the benchmarks."""

from pathlib import Path

import torch

from timm_p2be.hub import run_folder
from timm_p2be.reproduce.grid import CORRUPTED, Grid, Run
from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.attacks.lspga import LSPGA
from timm_p2be.robustness.attacks.pgd import PGD
from timm_p2be.robustness.corruptions import SUITES
from timm_p2be.robustness.corruptions.generated_set import GeneratedSet
from timm_p2be.robustness.corruptions.stored_sets import open_corrupted
from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.corruption_benchmark import benchmark_corruptions
from timm_p2be.robustness.images import RESIZE, ImageSet, read_images
from timm_p2be.robustness.pixel_model import PixelModel


def measure(grid: Grid, run: Run, trained: run_folder.Run, corrupted: dict[str, Path]) -> dict[str, float]:
    """Return the figures of a trained run that its grid shows, beside its clean error, in percent.

    The benchmarks' own results lie in the run's folder, where they resume. `corrupted` holds folders of stored
    corrupted images, by the values of the axis 'dataset', under '' for all; without one they are made on the fly.
    """
    show, figures = {*grid.show}, dict[str, float]()
    if not show & {*CORRUPTED, 'lspga'}:
        return figures
    suite, folder, flags, device = suite_of(run), trained.folder, trained.flags, run.arguments.args.device
    model = PixelModel(run_folder.build_model(trained), flags['mean'], flags['std'], run.name, trained.sha256)
    model.to('cpu' if device.startswith('cuda') and not torch.cuda.is_available() else device)
    if show & {*CORRUPTED}:
        stored = corrupted.get(run.cell.get('dataset', ''), corrupted.get(''))
        limit = grid.corruption_images
        data = open_corrupted(stored, limit=limit) if stored else GeneratedSet(_images(run, suite, limit), suite)
        workers = run.arguments.args.workers
        content = benchmark_corruptions([model], data, workers=workers, output=folder / 'corruptions.json', show=False)
        summary = content['summary'][model.name]
        by_name = summary['ce'] if suite == 'imagenet' else summary['corruptions']  # Table III has CE
        figures |= {'corrupted': summary['mean_corruption_error'], 'mce': summary['mce_alexnet'], **by_name}
    if 'lspga' in show:
        images = _images(run, suite, grid.attack_images)
        # the paper's attack; on pixel values PGD of as many steps within the same bound
        attack: Attack = LSPGA.official(model) if model.encoding else PGD(model, steps=7, name='pgd-7')
        results = benchmark_attacks(model, images, [attack], alone=len(images), worst_case=0, output=folder)
        figures['lspga'] = results.bits('alone', attack.name).mean().item()
    return {name: 100 * value for name, value in figures.items() if name in show}


def suite_of(run: Run) -> str:
    """Return the suite of corruptions that has the size of a run's images."""
    side = run.arguments.args.img_size
    suite = next((suite for suite, size in SUITES.items() if size == side), None)
    if suite is None:
        raise ValueError(f'Run {run.name}: got --img-size {side}; corruptions are of {[*SUITES.values()]} pixels.')
    return suite


def _images(run: Run, suite: str, limit: int | None) -> ImageSet:
    """Return the first images of the run's validation split."""
    args = run.arguments.args
    reader = {key: getattr(args, key) for key in ('input_key', 'target_key', 'class_map')}
    reader['download'] = args.dataset_download
    where = (args.dataset, args.data_dir, args.val_split)
    return read_images(*where, SUITES[suite], RESIZE[suite], limit, **reader)
