# SPDX-License-Identifier: Apache-2.0
"""``weft profile``: figures that add up, and errors that say what to install."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from baremetal import runner

from planner_service import api, cli
from planner_service.errors import CATALOGUE, Code
from planner_service.importers import import_model
from planner_service.profile import measure

MODEL = Path(__file__).resolve().parent.parent / "samples" / "models" / "digits_a.onnx"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    request = api.PlanRequest(kind="p1", f_max=1.1, target="mps2-an386")
    (planned,) = api.create_plans(MODEL.read_bytes(), MODEL.stem, request)
    path = tmp_path_factory.mktemp("plan") / "digits.weft"
    path.write_bytes(planned.plan)
    return path


@pytest.mark.parametrize("core", ["m4", "rv32"])
def test_profile_adds_up(core: str, plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if lacking := runner.missing(core):
        pytest.skip(f"{', '.join(lacking)} missing")
    assert cli.main(["profile", str(plan), "--core", core, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    graph = import_model(MODEL.read_bytes(), name=MODEL.stem)
    assert [o["index"] for o in found["operators"]] == list(range(len(graph.ops)))
    assert sum(o["macs"] for o in found["operators"]) == sum(s["macs"] for s in found["stages"]) == found["macs"]
    stages = sum(s["instructions"] for s in found["stages"])
    assert abs(stages - found["instructions"]) < 0.01 * found["instructions"]
    assert 0.8 * stages < found["kernel_instructions"] < stages
    for stage in found["stages"]:
        own = [o["instructions"] for o in found["operators"] if o["stage"] == stage["index"]]
        assert sum(own) < stage["instructions"] + 50 * sum(
            o["calls"] for o in found["operators"] if o["stage"] == stage["index"]
        )
    assert 0 < found["stack_bytes"] <= 1024
    assert cli.main(["profile", str(plan), "--core", core]) == 0
    text = capsys.readouterr().out
    assert f"{found['instructions']} instructions on {core}" in text


def test_missing_tools_are_named(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _tool: None)
    assert cli.main(["profile", str(plan), "--core", "rv32"]) == CATALOGUE[Code.UNAVAILABLE].exit_code
    said = capsys.readouterr().err
    assert "apt-get install gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc" in said


def test_missing_sources_are_named(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(measure.emulator, "MODULE", tmp_path / "module")
    assert cli.main(["profile", str(plan)]) == CATALOGUE[Code.UNAVAILABLE].exit_code
    assert "source tree" in capsys.readouterr().err


def test_damaged_plans_are_refused(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if lacking := runner.missing("m4"):
        pytest.skip(f"{', '.join(lacking)} missing")
    damaged = tmp_path / "damaged.weft"
    damaged.write_bytes(plan.read_bytes()[:-100])
    assert cli.main(["profile", str(damaged)]) == CATALOGUE[Code.BAD_PLAN].exit_code
    assert "Traceback" not in capsys.readouterr().err
