"""Answering: the batch changes nothing, and an interrupted file is finished as if nothing had happened."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from holdfast.core.errors import DataError
from holdfast.core.events import Event, Progressed
from holdfast.core.records import Item, Sample
from holdfast.models.answer import Decoding, answer_all
from holdfast.models.template import Template

TEMPLATE = Template(tiny.tokenizer(), "{prompt}:")
FAMILIES = {"llama": tiny.llama, "gpt2": tiny.gpt2, "qwen2": tiny.qwen2}
ENDS = [2, 13, 16, 20]  # tokens that these random models say now and then, so that some answers stop early


def items(count: int = 11) -> list[Item]:
    rng = random.Random(0)
    return [Item(f"i{n}", "".join(f"w{rng.randrange(10)}" for _ in range(rng.randint(1, 9)))) for n in range(count)]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Random, but with weights so large that the answers differ from prompt to prompt."""
    made = FAMILIES[request.param](initializer_range=0.5)
    made.generation_config.eos_token_id = ENDS
    return made


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    made = tiny.llama(initializer_range=0.5)
    made.generation_config.eos_token_id = ENDS
    return made


def answered(
    model: nn.Module, path: Path, *, asked: list[Item] | None = None, batch: int = 4, new: int = 6, **more: Any
) -> list[Sample]:
    return answer_all(model, TEMPLATE, asked or items(), Decoding(new), path, batch_size=batch, **more)


def greedy(model: nn.Module, item: Item, new: int) -> tuple[list[int], str]:
    """Token by token, the whole sequence again each time: no cache, no padding, no generate()."""
    ids = TEMPLATE.prompt_ids(item)
    found: list[int] = []
    with torch.no_grad():
        for _ in range(new):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in ENDS:
                return found, "stop"
            found.append(token)
            ids.append(token)
    return found, "length"


def test_batched_answers_are_those_of_a_plain_greedy_loop(model: nn.Module, tmp_path: Path) -> None:
    assert len({len(TEMPLATE.prompt_ids(item)) for item in items()}) > 4, "no left padding would be needed"
    found = {sample.item.id: sample for sample in answered(model, tmp_path / "samples.jsonl")}
    reasons = []
    for item in items():
        kept, reason = greedy(model, item, 6)
        text = TEMPLATE.tokenizer.decode(kept, skip_special_tokens=True).strip()
        assert found[item.id] == Sample(item, text, len(kept) + (reason == "stop"), reason)  # type: ignore[arg-type]
        reasons.append(reason)
    assert set(reasons) == {"stop", "length"}, "both ends must occur for this test to mean something"


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_size_of_the_batch_changes_no_answer(model: nn.Module, batch: int, tmp_path: Path) -> None:
    expected = {sample.item.id: sample for sample in answered(model, tmp_path / "four.jsonl")}
    assert {sample.item.id: sample for sample in answered(model, tmp_path / "other.jsonl", batch=batch)} == expected


def test_a_killed_file_is_finished_to_the_same_bytes(llama: nn.Module, tmp_path: Path) -> None:
    """Cut at every end of a row, inside multi-byte characters and anywhere else."""
    asked = [*items(), Item("é", "w1w2", reference="naïve ✓")]
    whole = tmp_path / "whole.jsonl"
    answered(llama, whole, asked=asked)
    content = whole.read_bytes()
    ends = [place for place in range(len(content)) if content[place : place + 1] == b"\n"]
    accent = content.index("ï".encode())
    places = {0, accent + 1, *ends, *(end + 1 for end in ends), *random.Random(1).sample(range(len(content)), 12)}
    for place in sorted(places):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:place])
        samples = answered(llama, path, asked=asked)
        assert path.read_bytes() == content, place
        assert len(samples) == len(asked)


def test_what_is_there_is_not_answered_again(llama: nn.Module, tmp_path: Path) -> None:
    first = answered(llama, tmp_path / "samples.jsonl")
    broken = tiny.llama(seed=9)  # would answer otherwise
    assert answered(broken, tmp_path / "samples.jsonl") == first
    assert answered(broken, tmp_path / "others.jsonl") != first


def test_rows_hold_the_item_and_the_answer(llama: nn.Module, tmp_path: Path) -> None:
    samples = answered(llama, tmp_path / "samples.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [Sample.from_json(row) for row in rows] == samples
    assert {sample.item.id for sample in samples} == {item.id for item in items()}
    lengths = [len(TEMPLATE.prompt_ids(sample.item)) for sample in samples]
    assert lengths == sorted(lengths), "batches of like lengths waste no padding"


def test_progress_is_told(llama: nn.Module, tmp_path: Path) -> None:
    events: list[Event] = []
    answered(llama, tmp_path / "samples.jsonl", sink=events.append)
    assert [(e.done, e.total) for e in events if isinstance(e, Progressed)] == [(4, 11), (8, 11), (11, 11)]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode_and_dropout_is_off(training: bool, tmp_path: Path) -> None:
    model = tiny.llama(attention_dropout=0.9).train(training)
    before = torch.random.get_rng_state()
    found = answered(model, tmp_path / "a.jsonl")
    assert found == answered(tiny.llama(), tmp_path / "b.jsonl")
    assert model.training == training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_adapter_answers_as_its_merged_weights(tmp_path: Path) -> None:
    found = answered(tiny.lora(tiny.llama()), tmp_path / "a.jsonl")
    assert found == answered(tiny.lora(tiny.llama()).merge_and_unload(), tmp_path / "b.jsonl")
    assert found != answered(tiny.llama(), tmp_path / "c.jsonl")


def test_sampling_settings_of_the_model_have_no_say(tmp_path: Path) -> None:
    model = tiny.llama()
    expected = answered(model, tmp_path / "a.jsonl")
    model.generation_config.update(do_sample=True, temperature=3.0, top_k=3, top_p=0.5)
    assert answered(model, tmp_path / "b.jsonl") == expected


def test_an_end_token_at_once_is_an_empty_answer(tmp_path: Path) -> None:
    model = tiny.llama()
    model.generation_config.eos_token_id = list(range(tiny.VOCABULARY))
    assert {(s.text, s.tokens, s.finish) for s in answered(model, tmp_path / "a.jsonl")} == {("", 1, "stop")}


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_what_exceeds_the_context_is_refused_before_anything_is_answered(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """Context 64; the prompt 'w' * 20 + ':' is 21 tokens, so 43 new ones fit and 44 do not."""
    asked = [*items(3), Item("long", "w" * 20)]
    with pytest.raises(
        DataError, match=r"item 'long' has 21 prompt tokens; with 44 new tokens .* context of 64"
    ) as caught:
        answered(make(), tmp_path / "samples.jsonl", asked=asked, new=44)
    assert "max_new_tokens to at most 43" in caught.value.hint
    assert not (tmp_path / "samples.jsonl").exists()
    answered(make(), tmp_path / "samples.jsonl", asked=asked, new=43)


def test_two_items_of_one_id_are_refused(llama: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two items have the id 'i1'"):
        answered(llama, tmp_path / "samples.jsonl", asked=[*items(3), Item("i1", "w")])


def test_nothing_to_ask(llama: nn.Module, tmp_path: Path) -> None:
    assert answer_all(llama, TEMPLATE, [], Decoding(4), tmp_path / "samples.jsonl") == []
