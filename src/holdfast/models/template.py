"""Prompt templates: from Rows and Items to token ids, with the boundary between prompt and answer exact.

The prompt and the answer are tokenised apart and joined, so the tokens a model is tuned to continue are
the tokens it is asked with; the papers' code tokenises them together and cuts by length, which can move
the boundary by a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.records import Item
from holdfast.data.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100

ALPACA = (
    "Below is an instruction that describes a task{with_input}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n{input_block}### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised Row: ``ids`` of shape (length,); the first ``prompt_length`` carry no loss."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def response_tokens(self) -> int:
        """Tokens that carry loss."""
        return len(self.ids) - self.prompt_length


class Template:
    """How a model is spoken to.

    Args:
        tokenizer: the model's tokenizer.
        name: ``auto`` (the tokenizer's chat template), ``chat``, ``alpaca``, or a text with ``{prompt}``
            and optionally ``{input}`` and ``{system}``.

    Raises:
        ModelError: ``auto`` or ``chat`` and the tokenizer has no chat template.
        UsageError: the text has no ``{prompt}``, or names an unknown field.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "auto") -> None:
        self.tokenizer = tokenizer
        self.name = name
        self._chat = name in ("auto", "chat")
        if self._chat and not tokenizer.chat_template:
            raise ModelError(
                "the model's tokenizer has no chat template",
                hint="declare how to speak to it: --template alpaca, or --template 'User: {prompt}\\nAssistant: '",
            )
        if not self._chat and name != "alpaca":
            _check_text(name)
        # Reusing the end token as padding keeps the embeddings as they are; adding tokens (as the
        # papers' code does) makes adapters that do not load on the base model.
        self.end = tokenizer.eos_token_id
        if self.end is None:
            raise ModelError("the model's tokenizer has no end-of-text token", hint="set eos_token in its folder")
        pad = tokenizer.pad_token_id
        self.pad: int = self.end if pad is None else pad

    def prompt_ids(self, item: Item | Row) -> list[int]:
        """Tokens that ask the item, up to where the answer starts."""
        if self._chat:
            text = self._render(item, None)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._without_end(list(self.tokenizer(self._plain(item))["input_ids"]))

    def encode(self, row: Row, max_length: int) -> Encoded:
        """Tokens of the prompt and of the answer with its end token, cut at ``max_length``."""
        prompt = self.prompt_ids(row)
        answer = list(self.tokenizer(self._answer_text(row), add_special_tokens=False)["input_ids"])
        if not answer or answer[-1] != self.end:
            # Templates that close a turn with another token (im_end and the like) already end the answer.
            answer = answer if self._chat and self._closes(answer) else [*answer, self.end]
        return Encoded(tuple((prompt + answer)[:max_length]), min(len(prompt), max_length))

    def encode_all(self, rows: Sequence[Row], max_length: int, name: str) -> tuple[list[Encoded], int]:
        """Encode a set of rows; returns them and how many answers were cut short.

        Raises:
            DataError: the set is empty, or a prompt alone fills ``max_length``.
        """
        if not rows:
            raise DataError(f"the {name} set is empty", hint="check the file and its 'only', 'where' and 'limit' keys")
        encoded = [self.encode(row, max_length) for row in rows]
        full = [row for row, e in zip(rows, encoded, strict=True) if e.response_tokens <= 0]
        if full:
            raise DataError(
                f"{len(full)} of {len(rows)} rows of the {name} set have no room for an answer: the prompt alone "
                f"has {max_length} tokens or more (one begins {full[0].prompt[:40]!r})",
                hint="raise max_length (up to the model's context) or shorten these prompts",
            )
        cut = sum(len(e.ids) == max_length and e.ids[-1] != self.end for e in encoded)
        return encoded, cut

    def _answer_text(self, row: Row) -> str:
        if not self._chat:
            return row.response
        asked, whole = self._render(row, None), self._render(row, row.response)
        # A template that rewrites earlier turns when an answer follows is no prefix of itself.
        return whole[len(asked) :] if whole.startswith(asked) else row.response

    def _closes(self, answer: list[int]) -> bool:
        special = set(self.tokenizer.all_special_ids)
        return bool(answer) and any(token in special for token in answer[-2:])

    def _without_end(self, ids: list[int]) -> list[int]:
        """Some tokenizers append the end token to any text; a prompt must not carry one."""
        return ids[:-1] if ids and ids[-1] == self.end and len(ids) > 1 else ids

    def _render(self, item: Item | Row, answer: str | None) -> str:
        messages: list[dict[str, Any]] = []
        if item.system:
            messages.append({"role": "system", "content": item.system})
        for user, assistant in getattr(item, "history", ()):
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        content = f"{item.prompt}\n\n{item.input}" if item.input else item.prompt
        messages.append({"role": "user", "content": content})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
        return str(text)

    def _plain(self, item: Item | Row) -> str:
        past = "".join(
            self._fill(user, "", item.system) + assistant + "\n" for user, assistant in getattr(item, "history", ())
        )
        return past + self._fill(item.prompt, item.input, item.system)

    def _fill(self, prompt: str, extra: str, system: str) -> str:
        if self.name == "alpaca":
            block = f"### Input:\n{extra}\n\n" if extra else ""
            paired = ", paired with an input that provides further context" if extra else ""
            body = ALPACA.format(prompt=prompt, input_block=block, with_input=paired)
            return f"{system}\n\n{body}" if system else body
        if extra and "{input}" not in self.name:
            prompt = f"{prompt}\n{extra}"
        return self.name.format(prompt=prompt, input=extra, system=system)


def _check_text(text: str) -> None:
    try:
        filled = text.format(prompt="\0prompt\0", input="", system="")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the prompt template {text!r} is not valid: {error!r}",
            hint="use {prompt}, and optionally {input} and {system}; write {{ and }} for braces",
        ) from error
    if "\0prompt\0" not in filled:
        raise UsageError(
            f"the prompt template {text!r} does not contain {{prompt}}",
            hint="use auto, alpaca, or a text such as 'User: {prompt}\\nAssistant: '",
        )
