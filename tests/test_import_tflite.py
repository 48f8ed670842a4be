# SPDX-License-Identifier: Apache-2.0
"""The TFLite importer against LiteRT's reference kernels: real models layer by layer, every operator over a grid, and
files that are none."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tflite_builder import TfliteBuilder, single

from planner_service import arith, planner
from planner_service.build import layer_by_layer
from planner_service.encode import encode
from planner_service.engine import Engine, InputMode
from planner_service.errors import Code, PlannerError
from planner_service.facts import Facts
from planner_service.format import DType
from planner_service.importers import MAX_MODEL_BYTES, import_model
from planner_service.importers.tflite import import_tflite
from planner_service.ir import Conv2D, FullyConnected, Graph, Lut, Pool, Reduce, Reshape, Resize
from planner_service.layout import place

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"
NAMES = ("mlperf-tiny-vww", "mlperf-tiny-ic-resnet8", "mlperf-tiny-kws", "mlperf-tiny-ad", "mcunet-vww")
INPUTS = 20

Array = NDArray[Any]


def model_bytes(name: str) -> bytes:
    path = MODELS / f"{name}.tflite"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path.read_bytes()


def litert(data: bytes, *, preserve: bool = False) -> Interpreter:
    interpreter = Interpreter(
        model_content=data,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=preserve,
    )
    interpreter.allocate_tensors()
    return interpreter


def feed(interpreter: Interpreter, graph: Graph, inputs: list[oracle.Int8]) -> None:
    """Give LiteRT the same input as the graph, in the model's own type, and run it."""
    details = {d["name"]: d for d in interpreter.get_input_details()}
    for io, x in zip(graph.inputs, inputs, strict=True):
        tensor, detail = graph.tensors[io.tensor], details[io.name]
        wide = x.astype(np.int32)
        if io.dtype == DType.FLOAT32:
            value: Array = ((wide - tensor.zero_point) * np.float32(tensor.scale)).astype(np.float32)
        else:
            value = (wide + (128 if io.dtype == DType.UINT8 else 0)).astype(detail["dtype"])
        interpreter.set_tensor(detail["index"], value.reshape(detail["shape"]))
    interpreter.invoke()


def smooth(graph: Graph, number: int) -> list[oracle.Int8]:
    """A few slow waves over the whole range."""
    result = []
    for io in graph.inputs:
        h, w, c = graph.tensors[io.tensor].shape
        y, x, z = np.meshgrid(np.arange(h) / h, np.arange(w) / w, np.arange(c), indexing="ij")
        wave = np.sin(2 * np.pi * ((1 + number % 3) * y + (number % 5) * x) + z + number)
        wave += np.cos(np.pi * (1 + number % 4) * z / c + number) if h * w == 1 else 0.3 * np.cos(7 * x - 3 * y)
        result.append(np.clip(np.rint(wave * 100), -128, 127).astype(np.int8))
    return result


# ---------------------------------------------------------------- real models


@pytest.mark.parametrize("name", NAMES)
def test_real_model_equals_litert_layer_by_layer(name: str) -> None:
    """Every operator on LiteRT's own inputs of it gives LiteRT's output, fully connected ones to within 2; every tensor
    before the first of those also when the graph runs from its inputs; the passes change no output; the engine gives
    every tensor of the layer-by-layer plan, and a fused plan the same outputs."""
    data = model_bytes(name)
    raw, graph = import_tflite(data, name=name), import_model(data, name=name)
    interpreter = litert(data, preserve=True)
    details = {d["name"]: d for d in interpreter.get_tensor_details()}
    layers, fused = planner.layers(graph), planner.plan(graph, planner.Constraint(kind="p1", f_max=1.0))
    engine = Engine()
    unfused, tight = engine.open(layers.plan), engine.open(fused.plan)
    ends = [stage.segments[-1].entries[-1].op for stage in layers.schedule.stages]
    # LiteRT cuts very long names; their tensors are then only compared through those behind them.
    exact, near, worst = 0, 0, 0
    for number in range(INPUTS):
        seed = oracle.advance(12345, number * 97)
        inputs = oracle.generated(raw, seed) if number < INPUTS // 2 else smooth(raw, number)
        feed(interpreter, raw, inputs)
        theirs: dict[int, oracle.Int8] = {}
        for i, tensor in enumerate(raw.tensors):
            if tensor.name in details:
                theirs[i] = hwc(interpreter.get_tensor(details[tensor.name]["index"]), tensor.shape)
        for io, detail in zip(raw.outputs, interpreter.get_output_details(), strict=True):
            value, tensor = interpreter.get_tensor(detail["index"]), raw.tensors[io.tensor]
            if io.dtype == DType.FLOAT32:
                value = np.rint(value / np.float32(tensor.scale)) + tensor.zero_point
            theirs[io.tensor] = hwc(value.astype(np.int8), tensor.shape)
        ours = oracle.run(raw, inputs)
        chained = {io.tensor for io in raw.inputs}
        for op in raw.ops:
            if not isinstance(op, FullyConnected) and chained.issuperset(op.inputs):
                chained.add(op.output)
                if op.output in theirs:
                    assert np.array_equal(ours[op.output], theirs[op.output]), op.name
                    exact += 1
            elif set(op.inputs) <= theirs.keys() and op.output in theirs:
                mine = oracle.evaluate(raw, op, [theirs[i] for i in op.inputs])
                difference = int(np.abs(mine.astype(int) - theirs[op.output]).max())
                assert difference <= (2 if isinstance(op, FullyConnected) else 0), op.name
                worst, near = max(worst, difference), near + 1
        passed = oracle.run(graph, inputs)
        executed = unfused.run(inputs, keep_stages=True)
        for end, content in zip(ends, executed.stages, strict=True):
            assert content == passed[graph.ops[end].output].tobytes(), graph.ops[end].name
        for io, output in zip(graph.outputs, tight.run(inputs).outputs, strict=True):
            assert np.array_equal(output, passed[io.tensor])
        for a, b in zip(raw.outputs, graph.outputs, strict=True):
            assert np.array_equal(ours[a.tensor], passed[b.tensor])
    print(
        f"{name}: {INPUTS} inputs, {exact} tensors bit-exact, {near} layers behind a dense one (difference <= {worst})"
    )
    assert exact + near >= INPUTS * len(raw.ops) // 2


