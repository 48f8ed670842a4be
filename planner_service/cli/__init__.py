# SPDX-License-Identifier: Apache-2.0
"""The ``weft`` command: ``arguments`` says what can be asked for, one module per group of commands does it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from planner_service.errors import Code, PlannerError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, as ``errors.CATALOGUE`` has it. Errors go to stderr, and with --json to
    stdout as {"error": ...} too."""
    from planner_service.cli import files
    from planner_service.cli.arguments import parse
    from planner_service.cli.interrupt import interruptible

    args = parse(argv)
    cancelled = PlannerError(Code.CANCELLED, "cancelled")
    try:
        if args.own_thread:
            code = interruptible(lambda: int(args.run(args)), lambda: files.fail(args, cancelled))
        else:
            code = args.run(args)
        sys.stdout.flush()
        return code
    except PlannerError as error:
        return files.fail(args, error)
    except KeyboardInterrupt:
        return files.fail(args, cancelled)
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return files.fail(args, PlannerError(Code.TOO_LARGE, "not enough memory", hint="use a smaller model"))
    except Exception as error:
        if args.debug:
            raise
        report = PlannerError(
            Code.INTERNAL,
            f"internal error ({type(error).__name__}: {error})",
            hint="this is a bug in Weft; --debug shows where",
        )
        return files.fail(args, report)
