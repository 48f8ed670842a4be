# SPDX-License-Identifier: Apache-2.0
"""The engine built with AddressSanitizer and UBSan runs random schedules of whole models: no report, the same bytes.

The library is loaded into a Python of its own with the sanitizer's runtime preloaded; this file is also that program.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from planner_service import encode, layout
from planner_service.build import InputMode
from planner_service.engine import Engine, generated_input
from planner_service.facts import Facts
from planner_service.importers import import_model
from tests import randomize

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "build" / "engine" / "libweft_san.so"
MODES: tuple[InputMode, ...] = ("streamed", "resident", "external")
SCHEDULES = 4  # by input mode
MODELS = [
    ROOT / "samples" / "models" / "digits_a.onnx",
    ROOT / "samples" / "models" / "digits_b.onnx",
    ROOT.parent / "shared" / "models" / "mlperf-tiny-ad.tflite",
    ROOT.parent / "shared" / "models" / "mlperf-tiny-kws.tflite",
]


def digests(model: Path) -> list[list[int]]:
    """CRC-32 of the outputs of every random schedule, by the engine that WEFT_ENGINE names."""
    graph = import_model(model.read_bytes(), name=model.name)
    facts, engine = Facts(graph), Engine()
    found = []
    for seed, mode in enumerate(MODES):
        for schedule in randomize.random_schedules(graph, seed, SCHEDULES, mode):
            plan = engine.open(encode.encode(graph, schedule, layout.place(facts, schedule)))
            outputs = plan.run([generated_input(io.shape)[0] for io in plan.inputs]).outputs
            found.append([zlib.crc32(output.tobytes()) for output in outputs])
    return found


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_no_report_and_the_same_bytes(model: Path) -> None:
    if not model.is_file():
        pytest.skip(f"{model.name} is not there")
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {
        "WEFT_ENGINE": str(LIBRARY),
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, __file__, str(model)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = digests(model)
    assert json.loads(done.stdout) == expected
    assert len({tuple(crcs) for crcs in expected}) == 1


if __name__ == "__main__":
    print(json.dumps(digests(Path(sys.argv[1]))))
