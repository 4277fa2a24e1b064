"""The guard of conftest.py: other machines are out of reach, loopback is not."""

import socket

import pytest
from conftest import NetworkAccessError

REMOTE = '192.0.2.1'  # reserved for documentation, RFC 5737


@pytest.mark.parametrize('method', ['connect', 'connect_ex'])
def test_remote_connection_fails_and_names_the_test(method: str) -> None:
    with socket.socket() as sock, pytest.raises(NetworkAccessError, match=r'test_remote_connection.*192\.0\.2\.1'):
        getattr(sock, method)((REMOTE, 80))


def test_create_connection_and_name_resolution_fail() -> None:
    with pytest.raises(NetworkAccessError, match=r'example\.org'):
        socket.create_connection(('example.org', 80), timeout=1)
    with pytest.raises(NetworkAccessError):
        socket.getaddrinfo('example.org', 443)


def test_loopback_works() -> None:
    with socket.create_server(('127.0.0.1', 0)) as server:
        with socket.create_connection(('localhost', server.getsockname()[1]), timeout=5) as client:
            client.sendall(b'x')
            connection, _ = server.accept()
            with connection:
                assert connection.recv(1) == b'x'
