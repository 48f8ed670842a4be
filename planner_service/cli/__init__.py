# SPDX-License-Identifier: Apache-2.0
"""The ``weft`` command: ``arguments`` says what can be asked for, one module per group of commands does it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from planner_service.errors import CATALOGUE, Code, PlannerError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, as ``errors.CATALOGUE`` has it. Errors go to stderr, and with --json to
    stdout as {"error": ...} too."""
    from planner_service.cli.arguments import parse

    args = parse(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except PlannerError as error:
        return _fail(error, as_json=args.json)
    except KeyboardInterrupt:
        return _fail(PlannerError(Code.CANCELLED, "cancelled"), as_json=args.json)
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail(PlannerError(Code.TOO_LARGE, "not enough memory", hint="use a smaller model"), as_json=args.json)
    except Exception as error:
        if args.debug:
            raise
        report = PlannerError(
            Code.INTERNAL,
            f"internal error ({type(error).__name__}: {error})",
            hint="this is a bug in Weft; --debug shows where",
        )
        return _fail(report, as_json=args.json)


def _fail(error: PlannerError, *, as_json: bool) -> int:
    print(f"weft: {error}", file=sys.stderr)
    if as_json:
        violations = [{"layer": v.layer, "message": v.message, "hint": v.hint} for v in error.violations]
        body = {
            "code": error.code.value,
            "message": error.message,
            "layer": error.layer,
            "hint": error.hint,
            "violations": violations,
        }
        print(json.dumps({"error": body}, indent=2))
    return CATALOGUE[error.code].exit_code
