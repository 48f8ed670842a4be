# SPDX-License-Identifier: Apache-2.0
"""Generate the gRPC stubs in ``planner_service/proto`` from ``proto/``.

    python -m planner_service.protogen [--check]

``--check`` writes nothing and fails when the committed stubs differ from what the pinned grpcio-tools makes."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
import tempfile
from pathlib import Path

#: The generator's version is part of what it writes, so it is fixed; pyproject and requirements name the same.
GRPCIO_TOOLS = "1.85.1"

_ROOT = Path(__file__).resolve().parent.parent
_SOURCE = "weft/planner/v1/planner.proto"
_STUBS = ("planner_pb2.py", "planner_pb2_grpc.py")
_TARGET = Path(__file__).resolve().parent / "proto"
_SPDX = "# SPDX-License-Identifier: Apache-2.0\n"


def generate() -> dict[str, str]:
    """Stub file name -> text. SystemExit if grpcio-tools is absent, of another version, or refuses the source."""
    try:
        installed = importlib.metadata.version("grpcio-tools")
    except importlib.metadata.PackageNotFoundError:
        installed = "none"
    if installed != GRPCIO_TOOLS:
        raise SystemExit(
            f"protogen: needs grpcio-tools {GRPCIO_TOOLS}, found {installed}\n"
            f"  try: pip install grpcio-tools=={GRPCIO_TOOLS}"
        )
    protoc = importlib.import_module("grpc_tools.protoc")
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [f"--{kind}_out={scratch}" for kind in ("python", "grpc_python")]
        if protoc.main(["protoc", f"-I{_ROOT / 'proto'}", *outputs, _SOURCE]):
            raise SystemExit("protogen: protoc refused the source")
        folder = Path(scratch, _SOURCE).parent
        # The stubs live inside the package, not under a top-level `weft`.
        return {
            name: _SPDX
            + Path(folder, name).read_text().replace("from weft.planner.v1 import", "from planner_service.proto import")
            for name in _STUBS
        }


def main(argv: list[str] | None = None) -> int:
    """Write or check the stubs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m planner_service.protogen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed stubs are stale")
    args = parser.parse_args(argv)
    wanted = generate()
    stale = [n for n, text in wanted.items() if not (_TARGET / n).is_file() or (_TARGET / n).read_text() != text]
    if not args.check:
        for name in stale:
            (_TARGET / name).write_text(wanted[name])
        return 0
    if stale:
        print(f"stale: {', '.join(stale)}\n  try: python -m planner_service.protogen", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
