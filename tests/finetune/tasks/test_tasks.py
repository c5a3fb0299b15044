"""Tasks: rows as the papers make them, scores as the papers and as people would give them."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.errors import DataError
from holdfast.core.knobs import build
from holdfast.core.records import Item, Sample
from holdfast.data import sandbox
from holdfast.data.read import Source, items, read
from holdfast.data.rows import Row
from holdfast.finetune.tasks import TASKS
from holdfast.finetune.tasks.agnews import AGNews
from holdfast.finetune.tasks.exact import ExactMatch
from holdfast.finetune.tasks.gsm8k import GSM8K, Variant, number_in
from holdfast.finetune.tasks.sandbox import SandboxTask
from holdfast.finetune.tasks.sst2 import SST2
from holdfast.raters.base import Judge


def score(task: Judge, text: str, reference: str | None) -> float | None:
    (rating,) = task.rate([Sample(Item("i", "p", reference=reference), text, 1, "stop")])
    assert rating.item_id == "i"
    return rating.value


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_is_a_judge_of_correctness(name: str) -> None:
    cls = TASKS.load(name)
    task: Any = build(cls, {}, "task")
    assert callable(task.rows)
    assert task.max_new_tokens >= 1
    assert isinstance(task, Judge)
    assert task.name == name
    assert task.scale.name == "correct"
    assert task.rate([]) == []
    (rating,) = task.rate([Sample(Item("i", "p"), "x", 1, "stop")])
    assert rating.value is None
    assert rating.reason


# -- SST-2 --------------------------------------------------------------------------------------------


def test_sst2_rows() -> None:
    instruction = "Analyze the sentiment of the input, and respond only positive or negative"
    assert SST2().rows([{"sentence": "good .", "label": 1}, {"content": "bad .", "label": "0"}]) == [
        Row(instruction, "positive", input="good .", category="positive"),
        Row(instruction, "negative", input="bad .", category="negative"),
    ]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"sentence": "a", "label": -1}, "hidden"),
        ({"sentence": "a", "label": 2}, "neither 0"),
        ({"sentence": "a"}, "no column 'label'"),
        ({"label": 1}, "no column 'sentence' or 'content' or 'text'"),
        ({"sentence": 3, "label": 1}, "is a number"),
    ],
)
def test_sst2_records_that_do_not_fit(record: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        SST2().rows([record])


@pytest.mark.parametrize(
    ("text", "paper", "corrected"),
    [
        ("positive", 1, 1),
        (" Positive\n", 1, 1),
        ("POSITIVE", 0, 1),
        ("positive.", 0, 1),
        ("Positive: a good film", 0, 1),
        ("**positive**", 0, 1),
        ("negative", 0, 0),
        ("It is positive", 0, 0),
        ("not positive", 0, 0),
        ("", 0, 0),
    ],
)
def test_sst2_scores(text: str, paper: int, corrected: int) -> None:
    assert score(SST2("paper"), text, "positive") == paper
    assert score(SST2("corrected"), text, "positive") == corrected


def test_sst2_files(shared: Path) -> None:
    folder = shared / "hft/sst2"
    dev = read(Source(path=str(folder / "dev.tsv"), task="sst2"), SST2().rows)
    assert len(dev) == 872
    # GLUE's dev set: 444 positive, 428 negative.
    assert sum(row.response == "positive" for row in dev) == 444
    assert len(read(Source(path=str(folder / "train.tsv")), SST2().rows)) == 67_349
    (item,) = items(Source(path=str(folder / "dev.tsv"), limit=1), group="task", convert=SST2().rows)
    assert (item.id, item.group, item.reference) == ("1", "task", "negative")


# -- AG News ------------------------------------------------------------------------------------------


def test_agnews_rows() -> None:
    instruction = (
        "Categorize the news article given in the input into one of the 4 categories:\n\n"
        "World\nSports\nBusiness\nSci/Tech\n"
    )
    labels = ["World", "Sports", "Business", "Sci/Tech"]
    from_hub = AGNews().rows([{"text": "t d", "label": number} for number in range(4)])
    from_csv = AGNews().rows([{"class": str(n), "title": "t", "description": "d"} for n in range(1, 5)])
    assert from_hub == from_csv == [Row(instruction, label, input="t d", category=label) for label in labels]


@pytest.mark.parametrize("record", [{"text": "a", "label": 4}, {"text": "a", "class": 0}, {"text": "a", "label": "x"}])
def test_agnews_labels_out_of_range(record: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="is not a topic"):
        AGNews().rows([record])


@pytest.mark.parametrize(
    ("text", "reference", "paper", "corrected"),
    [
        ("Sci/Tech", "Sci/Tech", 1, 1),
        ("sci", "Sci/Tech", 1, 1),
        ("sci/tech", "Sci/Tech", 0, 1),
        ("Science and Technology", "Sci/Tech", 0, 1),
        ("World", "World", 1, 1),
        ("world", "World", 1, 1),
        ("WORLD", "World", 0, 1),
        ("World.", "World", 0, 1),
        ("The category is Business", "Business", 0, 1),
        ("Sports, not Business", "Business", 0, 0),
        ("worldwide", "World", 0, 0),
        ("", "World", 0, 0),
    ],
)
def test_agnews_scores(text: str, reference: str, paper: int, corrected: int) -> None:
    assert score(AGNews("paper"), text, reference) == paper
    assert score(AGNews("corrected"), text, reference) == corrected


def test_agnews_files(shared: Path) -> None:
    folder = shared / "hft/agnews_tiny"
    names = ("class", "title", "description")
    for name, count in (("train.csv", 581), ("test.csv", 46)):
        rows = read(Source(path=str(folder / name), names=names), AGNews().rows)
        assert len(rows) == count
    with pytest.raises(DataError) as caught:
        read(Source(path=str(folder / "train.csv")), AGNews().rows)
    assert "names = [" in caught.value.hint


# -- GSM8K --------------------------------------------------------------------------------------------


def test_gsm8k_rows() -> None:
    (row,) = GSM8K().rows([{"question": "q", "answer": "48/2 = <<48/2=24>>24\n#### 72"}])
    # The mark is replaced and the space after it stays: two spaces, as in the papers' training data.
    assert row == Row("q", "48/2 = <<48/2=24>>24\nThe final answer is:  72")
    with pytest.raises(DataError, match="no ####"):
        GSM8K().rows([{"question": "q", "answer": "72"}])


@pytest.mark.parametrize(
    ("text", "paper", "corrected"),
    [
        ("so 5.\nThe final answer is: 72", "72", "72"),
        ("The final answer is:  72 apples and 3 pears", "72", "72"),
        ("7 and then 8", "8", "8"),
        ("The final answer is: none, but 9 before 4", "9", "9"),
        ("3 and 4. The final answer is: none", "4", "4"),
        ("The final answer is: 1,234.50", "1234.50", "1234.5"),
        ("The final answer is: -3", "-3", "-3"),
        ("The final answer is: $1,000", "1000", "1000"),
        ("The final answer is: -$5", "5", "-5"),
        ("The final answer is: \u22125", "5", "-5"),
        ("The final answer is: 18.", "18", "18"),
        ("The final answer is: .5", "5", "0.5"),
        # The quirks: a minus between numbers, a comma in a list, the first phrase, the phrase's exact letters.
        ("we take 20-8", "-8", "8"),
        ("of 2,5 and no more", "25", "5"),
        ("The final answer is: 3. No. The final answer is: 4", "3", "4"),
        ("The Final Answer is 3 out of 4", "4", "3"),
        ("no number", None, None),
        ("", None, None),
    ],
)
def test_gsm8k_numbers(text: str, paper: str | None, corrected: str | None) -> None:
    assert number_in(text, "paper") == (None if paper is None else Decimal(paper))
    assert number_in(text, "corrected") == (None if corrected is None else Decimal(corrected))


@pytest.mark.parametrize("variant", ["paper", "corrected"])
def test_gsm8k_scores(variant: Variant) -> None:
    reference = "1,000 - 928 = 72\nThe final answer is:  72"
    assert score(GSM8K(variant), "72", reference) == 1
    assert score(GSM8K(variant), "72.0", reference) == 1
    assert score(GSM8K(variant), "The final answer is: 72", reference) == 1
    assert score(GSM8K(variant), "The final answer is: 73", reference) == 0
    # An answer without a number is wrong; a reference without one cannot be compared with.
    assert score(GSM8K(variant), "", reference) == 0
    assert score(GSM8K(variant), "", "no number") is None


def test_gsm8k_files(shared: Path) -> None:
    folder = shared / "hft/gsm8k"
    assert len(read(Source(path=str(folder / "train.jsonl")), GSM8K().rows)) == 7473
    test = items(Source(path=str(folder / "test.jsonl")), convert=GSM8K().rows)
    assert len(test) == 1319
    # Each reference, given as the answer, is right under both readings; and both read what stands after ####.
    right = [Sample(item, item.reference or "", 1, "stop") for item in test]
    for variant in ("paper", "corrected"):
        assert {rating.value for rating in GSM8K(variant).rate(right)} == {1.0}
    for item in test:
        stated = Decimal((item.reference or "").rpartition("is:")[2].strip().replace(",", ""))
        assert number_in(item.reference or "", "paper") == number_in(item.reference or "", "corrected") == stated


# -- sandbox and exact --------------------------------------------------------------------------------


def test_sandbox_rows_pass_through() -> None:
    rows = read(Source(path="sandbox/review-0", limit=20), SandboxTask().rows)
    assert rows == sandbox.rows("sandbox/review-0", 20, 0)
    assert {row.response for row in rows} == {"positive", "negative"}


def test_sandbox_scores() -> None:
    for text, value in (("positive", 1), (" positive ", 1), ("negative", 0), ("positive positive", 0), ("", 0)):
        assert score(SandboxTask(), text, "positive") == value


def test_exact_scores() -> None:
    assert score(ExactMatch(), " Yes\n", "Yes") == 1
    assert score(ExactMatch(), "yes", "Yes") == 0
    assert score(ExactMatch(ignore_case=True), "yes", "Yes") == 1
    assert ExactMatch().rows([{"instruction": "a", "output": "b"}]) == [Row("a", "b")]
