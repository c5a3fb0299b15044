"""Combining methods against closed forms and outside numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from ensemble.conftest import voters
from holdfast.ensemble.combine import topla_weighted as topla
from holdfast.ensemble.combine.base import fit, fold_of, is_right, softmax
from holdfast.ensemble.combine.caruana import Caruana
from holdfast.ensemble.combine.logit import ConditionalLogit, _Design
from holdfast.ensemble.combine.medoid import Medoid
from holdfast.ensemble.combine.topla_weighted import ToplaWeighted
from holdfast.ensemble.combine.votes import LogOddsVote, Plurality
from holdfast.ensemble.table import Layout, Row, outputs_of, read_outputs

CHANCE = np.random.default_rng(0)


def test_log_odds_by_hand() -> None:
    outputs = voters(100, [0.9, 0.2])
    weight = LogOddsVote().fit(outputs, CHANCE)["weight"]
    p = (outputs.right.sum(axis=0) + 1) / 102
    np.testing.assert_allclose(weight, np.log(p / (1 - p) * 3))


def test_plurality_ties_go_to_the_best_model() -> None:
    rows = [Row(str(k), ("A",), n_options=3, answers={"weak": ["B"], "good": ["A" if k else "C"]}) for k in range(30)]
    outputs = outputs_of(rows)
    fitted = fit(Plurality(), outputs, 0, folds=0).fitted
    np.testing.assert_array_equal(fitted.answers(outputs), outputs.codes[:, 1])


def test_the_logit_finds_the_weights_that_made_the_answers() -> None:
    """Answers drawn from the model itself: P(gold = k) = softmax of known weights of the voters."""
    generator = np.random.default_rng(2)
    true, n = np.array([2.0, 1.0, 0.0, -0.5]), 12_000
    votes = generator.integers(0, 4, (n, 4))
    ballots = votes[:, :, None] == np.arange(4)
    p = softmax(np.einsum("mnk,n->mk", ballots, true))
    gold = (p.cumsum(axis=1) > generator.random((n, 1))).argmax(axis=1)
    rows = [
        Row(str(i), ("ABCD"[gold[i]],), n_options=4, answers={f"m{k}": ["ABCD"[votes[i, k]]] for k in range(4)})
        for i in range(n)
    ]
    trial = fit(ConditionalLogit(ridge=0.01), outputs_of(rows), 0)
    np.testing.assert_allclose(trial.fitted.arrays["weight"], true, atol=0.08)
    assert trial.fitted.temperature == pytest.approx(1, abs=0.05), "a right model is calibrated"


@pytest.mark.parametrize("kind", ["choice", "number"])
def test_the_logits_gradient(kind: str) -> None:
    outputs = voters(40, [0.3, 0.6, 0.7], subjects=2)
    if kind == "number":
        rows = [
            Row(str(k), (str(k % 3),), answers={"a": [str(k % 2)], "b": [str(k % 5)]}, subject=f"s{k % 2}")
            for k in range(40)
        ]
        outputs = outputs_of(rows, Layout(kind="number"))
    method = ConditionalLogit(position_ridge=1.0)
    design = _Design(method, outputs)

    def loss(flat: np.ndarray) -> float:
        q = (softmax(design.scores(flat)) * design.target).sum(axis=1)
        return float(-np.log(q).sum())

    flat = np.random.default_rng(0).normal(0, 0.3, design.size)
    p = softmax(design.scores(flat))
    q = p * design.target
    made = design.gradient(p - q / q.sum(axis=1, keepdims=True))
    free = design.pull >= 0
    np.testing.assert_allclose(made[free], approx_fprime(flat, loss, 1e-6)[free], atol=2e-3)


def test_toplas_gradient() -> None:
    generator = np.random.default_rng(1)
    net = topla._network((6, 5, 5, 4), generator)
    x, target = generator.random((9, 6)), np.arange(4) == generator.integers(0, 4, 9)[:, None]
    valid = np.ones_like(target)
    slopes = topla._slopes(net, x, target, valid)
    for place, weights in enumerate(net):
        shape = weights.shape

        def loss(flat: np.ndarray, place: int = place, shape: tuple[int, ...] = shape) -> float:
            changed = [flat.reshape(shape) if k == place else w for k, w in enumerate(net)]
            return topla._loss(changed, x, target, valid)

        np.testing.assert_allclose(slopes[place].ravel(), approx_fprime(weights.ravel(), loss, 1e-7), atol=1e-5)


def test_toplas_probabilities_have_no_ceiling() -> None:
    """The authors' sigmoid and double softmax cap a probability at e / (e + K - 1) = .475 for four options."""
    outputs = voters(400, [0.95, 0.9, 0.9])
    trial = fit(ToplaWeighted(epochs=60), outputs, 0)
    assert trial.fitted.probabilities(outputs).max() > 0.8