def hwc(value: Array, shape: tuple[int, int, int]) -> oracle.Int8:
    """LiteRT's tensor in the graph's layout; a transposed one is told by its shape."""
    squeezed = [d for d in value.shape if d != 1]
    wanted = [d for d in shape if d != 1]
    if squeezed != wanted:
        order = [squeezed.index(d) for d in wanted]
        value = value.reshape(squeezed).transpose(order)
    return np.ascontiguousarray(value).reshape(shape)


# ---------------------------------------------------------------- single operators

RNG = np.random.default_rng(20240607)

Spec = dict[str, Any]
Case = tuple[str, bytes]


def act(shape: tuple[int, ...], scale: float = 0.05, zero: int = 3, dtype: str = "int8", **more: Any) -> Spec:
    """A tensor's description; ``zero`` is int8's zero point, uint8's lies 128 higher."""
    return {
        "shape": shape,
        "scale": scale,
        "zero_point": zero + (128 if dtype == "uint8" else 0),
        "dtype": dtype,
        **more,
    }


def codes(shape: tuple[int, ...], dtype: str = "int8") -> Array:
    return RNG.integers(0, 256, shape, dtype=np.uint8).view(dtype)


def ints(*values: int) -> Spec:
    return {"shape": (len(values),), "dtype": "int32", "data": np.array(values, np.int32)}


FUSED = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}


def out_size(size: int, kernel: int, stride: int, dilation: int, same: bool) -> int:
    return -(-size // stride) if same else (size + stride - ((kernel - 1) * dilation + 1)) // stride


def weighted(
    kind: str,
    source: Spec,
    weights: Array,
    channels: int,
    shape: tuple[int, ...],
    table: str,
    *,
    per_channel: bool,
    activation: str = "NONE",
    bias: bool = True,
    zero_out: int = -20,
    weight_zero: int = 128,
    **options: Any,
) -> bytes:
    """A model of one weighted layer; scales are such that outputs use the range and often saturate."""
    axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
    dtype = source["dtype"]
    scales = RNG.uniform(0.002, 0.01, channels if per_channel else 1).astype(np.float32)
    taps = math.prod(weights.shape) // channels
    operands = [
        source,
        {
            "shape": weights.shape,
            "dtype": dtype,
            "scale": scales,
            "zero_point": weight_zero if dtype == "uint8" else 0,
            "axis": axis,
            "data": weights,
        },
    ]
    if bias:
        content = RNG.integers(-20000, 20000, channels).astype(np.int32)
        operands.append({"shape": (channels,), "dtype": "int32", "scale": source["scale"] * scales, "data": content})
    scale = float(source["scale"] * scales.mean() * math.sqrt(taps) * 60)
    output = act(shape, scale, zero_out, dtype)
    return single(kind, operands, output, table, fused_activation_function=FUSED[activation], **options)


def convolutions() -> Iterator[Case]:
    sizes = ((5, 7, 4), (8, 6, 2), (1, 9, 1), (6, 1, 3))
    kernels = ((1, 1), (3, 3), (2, 5))
    grid = itertools.product(sizes, kernels, ((1, 1), (2, 1), (3, 2)), ((1, 1), (2, 3)), (True, False), (0, 1))
    for number, ((h, w, c), (kh, kw), (sh, sw), (dh, dw), same, dtype_number) in enumerate(grid):
        out_h, out_w = out_size(h, kh, sh, dh, same), out_size(w, kw, sw, dw, same)
        if out_h < 1 or out_w < 1:
            continue
        dtype = ("int8", "uint8")[dtype_number]
        per_channel = dtype == "int8" and number % 3 > 0
        source = act((1, h, w, c), 0.04, number % 256 - 128, dtype)
        common: dict[str, Any] = {
            "per_channel": per_channel,
            "activation": tuple(FUSED)[number % 4],
            "zero_out": (number * 37) % 256 - 128,
            "padding": 0 if same else 1,
            "stride_h": sh,
            "stride_w": sw,
            "dilation_h_factor": dh,
            "dilation_w_factor": dw,
        }
        label = (
            f"{dtype} {h}x{w}x{c} kernel {kh}x{kw} stride {sh}x{sw} dilation {dh}x{dw} {'same' if same else 'valid'}"
        )
        outs = (1, 2, 5)[number % 3]
        yield (
            f"CONV_2D {label}",
            weighted(
                "CONV_2D",
                source,
                codes((outs, kh, kw, c), dtype),
                outs,
                (1, out_h, out_w, outs),
                "Conv2DOptions",
                **common,
            ),
        )
        if c == 4 and dtype == "int8":
            yield (
                f"CONV_2D grouped {label}",
                weighted(
                    "CONV_2D", source, codes((6, kh, kw, 2), dtype), 6, (1, out_h, out_w, 6), "Conv2DOptions", **common
                ),
            )
        if dtype == "uint8":
            # Weights around another zero point than 128 are fine as long as the differences fit int8.
            shifted = RNG.integers(0, 228, (outs, kh, kw, c)).astype(np.uint8)
            yield (
                f"CONV_2D weights around 100 {label}",
                weighted(
                    "CONV_2D",
                    source,
                    shifted,
                    outs,
                    (1, out_h, out_w, outs),
                    "Conv2DOptions",
                    weight_zero=100,
                    **common,
                ),
            )
        multiplier = (1, 2, 3)[number % 3]
        yield (
            f"DEPTHWISE_CONV_2D x{multiplier} {label}",
            weighted(
                "DEPTHWISE_CONV_2D",
                source,
                codes((1, kh, kw, c * multiplier), dtype),
                c * multiplier,
                (1, out_h, out_w, c * multiplier),
                "DepthwiseConv2DOptions",
                depth_multiplier=multiplier,
                bias=number % 5 > 0,
                **common,
            ),
        )


def pools() -> Iterator[Case]:
    grid = itertools.product(
        ("AVERAGE_POOL_2D", "MAX_POOL_2D"), ((5, 7, 3), (4, 4, 2)), ((1, 1), (2, 2), (3, 2), (4, 4)), ((1, 1), (2, 3)),
        (True, False), ("int8", "uint8"), ("NONE", "RELU", "RELU6"), (-128, 0, 17),
    )  # fmt: skip
    for kind, (h, w, c), (kh, kw), (sh, sw), same, dtype, fused, zero in grid:
        out_h, out_w = out_size(h, kh, sh, 1, same), out_size(w, kw, sw, 1, same)
        if kind == "AVERAGE_POOL_2D" and dtype == "uint8" and same:
            continue
        source, output = act((1, h, w, c), 0.05, zero, dtype), act((1, out_h, out_w, c), 0.05, zero, dtype)
        padding = "same" if same else "valid"
        yield (
            f"{kind} {dtype} {h}x{w}x{c} kernel {kh}x{kw} stride {sh}x{sw} {padding} {fused} {zero}",
            single(
                kind, [source], output, "Pool2DOptions", padding=0 if same else 1, stride_h=sh, stride_w=sw,
                filter_height=kh, filter_width=kw, fused_activation_function=FUSED[fused],
            ),
        )  # fmt: skip


def binaries() -> Iterator[Case]:
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
        ((1, 4, 5, 3), (1, 4, 5, 3)), ((1, 4, 5, 3), (1, 1, 1, 3)), ((1, 4, 5, 3), (3,)), ((1, 4, 5, 3), ()),
        ((1, 1, 5, 1), (1, 4, 1, 3)), ((1, 4, 5, 3), (1, 4, 5, 1)), ((1, 7), (1, 7)),
        ((1, 6, 4), (1, 1, 4)), ((6, 4), (6, 4)),
    )  # fmt: skip
    grid = itertools.product(
        ("ADD", "SUB", "MUL"), shapes, ((0.05, 0.02, 0.07), (0.001, 0.3, 0.2), (0.4, 0.4, 0.1)), ("int8", "uint8"),
        tuple(FUSED), (False, True),
    )  # fmt: skip
    for number, (kind, (first, second), (a, b, c), dtype, fused, constant) in enumerate(grid):
        if len(first) != 4 and dtype == "uint8":
            continue
        out = act(np.broadcast_shapes(first, second), c * (3 if kind == "MUL" else 1), (number * 29) % 256 - 128, dtype)
        x, y = act(first, a, (number * 7) % 256 - 128, dtype), act(second, b, (number * 11) % 256 - 128, dtype)
        if constant:
            (y if number % 4 else x)["data"] = codes(second if number % 4 else first, dtype)
        options = {"fused_activation_function": FUSED[fused]}
        yield (
            f"{kind} {dtype} {first} {second} {fused} {'constant' if constant else ''} {number}",
            single(kind, [x, y], out, f"{kind.capitalize()}Options", **options),
        )


