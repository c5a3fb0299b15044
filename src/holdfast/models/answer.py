"""Answering Items: batched greedy generation, resumable at any row.

Batches are fixed by the whole item set (sorted by prompt length), so a resumed run computes each answer in
the same batch as an unbroken one and writes the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from holdfast.core.errors import DataError
from holdfast.core.events import Progressed, Sink, ignore
from holdfast.core.files import RowFile, read_rows
from holdfast.core.knobs import knob
from holdfast.core.records import Item, Sample
from holdfast.models.architecture import context_length, inner
from holdfast.models.template import Template

if TYPE_CHECKING:
    from torch import nn


Answer = tuple[str, int, Literal["stop", "length"]]
"""Text, tokens generated (the end token counted), and why it ended."""


@dataclass(frozen=True)
class Decoding:
    """How answers are generated. Greedy: one answer an item, the same each time."""

    max_new_tokens: int = knob(512, "longest answer in tokens", low=1, source="Booster evaluation: 512")


def answer_all(
    model: nn.Module,
    template: Template,
    items: Sequence[Item],
    decoding: Decoding,
    path: Path,
    *,
    batch_size: int = 64,
    sink: Sink = ignore,
) -> list[Sample]:
    """Answer every item not yet in ``path``; returns all samples in file order.

    Args:
        model: causal language model on its device.
        template: how it is spoken to.
        items: what to ask; ids must be unique.
        decoding: length limit.
        path: samples file, grown batch by batch.
        batch_size: prompts answered at once; memory, not results, depends on it.
        sink: where progress goes.

    Raises:
        DataError: two items share an id, or a prompt and its answer do not fit the model's context.
    """
    prompts = _prompts(model, template, items, decoding)
    order = sorted(range(len(items)), key=lambda i: (len(prompts[i]), i))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def ask(batch: list[int]) -> Iterator[Answer]:
        return _generate(model, template, [prompts[i] for i in batch], decoding)

    return answer_batches(items, batches, ask, path, sink)


def answer_batches(
    items: Sequence[Item],
    batches: Sequence[list[int]],
    ask: Callable[[list[int]], Iterable[Answer]],
    path: Path,
    sink: Sink = ignore,
) -> list[Sample]:
    """Answer the batches that have an item not yet in ``path``; returns all samples in file order.

    Args:
        items: what is asked.
        batches: positions of items; fixed by the whole set, so that a resumed run answers in the same batches.
        ask: text, tokens and reason of ending for each position of a batch.
        path: samples file, grown batch by batch.
        sink: where progress goes.
    """
    done = {row["item"]["id"] for row in read_rows(path)}
    with RowFile(path) as rows:
        count = 0
        for batch in batches:
            missing = [i for i in batch if items[i].id not in done]
            if missing:
                answers = dict(zip(batch, ask(batch), strict=True))
                rows.append(Sample(items[i], *answers[i]).as_json() for i in missing)
            count += len(batch)
            sink(Progressed(done=count, total=len(items)))
    return [Sample.from_json(row) for row in read_rows(path)]


def _prompts(model: nn.Module, template: Template, items: Sequence[Item], decoding: Decoding) -> list[list[int]]:
    check_ids(items)
    prompts = [template.prompt_ids(item) for item in items]
    limit = context_length(inner(model).config)
    longest = max((len(p) for p in prompts), default=0)
    if limit is not None and longest + decoding.max_new_tokens > limit:
        item = items[max(range(len(items)), key=lambda i: len(prompts[i]))]
        raise DataError(
            f"item {item.id!r} has {longest} prompt tokens; with {decoding.max_new_tokens} new tokens it exceeds the "
            f"model's context of {limit}",
            hint=f"set max_new_tokens to at most {max(limit - longest, 0)} or drop the longest items",
        )
    return prompts


def check_ids(items: Sequence[Item]) -> None:
    """Refuse items that share an id.

    Raises:
        DataError: two do.
    """
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"two items have the id {item.id!r}", hint="give each item its own id")
        seen.add(item.id)


def _generate(
    model: nn.Module, template: Template, prompts: Sequence[Sequence[int]], decoding: Decoding
) -> Iterator[Answer]:
    """Greedy answers of one batch: text, tokens generated (end token counted), why it ended."""
    import torch
    from transformers import GenerationConfig

    core = inner(model)
    width = max(len(p) for p in prompts)
    device = next(core.parameters()).device
    ids = torch.full((len(prompts), width), template.pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        # Left padding: all prompts end where their answers begin.
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ends = _end_tokens(core, template)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=template.pad,
        eos_token_id=sorted(ends),
        use_cache=True,
    )
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            out = model.generate(  # type: ignore[operator]
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
            )
    finally:
        model.train(training)
    return cut_answers(out[:, width:].tolist(), ends, template.tokenizer)


def cut_answers(rows: Iterable[list[int]], ends: Collection[int], tokenizer: Any) -> Iterator[Answer]:
    """Generated tokens as answers: each up to its first end token."""
    for row in rows:
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        kept = row if stop is None else row[:stop]
        text = str(tokenizer.decode(kept, skip_special_tokens=True)).strip()
        yield text, len(kept) + (stop is not None), "length" if stop is None else "stop"


def _end_tokens(core: Any, template: Template) -> set[int]:
    """End tokens of the tokenizer and of the model's generation settings (chat models often have two)."""
    declared = core.generation_config.eos_token_id if core.generation_config is not None else None
    found = declared if isinstance(declared, list) else [declared]
    return {int(token) for token in [*found, template.end] if token is not None}
