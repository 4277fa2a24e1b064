"""Shared fixtures: no test reaches the network, and data sets outside the checkout are asked for by name."""

import os

# before anything imports huggingface_hub or datasets, which read these once
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
os.environ['HF_HUB_DISABLE_XET'] = '1'  # its Rust client would not pass through Python's sockets

import gc
import ipaddress
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, reserve_endpoint

if 'PYTEST_XDIST_WORKER' in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what the imported packages hold: runs of train.py collect at their end."""
    gc.freeze()


HUB_LISTENER = reserve_endpoint()
ROOT = Path(__file__).parents[1]


def _is_local(host: object) -> bool:
    if isinstance(host, bytes | bytearray):
        host = bytes(host).decode()
    if host is None or host in ('', 'localhost'):
        return True
    try:
        return ipaddress.ip_address(str(host).split('%')[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail any test that resolves or connects to another machine; loopback and Unix sockets stay open."""

    def check(host: object) -> None:
        if not _is_local(host):
            raise RuntimeError(
                f'{request.node.nodeid} tried to reach {host!r}; tests may only use loopback addresses. '
                'Serve what the test needs on 127.0.0.1, or use a fixture on disk.'
            )

    def guard_connect(connect: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
            return connect(self, address)

        return guarded

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        check(host)
        return getaddrinfo(host, *args, **kwargs)

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, 'connect', guard_connect(socket.socket.connect))
    monkeypatch.setattr(socket.socket, 'connect_ex', guard_connect(socket.socket.connect_ex))
    monkeypatch.setattr(socket, 'getaddrinfo', guarded_getaddrinfo)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub of this test's own that the client is pointed at, with an empty cache and a token it accepts."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub-cache'))
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'hub-token'))  # never the token of who runs this
    monkeypatch.setenv('HF_TOKEN', HubServer.token)
    with warnings.catch_warnings(), HubServer(HUB_LISTENER) as server:
        # what the client's HTTP library says of the client's own uploads
        warnings.filterwarnings('ignore', "Use 'content=", DeprecationWarning)
        assert constants.ENDPOINT == server.url, 'huggingface_hub was imported before conftest.py'
        yield server


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line, and return what it printed."""
    from timm_p2be.cli import main

    def run(*args: str | Path) -> str:
        capsys.readouterr()
        assert main([*map(str, args)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line with arguments that it refuses, and return what it said, on one line.

    It prints nothing before it refuses, unless told that it is not `silent`.
    """
    from timm_p2be.cli import main

    def run(*args: str | Path, silent: bool = True) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*map(str, args)])
        assert stop.value.code == 2
        said = capsys.readouterr()
        assert not (silent and said.out)
        assert HubServer.token not in said.err + said.out
        return ' '.join(said.err.split())

    return run


@pytest.fixture(scope='session')
def p2be_data() -> Path:
    """The folder named by the environment variable P2BE_DATA, with cifar10/ and imagenet_sample/ in it."""
    folder = os.environ.get('P2BE_DATA')
    if not folder:
        pytest.skip('P2BE_DATA is not set: it names a folder with the data sets cifar10/ and imagenet_sample/')
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f'P2BE_DATA={folder} is not a folder')
    return path.resolve()


@pytest.fixture(scope='session')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with 24 and 8 random images of two classes."""
    from runs import write_images

    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A run's folder that is not there yet, nor is the one it lies in."""
    return tmp_path / 'out' / 'run'


@pytest.fixture(scope='session')
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of an unbroken run with runs.WHOLE; nobody writes there."""
    from runs import WHOLE, command

    from timm_p2be.training.run import main

    output = tmp_path_factory.mktemp('straight') / 'run'
    assert main(command(data, output, *WHOLE)) == 0
    return output
