"""Recognisers that came as a list of operations: a small, closed set of them, run as a torch module.

Converters of other frameworks' files (OpenVINO, MXNet, ncnn) meet in one neutral form: ``graph.json`` names the
operations in order, a table of tensors holds their constants. Nothing in it is code, so a file from a stranger can be
wrong, but cannot do anything.

    conv (weights w, bias b, stride, pad, groups)   fc (w, b)      affine (x s + t, by channel)
    addc, mulc, adds, muls (constants)              add, mul       max, min (with a number)
    prelu (a)   sigmoid   relu   avgpool (k, stride)   flatten

An ``affine`` or ``addc`` that alone reads a ``conv`` or ``fc`` is folded into it when the graph is loaded: the outputs
differ by rounding (5e-7 of a unit embedding), and a learning step is a third cheaper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.core.errors import ModelError

Op = dict[str, Any]


class Graph(nn.Module):
    """The operations of a graph, folded.

    Args:
        graph: ``{"input": name, "output": name, "ops": [...]}``.
        tensors: ``"<op name>.<constant>"`` -> tensor.

    Raises:
        ModelError: an operation is unknown, a constant or an input is missing.
    """

    def __init__(self, graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.source, self.result = str(graph["input"]), str(graph["output"])
        found = {name: value.float() for name, value in tensors.items()}
        _check(graph, found)
        self.ops, self.result = fold(graph["ops"], found, self.result)
        for op in self.ops:
            for part in _CONSTANTS.get(op["op"], ()):
                key = f"{op['name']}.{part}"
                if key in found:
                    self.register_buffer(_buffer(key), found[key], persistent=False)
        self._last_use = {name: place for place, op in enumerate(self.ops) for name in op["inp"]}
        self._last_use[self.result] = len(self.ops)

    def forward(self, pixels: Tensor) -> Tensor:
        """Output of the graph, shape (n, dimension)."""
        values = {self.source: pixels}
        for place, op in enumerate(self.ops):
            inputs = [values[name] for name in op["inp"]]
            values[op["name"]] = _RUN[op["op"]](op, inputs, self._constants(op))
            for name in op["inp"]:
                if self._last_use[name] == place:
                    values.pop(name, None)
        return values[self.result].flatten(1)

    def _constants(self, op: Op) -> dict[str, Tensor]:
        names = {part: _buffer(f"{op['name']}.{part}") for part in _CONSTANTS.get(op["op"], ())}
        return {part: getattr(self, name) for part, name in names.items() if hasattr(self, name)}


def _buffer(key: str) -> str:
    return "c_" + key.replace(".", "__")


_CONSTANTS = {
    "conv": ("w", "b"), "fc": ("w", "b"), "affine": ("s", "t"), "addc": ("c",), "mulc": ("c",), "prelu": ("a",),
}  # fmt: skip
_OPTIONAL = {"b"}


def _conv(op: Op, x: Sequence[Tensor], c: Mapping[str, Tensor]) -> Tensor:
    if x[0].shape[-2:] == (1, 1) and c["w"].shape[-2:] == (1, 1) and op["groups"] == 1:
        # On one pixel a convolution is a matrix product; torch's own path for it is twenty times slower.
        return functional.linear(x[0].flatten(1), c["w"].flatten(1), c.get("b"))[:, :, None, None]
    return functional.conv2d(x[0], c["w"], c.get("b"), stride=op["stride"], padding=op["pad"], groups=op["groups"])


def _prelu(op: Op, x: Sequence[Tensor], c: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG001
    if c["a"].numel() == 1:
        return functional.leaky_relu(x[0], float(c["a"]))  # the same function; its backward pass is ten times faster
    return functional.prelu(x[0], c["a"].flatten())


def _affine(op: Op, x: Sequence[Tensor], c: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG001
    shape = (1, -1) + (1,) * (x[0].ndim - 2)
    return x[0] * c["s"].view(shape) + c["t"].view(shape)


_RUN: dict[str, Callable[[Op, Sequence[Tensor], Mapping[str, Tensor]], Tensor]] = {
    "conv": _conv,
    "fc": lambda _, x, c: functional.linear(x[0].flatten(1), c["w"], c.get("b")),
    "affine": _affine,
    "addc": lambda _, x, c: x[0] + c["c"],
    "mulc": lambda _, x, c: x[0] * c["c"],
    "adds": lambda op, x, _: x[0] + op["v"],
    "muls": lambda op, x, _: x[0] * op["v"],
    "add": lambda _, x, __: x[0] + x[1],
    "mul": lambda _, x, __: x[0] * x[1],
    "max": lambda op, x, _: x[0].clamp(min=op["v"]),
    "min": lambda op, x, _: x[0].clamp(max=op["v"]),
    "prelu": _prelu,
    "relu": lambda _, x, __: x[0].relu(),
    "sigmoid": lambda _, x, __: x[0].sigmoid(),
    "avgpool": lambda op, x, _: functional.avg_pool2d(x[0], op["k"], op["stride"]),
    "flatten": lambda _, x, __: x[0].flatten(1),
}


def _check(graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    known = {str(graph["input"])}
    for op in graph["ops"]:
        if op["op"] not in _RUN:
            raise ModelError(
                f"the graph has an operation {op['op']!r} that is not known", hint=f"known: {', '.join(sorted(_RUN))}"
            )
        absent = [name for name in op["inp"] if name not in known]
        wanted = [f"{op['name']}.{part}" for part in _CONSTANTS.get(op["op"], ()) if part not in _OPTIONAL]
        absent += [key for key in wanted if key not in tensors]
        if op.get("bias") and f"{op['name']}.b" not in tensors:
            absent.append(f"{op['name']}.b")
        if absent:
            raise ModelError(
                f"the graph's {op['name']!r} needs {absent[0]!r}, which is not there", hint="convert it anew"
            )
        known.add(op["name"])
    if str(graph["output"]) not in known:
        raise ModelError(f"the graph never makes its output {graph['output']!r}", hint="convert it anew")


def fold(ops: Sequence[Op], tensors: dict[str, Tensor], result: str) -> tuple[list[Op], str]:
    """Operations with each ``affine`` or ``addc`` behind a ``conv`` or ``fc`` made part of that one's weights.

    Args:
        ops: in order.
        tensors: constants by ``"<op>.<part>"``; weights are replaced in place.
        result: name of the graph's output.

    Returns:
        what is left of the operations, and the name that the output has now.
    """
    readers = Counter(name for op in ops for name in op["inp"])
    readers[result] += 1  # what the graph gives away is read, too
    kept: list[Op] = []
    made: dict[str, Op] = {}
    renamed: dict[str, str] = {}
    for op in ops:
        new = {**op, "inp": [renamed.get(name, name) for name in op["inp"]]}
        before = made.get(new["inp"][0]) if new["op"] in ("affine", "addc") else None
        alone = before is not None and readers[op["inp"][0]] == 1
        if alone and before is not None and before["op"] in ("conv", "fc") and _by_channel(before, new, tensors):
            _fold_into(before, new, tensors)
            renamed[op["name"]] = before["name"]
            made[before["name"]] = before
            continue
        kept.append(new)
        made[new["name"]] = new
    return kept, renamed.get(result, result)


def _by_channel(before: Op, op: Op, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a constant is one number for each channel: one for each place cannot become a bias."""
    if op["op"] == "affine":
        return True
    constant, channels = tensors[f"{op['name']}.c"], tensors[f"{before['name']}.w"].shape[0]
    axis = constant.shape[-1:] if before["op"] == "fc" else constant.shape[-3:-2]
    return constant.numel() == 1 or (tuple(axis) == (channels,) and constant.numel() == channels)


def _fold_into(before: Op, op: Op, tensors: dict[str, Tensor]) -> None:
    key = before["name"]
    weight = tensors[f"{key}.w"]
    bias = tensors.get(f"{key}.b", torch.zeros(weight.shape[0]))
    if op["op"] == "affine":
        scale, shift = tensors[f"{op['name']}.s"].flatten(), tensors[f"{op['name']}.t"].flatten()
        weight, bias = weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias * scale + shift
    else:
        bias = bias + tensors[f"{op['name']}.c"].flatten()
    tensors[f"{key}.w"], tensors[f"{key}.b"] = weight, bias
