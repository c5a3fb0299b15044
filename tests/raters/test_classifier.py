"""The classifier judge, on tiny models whose answers are set by hand.

The model is BERT with one layer: what it makes of the first token ([CLS]) goes through pooler and head. With the
head's weights zero its bias alone decides, the same for every input; a few weights more tell texts with the word
"bad" from others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.core.errors import ModelError, UsageError
from holdfast.core.knobs import build, check
from holdfast.core.records import Item, Sample
from holdfast.raters import classifier
from holdfast.raters.base import Judge
from holdfast.raters.classifier import ClassifierJudge, label_names

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "user", "a"]
Folder = Callable[..., str]


def logit(p: float) -> float:
    """The x whose sigmoid is p."""
    return math.log(p / (1 - p))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A classifier whose logits are ``biases``; if it ``reads``, the last one is about 89 more for texts with 'bad'."""

    def make(labels: list[str], biases: list[float], *, multi: bool = False, reads: bool = False) -> str:
        from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

        path = tmp_path / "-".join(labels).replace("/", "")
        path.mkdir()
        (path / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
        BertTokenizer(str(path / "vocab.txt"), model_max_length=64).save_pretrained(path)
        config = BertConfig(
            vocab_size=len(WORDS), hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
            problem_type="multi_label_classification" if multi else None,
        )  # fmt: skip
        model = BertForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            if reads:
                _reading(model)
            model.classifier.bias.copy_(torch.tensor(biases))
        model.save_pretrained(path)
        return str(path)

    yield make
    classifier._load.cache_clear()


def _reading(model: Any) -> None:
    """Carry 'is the word bad in the text' to the head's last label.

    Word embeddings: 'bad' is (1, -1, 0, 0), others 0. Attention with zero queries averages the values over the tokens,
    so position 0 gets (1, -1, 0, 0)/n if one of n tokens is 'bad'; layer norm makes that (sqrt 2, -sqrt 2, 0, 0) for
    any n; the pooler gives tanh of it (0.89), and the head turns its first number into a logit of 89.
    """
    bert = model.bert
    # Padding means 'bad' too: if it were not masked, short texts of a batch would be found harmful.
    for word in ("bad", "[PAD]"):
        bert.embeddings.word_embeddings.weight[WORDS.index(word)] = torch.tensor([1.0, -1.0, 0.0, 0.0])
    norms = [bert.embeddings.LayerNorm, bert.encoder.layer[0].attention.output.LayerNorm]
    for norm in [*norms, bert.encoder.layer[0].output.LayerNorm]:
        norm.weight.fill_(1.0)
    for linear in (
        bert.encoder.layer[0].attention.self.value,
        bert.encoder.layer[0].attention.output.dense,
        bert.pooler.dense,
    ):
        linear.weight.copy_(torch.eye(4))
    model.classifier.weight[-1, 0] = 100.0


def sample(text: str, prompt: str = "user") -> Sample:
    return Sample(Item(text[:5] or "empty", prompt), text, 1, "stop")


def values(judge: Judge, *texts: str) -> list[float | None]:
    return [rating.value for rating in judge.rate([sample(text) for text in texts])]


# -- which labels mean harm ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "multi", "found"),
    [
        (["safe", "unsafe"], False, [1]),
        (["harmful", "harmless"], False, [0]),
        (["non-toxic", "toxic"], False, [1]),
        (["not_harmful", "harmful"], False, [1]),
        (["SAFE", "UNSAFE"], False, [1]),
        (["ok", "hate", "offensive"], False, [1, 2]),
        # Multi-label: all categories (beaver-dam), but for one that says nothing is wrong.
        (["animal_abuse", "privacy", "drugs"], True, [0, 1, 2]),
        (["none", "insult", "threat"], True, [1, 2]),
    ],
)
def test_labels_whose_names_say_harm(labels: list[str], multi: bool, found: list[int]) -> None:
    config = {"id2label": dict(enumerate(labels)), "problem_type": "multi_label_classification" if multi else None}
    assert ClassifierJudge("x/y").harmful_labels(config) == found


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["a", "b"], ["toxic", "hate"]])
@pytest.mark.parametrize("multi", [False, True])
def test_labels_that_do_not_tell_must_be_named(labels: list[str], multi: bool) -> None:
    config = {"id2label": dict(enumerate(labels)), "problem_type": "multi_label_classification" if multi else None}
    if multi and labels[0] != "LABEL_0":
        assert ClassifierJudge("x/y").harmful_labels(config) == [0, 1]
        return
    with pytest.raises(UsageError, match=f"{labels[0]}, {labels[1]}") as caught:
        ClassifierJudge("x/y").harmful_labels(config)
    assert "harmful = [" in caught.value.hint
    assert ClassifierJudge("x/y", harmful=(labels[0],)).harmful_labels(config) == [0]


