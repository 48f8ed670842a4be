# SPDX-License-Identifier: Apache-2.0
"""A real `weft serve` for tests, and models made on the fly for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from planner_service.service.client import Client

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "samples" / "models"
START_SECONDS = 60.0


class Daemon:
    """The daemon as a process of its own, on a free port; a context manager that ends it by SIGTERM."""

    def __init__(self, folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.store = folder / "store"
        self._log = folder / "log"
        command = [sys.executable, "-m", "planner_service.cli", "serve", "--json", "-v", "--listen", "127.0.0.1:0"]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--store", str(self.store), *options],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log
        self.address = f"127.0.0.1:{json.loads(line)['port']}"

    def ready(self) -> Self:
        """Wait until health says SERVING."""
        until = time.monotonic() + START_SECONDS
        with Client(self.address) as client:
            while not client.healthy():
                assert time.monotonic() < until, self.log
                time.sleep(0.02)
        return self

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str, seconds: float = 10.0) -> None:
        """Return when the daemon has logged ``text``."""
        until = time.monotonic() + seconds
        while text not in self.log:
            assert time.monotonic() < until, self.log
            time.sleep(0.01)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def chain(layers: int, *, size: int = 16, channels: int = 4, extra: str = "", is_float: bool = False) -> bytes:
    """An ONNX model of ``layers`` 3x3 convolutions (QLinearConv, or Conv for ``is_float``), and an operator of the type
    ``extra`` behind each of them if one is named."""
    rng = np.random.default_rng(layers)
    kind = TensorProto.FLOAT if is_float else TensorProto.INT8
    constants: dict[str, Any] = {}
    if not is_float:
        constants = {"s": np.float32(0.05), "z": np.int8(0)}
        constants |= {"ws": np.full(channels, 0.01, np.float32), "wz": np.zeros(channels, np.int8)}
    nodes, value = [], "input"
    for i in range(layers):
        weights = rng.integers(-127, 128, (channels, channels, 3, 3))
        constants[f"w{i}"] = weights.astype(np.float32 if is_float else np.int8)
        inputs = [value, f"w{i}"] if is_float else [value, "s", "z", f"w{i}", "ws", "wz", "s", "z"]
        nodes.append(
            helper.make_node("Conv" if is_float else "QLinearConv", inputs, [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1])
        )
        value = f"c{i}"
        if extra:
            nodes.append(helper.make_node(extra, [value], [f"x{i}"], f"extra{i}"))
            value = f"x{i}"
    shape = [1, channels, size, size]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info(value, kind, shape)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    return bytes(onnx.ModelProto.SerializeToString(model))


def slow_model() -> bytes:
    """A model that takes the engine many seconds to run, and so the planner to check any plan of it."""
    return chain(8, size=512, channels=32)
