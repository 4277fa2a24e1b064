"""A small Hub on loopback for the real client, with faults on demand; hub_protocol.py has the endpoints."""

import atexit
import json
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hub_protocol import Answer, Endpoints, File, HubError, Repository


def reserve_endpoint() -> socket.socket:
    """Return a listening socket whose address the client of this process will use for all its life.

    The client reads HF_ENDPOINT when it is first imported, and only then (constants.py). The variable is set for that
    moment alone: child processes see none of it.
    """
    listener = socket.create_server(('127.0.0.1', 0))
    atexit.register(listener.close)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{listener.getsockname()[1]}')
        import huggingface_hub.constants  # noqa: F401
    return listener


@dataclass
class Fault:
    """What goes wrong at requests that match; `times` counts down, None is for ever."""

    match: str = ''
    times: int | None = None
    status: int | None = None
    headers: Mapping[str, str] | None = None
    body: bytes | None = None
    cut: int | None = None  # bytes of the body that are sent
    honest: bool = False  # Content-Length is that of the cut body
    seconds: float = 0.0
    after: int | None = None  # bytes before the pause


class Handler(BaseHTTPRequestHandler):
    """One request on one connection; kept connections would outlive the test."""

    protocol_version = 'HTTP/1.1'

    def _serve(self) -> None:
        self.close_connection = True
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        words = {key.removesuffix('[]'): values for key, values in parse_qs(query).items()}
        asked = Endpoints(hub, self.command, self.headers, words, self._read_body())
        with hub.lock:
            fault = hub.take_fault(f'{self.command} {path}')
            hub.requests.append((self.command, path))
            try:
                if fault.status is not None:
                    raise HubError(fault.status, None, 'a fault for the test')
                answer = asked.answer(path)
            except HubError as error:
                answer = Answer({'error': str(error)}, error.status, error.headers)
        answer.headers = {**(answer.headers or {}), **(fault.headers or {})}
        answer.body = answer.body if fault.body is None else fault.body
        self._send(hub, answer, fault)

    def _read_body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(chunks)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, hub: 'HubServer', answer: Answer, fault: Fault) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        if fault.after is None:
            hub.closing.wait(fault.seconds)
        try:
            self.send_response(answer.status)
            kind = 'application/octet-stream' if isinstance(answer.body, bytes) else 'application/json'
            length = len(body[: fault.cut] if fault.honest else body)
            headers = {'Content-Type': kind, 'Content-Length': str(length), 'Connection': 'close'}
            for key, value in {**headers, **(answer.headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != 'HEAD':
                body = body[: fault.cut]
                self.wfile.write(body[: fault.after or 0])
                if fault.after is not None:
                    self.wfile.flush()
                    hub.closing.wait(fault.seconds)
                self.wfile.write(body[fault.after or 0 :])
        except ConnectionError:
            pass  # the client gave up or was killed, which some tests want

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


class HubServer:
    """A Hub at `url` while the context is open.

    Args:
        listener: a listening socket to use, left open at the end; without one a free port is taken.

    Attributes:
        requests: method and path of every request, in the order they came; no query.
        repos: repositories by 'organization/name'.
        lfs: uploaded large files by SHA-256, committed or not.
        token: the only token accepted; public repositories can be read without one.
    """

    token = 'hf_test_token'
    user = 'tester'

    def __init__(self, listener: socket.socket | None = None) -> None:
        self.requests: list[tuple[str, str]] = []
        self.repos: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        self.lock = threading.RLock()
        self._shared = listener is not None
        self._http = ThreadingHTTPServer(('127.0.0.1', 0), Handler, bind_and_activate=False)
        self._http.hub = self  # type: ignore[attr-defined]
        self._http.socket.close()
        self._http.socket = listener or socket.create_server(('127.0.0.1', 0))
        self.url = f'http://127.0.0.1:{self._http.socket.getsockname()[1]}'

    def __enter__(self) -> 'HubServer':
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()  # wakes answers that are held up
        self._http.shutdown()
        self._thread.join()
        if not self._shared:
            self._http.server_close()

    def put(self, repo_id: str, files: Mapping[str, bytes], tag: str | None = None, private: bool = False) -> str:
        """Commit `files` on top of those there are, without a request, and return the commit's name."""
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repository(repo_id))
            repo.private = private
            new = {path: File(content, lfs=path.endswith('.safetensors')) for path, content in files.items()}
            commit = repo.add_commit({**repo.head.files, **new}, 'put')
            if tag is not None:
                repo.tags[tag] = commit.sha
            return commit.sha

    def fail(self, match: str, status: int, times: int | None = None, **more: Any) -> None:
        """Answer `status` to requests whose 'METHOD /path' contains the regular expression `match`."""
        self.faults.append(Fault(match, times, status=status, **more))

    def truncate(self, match: str, bytes: int, times: int | None = None, honest: bool = False) -> None:
        """Send the first `bytes` bytes of bodies and hang up; Content-Length is that of the whole unless `honest`."""
        self.faults.append(Fault(match, times, cut=bytes, honest=honest))

    def slow(self, match: str, seconds: float, times: int | None = None, after: int | None = None) -> None:
        """Wait before the answer, or after the first `after` bytes of its body."""
        self.faults.append(Fault(match, times, seconds=seconds, after=after))

    def heal(self) -> None:
        """End all faults."""
        self.faults.clear()

    def count(self, match: str) -> int:
        """Return how many requests matched, as in `fail`."""
        return sum(re.search(match, f'{method} {path}') is not None for method, path in self.requests)

    def take_fault(self, request: str) -> Fault:
        for fault in self.faults:
            if fault.times != 0 and re.search(fault.match, request):
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return Fault()

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables that let a child process use this Hub, with `cache` as HF_HOME."""
        return {
            'HF_ENDPOINT': self.url,
            'HF_HOME': str(cache),
            'HF_HUB_CACHE': str(cache / 'hub'),
            'HF_TOKEN': self.token,
            'HF_HUB_OFFLINE': '0',
            'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_DISABLE_TELEMETRY': '1',
        }
