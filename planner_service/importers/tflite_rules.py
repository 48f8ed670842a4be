# SPDX-License-Identifier: Apache-2.0
"""What TFLite operators must be like, and what conversion derives from one that is: shapes, weights, multipliers,
tables. Reference kernels are cited in ``arith``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from planner_service import arith
from planner_service.importers.rules import EVERY, Facts, Operand, Rule, one_scale, rules, usable_scales
from planner_service.ir import Float64, Int8, Int32

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
WEIGHTED = (*CONVOLUTIONS, "FULLY_CONNECTED")
BINARY = ("ADD", "SUB", "MUL")
POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D")
REDUCTIONS = ("MEAN", "REDUCE_MAX")
PADS = ("PAD", "PADV2")
VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE")
RELUS: dict[str, tuple[float, float | None]] = {
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU_0_TO_1": (0.0, 1.0),
}
MIN_MAX = ("MINIMUM", "MAXIMUM")
FUNCTIONS = (*RELUS, "HARD_SWISH", "LOGISTIC", "TANH", "LEAKY_RELU", "QUANTIZE")
#: Operators that copy or compare values: input and output must mean the same by them.
SAME_QUANTISATION = (*VIEWS, *POOLS, *PADS, *MIN_MAX, "REDUCE_MAX", "CONCATENATION", "RESIZE_NEAREST_NEIGHBOR")

#: Least and greatest number of inputs; output is always one.
_ARITY: dict[str, tuple[int, int]] = {
    **dict.fromkeys(WEIGHTED, (2, 3)),
    **dict.fromkeys(
        (*BINARY, *MIN_MAX, *REDUCTIONS, "PAD", "TRANSPOSE", "EXPAND_DIMS", "RESIZE_NEAREST_NEIGHBOR"), (2, 2)
    ),
    **dict.fromkeys((*POOLS, *FUNCTIONS, "SOFTMAX", "SQUEEZE"), (1, 1)),
    "RESHAPE": (1, 2),
    "PADV2": (3, 3),
    "CONCATENATION": (1, 4095),
}

ACTIVATION_TEXT = "activations are int8 or uint8 with one finite positive scale and one zero point per tensor"
SHAPE_TEXT = "tensors have rank 0 to 4, axes of 1 to 32767, a batch of 1 and less than 2^31 elements"
_MAX_AXIS = 32767
_SCALE_MIN, _SCALE_MAX = 2.0**-60, 2.0**40


# ---------------------------------------------------------------- facts about one operand


def activation(operand: Operand) -> bool | str:
    """ACTIVATION_TEXT."""
    if operand.dtype not in ("int8", "uint8"):
        return f"{operand.dtype} on {operand.name}"
    result = one_scale(operand)
    if result is True and not _SCALE_MIN <= operand.scale <= _SCALE_MAX:
        return f"scale {operand.scale} on {operand.name}"
    return result


def shaped(operand: Operand, *, view: bool = False) -> bool | str:
    """SHAPE_TEXT; the result of a ``view`` may have more axes and a batch until it is used."""
    shape = operand.shape
    if any(not 1 <= d <= _MAX_AXIS for d in shape) or math.prod(shape) >= 1 << 31:
        return f"{list(shape)} on {operand.name}"
    if not view and (len(shape) > 4 or (len(shape) == 4 and shape[0] != 1)):
        return f"{list(shape)} on {operand.name}"
    return True


def zero_point(operand: Operand) -> int:
    """The zero point of the int8 tensor that stands for ``operand``."""
    return operand.zero_point - (128 if operand.dtype == "uint8" else 0)


def centred(weights: Operand) -> Int8:
    """int8 weights whose zero point is 0; ``_centrable`` showed that they fit."""
    data = weights.data
    assert data is not None
    result: Int8 = (data.astype(np.int16) - weights.zero_point).astype(np.int8)
    return result


def integers(operand: Operand) -> list[int]:
    """A constant of integers, flat."""
    assert operand.data is not None
    return [int(v) for v in operand.data.reshape(-1)]


# ---------------------------------------------------------------- facts about one operator


def _data_inputs(f: Facts) -> list[Operand]:
    """Inputs that carry activations; the others are weights, axes, shapes."""
    several = f.operator in (*BINARY, *MIN_MAX, "CONCATENATION")
    return [i for i in (f.inputs if several else f.inputs[:1]) if i is not None]


def window(f: Facts) -> tuple[int, int, int, int]:
    """(out H, out W, pad top, pad left) of a convolution. kernels/padding.h, ComputePaddingHeightWidth."""
    _, kh, kw, _ = f.input(1).shape
    return _windowed(f, kh, kw, f.attributes["dilation_h"], f.attributes["dilation_w"])


def pool_padding(f: Facts) -> tuple[int, int, int, int]:
    """As ``window``, of a pooling."""
    return _windowed(f, f.attributes["kernel_h"], f.attributes["kernel_w"], 1, 1)


def _windowed(f: Facts, kh: int, kw: int, dh: int, dw: int) -> tuple[int, int, int, int]:
    _, h, w, _ = f.input(0).shape
    a = f.attributes
    out_h, pad_h = _axis_padding(h, kh, a["stride_h"], dh, a["padding"] == 0)
    out_w, pad_w = _axis_padding(w, kw, a["stride_w"], dw, a["padding"] == 0)
    return out_h, out_w, pad_h, pad_w


def _axis_padding(size: int, kernel: int, stride: int, dilation: int, same: bool) -> tuple[int, int]:
    span = (kernel - 1) * dilation + 1
    out = -(-size // stride) if same else (size + stride - span) // stride
    return out, max(0, (out - 1) * stride + span - size) // 2


def multipliers(f: Facts) -> Float64:
    """input * weight / output scale, in the precision the reference uses: single for the product of per-tensor fully
    connected and uint8 layers (kernels/kernel_util.cc, GetQuantizedConvolutionMultipler), double otherwise."""
    source, weights, out = f.input(0), f.input(1), f.output
    single = len(weights.scales) == 1 and (f.operator == "FULLY_CONNECTED" or source.dtype == "uint8")
    if single:
        product = np.float32(source.scale) * np.float32(weights.scale)
        return np.array([float(product) / out.scale], np.float64)
    return source.scale * np.array(weights.scales, np.float64) / out.scale


def bias(f: Facts, channels: int) -> Int32:
    """int32 bias of a layer, zeros if it has none."""
    operand = f.inputs[2] if len(f.inputs) > 2 else None
    if operand is None or operand.data is None:
        return np.zeros(channels, np.int32)
    return operand.data.reshape(channels).astype(np.int32)


def _channels(f: Facts) -> int:
    return f.input(1).shape[3 if f.operator == "DEPTHWISE_CONV_2D" else 0]


def _taps(f: Facts) -> int:
    shape = f.input(1).shape
    return shape[1] * shape[2] if f.operator == "DEPTHWISE_CONV_2D" else math.prod(shape[1:])


def reduced_axes(f: Facts) -> list[int]:
    """Source axes of a reduction, not negative, once each."""
    rank = len(f.input(0).shape)
    return sorted({k % rank for k in integers(f.input(1))})


def permutation(f: Facts) -> list[int]:
    rank = len(f.input(0).shape)
    return [k % rank for k in integers(f.input(1))]


def concat_axis(f: Facts) -> int:
    return int(f.attributes["axis"]) % len(f.output.shape)


def paddings(f: Facts) -> list[tuple[int, int]]:
    """(before, after) for each source axis."""
    flat = integers(f.input(1))
    return list(zip(flat[::2], flat[1::2], strict=True))


def pad_value(f: Facts) -> int:
    """The int8 that is padded with: the output's zero point, or PADV2's constant."""
    shift = 128 if f.output.dtype == "uint8" else 0
    return integers(f.input(2))[0] - shift if f.operator == "PADV2" else zero_point(f.output)


def resize_source(f: Facts, size: int, out: int) -> tuple[int, ...]:
    """Source index of each output index. kernels/internal/reference/resize_nearest_neighbor.h, in single precision."""
    align, half = bool(f.attributes["align_corners"]), bool(f.attributes["half_pixel"])
    ratio = np.float32(size - 1) / np.float32(out - 1) if align and out > 1 else np.float32(size) / np.float32(out)
    position = (np.arange(out, dtype=np.float32) + np.float32(0.5 if half else 0.0)) * ratio
    index = np.floor(position + np.float32(0.5)) if align else np.floor(position)
    return tuple(int(i) for i in np.clip(index, 0, size - 1))


# ---------------------------------------------------------------- tables of elementwise functions


def _ends(f: Facts) -> tuple[float, int, float, int]:
    source = _data_inputs(f)[0]
    return source.scale, zero_point(source), f.output.scale, zero_point(f.output)


def requantize(f: Facts) -> Int8:
    return arith.requantize_table(*_ends(f))


def _relu(f: Facts) -> Int8:
    low, high = RELUS[f.operator]
    return arith.relu_table(*_ends(f), low, high)


def _min_max(f: Facts) -> Int8:
    limit = next(i for i in f.inputs if i is not None and i.data is not None)
    value = integers(limit)[0] - (128 if limit.dtype == "uint8" else 0)
    codes = np.arange(-128, 128)
    table: Int8 = (np.minimum if f.operator == "MINIMUM" else np.maximum)(codes, value).astype(np.int8)
    return table


#: operator: (name in reports, int8 table of the operator).
TABLES: dict[str, tuple[str, Callable[[Facts], Int8]]] = {
    **dict.fromkeys(RELUS, ("relu", _relu)),
    **dict.fromkeys(MIN_MAX, ("clip", _min_max)),
    "HARD_SWISH": ("hard_swish", lambda f: arith.hard_swish_table(*_ends(f))),
    "LOGISTIC": ("logistic", lambda f: arith.logistic_table(*_ends(f)[:2])),
    "TANH": ("tanh", lambda f: arith.tanh_table(*_ends(f)[:2])),
    "LEAKY_RELU": ("leaky_relu", lambda f: arith.leaky_relu_table(f.attributes["alpha"], *_ends(f))),
    "QUANTIZE": ("requantize", requantize),
}


# ---------------------------------------------------------------- checks


def _arity(f: Facts) -> bool | str:
    low, high = _ARITY[f.operator]
    if not low <= len(f.inputs) <= high or any(i is None for i in f.inputs[:low]) or len(f.outputs) != 1:
        return f"{len(f.inputs)} inputs and {len(f.outputs)} outputs"
    return True


def _first(results: Sequence[bool | str]) -> bool | str:
    return next((r for r in results if r is not True), True)


def _activations(f: Facts) -> bool | str:
    return _first([activation(o) for o in (*_data_inputs(f), f.output)])


def _shapes(f: Facts) -> bool | str:
    view = f.operator in VIEWS
    return _first([shaped(o, view=view) for o in (*_data_inputs(f), f.output)])


def _one_type(f: Facts) -> bool | str:
    types = {o.dtype for o in (*_data_inputs(f), f.output)}
    return f.operator == "QUANTIZE" or len(types) == 1 or " and ".join(sorted(types))


def _computed(f: Facts) -> bool | str:
    return any(i.data is None for i in _data_inputs(f)) and (
        f.operator in (*BINARY, *MIN_MAX, "CONCATENATION") or f.input(0).data is None
    )


def _same_quantisation(f: Facts) -> bool | str:
    wanted = (f.output.scale, f.output.zero_point)
    other = next((i for i in _data_inputs(f) if (i.scale, i.zero_point) != wanted), None)
    if other is None:
        return True
    return f"{other.name} with ({other.scale}, {other.zero_point}) and {f.output.name} with {wanted}"


def _fused(f: Facts) -> bool | str:
    name = f.attributes["activation"]
    return name in ("NONE", "RELU", "RELU6", "RELU_N1_TO_1") or str(name)


def _strides(f: Facts) -> bool | str:
    names = ("stride_h", "stride_w", "dilation_h", "dilation_w", "kernel_h", "kernel_w")
    values = {n: f.attributes[n] for n in names if n in f.attributes}
    if f.operator in CONVOLUTIONS:
        values |= {"kernel_h": f.input(1).shape[1], "kernel_w": f.input(1).shape[2]}
    wrong = [f"{n} {v}" for n, v in values.items() if not 1 <= v <= 255]
    return ", ".join(wrong) if wrong else f.attributes["padding"] in (0, 1)


def _rank(f: Facts, rank: int) -> bool | str:
    return len(f.input(0).shape) == rank or f"{list(f.input(0).shape)}"


def _weights(f: Facts) -> bool | str:
    w = f.input(1)
    rank = 2 if f.operator == "FULLY_CONNECTED" else 4
    if w.data is None:
        return f"{w.name} is not constant"
    if w.dtype not in ("int8", "uint8") or w.dtype != f.input(0).dtype:
        return f"{w.dtype} weights with {f.input(0).dtype} input"
    if len(w.shape) != rank or any(not 1 <= d <= _MAX_AXIS for d in w.shape):
        return f"shape {list(w.shape)}"
    return f.attributes.get("weights_format", 0) == 0 or "shuffled weights"


def _weight_scales(f: Facts) -> bool | str:
    w, out = f.input(1), _channels(f)
    axis = 3 if f.operator == "DEPTHWISE_CONV_2D" else 0
    if len(w.scales) not in (1, out) or (len(w.scales) > 1 and w.axis != axis):
        return f"{len(w.scales)} scales along axis {w.axis}"
    if len(w.zero_points) not in (0, 1, len(w.scales)):
        return f"{len(w.zero_points)} zero points"
    result = usable_scales(w)
    if result is True and not all(_SCALE_MIN <= s <= _SCALE_MAX for s in w.scales):
        return "a scale out of range"
    return result


def _centrable(f: Facts) -> bool | str:
    """Weights are stored with zero point 0: int8 with another one, or uint8, only if every value minus it fits."""
    w = f.input(1)
    assert w.data is not None
    if len(set(w.zero_points)) > 1:
        return "zero points that differ by channel"
    low, high = int(w.data.min()) - w.zero_point, int(w.data.max()) - w.zero_point
    return (low >= -128 and high <= 127) or f"values of {low} to {high} around zero point {w.zero_point}"


def _bias(f: Facts) -> bool | str:
    if len(f.inputs) < 3 or f.inputs[2] is None:
        return True
    b = f.inputs[2]
    if b.data is None or b.dtype != "int32" or b.data.size != _channels(f):
        return f"{b.dtype} {list(b.shape)}"
    return True


def _accumulator(f: Facts) -> bool | str:
    bound = arith.accumulator_bound(bias(f, _channels(f)), _taps(f))
    return bound < 1 << 31 or f"{bound}"


def _rescaling(f: Facts) -> bool | str:
    bound = arith.accumulator_bound(bias(f, _channels(f)), _taps(f))
    return _shift_fits(bound, float(np.max(multipliers(f))))


def _shift_fits(bound: int, multiplier: float) -> bool | str:
    """Whether ``bound`` survives the left shift that precedes a multiplication by ``multiplier``."""
    shift = max(0, arith.quantize_multiplier(multiplier)[1])
    return bound << shift < 1 << 31 or f"a factor of {multiplier:g}"


def _conv_shapes(f: Facts) -> bool | str:
    channels, w, out = f.input(0).shape[3], f.input(1).shape, _channels(f)
    if f.operator == "DEPTHWISE_CONV_2D":
        return (w[0] == 1 and out % channels == 0) or f"weights {list(w)} for {channels} channels"
    return (channels % w[3] == 0 and out % (channels // w[3]) == 0) or f"weights {list(w)} for {channels} channels"


def _expect(f: Facts, *shapes: Sequence[int]) -> bool | str:
    return any(tuple(s) == f.output.shape for s in shapes) or (
        f"{list(f.output.shape)} where {' or '.join(str(list(s)) for s in shapes)} follows"
    )


def _conv_output(f: Facts) -> bool | str:
    out_h, out_w, pad_h, pad_w = window(f)
    if max(pad_h, pad_w) > 255:
        return f"padding of {pad_h} x {pad_w}"
    return _expect(f, (1, out_h, out_w, _channels(f)))


def _pool_output(f: Facts) -> bool | str:
    out_h, out_w, _, _ = pool_padding(f)
    return _expect(f, (1, out_h, out_w, f.input(0).shape[3]))


def _whole_windows(f: Facts) -> bool | str:
    a = f.attributes
    out_h, out_w, pad_h, pad_w = pool_padding(f)
    _, h, w, _ = f.input(0).shape
    inside = (out_h - 1) * a["stride_h"] + a["kernel_h"] <= h and (out_w - 1) * a["stride_w"] + a["kernel_w"] <= w
    return f.output.dtype != "uint8" or (inside and (pad_h, pad_w) == (0, 0))


def _fc_output(f: Facts) -> bool | str:
    n, k = f.input(1).shape
    shape = f.input(0).shape
    elements = math.prod(shape)
    if elements % k != 0:
        return f"{elements} inputs for weights of {k}"
    candidates: list[Sequence[int]] = [(elements // k, n)]
    if shape and shape[-1] == k:
        candidates.append((*shape[:-1], n))
    return _expect(f, *candidates)


def _fc_rows(f: Facts) -> bool | str:
    shape, k = f.input(0).shape, f.input(1).shape[1]
    return math.prod(shape) == k or shape[-1] == k or f"{list(shape)} for weights of {k}"


def _broadcast(f: Facts) -> bool | str:
    try:
        return _expect(f, np.broadcast_shapes(*(i.shape for i in _data_inputs(f))))
    except ValueError:
        return " and ".join(str(list(i.shape)) for i in _data_inputs(f))


def _sum_scales(f: Facts) -> bool | str:
    """The three multipliers of ADD and SUB are below 1."""
    twice = 2.0 * max(f.input(0).scale, f.input(1).scale)
    return arith.quantize_multiplier(twice / ((1 << 20) * f.output.scale))[1] <= 0 or f"output scale {f.output.scale}"


def _product_scale(f: Facts) -> bool | str:
    return _shift_fits(255 * 255, f.input(0).scale * f.input(1).scale / f.output.scale)


def _same_shape(f: Facts) -> bool | str:
    return _expect(f, _data_inputs(f)[0].shape)


def _function_scale(f: Facts) -> bool | str:
    in_scale, _, out_scale, _ = _ends(f)
    alpha = abs(f.attributes.get("alpha", 1.0))
    if not math.isfinite(alpha * in_scale / out_scale):
        return f"alpha {alpha}"
    return _shift_fits(255, in_scale / out_scale * max(1.0, alpha))


def _hard_swish_scale(f: Facts) -> bool | str:
    in_scale, _, out_scale, _ = _ends(f)
    factor = float(np.float32(1.0 / 128.0) * np.float32(in_scale) / np.float32(out_scale))
    return arith.quantize_multiplier(factor)[1] <= 0 or f"scales {in_scale} and {out_scale}"


def _fixed_output(scale: float, point: int) -> Callable[[Facts], bool | str]:
    def check(f: Facts) -> bool | str:
        found = (f.output.scale, zero_point(f.output))
        return found == (scale, point) or f"scale {found[0]}, zero point {f.output.zero_point}"

    return check


def _constant_integers(f: Facts, index: int) -> bool | str:
    operand = f.input(index)
    if operand.data is None or operand.dtype not in ("int32", "int64") or operand.data.size > 16:
        return f"{operand.dtype} {list(operand.shape)}"
    return True


def _scalar_limit(f: Facts) -> bool | str:
    constants = [i for i in f.inputs if i is not None and i.data is not None]
    return (len(constants) == 1 and constants[0].data is not None and constants[0].data.size == 1) or (
        f"{len(constants)} constants of {[list(c.shape) for c in constants]}"
    )


def _axes(f: Facts) -> bool | str:
    rank = len(f.input(0).shape)
    values = integers(f.input(1))
    return all(-rank <= k < rank for k in values) or f"{values}"


def _reduced_output(f: Facts) -> bool | str:
    gone = set(reduced_axes(f))
    kept = [1 if k in gone else d for k, d in enumerate(f.input(0).shape)]
    dropped = [d for k, d in enumerate(f.input(0).shape) if k not in gone]
    return _expect(f, kept if f.attributes["keep_dims"] else dropped)


def _reduced_size(f: Facts) -> bool | str:
    count = math.prod(f.input(0).shape[k] for k in reduced_axes(f))
    if count * 255 * 128 >= 1 << 31:
        return f"{count} elements"
    return f.operator != "MEAN" or _shift_fits(count * 255, f.input(0).scale / f.output.scale)


def _same_elements(f: Facts) -> bool | str:
    return math.prod(f.input(0).shape) == math.prod(f.output.shape) or (
        f"{list(f.input(0).shape)} to {list(f.output.shape)}"
    )


def _permutation(f: Facts) -> bool | str:
    rank = len(f.input(0).shape)
    values = integers(f.input(1))
    if any(not -rank <= k < rank for k in values) or sorted(k % rank for k in values) != list(range(rank)):
        return f"{values}"
    return _expect(f, [f.input(0).shape[k % rank] for k in values])


def _concat_shapes(f: Facts) -> bool | str:
    rank = len(f.output.shape)
    axis = f.attributes["axis"]
    if not -rank <= axis < rank or any(len(i.shape) != rank for i in _data_inputs(f)):
        return f"axis {axis} of {[list(i.shape) for i in _data_inputs(f)]}"
    expected = list(_data_inputs(f)[0].shape)
    expected[axis] = sum(i.shape[axis] for i in _data_inputs(f))
    for i in _data_inputs(f):
        if any(a != b for k, (a, b) in enumerate(zip(i.shape, expected, strict=True)) if k != axis % rank):
            return f"{[list(i.shape) for i in _data_inputs(f)]}"
    return _expect(f, expected)


def _paddings(f: Facts) -> bool | str:
    flat = integers(f.input(1))
    shape = f.input(0).shape
    if len(flat) != 2 * len(shape) or any(not 0 <= v <= 255 for v in flat):
        return f"{flat}"
    return _expect(f, [d + a + b for d, (a, b) in zip(shape, paddings(f), strict=True)])


def _pad_constant(f: Facts) -> bool | str:
    value = f.input(2)
    if value.data is None or value.data.size != 1 or value.dtype != f.output.dtype:
        return f"{value.dtype} {list(value.shape)}"
    return (value.scale, value.zero_point) == (f.output.scale, f.output.zero_point) or f"scale {value.scale}"


def _softmax_depth(f: Facts) -> bool | str:
    shape = f.input(0).shape
    return (len(shape) >= 1 and shape[-1] <= 4095) or f"{list(shape)}"


def _softmax_scale(f: Facts) -> bool | str:
    product = f.attributes["beta"] * f.input(0).scale
    return 1.0 < product * (1 << 26) < math.inf or f"beta * scale = {product}"


def _resize_shapes(f: Facts) -> bool | str:
    size = integers(f.input(1))
    if len(f.input(0).shape) != 4 or len(size) != 2 or any(not 1 <= s <= _MAX_AXIS for s in size):
        return f"{list(f.input(0).shape)} to {size}"
    return _expect(f, (1, *size, f.input(0).shape[3]))


# ---------------------------------------------------------------- the table

_REEXPORT = "export the model again; the file may be damaged"
_QUANTISE = "quantise the whole model to int8 with one scale per activation (full integer quantisation)"
_BATCH = "export the model with a batch of 1 and fixed shapes"
_CONSTANT = "export the model so that this is a constant"
_SMALLER = "make the layer smaller"
_RANGE = "calibrate the model again: the output's scale is far smaller than what the layer computes"

RULES: tuple[Rule, ...] = (
    Rule(
        operator=EVERY,
        text="has the inputs and the one output that it needs",
        remedy=_REEXPORT,
        check=_arity,
        final=True,
    ),
    Rule(operator=EVERY, text=ACTIVATION_TEXT, remedy=_QUANTISE, check=_activations, final=True),
    Rule(operator=EVERY, text=SHAPE_TEXT, remedy=_BATCH, check=_shapes, final=True),
    Rule(operator=EVERY, text="activations in and out have one type", remedy=_QUANTISE, check=_one_type),
    Rule(
        operator=EVERY,
        text="computes on what the network's inputs lead to, not on constants alone",
        remedy="let the exporter fold constants",
        check=_computed,
        final=True,
    ),
    *rules(
        SAME_QUANTISATION,
        "inputs and output have the same scale and zero point",
        "requantise the inputs first, or convert with a current converter",
        _same_quantisation,
    ),
    *rules(
        (*WEIGHTED, *BINARY, *POOLS),
        "the fused activation is none, RELU, RELU6 or RELU_N1_TO_1",
        "use one of these, or a separate operator",
        _fused,
        final=True,
    ),
    *rules(
        WEIGHTED,
        "weights are constant, of the input's type, rank 4 (FULLY_CONNECTED: 2), not shuffled",
        "convert with full integer quantisation and static weights",
        _weights,
        final=True,
    ),
    *rules(
        WEIGHTED,
        "weights have one scale, or one per output channel, each finite and positive",
        "quantise weights per tensor or per output channel",
        _weight_scales,
        final=True,
    ),
    *rules(
        WEIGHTED,
        "weights are symmetric: minus their one zero point they fit int8",
        "quantise weights symmetrically (int8, zero point 0)",
        _centrable,
        final=True,
    ),
    *rules(
        WEIGHTED,
        "the bias is absent or constant int32, one per output channel",
        "quantise the bias to int32",
        _bias,
        final=True,
    ),
    *rules(WEIGHTED, "|bias| + taps * 255 * 128 is below 2^31", _SMALLER, _accumulator, final=True),
    *rules(WEIGHTED, "the accumulator survives the rescaling's left shift", _RANGE, _rescaling),
    *rules((*CONVOLUTIONS, *POOLS), "the input has rank 4", _BATCH, lambda f: _rank(f, 4), final=True),
    *rules(
        (*CONVOLUTIONS, *POOLS),
        "kernel, stride and dilation are 1 to 255, the padding SAME or VALID",
        "use a smaller kernel, stride or dilation",
        _strides,
        final=True,
    ),
    *rules(
        CONVOLUTIONS,
        "weights match the input's channels (groups and depth multipliers are fine)",
        _REEXPORT,
        _conv_shapes,
        final=True,
    ),
    *rules(
        CONVOLUTIONS,
        "the output's shape follows from the input's, with at most 255 rows and columns of padding",
        _REEXPORT,
        _conv_output,
    ),
    *rules(POOLS, "the output's shape follows from the input's", _REEXPORT, _pool_output),
    Rule(
        operator="AVERAGE_POOL_2D",
        text="uint8: no window reaches into padding",
        remedy="use int8, or VALID padding",
        check=_whole_windows,
    ),
    Rule(
        operator="FULLY_CONNECTED",
        text="the output's shape follows from the input's",
        remedy=_REEXPORT,
        check=_fc_output,
        final=True,
    ),
    Rule(
        operator="FULLY_CONNECTED",
        text="the whole input feeds one row of outputs, or its last axis is what the weights take",
        remedy=_BATCH,
        check=_fc_rows,
    ),
    *rules(BINARY, "the output's shape is the inputs' broadcast shape", _REEXPORT, _broadcast, final=True),
    *rules(("ADD", "SUB"), "twice the larger input scale is at most 2^20 output scales", _RANGE, _sum_scales),
    Rule(operator="MUL", text="the product survives the rescaling's left shift", remedy=_RANGE, check=_product_scale),
    Rule(
        operator="CONCATENATION",
        text="has no fused activation",
        remedy="use a separate operator",
        check=lambda f: f.attributes["activation"] == "NONE",
    ),
    Rule(
        operator="CONCATENATION",
        text="inputs agree in all axes but the one that is joined",
        remedy=_REEXPORT,
        check=_concat_shapes,
    ),
    *rules((*FUNCTIONS, *MIN_MAX, "SOFTMAX"), "the output has the input's shape", _REEXPORT, _same_shape),
    *rules(
        (*RELUS, "QUANTIZE", "LEAKY_RELU"), "the input's scale is at most 2^22 output scales", _RANGE, _function_scale
    ),
    Rule(
        operator="HARD_SWISH",
        text="the input's scale is below 128 output scales",
        remedy=_RANGE,
        check=_hard_swish_scale,
    ),
    *rules(
        ("LOGISTIC", "SOFTMAX"),
        "the output has scale 1/256 and zero point -128 (uint8: 0)",
        "convert with TensorFlow's converter",
        _fixed_output(1 / 256, -128),
    ),
    Rule(
        operator="TANH",
        text="the output has scale 1/128 and zero point 0 (uint8: 128)",
        remedy="convert with TensorFlow's converter",
        check=_fixed_output(1 / 128, 0),
    ),
    *rules(MIN_MAX, "one operand is a constant with one element", "use a scalar limit", _scalar_limit),
    *rules(REDUCTIONS, "the axes are constant", _CONSTANT, lambda f: _constant_integers(f, 1), final=True),
    *rules(REDUCTIONS, "the axes are H, W or both", "reduce over height and width only", _axes, final=True),
    *rules(REDUCTIONS, "the output's shape follows from the input's", _REEXPORT, _reduced_output),
    *rules(REDUCTIONS, "the sum stays below 2^31", _SMALLER, _reduced_size),
    *rules(VIEWS, "input and output have as many elements", _REEXPORT, _same_elements, final=True),
    Rule(
        operator="TRANSPOSE",
        text="the permutation is constant",
        remedy=_CONSTANT,
        check=lambda f: _constant_integers(f, 1),
        final=True,
    ),
    Rule(
        operator="TRANSPOSE",
        text="the output's shape follows from the permutation; what reads it needs no other order in memory",
        remedy="export the model in channels-last layout",
        check=_permutation,
    ),
    *rules(PADS, "the paddings are constant", _CONSTANT, lambda f: _constant_integers(f, 1), final=True),
    *rules(
        PADS,
        "pads H and W by 0 to 255, and the output's shape follows",
        "pad height and width only, by less",
        _paddings,
    ),
    Rule(
        operator="PADV2",
        text="the value is one constant with the output's type, scale and zero point",
        remedy=_CONSTANT,
        check=_pad_constant,
    ),
    Rule(
        operator="SOFTMAX",
        text="runs over the last axis, of at most 4095 elements",
        remedy="use fewer classes",
        check=_softmax_depth,
    ),
    Rule(
        operator="SOFTMAX",
        text="beta times the input's scale exceeds 2^-26",
        remedy="calibrate the model again",
        check=_softmax_scale,
    ),
    Rule(
        operator="RESIZE_NEAREST_NEIGHBOR",
        text="the size is constant",
        remedy=_CONSTANT,
        check=lambda f: _constant_integers(f, 1),
        final=True,
    ),
    Rule(
        operator="RESIZE_NEAREST_NEIGHBOR",
        text="the input has rank 4 and the output's shape follows from the size",
        remedy=_BATCH,
        check=_resize_shapes,
    ),
)
