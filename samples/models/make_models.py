# SPDX-License-Identifier: Apache-2.0
"""Makes the sample models: trains two digit classifiers on scikit-learn's digits (real handwriting, 8x8, upscaled to
16x16), quantises them to int8 and measures them. Run by hand from the repository's root:

    python samples/models/make_models.py

Needs numpy, onnx, onnxruntime and scikit-learn. The seed is fixed; the network, its training and its export share the
tables at the top. Training is plain NumPy: a list of operators, a forward pass that remembers, a backward pass."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from planner_service.quantize import quantize_model  # noqa: E402

Array = NDArray[np.float32]

SIZE = 16
CLASSES = 10
SPLIT_SEED = 20240607
TRAINING_SEED = 2
HELD_OUT = 360
CALIBRATION = 256
BATCH = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One operator of a network. ``kind``: conv, dwconv, add, concat, maxpool, gap, dense."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    channels: int = 0
    kernel: int = 1
    stride: int = 1
    relu: bool = False


def inverted_residual(name: str, source: str, expand: int, out: int, stride: int, residual: bool) -> list[Layer]:
    """MobileNetV2's block: 1x1 up, 3x3 depthwise, 1x1 down, and the sum with its input."""
    block = [
        Layer(kind="conv", name=f"{name}_up", inputs=(source,), channels=expand, relu=True),
        Layer(
            kind="dwconv",
            name=f"{name}_dw",
            inputs=(f"{name}_up",),
            channels=expand,
            kernel=3,
            stride=stride,
            relu=True,
        ),
        Layer(kind="conv", name=f"{name}_down", inputs=(f"{name}_dw",), channels=out),
    ]
    if residual:
        block.append(Layer(kind="add", name=f"{name}_add", inputs=(source, f"{name}_down")))
    return block


def fire(name: str, source: str, squeeze: int, expand: int) -> list[Layer]:
    """SqueezeNet's block: 1x1 down, then 1x1 and 3x3 side by side."""
    return [
        Layer(kind="conv", name=f"{name}_squeeze", inputs=(source,), channels=squeeze, relu=True),
        Layer(kind="conv", name=f"{name}_e1", inputs=(f"{name}_squeeze",), channels=expand, relu=True),
        Layer(kind="conv", name=f"{name}_e3", inputs=(f"{name}_squeeze",), channels=expand, kernel=3, relu=True),
        Layer(kind="concat", name=name, inputs=(f"{name}_e1", f"{name}_e3")),
    ]


#: digits_a: MobileNetV2-like, four inverted residuals, QDQ.
NETWORK_A = [
    Layer(kind="conv", name="stem", inputs=("image",), channels=12, kernel=3, relu=True),
    *inverted_residual("b1", "stem", 36, 12, 1, True),
    *inverted_residual("b2", "b1_add", 48, 20, 2, False),
    *inverted_residual("b3", "b2_down", 60, 20, 1, True),
    *inverted_residual("b4", "b3_add", 72, 32, 2, False),
    Layer(kind="conv", name="head", inputs=("b4_down",), channels=64, relu=True),
    Layer(kind="gap", name="pool", inputs=("head",)),
    Layer(kind="dense", name="logits", inputs=("pool",), channels=CLASSES),
]

#: digits_b: SqueezeNet-like, fire modules with concatenation and max pooling, fully convolutional, QOperator.
NETWORK_B = [
    Layer(kind="conv", name="stem", inputs=("image",), channels=16, kernel=5, relu=True),
    Layer(kind="maxpool", name="pool1", inputs=("stem",), kernel=2, stride=2),
    *fire("fire1", "pool1", 12, 20),
    *fire("fire2", "fire1", 16, 24),
    Layer(kind="maxpool", name="pool2", inputs=("fire2",), kernel=2, stride=2),
    *fire("fire3", "pool2", 16, 32),
    Layer(kind="conv", name="score", inputs=("fire3",), channels=CLASSES),
    Layer(kind="gap", name="logits", inputs=("score",)),
]

Params = dict[str, Array]

ONNX_KINDS = {"add": "Add", "concat": "Concat", "maxpool": "MaxPool", "gap": "GlobalAveragePool", "dense": "Gemm"}


