"""Outputs from every form they come in, and what is said of wrong ones."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from holdfast.core.errors import DataError, UsageError
from holdfast.core.events import StageStarted
from holdfast.core.files import RowFile
from holdfast.core.records import Item, Sample
from holdfast.core.runs import Store
from holdfast.ensemble import answers as read
from holdfast.ensemble.table import Layout, Row, outputs_of, read_outputs


def made(folder: Path, text: str, name: str = "t.csv", **layout: object) -> object:
    (folder / name).write_text(text)
    return read_outputs([folder / name], Layout(**layout))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("B.", 1), ("The answer is (B).", 1), ("A or B? The answer is A, not B", 0),
        ("I think A. No: answer: C", 2), ("because D", 3), ("Cats", None), ("", None), ("E", None), ("I'm sure: **D**", 3),
    ],
)  # fmt: skip
def test_letters(text: str, wanted: int | None) -> None:
    assert read.label_in(text, {"a": 0, "b": 1, "c": 2, "d": 3}) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1,200", "1200"), ("7-3", "3"), ("it is -3", "-3"), ("$1,000.50 in all", "1000.50"), ("so 5 and 7", "7"),
        ("12 #### 18", "18"), ("The final answer is: 5 (not 6)", "5"), ("none", None), ("x = .5", "0.5"), ("12,34", "34"),
    ],
)  # fmt: skip
def test_numbers(text: str, wanted: str | None) -> None:
    assert read.number(text) == (None if wanted is None else Decimal(wanted))


def test_numbers_within_a_millionth_are_one() -> None:
    assert read.same_number(Decimal("3"), Decimal("3.0000001"))
    assert not read.same_number(Decimal("3"), Decimal("3.001"))
    assert read.same_number(Decimal("1000000"), Decimal("1000000.5"))
    assert not read.same_number(Decimal("0"), Decimal("0.001"))


def test_texts() -> None:
    assert read.normal("The  Cat's, (big) hat!") == "cats big hat"
    assert read.token_f1("the red cat", "a red dog") == 0.5
    assert read.exact("The Beatles.", ["beatles"])
    assert read.best_f1("x", ["y", "x z"]) == pytest.approx(2 / 3)


def test_a_wide_table(tmp_path: Path) -> None:
    found = made(tmp_path, "item,subject,n_options,gold,m1,m2\n1,s,3,A,A,B\n2,t,2,B,,The answer is B\n")
    assert found.kind == "choice"
    assert found.models == ("m1", "m2")
    assert found.codes.tolist() == [[0, 1], [-1, 1]]
    assert found.right.tolist() == [[True, False], [False, True]]
    assert found.valid.sum(axis=1).tolist() == [3, 2]
    assert found.groups == ("s", "t")
    assert found.asked.all()


def test_the_same_in_every_form(tmp_path: Path) -> None:
    wide = made(tmp_path, "item,gold,n_options,m1,m2\n1,A,3,A,B\n2,B,3,C,B\n")
    long = "item,model,answer,gold,n_options\n1,m1,A,A,3\n1,m2,B,A,3\n2,m1,C,B,3\n2,m2,B,B,3\n"
    rows = [
        {"item": 1, "gold": "A", "n_options": 3, "answers": {"m1": "A", "m2": "B"}},
        {"item": 2, "gold": "B", "n_options": 3, "answers": {"m1": "C", "m2": "B"}},
    ]
    pl.read_csv(tmp_path / "t.csv").write_parquet(tmp_path / "t.parquet")
    forms = [
        made(tmp_path, long, "long.csv"),
        made(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "nested.jsonl"),
        made(tmp_path, long.replace(",", "\t"), "long.tsv"),
        read_outputs([tmp_path / "t.parquet"]),
    ]
    for other in forms:
        np.testing.assert_array_equal(other.codes, wide.codes)
        np.testing.assert_array_equal(other.correct, wide.correct)
        assert other.models == wide.models


def test_missing_is_not_abstaining(tmp_path: Path) -> None:
    rows = [
        {"item": 1, "gold": "A", "options": ["x", "y"], "answers": {"a": "A", "b": None}},
        {"item": 2, "gold": "B", "options": ["x", "y"], "answers": {"a": "B"}},
    ]
    found = made(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "n.jsonl")
    assert found.asked.tolist() == [[True, True], [True, False]]
    assert any("b was not asked 1 of 2 items" in note for note in found.notes)


def test_probabilities_samples_and_costs(tmp_path: Path) -> None:
    rows = [
        {"item": 1, "gold": "A", "options": ["x", "y"], "answers": {"a": ["A", "B", "A"], "b": "B"}, "cost": {"a": 0.5, "b": 0.1}},
        {"item": 2, "gold": "B", "options": ["x", "y"], "answers": {"a": ["B"], "b": "A"}, "probs": {"b": {"A": 0.4, "B": 0.6}}, "cost": {"a": 0.1, "b": 0.1}},
    ]  # fmt: skip
    found = made(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "n.jsonl")
    np.testing.assert_allclose(found.belief[0, 0], [2 / 3, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(found.belief[1, 1], [0.4, 0.6], atol=1e-6)
    assert found.codes[1, 1] == 1, "the probabilities, not the letter"
    assert found.probabilities
    assert found.samples.tolist() == [3, 1]
    np.testing.assert_allclose(found.cost, [0.3, 0.1])


def test_open_answers_are_grouped(tmp_path: Path) -> None:
    found = made(tmp_path, 'item,gold,a,b,c,d\n1,18,18,18.0,it is 18,\n2,7,8,"1,007",7,none\n', kind="number")
    assert found.codes[0].tolist() == [0, 0, 0, -1]
    assert found.right.tolist() == [[True, True, True, False], [False, False, True, False]]
    assert found.candidates[1] == ("8", "1007", "7")
    short = made(
        tmp_path,
        json.dumps(
            {
                "item": 1,
                "references": ["December 1972", "Dec 72"],
                "answers": {"a": "december 1972", "b": "the December 1972.", "c": "1972"},
            }
        )
        + "\n",
        "s.jsonl",
        kind="short",
    )
    assert short.codes.tolist() == [[0, 0, 1]]
    assert short.correct[0, :2].tolist() == [True, False]
    assert short.score[0].tolist() == pytest.approx([1, 1, 2 / 3])


def test_runs_of_several_models(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folders = []
    for place, (model, answers) in enumerate({"org/one": ["B", "C"], "org/two": ["B", "D"]}.items()):
        run = store.run("ask", "ask", {"place": place})
        with run.working() as log:
            log(StageStarted(stage="ask", label=model))
            with RowFile(run.path / "samples.jsonl") as rows:
                items = [Item(f"q{k}", "?", reference="BD"[k]) for k in range(2)]
                rows.append([Sample(one, text, 1, "stop").as_json() for one, text in zip(items, answers, strict=True)])
            run.seal(0.0)
        folders.append(run.path)
    found = read_outputs(folders, Layout(kind="choice"))
    assert found.models == ("org/one", "org/two")
    assert found.right.tolist() == [[True, True], [False, True]]
    with pytest.raises(UsageError, match="is given twice"):
        read_outputs([folders[0], folders[0]])


def test_long_answers_fail_below_the_threshold(tmp_path: Path) -> None:
    row = {"item": 1, "gold": "a b c d", "answers": {"a": "a b c x", "b": "z"}, "scores": {"b": 0.9}}
    found = made(tmp_path, json.dumps(row) + "\n", "l.jsonl", kind="long", threshold=0.8)
    assert found.score[0].tolist() == pytest.approx(
        [6 / 8 if False else 2 * 2 / 6 if False else found.score[0, 0], 0.9]
    )
    assert found.right.tolist() == [[False, True]]


def test_ratings_make_judges_models(tmp_path: Path) -> None:
    text = "item,rater,kind,label\n1,e1,human,1\n1,e2,human,1\n1,j,judge,1\n2,e1,human,0\n2,e2,human,1\n2,j,judge,0\n3,e1,human,0\n3,j,judge,\n"
    found = made(tmp_path, text)
    assert found.models == ("j",)
    assert found.known.tolist() == [True, False, True], "people who are split settle nothing"
    assert found.right[:, 0].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("text", "layout", "told"),
    [
        ("item,gold,a\n1,A,A\n1,B,A\n", {}, "item '1' stands there 2 times"),
        ("item,gold,n_options,a\n1,E,3,A\n", {}, "the right answer 'E' is none of its options"),
        ("item,gold,n_options,a\n1,A,x,A\n", {}, "n_options = 'x' is no number"),
        ("item,gold,a\n1,A,A\n", {"models": ("b",)}, "no column 'b'"),
        ("item,gold,a\n1,A,A\n", {"columns": {"gold": "answr"}}, "no column 'answr'"),
        ("item,gold,a\n,A,A\n", {}, "row 1 has no item"),
        ("item,model,answer,gold\n1,a,A,A\n1,a,B,A\n", {}, "answers item '1' twice"),
        ("item,model,answer,gold\n1,a,A,A\n1,b,B,B\n", {}, "two right answers"),
        ("item,rater,kind,label\n1,j,judge,1\n", {}, "no person among the raters"),
        ("item,gold\n1,A\n", {}, "no model"),
        ("item,gold,a,a\n1,A,A,B\n", {}, "two columns are called 'a'"),
        ("item,a\n1,A\n", {}, "no item has a right answer"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, layout: dict[str, object], told: str) -> None:
    with pytest.raises((DataError, UsageError)) as caught:
        made(tmp_path, text, **layout)
    assert told in str(caught.value)
    assert caught.value.hint


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_outputs([tmp_path / "none.csv"])
    with pytest.raises(DataError, match="not JSON"):
        made(tmp_path, "{oops\n", "x.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        made(tmp_path, "x", "x.xlsx")
    bad = Row("1", gold=("A",), n_options=2, answers={"a": ["A"]}, probs={"a": {"A": 1.5}})
    with pytest.raises(DataError, match="no probability"):
        outputs_of([bad])


def test_the_shared_sets(shared: Path) -> None:
    folder = shared / "ensemble"
    mmlu = read_outputs([folder / "mmlu_pro" / "votes.csv"])
    assert (mmlu.n_items, mmlu.n_models, len(mmlu.groups)) == (9568, 20, 14)
    assert np.argsort(-mmlu.accuracy, kind="stable")[:3].tolist() == [0, 1, 2], "columns stand in order of accuracy"
    gsm8k = read_outputs([folder / "gsm8k" / "answers.csv"])
    assert gsm8k.kind == "number"
    known = {"re2/gpt-4o-mini-re2/cot": 0.942, "tora-70b": 0.843, "openai/6b_finetuning": 0.217}
    for name, accuracy in known.items():
        assert gsm8k.accuracy[gsm8k.models.index(name)] == pytest.approx(accuracy, abs=6e-4)
    assert gsm8k.right.any(axis=1).mean() == pytest.approx(0.993, abs=6e-4)
    nq = read_outputs([folder / "nq_open" / "predictions.jsonl"])
    for name, exact, f1 in (("R2D2", 0.524, 0.590), ("EMDR2", 0.515, 0.595), ("DPR", 0.409, 0.478)):
        place = nq.models.index(name)
        assert nq.accuracy[place] == pytest.approx(exact, abs=6e-4)
        assert nq.score[:, place].mean() == pytest.approx(f1, abs=6e-4)
