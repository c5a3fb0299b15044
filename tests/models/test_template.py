"""From rows to tokens: the boundary between prompt and answer is the same in training and in asking."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.records import Item
from holdfast.data.rows import Row
from holdfast.models.template import Encoded, Template

TEXT = st.text("wadehi 0123.:\n", max_size=12)
NAMES = ["chat", "alpaca", "Ask: {prompt} R: ", "{system}{prompt}\n{input}:"]
TOKENIZER = tiny.tokenizer()


def tokens(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", NAMES)
@given(prompt=TEXT, response=TEXT, extra=TEXT, system=TEXT)
def test_the_prompt_that_is_asked_begins_the_row_that_is_trained(
    name: str, prompt: str, response: str, extra: str, system: str
) -> None:
    template = Template(TOKENIZER, name)
    row = Row(prompt, response, input=extra, system=system)
    encoded = template.encode(row, 1000)
    asked = template.prompt_ids(row.as_item("1"))
    assert list(encoded.ids[: encoded.prompt_length]) == asked
    assert list(encoded.ids[encoded.prompt_length :]) == [*tokens(response), template.end]
    assert encoded.response_tokens == len(tokens(response)) + 1


def test_tokens_do_not_merge_across_the_boundary() -> None:
    """Tokenised together, the space before the answer joins its first letter; asked with, it cannot."""
    template = Template(TOKENIZER, "{prompt} ")
    encoded = template.encode(Row("Ask", "w1"), 100)
    together = tokens("Ask w1")
    assert list(encoded.ids[:-1]) != together
    assert list(encoded.ids) == [*tokens("Ask "), *tokens("w1"), TOKENIZER.eos_token_id]


def test_a_chat_is_rendered_whole() -> None:
    template = Template(TOKENIZER)
    row = Row("hi", "w1", input="w2", system="R", history=(("w3", "w4"),))
    encoded = template.encode(row, 1000)
    whole = "<|system|>R<|user|>w3<|assistant|>w4</s><|user|>hi\n\nw2<|assistant|>w1</s>"
    assert list(encoded.ids) == tokens(whole)
    assert encoded.prompt_length == len(tokens(whole.removesuffix("w1</s>")))


def test_alpaca_text() -> None:
    template = Template(TOKENIZER, "alpaca")
    bare = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n{do} this\n\n### Response:\n"
    )
    paired = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\n{do} this\n\n### Input:\nwith\n\n"
        "### Response:\n"
    )
    assert template._plain(Row("{do} this", "")) == bare
    assert template._plain(Row("{do} this", "", input="with")) == paired
    assert template._plain(Row("{do} this", "", system="Be.")) == "Be.\n\n" + bare
    assert template.prompt_ids(Row("{do} this", "")) == tokens(bare)


@pytest.mark.parametrize(
    ("name", "row", "text"),
    [
        ("Ask: {prompt}\n", Row("a", ""), "Ask: a\n"),
        ("Ask: {prompt}\n", Row("a", "", input="b"), "Ask: a\nb\n"),
        ("{input}/{prompt}", Row("a", "", input="b"), "b/a"),
        ("{system}{prompt}", Row("{a}", "", system="s"), "s{a}"),
        ("{{{prompt}}}", Row("a", ""), "{a}"),
        ("Ask: {prompt}\n", Row("c", "", history=(("a", "b"),)), "Ask: a\nb\nAsk: c\n"),
    ],
)
def test_a_declared_text(name: str, row: Row, text: str) -> None:
    assert Template(TOKENIZER, name)._plain(row) == text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Ask: ", r"does not contain \{prompt\}"),
        ("", r"does not contain \{prompt\}"),
        ("alpcaa", r"does not contain \{prompt\}"),
        ("{question}", "is not valid"),
        ("{prompt", "is not valid"),
        ("{}", "is not valid"),
        ("{prompt.text}", "is not valid"),
        ("{prompt[text]}", "is not valid"),
        ("{prompt[0]}", r"does not contain \{prompt\}"),
        ("{prompt:.2}", r"does not contain \{prompt\}"),
        ("{prompt!r}", r"does not contain \{prompt\}"),
        ("{prompt:d}", "is not valid"),
    ],
)
def test_a_text_that_cannot_be_filled(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Template(TOKENIZER, name)
    assert "{prompt}" in caught.value.hint


@pytest.mark.parametrize("name", ["auto", "chat"])
def test_a_model_without_a_chat_template(name: str) -> None:
    with pytest.raises(ModelError, match="no chat template") as caught:
        Template(tiny.tokenizer(chat=None), name)
    assert "--template alpaca" in caught.value.hint
    assert Template(tiny.tokenizer(chat=None), "alpaca").prompt_ids(Row("a", ""))


def test_a_tokenizer_without_an_end_token() -> None:
    with pytest.raises(ModelError, match="no end-of-text token"):
        Template(tiny.tokenizer(eos_token=None), "alpaca")


def test_padding_falls_back_on_the_end_token() -> None:
    assert Template(TOKENIZER).pad == TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    assert Template(tiny.tokenizer(pad_token=None)).pad == TOKENIZER.eos_token_id


@pytest.mark.parametrize(
    ("chat", "answer"),
    [
        # The turn is closed by another special token, with or without a newline behind it: nothing is added.
        ("{% for m in messages %}<|user|>{{ m['content'] }}<|system|>\n{% endfor %}", "w1<|system|>\n"),
        # The template does not close the answer: the end token is added.
        ("{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}", "w1</s>"),
        # With an answer the template rewrites what came before: the answer stands alone, with the end token.
        ("{% if messages|length > 1 %}R{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}", "w1</s>"),
    ],
    ids=["closed", "open", "rewriting"],
)
def test_how_chat_answers_end(chat: str, answer: str) -> None:
    opening = "{% if add_generation_prompt %}<|user|>{% endif %}"
    template = Template(tiny.tokenizer(chat=chat + opening))
    encoded = template.encode(Row("hi", "w1"), 100)
    assert list(encoded.ids[encoded.prompt_length :]) == tokens(answer)


def test_an_end_token_that_the_tokenizer_adds_is_not_asked_with() -> None:
    from tokenizers.processors import TemplateProcessing

    made = tiny.tokenizer()
    made._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    template = Template(made, "{prompt}")
    assert template.prompt_ids(Row("hi", "")) == [1, *tokens("hi")]
    assert list(template.encode(Row("hi", "w1"), 100).ids) == [1, *tokens("hi"), *tokens("w1"), 2]


# --- sets of rows ------------------------------------------------------------------------------------


def plain(**changes: Any) -> Template:
    return Template(TOKENIZER, "{prompt}", **changes)


def test_long_answers_are_cut_and_counted() -> None:
    """'w' '1' ... are single tokens: prompt 2, answer 4 and the end token."""
    rows = [Row("w1", "wwww"), Row("w1", "www"), Row("w1", "ww")]
    encoded, cut = plain().encode_all(rows, 6, "user")
    assert [len(e.ids) for e in encoded] == [6, 6, 5]
    assert [e.ids[-1] == TOKENIZER.eos_token_id for e in encoded] == [False, True, True]
    assert cut == 1


@pytest.mark.parametrize("length", [3, 4])
def test_a_prompt_that_leaves_no_room_is_an_error(length: int) -> None:
    rows = [Row("w", "w"), Row("w" * 4, "w"), Row("w" * 9, "w")]
    with pytest.raises(DataError, match=f"2 of 3 rows of the user set .* {length} tokens or more .one begins 'wwww'"):
        plain().encode_all(rows, length, "user")


def test_an_empty_set_is_an_error() -> None:
    with pytest.raises(DataError, match="the harmful set is empty"):
        plain().encode_all([], 10, "harmful")


def test_a_cut_prompt_has_no_answer_tokens() -> None:
    assert plain().encode(Row("wwww", "ww"), 3) == Encoded(tuple(tokens("www")), 3)
    assert plain().prompt_ids(Item("1", "w")) == tokens("w")