def functions() -> Iterator[Case]:
    shape = (1, 8, 32, 1)
    grid = itertools.product((0.003, 0.02, 0.05, 0.11, 0.3), (-128, -5, 0, 90, 127), ("int8", "uint8"))
    for scale, zero, dtype in grid:
        source = act(shape, scale, zero, dtype)
        label = f"{dtype} {scale} {zero}"
        yield f"LOGISTIC {label}", single("LOGISTIC", [source], act(shape, 1 / 256, -128, dtype))
        yield f"TANH {label}", single("TANH", [source], act(shape, 1 / 128, 0, dtype))
        yield (
            f"SOFTMAX {label}",
            single(
                "SOFTMAX",
                [act((1, 8, 32), scale, zero, dtype)],
                act((1, 8, 32), 1 / 256, -128, dtype),
                "SoftmaxOptions",
                beta=1.0,
            ),
        )
        for ratio, zero_out in ((0.6, -128), (1.0, zero), (2.3, 11)):
            output = act(shape, scale * ratio, zero_out, dtype)
            for kind in ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"):
                yield f"{kind} {label} {ratio}", single(kind, [source], output)
            yield f"HARD_SWISH {label} {ratio}", single("HARD_SWISH", [source], output, "HardSwishOptions")
            yield f"QUANTIZE {label} {ratio}", single("QUANTIZE", [source], output, "QuantizeOptions")
            for alpha in (0.1, -0.3, 1.7):
                yield (
                    f"LEAKY_RELU {label} {ratio} {alpha}",
                    single("LEAKY_RELU", [source], output, "LeakyReluOptions", alpha=alpha),
                )
        for kind in ("MINIMUM", "MAXIMUM"):
            limit = act((), scale, zero, dtype, data=np.array(7, dtype))
            yield f"{kind} {label}", single(kind, [source, limit], source, "MaximumMinimumOptions")
    for beta, depth, scale in itertools.product((0.5, 1.0, 3.0), (1, 2, 10, 511), (0.01, 0.2, 2.0)):
        yield (
            f"SOFTMAX beta {beta} depth {depth} {scale}",
            single("SOFTMAX", [act((1, depth), scale)], act((1, depth), 1 / 256, -128), "SoftmaxOptions", beta=beta),
        )
    for zero, out in ((0, 128), (5, 140)):
        yield (
            "QUANTIZE int8 to uint8",
            single("QUANTIZE", [act(shape, 0.1, zero)], act(shape, 0.1, out - 128, "uint8"), "QuantizeOptions"),
        )
        yield (
            "QUANTIZE uint8 to int8",
            single("QUANTIZE", [act(shape, 0.1, zero, "uint8")], act(shape, 0.07, zero), "QuantizeOptions"),
        )


def reductions() -> Iterator[Case]:
    grid = itertools.product(
        ("MEAN", "REDUCE_MAX"),
        (((1, 7, 5, 3), (1, 2)), ((1, 7, 5, 3), (1,)), ((1, 7, 5, 3), (2,)), ((1, 7, 5, 3), (-2, 1)),
        ((1, 6, 4), (1,)), ((5, 4), (0,)), ((1, 16, 16, 2), (1, 2)), ((1, 1, 5, 3), (1,))),
        (True, False), ("int8", "uint8"), ((0.05, -128, 0.05, -128), (0.05, 4, 0.031, -9), (0.02, -60, 0.2, 50)),
    )  # fmt: skip
    for kind, (shape, axes), keep, dtype, (scale, zero, scale_out, zero_out) in grid:
        gone = {k % len(shape) for k in axes}
        kept = tuple(1 if k in gone else d for k, d in enumerate(shape) if keep or k not in gone)
        source = act(shape, scale, zero, dtype)
        output = act(kept, scale, zero, dtype) if kind == "REDUCE_MAX" else act(kept, scale_out, zero_out, dtype)
        yield (
            f"{kind} {dtype} {shape} {axes} {keep} {scale_out}",
            single(kind, [source, ints(*axes)], output, "ReducerOptions", keep_dims=keep),
        )