def shapes(network: list[Layer]) -> dict[str, tuple[int, int]]:
    """(height, channels) of every layer's output; all are square."""
    known = {"image": (SIZE, 1)}
    for layer in network:
        size, channels = known[layer.inputs[0]]
        if layer.kind == "concat":
            channels = sum(known[i][1] for i in layer.inputs)
        elif layer.channels:
            channels = layer.channels
        known[layer.name] = (1 if layer.kind in ("gap", "dense") else -(-size // layer.stride), channels)
    return known


def initial(network: list[Layer], rng: np.random.Generator) -> Params:
    """He initialisation. Weights are (KH, KW, I, O), depthwise (KH, KW, C), dense (I, O)."""
    known, params = shapes(network), {}
    for layer in network:
        fan = {"conv": known[layer.inputs[0]][1], "dense": known[layer.inputs[0]][1], "dwconv": 1}.get(layer.kind)
        if fan is None:
            continue
        k = layer.kernel
        shape = {
            "conv": (k, k, fan, layer.channels),
            "dwconv": (k, k, layer.channels),
            "dense": (fan, layer.channels),
        }[layer.kind]
        gain = 2.0 if layer.relu else 1.0
        weights = rng.normal(0.0, np.sqrt(gain / (k * k * fan)), shape)
        # A residual block starts near the identity, which stands in for normalisation.
        params[layer.name + ".w"] = (weights * (0.5 if layer.name.endswith("_down") else 1.0)).astype(np.float32)
        params[layer.name + ".b"] = np.zeros(layer.channels, np.float32)
    return params


def patches(x: Array, kernel: int, stride: int) -> Array:
    """(N, H, W, C) -> (N, OH, OW, C, KH, KW) view of the zero-padded input ("same" padding for odd kernels)."""
    pad = (kernel - 1) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    return view[:, ::stride, ::stride]


def scatter(grad: Array, shape: tuple[int, ...], kernel: int, stride: int) -> Array:
    """Adjoint of ``patches`` for a gradient (N, OH, OW, KH, KW, C)."""
    pad = (kernel - 1) // 2
    n, h, w, c = shape
    out = np.zeros((n, h + 2 * pad, w + 2 * pad, c), np.float32)
    oh, ow = grad.shape[1:3]
    for ky in range(kernel):
        for kx in range(kernel):
            out[:, ky : ky + oh * stride : stride, kx : kx + ow * stride : stride] += grad[:, :, :, ky, kx]
    return out[:, pad : pad + h, pad : pad + w]


def forward(network: list[Layer], params: Params, image: Array) -> tuple[dict[str, Array], dict[str, Any]]:
    """Values of every layer, and what the backward pass needs of it."""
    value: dict[str, Array] = {"image": image}
    saved: dict[str, Any] = {}
    for layer in network:
        x, k = value[layer.inputs[0]], layer.kernel
        w, b = params.get(layer.name + ".w"), params.get(layer.name + ".b")
        if layer.kind == "conv":
            assert w is not None
            assert b is not None
            columns = x[:, :: layer.stride, :: layer.stride] if k == 1 else patches(x, k, layer.stride)
            flat = columns.transpose(0, 1, 2, 4, 5, 3).reshape(*columns.shape[:3], -1) if k > 1 else columns
            saved[layer.name] = flat
            y = flat @ w.reshape(-1, layer.channels) + b
        elif layer.kind == "dwconv":
            assert w is not None
            columns = np.ascontiguousarray(patches(x, k, layer.stride).transpose(0, 1, 2, 4, 5, 3))
            saved[layer.name] = columns
            y = np.einsum("nhwklc,klc->nhwc", columns, w) + b
        elif layer.kind == "dense":
            assert w is not None
            y = x @ w + b
        elif layer.kind == "add":
            y = x + value[layer.inputs[1]]
        elif layer.kind == "concat":
            y = np.concatenate([value[i] for i in layer.inputs], axis=-1)
        elif layer.kind == "maxpool":
            n, h, wd, c = x.shape
            y = x.reshape(n, h // k, k, wd // k, k, c).max(axis=(2, 4))
        else:
            y = x.mean(axis=(1, 2))
        value[layer.name] = np.maximum(y, 0) if layer.relu else y
    return value, saved


def backward(
    network: list[Layer], params: Params, value: dict[str, Array], saved: dict[str, Any], grad_out: Array
) -> Params:
    """Gradients of every parameter."""
    grads: dict[str, Array] = {network[-1].name: grad_out}
    result: Params = {}

    def give(name: str, g: Array) -> None:
        grads[name] = grads[name] + g if name in grads else g

    for layer in reversed(network):
        g, x, k = grads.pop(layer.name), value[layer.inputs[0]], layer.kernel
        if layer.relu:
            g = g * (value[layer.name] > 0)
        w = params.get(layer.name + ".w")
        if layer.kind in ("conv", "dwconv", "dense"):
            result[layer.name + ".b"] = g.sum(axis=tuple(range(g.ndim - 1)))
        if layer.kind == "conv":
            assert w is not None
            flat = saved[layer.name]
            result[layer.name + ".w"] = (flat.reshape(-1, flat.shape[-1]).T @ g.reshape(-1, layer.channels)).reshape(
                w.shape
            )
            if layer.inputs[0] != "image":
                back = (g @ w.reshape(-1, layer.channels).T).reshape(*g.shape[:3], k, k, -1)
                give(layer.inputs[0], scatter(back, x.shape, k, layer.stride))
        elif layer.kind == "dwconv":
            assert w is not None
            result[layer.name + ".w"] = np.einsum("nhwklc,nhwc->klc", saved[layer.name], g)
            give(layer.inputs[0], scatter(g[:, :, :, None, None, :] * w, x.shape, k, layer.stride))
        elif layer.kind == "dense":
            assert w is not None
            result[layer.name + ".w"] = x.T @ g
            give(layer.inputs[0], g @ w.T)
        elif layer.kind == "add":
            give(layer.inputs[0], g)
            give(layer.inputs[1], g)
        elif layer.kind == "concat":
            start = 0
            for i in layer.inputs:
                stop = start + value[i].shape[-1]
                give(i, g[..., start:stop])
                start = stop
        elif layer.kind == "maxpool":
            big = value[layer.name].repeat(k, axis=1).repeat(k, axis=2)
            give(layer.inputs[0], (x == big) * g.repeat(k, axis=1).repeat(k, axis=2))
        else:
            give(layer.inputs[0], np.broadcast_to(g[:, None, None, :] / (x.shape[1] * x.shape[2]), x.shape))
    return result


def train(network: list[Layer], images: Array, labels: NDArray[np.int64], epochs: int, seed: int) -> Params:
    """Adam with a cosine schedule, shifts by one pixel and a little noise as augmentation."""
    rng = np.random.default_rng(seed)
    params = initial(network, rng)
    first = {k: np.zeros_like(v) for k, v in params.items()}
    second = {k: np.zeros_like(v) for k, v in params.items()}
    total, step = epochs * (len(images) // BATCH), 0
    for epoch in range(epochs):
        order, losses = rng.permutation(len(images)), []
        for start in range(0, len(images) - BATCH + 1, BATCH):
            index = order[start : start + BATCH]
            dy, dx = rng.integers(-1, 2, 2)
            batch = np.roll(images[index], (dy, dx), axis=(1, 2)) + rng.normal(0, 0.03, (BATCH, SIZE, SIZE, 1))
            value, saved = forward(network, params, batch.astype(np.float32))
            logits = value[network[-1].name]
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            odds /= odds.sum(axis=1, keepdims=True)
            losses.append(-np.log(odds[np.arange(BATCH), labels[index]] + 1e-9).mean())
            odds[np.arange(BATCH), labels[index]] -= 1
            grads = backward(network, params, value, saved, (odds / BATCH).astype(np.float32))
            norm = np.sqrt(sum(float((g * g).sum()) for g in grads.values()))
            step += 1
            rate = 3e-3 * min(1.0, step / 60) * 0.5 * (1 + np.cos(np.pi * step / total))
            for name, g in grads.items():
                g = g * min(1.0, 2.0 / (norm + 1e-9)) + (1e-4 * params[name] if name.endswith(".w") else 0)
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.99 * second[name] + 0.01 * g * g
                corrected = first[name] / (1 - 0.9**step), second[name] / (1 - 0.99**step)
                params[name] = (params[name] - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)).astype(np.float32)
        print(f"  epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}", flush=True)
    return params


def to_onnx(network: list[Layer], params: Params, name: str) -> bytes:
    """The float model, NCHW, batch 1, opset 17."""
    nodes, constants = [], []

    def constant(key: str, array: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), key))
        return key

    for layer in network:
        w, b = params.get(layer.name + ".w"), params.get(layer.name + ".b")
        out = layer.name + "_linear" if layer.relu else layer.name
        inputs, k, p = list(layer.inputs), layer.kernel, (layer.kernel - 1) // 2
        attributes: dict[str, Any] = {}
        kind = ONNX_KINDS.get(layer.kind, "Conv")
        if kind == "Conv":
            assert w is not None
            assert b is not None
            depthwise = layer.kind == "dwconv"
            weights = w.transpose(2, 0, 1)[:, None] if depthwise else w.transpose(3, 2, 0, 1)
            inputs += [constant(layer.name + ".w", weights), constant(layer.name + ".b", b)]
            attributes = {"kernel_shape": [k, k], "pads": [p] * 4, "strides": [layer.stride] * 2}
            attributes["group"] = layer.channels if depthwise else 1
        elif kind == "Gemm":
            assert w is not None
            assert b is not None
            nodes.append(helper.make_node("Flatten", inputs, [out + "_in"], name=out + "_flatten"))
            inputs = [out + "_in", constant(layer.name + ".w", w.T), constant(layer.name + ".b", b)]
            attributes = {"transB": 1}
        elif kind == "Concat":
            attributes = {"axis": 1}
        elif kind == "MaxPool":
            attributes = {"kernel_shape": [k, k], "strides": [layer.stride] * 2}
        nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        if layer.relu:
            nodes.append(helper.make_node("Relu", [out], [layer.name], name=layer.name))
    result = network[-1].name
    if network[-1].kind == "gap":
        nodes.append(helper.make_node("Flatten", [result], ["scores"], name="scores"))
        result = "scores"
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, [1, CLASSES])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="weft samples")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def accuracy(model: bytes, images: Array, labels: NDArray[np.int64]) -> float:
    """Share of images whose class onnxruntime gets right."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [int(np.argmax(session.run(None, {name: image[None]})[0])) for image in images]
    return float(np.mean(np.array(found) == labels))


def upscale(images: NDArray[Any]) -> Array:
    """(N, 8, 8) values 0 to 16 -> (N, 16, 16) values 0 to 1, bilinear, half-pixel centres."""
    position = (np.arange(SIZE) + 0.5) / 2 - 0.5
    low = np.clip(np.floor(position).astype(int), 0, 7)
    high, weight = np.clip(low + 1, 0, 7), position - np.floor(position)
    low[0], high[0] = 0, 0
    rows = images[:, low] * (1 - weight)[:, None] + images[:, high] * weight[:, None]
    both = rows[:, :, low] * (1 - weight) + rows[:, :, high] * weight
    return (both / 16).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=TRAINING_SEED)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()

    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    images, labels = upscale(digits.images)[order][..., None], digits.target[order].astype(np.int64)
    seen, held = images[:-HELD_OUT], images[-HELD_OUT:]
    # One channel: NHWC and NCHW are the same bytes.
    test = held.reshape(-1, 1, SIZE, SIZE)
    np.savez_compressed(options.out / "digits_test.npz", image=test, label=labels[-HELD_OUT:])

    report: dict[str, Any] = {
        "data": "sklearn.datasets.load_digits, upscaled to 16x16",
        "train_images": len(seen),
        "test_images": HELD_OUT,
        "models": {},
    }
    for name, network, form in (("digits_a", NETWORK_A, "qdq"), ("digits_b", NETWORK_B, "qoperator")):
        print(name, flush=True)
        params = train(network, seen, labels[:-HELD_OUT], options.epochs, options.seed)
        model = to_onnx(network, params, name)
        quantised = quantize_model(
            model, {"image": seen[:CALIBRATION].reshape(-1, 1, SIZE, SIZE)}, per_channel=True, form=form
        )
        (options.out / f"{name}.onnx").write_bytes(quantised)
        report["models"][name] = {
            "form": form,
            "bytes": len(quantised),
            "parameters": int(sum(p.size for p in params.values())),
            "float_accuracy": round(accuracy(model, test, labels[-HELD_OUT:]), 4),
            "int8_accuracy": round(accuracy(quantised, test, labels[-HELD_OUT:]), 4),
        }
        print(" ", report["models"][name], flush=True)
    (options.out / "accuracy.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