def test_toplas_slots_of_open_answers() -> None:
    """Samples 5, 5, 7 and 7, 7, 7: slots by mass are 7, 5; features 1/3, 2/3 and 1, 0; gold 5 is the second slot."""
    row = Row("1", ("5",), answers={"m1": ["5", "5", "7"], "m2": ["7", "7", "7"]})
    x, place, target, valid = ToplaWeighted()._slots(outputs_of([row], Layout(kind="number")))
    np.testing.assert_allclose(x[0, :, :2], [[1 / 3, 2 / 3], [1, 0]], atol=1e-6)
    assert place[0].tolist() == [1, 0], "the candidate 5 came first, and has the second slot"
    assert target[0].tolist() == [False, True, False]
    assert valid[0].all()
    nobody = Row("1", ("0",), answers={"m1": ["5"], "m2": ["7"]})
    _, _, target, _ = ToplaWeighted()._slots(outputs_of([nobody], Layout(kind="number")))
    assert target[0].tolist() == [False, False, True], "a right answer of 0 matches no empty slot"


def test_caruana_leaves_a_harmful_model_out() -> None:
    outputs = voters(500, [0.0, 0.6, 0.6, 0.6], seed=4)
    weight = Caruana().fit(outputs, CHANCE)["weight"]
    assert weight.sum() == pytest.approx(1)
    assert weight[0] <= weight[1:].min()


def test_caruana_keeps_the_round_that_was_best_in_training() -> None:
    outputs = voters(400, [0.5, 0.5, 0.55, 0.6, 0.6], seed=8)
    found = {
        rounds: is_right(
            fit(Caruana(start=1, rounds=rounds), outputs, 0, folds=0).fitted.answers(outputs), outputs
        ).mean()
        for rounds in (1, 2, 4, 8, 30)
    }
    assert list(found.values()) == sorted(found.values()), "more rounds never lose what was found"
    assert found[30] > outputs.accuracy.max() + 0.03


def test_cross_validation_never_sees_the_item() -> None:
    """Two subjects an item would be learned by heart: out of fold the same method must not look good."""
    outputs = voters(200, [0.5, 0.5, 0.5], subjects=100)
    method = ConditionalLogit(ridge=0.01, subject_ridge=0.001)
    trial = fit(method, outputs, 4)
    seen = is_right(trial.fitted.answers(outputs), outputs).mean()
    assert seen > trial.accuracy + 0.05
    fold = fold_of(200, 5, 4)
    for k in range(5):
        part = fit(method, outputs.take(fold != k), 0, folds=0).fitted
        held = outputs.take(fold == k)
        np.testing.assert_array_equal(is_right(part.answers(held), held), trial.right[fold == k])


def test_medoid_by_hand_and_its_weights() -> None:
    texts = {"a": ["red cat sat"], "b": ["red cat ran"], "c": ["green dog"]}
    rows = [Row(str(k), ("green dog",), answers=texts) for k in range(10)]  # type: ignore[arg-type]
    outputs = outputs_of(rows, Layout(kind="short"))
    plain = Medoid(sharpness=0)
    scores = plain.scores(plain.fit(outputs, CHANCE), outputs)
    np.testing.assert_allclose(scores[0, :3], [1 + 2 / 3, 1 + 2 / 3, 1])
    weighted = fit(Medoid(), outputs, 0, folds=0).fitted
    assert weighted.answers(outputs).tolist() == [2] * 10, "the good model is a minority, and weighs more"


def test_mmlu_pro_learned_combination(shared: Path) -> None:
    """Ten peer models, one half against the other: plurality 59.2, learned 60.5 to 60.8 in the mean of five halves."""
    outputs = read_outputs([shared / "ensemble" / "mmlu_pro" / "votes.csv"]).of(range(3, 13))
    order = np.random.default_rng(0).permutation(outputs.n_items)
    train, test = outputs.take(order[:4784]), outputs.take(order[4784:])
    right = {
        method.name: is_right(fit(method, train, 0, folds=0).fitted.answers(test), test).mean()
        for method in (Plurality(), ConditionalLogit())
    }
    assert right["plurality"] == pytest.approx(0.596, abs=0.005)
    assert right["conditional-logit"] > right["plurality"] + 0.008