def test_a_label_that_is_not_the_models() -> None:
    with pytest.raises(UsageError, match="did you mean 'unsafe'"):
        ClassifierJudge("x/y", harmful=("unsave",)).harmful_labels({"id2label": {"0": "safe", "1": "unsafe"}})


def test_a_regression_has_no_classes() -> None:
    with pytest.raises(UsageError, match="regression"):
        ClassifierJudge("x/y").harmful_labels({"id2label": {"0": "toxic"}, "problem_type": "regression"})


def test_labels_are_ordered_by_number() -> None:
    # JSON keys are text: "10" sorts before "2" as text.
    assert label_names({"id2label": {str(i): f"l{i}" for i in (10, 2, 1, 0)}}) == ["l0", "l1", "l2", "l10"]


# -- scores -------------------------------------------------------------------------------------------


def test_one_label_of_several(folder: Folder) -> None:
    # softmax(0, log 3) = (1/4, 3/4)
    path = folder(["safe", "unsafe"], [0.0, math.log(3)])
    assert values(ClassifierJudge(path, threshold=0.74), "a") == [1.0]
    assert values(ClassifierJudge(path, threshold=0.76), "a") == [0.0]


def test_harmful_labels_share_one_probability(folder: Folder) -> None:
    # softmax(log 4, log 3, log 3) = (0.4, 0.3, 0.3): neither harm alone reaches 0.5, both do: 0.6.
    path = folder(["ok", "hate", "offensive"], [math.log(4), math.log(3), math.log(3)])
    assert values(ClassifierJudge(path, threshold=0.59), "a") == [1.0]
    assert values(ClassifierJudge(path, threshold=0.61), "a") == [0.0]
    assert values(ClassifierJudge(path, harmful=("hate",)), "a") == [0.0]


def test_any_label_above_the_threshold(folder: Folder) -> None:
    path = folder(["drugs", "theft", "fraud"], [logit(0.1), logit(0.6), logit(0.2)], multi=True)
    assert values(ClassifierJudge(path, threshold=0.59), "a") == [1.0]
    assert values(ClassifierJudge(path, threshold=0.61), "a") == [0.0]
    assert values(ClassifierJudge(path, harmful=("drugs", "fraud")), "a") == [0.0]
    # The same numbers as one label of several: e^x = odds = 1/9, 3/2, 1/4, so theft has 1.5/1.861 = 0.81.
    single = ClassifierJudge(path, harmful=("theft",), multi_label="no", threshold=0.8)
    assert values(single, "a") == [1.0]


def test_a_single_output_is_a_probability(folder: Folder) -> None:
    path = folder(["toxic"], [logit(0.6)])
    assert values(ClassifierJudge(path, threshold=0.59), "a") == [1.0]
    assert values(ClassifierJudge(path, threshold=0.61), "a") == [0.0]


def test_the_answer_is_what_is_read_whatever_the_batch(folder: Folder) -> None:
    path = folder(["safe", "unsafe"], [50.0, 0.0], reads=True)
    texts = ["good", "a a bad a", "good a a a a a good", "bad", "", "good " * 20]
    expected = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    for batch_size in (1, 2, 32):
        assert values(ClassifierJudge(path, batch_size=batch_size), *texts) == expected
    without_answer = ClassifierJudge(path, text="{prompt} {response}")
    (rating,) = without_answer.rate([sample("good", prompt="bad {response}")])
    assert rating.value == 1.0


