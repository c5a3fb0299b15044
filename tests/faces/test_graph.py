"""Graphs of operations: each operation by its definition, folding, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from faces import toy
from holdfast.core.errors import ModelError
from holdfast.faces.graph import Graph, fold

Op = dict[str, Any]


def op(kind: str, name: str, *inputs: str, **more: Any) -> Op:
    if kind == "conv":
        more = {"stride": [1, 1], "pad": [0, 0], "groups": 1} | more
    return {"op": kind, "name": name, "inp": list(inputs), **more}


def graph(ops: list[Op], output: str = "", source: str = "x") -> dict[str, Any]:
    return {"input": source, "output": output or ops[-1]["name"], "ops": ops}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=toy.generator(seed))


def simple(one: Op, x: list[Tensor], constant: Any) -> Tensor:
    """Operations without weights."""
    a, value = x[0], one.get("v")
    if one["op"] in ("max", "min"):
        limit = torch.full_like(a, float(one["v"]))
        return torch.where((a < limit) == (one["op"] == "max"), limit, a)
    made: dict[str, Callable[[], Tensor]] = {
        "addc": lambda: a + constant, "mulc": lambda: a * constant, "adds": lambda: a + value, "muls": lambda: a * value,
        "add": lambda: a + x[1], "mul": lambda: a * x[1], "relu": lambda: torch.where(a < 0, torch.zeros_like(a), a),
        "sigmoid": lambda: 1 / (1 + torch.exp(-a)), "flatten": lambda: a.reshape(len(a), -1),
    }  # fmt: skip
    return made[one["op"]]()


def by_definition(about: Mapping[str, Any], tensors: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """The graph unfolded: each operation as the converters' frameworks define it, nothing shared with the module."""
    values = {about["input"]: pixels}
    for one in about["ops"]:
        x = [values[name] for name in one["inp"]]
        c = {part: tensors.get(f"{one['name']}.{part}") for part in "wbstca"}
        kind, a = one["op"], x[0]
        channel = [1, -1, *[1] * (a.ndim - 2)]
        if kind == "conv":
            assert c["w"] is not None
            padded = functional.pad(a, (one["pad"][1],) * 2 + (one["pad"][0],) * 2)
            kernel = list(c["w"].shape[-2:])
            columns = functional.unfold(padded, kernel, stride=one["stride"])
            n, groups = len(a), one["groups"]
            size = [(padded.shape[2 + i] - kernel[i]) // one["stride"][i] + 1 for i in (0, 1)]
            parts = columns.view(n, groups, -1, columns.shape[-1])
            weight = c["w"].reshape(groups, len(c["w"]) // groups, -1)
            made = torch.einsum("goi,ngil->ngol", weight, parts).reshape(n, -1, *size)
            found = made if c["b"] is None else made + c["b"].view(1, -1, 1, 1)
        elif kind == "fc":
            assert c["w"] is not None
            found = a.reshape(len(a), -1) @ c["w"].T + (0 if c["b"] is None else c["b"])
        elif kind == "affine":
            assert c["s"] is not None
            assert c["t"] is not None
            found = a * c["s"].reshape(channel) + c["t"].reshape(channel)
        elif kind == "prelu":
            assert c["a"] is not None
            found = torch.where(a >= 0, a, a * c["a"].reshape(channel))
        elif kind == "avgpool":
            (k, m), (s, t) = one["k"], one["stride"]
            found = a.unfold(2, k, s).unfold(3, m, t).mean((-1, -2))
        else:
            found = simple(one, x, c["c"])
        values[one["name"]] = found
    return values[about["output"]].flatten(1)


X = rand(2, 6, 9, 8)
ONE: dict[str, tuple[Op, dict[str, Tensor]]] = {
    "conv": (op("conv", "y", "x", stride=[2, 1], pad=[1, 0], groups=2), {"y.w": rand(4, 3, 3, 2)}),
    "conv with bias": (op("conv", "y", "x", bias=True), {"y.w": rand(5, 6, 1, 1), "y.b": rand(5, seed=1)}),
    "depthwise": (op("conv", "y", "x", groups=6, pad=[1, 1]), {"y.w": rand(6, 1, 3, 3)}),
    "fc": (op("fc", "y", "x"), {"y.w": rand(7, 6 * 72)}),
    "fc with bias": (op("fc", "y", "x"), {"y.w": rand(7, 6 * 72), "y.b": rand(7, seed=1)}),
    "affine": (op("affine", "y", "x"), {"y.s": rand(6), "y.t": rand(6, seed=1)}),
    "addc": (op("addc", "y", "x"), {"y.c": rand(1, 6, 1, 1)}),
    "mulc": (op("mulc", "y", "x"), {"y.c": rand(1, 6, 1, 1)}),
    "adds": (op("adds", "y", "x", v=-0.7), {}),
    "muls": (op("muls", "y", "x", v=-0.7), {}),
    "add": (op("add", "y", "x", "x"), {}),
    "mul": (op("mul", "y", "x", "x"), {}),
    "max": (op("max", "y", "x", v=0.3), {}),
    "min": (op("min", "y", "x", v=0.3), {}),
    "prelu": (op("prelu", "y", "x"), {"y.a": rand(6).abs()}),
    "prelu of one": (op("prelu", "y", "x"), {"y.a": torch.tensor([0.2])}),
    "relu": (op("relu", "y", "x"), {}),
    "sigmoid": (op("sigmoid", "y", "x"), {}),
    "avgpool": (op("avgpool", "y", "x", k=[3, 2], stride=[2, 2]), {}),
    "flatten": (op("flatten", "y", "x"), {}),
}


@pytest.mark.parametrize("name", ONE)
def test_each_operation_is_what_its_name_says(name: str) -> None:
    one, tensors = ONE[name]
    about = graph([one])
    found = Graph(about, tensors)(X)
    torch.testing.assert_close(found, by_definition(about, tensors, X), atol=1e-5, rtol=1e-5)
    assert found.shape[0] == 2
    assert float((found - functional.pad(X.flatten(1), (0, found.shape[1] - 432))).abs().max()) > 0 or name == "flatten"


def test_a_convolution_of_one_pixel_is_a_product() -> None:
    x = rand(2, 6, 1, 1)
    for groups, tensors in ((1, {"y.w": rand(5, 6, 1, 1), "y.b": rand(5)}), (3, {"y.w": rand(3, 2, 1, 1)})):
        about = graph([op("conv", "y", "x", groups=groups)])
        torch.testing.assert_close(Graph(about, tensors)(x), by_definition(about, tensors, x), atol=1e-6, rtol=1e-5)


CHAIN = [
    op("conv", "c1", "x", pad=[1, 1]), op("affine", "a1", "c1"), op("addc", "d1", "a1"), op("relu", "r1", "d1"),
    op("conv", "c2", "r1", bias=True), op("addc", "d2", "c2"), op("add", "s", "d2", "r1"),
    op("fc", "f", "s"), op("affine", "a2", "f"),
]  # fmt: skip
WEIGHTS = {
    "c1.w": rand(4, 6, 3, 3) / 4, "a1.s": rand(4, seed=1), "a1.t": rand(4, seed=2), "d1.c": rand(1, 4, 1, 1, seed=3),
    "c2.w": rand(4, 4, 1, 1, seed=4), "c2.b": rand(4, seed=5), "d2.c": rand(1, 4, 1, 1, seed=6),
    "f.w": rand(3, 4 * 72, seed=7) / 10, "a2.s": rand(3, seed=8), "a2.t": rand(3, seed=9),
}  # fmt: skip


def test_folding_shortens_the_list_and_not_the_answer() -> None:
    about = graph(CHAIN)
    made = Graph(about, WEIGHTS)
    assert [one["name"] for one in made.ops] == ["c1", "r1", "c2", "s", "f"]
    torch.testing.assert_close(made(X), by_definition(about, WEIGHTS, X), atol=1e-5, rtol=1e-5)
    assert about == graph(CHAIN)  # what was given is as it was
    torch.testing.assert_close(made(X), made(X), atol=0, rtol=0)


@pytest.mark.parametrize(
    "ops",
    [
        [op("conv", "c", "x"), op("affine", "a", "c"), op("add", "y", "a", "c")],  # c is read twice
        [op("relu", "c", "x"), op("affine", "a", "c"), op("relu", "y", "a")],  # nothing to fold into
        [op("affine", "a", "x"), op("conv", "c", "a"), op("relu", "y", "c")],  # the other way round
    ],
)
def test_what_others_read_is_not_folded(ops: list[Op]) -> None:
    about = graph(ops)
    tensors = {"c.w": rand(6, 6, 1, 1), "a.s": rand(6, seed=1), "a.t": rand(6, seed=2)}
    made = Graph(about, tensors)
    assert len(made.ops) == 3
    torch.testing.assert_close(made(X), by_definition(about, tensors, X), atol=1e-5, rtol=1e-5)


def test_the_output_is_kept_though_others_read_it() -> None:
    about = graph([op("conv", "c", "x"), op("affine", "a", "c"), op("relu", "r", "a")], output="c")
    tensors = {"c.w": rand(6, 6, 1, 1), "a.s": rand(6, seed=1), "a.t": rand(6, seed=2)}
    torch.testing.assert_close(Graph(about, tensors)(X), by_definition(about, tensors, X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("constant", [rand(1, 1, 9, 8), rand(1, 6, 9, 8), rand(8), rand(1), rand(1, 6, 1, 1)])
def test_a_constant_for_each_place_stays_one(constant: Tensor) -> None:
    about = graph([op("conv", "c", "x"), op("addc", "a", "c")])
    tensors = {"c.w": rand(6, 6, 1, 1), "a.c": constant}
    made = Graph(about, tensors)
    assert len(made.ops) == (1 if constant.shape in ((1,), (1, 6, 1, 1)) else 2)
    torch.testing.assert_close(made(X), by_definition(about, tensors, X), atol=1e-5, rtol=1e-5)


def test_weights_without_a_bias_get_one_by_folding() -> None:
    tensors = {"c.w": rand(2, 3, 1, 1), "a.s": torch.tensor([2.0, 3.0]), "a.t": torch.tensor([5.0, -1.0])}
    kept, result = fold([op("conv", "c", "x"), op("affine", "a", "c")], tensors, "a")
    assert result == "c"
    assert len(kept) == 1
    torch.testing.assert_close(tensors["c.w"], rand(2, 3, 1, 1) * torch.tensor([2.0, 3.0]).view(2, 1, 1, 1))
    assert tensors["c.b"].tolist() == [5.0, -1.0]


def broken(change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    about, tensors = json.loads(json.dumps(graph(CHAIN))), dict(WEIGHTS)
    change(about, tensors)
    return about, tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, t: g["ops"][3].update(op="exec"), "'exec' that is not known"),
        (lambda g, t: t.pop("c1.w"), "'c1' needs 'c1.w'"),
        (lambda g, t: t.pop("a1.t"), "'a1' needs 'a1.t'"),
        (lambda g, t: t.pop("c2.b"), "'c2' needs 'c2.b'"),
        (lambda g, t: g["ops"][3].update(inp=["nobody"]), "'r1' needs 'nobody'"),
        (lambda g, t: g["ops"].insert(0, g["ops"].pop(3)), "'r1' needs 'd1'"),
        (lambda g, t: g.update(output="nothing"), "never makes its output 'nothing'"),
    ],
)
def test_a_graph_that_lacks_something_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        Graph(*broken(change))
    assert caught.value.hint


def test_slopes_reach_the_pixels() -> None:
    made = Graph(graph(CHAIN), WEIGHTS).double()
    x = X.double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda pixels: made(pixels[:1]), (x,), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["ov_reid_0095", "mobileface_v2", "mobileface_v3"])
def test_converted_recognisers_fold_to_the_same_vectors(shared: Path, name: str) -> None:
    folder = shared / "faces" / f"embedder_{name}"
    about = json.loads((folder / "graph.json").read_text("utf-8"))
    with np.load(folder / "weights.npz") as stored:
        tensors = {key: torch.from_numpy(stored[key]).float() for key in stored.files}
    side = about["pre"]["size"][0]
    pixels = functional.interpolate(toy.drawn_crops(3, 1), (side, side), mode="bilinear")
    made = Graph(about, tensors)
    assert len(made.ops) < len(about["ops"])
    found, expected = (
        functional.normalize(one, dim=1) for one in (made(pixels), by_definition(about, tensors, pixels))
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
