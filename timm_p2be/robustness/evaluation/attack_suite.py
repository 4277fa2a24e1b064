"""Which attacks a benchmark runs, cheapest first, what they are called, and what they will cost."""

import timeit
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from timm_p2be.checkpoints import weights_sha256
from timm_p2be.robustness.attacks.apgd import APGD
from timm_p2be.robustness.attacks.attack import Attack, Cost
from timm_p2be.robustness.attacks.dga import DGA
from timm_p2be.robustness.attacks.lspga import LSPGA
from timm_p2be.robustness.attacks.noise import Noise
from timm_p2be.robustness.attacks.pgd import PGD
from timm_p2be.robustness.attacks.square import Square
from timm_p2be.robustness.attacks.surrogates import surrogates_for
from timm_p2be.robustness.attacks.transfer import Transfer
from timm_p2be.robustness.pixel_model import PixelModel

TARGETS = 3  # likeliest wrong classes that APGD tries one by one
Variant = Callable[[PixelModel, int, int], Attack]  # model, eps, steps
Task = tuple[str, int, Cost, tuple[float, float]]  # name, images, cost of an image, what `measure_speed` returns

# cheapest first, called with model, eps, `by` (a surrogate of the model's gradient, or the model that images are
# transferred from) and, where a number stands here, other steps
_FAMILIES: dict[str, Callable[..., Attack]] = {
    'noise': lambda model, eps, by: Noise(model, eps),
    'transfer': lambda model, eps, by: Transfer(model, PGD(by, eps, steps=40, stop=False)),
    'fgsm': lambda model, eps, by: PGD(model, eps, by, steps=1, name=f'fgsm-{by}'),
    'dga': lambda model, eps, by, steps=40: DGA(model, eps, steps),
    'lspga-official': lambda model, eps, by, steps=7: _lspga(model, eps, steps),
    'pgd': lambda model, eps, by, steps=40: PGD(model, eps, by, steps, name=f'pgd-{by}'),
    'apgd-ce': lambda model, eps, by, steps=100: APGD(model, eps, by, steps, name=f'apgd-ce-{by}'),
    'apgd-margin': lambda model, eps, by, steps=100: APGD(
        model, eps, by, steps, loss='margin', name=f'apgd-margin-{by}'
    ),
    'apgd-target': lambda model, eps, by: APGD(
        model, eps, by, restarts=TARGETS, loss='target', name=f'apgd-target-{by}'
    ),
    'square': lambda model, eps, by: Square(model, eps, queries=5000),
}
_WITH_STEPS = ('dga', 'lspga-official', 'pgd', 'apgd-ce', 'apgd-margin')  # white-box, of any number of steps
# 'straight-through' and 'ramp' felled no image that DGA leaves, on any network measured (docs/robustness.md)
_SURROGATES = ('linear', 'kernel')
_PER_SURROGATE = ('fgsm', 'pgd', 'apgd-ce', 'apgd-margin', 'apgd-target')
FAMILIES = tuple(_FAMILIES)
SUITES = {'quick': FAMILIES[:6], 'full': FAMILIES}


def build_suite(
    model: PixelModel, eps: int = 8, names: Sequence[str] = ('full',), sources: Sequence[PixelModel] = ()
) -> list[Attack]:
    """Return attacks on a model, cheapest first whatever the order of the names.

    Args:
        model, eps: see `Attack`.
        names: of `SUITES` or `FAMILIES`, or '<family>-<surrogate>' for one surrogate of a family, such as 'pgd-ramp';
            suites and families take 'linear' and 'kernel', or the only one of a model of pixel values.
        sources: models whose adversarial images are tried on `model`; without any, suites have no 'transfer'. One
            with the weights of `model` itself is left out: that would be no transfer.
    """
    surrogates = surrogates_for(model)
    single = [f'{family}-{by}' for family in _PER_SURROGATE for by in surrogates]
    known = {*SUITES, *FAMILIES, *single}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f'{f"Unknown attack {unknown[0]!r}" if unknown else "No attack"} for {model.name}; choose among '
            f'{", ".join(SUITES)}; {", ".join(FAMILIES)}; {", ".join(single)}.'
        )
    if 'transfer' in names and not sources:
        raise ValueError("'transfer' needs models to transfer from; pass --transfer-from.")
    for source in sources:
        numbers = source.numbers_of(model.class_names, model.num_classes, model.name)
        if numbers is not None or source.num_classes != model.num_classes:
            raise ValueError(f'{source.name} numbers the classes unlike {model.name}; transfer from one that does not.')
    own = weights_sha256(model.model.state_dict()) if sources else None
    sources = [source for source in sources if weights_sha256(source.model.state_dict()) != own]
    families = {name for word in names for name in SUITES.get(word, (word,))}
    attacks: list[Attack] = []
    for family, build in _FAMILIES.items():
        chosen: Sequence[Any] = []
        if family in _PER_SURROGATE:
            usual = [by for by in surrogates if by in _SURROGATES] or surrogates
            chosen = [by for by in surrogates if f'{family}-{by}' in families or (family in families and by in usual)]
        elif family in families:
            chosen = sources if family == 'transfer' else [None]
        attacks += [build(model, eps, by) for by in chosen]
    return attacks


def variant(name: str) -> Variant | None:
    """Return how to build the white-box attack `name` for another model, bound and number of steps, or None."""
    for family in _WITH_STEPS:
        if name == family or name.startswith(f'{family}-'):
            by = name.removeprefix(f'{family}-')
            return lambda model, eps, steps: _FAMILIES[family](model, eps, by, steps)
    return None


def _lspga(model: PixelModel, eps: int, steps: int) -> Attack:
    """Return the paper's attack, whose step and annealing shrink beyond 7 steps, so that all together stay equal."""
    share = min(1.0, 7 / steps)
    return LSPGA(model, eps, steps, step_size=share, anneal_rate=1.2**share, name='lspga-official')


def measure_speed(model: PixelModel, levels: Tensor, repeat: int = 4) -> tuple[float, float]:
    """Return seconds an image, the least of so many times, of a pass forward and of one with gradient.

    `levels` are uint8 images (B, 3, H, W).
    """
    levels = levels.to(model.device)
    # backward to the weights, since levels of codes have no gradient
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def forward() -> None:
        with torch.no_grad():
            model(levels)

    def backward() -> None:
        torch.autograd.grad(model(levels).sum(), weights, allow_unused=True)

    seconds, with_gradient = (min(timeit.repeat(run, number=1, repeat=repeat)) for run in (forward, backward))
    return seconds / len(levels), with_gradient / len(levels)


def budget(tasks: Sequence[Task]) -> str:
    """Return one line a task of a benchmark, and the time that all take at most."""
    lines, most = [], 0.0
    for name, images, (forwards, backwards), (forward, backward) in tasks:
        seconds = images * (forwards * forward + backwards * backward)
        most += seconds
        lines.append(
            f'  {name:28} {images:7,} images, {forwards:7,} passes and {backwards:7,} with gradient each  '
            f'{tqdm.format_interval(seconds):>10}'
        )
    return '\n'.join([*lines, f'  at most {tqdm.format_interval(most)} ([h:]min:s)'])
