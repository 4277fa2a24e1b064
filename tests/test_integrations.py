"""P2BE networks inside other tools: exporters and their runtimes, compilers, tracers, segmentation models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_p2be
from timm_p2be.stem import find_embedding

CLASSES = 10
jit_is_deprecated = pytest.mark.filterwarnings('ignore:.*torch.jit.*deprecated')
legacy_exporter = pytest.mark.filterwarnings(
    'ignore:You are using the legacy TorchScript-based ONNX export',
    'ignore:The feature will be removed',
    'ignore:Constant folding - Only steps=1',  # of the padding's bounds, two numbers
)


@pytest.fixture
def network() -> nn.Module:
    """A network in evaluation mode whose batch norms are not those of a fresh one."""
    torch.manual_seed(0)
    model = timm.create_model('wrn10_2_p2be', num_classes=CLASSES)
    model(_images(16))
    return model.eval()


@pytest.fixture(params=['whole', 'folded'])
def whole_or_folded(request: pytest.FixtureRequest, network: nn.Module) -> nn.Module:
    """The network itself, and with its stem folded into a table."""
    return network if request.param == 'whole' else timm_p2be.fold(network)


def _images(batch: int, side: int = 32) -> Tensor:
    """Random pixels on the grid of the 256 levels."""
    return torch.randint(0, 256, (batch, 3, side, side), generator=torch.Generator().manual_seed(batch)) / 255


def _close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def _exports_agree(network: nn.Module, file: Path, read: Callable[[Tensor], Tensor], dynamo: bool) -> None:
    """Export with a free batch size and compare ONNX Runtime on every level with the network."""
    pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    if dynamo:
        pytest.importorskip('onnxscript')
    free = {'dynamic_shapes': ({0: 'batch'},)} if dynamo else {'dynamic_axes': {'images': {0: 'batch'}}}
    torch.onnx.export(network, (read(_images(2)),), file, input_names=['images'], dynamo=dynamo, **free)
    session = runtime.InferenceSession(file, providers=['CPUExecutionProvider'])
    images = _images(5)
    assert len(images.unique()) == 256
    (logits,) = session.run(None, {'images': read(images).numpy()})
    with torch.inference_mode():
        _close(torch.from_numpy(logits), network(images))


@legacy_exporter
def test_onnx_by_torchscript(whole_or_folded: nn.Module, tmp_path: Path) -> None:
    _exports_agree(whole_or_folded, tmp_path / 'network.onnx', lambda images: images, dynamo=False)


@pytest.mark.slow
@pytest.mark.parametrize('read', [lambda images: images, lambda images: (images * 255).round().byte()])
def test_onnx_by_export(whole_or_folded: nn.Module, tmp_path: Path, read: Callable[[Tensor], Tensor]) -> None:
    """Of pixels, and of levels."""
    _exports_agree(whole_or_folded, tmp_path / 'network.onnx', read, dynamo=True)


def test_export_with_a_free_batch_size(whole_or_folded: nn.Module) -> None:
    program = torch.export.export(whole_or_folded, (_images(2),), dynamic_shapes=({0: torch.export.Dim('batch')},))
    _close(program.module()(_images(5)), whole_or_folded(_images(5)))


@pytest.mark.parametrize('backend', ['eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_compile_without_graph_breaks(network: nn.Module, backend: str) -> None:
    weight = find_embedding(network).weight
    outputs, gradients = [], []
    for model in (network, torch.compile(network, backend=backend, fullgraph=True)):
        outputs.append(model(_images(5)))
        outputs[-1].square().sum().backward()
        gradients.append(weight.grad.clone())
        weight.grad = None
    _close(outputs[1], outputs[0])
    assert gradients[0].any()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def test_segmentation_encoder() -> None:
    smp = pytest.importorskip('segmentation_models_pytorch')
    model = smp.Unet('tu-resnet18_p2be', encoder_weights=None, in_channels=3, classes=2)
    masks = model(_images(2, side=64))
    assert masks.shape == (2, 2, 64, 64)
    nn.functional.cross_entropy(masks, torch.randint(0, 2, (2, 64, 64))).backward()
    assert find_embedding(model).weight.grad.any()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
