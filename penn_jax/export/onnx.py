"""The network as an ONNX graph, and prediction with ONNX Runtime.

The graph is written straight from the weights, not traced through PyTorch's exporter: the network
is eight kinds of nodes; ``onnx`` is a twentieth of the size of torch and onnxscript, which the
exporter needs; a new process predicts without ever importing PyTorch; and the graph has no shape
that the exporter took for a constant, no folding that depends on its version. The graph is channels
first, ONNX's only layout; batch and spatial sizes are free.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from penn_jax.config import ModelConfig
from penn_jax.model.blocks import GROUP_CHANNELS, NORM_EPSILON
from penn_jax.model.fold import fold
from penn_jax.predict.dense import Forward, over_mirrorings
from penn_jax.types import InputError

if TYPE_CHECKING:
    from onnx import ModelProto

_SLOPE = 0.01
"""Of the leaky rectifier below zero, as in Flax and PyTorch."""
_OPSET = 21
"""The first with group normalisation for each channel; ONNX Runtime reads it from 1.18 on."""
_IR_VERSION = 10
"""The file format of that opset: ``onnx`` would write its newest, which older readers refuse."""


def onnx_forward(
    config: ModelConfig,
    classes: int,
    channels: int,
    dimensions: int,
    variables: Mapping[str, Any],
    mirror: bool,
    threads: int | None = None,
) -> Forward:
    """The network in ONNX Runtime, as a function from tiles to class probabilities.

    Args:
        config: of the network; ONNX Runtime computes in float32 whatever its precision.
        classes: K.
        channels: of a tile.
        dimensions: spatial axes of a tile.
        variables: of the network.
        mirror: average the probabilities over the mirrorings along every set of axes.
        threads: of the computation; None for the CPUs that this process may use.

    Raises:
        InputError: ONNX Runtime is not installed.
    """
    check_installed("--engine onnxruntime", "choose --engine jax")
    graph = to_onnx(variables, config, classes, channels, dimensions).SerializeToString()
    return graph_forward(graph, Path("the network"), dimensions, mirror, threads)


def graph_forward(
    graph: bytes, source: object, dimensions: int, mirror: bool, threads: int | None = None
) -> Forward:
    """A graph of :func:`to_onnx` in ONNX Runtime, from tiles to class probabilities.

    Args:
        graph: content of an ONNX file.
        source: of the graph, for the messages.
        dimensions: spatial axes of a tile.
        mirror: as for :func:`onnx_forward`, like ``threads``.

    Raises:
        InputError: ONNX Runtime is not installed or cannot read the graph.
    """
    check_installed(source, "export the run in another format")
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: its warnings are about devices that are not there
    options.intra_op_num_threads = threads or _usable_cpus()
    options.inter_op_num_threads = 1
    # Waiting threads must not spin: meanwhile other scans are read and written on the same CPUs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    except Exception as error:  # of kinds that ONNX Runtime does not document
        raise InputError(
            source,
            f"cannot be read ({type(error).__name__})",
            f"a graph that ONNX Runtime {onnxruntime.__version__} reads",
            "install a newer onnxruntime, or export it again",
        ) from error

    def forward(tiles: Float32[np.ndarray, "B *tile C"]) -> Float32[np.ndarray, "B *tile K"]:
        image = np.ascontiguousarray(np.moveaxis(tiles, -1, 1))
        found = np.asarray(session.run(["probabilities"], {"image": image})[0])
        return np.moveaxis(found, 1, -1)

    return over_mirrorings(forward, dimensions, mirror)


def check_installed(source: object, otherwise: str) -> None:
    """Make sure that the optional packages of this engine are there.

    Raises:
        InputError: they are not.
    """
    if not installed():
        raise InputError(
            source,
            "onnxruntime is not installed",
            "the packages onnx and onnxruntime",
            f"pip install 'penn-jax[onnx]', or {otherwise}",
        )


def installed() -> bool:
    """Whether the optional packages of this engine are there."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def to_onnx(
    variables: Mapping[str, Any],
    config: ModelConfig,
    classes: int,
    channels: int,
    dimensions: int,
) -> ModelProto:
    """The network as an ONNX model with the input ``image`` (B, C, *spatial).

    Batch normalisation is folded into the weights.

    Args:
        variables: of the JAX network: ``params`` and, with batch norm, ``batch_stats``.
        config: of the network.
        classes: K.
        channels: of the network's input, neighbouring slices included.
        dimensions: spatial axes.

    Returns:
        The model; its outputs are ``logits`` and ``probabilities``, (B, K, *spatial).
    """
    import onnx

    graph = _Graph(dimensions)
    params = fold(variables, config)[0]["params"]

    def resized(x: str, kind: str, name: str, stride: int) -> str:
        norm = params[name.replace("_", "_norm_")]
        return graph.rectified(graph.layer(x, kind, params[name]["kernel"], norm, stride))

    def stage(x: str, name: str) -> str:
        first = None
        for block in range(config.blocks):
            kernel, norm = params[name][f"conv_{block}"]["kernel"], params[name][f"norm_{block}"]
            x = graph.layer(x, "Conv", kernel, norm, 1)
            if config.residual and first is not None and block == config.blocks - 1:
                x = graph.node("Add", x, first)
            x = graph.rectified(x)
            first = first or x
        return x

    x, skips = "image", []
    for grid in range(len(config.channels)):
        factor = config.stem if grid == 0 else 2
        if factor > 1:
            x = resized(x, "Conv", f"reduce_{grid}", factor)
        x = stage(x, f"conv_{grid}")
        skips.append(x)
    for grid in range(len(config.channels) - 2, -1, -1):
        x = resized(x, "ConvTranspose", f"expand_{grid + 1}", 2)
        if config.skip == "concat":
            x = graph.node("Concat", x, skips[grid], axis=1)
        elif config.skip == "add":
            x = graph.node("Add", x, skips[grid])
        x = stage(x, f"deconv_{grid}")
    head = params["head_0"]
    x = graph.layer(x, "ConvTranspose", head["kernel"], head, config.stem)
    graph.node("Identity", x, output="logits")
    graph.softmax("logits", "probabilities")

    sizes = [f"size_{axis}" for axis in range(dimensions)]
    real = onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "penn_jax",
            [value("image", real, ["batch", channels, *sizes])],
            [value(name, real, ["batch", classes, *sizes]) for name in ("logits", "probabilities")],
            graph.weights,
        ),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="penn_jax",
    )
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Nodes and weights, in the order in which they were added."""

    def __init__(self, dimensions: int):
        self.dimensions = dimensions
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def weight(self, array: Any, dtype: type[np.generic] = np.float32) -> str:
        from onnx import numpy_helper

        name = f"weight_{len(self.weights)}"
        array = np.ascontiguousarray(array, dtype)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def layer(
        self,
        x: str,
        kind: str,
        kernel: Float32[Any, "*window I O"],
        norm: Mapping[str, Any],
        stride: int,
    ) -> str:
        """``Conv`` or ``ConvTranspose`` and its bias or group normalisation.

        A kernel as wide as its stride is not padded; one three wide, with stride 1, keeps the size.
        """
        kernel = np.asarray(kernel)
        window = kernel.shape[:-2]
        # From (*window, I, O) to (O, I, *window), or (I, O, *window) of a deconvolution.
        weights = [np.moveaxis(kernel, (-1, -2) if kind == "Conv" else (-2, -1), (0, 1))]
        if "bias" in norm:
            weights.append(norm["bias"])
        x = self.node(
            kind,
            x,
            *map(self.weight, weights),
            kernel_shape=window,
            strides=[stride] * self.dimensions,
            pads=[(window[0] - stride) // 2] * (2 * self.dimensions),
        )
        if "group" not in norm:
            return x
        features = kernel.shape[-1]
        return self.node(
            "GroupNormalization",
            x,
            *(self.weight(norm["group"][name]) for name in ("scale", "bias")),
            num_groups=math.gcd(features, max(1, features // GROUP_CHANNELS)),
            epsilon=NORM_EPSILON,
        )

    def softmax(self, x: str, output: str) -> None:
        """Over the channels: ``exp(x - max x) / Σ exp(x - max x)``.

        ONNX Runtime's own Softmax transposes channels to the end and back, which made up a seventh
        to a third of a whole evaluation.
        """
        channels = self.weight(np.array([1]), np.int64)
        shifted = self.node("Sub", x, self.node("ReduceMax", x, channels))
        powers = self.node("Exp", shifted)
        self.node("Div", powers, self.node("ReduceSum", powers, channels), output=output)

    def rectified(self, x: str) -> str:
        return self.node("LeakyRelu", x, alpha=_SLOPE)
