"""Without the packages of the extras everything else works, and what needs one names the extra."""

import subprocess
import sys
from pathlib import Path

import pytest
from runs import write_images

from timm_p2be.extras import MissingExtra, require

# import names of all that pip installs for the extras and not for the core
OUTSIDE = ('cv2', 'datasets', 'imagecorruptions', 'matplotlib', 'numba', 'onnx', 'onnxruntime', 'onnxscript', 'pandas')
OUTSIDE += ('pyarrow', 'scipy', 'skimage', 'sklearn')

CORE = """
import sys
sys.modules |= dict.fromkeys({outside}, None)  # whoever imports one gets ModuleNotFoundError
import timm, timm_p2be
from timm_p2be.cli import main
assert timm.create_model('wrn16_2_p2be', pretrained=True).num_classes == 10
small = ['--model', 'wrn10_2_p2be', '--num-classes', '2', '--batch-size', '8', '--epochs', '1', '--workers', '0']
where = ['--data-dir', 'images', '--output', '.', '--experiment', 'run', '--device', 'cpu']
assert main(['train', '-c', 'cifar10', '--dataset', '', *where, *small]) == 0
assert main(['publish', 'run', '--repo-id', 'someone/net', '--dataset-name', 'noise', '--dry-run', 'card']) == 0
for command in (
    ['corrupt', '--help'],
    ['benchmark', 'corruptions', '--help'],
    ['train', '--dataset', 'hfds/user/name', *small],
):
    try:
        assert main(command) == 2
    except SystemExit as stop:
        assert stop.code == 2
assert not [name for name in sys.modules if name.startswith('timm_p2be.lookup.triton')]  # imported where they run
"""

NO_TORCH = """
import sys
sys.modules |= {'torch': None, 'timm': None}
from timm_p2be_cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::ResourceWarning')
def test_the_core_trains_and_publishes(tmp_path: Path) -> None:
    write_images(tmp_path / 'images')
    code = CORE.replace('{outside}', repr(OUTSIDE))
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {'README.md', 'config.json', 'model.safetensors'} <= {path.name for path in (tmp_path / 'card').iterdir()}
    assert done.stderr.count("pip install 'timm-p2be[robustness]'") == 2
    assert done.stderr.count("pip install 'timm-p2be[data]'") == 1
    assert 'Traceback' not in done.stderr


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require('json', extra='data').loads('1') == 1
    monkeypatch.setitem(sys.modules, 'skimage', None)
    with pytest.raises(MissingExtra, match=r'skimage.*timm-p2be\[robustness\]'):
        require('skimage.nothing', extra='robustness')


@pytest.mark.parametrize(
    ('words', 'code', 'said'),
    [
        (['--help'], 0, 'Train a model by a recipe'),
        (['benchmark', '--help'], 0, 'corruptions'),
        ([], 2, 'usage: timm-p2be'),
        (['walk'], 2, 'invalid choice'),
        (['--unknown'], 2, 'unrecognized arguments'),
    ],
)
def test_help_version_and_usage_errors_need_no_torch(words: list[str], code: int, said: str) -> None:
    done = subprocess.run([sys.executable, '-c', NO_TORCH, *words], capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