def shapes() -> Iterator[Case]:
    for dtype, pads, kind in itertools.product(
        ("int8", "uint8"), ((1, 2, 3, 0), (0, 0, 0, 5), (0, 0, 0, 0)), ("PAD", "PADV2")
    ):
        t, b, left, r = pads
        source, output = act((1, 4, 5, 2), 0.1, 9, dtype), act((1, 4 + t + b, 5 + left + r, 2), 0.1, 9, dtype)
        rows = {"shape": (4, 2), "dtype": "int32", "data": np.array([[0, 0], [t, b], [left, r], [0, 0]], np.int32)}
        extra = [act((), 0.1, 9, dtype, data=np.array(77, dtype))] if kind == "PADV2" else []
        yield (
            f"{kind} {dtype} {pads}",
            single(kind, [source, rows, *extra], output, f"{'PadV2' if extra else 'Pad'}Options"),
        )
    for dtype, axis in itertools.product(("int8", "uint8"), (1, 2, 3, -1)):
        ins = [tuple(d + n if k == axis % 4 else d for k, d in enumerate((1, 3, 4, 5))) for n in range(3)]
        total = tuple(sum(s[k] for s in ins) if k == axis % 4 else d for k, d in enumerate((1, 3, 4, 5)))
        operands = [act(s, dtype=dtype) for s in ins]
        operands[1]["data"] = codes(ins[1], dtype)
        yield (
            f"CONCATENATION {dtype} {axis}",
            single("CONCATENATION", operands, act(total, dtype=dtype), "ConcatenationOptions", axis=axis),
        )
    grid = itertools.product(((4, 6), (8, 12), (3, 3), (5, 7), (9, 4), (1, 1)), (False, True), (False, True))
    for (h, w), align, half in grid:
        if align and half:
            continue
        yield (
            f"RESIZE_NEAREST_NEIGHBOR {h}x{w} {align} {half}",
            single(
                "RESIZE_NEAREST_NEIGHBOR", [act((1, 4, 6, 2)), ints(h, w)], act((1, h, w, 2)),
                "ResizeNearestNeighborOptions", align_corners=align, half_pixel_centers=half,
            ),
        )  # fmt: skip
    source = act((1, 1, 6, 2))
    views: tuple[tuple[str, Spec, list[Spec], str, dict[str, Any]], ...] = (
        ("RESHAPE", act((1, 3, 4, 1)), [ints(1, 3, 4, 1)], "ReshapeOptions", {"new_shape": [1, 3, 4, 1]}),
        ("SQUEEZE", act((6, 2)), [], "SqueezeOptions", {"squeeze_dims": [0, 1]}),
        ("EXPAND_DIMS", act((1, 1, 1, 6, 2)), [ints(1)], "ExpandDimsOptions", {}),
        ("TRANSPOSE", act((1, 6, 1, 2)), [ints(0, 2, 1, 3)], "TransposeOptions", {}),
    )
    for kind, output, parameters, table, options in views:
        b = TfliteBuilder()
        x, r, y = b.tensor(**source), b.tensor(**source), b.tensor(**output)
        b.operator("RELU", [x], [r])
        b.operator(kind, [r, *(b.tensor(**p) for p in parameters)], [y], table, **options)
        yield kind, b.build([x], [y])


GRID: dict[str, Callable[[], Iterator[Case]]] = {
    "convolutions": convolutions,
    "pools": pools,
    "binaries": binaries,
    "functions": functions,
    "reductions": reductions,
    "shapes": shapes,
}


def compare(label: str, data: bytes, engine: Engine) -> None:
    """Import, with and without passes, and the engine equal LiteRT on all codes or random ones."""
    raw, graph = import_tflite(data, name=label), import_model(data, name=label)
    interpreter = litert(data)
    inputs = []
    for io in raw.inputs:
        shape = raw.tensors[io.tensor].shape
        every = math.prod(shape) == 256
        inputs.append((np.arange(256, dtype=np.uint8).reshape(shape) if every else codes(shape, "uint8")).view(np.int8))
    feed(interpreter, raw, inputs)
    detail = interpreter.get_output_details()[0]
    theirs = interpreter.get_tensor(detail["index"])
    assert tuple(detail["shape"]) == tuple(theirs.shape)
    wanted = (theirs.astype(np.int32) - (128 if theirs.dtype == np.uint8 else 0)).reshape(-1)
    for g in (raw, graph):
        mine = oracle.run(g, inputs)[g.outputs[0].tensor]
        assert np.array_equal(mine.reshape(-1), wanted), label
    facts = Facts(graph)
    schedule = layer_by_layer(graph, InputMode.RESIDENT)
    plan = engine.open(encode(graph, schedule, place(facts, schedule)))
    assert np.array_equal(plan.run(inputs).outputs[0].reshape(-1), wanted), f"{label} on the engine"


@pytest.mark.parametrize("family", GRID)
def test_single_operators_equal_litert(family: str) -> None:
    count = 0
    engine = Engine()
    for label, data in GRID[family]():
        compare(label, data, engine)
        count += 1
    print(f"{family}: {count} models bit-exact with LiteRT's reference kernels, in NumPy and on the engine")
    assert count > 20


def rounded(acc: int, real: float) -> int:
    """gemmlowp's two roundings of acc * real, one integer at a time."""
    fraction, exponent = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    product = (acc << max(exponent, 0)) * multiplier
    high = (product + (1 << 30)) // (1 << 31)
    right = max(-exponent, 0)
    if right == 0:
        return high
    sign = -1 if high < 0 else 1
    return sign * ((abs(high) + (1 << (right - 1))) >> right)


def test_fully_connected_rounds_twice() -> None:
    """Against integers, one at a time, and LiteRT (which rounds once here) to within 1."""
    grid = itertools.product(
        (1, 7, 64), (1, 5), (True, False), tuple(FUSED), ("int8", "uint8"), (True, False), (-128, 0, 30)
    )
    count = 0
    engine = Engine()
    for k, n, per_channel, fused, dtype, bias, zero in grid:
        if per_channel and (dtype == "uint8" or n == 1):
            continue
        data = weighted(
            "FULLY_CONNECTED", act((1, k), 0.04, zero, dtype), codes((n, k), dtype), n, (1, n), "FullyConnectedOptions",
            per_channel=per_channel, activation=fused, bias=bias,
        )  # fmt: skip
        graph = import_model(data, name="fc")
        op = graph.ops[0]
        assert isinstance(op, FullyConnected)
        x = codes((1, 1, k), "int8")
        mine = oracle.run(graph, [x])[op.output].reshape(-1)
        schedule = layer_by_layer(graph, InputMode.RESIDENT)
        plan = engine.open(encode(graph, schedule, place(Facts(graph), schedule)))
        assert np.array_equal(plan.run([x]).outputs[0].reshape(-1), mine)
        out = graph.tensors[op.output]
        for o in range(n):
            acc = int(op.bias[o]) + sum(
                (int(a) - zero) * int(w) for a, w in zip(x.reshape(-1), op.weights[o], strict=True)
            )
            real = float(op.multipliers[o if len(op.multipliers) > 1 else 0])
            assert mine[o] == min(max(rounded(acc, real) + out.zero_point, op.act_min), op.act_max)
        interpreter = litert(data)
        feed(interpreter, graph, [x])
        theirs = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).astype(int).reshape(-1)
        assert np.abs(theirs - (128 if dtype == "uint8" else 0) - mine).max() <= 1
        count += 1
    print(f"fully connected: {count} models equal double rounding")


