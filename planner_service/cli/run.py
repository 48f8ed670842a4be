# SPDX-License-Identifier: Apache-2.0
"""Commands that run models: ``run``, ``compare``, ``quantize``."""

from __future__ import annotations

import argparse
import io
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from planner_service import api, inputs
from planner_service.cli import files
from planner_service.errors import Code, PlannerError

#: Generated inputs that `weft compare` runs when none are asked for.
_COMPARED = 8
_SHOWN_VALUES = 10


def run_run(args: argparse.Namespace) -> int:
    """Outputs of a plan, their CRC-32, and what the engine counted."""
    plan = api.check_plan(files.read_plan(args.plan))
    samples = _samples(args, plan.inputs, names=(), layout=args.layout or "hwc", default=1)
    runs = [plan.run(samples.sample(i)) for i in range(len(samples))]
    if args.output:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {
            f"output{k}": np.stack([result.outputs[k] for result in runs]) for k in range(len(plan.outputs))
        }
        np.savez(buffer, **arrays)
        files.write(args.output, buffer.getvalue())
    counts = asdict(runs[0].counts)
    body: dict[str, Any] = {"arena_bytes": plan.arena_size, "counts": counts, "samples": []}
    text = [
        f"arena {plan.arena_size} bytes, {counts['macs']} MACs, {counts['calls']} kernel calls, "
        f"{counts['row_steps']} row steps per run"
    ]
    right = 0
    for i, result in enumerate(runs):
        outputs = []
        for info, array in zip(plan.outputs, result.outputs, strict=True):
            real = (array.reshape(-1).astype(np.float64) - info.zero_point) * info.scale
            top = int(np.argmax(array))
            outputs.append(
                {"shape": list(array.shape), "crc32": zlib.crc32(array.tobytes()), "top": top, "top_value": real[top]}
            )
            shown = " ".join(f"{v:.4g}" for v in real[:_SHOWN_VALUES]) + (" ..." if real.size > _SHOWN_VALUES else "")
            text.append(f"sample {i}: largest at {top}, crc32 {outputs[-1]['crc32']:08x}: {shown}")
        body["samples"].append({"outputs": outputs})
        right += samples.labels is not None and outputs[0]["top"] == int(samples.labels[i])
    if samples.labels is not None:
        body["accuracy"] = right / len(samples)
        text.append(f"accuracy {right} of {len(samples)} ({right / len(samples):.2%})")
    files.emit(args, body, "\n".join(text))
    return 0


def run_compare(args: argparse.Namespace) -> int:
    """The plan against its model's own runtime."""
    from planner_service.compare import compare
    from planner_service.importers import import_model

    model, plan = files.read_model(args.model), files.read_plan(args.plan)
    graph = import_model(model, name=args.model.stem)
    opened = api.check_plan(plan)
    layout: inputs.Layout = args.layout or ("chw" if graph.source == "onnx" else "hwc")
    samples = _samples(args, opened.inputs, names=[i.name for i in graph.inputs], layout=layout, default=_COMPARED)
    result = compare(model, plan, samples, name=args.model.stem, layers=not args.no_layers)

    rows = [(d.name, d.values, d.differing, d.largest, f"{d.mean:.5f}") for d in (*result.layers, *result.outputs)]
    kinds = ["layer"] * len(result.layers) + ["output"] * len(result.outputs)
    head = ("", "name", "values", "differing", "largest (LSB)", "mean (LSB)")
    text = [
        f"{result.runtime} against the engine, {result.samples} samples",
        files.table(head, [(kind, *row) for kind, row in zip(kinds, rows, strict=True)], left=2),
    ]
    if result.hidden:
        text.append(f"not exposed by the source: {', '.join(result.hidden)}")
    if not args.no_layers:
        verdict = "gives the same bytes as" if result.same_as_layers else "DIFFERS from"
        text.append(f"the plan {verdict} the layer-by-layer plan")
    accuracy = result.accuracy
    text.append(f"same answer: {accuracy.agree} of {accuracy.samples}")
    if accuracy.source is not None and accuracy.engine is not None:
        source, engine = (right / accuracy.samples for right in (accuracy.source, accuracy.engine))
        text.append(f"accuracy: source {source:.2%}, engine {engine:.2%}")
    files.emit(args, result.to_json(), "\n".join(text))
    return 0


def run_quantize(args: argparse.Namespace) -> int:
    """A float model becomes int8."""
    from planner_service.quantize import quantize_model

    data = files.read_model(args.model)
    calibration = inputs.read_arrays(args.calibration)
    result = quantize_model(data, calibration, per_channel=not args.per_tensor, form=args.form)
    output: Path = args.output or Path(args.model.stem + ".int8.onnx")
    files.write(output, result)
    body = {"output": str(output), "bytes": len(result), "form": args.form, "per_channel": not args.per_tensor}
    files.emit(args, body, f"{output}: {len(result)} bytes, from {len(data)}")
    return 0


def _samples(
    args: argparse.Namespace,
    ports: Sequence[inputs.Port],
    *,
    names: Sequence[str],
    layout: inputs.Layout,
    default: int,
) -> inputs.Samples:
    if args.input == inputs.GENERATED:
        seed = inputs.SEED if args.seed is None else args.seed
        return inputs.generate(ports, count=args.count or default, seed=seed)
    if args.seed is not None:
        raise PlannerError(Code.BAD_REQUEST, "--seed is for generated inputs")
    return inputs.load(Path(args.input), ports, names=names, layout=layout).first(args.count)
