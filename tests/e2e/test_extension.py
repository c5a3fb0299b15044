"""A new defence: one module of its own, found through an entry point, and no line of Holdfast changed."""

from __future__ import annotations

import json
from pathlib import Path

from experiments import MODEL, holdfast, recipe_file

MODULE = '''
"""Scaled SFT: the gradient of SFT times a factor. A dummy that shows what a defence takes."""

from dataclasses import dataclass

from holdfast.core.knobs import knob
from holdfast.finetune.method import StepObject, TrainingMethod


class ScaledStep(StepObject):
    def __init__(self, factor):
        self.factor = factor
        self.calls = 0

    def __call__(self, passes):
        loss = passes.backward(passes.draw("safety"))
        for parameter in passes.parameters:
            parameter.grad.mul_(self.factor)
        self.calls += 1
        passes.log(calls=self.calls)
        return loss

    def state(self):
        return {"calls": self.calls}

    def restore(self, state):
        self.calls = state["calls"]


@dataclass(frozen=True)
class Scaled(TrainingMethod):
    """Multiply the gradient by a factor."""

    factor: float = knob(2.0, "what the gradient is multiplied by", low=0)

    name = "scaled"
    stage = "align"
    needs = ("safety",)
    off = {"factor": 1.0}
    title = "Scaled"
    paper = "none: an example"

    def start(self, passes):
        return ScaledStep(self.factor)
'''


def package(folder: Path) -> Path:
    """What an installer would leave on the path: one module, and who provides it."""
    info = folder / "acme_defence-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "acme_defence.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-defence\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[holdfast.alignment]\nscaled = acme_defence:Scaled\n")
    return folder


SHORT = ("--model", MODEL, "--safety", "sandbox/align-0", "--steps", "4", "--batch-size", "4", "--max-length", "64",
         "--learning-rate", "1e-3", "--clip", "0", "--adapter.train", "body", "--device", "cpu", "--json")  # fmt: skip


def test_a_defence_of_a_third_party_is_used_like_ours(tmp_path: Path) -> None:
    at = str(package(tmp_path / "site"))
    listed = holdfast("list", "methods", "--json", cwd=tmp_path, PYTHONPATH=at)
    row = next(row for row in json.loads(listed.stdout)["methods"] if row["name"] == "scaled")
    assert (row["stage"], row["summary"], row["title"]) == ("align", "from acme-defence", "Scaled")
    assert row["knobs"]["factor"]["default"] == 2.0

    made = holdfast("align", "scaled", *SHORT, "--factor", "3", cwd=tmp_path, PYTHONPATH=at)
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert result["measured"] == {"calls": 4.0}
    card = json.loads((tmp_path / result["run"] / "artifacts" / "model" / "holdfast.json").read_text())
    assert card["method"] == {"name": "scaled", "version": 1, "knobs": {"factor": 3.0}}

    # Without its package a run stays readable, and the method is unknown by name.
    assert holdfast("show", result["key"], cwd=tmp_path).returncode == 0
    gone = holdfast("align", "scaled", *SHORT, cwd=tmp_path)
    assert gone.returncode == 2
    assert "Traceback" not in gone.stderr


def test_a_third_party_in_a_recipe(tmp_path: Path) -> None:
    at = str(package(tmp_path / "site"))
    more = '\n[[defence]]\ntitle = "Scaled"\nalign = { method = "scaled", factor = 1.5 }\n'
    recipe_file(tmp_path, more, p="[0.0]")
    planned = holdfast("bench", "small.toml", "--dry-run", "--json", cwd=tmp_path, PYTHONPATH=at)
    assert planned.returncode == 0, planned.stderr
    # SFT and Scaled: 2 align, 2 finetune, 2 answers each.
    assert json.loads(planned.stdout)["stages"] == {"align": 2, "finetune": 2, "ask": 4}
    (tmp_path / "small.toml").write_text((tmp_path / "small.toml").read_text().replace("factor", "fctor"))
    mistaken = holdfast("bench", "small.toml", "--dry-run", cwd=tmp_path, PYTHONPATH=at)
    assert mistaken.returncode == 2
    assert "did you mean 'factor'?" in mistaken.stderr


def test_at_its_off_value_it_is_sft_and_its_state_is_kept(tmp_path: Path, monkeypatch: object) -> None:
    """What the contract of tables asks of every method, asked of one that came from outside."""
    import sys

    import tiny

    sys.path.insert(0, str(package(tmp_path / "site")))
    try:
        from holdfast.core.methods import Table
        from holdfast.finetune.alignment.sft import SFT

        scaled = Table("alignment-stage method", "holdfast.alignment", {}).load("scaled")
        plain, off, on = tiny.llama(), tiny.llama(), tiny.llama()
        tiny.fit(plain, SFT(), tmp_path / "sft")
        tiny.fit(off, scaled(**scaled.off), tmp_path / "off")
        tiny.fit(on, scaled(), tmp_path / "on", clip=0.0, weight_decay=0.0)
        assert tiny.same(tiny.weights(plain), tiny.weights(off))
        assert not tiny.same(tiny.weights(plain), tiny.weights(on))
    finally:
        sys.path.remove(str(tmp_path / "site"))
        sys.modules.pop("acme_defence", None)
