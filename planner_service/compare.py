# SPDX-License-Identifier: Apache-2.0
"""A model in its own runtime against its plan in the engine: difference per output and per layer, and accuracy.

The source's runtime is LiteRT with its reference kernels for TFLite, onnxruntime for ONNX (extra ``compare``). Layers
come from the engine too: the layer-by-layer plan of the same model runs, and each stage's output is compared with the
source's tensor of the same name. Every schedule gives the same bytes; that the given plan does is checked as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from planner_service import ir
from planner_service.engine import Engine, EnginePlan
from planner_service.errors import Code, PlannerError
from planner_service.importers import import_model
from planner_service.inputs import Int8, Layout, Samples, from_edge, to_edge

#: Samples on which layers are compared; outputs are compared on all.
LAYER_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of int8 values, in steps (LSB), over all samples. ``differing`` counts values that are not equal."""

    name: str
    values: int
    differing: int
    largest: int
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Correct answers (largest value of the first output) of each, and how often both gave the same one."""

    samples: int
    source: int | None
    engine: int | None
    agree: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``layers`` lacks those that the source does not expose. ``same_as_layers``: the plan's outputs equal those of the
    layer-by-layer plan. ``accuracy.source`` and ``.engine`` are None without labels."""

    runtime: str
    samples: int
    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...]
    hidden: tuple[str, ...]
    same_as_layers: bool
    accuracy: Accuracy

    def to_json(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        return asdict(self)


class Source(Protocol):
    """A source runtime. ``order`` is how it usually arranges (H, W, C) in memory."""

    @property
    def runtime(self) -> str: ...
    @property
    def order(self) -> Layout: ...

    def run(self, inputs: Sequence[NDArray[Any]], wanted: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """``inputs``: (H, W, C) in the types of the model's edge. Tensors by name: all outputs, and of ``wanted`` those
        that the runtime exposes, with the source's axes."""
        ...


class LiteRt:
    """TFLite's reference kernels."""

    runtime = "LiteRT (reference kernels)"
    order: Layout = "hwc"

    def __init__(self, model: bytes) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise _no_runtime("ai-edge-litert") from error
        self._interpreter = Interpreter(
            model_content=model,
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
        )
        self._interpreter.allocate_tensors()
        self._names = {d["name"]: d["index"] for d in self._interpreter.get_tensor_details()}
        self._outputs = {d["name"]: d["index"] for d in self._interpreter.get_output_details()}

    def run(self, inputs: Sequence[NDArray[Any]], wanted: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        for detail, array in zip(self._interpreter.get_input_details(), inputs, strict=True):
            self._interpreter.set_tensor(detail["index"], array.reshape(detail["shape"]))
        self._interpreter.invoke()
        indices = {name: self._names[name] for name in wanted if name in self._names} | self._outputs
        found = {}
        for name, index in indices.items():
            try:
                found[name] = self._interpreter.get_tensor(index)
            except ValueError:
                continue  # optimised away: the runtime has no bytes for it
        return found


class OnnxRuntime:
    """onnxruntime on the CPU. Inputs go in as NCHW where the model has four axes."""

    runtime = "onnxruntime"
    order: Layout = "chw"

    def __init__(self, model: bytes) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise _no_runtime("onnxruntime") from error
        import onnx

        self._runtime = onnxruntime
        self._model = onnx.load_from_string(model)
        self._session = self._open(model)
        self._exposed: tuple[str, ...] = ()
        self._inner: Any = None

    def _open(self, model: bytes) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        return self._runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Sequence[NDArray[Any]], wanted: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        ports = self._session.get_inputs()
        feeds = {p.name: _shaped(array, p.shape) for p, array in zip(ports, inputs, strict=True)}
        names = [o.name for o in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(names, feeds), strict=True))
        inner = [n for n in self._expose(wanted) if n not in found]
        if inner:
            found |= zip(inner, self._inner.run(inner, feeds), strict=True)
        return found

    def _expose(self, wanted: Sequence[str]) -> Sequence[str]:
        """Of ``wanted`` the tensors that exist in the model; a second session gives them out."""
        import onnx

        produced = {name for node in self._model.graph.node for name in node.output}
        names = tuple(name for name in wanted if name in produced)
        if names and names != self._exposed:
            model = onnx.ModelProto()
            model.CopyFrom(self._model)
            there = {o.name for o in model.graph.output}
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
            self._inner, self._exposed = self._open(model.SerializeToString()), names
        return names


def open_source(model: bytes, kind: str) -> Source:
    """The runtime for a model of ``Graph.source`` "tflite" or "onnx". PlannerError(UNAVAILABLE) if it is not
    installed, BAD_MODEL if it cannot load the model."""
    try:
        return LiteRt(model) if kind == "tflite" else OnnxRuntime(model)
    except (ValueError, RuntimeError) as error:
        raise PlannerError(Code.BAD_MODEL, f"the source runtime cannot load the model: {_first_line(error)}") from error


def compare(model: bytes, plan: bytes, samples: Samples, *, name: str, layers: bool = True) -> Comparison:
    """Run ``samples`` through both. PlannerError: as ``import_model`` and ``Engine.open``; BAD_REQUEST if the plan was
    made from another model; UNAVAILABLE without the source's runtime."""
    graph = import_model(model, name=name)
    engine = Engine()
    opened = engine.open(plan)
    reference, stage_tensors = _layer_plan(engine, graph, str(opened.info["model_id"]))
    source = open_source(model, graph.source)
    ports = [*zip(graph.inputs, opened.inputs, strict=True)], [*zip(graph.outputs, opened.outputs, strict=True)]
    names = [graph.tensors[t].name for t in stage_tensors]

    # A reshaped tensor is a copy whose order depends on the source's axes.
    copies = {op.output for op in graph.ops if isinstance(op, ir.Reshape)}
    outputs = {io.name: _Sum() for io in graph.outputs}
    inner: dict[str, _Sum] = {}
    same, agree, source_right, engine_right = True, 0, 0, 0
    for index in range(len(samples)):
        sample = samples.sample(index)
        wanted = names if layers and index < LAYER_SAMPLES else []
        try:
            theirs = source.run([to_edge(a, info) for a, (_, info) in zip(sample, ports[0], strict=True)], wanted)
        except (ValueError, RuntimeError) as error:
            raise PlannerError(Code.BAD_MODEL, f"the source runtime failed: {_first_line(error)}") from error
        ours = opened.run(sample).outputs
        for (io, info), array in zip(ports[1], ours, strict=True):
            given = _arrange(theirs[io.name], info.shape, source.order)
            outputs[io.name].add(array, from_edge(theirs[io.name] if given is None else given, info))
        if wanted:
            run = reference.run(sample, keep_stages=True)
            same &= all(np.array_equal(a, b) for a, b in zip(ours, run.outputs, strict=True))
            for tensor, data in zip(stage_tensors, run.stages, strict=True):
                meta = graph.tensors[tensor]
                exposed = theirs.get(meta.name)
                if exposed is None or exposed.dtype not in (np.int8, np.uint8) or tensor in copies:
                    continue
                given = _arrange(exposed, meta.shape, source.order)
                if given is not None:
                    inner.setdefault(meta.name, _Sum()).add(np.frombuffer(data, np.int8), _as_int8(given))
        answers = [int(np.argmax(a)) for a in (ours[0], theirs[graph.outputs[0].name])]
        agree += answers[0] == answers[1]
        if samples.labels is not None:
            engine_right += answers[0] == int(samples.labels[index])
            source_right += answers[1] == int(samples.labels[index])
    producer = {graph.tensors[op.output].name: op.name for op in graph.ops}
    labelled = samples.labels is not None
    return Comparison(
        runtime=source.runtime,
        samples=len(samples),
        outputs=tuple(s.difference(n) for n, s in outputs.items()),
        layers=tuple(s.difference(producer[n]) for n, s in inner.items()),
        hidden=tuple(producer[n] for n in names if n not in inner) if layers else (),
        same_as_layers=same,
        accuracy=Accuracy(
            samples=len(samples),
            source=source_right if labelled else None,
            engine=engine_right if labelled else None,
            agree=agree,
        ),
    )


class _Sum:
    """Collects the difference of pairs of int8 arrays."""

    def __init__(self) -> None:
        self._values = self._differing = self._largest = self._total = 0

    def add(self, ours: Int8, theirs: Int8) -> None:
        steps = np.abs(ours.reshape(-1).astype(np.int16) - theirs.reshape(-1).astype(np.int16))
        self._values += steps.size
        self._differing += int(np.count_nonzero(steps))
        self._largest = max(self._largest, int(steps.max(initial=0)))
        self._total += int(steps.sum(dtype=np.int64))

    def difference(self, name: str) -> Difference:
        return Difference(
            name=name,
            values=self._values,
            differing=self._differing,
            largest=self._largest,
            mean=self._total / self._values,
        )


def _layer_plan(engine: Engine, graph: ir.Graph, model_id: str) -> tuple[EnginePlan, list[int]]:
    """The layer-by-layer plan of that id, opened, and the tensor that each of its stages ends in. The id covers weights
    as they lie in the plan, so both layouts are tried; PlannerError(BAD_REQUEST) if neither fits."""
    from planner_service import planner

    for quads in (False, True):
        result = planner.layers(graph, planner.Options(input_mode="resident", quads=quads))
        opened = engine.open(result.plan)
        if opened.info["model_id"] == model_id:
            break
    else:
        raise PlannerError(
            Code.BAD_REQUEST, "the plan was made from another model", hint="make it again with `weft plan`"
        )
    ends = [stage.segments[-1].entries[-1].op for stage in result.schedule.stages]
    tensors = [graph.ops[op].output if op >= 0 else graph.inputs[-1 - op].tensor for op in ends]
    return opened, tensors


def _as_int8(array: NDArray[Any]) -> Int8:
    return (array.astype(np.int16) - 128).astype(np.int8) if array.dtype == np.uint8 else array.astype(np.int8)


def _shaped(array: NDArray[Any], shape: Sequence[Any]) -> NDArray[Any]:
    """(H, W, C) -> the source's axes: NCHW for four, whatever has as many values otherwise."""
    if len(shape) == 4:
        return np.ascontiguousarray(array.transpose(2, 0, 1)[np.newaxis])
    return array.reshape([d if isinstance(d, int) else 1 for d in shape])


def _arrange(array: NDArray[Any], shape: tuple[int, int, int], order: Layout) -> NDArray[Any] | None:
    """The source's tensor as (H, W, C) ``shape``, whatever axes of 1 it has or lacks; None if it cannot be told how."""
    h, w, c = shape
    orders: dict[Layout, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "hwc": ((h, w, c), (0, 1, 2)),
        "chw": ((c, h, w), (1, 2, 0)),
    }
    sizes = [d for d in array.shape if d != 1]
    for wanted in (order, *orders):
        dims, axes = orders[wanted]
        if sizes == [d for d in dims if d != 1]:
            return array.reshape(dims).transpose(axes)
    return None


def _no_runtime(package: str) -> PlannerError:
    return PlannerError(
        Code.UNAVAILABLE, f"comparing needs {package}, the source's runtime", hint="pip install 'weft[compare]'"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