@settings(max_examples=500, deadline=None)
@given(st.integers(-(2**30), 2**30), st.floats(2.0**-40, 0.999), st.integers(0, 20))
def test_fixed_point_equals_integers(acc: int, real: float, left: int) -> None:
    """arith's and the oracle's multiplication against integers, one at a time."""
    real, acc = real * 2.0**left, acc >> left
    pair = arith.quantize_multiplier(real)
    assert pair == oracle.fixed_point(real)
    wanted = rounded(acc, real) if pair[0] else 0
    assert int(arith.mbqm(acc, *pair)) == wanted
    assert int(oracle.mbqm(acc, *pair)) == wanted


# ---------------------------------------------------------------- layouts and edges


def test_float_edges_become_io() -> None:
    b = TfliteBuilder()
    x = b.tensor((1, 4, 4, 2), "float32", name="in")
    q = b.tensor(**act((1, 4, 4, 2), 0.1, 5))
    r = b.tensor(**act((1, 4, 4, 2), 0.05, -100))
    y = b.tensor((1, 4, 4, 2), "float32", name="out")
    b.operator("QUANTIZE", [x], [q], "QuantizeOptions")
    b.operator("RELU", [q], [r])
    b.operator("DEQUANTIZE", [r], [y], "DequantizeOptions")
    graph = import_model(b.build([x], [y]), name="edges")
    assert [type(op) for op in graph.ops] == [Lut]
    assert (graph.inputs[0].dtype, graph.inputs[0].name) == (DType.FLOAT32, "in")
    assert (graph.outputs[0].dtype, graph.outputs[0].name) == (DType.FLOAT32, "out")
    assert graph.tensors[graph.inputs[0].tensor].scale == float(np.float32(0.1))


def test_uint8_edge_vanishes() -> None:
    """QUANTIZE uint8 to int8 that only moves the zero point leaves nothing behind."""
    b = TfliteBuilder()
    x = b.tensor(**act((1, 2, 2, 1), 0.1, 5, "uint8"))
    q = b.tensor(**act((1, 2, 2, 1), 0.1, 5))
    r = b.tensor(**act((1, 2, 2, 1), 0.07, 9))
    b.operator("QUANTIZE", [x], [q], "QuantizeOptions")
    b.operator("TANH", [q], [b.tensor(**act((1, 2, 2, 1), 1 / 128, 0))])
    b.operator("RELU", [q], [r])
    graph = import_model(b.build([x], [r]), name="edge")
    assert [type(op) for op in graph.ops] == [Lut]
    assert graph.inputs[0].dtype == DType.UINT8


def test_float_input_read_twice() -> None:
    """The same quantisation twice is one input; two quantisations are refused."""
    for scale, fine in ((0.1, True), (0.2, False)):
        b = TfliteBuilder()
        x = b.tensor((1, 4), "float32", name="in")
        p, q, y = b.tensor(**act((1, 4), 0.1)), b.tensor(**act((1, 4), scale)), b.tensor(**act((1, 4), 0.3))
        b.operator("QUANTIZE", [x], [p], "QuantizeOptions")
        b.operator("QUANTIZE", [x], [q], "QuantizeOptions")
        b.operator("ADD", [p, q], [y], "AddOptions")
        data = b.build([x], [y])
        if fine:
            graph = import_model(data, name="twice")
            assert graph.ops[0].inputs == (graph.inputs[0].tensor,) * 2
        else:
            with pytest.raises(PlannerError, match="1 thing"):
                import_model(data, name="twice")


def test_computed_shape_is_not_looked_at() -> None:
    """RESHAPE's declared output counts, even if its shape comes from a float network input."""
    b = TfliteBuilder()
    x, s = b.tensor(**act((1, 4))), b.tensor((2,), "float32", name="shape")
    r, f, y = b.tensor(**act((1, 4))), b.tensor(**act((1, 2, 2))), b.tensor(**act((1, 2, 2)))
    b.operator("RELU", [x], [r])
    b.operator("RESHAPE", [r, s], [f], "ReshapeOptions")
    b.operator("RELU", [f], [y])
    assert len(import_model(b.build([x, s], [y]), name="computed").outputs) == 1


def test_flattening_disappears_and_transposition_moves_into_weights() -> None:
    """(1, H, W, C) transposed to channels first, flattened, fed to a dense layer: weights take the order."""
    weights = codes((3, 24))
    for perm, flat in (((0, 1, 2, 3), None), ((0, 3, 1, 2), (1, 24))):
        b = TfliteBuilder()
        x = b.tensor(**act((1, 2, 3, 4), 0.1, 5))
        t = b.tensor(**act(tuple((1, 2, 3, 4)[k] for k in perm), 0.1, 5))
        f = b.tensor(**act((1, 24), 0.1, 5))
        w = b.tensor((3, 24), scale=0.01, data=weights)
        y = b.tensor(**act((1, 3), 2.0, 0))
        b.operator("TRANSPOSE", [x, b.tensor(**ints(*perm))], [t], "TransposeOptions")
        b.operator("RESHAPE", [t, b.tensor(**ints(1, 24))], [f], "ReshapeOptions", new_shape=list(flat or (1, 24)))
        b.operator("FULLY_CONNECTED", [f, w, -1], [y], "FullyConnectedOptions")
        graph = import_model(b.build([x], [y]), name="flat")
        assert [type(op) for op in graph.ops] == [FullyConnected]
        inputs = oracle.generated(graph)
        mine = oracle.run(graph, inputs)[graph.outputs[0].tensor].reshape(-1).astype(int)
        xs = (inputs[0].astype(int) - 5).transpose([k - 1 for k in perm if k > 0]).reshape(-1)
        real = float(np.float32(0.1) * np.float32(0.01)) / 2.0
        assert list(mine) == [min(max(rounded(int(xs @ row), real), -128), 127) for row in weights.astype(int)]


