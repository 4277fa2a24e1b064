"""The quickstart's own parts; .ci/run runs it as a whole."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import quickstart
from timm_p2be.robustness.corruptions import CORRUPTIONS, corrupt


class MeanLevel(nn.Module):
    """Calls an image 1 if its mean is above a half, else 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = (images.mean((1, 2, 3)) > 0.5).float()
        return torch.stack([1 - bright, bright], dim=1)


@pytest.fixture
def gray_images():
    levels = np.array([0, 100, 120, 255], dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (4, 32, 32, 3)).copy(), torch.tensor([0, 0, 0, 1])


def test_read_images(tmp_path):
    for label, level in ((1, 10), (0, 20), (1, 30)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.new('L', (32, 32), level).save(tmp_path / str(label) / f'{level}.png')
    images, labels = quickstart.read_images(tmp_path)
    assert images.shape == (3, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 1]
    assert images[:, 0, 0, 2].tolist() == [20, 10, 30]


def test_error_is_in_percent(gray_images):
    images, labels = gray_images
    assert quickstart.error(MeanLevel(), images, labels) == 0
    assert quickstart.error(MeanLevel(), images, 1 - labels) == 100
    assert quickstart.error(MeanLevel(), images, torch.tensor([0, 0, 1, 1])) == 25


def test_measure_averages_severities_and_corruptions(gray_images):
    images, labels = gray_images
    results = quickstart.measure({'a_p2be': MeanLevel(), 'a': MeanLevel()}, images, labels)
    result = results['a']
    wrong = []
    for severity in quickstart.SEVERITIES:
        bright = [corrupt(image, 'brightness', severity).mean() > 127.5 for image in images]
        wrong.append(np.mean(np.array(bright) != labels.numpy().astype(bool)) * 100)
    assert np.mean(wrong) > 0  # +.15 and +.3 push 100 or 120 over the middle
    assert result['brightness'] == pytest.approx(np.mean(wrong))
    assert result['corrupted (mean)'] == pytest.approx(np.mean([result[name] for name in CORRUPTIONS]))
    assert result['clean'] == 0
    lines = quickstart.table(results).splitlines()
    assert lines[0].split() == ['|', 'error', 'in', '%', '|', 'a_p2be', '|', 'a', '|']
    assert lines[2].split() == ['|', 'clean', '|', '0.0', '|', '0.0', '|']
    assert len(lines) == 2 + 1 + len(CORRUPTIONS) + 1
    assert len({len(line) for line in lines}) == 1
