# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C. Commands work in a thread of their own: the interpreter raises KeyboardInterrupt in the main thread only, and
raised inside a callback of the engine it would be lost."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

#: Set once the user wants the command to end; long work looks at it.
stop = threading.Event()

#: How long the work may take to notice; seconds.
_GRACE_SECONDS = 0.2


def interruptible(work: Callable[[], int], on_interrupt: Callable[[], int]) -> int:
    """The result of ``work`` or its exception. After Ctrl-C: that of ``on_interrupt``, and the process ends with it if
    the work goes on regardless."""
    result: list[int] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    stop.clear()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        stop.set()
        code = on_interrupt()
        thread.join(_GRACE_SECONDS)
        if thread.is_alive():
            # Finalising the interpreter under a thread that is inside C code is not safe.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code
    if failure:
        raise failure[0]
    return result[0]