def test_dense_over_rows_is_a_pointwise_convolution() -> None:
    data = single(
        "FULLY_CONNECTED", [act((1, 5, 8)), {"shape": (3, 8), "scale": 0.01, "dtype": "int8", "data": codes((3, 8))}],
        act((1, 5, 3), 0.5), "FullyConnectedOptions", keep_num_dims=True,
    )  # fmt: skip
    graph = import_model(data, name="rows")
    assert [type(op) for op in graph.ops] == [Conv2D]


def test_reshape_that_mixes_axes_is_a_copy() -> None:
    b = TfliteBuilder()
    x = b.tensor(**act((1, 4, 6, 2)))
    r = b.tensor(**act((1, 8, 3, 2)))
    y = b.tensor(**act((1, 4, 1, 2)))
    b.operator("RESHAPE", [x, b.tensor(**ints(1, 8, 3, 2))], [r], "ReshapeOptions", new_shape=[1, 8, 3, 2])
    b.operator(
        "MAX_POOL_2D", [r], [y], "Pool2DOptions", padding=1, stride_h=2, stride_w=2, filter_height=2, filter_width=2
    )
    data = b.build([x], [y])
    assert [type(op) for op in import_model(data, name="copy").ops] == [Reshape, Pool]
    compare("reshape and pool", data, Engine())


def test_resize_prefers_factors() -> None:
    def op(h: int, w: int) -> Resize:
        spec = [act((1, 4, 6, 2)), ints(h, w)]
        data = single("RESIZE_NEAREST_NEIGHBOR", spec, act((1, h, w, 2)), "ResizeNearestNeighborOptions")
        found = import_model(data, name="resize").ops[0]
        assert isinstance(found, Resize)
        return found

    assert op(8, 18).factors == (2, 3)
    assert op(5, 9).factors is None


def test_global_pooling_becomes_a_reduction() -> None:
    data = single(
        "AVERAGE_POOL_2D", [act((1, 5, 4, 3))], act((1, 1, 1, 3)), "Pool2DOptions",
        padding=1, stride_h=5, stride_w=4, filter_height=5, filter_width=4,
    )  # fmt: skip
    graph = import_model(data, name="global")
    assert [type(op) for op in graph.ops] == [Reduce]


# ---------------------------------------------------------------- what is refused

UNSUPPORTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "operator": (lambda: single("COS", [act((1, 4))], act((1, 4))), "no such operator"),
    "int16": (lambda: single("RELU", [act((1, 4), dtype="int16")], act((1, 4), dtype="int16")), "int8 or uint8"),
    "no scale": (lambda: single("RELU", [{"shape": (1, 4)}], act((1, 4))), "one finite positive scale"),
    "nan scale": (lambda: single("RELU", [act((1, 4), math.nan)], act((1, 4))), "one finite positive scale"),
    "zero scale": (lambda: single("RELU", [act((1, 4), 0.0)], act((1, 4))), "one finite positive scale"),
    "negative scale": (lambda: single("RELU", [act((1, 4), -0.5)], act((1, 4))), "one finite positive scale"),
    "infinite scale": (lambda: single("RELU", [act((1, 4), math.inf)], act((1, 4))), "one finite positive scale"),
    "zero point": (lambda: single("RELU", [act((1, 4), zero=300)], act((1, 4))), "one finite positive scale"),
    "two scales": (
        lambda: single("RELU", [{"shape": (1, 2), "scale": [0.1, 0.2]}], act((1, 2))),
        "one finite positive scale",
    ),
    "batch": (lambda: single("RELU", [act((2, 4, 4, 1))], act((2, 4, 4, 1))), "batch of 1"),
    "dynamic": (lambda: single("RELU", [act((1, -1, 4, 1))], act((1, -1, 4, 1))), "axes of 1 to 32767"),
    "empty axis": (lambda: single("RELU", [act((1, 0))], act((1, 0))), "axes of 1 to 32767"),
    "huge axis": (lambda: single("RELU", [act((1, 1 << 30))], act((1, 1 << 30))), "axes of 1 to 32767"),
    "rank 5": (lambda: single("RELU", [act((1, 1, 2, 2, 2))], act((1, 1, 2, 2, 2))), "rank 0 to 4"),
    "weights computed": (
        lambda: single("FULLY_CONNECTED", [act((1, 4)), act((2, 4))], act((1, 2)), "FullyConnectedOptions"),
        "weights are constant",
    ),
    "weights asymmetric": (
        lambda: single(
            "FULLY_CONNECTED",
            [act((1, 2)), act((2, 2), 0.1, 9, data=np.array([[-128, 1], [2, 3]], np.int8))],
            act((1, 2)),
            "FullyConnectedOptions",
        ),
        "weights are symmetric",
    ),
    "weights nan": (
        lambda: single(
            "FULLY_CONNECTED", [act((1, 2)), {"shape": (2, 2), "scale": math.nan, "data": np.ones((2, 2), np.int8)}],
            act((1, 2)), "FullyConnectedOptions",
        ),
        "each finite and positive",
    ),
    "accumulator": (
        lambda: single(
            "FULLY_CONNECTED",
            [
                act((1, 2)),
                {"shape": (1, 2), "scale": 0.1, "data": np.ones((1, 2), np.int8)},
                {"shape": (1,), "dtype": "int32", "data": np.array([2**31 - 60000], np.int32)},
            ],
            act((1, 1)),
            "FullyConnectedOptions",
        ),
        "below 2^31",
    ),
    "fused": (
        lambda: single("ADD", [act((1, 2)), act((1, 2))], act((1, 2)), "AddOptions", fused_activation_function=4),
        "fused activation",
    ),
    "mean over channels": (
        lambda: single("MEAN", [act((1, 4, 4, 3)), ints(3)], act((1, 4, 4)), "ReducerOptions"),
        "reduces over channels",
    ),
    "transposition": (
        lambda: _then_pool((1, 4, 6, 2), (0, 2, 1, 3)),
        "needs a transposition",
    ),
    "transposed output": (
        lambda: single("TRANSPOSE", [act((1, 4, 6, 2)), ints(0, 3, 1, 2)], act((1, 2, 4, 6)), "TransposeOptions"),
        "transposed",
    ),
    "pad channels": (
        lambda: single(
            "PAD",
            [act((1, 2, 2, 2)), {**ints(0, 0, 0, 0, 0, 0, 0, 1), "shape": (4, 2)}],
            act((1, 2, 2, 3)),
            "PadOptions",
        ),
        "pads channels",
    ),
    "pool quantisation": (
        lambda: single(
            "MAX_POOL_2D", [act((1, 2, 2, 1), 0.1)], act((1, 1, 1, 1), 0.2), "Pool2DOptions",
            padding=1, stride_h=1, stride_w=1, filter_height=2, filter_width=2,
        ),
        "same scale and zero point",
    ),
    "pool stride": (
        lambda: single(
            "MAX_POOL_2D", [act((1, 2, 2, 1))], act((1, 1, 1, 1)), "Pool2DOptions",
            padding=1, stride_h=0, stride_w=1, filter_height=2, filter_width=2,
        ),
        "stride",
    ),
    "alpha": (
        lambda: single("LEAKY_RELU", [act((1, 4))], act((1, 4)), "LeakyReluOptions", alpha=math.nan),
        "alpha nan",
    ),
    "too many axes": (
        lambda: single(
            "MEAN", [act((1, 4, 4, 3)), ints(*([1] * 99))], act((1, 4, 3)), "ReducerOptions"
        ),
        "the axes are constant",
    ),
    "softmax scale": (
        lambda: single("SOFTMAX", [act((1, 4))], act((1, 4), 0.5), "SoftmaxOptions", beta=1.0),
        "scale 1/256",
    ),
    "wrong shape": (lambda: single("RELU", [act((1, 4))], act((1, 5))), "input's shape"),
    "constants only": (lambda: _constants_only(), "constants alone"),
    "external data": (lambda: _external(), "outside the flatbuffer"),
    "subgraphs": (lambda: _relu().build([0], [1], subgraphs=2), "subgraphs"),
    "variable": (lambda: single("RELU", [{**act((1, 4)), "variable": True}], act((1, 4))), "variable"),
    "custom": (lambda: _custom(), "CUSTOM Detect: Weft has no such operator"),
    "output is an input": (lambda: _relu().build([0], [1, 0]), "output is a network input"),
}  # fmt: skip