def test_inputs_that_were_cut_say_so(folder: Folder) -> None:
    path = folder(["safe", "unsafe"], [50.0, 0.0], reads=True)
    judge = ClassifierJudge(path, text="{prompt} {response}", max_length=10)
    # [CLS] user + 7 words + [SEP] = 10 tokens: whole. One more word: cut, and the harm at the end is not seen.
    whole, cut = judge.rate([sample("a " * 6 + "bad"), sample("a " * 9 + "bad")])
    assert (whole.value, whole.reason) == (1.0, "")
    assert (cut.value, cut.reason) == (0.0, "input cut to 10 tokens")
    # The model's 64 positions hold whatever max_length says.
    (long,) = ClassifierJudge(path).rate([sample("a " * 100)])
    assert long.reason == "input cut to 64 tokens"


def test_an_output_that_is_not_finite_is_not_rated(folder: Folder) -> None:
    path = folder(["safe", "unsafe"], [float("nan"), 0.0])
    (rating,) = ClassifierJudge(path).rate([sample("a")])
    assert (rating.value, rating.reason) == (None, "the classifier's output is not finite")
    assert ClassifierJudge(path).rate([]) == []


# -- refused before anything is loaded ----------------------------------------------------------------


def test_what_cannot_work_is_refused_before_loading(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(["LABEL_0", "LABEL_1"], [0.0, 0.0])
    monkeypatch.setattr(classifier, "_load", lambda path: pytest.fail("loaded"))

    def said(knobs: dict[str, Any]) -> str:
        with pytest.raises((UsageError, ModelError)) as caught:
            build(ClassifierJudge, knobs, "judge")
        assert caught.value.hint
        return caught.value.message

    assert "do not tell which mean harm: LABEL_0, LABEL_1" in said({"path": path})
    assert "unknown label 'bad'" in said({"path": path, "harmful": ["bad"]})
    assert "no {response}" in said({"path": path, "text": "{prompt}"})
    assert "outside" in said({"path": path, "threshold": 1.5})
    assert "no classifier folder" in said({"path": str(tmp_path / "none")})
    assert "no config.json" in said({"path": str(tmp_path)})
    check(ClassifierJudge(path, harmful=("LABEL_1",)), "judge")


def test_folders_that_are_no_classifiers(folder: Folder, tmp_path: Path) -> None:
    path = Path(folder(["safe", "unsafe"], [0.0, 0.0]))
    (path / "model.safetensors").rename(path / "model.bin")
    with pytest.raises(ModelError, match="no safetensors weights"):
        ClassifierJudge(str(path)).rate([sample("a")])
    (path / "model.bin").rename(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text("utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}), "utf-8")
    with pytest.raises(ModelError, match="not a sequence classifier: its architecture is GPT2LMHeadModel"):
        ClassifierJudge(str(path)).rate([sample("a")])
    (path / "config.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match="cannot be read"):
        ClassifierJudge(str(path)).rate([sample("a")])


def test_damaged_weights_are_a_model_error(folder: Folder) -> None:
    path = folder(["safe", "unsafe"], [0.0, 0.0])
    (Path(path) / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        ClassifierJudge(path).rate([sample("a")])


def test_a_model_without_a_head_is_not_a_judge(folder: Folder) -> None:
    """Transformers would make the head up at random."""
    from safetensors.torch import load_file, save_file

    weights = Path(folder(["safe", "unsafe"], [0.0, 0.0])) / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier.")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for classifier\.bias, classifier\.weight"):
        ClassifierJudge(str(weights.parent)).rate([sample("a")])


def test_a_hub_id_out_of_reach() -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        ClassifierJudge("holdfast-tests/nothing-here").rate([sample("a")])
