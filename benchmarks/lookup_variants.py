"""What `benchmarks/lookup.py` compares: networks with an RGB stem and with the same stem over binary pixel codes."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from augmix import photographs
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

import timm_p2be
from timm_p2be.encodings import EmbeddingParameter
from timm_p2be.task import P2BETask

Call = Callable[[], None]
# what a training step of 'per pixel' adds to memory on large images, in float32 tensors of all planes: 9.4 measured
PLANES = 12


@dataclass(frozen=True)
class Case:
    """A network and the batch it reads.

    Attributes:
        network: timm name of the RGB network, which names its first convolution `conv1`.
        classes: of the classifier.
        batch: images.
        side: of the square images, in pixels.
        rounds: in which a whole model is timed.
        plane_rounds: the same for variants that build the code planes, which take far longer on large images.
    """

    network: str
    classes: int
    batch: int
    side: int
    rounds: int
    plane_rounds: int


@dataclass(frozen=True)
class Variant:
    """A way to read the image.

    Attributes:
        name: in the tables.
        encoding: of our stem, or '' for a network with another one.
        num_bits: M, code length.
        lookup: value of TIMM_P2BE_LOOKUP, 'auto' or 'plain'.
        folded: whether the table is precomputed, which only inference allows.
        per_pixel: whether the stem is `PerPixelConv2d`.
    """

    name: str
    encoding: str = ''
    num_bits: int = 64
    lookup: str = 'auto'
    folded: bool = False
    per_pixel: bool = False

    @property
    def builds_planes(self) -> bool:
        """Whether the M planes of every color exist in memory."""
        return self.per_pixel or self.lookup == 'plain'


CASES = (
    Case('wrn40_2', classes=10, batch=128, side=32, rounds=7, plane_rounds=7),
    Case('resnet50', classes=1000, batch=16, side=224, rounds=5, plane_rounds=2),
)
VARIANTS = (
    Variant('RGB'),
    Variant('p2be', 'p2be'),
    Variant('onehot', 'onehot'),
    Variant('thermometer', 'thermometer'),
    Variant('folded p2be', 'p2be', folded=True),
    Variant('plain p2be', 'p2be', lookup='plain'),
    Variant('per pixel', per_pixel=True),
)
PHOTOGRAPHS, RANDOM = 'photographs', 'random pixels'
GROWTH = tuple(Variant(f'M = {bits}', 'p2be', bits) for bits in (16, 64, 256))


class PixelSign(torch.autograd.Function):
    """Sign of the latents of every pixel, with the approximate-sign gradient.

    Written after nutszebra/Pixel-to-Binary-Embedding, third_party/WideResNet_pytorch_s/ste.py: the masks and the
    derivative are tensors as large as the code planes.
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor) -> Tensor:
        ctx.save_for_backward(latents)
        return (latents >= 0).float() - (latents < 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (latents,) = ctx.saved_tensors
        rising = ((latents > -1) * (latents <= 0)).float()
        falling = ((latents >= 0) * (latents < 1)).float()
        derivative = (2.0 + 2.0 * latents) * rising
        derivative = derivative + (2.0 - 2.0 * latents) * falling
        return grad * derivative


class PerPixelConv2d(nn.Module):
    """A P2BE stem that binarizes the latents of every pixel, as the authors' code does.

    Written after nutszebra/Pixel-to-Binary-Embedding, third_party/WideResNet_pytorch_s/pixel_to_binary_embedding.py:
    latents are looked up and laid out color-major in NCHW, binarized there, and convolved.

    Args:
        conv: the RGB stem to take the place of.
        num_bits: M, code length.
    """

    def __init__(self, conv: nn.Conv2d, num_bits: int) -> None:
        super().__init__()
        self.latents = EmbeddingParameter(torch.randn(256, num_bits))
        self.conv = nn.Conv2d(
            conv.in_channels * num_bits,
            conv.out_channels,
            cast(tuple[int, int], conv.kernel_size),
            stride=cast(tuple[int, int], conv.stride),
            padding=cast(tuple[int, int], conv.padding),
            bias=conv.bias is not None,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map of float images in [0, 1]."""
        batch, _, height, width = images.shape
        # in channels_last order the reshape would copy nothing, but their images are in NCHW
        levels = (images * 255).long().contiguous()
        latents = self.latents[levels].permute(0, 1, 4, 2, 3).reshape(batch, -1, height, width)
        return self.conv((PixelSign.apply(latents) + 1) / 2)


def random_pixels(case: Case) -> Tensor:
    """Return a batch of independent pixels, (B, 3, H, W) floats in [0, 1]."""
    shape = (case.batch, 3, case.side, case.side)
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    return (levels / 255).contiguous(memory_format=torch.channels_last)


def load_images() -> tuple[dict[tuple[str, str], Tensor], dict[str, str]]:
    """Return batches by network and kind of image, and by network where the photographs come from."""
    batches, sources = {}, {}
    for case in CASES:
        pictures, sources[case.network] = photographs(case.side, case.batch)
        batch = torch.stack([pil_to_tensor(picture) for picture in pictures]) / 255
        batches[case.network, PHOTOGRAPHS] = batch.contiguous(memory_format=torch.channels_last)
        batches[case.network, RANDOM] = random_pixels(case)
    return batches, sources


def shortage(case: Case, variant: Variant) -> str:
    """Return why `variant` does not fit into memory, or ''."""
    status = Path('/proc/meminfo')
    if not variant.per_pixel or not status.exists():
        return ''
    needed = PLANES * case.batch * 3 * variant.num_bits * case.side**2 * 4
    fields = dict(line.split(':', 1) for line in status.read_text().splitlines())
    available = int(fields['MemAvailable'].split()[0]) * 1024
    if needed <= available:
        return ''
    return f'needs about {needed / 1e9:.1f} GB of memory, available are {available / 1e9:.1f}'


@contextlib.contextmanager
def lookup_path(variant: Variant) -> Iterator[None]:
    """Take the path of `variant` through the lookup: the environment is read at every call, backward included."""
    name = 'TIMM_P2BE_LOOKUP'
    before = os.environ.get(name)
    os.environ[name] = variant.lookup
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def build_model(case: Case, variant: Variant) -> nn.Module:
    """Return the network of `case` with the stem of `variant`, in channels_last memory."""
    if variant.encoding:
        name, kwargs = f'{case.network}_{variant.encoding}', {'num_bits': variant.num_bits}
    else:
        name, kwargs = case.network, {}
    model = timm.create_model(name, num_classes=case.classes, **kwargs).to(memory_format=torch.channels_last)
    if variant.per_pixel:
        model.conv1 = PerPixelConv2d(model.conv1, variant.num_bits)  # NCHW as its planes, which is faster here
    return timm_p2be.fold(model) if variant.folded else model


def autocast(precision: str) -> torch.autocast:
    """Return the context in which a network computes in 'float32' or 'bfloat16'."""
    return torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16')


def stem_forward(case: Case, variant: Variant, precision: str, images: Tensor) -> Call:
    """Return a call that runs the stem without a graph."""
    stem = build_model(case, variant).get_submodule('conv1')

    def call() -> None:
        with torch.no_grad(), autocast(precision):
            stem(images)

    return call


def stem_backward(case: Case, variant: Variant, precision: str, images: Tensor) -> Call:
    """Return a call that runs the stem forward and backward; as in training, the image gets no gradient."""
    stem = build_model(case, variant).get_submodule('conv1')
    with torch.no_grad(), autocast(precision), lookup_path(variant):
        grad = torch.randn_like(stem(images))

    def call() -> None:
        stem.zero_grad()
        with autocast(precision):
            features = stem(images)
        features.backward(grad)

    return call


def training_step(case: Case, variant: Variant, precision: str, images: Tensor) -> Call:
    """Return a call that updates the network once: forward, cross-entropy, backward, optimizer."""
    model = build_model(case, variant)
    learned = variant.encoding == 'p2be'
    task = P2BETask(model, alpha=0, smoothness=1 if learned else 0, num_views=1, verbose=False)
    rule = 'sgdp2be' if variant.encoding or variant.per_pixel else 'sgd'
    optimizer = create_optimizer_v2(model, opt=rule, lr=0.01, momentum=0.9, weight_decay=5e-4)
    labels = torch.arange(len(images)) % case.classes

    def call() -> None:
        with autocast(precision):
            loss = task(images, labels)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def inference(case: Case, variant: Variant, precision: str, images: Tensor) -> Call:
    """Return a call that computes the logits in eval mode."""
    model = build_model(case, variant).eval()

    def call() -> None:
        with torch.inference_mode(), autocast(precision):
            model(images)

    return call


MEASURES: dict[str, Callable[[Case, Variant, str, Tensor], Call]] = {
    'stem forward': stem_forward,
    'stem forward + backward': stem_backward,
    'training step': training_step,
    'inference': inference,
}