def _relu() -> TfliteBuilder:
    b = TfliteBuilder()
    b.operator("RELU", [b.tensor(**act((1, 4)))], [b.tensor(**act((1, 4)))])
    return b


def _custom() -> bytes:
    b = TfliteBuilder()
    b.operator("CUSTOM", [b.tensor(**act((1, 4)))], [b.tensor(**act((1, 4)))], custom="Detect")
    return b.build([0], [1])


def _constants_only() -> bytes:
    b = TfliteBuilder()
    x = b.tensor(**act((1, 4)))
    c = b.tensor(**act((1, 4), data=codes((1, 4))))
    d, e = b.tensor(**act((1, 4))), b.tensor(**act((1, 4)))
    b.operator("RELU", [c], [d])
    b.operator("ADD", [x, d], [e], "AddOptions")
    return b.build([x], [e])


def _external() -> bytes:
    b = TfliteBuilder()
    x, c, y = b.tensor(**act((1, 4))), b.tensor(**act((1, 4), data=codes((1, 4)))), b.tensor(**act((1, 4)))
    b.operator("ADD", [x, c], [y], "AddOptions")
    return b.build([x], [y], external=1 << 32)


def _then_pool(shape: tuple[int, ...], perm: tuple[int, ...]) -> bytes:
    b = TfliteBuilder()
    turned = tuple(shape[k] for k in perm)
    x, t, y = b.tensor(**act(shape)), b.tensor(**act(turned)), b.tensor(**act(turned))
    b.operator("TRANSPOSE", [x, b.tensor(**ints(*perm))], [t], "TransposeOptions")
    b.operator(
        "MAX_POOL_2D", [t], [y], "Pool2DOptions", padding=0, stride_h=1, stride_w=1, filter_height=3, filter_width=3
    )
    return b.build([x], [y])


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_is_refused_with_layer_and_remedy(name: str) -> None:
    make, text = UNSUPPORTED[name]
    with pytest.raises(PlannerError) as caught:
        import_model(make(), name=name)
    assert caught.value.code == Code.UNSUPPORTED
    assert text in str(caught.value)
    assert caught.value.hint or all(v.layer and v.hint for v in caught.value.violations)


def test_everything_unsupported_is_reported_at_once() -> None:
    b = TfliteBuilder()
    x = b.tensor(**act((1, 4, 4, 2), name="x"))
    a = b.tensor(**act((1, 4, 4, 2), name="a"))
    c = b.tensor(**act((1, 4, 4), name="c"))
    d = b.tensor(**act((1, 4, 4, 2), 0.9, name="d"))
    b.operator("COS", [x], [a])
    b.operator("MEAN", [x, b.tensor(**ints(3))], [c], "ReducerOptions")
    b.operator(
        "MAX_POOL_2D", [a], [d], "Pool2DOptions", padding=0, stride_h=1, stride_w=1, filter_height=3, filter_width=3
    )
    with pytest.raises(PlannerError) as caught:
        import_model(b.build([x], [d]), name="three")
    assert [v.layer for v in caught.value.violations] == ["a", "c", "d"]


def test_float_model_is_refused_as_such() -> None:
    b = TfliteBuilder()
    b.operator("RELU", [b.tensor((1, 4), "float32")], [b.tensor((1, 4), "float32")])
    with pytest.raises(PlannerError) as caught:
        import_model(b.build([0], [1]), name="float")
    assert caught.value.code == Code.FLOAT_MODEL
    assert "representative_dataset" in caught.value.hint


def _bad(edit: Callable[[TfliteBuilder], tuple[list[int], list[int]]]) -> Callable[[], bytes]:
    def make() -> bytes:
        b = TfliteBuilder()
        return b.build(*edit(b))

    return make


def _cycle(b: TfliteBuilder) -> tuple[list[int], list[int]]:
    x, p, q = (b.tensor(**act((1, 4))) for _ in range(3))
    b.operator("ADD", [x, q], [p], "AddOptions")
    b.operator("RELU", [p], [q])
    return [x], [q]


def _index(b: TfliteBuilder) -> tuple[list[int], list[int]]:
    x, y = b.tensor(**act((1, 4))), b.tensor(**act((1, 4)))
    b.operator("RELU", [x + 1000], [y])
    return [x], [y]


def _twice(b: TfliteBuilder) -> tuple[list[int], list[int]]:
    x, y = b.tensor(**act((1, 4))), b.tensor(**act((1, 4)))
    b.operator("RELU", [x], [y])
    b.operator("RELU", [x], [y])
    return [x], [y]


