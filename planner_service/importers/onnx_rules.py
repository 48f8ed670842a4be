# SPDX-License-Identifier: Apache-2.0
"""What ONNX operators must be like. The importer writes every quantised form alike before it looks here: an operator
sees its data inputs (activations with one scale, constants with their codes in ``data``), whether they came through
DequantizeLinear or as operands of a QLinear operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner_service.importers.rules import EVERY, Facts, Operand, Rule, rules, usable_scales

CONV = ("Conv", "QLinearConv")
DENSE = ("Gemm", "MatMul", "QGemm", "QLinearMatMul")
BINARY = ("Add", "Sub", "Mul", "Div", "QLinearAdd", "QLinearMul")
POOL = ("AveragePool", "QLinearAveragePool", "MaxPool")
GLOBAL = ("GlobalAveragePool", "QLinearGlobalAveragePool", "GlobalMaxPool")
REDUCE = ("ReduceMean", "QLinearReduceMean")
UNARY = ("HardSigmoid", "HardSwish", "LeakyRelu", "QLinearLeakyRelu", "QLinearSigmoid", "Sigmoid", "Tanh")
CLAMP = ("Clip", "Relu")
CONCAT = ("Concat", "QLinearConcat")
SOFTMAX = ("QLinearSoftmax", "Softmax")
LAYOUT = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
NOTHING = ("Dropout", "Identity")
WINDOWED = (*CONV, *POOL)
AVERAGE = ("AveragePool", "QLinearAveragePool")
QLINEAR = (
    "QGemm",
    "QLinearAdd",
    "QLinearAveragePool",
    "QLinearConv",
    "QLinearGlobalAveragePool",
    "QLinearLeakyRelu",
    "QLinearMatMul",
    "QLinearMul",
    "QLinearReduceMean",
    "QLinearSigmoid",
    "QLinearSoftmax",
)
MAX_SIDE = 32767
#: Weights of all layers together: constants may be read by many layers, each of which keeps a copy.
MAX_WEIGHTS = 64 << 20

QUANTISE = "put QuantizeLinear and DequantizeLinear around it; weft quantize in its QDQ form does"
STATIC = "use static quantisation: weft quantize model.onnx --calibration data.npz, from the float model"
#: Operators that need more than 'not supported'.
REFUSED = {
    "ConvInteger": STATIC,
    "MatMulInteger": STATIC,
    "DynamicQuantizeLinear": STATIC,
    "DynamicQuantizeMatMul": STATIC,
    "ConvTranspose": "use Resize (nearest) and Conv instead",
    "If": "export a model without conditions",
    "Loop": "export a model without loops",
    "Scan": "export a model without loops",
    "LSTM": "use convolutions over time instead",
    "GRU": "use convolutions over time instead",
    "RNN": "use convolutions over time instead",
    "Cast": "convert types outside the model",
    "Upsample": "export with operator set 13 or later, which has Resize",
}
OTHERWISE = "replace it by supported operators (docs/operators.md) or run it outside the model"


def _is_activation(o: Operand | None) -> bool:
    return o is not None and o.data is None and len(o.scales) == 1


def _quantised(f: Facts) -> bool | str:
    for o in f.inputs[:1]:
        if o is None or not _is_activation(o):
            return f"{o.name if o else 'nothing'} unquantised"
    return True


def _all_quantised(f: Facts) -> bool | str:
    bad = [o.name for o in f.inputs if o is not None and not _is_activation(o)]
    return True if not bad else f"{bad[0]} unquantised"


def _rank(*allowed: int) -> Callable[[Facts], bool | str]:
    def check(f: Facts) -> bool | str:
        rank = len(f.input(0).shape)
        return rank in allowed or f"rank {rank}"

    return check


def _symmetric(f: Facts) -> bool | str:
    """Weights: constant, int8 or uint8, zero points that make them symmetric."""
    if len(f.inputs) < 2 or (w := f.inputs[1]) is None:
        return "no weights"
    if w.data is None:
        return f"{w.name} computed"
    if w.dtype not in ("int8", "uint8") or not w.scales:
        return f"{w.dtype} {w.name}"
    middle = 128 if w.dtype == "uint8" else 0
    off = [z for z in w.zero_points if z != middle]
    return not off or f"zero point {off[0]} in {w.dtype} {w.name}"


def _conv_weights(f: Facts) -> bool | str:
    w, x = f.input(1), f.input(0)
    groups = f.attributes.get("group", 1)
    if len(w.shape) != 4:
        return f"rank {len(w.shape)}"
    if not isinstance(groups, int) or groups < 1 or w.shape[1] * groups != x.shape[1] or w.shape[0] % groups:
        return f"{list(w.shape)} for {x.shape[1]} channels in {groups} groups"
    if min(w.shape) < 1 or max(w.shape[2:]) > 255:
        return f"shape {list(w.shape)}"
    if len(w.scales) not in (1, w.shape[0]) or (len(w.scales) > 1 and w.axis != 0):
        return f"{len(w.scales)} scales along axis {w.axis}"
    kernel = f.attributes.get("kernel_shape")
    return kernel is None or list(kernel) == list(w.shape[2:]) or f"kernel_shape {kernel}"


def _dense_weights(f: Facts) -> bool | str:
    w, x = f.input(1), f.input(0)
    if len(w.shape) != 2 or min(w.shape) < 1:
        return f"shape {list(w.shape)}"
    turned = bool(f.attributes.get("transB", 0))
    n_axis, k = (0, w.shape[1]) if turned else (1, w.shape[0])
    if not x.shape or x.shape[-1] != k:
        return f"{list(w.shape)} for input {list(x.shape)}"
    if len(w.scales) > 1 and (len(w.scales) != w.shape[n_axis] or w.axis % 2 != n_axis):
        return f"{len(w.scales)} scales along axis {w.axis}"
    return True


def _bias(f: Facts) -> bool | str:
    b = f.inputs[2] if len(f.inputs) > 2 else None
    if b is None:
        return True
    if b.data is None:
        return f"{b.name} computed"
    return b.dtype in ("int32", "float32") or f"{b.dtype} {b.name}"


def _small_window(f: Facts) -> bool | str:
    for key, low in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 0)):
        values = f.attributes.get(key)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != (4 if key == "pads" else 2):
            return f"{key} {values}"
        if not all(isinstance(v, int) and low <= v <= 255 for v in values):
            return f"{key} {values}"
    mode = f.attributes.get("auto_pad", "NOTSET")
    return mode in ("NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER") or f"auto_pad {mode}"


def _kernel_given(f: Facts) -> bool | str:
    return isinstance(f.attributes.get("kernel_shape"), list) or "no kernel_shape"


def _gemm_plain(f: Facts) -> bool | str:
    for key, value in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        if f.attributes.get(key, value) != value:
            return f"{key} = {f.attributes[key]}"
    return True


def _two_operands(f: Facts) -> bool | str:
    return (len(f.inputs) == 2 and all(o is not None for o in f.inputs)) or f"{len(f.inputs)} operands"


def _constant_parameters(f: Facts) -> bool | str:
    bad = [o.name for o in f.inputs[1:] if o is not None and o.data is None]
    return not bad or f"{bad[0]} computed"


def _resize_mode(f: Facts) -> bool | str:
    a = f.attributes
    if a.get("mode", "nearest") != "nearest":
        return f"mode {a['mode']}"
    if a.get("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "tf_crop_and_resize"
    return not a.get("antialias", 0) or "antialias"


def _finite_constants(f: Facts) -> bool | str:
    for o in f.inputs:
        if o is not None and o.data is not None and o.dtype.startswith("float") and not np.all(np.isfinite(o.data)):
            return f"in {o.name}"
    return True


def _every_scale(f: Facts) -> bool | str:
    for o in (*f.inputs, *f.outputs):
        if o is not None and (result := usable_scales(o)) is not True:
            return result
    return True


def _says(_: Facts) -> bool:
    """Rules that state a property of the result hold always."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A rule that shows only while the operator is taken apart: the importer raises it by its key, with what it
    found."""

    operators: tuple[str, ...]
    text: str
    remedy: str


_AGAIN = "quantise again, with calibration data that reaches this layer"
_IN_ORDER = "keep tensors [1, C, H, W] between operators"
LIMITS: dict[str, Limit] = {
    "size": Limit(
        operators=(EVERY,),
        text=f"a tensor's sides are 1 to {MAX_SIDE}, its elements fewer than 2^31",
        remedy="check shapes, strides and pads",
    ),
    "weights": Limit(
        operators=(EVERY,), text=f"weights take at most {MAX_WEIGHTS >> 20} MiB together", remedy="use a smaller model"
    ),
    "quantised": Limit(
        operators=(EVERY,), text="activations are quantised before every operator but Relu and Clip", remedy=QUANTISE
    ),
    "one meaning": Limit(
        operators=(EVERY,),
        text="a tensor is read with the scale and zero point that it was made with",
        remedy="quantise the model again",
    ),
    "layout": Limit(
        operators=(EVERY,), text="channels come last in memory, and data is not moved to change that", remedy=_IN_ORDER
    ),
    "output scale range": Limit(
        operators=(EVERY,), text="the output's scale is not finer than the arithmetic's 32 bits", remedy=_AGAIN
    ),
    "output quantised": Limit(
        operators=(EVERY,),
        text="outputs are quantised (Softmax and functions may be left float)",
        remedy="add QuantizeLinear and DequantizeLinear before the output",
    ),
    "output computed": Limit(operators=(EVERY,), text="outputs are computed", remedy="remove it from the outputs"),
    "output order": Limit(operators=(EVERY,), text="outputs have channels last", remedy="leave out the last Flatten"),
    "blockwise": Limit(
        operators=("DequantizeLinear", "QuantizeLinear"),
        text="scale is given, not blockwise",
        remedy="quantise per tensor or per channel",
    ),
    "output scale": Limit(
        operators=QLINEAR, text="the output has a scale and zero point", remedy="give y_scale and y_zero_point"
    ),
    "taps": Limit(
        operators=(*CONV, *DENSE), text="taps of an output times 255 * 128 fit 32 bits", remedy="use a smaller layer"
    ),
    "dense input": Limit(
        operators=DENSE, text="input is one vector, or its features are the channels of a tensor", remedy="Flatten it"
    ),
    "one computed": Limit(operators=BINARY, text="one operand is computed", remedy="fold constants: onnxsim"),
    "channel constant": Limit(
        operators=(*BINARY, "BatchNormalization"),
        text="a constant operand is quantised, or float and one number or one per channel",
        remedy="quantise the constant (DequantizeLinear of int8)",
    ),
    "divisor": Limit(
        operators=("Div",), text="the divisor is constant and not 0", remedy="multiply by what is quantised instead"
    ),
    "padding": Limit(operators=WINDOWED, text="padding is at most 255", remedy="use a smaller window"),
    "empty window": Limit(
        operators=POOL, text="every window touches the tensor", remedy="pad less than the kernel's size"
    ),
    "ceil and count": Limit(
        operators=AVERAGE,
        text="with ceil_mode and count_include_pad no window leaves the padding",
        remedy="pad the input with Pad",
    ),
    "uncounted padding": Limit(
        operators=AVERAGE,
        text="where padding is not counted, the output's scale is the input's or more than half of it",
        remedy="give the output the input's scale, or set count_include_pad",
    ),
    "mean axes": Limit(operators=REDUCE, text="over height, width or both", remedy="reduce over height and width only"),
    "softmax axis": Limit(operators=SOFTMAX, text="not over the batch", remedy="apply it to the channels"),
    "softmax scale": Limit(operators=SOFTMAX, text="the input's scale is more than 2^-26", remedy=_AGAIN),
    "joined codes": Limit(
        operators=("Concat",), text="tensors joined without DequantizeLinear have one scale", remedy="use QLinearConcat"
    ),
    "pads": Limit(
        operators=("Pad",),
        text="height and width only, by 0 to 255 before them and not less than 0 behind",
        remedy="pad height and width only, crop outside the model",
    ),
    "pad value": Limit(operators=("Pad",), text="the value is one of the input's 256", remedy="pad with 0"),
    "resize mode": Limit(
        operators=("Resize",),
        text="coordinates as the standard has them, but not cropped or of kept aspect ratio",
        remedy="use asymmetric or half_pixel, and sizes",
    ),
    "resize axes": Limit(operators=("Resize",), text="height and width only", remedy="resize height and width only"),
    "reshape": Limit(
        operators=LAYOUT,
        text="only a matter of layout: dimensions of 1 come and go, channels move, a tensor is flattened before Gemm; "
        "nothing that would move data",
        remedy="reshape only where channels or all but channels stay together",
    ),
    "weights reshaped": Limit(
        operators=LAYOUT,
        text="weights with several scales keep the dimension that these run along",
        remedy="quantise weights in their final shape",
    ),
    "shape": Limit(operators=("Shape",), text="of an activation; it is folded", remedy="run onnxsim"),
}


_LSB = "result at most 1 LSB from onnxruntime's"


def _state(operators: tuple[str, ...], text: str) -> tuple[Rule, ...]:
    return rules(operators, text, "", _says)


RULES: tuple[Rule, ...] = (
    Rule(
        operator=EVERY,
        text="scales are finite and positive, zero points lie inside their type",
        remedy="calibrate with data that is not constant or broken, and quantise again",
        check=_every_scale,
        final=True,
    ),
    # ---- quantisation itself
    Rule(
        operator="QuantizeLinear",
        text="activations become int8 or uint8 with one constant scale and zero point",
        remedy="quantise activations per tensor to 8 bits; weft quantize does",
        check=lambda f: len(f.outputs) == 1 and len(f.output.scales) == 1 and f.output.dtype in ("int8", "uint8"),
        final=True,
    ),
    Rule(
        operator="DequantizeLinear",
        text="int8 or uint8 activations with one constant scale, int8, uint8 or int32 constants with one per tensor or "
        "channel",
        remedy="quantise to 8 bits, per tensor or per output channel; weft quantize does",
        check=lambda f: (
            len(f.outputs) == 1
            and len(f.output.scales) >= 1
            and (f.input(0).data is not None or len(f.output.scales) == 1)
            and f.output.dtype in ("int8", "uint8", "int32")
        ),
        final=True,
    ),
    # ---- convolution and dense layers
    *rules((*CONV, *POOL), "input is quantised", QUANTISE, _quantised, final=True),
    *rules((*CONV, *POOL), "input is [1, channels, height, width]", "Unsqueeze it to rank 4", _rank(4), final=True),
    *rules(
        (*CONV, *DENSE),
        "weights are constant and symmetric: int8 with zero point 0, or uint8 with zero point 128",
        "quantise weights symmetrically to int8; weft quantize does",
        _symmetric,
        final=True,
    ),
    *rules(
        CONV,
        "weights fit channels and groups, kernels are at most 255; one scale per tensor or per output channel",
        "check group, and quantise weights along axis 0",
        _conv_weights,
        final=True,
    ),
    *rules((*CONV, *DENSE), "bias is constant, int32 or float", "fold what computes it", _bias, final=True),
    *rules(
        (*CONV, *DENSE, *BINARY),
        "float constants are finite",
        "train again without overflow",
        _finite_constants,
        final=True,
    ),
    *rules(
        WINDOWED,
        "kernel, strides, dilations 1 to 255, pads 0 to 255, auto_pad of the standard",
        "use a smaller window, or Pad for negative pads",
        _small_window,
        final=True,
    ),
    *_state(CONV, _LSB + ": fixed-point instead of float requantisation"),
    *rules(DENSE, "input is quantised", QUANTISE, _quantised, final=True),
    *rules(("Gemm", "QGemm"), "input is a matrix", "Flatten it", _rank(2), final=True),
    *rules(
        ("Gemm", "QGemm"),
        "alpha and beta are 1, transA is 0",
        "fold the factors into weights and bias",
        _gemm_plain,
        final=True,
    ),
    *rules(
        DENSE,
        "weights are a matrix that fits the input; one scale per tensor or per output feature",
        "quantise weights along their output axis",
        _dense_weights,
        final=True,
    ),
    *_state(DENSE, _LSB + ": fixed-point instead of float requantisation"),
    # ---- elementwise
    *rules(BINARY, "two operands", "check the model", _two_operands, final=True),
    *_state(BINARY, _LSB + ": fixed-point instead of float arithmetic"),
    *rules(
        ("BatchNormalization",),
        "input is quantised, parameters are constant",
        "fold it into the convolution before",
        lambda f: _quantised(f) is True and _constant_parameters(f) is True and len(f.inputs) == 5,
        final=True,
    ),
    *_state(("BatchNormalization",), _LSB),
    *_state((*UNARY, *CLAMP), "between DequantizeLinear and QuantizeLinear"),
    *_state(CLAMP, "also right behind an operator, before its QuantizeLinear: then part of it"),
    *rules(CLAMP, "bounds are constant", "make min and max initialisers", _constant_parameters, final=True),
    *_state(UNARY, _LSB + ": a table computed in double precision"),
    *_state(CLAMP, _LSB),
    # ---- pooling and reductions
    *rules(POOL, "kernel_shape is given", "check the model", _kernel_given, final=True),
    *rules(
        ("MaxPool",),
        "row-major, without Indices",
        "drop the second output",
        lambda f: not f.attributes.get("storage_order", 0) and len(f.outputs) < 2,
        final=True,
    ),
    *_state(("MaxPool", "GlobalMaxPool"), "exact; at most 1 LSB where the output has another scale"),
    *_state(
        ("AveragePool", "QLinearAveragePool"),
        _LSB + ": ties round away from zero",
    ),
    *rules(GLOBAL, "input is quantised", QUANTISE, _quantised, final=True),
    *rules(
        GLOBAL, "input is [1, channels, height, width] or [1, channels, length]", "Reshape it", _rank(3, 4), final=True
    ),
    *_state(("GlobalAveragePool", "QLinearGlobalAveragePool", *REDUCE), _LSB + ": one fixed-point rounding"),
    *rules(
        REDUCE,
        "input is quantised, axes are constant",
        QUANTISE,
        lambda f: _quantised(f) is True and _constant_parameters(f) is True,
        final=True,
    ),
    # ---- joining, layout
    *rules(("QLinearConcat",), "inputs are quantised", QUANTISE, _all_quantised, final=True),
    *_state(
        CONCAT,
        "along channels, height or width; at most 1 LSB where an input has another scale than the output (a table)",
    ),
    *rules(
        ("Pad", "Resize", *LAYOUT),
        "parameters are constant",
        "run onnxsim, or export with fixed shapes",
        _constant_parameters,
        final=True,
    ),
    *rules(
        ("Pad",),
        "mode is constant",
        "pad with a constant",
        lambda f: f.attributes.get("mode", "constant") == "constant" or f"{f.attributes['mode']}",
        final=True,
    ),
    *_state(("Pad",), "exact"),
    *rules(("Resize",), "input is quantised", QUANTISE, _quantised, final=True),
    *rules(("Resize",), "input is [1, channels, height, width]", "Unsqueeze it to rank 4", _rank(4), final=True),
    *rules(("Resize",), "nearest neighbour of height and width", "use mode nearest", _resize_mode, final=True),
    *_state(("Resize",), "exact"),
    *_state(LAYOUT, "exact"),
    *_state(NOTHING, "removed"),
    # ---- softmax
    *rules(SOFTMAX, "input is quantised", QUANTISE, _quantised, final=True),
    *_state(
        SOFTMAX,
        "TFLite's fixed-point softmax of scale 1/256, then a table if the model's scale differs: at most "
        "1 LSB of 1/256 from onnxruntime's",
    ),
    *(rule for limit in LIMITS.values() for rule in rules(limit.operators, limit.text, limit.remedy, _says)),
)
