"""How the Hub of the tests takes requests and sends answers, with the faults that a test asked for."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from hub_store import HubError

if TYPE_CHECKING:
    from hub_server import HubServer


@dataclass
class Fault:
    """What goes wrong at requests that match; `times` counts down, None is for ever."""

    match: re.Pattern[str]
    times: int | None
    status: int | None = None
    headers: Mapping[str, str] | None = None
    body: bytes | None = None
    cut: int | None = None
    honest: bool = False
    seconds: float = 0.0
    after: int | None = None


@dataclass
class Answer:
    """A response before it is sent; a dict or list becomes JSON."""

    body: Any = b''
    status: int = 200
    headers: Mapping[str, str] | None = None


class Transport(BaseHTTPRequestHandler):
    """One request on one connection; kept connections would outlive the test."""

    protocol_version = 'HTTP/1.1'

    def _serve(self) -> None:
        self.close_connection = True
        self.hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        self.query = {key.removesuffix('[]'): values for key, values in parse_qs(query).items()}
        self.body = self._read_body()
        fault = self.hub.take_fault(f'{self.command} {path}')
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            try:
                if fault is not None and fault.status is not None:
                    raise HubError(fault.status, None, 'a fault for the test')
                answer = self.answer(path)
            except HubError as error:
                answer = Answer({'error': str(error)}, error.status, error.headers)
        if fault is not None:
            answer.headers = {**(answer.headers or {}), **(fault.headers or {})}
            answer.body = answer.body if fault.body is None else fault.body
        self._send(answer, fault or Fault(re.compile(''), None))

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

    def answer(self, path: str) -> Answer:
        """Return the answer to the request, or raise HubError."""
        raise NotImplementedError

    def _send(self, answer: Answer, fault: Fault) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        head = 0 if fault.after is None else fault.after
        if fault.after is None:
            self.hub.closing.wait(fault.seconds)
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
                self.wfile.write(body[:head])
                if fault.after is not None:
                    self.wfile.flush()
                    self.hub.closing.wait(fault.seconds)
                self.wfile.write(body[head:])
        except ConnectionError:
            pass  # the client gave up or was killed, which some tests want

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""
