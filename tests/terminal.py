# SPDX-License-Identifier: Apache-2.0
"""A process on a pseudo terminal, to expect from and to type into.

pexpect's own ``spawn`` forks. In a process in which gRPC has threads, as in every worker that has talked to a daemon,
a child of a fork now and then ends before it becomes its program (``Epoll1Poller ... Bad file descriptor``). subprocess
starts programs without the handlers that do that; tests/conftest.py refuses forks.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

from pexpect import EOF, fdpexpect

ROWS, COLUMNS = 24, 80
LOCAL_FLAGS = 3


class Terminal:
    """Run ``command``, its three standard streams on one terminal, as the leader of a session and group of its own.
    ``seconds``: how long anything may be waited for."""

    def __init__(self, command: Sequence[str], *, seconds: float, cwd: Path | None = None, echo: bool = True) -> None:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
        if not echo:
            attributes = termios.tcgetattr(theirs)
            attributes[LOCAL_FLAGS] &= ~termios.ECHO
            termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        try:
            self._process = subprocess.Popen(
                command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, start_new_session=True
            )
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._seconds = seconds
        self._screen = fdpexpect.fdspawn(ours, timeout=seconds, encoding="utf-8", codec_errors="replace", use_poll=True)

    def until(self, pattern: str) -> str:
        """What is printed before and with a match of the pattern."""
        self._screen.expect(pattern)
        return str(self._screen.before + self._screen.after)

    def send(self, text: str) -> None:
        self._screen.send(text)

    def end(self) -> int:
        """Wait until it has printed its last and ended. Returns its exit status."""
        self._screen.expect(EOF)
        return self._process.wait(self._seconds)

    def stab(self) -> None:
        """End the process at once, in the middle of whatever it does, with all of its group."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process at once, if it still runs, and forget it."""
        self.stab()
        self._process.wait(self._seconds)
        self._screen.close()
