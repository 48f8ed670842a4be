# SPDX-License-Identifier: Apache-2.0
"""What the tests' own pseudo terminal promises: programs start whatever gRPC does in this process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from tests.terminal import Terminal

STARTS = 100


def test_starts_beside_grpc() -> None:
    """pexpect.spawn lost one child in a hundred here."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        for _ in range(STARTS):
            with contextlib.closing(Terminal(["echo", "ready"], seconds=30)) as terminal:
                assert terminal.until("\n") == "ready\r\n"
                assert terminal.end() == 0
    server.stop(None).wait()


@pytest.mark.parametrize("start", [os.fork, os.forkpty])
def test_forks_are_refused(start: object) -> None:
    assert callable(start)
    with pytest.raises(RuntimeError, match=r"os\.fork(pty)?: tests start processes with"):
        start()


@pytest.mark.parametrize("echo", [True, False])
def test_types_and_reads(echo: bool) -> None:
    program = "import sys; print(sys.stdin.isatty(), sys.stderr.isatty()); print('<' + input() + '>'); sys.exit(3)"
    with contextlib.closing(Terminal([sys.executable, "-c", program], seconds=30, echo=echo)) as terminal:
        terminal.until("True True\r\n")
        terminal.send("a word\n")
        assert terminal.until(">\r\n") == ("a word\r\n" if echo else "") + "<a word>\r\n"
        assert terminal.end() == 3


def test_stab_ends_the_whole_group() -> None:
    with contextlib.closing(Terminal(["sh", "-c", "sleep 600 & echo ready; wait"], seconds=30)) as terminal:
        terminal.until("ready")
        terminal.stab()
        assert terminal.end() == -signal.SIGKILL, "and the terminal is closed, so nobody of the group has it open"


def test_no_such_program(tmp_path: Path) -> None:
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Terminal([str(tmp_path / "none")], seconds=30)
    assert len(os.listdir("/proc/self/fd")) == opened
