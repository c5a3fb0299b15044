"""What every combining method has to keep; a method is tested by being in the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.conftest import voters
from holdfast.core.errors import DataError
from holdfast.core.files import read_json, write_json
from holdfast.ensemble.combine import COMBINERS
from holdfast.ensemble.combine.base import Combiner, fit, is_right, load_fitted
from holdfast.ensemble.outputs import Outputs
from holdfast.ensemble.table import Layout, Row, outputs_of

NAMES = list(COMBINERS)
SYMMETRIC = [name for name in NAMES if name != "topla-weighted"]  # the paper's network learns letters


@pytest.fixture(scope="module")
def choices() -> Outputs:
    return voters(300, [0.3, 0.5, 0.55, 0.7], subjects=3)


@pytest.fixture(scope="module")
def numbers() -> Outputs:
    generator = np.random.default_rng(1)
    rows = []
    for item in range(200):
        gold = int(generator.integers(100))
        given = {
            f"m{k}": [str(gold if generator.random() < 0.4 + k / 10 else int(generator.integers(100)))]
            for k in range(4)
        }
        rows.append(Row(str(item), (str(gold),), answers=given))  # type: ignore[arg-type]
    return outputs_of(rows, Layout(kind="number"))


def method(name: str) -> Combiner:
    cls = COMBINERS.load(name)
    made: Combiner = cls(epochs=100) if name == "topla-weighted" else cls()
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["choices", "numbers"])
def test_answers_and_probabilities(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    outputs: Outputs = request.getfixturevalue(kind)
    trial = fit(method(name), outputs, 0)
    chosen, stated = trial.fitted.answers(outputs), trial.fitted.probabilities(outputs)
    assert is_right(chosen, outputs).mean() > outputs.accuracy.mean()
    if kind == "choices":
        np.testing.assert_allclose(stated.sum(axis=1), 1, atol=1e-9)
    else:
        assert (stated.sum(axis=1) < 1).all(), "all may be wrong"
        np.testing.assert_allclose(stated.max(axis=1).mean(), is_right(chosen, outputs).mean(), atol=0.1)
    assert (stated[~outputs.valid] < 1e-12).all()
    rows = chosen >= 0
    assert outputs.valid[np.flatnonzero(rows), chosen[rows]].all()
    assert 0 < trial.fitted.temperature < 60
    assert trial.accuracy == pytest.approx(is_right(chosen, outputs).mean(), abs=0.12)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_gives_equal_answers(name: str, choices: Outputs, tmp_path: Path) -> None:
    fitted = fit(method(name), choices, 0, folds=0).fitted
    fitted.save(tmp_path)
    loaded = load_fitted(tmp_path)
    np.testing.assert_array_equal(loaded.probabilities(choices), fitted.probabilities(choices))
    np.testing.assert_array_equal(loaded.answers(choices), fitted.answers(choices))
    assert loaded.method == fitted.method
    card = read_json(tmp_path / "combiner.json")
    write_json(tmp_path / "combiner.json", card | {"version": 99})
    with pytest.raises(DataError, match="version 99"):
        load_fitted(tmp_path)
    (tmp_path / "combiner.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="no combiner can be read"):
        load_fitted(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_repeats(name: str, choices: Outputs) -> None:
    one, two = (fit(method(name), choices, 3).fitted for _ in range(2))
    np.testing.assert_array_equal(one.probabilities(choices), two.probabilities(choices))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_models_changes_nothing(name: str, choices: Outputs) -> None:
    if name == "topla-weighted":
        fitted = fit(
            method(name), choices, 0, folds=0
        ).fitted  # starts from random weights: only the reading is checked
        np.testing.assert_array_equal(fitted.answers(choices.of([2, 0, 3, 1])), fitted.answers(choices))
        return
    plain = fit(method(name), choices, 0, folds=0).fitted
    moved = fit(method(name), choices.of([2, 0, 3, 1]), 0, folds=0).fitted
    np.testing.assert_allclose(moved.probabilities(choices), plain.probabilities(choices), atol=1e-4)
    np.testing.assert_array_equal(plain.answers(choices.of([2, 0, 3, 1])), plain.answers(choices))


@pytest.mark.parametrize("name", SYMMETRIC)
def test_options_that_change_places_change_nothing_else(name: str, choices: Outputs) -> None:
    order = np.array([2, 0, 3, 1])
    moved = replace(
        choices, belief=choices.belief[:, :, order], correct=choices.correct[:, order], valid=choices.valid[:, order]
    )
    plain, other = (fit(method(name), table, 0, folds=0).fitted for table in (choices, moved))
    np.testing.assert_allclose(other.probabilities(moved), plain.probabilities(choices)[:, order], atol=1e-4)
    np.testing.assert_array_equal(order[other.answers(moved)], plain.answers(choices))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_model_and_nobody(name: str, choices: Outputs) -> None:
    fitted = fit(method(name), choices, 0, folds=0).fitted
    for gone in (["m3"], ["m0", "m1", "m2"]):
        part = choices.without(gone)
        chosen = fitted.answers(part)
        assert (chosen >= 0).all()
        assert is_right(chosen, part).mean() > 0.4
        assert np.isfinite(fitted.probabilities(part)).all()
    assert (fitted.answers(choices.without(list(choices.models))) == -1).all()
    with pytest.raises(DataError, match="no answers of 'm3'"):
        fitted.answers(choices.of([0, 1, 2]))


@pytest.mark.parametrize("name", NAMES)
def test_one_model_and_identical_models(name: str, choices: Outputs) -> None:
    alone = choices.of([3])
    np.testing.assert_array_equal(fit(method(name), alone, 0, folds=0).fitted.answers(alone), alone.codes[:, 0])
    same = replace(choices.of([3, 3, 3]), models=("a", "b", "c"))
    found = fit(method(name), same, 0, folds=0).fitted.answers(same)
    assert (found == same.codes[:, 0]).mean() > 0.97


@pytest.mark.parametrize("name", [name for name in NAMES if name != "topla-weighted"])
def test_a_subject_or_option_that_training_did_not_have(name: str, choices: Outputs) -> None:
    fitted = fit(method(name), choices, 0, folds=0).fitted
    new = replace(choices, groups=("other", "s1", "s2"))
    wide = replace(
        new,
        belief=np.pad(new.belief, ((0, 0), (0, 0), (0, 2))),
        correct=np.pad(new.correct, ((0, 0), (0, 2))),
        valid=np.pad(new.valid, ((0, 0), (0, 2))),
    )
    assert is_right(fitted.answers(wide), wide).mean() > 0.5