def _short(b: TfliteBuilder) -> tuple[list[int], list[int]]:
    x, y = b.tensor(**act((1, 4))), b.tensor(**act((1, 4)))
    c = b.tensor(**act((1, 32767, 32767), data=codes((7,))))
    b.operator("ADD", [x, c], [y], "AddOptions")
    return [x], [y]


def _never(b: TfliteBuilder) -> tuple[list[int], list[int]]:
    x, y, z = (b.tensor(**act((1, 4))) for _ in range(3))
    b.operator("RELU", [x], [y])
    return [x], [z]


def _no_output(b: TfliteBuilder) -> tuple[list[int], list[int]]:
    x, y = b.tensor(**act((1, 4))), b.tensor(**act((1, 4)))
    b.operator("RELU", [x], [y])
    return [x], []


def _buffer(b: TfliteBuilder) -> tuple[list[int], list[int]]:
    x, y = b.tensor(**act((1, 4)), buffer=77), b.tensor(**act((1, 4)))
    b.operator("RELU", [x], [y])
    return [x], [y]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"#!/bin/sh\nexit 0\n", "neither"),
    "identifier alone": (lambda: b"\x00\x00\x00\x00TFL3", "version 0"),
    "random": (lambda: b"\x1c\x00\x00\x00TFL3" + random.Random(1).randbytes(500), ""),
    "version": (lambda: _relu().build([0], [1], version=2), "version 2"),
    "cycle": (_bad(_cycle), "before it is produced"),
    "index": (_bad(_index), "does not exist"),
    "produced twice": (_bad(_twice), "produced twice"),
    "never produced": (_bad(_never), "never produced"),
    "no output": (_bad(_no_output), "no outputs"),
    "buffer index": (_bad(_buffer), "does not exist"),
    "huge claim": (_bad(_short), "has 7 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str) -> None:
    make, text = BAD[name]
    with pytest.raises(PlannerError) as caught:
        import_model(make(), name=name)
    assert caught.value.code in (Code.BAD_MODEL, Code.TOO_LARGE)
    assert text in str(caught.value)
    assert caught.value.hint


def test_size_limit() -> None:
    with pytest.raises(PlannerError) as caught:
        import_model(bytes(MAX_MODEL_BYTES + 1), name="large")
    assert caught.value.code == Code.TOO_LARGE


def small_model() -> bytes:
    """A convolution, a pooling, a reshape and a dense layer: most tables of the format in about 2 kB."""
    b = TfliteBuilder()
    x = b.tensor(**act((1, 6, 6, 2), name="x"))
    w = b.tensor((3, 3, 3, 2), scale=[0.01, 0.02, 0.03], data=np.ones((3, 3, 3, 2), np.int8))
    bias = b.tensor((3,), "int32", scale=[0.1, 0.2, 0.3], data=np.arange(3, dtype=np.int32))
    y, z, f = b.tensor(**act((1, 6, 6, 3), 0.3)), b.tensor(**act((1, 3, 3, 3), 0.3)), b.tensor(**act((1, 27), 0.3))
    v = b.tensor((2, 27), scale=0.01, data=np.ones((2, 27), np.int8))
    s, p = b.tensor(**act((1, 2), 0.4)), b.tensor(**act((1, 2), 1 / 256, -128))
    b.operator("CONV_2D", [x, w, bias], [y], "Conv2DOptions", stride_h=1, stride_w=1, fused_activation_function=1)
    b.operator(
        "MAX_POOL_2D", [y], [z], "Pool2DOptions", padding=0, stride_h=2, stride_w=2, filter_height=2, filter_width=2
    )
    b.operator("RESHAPE", [z, b.tensor(**ints(1, 27))], [f], "ReshapeOptions", new_shape=[1, 27])
    b.operator("FULLY_CONNECTED", [f, v, -1], [s], "FullyConnectedOptions")
    b.operator("SOFTMAX", [s], [p], "SoftmaxOptions", beta=1.0)
    return b.build([x], [p])


def survives(data: bytes) -> bool:
    """Imports or raises PlannerError; anything else fails the test."""
    error = None
    try:
        import_model(data, name="mutant")
    except PlannerError as e:
        error = e
    assert error is None or error.code != Code.INTERNAL, str(error)
    return error is None


def test_every_truncation_and_many_mutations() -> None:
    data = small_model()
    assert survives(data)
    accepted = sum(survives(data[:n]) for n in range(len(data)))
    rng = random.Random(7)
    mutants = 2500
    for _ in range(mutants):
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(mutant))
            if rng.random() < 0.5:
                mutant[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            else:
                word = rng.choice((0, 1, -1, 0x7FFFFFFF, -0x80000000, 1 << 16, len(data) - 4, rng.randrange(1 << 31)))
                at -= at % 4
                mutant[at : at + 4] = word.to_bytes(4, "little", signed=True)[: len(mutant) - at]
        accepted += survives(bytes(mutant))
    print(f"{len(data)} truncations and {mutants} mutants: {accepted} imported, none raised anything but PlannerError")


def test_mutated_real_model() -> None:
    data = model_bytes("mlperf-tiny-kws")
    rng = random.Random(11)
    for _ in range(150):
        assert not survives(data[: rng.randrange(len(data) - 4096)])
        mutant = bytearray(data)
        for _ in range(4):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        survives(bytes(mutant))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes(content: bytes, tagged: bool) -> None:
    if content[4:8] != b"TFL3" and not tagged:
        content = content[:4] + b"TFL3" + content[8:]
    survives(content if not tagged else b"\x10\x00\x00\x00TFL3" + content)


def test_weights_read_by_many_operators_are_bounded() -> None:
    """16 MB of weights, read by 100 operators, would be 1.6 GB of plan."""
    b = TfliteBuilder()
    x = b.tensor(**act((1, 4096)))
    w = b.tensor((4096, 4096), scale=0.01, data=np.zeros((4096, 4096), np.int8))
    for _ in range(100):
        y = b.tensor(**act((1, 4096), 5.0))
        b.operator("FULLY_CONNECTED", [x, w, -1], [y], "FullyConnectedOptions")
        x = y
    with pytest.raises(PlannerError) as caught:
        import_model(b.build([0], [x]), name="shared")
    assert caught.value.code == Code.TOO_LARGE


def test_huge_claims_stay_small() -> None:
    """Two gigabytes claimed in two kilobytes: refused without allocating them."""
    data = small_model()
    tracemalloc.start()
    for at in range(0, len(data) - 3, 4):
        survives(data[:at] + (0x7FFFFFFF).to_bytes(4, "little") + data[at + 4 :])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"peak {peak} bytes")
    assert peak < 16 << 20
