# SPDX-License-Identifier: Apache-2.0
"""The ONNX importer against onnxruntime: generated operators in every form, the sample models, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_builder import Activation, Case, Constant, Q, calibrated, difference, qdq, qoperator, random_inputs

Array = Any
ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "samples" / "models"


# ---------------------------------------------------------------- generated operators


def _activation(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "int8") -> Activation:
    info = np.iinfo(dtype)
    zero = int(rng.choice([info.min, info.max, (info.min + info.max + 1) // 2, info.min + 121, info.min + 140]))
    return Activation(shape=shape, q=Q(scale=np.float32(rng.uniform(0.004, 0.3)), zero_point=zero, dtype=dtype))


def _weights(rng: np.random.Generator, shape: tuple[int, ...], axis: int, per_channel: bool, dtype: str) -> Constant:
    codes = rng.integers(-127, 128, shape)
    scale = rng.uniform(0.001, 0.02, shape[axis] if per_channel else ()).astype(np.float32)
    zero = np.full(np.shape(scale), 128 if dtype == "uint8" else 0)
    offset = 128 if dtype == "uint8" else 0
    return Constant(codes=(codes + offset).astype(dtype), q=Q(scale=scale, zero_point=zero, dtype=dtype, axis=axis))


def _bias(rng: np.random.Generator, x: Activation, w: Constant, count: int, kind: str) -> Any:
    if kind == "none":
        return None
    codes = rng.integers(-3000, 3000, count).astype(np.int32)
    scale = (np.float32(x.q.scale) * w.q.scale).astype(np.float32)
    if kind == "float":
        return (codes * scale).astype(np.float32)
    return Constant(codes=codes, q=Q(scale=scale, dtype="int32", axis=0))


def _types(rng: np.random.Generator) -> str:
    return str(rng.choice(["int8", "uint8"]))


def conv_cases(rng: np.random.Generator) -> Iterator[Case]:
    kernels = [(1, 1), (3, 3), (5, 3), (2, 4), (7, 1)]
    grid = itertools.product(
        kernels, [(1, 1), (2, 2), (3, 1)], [(1, 1), (2, 2), (1, 3)], ["one", "two", "depthwise", "double"], range(2)
    )
    for (kh, kw), stride, dilation, grouping, _ in grid:
        c = int(rng.choice([1, 3, 4, 6])) * (2 if grouping == "two" else 1)
        groups, o = {
            "one": (1, int(rng.choice([1, 5, 8]))),
            "two": (2, 6),
            "depthwise": (c, c),
            "double": (c, 2 * c),
        }[grouping]
        reach = (kh - 1) * dilation[0] + 1, (kw - 1) * dilation[1] + 1
        h, w = (int(rng.integers(max(2, r // 2), r + 6)) for r in reach)
        padding = str(rng.choice(["none", "asymmetric", "SAME_UPPER", "SAME_LOWER", "VALID"]))
        attributes: dict[str, Any] = {"strides": list(stride), "dilations": list(dilation), "group": groups}
        if padding == "asymmetric":
            attributes["pads"] = [int(v) for v in rng.integers(0, 3, 4)]
        elif padding != "none":
            attributes["auto_pad"] = padding
        same = padding.startswith("SAME")
        if same and dilation != (1, 1):  # onnxruntime refuses the combination
            del attributes["auto_pad"]
            same = False
        if not same:
            pads = attributes.get("pads", [0] * 4)
            h, w = max(h, reach[0] - pads[0] - pads[2]), max(w, reach[1] - pads[1] - pads[3])
        x = _activation(rng, (1, c, h, w), _types(rng))
        weights = _weights(rng, (o, c // groups, kh, kw), 0, bool(rng.integers(2)), "int8")
        operands = [x, weights]
        bias = _bias(rng, x, weights, o, str(rng.choice(["none", "int", "int", "float"])))
        operands += [bias] if bias is not None else []
        yield Case(op="Conv", operands=operands, attributes=attributes, label=f"{grouping} {padding}")


def activated_conv_cases(rng: np.random.Generator) -> Iterator[Case]:
    for after, _ in itertools.product(
        (
            [("Relu", [], {})],
            [("Clip", [np.float32(0), np.float32(6)], {})],
            [("Clip", [np.float32(-0.5), np.float32(0.7)], {})],
            [("Relu", [], {}), ("Clip", [np.float32(0), np.float32(0.5)], {})],
            [("Add", [rng.uniform(-1, 1, (1, 6, 1, 1)).astype(np.float32)], {}), ("Relu", [], {})],
        ),
        range(4),
    ):
        x = _activation(rng, (1, 4, 6, 5), _types(rng))
        w = _weights(rng, (6, 4, 3, 3), 0, bool(rng.integers(2)), "int8")
        yield Case(op="Conv", operands=[x, w], after=after)


def dense_cases(rng: np.random.Generator) -> Iterator[Case]:
    for k, n, turned, per_channel, bias in itertools.product(
        (1, 7, 64), (1, 10), (0, 1), (False, True), ("none", "int", "float")
    ):
        x = _activation(rng, (1, k), _types(rng))
        w = _weights(rng, (n, k) if turned else (k, n), 0 if turned else 1, per_channel, "int8")
        b = _bias(rng, x, w, n, bias)
        yield Case(op="Gemm", operands=[x, w, *([b] if b is not None else [])], attributes={"transB": turned})
    for shape, n, per_channel in itertools.product(((1, 9), (1, 5, 9), (1, 3, 4, 9)), (1, 6), (False, True)):
        x = _activation(rng, shape, _types(rng))
        yield Case(op="MatMul", operands=[x, _weights(rng, (9, n), 1, per_channel, "int8")])
    for _ in range(4):
        w = _weights(rng, (16, 5), 1, True, "int8")
        bias = rng.uniform(-3, 3, 5).astype(np.float32)
        yield Case(op="MatMul", operands=[_activation(rng, (1, 16)), w], after=[("Add", [bias], {})])


def binary_cases(rng: np.random.Generator) -> Iterator[Case]:
    shapes = [
        ((1, 4, 5, 3), (1, 4, 5, 3)),
        ((1, 4, 5, 3), (1, 4, 1, 1)),
        ((1, 4, 1, 1), (1, 4, 5, 3)),
        ((1, 4, 5, 3), (1, 1, 5, 3)),
        ((1, 4, 5, 1), (1, 4, 1, 3)),
        ((1, 12), (1, 12)),
        ((1, 5, 6), (1, 5, 6)),
    ]
    for op, (a, b), _ in itertools.product(("Add", "Sub", "Mul"), shapes, range(6)):
        dtype = _types(rng)
        yield Case(op=op, operands=[_activation(rng, a, dtype), _activation(rng, b, dtype)], label=f"{a} {b}")


def constant_cases(rng: np.random.Generator) -> Iterator[Case]:
    shapes = [(4, 1, 1), (1, 4, 1, 1), (1, 4, 5, 3), (5, 3), (1,), (), (3,)]
    for op, shape, swap, _ in itertools.product(("Add", "Sub", "Mul"), shapes, (False, True), range(2)):
        dtype = _types(rng)
        x = _activation(rng, (1, 4, 5, 3), dtype)
        q = _activation(rng, (1,), dtype).q
        info = np.iinfo(dtype)
        c = Constant(codes=rng.integers(info.min, info.max + 1, shape).astype(dtype), q=q)
        yield Case(op=op, operands=[c, x] if swap else [x, c], label=f"stored {shape}")
    for op, shape, swap in itertools.product(
        ("Add", "Sub", "Mul", "Div"), ((), (1,), (4, 1, 1), (1, 4, 1, 1)), (False, True)
    ):
        if op == "Div" and swap:
            continue
        x = _activation(rng, (1, 4, 5, 3), _types(rng))
        c = rng.uniform(0.2, 2, shape).astype(np.float32) * rng.choice([-1, 1], shape).astype(np.float32)
        yield Case(op=op, operands=[c, x] if swap else [x, c], label=f"float {shape}")


def normalisation_cases(rng: np.random.Generator) -> Iterator[Case]:
    for _ in range(6):
        p = [rng.uniform(0.2, 2, 4).astype(np.float32) for _ in range(4)]
        yield Case(op="BatchNormalization", operands=[_activation(rng, (1, 4, 5, 3), _types(rng)), *p])


def pool_cases(rng: np.random.Generator) -> Iterator[Case]:
    for op, kernel, stride, ceil, count, _ in itertools.product(
        ("AveragePool", "MaxPool"), ((2, 2), (3, 3), (2, 5)), ((1, 1), (2, 2), (3, 2)), (0, 1), (0, 1), range(3)
    ):
        if op == "MaxPool" and count:
            continue
        pads = [int(v) for v in rng.integers(0, 2, 4)] if rng.integers(2) else [0] * 4
        if op == "AveragePool" and ceil and count:
            continue
        h, w = int(rng.integers(5, 10)), int(rng.integers(5, 10))
        attributes: dict[str, Any] = {
            "kernel_shape": list(kernel), "strides": list(stride), "ceil_mode": ceil, "pads": pads,
        }  # fmt: skip
        if op == "AveragePool":
            attributes["count_include_pad"] = count
        elif rng.integers(2):
            attributes["dilations"] = [2, 1]
        x = _activation(rng, (1, 3, h, w), _types(rng))
        out = None
        if op == "AveragePool" and not count and rng.integers(2):
            out = Q(scale=np.float32(x.q.scale * rng.uniform(0.51, 1.3)), zero_point=x.q.zero_point, dtype=x.q.dtype)
        elif rng.integers(2) or (op == "AveragePool" and not count):
            out = x.q
        yield Case(op=op, operands=[x], attributes=attributes, label=str(pads), out=out)
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        for op in ("AveragePool", "MaxPool"):
            attributes = {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": mode}
            x = _activation(rng, (1, 3, 8, 7))
            yield Case(op=op, operands=[x], attributes=attributes, label=mode, out=x.q)


def reduction_cases(rng: np.random.Generator) -> Iterator[Case]:
    for h, w, _ in itertools.product((1, 4, 9), (1, 3, 8), range(3)):
        for op in ("GlobalAveragePool", "GlobalMaxPool"):
            yield Case(op=op, operands=[_activation(rng, (1, 5, h, w), _types(rng))])
        for axes, keep in itertools.product(([2], [3], [2, 3], [-1, -2]), (0, 1)):
            attributes = {"axes": axes, "keepdims": keep}
            yield Case(op="ReduceMean", operands=[_activation(rng, (1, 5, h, w), _types(rng))], attributes=attributes)
    for axes in ([1], [2]):
        shape = (1, 6, 5)
        yield Case(op="ReduceMean", operands=[_activation(rng, shape)], attributes={"axes": axes[:1], "keepdims": 1})


def function_cases(rng: np.random.Generator) -> Iterator[Case]:
    for op, attributes, _ in itertools.product(
        ("Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Clip"), ({}, {"alpha": 0.3}), range(6)
    ):
        attributes = attributes if op in ("HardSigmoid", "LeakyRelu") else {}
        operands: list[Any] = [_activation(rng, (1, 8, 8, 4), _types(rng))]
        if op == "Clip":
            operands += [np.float32(-1), np.float32(2)]
        yield Case(op=op, operands=operands, attributes=attributes)


def softmax_cases(rng: np.random.Generator) -> Iterator[Case]:
    for n, zero, scale in itertools.product((2, 10, 100), (-128, 0, 17), (0.01, 0.05, 0.2)):
        x = Activation(shape=(1, n), q=Q(scale=np.float32(scale), zero_point=zero))
        for axis, steps in ((1, 256), (-1, 255)):
            out = Q(scale=np.float32(1 / steps), zero_point=-128)
            yield Case(op="Softmax", operands=[x], attributes={"axis": axis}, out=out)
    for axis in (1, -3):
        out = Q(scale=np.float32(1 / 256), zero_point=-128)
        yield Case(op="Softmax", operands=[_activation(rng, (1, 6, 4, 3))], attributes={"axis": axis}, out=out)


def concat_cases(rng: np.random.Generator) -> Iterator[Case]:
    for axis, count, _ in itertools.product((1, 2, 3, -1), (2, 3), range(3)):
        dtype = _types(rng)
        operands = []
        for _ in range(count):
            shape = [1, 4, 5, 3]
            shape[axis] = int(rng.integers(1, 6))
            operands.append(_activation(rng, tuple(shape), dtype))
        yield Case(op="Concat", operands=operands, attributes={"axis": axis})


def layout_cases(rng: np.random.Generator) -> Iterator[Case]:
    for pads in ([0, 0, 1, 2, 0, 0, 3, 0], [0, 0, 0, 0, 0, 0, 0, 1]):
        for _ in range(3):
            yield Case(op="Pad", operands=[_activation(rng, (1, 3, 4, 5), _types(rng)), np.array(pads, np.int64)])
    modes = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    rounding = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    for mode, nearest, sizes in itertools.product(modes, rounding, ((8, 10), (6, 7), (3, 2), (12, 5), (9, 14))):
        operands = [
            _activation(rng, (1, 3, 4, 5)), np.zeros(0, np.float32), np.zeros(0, np.float32),
            np.array([1, 3, *sizes], np.int64),
        ]  # fmt: skip
        attributes = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": nearest}
        yield Case(op="Resize", operands=operands, attributes=attributes, label=f"{mode} {nearest} {sizes}")
    for scales in ((2, 2), (1, 3), (1.5, 2.5), (0.5, 0.6)):
        operands = [
            _activation(rng, (1, 3, 4, 5)), np.zeros(0, np.float32), np.array([1, 1, *scales], np.float32),
        ]  # fmt: skip
        yield Case(op="Resize", operands=operands, attributes={"mode": "nearest"}, label=str(scales))


#: Family: (cases, allowed difference in LSB).
FAMILIES: dict[str, tuple[Callable[[np.random.Generator], Iterator[Case]], int]] = {
    "convolution": (conv_cases, 1),
    "convolution, activated": (activated_conv_cases, 1),
    "dense": (dense_cases, 1),
    "two operands": (binary_cases, 1),
    "constant operand": (constant_cases, 1),
    "normalisation": (normalisation_cases, 1),
    "pooling": (pool_cases, 1),
    "reduction": (reduction_cases, 1),
    "function": (function_cases, 1),
    "softmax": (softmax_cases, 1),
    "concatenation": (concat_cases, 1),
    "layout": (layout_cases, 1),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_agree_with_onnxruntime(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every form of every case: at most 1 LSB from onnxruntime."""
    cases, allowed = FAMILIES[family]
    rng = np.random.default_rng(7)
    models = values = differing = 0
    wrong = []
    for number, case in enumerate(cases(rng)):
        activations = [o for o in case.operands if isinstance(o, Activation)]
        if case.out is None:
            q = activations[0].q
            case.out = q if case.op in ("Pad", "Resize") else calibrated(case, rng, q.dtype)
        inputs = random_inputs(case, rng)
        for form, model in (("qdq", qdq(case)), ("qoperator", qoperator(case))):
            if model is None:
                continue
            try:
                found = difference(model, inputs)
            except Exception as error:
                wrong.append(f"{number} {form} {case.op} {case.attributes} {case.label}: {str(error)[:300]}")
                continue
            models, values, differing = models + 1, values + found.size, differing + int((found > 0).sum())
            if found.max() > allowed:
                wrong.append(f"{number} {form} {case.op} {case.attributes} {case.label}: {found.max()} LSB")
    with capsys.disabled():
        print(f"\n{family}: {models} models, {values} values, {differing} differ by 1 LSB")
    assert not wrong, "\n".join(wrong)
