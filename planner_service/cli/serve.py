# SPDX-License-Identifier: Apache-2.0
"""``weft serve``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys

from planner_service.store import Limits

#: Where the daemon listens unless told otherwise, and where its clients look for it.
LISTEN = "127.0.0.1:50051"


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; the first line of stdout says where."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the core's own messages; ours say what matters
    from planner_service.service import daemon

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )

    def on_bound(host: str, port: int) -> None:
        where = {"host": host, "port": port, "pid": os.getpid()}
        print(json.dumps(where) if args.json else f"listening on {host}:{port}", flush=True)

    daemon.serve(
        daemon.Settings(
            listen=args.listen,
            store=args.store,
            workers=args.workers,
            queue=args.queue,
            memory_bytes=args.worker_memory,
            limits=Limits(model_bytes=args.max_model, store_bytes=args.max_store),
        ),
        on_bound,
    )
    return 0
