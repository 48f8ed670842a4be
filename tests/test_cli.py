# SPDX-License-Identifier: Apache-2.0
"""The weft command: what it prints, writes and returns, in process and through a daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon import MODELS, ROOT, Daemon, chain, slow_model

from planner_service import api, inputs, report, signing, targets
from planner_service.cli import arguments, look, main
from planner_service.compare import compare
from planner_service.engine import Engine, IoInfo
from planner_service.errors import CATALOGUE, Code, PlannerError
from planner_service.format import DType, SectionId
from planner_service.service.client import Client

MODEL = MODELS / "digits_a.onnx"
OTHER = MODELS / "digits_b.onnx"
TEST_SET = MODELS / "digits_test.npz"
TFLITE = ROOT.parent / "shared" / "models" / "mlperf-tiny-ic-resnet8.tflite"


class Result:
    """Exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a command in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(a) for a in args])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Result(code, out, err)

    return run


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the digits model with names."""
    path = tmp_path_factory.mktemp("plan") / "digits.weft"
    assert main(["plan", str(MODEL), "--names", "--target", "hifive1b", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running.ready()


PLAN_KEYS = {
    "sha256",
    "model",
    "target",
    "input_mode",
    "plan_version",
    "plan_bytes",
    "arena_bytes",
    "lower_bound",
    "macs",
    "base_macs",
    "overhead_factor",
    "predicted_instructions",
    "call_overhead",
    "fits",
    "shortfalls",
    "fitting_targets",
}
SHORTFALL_KEYS = {"resource", "needed", "available", "missing", "layer", "hint"}


# ---------------------------------------------------------------- plan and sweep


def test_plan_writes_what_it_says(weft: Any, tmp_path: Path) -> None:
    result = weft("plan", MODEL, "--json", "--plan-version", 3, "--vendor-id", "12345678-1234-5678-1234-567812345678")
    assert result.code == 0
    assert set(result.json) == PLAN_KEYS | {"output"}
    written = (tmp_path / "digits_a.weft").read_bytes()
    opened = Engine().open(written)
    assert result.json["arena_bytes"] == opened.arena_size
    assert result.json["plan_bytes"] == len(written)
    assert opened.info["plan_version"] == result.json["plan_version"] == 3
    assert opened.info["vendor_id"] == "12345678123456781234567812345678"
    assert [p.name for p in tmp_path.iterdir()] == ["digits_a.weft"]


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (["--layers"], lambda p: p["overhead_factor"] == 1.0),
        (["--fmax", "1.0"], lambda p: p["overhead_factor"] == 1.0),
        (["--ram", "5k"], lambda p: p["arena_bytes"] <= 5120),
        (["--ram", "5kB", "--input", "external"], lambda p: p["arena_bytes"] <= 5000 and p["input_mode"] == "external"),
        (["--input", "resident"], lambda p: p["input_mode"] == "resident"),
    ],
)
def test_plan_constraints(weft: Any, options: Sequence[str], check: Any) -> None:
    result = weft("plan", MODEL, "--json", "-o", "x.weft", *options)
    assert result.code == 0, result.err
    assert check(result.json)


def test_plan_says_it_in_words(weft: Any) -> None:
    result = weft("plan", MODEL, "-o", "x.weft")
    assert re.fullmatch(
        r"x\.weft: peak RAM \d+ bytes .*, F = 1\.000, plan \d+ bytes, version 1, for native\n", result.out
    )


def test_a_plan_that_does_not_fit(weft: Any, tmp_path: Path) -> None:
    result = weft("plan", MODEL, "--layers", "--target", "hifive1b", "--json", "-o", "x.weft")
    assert result.code == CATALOGUE[Code.INFEASIBLE].exit_code
    body = result.json
    assert set(body) == PLAN_KEYS | {"output", "error"}
    assert body["error"]["code"] == "infeasible"
    assert not body["fits"]
    assert body["output"] is None
    (shortfall,) = body["shortfalls"]
    assert set(shortfall) == SHORTFALL_KEYS
    assert shortfall["missing"] == shortfall["needed"] - shortfall["available"] > 0
    assert str(shortfall["missing"]) in result.err
    assert not list(tmp_path.iterdir())
    assert weft("plan", MODEL, "--layers", "--target", "hifive1b", "--force", "-o", "x.weft").code == 0
    assert (tmp_path / "x.weft").exists()


def test_latency_is_predicted_and_minimised(weft: Any) -> None:
    plans = [
        weft("plan", MODEL, "--json", "-o", "x.weft", "--ram", "8k", "--target", "nrf52840dk", "--objective", o).json
        for o in ("macs", "latency")
    ]
    assert plans[1]["predicted_instructions"] < plans[0]["predicted_instructions"]
    assert all(p["arena_bytes"] <= 8192 for p in plans)
    host = weft("plan", MODEL, "-o", "x.weft", "--json")
    assert host.json["predicted_instructions"] is None


def test_calls_are_bounded_unless_asked_otherwise(weft: Any) -> None:
    options = ("plan", MODEL, "-o", "x.weft", "--target", "mps3-an547", "--least-ram")
    usual, any_calls, few_calls = (
        weft(*options, *more, "--json").json for more in ((), ("--call-overhead", "any"), ("--call-overhead", "1.05"))
    )
    assert few_calls["call_overhead"] <= 1.05
    assert few_calls["call_overhead"] < usual["call_overhead"] <= api.CALL_OVERHEAD < any_calls["call_overhead"]
    assert any_calls["arena_bytes"] < usual["arena_bytes"] < few_calls["arena_bytes"]
    assert usual["lower_bound"] == any_calls["lower_bound"]
    assert f"call overhead {usual['call_overhead']:.2f}" in weft(*options).out
    assert weft("plan", MODEL, "-o", "x.weft", "--least-ram", "--json").json["call_overhead"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fmax", "1.1", "--call-overhead", "0.9"], "0.9 is not a number of 1.0 or more"),
        (["--fmax", "1.1", "--call-overhead", "nan"], "nan is not a number of 1.0 or more"),
        (["--fmax", "1.1", "--call-overhead", "1.1"], "no instructions were measured for"),
        (["--ram", "9k", "--call-overhead", "1.1"], "applies to the least RAM only"),
        (["--least-ram", "--call-overhead", "few"], "'few' is neither a factor nor any"),
    ],
)
def test_call_overhead_that_cannot_be_had(weft: Any, options: Sequence[str], said: str) -> None:
    result = weft("plan", MODEL, "-o", "x.weft", *options)
    assert result.code == CATALOGUE[Code.BAD_REQUEST].exit_code
    assert said in result.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "--target", "nrf52840dk"], "latency decides between"),
        (["--target", "native"], "no instructions were measured for host"),
        (["--target", "microbit"], "no instructions were measured for cortex-m0"),
    ],
)
def test_latency_that_cannot_be_predicted(weft: Any, options: Sequence[str], said: str) -> None:
    result = weft("plan", MODEL, "-o", "x.weft", "--objective", "latency", *options)
    assert result.code == CATALOGUE[Code.BAD_REQUEST].exit_code
    assert said in result.err


def test_infeasible_says_what_would_fit(weft: Any, tmp_path: Path) -> None:
    result = weft("plan", MODEL, "--ram", "100", "-o", "x.weft")
    assert result.code == CATALOGUE[Code.INFEASIBLE].exit_code
    assert "missing" in result.err
    assert re.search(r"try: .*\d+ bytes", result.err)
    assert not list(tmp_path.iterdir())


def test_sweep(weft: Any, tmp_path: Path) -> None:
    result = weft("sweep", MODEL, "--json", "--target", "hifive1b", "-o", "plans", "--html", "page.html")
    assert result.code == 0, result.err
    assert set(result.json) == {"model", "target", "input_mode", "layer_by_layer", "front"}
    front = result.json["front"]
    assert all(set(p) == PLAN_KEYS for p in [*front, result.json["layer_by_layer"]])
    assert [p["arena_bytes"] for p in front] == sorted(p["arena_bytes"] for p in front)
    assert len(list((tmp_path / "plans").iterdir())) == len(front)
    assert max(p["arena_bytes"] for p in front) < result.json["layer_by_layer"]["arena_bytes"]
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert not re.search(r"(?:src|href)\s*=|https?://(?!www\.w3\.org)", page)
    table = weft("sweep", MODEL, "--target", "hifive1b").out.splitlines()
    assert table[1].split() == [
        "schedule",
        "peak",
        "RAM",
        "saved",
        "F",
        "MACs",
        "instructions",
        "plan",
        "bytes",
        "fits",
    ]
    assert len(table) == 3 + len(front)


# ---------------------------------------------------------------- looking


def test_inspect_and_explain(weft: Any, plan: Path, tmp_path: Path) -> None:
    inspected = weft("inspect", plan, "--json")
    assert inspected.code == 0
    explained = weft("explain", plan, "--model", MODEL, "--json", "--html", "page.html")
    assert explained.code == 0
    assert {f.name for f in fields(report.Report)} <= set(explained.json)
    assert explained.json["arena_bytes"] == Engine().open(plan.read_bytes()).arena_size
    assert explained.json["peak_layer"]
    assert "<svg" in (tmp_path / "page.html").read_text()
    for command in ("inspect", "explain"):
        assert str(explained.json["arena_bytes"]) in weft(command, plan).out


def test_export_compiles(weft: Any, plan: Path, tmp_path: Path) -> None:
    assert weft("export", "--c-array", plan, "-o", "plan.c").code == 0
    source = (tmp_path / "plan.c").read_text()
    assert source == weft("export", "--c-array", plan).out
    assert weft("export", "--c-array", plan, "--json").json["name"] == "weft_plan_digits"
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "main.c").write_text(
        "#include <stdio.h>\n#include <stddef.h>\nextern const unsigned char weft_plan_digits[];\n"
        "extern const size_t weft_plan_digits_len;\nint main(void)\n{\n"
        "    if ((size_t)weft_plan_digits % 8) return 1;\n"
        "    return fwrite(weft_plan_digits, 1, weft_plan_digits_len, stdout) != weft_plan_digits_len;\n}\n"
    )
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    subprocess.run([compiler, *flags, "-o", "dump", "main.c", "plan.c"], cwd=tmp_path, check=True, timeout=60)
    dumped = subprocess.run([tmp_path / "dump"], capture_output=True, check=True, timeout=10)
    assert dumped.stdout == plan.read_bytes()


@pytest.mark.parametrize("name", ["9lives", "a-b", "a b", "x;y", ""])
def test_export_takes_identifiers_only(weft: Any, plan: Path, name: str) -> None:
    result = weft("export", "--c-array", plan, "--name", name)
    if name:
        assert result.code == CATALOGUE[Code.BAD_REQUEST].exit_code
    else:
        assert "weft_plan_digits" in result.out


def test_c_array_holds_every_byte() -> None:
    data = bytes(range(256)) + b"\x01"
    source = look.c_array(data, "p")
    assert bytes(int(b, 16) for b in re.findall(r"0x([0-9a-f]{2})", source)) == data


def test_targets(weft: Any) -> None:
    assert [t["name"] for t in weft("targets", "--json").json] == [t.name for t in targets.load_all()]
    assert weft("targets", "nrf52840dk", "--json").json["core"] == "cortex-m4"
    assert "nrf52840dk" in weft("targets").out
    assert weft("targets", "toaster").code == CATALOGUE[Code.NOT_FOUND].exit_code


def test_ops(weft: Any) -> None:
    every = weft("ops", "--json").json
    assert {"tflite", "onnx"} == {o["source"] for o in every}
    assert all(set(o) == {"source", "name", "constraints"} and o["constraints"] for o in every)
    (conv,) = weft("ops", "--source", "onnx", "conv", "--json").json
    assert conv["name"] == "Conv"
    assert "Conv" in weft("ops").out
    assert weft("ops", "Frobnicate").code == CATALOGUE[Code.NOT_FOUND].exit_code


# ---------------------------------------------------------------- running


def test_run_generated(weft: Any, plan: Path, tmp_path: Path) -> None:
    result = weft("run", plan, "--count", 3, "--json", "-o", "out.npz")
    assert result.code == 0
    assert set(result.json) == {"arena_bytes", "counts", "samples"}
    assert len({s["outputs"][0]["crc32"] for s in result.json["samples"]}) > 1
    assert np.load(tmp_path / "out.npz")["output0"].shape == (3, 1, 1, 10)
    assert weft("run", plan, "--json").json["samples"] == result.json["samples"][:1]
    assert weft("run", plan, "--seed", 1, "--json").json["samples"] != result.json["samples"][:1]
    assert "largest at" in weft("run", plan).out


def test_run_on_real_digits(weft: Any, plan: Path, tmp_path: Path) -> None:
    labelled = weft("run", plan, "--input", TEST_SET, "--count", 360, "--json").json
    assert labelled["accuracy"] > 0.98
    np.save(tmp_path / "one.npy", np.load(TEST_SET)["image"][0])
    alone = weft("run", plan, "--input", "one.npy", "--json").json
    assert alone["samples"] == labelled["samples"][:1]


def test_compare_on_real_digits(weft: Any, plan: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = weft("compare", MODEL, plan, "--input", TEST_SET, "--json")
    assert result.code == 0, result.err
    found = result.json
    assert found["samples"] == found["accuracy"]["samples"] == 360
    assert found["same_as_layers"]
    assert min(found["accuracy"]["source"], found["accuracy"]["engine"]) > 0.98 * 360
    assert found["accuracy"]["agree"] >= 0.99 * 360
    assert len(found["layers"]) > 10
    assert found["layers"][0]["largest"] <= 1
    text = weft("compare", MODEL, plan, "--count", 2).out
    assert "onnxruntime against the engine, 2 samples" in text
    assert "the same bytes as the layer-by-layer plan" in text


def test_compare_tflite_is_exact(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    if not TFLITE.exists():
        pytest.skip(f"{TFLITE} is missing")
    data = TFLITE.read_bytes()
    (planned,) = api.create_plans(data, "resnet8", api.PlanRequest(kind="p2"))
    samples = inputs.generate(Engine().open(planned.plan).inputs, count=3)
    found = compare(data, planned.plan, samples, name="resnet8")
    assert {d.largest for d in (*found.outputs, *found.layers)} == {0}
    assert len(found.layers) > 10
    assert found.accuracy.agree == 3


def test_compare_needs_the_plans_model(weft: Any, plan: Path) -> None:
    result = weft("compare", OTHER, plan)
    assert result.code == CATALOGUE[Code.BAD_REQUEST].exit_code
    assert "another model" in result.err


@pytest.mark.parametrize("target", ["nrf52840dk", "mps3-an547", "hifive1b"])
def test_compare_takes_plans_of_every_weight_layout(weft: Any, target: str) -> None:
    """Model ids cover the weights as they lie: those of Cortex-M with DSP were said to be of another model."""
    pytest.importorskip("onnxruntime")
    assert weft("plan", MODEL, "--target", target, "--ram", "4k", "-o", "x.weft").code == 0
    result = weft("compare", MODEL, "x.weft", "--count", 1)
    assert result.code == 0, result.err
    assert "the same bytes as the layer-by-layer plan" in result.out
    assert weft("compare", OTHER, "x.weft").code == CATALOGUE[Code.BAD_REQUEST].exit_code


def test_few_calls_are_said_to_cost_bytes(weft: Any) -> None:
    ask = ("plan", OTHER, "--target", "mps3-an547", "--least-ram", "-o", "x.weft")
    assert "above the lower bound at any call overhead)" in weft(*ask).out
    assert "(0 above the lower bound)" in weft(*ask, "--call-overhead", "any").out


def test_a_daemon_that_is_not_there_is_named(weft: Any) -> None:
    error = weft("targets", "--server", "127.0.0.1:1").err
    assert "no daemon answers at 127.0.0.1:1: Connection refused" in error
    assert "weft serve" in error


def test_quantize_then_plan(weft: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "float.onnx").write_bytes(chain(2, is_float=True))
    refused = weft("plan", "float.onnx")
    assert refused.code == CATALOGUE[Code.FLOAT_MODEL].exit_code
    assert "weft quantize" in refused.err
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", input=rng.normal(size=(8, 4, 16, 16)).astype(np.float32))
    result = weft("quantize", "float.onnx", "--calibration", "data.npz", "--json")
    assert result.code == 0, result.err
    assert result.json["output"] == "float.int8.onnx"
    assert weft("plan", "float.int8.onnx").code == 0


# ---------------------------------------------------------------- inputs

PORT = IoInfo(shape=(2, 3, 4), dtype=DType.INT8, scale=0.5, zero_point=-1)


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 2, 3, 4), (5, 1, 2, 3, 4), (4, 2, 3), (5, 4, 2, 3)])
def test_arrays_of_either_layout(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int8).reshape(shape)
    found = inputs.to_int8(array, PORT, layout="hwc", name="x")
    assert found.shape[1:] == (2, 3, 4)
    expected = array.reshape(-1, 4, 2, 3).transpose(0, 2, 3, 1) if shape[-3:] == (4, 2, 3) else array
    assert (found == expected.reshape(found.shape)).all()


@pytest.mark.parametrize(
    ("dtype", "edge", "value", "expected"),
    [
        (np.int8, DType.FLOAT32, -128, -128),
        (np.uint8, DType.UINT8, 255, 127),
        (np.uint8, DType.FLOAT32, 10, 19),
        (np.float32, DType.FLOAT32, 1.25, 1),
        (np.float64, DType.INT8, 1e9, 127),
        (np.int64, DType.INT8, -1000, -128),
        (np.bool_, DType.INT8, 1, 1),
    ],
)
def test_values_at_the_edge(dtype: Any, edge: DType, value: float, expected: int) -> None:
    port = IoInfo(shape=(1, 1, 1), dtype=edge, scale=0.5, zero_point=-1)
    assert inputs.to_int8(np.full((1, 1, 1), value, dtype), port, layout="hwc", name="x").item() == expected


@pytest.mark.parametrize("edge", list(DType))
def test_edge_and_back(edge: DType) -> None:
    port = IoInfo(shape=(1, 1, 256), dtype=edge, scale=0.1, zero_point=5)
    values = np.arange(-128, 128).astype(np.int8).reshape(port.shape)
    assert (inputs.from_edge(inputs.to_edge(values, port), port) == values).all()


# ---------------------------------------------------------------- wrong input


def _with_damaged_weights(plan: bytes) -> bytes:
    """A plan that the engine accepts, and that computes something else."""
    weights = next(s for s in signing.describe(plan).sections if s.type == SectionId.WEIGHTS)
    at = weights.offset + weights.length // 2
    damaged = plan[:at] + bytes([plan[at] ^ 0x55]) + plan[at + 1 :]
    Engine().open(damaged)
    return damaged


@pytest.fixture
def bad(tmp_path: Path, plan: Path) -> Path:
    """A folder of files that are wrong."""
    files: dict[str, bytes] = {
        "empty": b"",
        "text.onnx": b"not a model",
        "cut.onnx": MODEL.read_bytes()[:3000],
        "sin.onnx": chain(3, extra="Sin"),
        "float.onnx": chain(1, is_float=True),
        "cut.weft": plan.read_bytes()[:500],
        "flipped.weft": bytes([*plan.read_bytes()[:700], 0xFF, 0xFF, *plan.read_bytes()[702:]]),
        "weights.weft": _with_damaged_weights(plan.read_bytes()),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    np.save(tmp_path / "shape.npy", np.zeros((3, 3)))
    np.save(tmp_path / "nan.npy", np.full((16, 16, 1), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.savez(tmp_path / "two.npz", a=np.zeros((16, 16, 1)), b=np.zeros((16, 16, 1)))
    np.savez(tmp_path / "labels.npz", a=np.zeros((16, 16, 1)), label=np.zeros(3))
    return tmp_path


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("plan none.onnx", Code.NOT_FOUND),
        ("plan .", Code.NOT_FOUND),
        ("plan empty", Code.BAD_MODEL),
        ("plan text.onnx", Code.BAD_MODEL),
        ("plan cut.onnx", Code.BAD_MODEL),
        ("plan sin.onnx", Code.UNSUPPORTED),
        ("plan float.onnx", Code.FLOAT_MODEL),
        ("plan MODEL --target toaster", Code.NOT_FOUND),
        ("plan MODEL --fmax 0.9", Code.BAD_REQUEST),
        ("plan MODEL --fmax nan", Code.BAD_REQUEST),
        ("plan MODEL --fmax inf", Code.BAD_REQUEST),
        ("plan MODEL --fmax much", Code.BAD_REQUEST),
        ("plan MODEL --ram 0", Code.BAD_REQUEST),
        ("plan MODEL --ram -1", Code.BAD_REQUEST),
        ("plan MODEL --ram 5GB", Code.BAD_REQUEST),
        ("plan MODEL --ram 4096G", Code.BAD_REQUEST),
        ("plan MODEL --ram 1k --fmax 1.1", Code.BAD_REQUEST),
        ("plan MODEL --plan-version 4294967296", Code.BAD_REQUEST),
        ("plan MODEL --plan-version -1", Code.BAD_REQUEST),
        ("plan MODEL --class-id 12", Code.BAD_REQUEST),
        ("plan MODEL -o none/x.weft", Code.BAD_REQUEST),
        ("plan MODEL --server 127.0.0.1:1", Code.UNAVAILABLE),
        ("plan", Code.BAD_REQUEST),
        ("frobnicate", Code.BAD_REQUEST),
        ("", Code.BAD_REQUEST),
        ("sweep sin.onnx", Code.UNSUPPORTED),
        ("inspect none.weft", Code.NOT_FOUND),
        ("inspect empty", Code.BAD_PLAN),
        ("inspect cut.weft", Code.BAD_PLAN),
        ("inspect text.onnx", Code.BAD_PLAN),
        ("explain cut.weft", Code.BAD_PLAN),
        ("explain PLAN --model OTHER", Code.BAD_REQUEST),
        ("explain PLAN --server 127.0.0.1:1", Code.UNAVAILABLE),
        ("run cut.weft", Code.BAD_PLAN),
        ("run flipped.weft", Code.BAD_PLAN),
        ("run empty", Code.BAD_PLAN),
        ("run weights.weft", Code.BAD_PLAN),
        ("compare MODEL weights.weft", Code.BAD_PLAN),
        ("profile weights.weft", Code.BAD_PLAN),
        ("export --c-array weights.weft", Code.BAD_PLAN),
        ("flash weights.weft --board nrf52840dk", Code.BAD_PLAN),
        ("push weights.weft --to smp+udp://127.0.0.1:9", Code.BAD_PLAN),
        ("push cut.weft --to smp+udp://127.0.0.1:9", Code.BAD_PLAN),
        ("status --to coap://weft.invalid", Code.UNREACHABLE),
        ("run PLAN --input none.npy", Code.NOT_FOUND),
        ("run PLAN --input text.onnx", Code.BAD_REQUEST),
        ("run PLAN --input shape.npy", Code.BAD_REQUEST),
        ("run PLAN --input nan.npy", Code.BAD_REQUEST),
        ("run PLAN --input objects.npy", Code.BAD_REQUEST),
        ("run PLAN --input words.npy", Code.BAD_REQUEST),
        ("run PLAN --input two.npz", Code.BAD_REQUEST),
        ("run PLAN --input labels.npz", Code.BAD_REQUEST),
        ("run PLAN --input shape.npy --seed 1", Code.BAD_REQUEST),
        ("run PLAN --count 0", Code.BAD_REQUEST),
        ("compare text.onnx PLAN", Code.BAD_MODEL),
        ("export PLAN", Code.BAD_REQUEST),
        ("export --c-array cut.weft", Code.BAD_PLAN),
        ("quantize float.onnx --calibration none.npz", Code.NOT_FOUND),
        ("quantize float.onnx --calibration two.npz", Code.BAD_REQUEST),
        ("quantize text.onnx --calibration two.npz", Code.BAD_MODEL),
        ("serve --listen nowhere --store s", Code.BAD_REQUEST),
        ("serve --listen 127.0.0.1:99999 --store s", Code.BAD_REQUEST),
        ("serve --listen 127.0.0.1:0 --store empty", Code.UNAVAILABLE),
    ],
)
def test_wrong_input(weft: Any, bad: Path, plan: Path, command: str, code: Code) -> None:
    words = {"MODEL": str(MODEL), "OTHER": str(OTHER), "PLAN": str(plan)}
    before = sorted(p.name for p in bad.iterdir() if p.name != "s")
    result = weft(*(words.get(w, w) for w in command.split()))
    assert result.code == CATALOGUE[code].exit_code, result.err
    assert result.err
    assert not result.out
    assert sorted(p.name for p in bad.iterdir() if p.name != "s") == before


def test_errors_are_complete_and_the_same_as_json(weft: Any, bad: Path) -> None:
    result = weft("plan", "sin.onnx", "--json")
    body = result.json["error"]
    assert set(body) == {"code", "message", "layer", "hint", "violations"}
    assert body["code"] == "unsupported"
    assert {v["layer"] for v in body["violations"]} == {"extra0", "extra1", "extra2"}
    for violation in body["violations"]:
        assert violation["message"] in result.err
        assert violation["hint"]


def test_our_bugs_have_no_traceback_unless_wanted(weft: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(api, "operators", broken)
    result = weft("ops")
    assert result.code == CATALOGUE[Code.INTERNAL].exit_code
    assert "oops" in result.err
    with pytest.raises(ZeroDivisionError):
        weft("ops", "--debug")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64k", 65536),
        ("64KiB", 65536),
        ("64kB", 64000),
        ("1.5M", 1572864),
        ("2 MB", 2000000),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert arguments.size(text) == expected


@pytest.mark.parametrize("text", ["", "k", "-1", "1e3", "64q", "0x10", "1.2.3"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(arguments.argparse.ArgumentTypeError):
        arguments.size(text)


@pytest.mark.parametrize(
    "command",
    ["plan", "sweep", "inspect", "explain", "run", "compare", "export", "ops", "targets", "quantize", "serve"],
)
def test_every_command_has_help_and_json(weft: Any, command: str) -> None:
    result = weft(command, "--help")
    assert result.code == 0
    assert "--json" in result.out


def test_exit_codes_are_listed_in_order(weft: Any) -> None:
    told = [int(code) for code in re.findall(r"(\d+)\s+[a-z-]+[,.]", weft("--help").out.partition("0 done")[2])]
    assert told == sorted(outcome.exit_code for outcome in CATALOGUE.values())


# ---------------------------------------------------------------- with a daemon


def test_commands_through_a_daemon(weft: Any, daemon: Daemon, tmp_path: Path) -> None:
    server = ("--server", daemon.address)
    remote = weft("plan", MODEL, "--json", "-o", "remote.weft", "--plan-version", 1, *server)
    local = weft("plan", MODEL, "--json", "-o", "local.weft")
    assert remote.code == 0, remote.err
    assert remote.json | {"output": ""} == local.json | {"output": ""}
    assert (tmp_path / "remote.weft").read_bytes() == (tmp_path / "local.weft").read_bytes()

    explained = weft("explain", "remote.weft", "--json", *server)
    assert explained.json == weft("explain", "local.weft", "--model", MODEL, "--json").json
    for command in (("targets",), ("ops",), ("targets", "native"), ("ops", "Conv")):
        assert weft(*command, "--json", *server).json == weft(*command, "--json").json

    swept = weft("sweep", MODEL, "--json", *server)
    assert swept.code == 0, swept.err
    versions = {p["plan_version"] for p in [*swept.json["front"], swept.json["layer_by_layer"]]}
    assert versions == {2}


@pytest.mark.parametrize(
    ("model", "options", "code"),
    [
        ("sin.onnx", [], Code.UNSUPPORTED),
        ("float.onnx", [], Code.FLOAT_MODEL),
        ("text.onnx", [], Code.BAD_MODEL),
        ("empty", [], Code.BAD_MODEL),
        (str(MODEL), ["--ram", "100"], Code.INFEASIBLE),
        (str(MODEL), ["--layers", "--target", "hifive1b"], Code.INFEASIBLE),
        (str(MODEL), ["--fmax", "0.5"], Code.BAD_REQUEST),
    ],
)
def test_errors_through_a_daemon_are_the_same(
    weft: Any, daemon: Daemon, bad: Path, model: str, options: list[str], code: Code
) -> None:
    remote = weft("plan", model, "--server", daemon.address, *options)
    assert remote.code == CATALOGUE[code].exit_code
    assert remote.err == weft("plan", model, *options).err


def test_explain_of_a_plan_that_the_daemon_lacks(weft: Any, daemon: Daemon, bad: Path) -> None:
    result = weft("explain", "text.onnx", "--server", daemon.address)
    assert result.code == CATALOGUE[Code.BAD_PLAN].exit_code
    assert weft("plan", MODEL, "--plan-version", 12345, "-o", "x.weft").code == 0
    result = weft("explain", "x.weft", "--server", daemon.address)
    assert result.code == CATALOGUE[Code.NOT_FOUND].exit_code


def test_a_daemon_explains_its_plans_signed_or_not(weft: Any, daemon: Daemon, tmp_path: Path) -> None:
    server = ("--server", daemon.address)
    assert weft("plan", MODEL, "-o", "x.weft", *server).code == 0
    unsigned = weft("explain", "x.weft", "--json", *server)
    plan = tmp_path / "x.weft"
    plan.write_bytes(signing.sign(plan.read_bytes(), signing.generate_key()))
    assert weft("explain", "x.weft", "--json", *server).json == unsigned.json


# ---------------------------------------------------------------- as a process


def start(*args: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "planner_service.cli", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


@pytest.mark.parametrize("options", [[], ["--layers"]])
def test_control_c(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "slow.onnx").write_bytes(slow_model())
    process = start("plan", "slow.onnx", *options, cwd=tmp_path)
    time.sleep(2)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - begin < 1.5
    assert process.returncode == CATALOGUE[Code.CANCELLED].exit_code
    assert (out, err) == ("", "weft: cancelled\n")


def test_control_c_ends_the_daemon(tmp_path: Path) -> None:
    with Daemon(tmp_path) as running:
        running.ready()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(10) == 0
        assert "Traceback" not in running.log
        with Client(running.address) as client, pytest.raises(PlannerError):
            client.healthy()


def test_a_reader_that_stops_early(tmp_path: Path) -> None:
    process = start("ops", "--json", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(20) == 0
