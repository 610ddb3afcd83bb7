"""The command that serves Prefect's pages."""

import socket

import pytest

from flows.ui import main


def test_a_port_in_use_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(port)]) == 2
    assert f"make ui PORT={port + 1}" in capsys.readouterr().err
