"""Interventions on tiny models of twelve vision-language families: every way to read and to answer, the same change."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from holdfast.core.errors import ModelError, NotApplied, UsageError
from holdfast.models.architecture import decoder_layers
from holdfast.steer.capture import states, steerable_layers
from holdfast.steer.intervene import Change, Edit, Intervention, Phases, Tokens, When
from steer.families import ALL, FAMILIES, IMAGE, LAYERS, PAD, WIDTH, Family, noise

STEPS = 3
VECTOR = 3 * noise(100, WIDTH)
VECTORS = 3 * noise(101, len(ALL), WIDTH)  # one a prompt
KINDS: tuple[Tokens, ...] = ("last", "text", "image", "all")
PHASES: tuple[Phases, ...] = ("prefill", "all", "decode")

each_family = pytest.mark.parametrize("name", list(FAMILIES))


@cache
def family(name: str) -> Family:
    """Shared by the tests, none of which leaves anything on the model."""
    return FAMILIES[name]()


def kinds(name: str) -> tuple[Tokens, ...]:
    """Idefics has no placeholders: its prompts do not show where a picture stands."""
    return ("last", "all") if name == "idefics" else KINDS


def shifted(states: Tensor, rows: Tensor) -> Tensor:
    return states + VECTOR


def by_row(vectors: Tensor) -> Change:
    return lambda states, rows: states + vectors[rows]


def edits(
    model: nn.Module, tokens: Tokens = "last", phases: Phases = "all", change: Change = shifted
) -> tuple[Edit, ...]:
    """The change behind the first and the last layer that can be steered."""
    layers = steerable_layers(model)
    return tuple(Edit(layer, change, tokens, phases) for layer in (layers[0], layers[-1]))


def answer(model: nn.Module, inputs: Mapping[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """Tokens (rows, steps) and the logits that they were chosen by (rows, steps, vocabulary)."""
    settings = {"max_new_tokens": STEPS, "do_sample": False} | options
    found = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    return found.sequences[:, -len(found.logits) :], torch.stack(found.logits, 1)


def steered(
    model: nn.Module, inputs: Mapping[str, Any], made: Sequence[Edit], when: When = "image", **options: Any
) -> tuple[Tensor, Tensor]:
    with Intervention(made, when=when).on(model):
        return answer(model, inputs, **options)


def assert_same(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> None:
    """The same answer up to the rounding of fp32."""
    close(left[1], right[1])
    assert left[0].tolist() == right[0].tolist()


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def equal(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> bool:
    """The same answer to the bit."""
    return torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])


def row(found: tuple[Tensor, Tensor], number: int) -> tuple[Tensor, Tensor]:
    return found[0][number : number + 1], found[1][number : number + 1]


def differs(left: Tensor, right: Tensor) -> bool:
    """Every row by more than rounding."""
    return bool(((left - right).abs().flatten(1).amax(1) > 1e-2).all())


def places(ids: Tensor, tokens: Tokens) -> Tensor:
    """Positions of a kind of token in prompts padded on the left, shape (rows, P)."""
    if tokens == "last":
        return (torch.arange(ids.shape[1]) == ids.shape[1] - 1).expand(ids.shape)
    return {"text": (ids != PAD) & (ids != IMAGE), "image": ids == IMAGE, "all": ids != PAD}[tokens]


def by_hand(model: nn.Module, inputs: Mapping[str, Any], tokens: Tokens, phases: Phases) -> tuple[Tensor, Tensor]:
    """The answer under :func:`edits` without an Intervention: every pass holds everything, and hooks add a mask."""
    prompt = places(inputs["input_ids"], tokens) & (phases != "decode")

    def add(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        later = torch.full((len(prompt), output.shape[1] - prompt.shape[1]), phases != "prefill")
        return output + torch.cat([prompt, later], 1)[..., None] * VECTOR

    hooks = [decoder_layers(model)[edit.layer].register_forward_hook(add) for edit in edits(model)]
    try:
        return answer(model, inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def outputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """What stands behind each decoder layer, all positions."""
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _args, output: found.append(output))
        for layer in decoder_layers(model)
    ]
    with torch.inference_mode():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def logits(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    with torch.inference_mode():
        return model(**inputs).logits


def traces(model: nn.Module) -> list[Any]:
    """All that an intervention puts on a model."""
    hooked = [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(m.__dict__)) for m in model.modules()]
    return ["generate" in model.__dict__, *hooked]


# -- what is read ------------------------------------------------------------------------------------------


@each_family
def test_the_pictures_and_the_prompts_show_in_what_a_model_says(name: str) -> None:
    # Otherwise the tests below would see nothing.
    made = family(name)
    inputs = made.with_image()
    other = inputs | {"pixel_values": inputs["pixel_values"].flip(0) + 0.5}
    assert differs(logits(made.model, inputs)[:, -1], logits(made.model, other)[:, -1])
    assert len({tuple(words) for words in answer(made.model, inputs)[0].tolist()}) == len(ALL)


@each_family
def test_the_decoder_layers_are_those_of_the_language_model(name: str) -> None:
    model = family(name).model
    found = decoder_layers(model)
    assert len(found) == model.config.get_text_config().num_hidden_layers == LAYERS
    stem = {"idefics": "model.layers", "idefics2": "model.text_model.layers", "idefics3": "model.text_model.layers"}
    names = {id(module): path for path, module in model.named_modules()}
    assert [names[id(layer)] for layer in found] == [
        f"{stem.get(name, 'model.language_model.layers')}.{number}" for number in range(LAYERS)
    ]


@each_family
@pytest.mark.parametrize("where", ["last", "text"])
def test_states_of_a_padded_batch_are_those_of_its_prompts(name: str, where: Any) -> None:
    made = family(name)
    found = states(made.model, made.with_image(), where)
    assert found.shape == (LAYERS, len(ALL), WIDTH)
    assert found.dtype == torch.float32
    for number in ALL:
        close(found[:, number], states(made.model, made.single(number), where)[:, 0])


@each_family
def test_states_are_what_transformers_calls_hidden_states(name: str) -> None:
    made = family(name)
    model = copy.deepcopy(made.model)  # transformers' hooks stay on a model
    inputs = made.with_image()
    with torch.inference_mode():
        theirs = model(**inputs, output_hidden_states=True).hidden_states
    chosen = places(inputs["input_ids"], "text")
    last, text = states(made.model, inputs), states(made.model, inputs, "text")
    for layer in range(LAYERS - 1):  # behind the last one they stand after the final norm
        close(last[layer], theirs[layer + 1][:, -1])
        means = [held[where].mean(0) for held, where in zip(theirs[layer + 1], chosen, strict=True)]
        close(text[layer], torch.stack(means))


# -- what is changed ---------------------------------------------------------------------------------------


@each_family
def test_no_edits_change_nothing_and_nothing_is_left_on_the_model(name: str) -> None:
    made = family(name)
    model, inputs = made.model, made.with_image()
    before = (traces(model), logits(model, inputs), answer(model, inputs))
    with Intervention([]).on(model):
        assert torch.equal(logits(model, inputs), before[1])
        assert equal(answer(model, inputs), before[2])
    with Intervention(edits(model, "all")).on(model):
        assert traces(model) != before[0]
        assert differs(logits(model, inputs), before[1])
        assert not equal(answer(model, inputs), before[2])
    assert traces(model) == before[0]
    with pytest.raises(ZeroDivisionError), Intervention(edits(model)).on(model):
        raise ZeroDivisionError
    assert traces(model) == before[0]
    assert "generate" not in model.__dict__
    assert torch.equal(logits(model, inputs), before[1])
    assert equal(answer(model, inputs), before[2])


@each_family
def test_exactly_the_positions_asked_for_are_changed_and_by_exactly_the_vector(name: str) -> None:
    made = family(name)
    inputs, layer = made.with_image(), steerable_layers(made.model)[-1]
    plain = outputs(made.model, inputs)
    for tokens in kinds(name):
        with Intervention([Edit(layer, shifted, tokens)]).on(made.model) as tally:
            found = outputs(made.model, inputs)
        chosen = places(inputs["input_ids"], tokens)
        assert tally.changed[layer] == int(chosen.sum())
        assert all(torch.equal(found[n], plain[n]) for n in range(layer))
        assert torch.equal(found[layer], torch.where(chosen[..., None], plain[layer] + VECTOR, plain[layer]))


def test_what_other_hooks_saw_before_is_not_written_into() -> None:
    made = family("llava")
    plain = outputs(made.model, made.with_image())
    found: list[Tensor] = []
    hook = decoder_layers(made.model)[0].register_forward_hook(lambda _module, _args, output: found.append(output))
    for tokens in KINDS:
        with Intervention([Edit(0, shifted, tokens)]).on(made.model):
            logits(made.model, made.with_image())
    hook.remove()
    assert all(torch.equal(held, plain[0]) for held in found)


@each_family
def test_states_inside_an_intervention_hold_the_change(name: str) -> None:
    made = family(name)
    layer = steerable_layers(made.model)[-1]
    for inputs in (made.with_image(), made.single(1)):
        plain = states(made.model, inputs)
        with Intervention([Edit(layer, shifted)]).on(made.model):
            found = states(made.model, inputs)
        assert torch.equal(found[:layer], plain[:layer])
        assert torch.equal(found[layer], plain[layer] + VECTOR)


@pytest.mark.parametrize(("name", "tokens"), [(name, tokens) for name in FAMILIES for tokens in kinds(name)])
def test_however_a_prompt_is_read_and_answered_the_change_is_the_same(name: str, tokens: Tokens) -> None:
    made = family(name)
    model, inputs = made.model, made.with_image()
    plain = answer(model, inputs)
    for phases in PHASES:
        change = edits(model, tokens, phases)
        expected = by_hand(model, inputs, tokens, phases)
        assert differs(expected[1][:, 0], plain[1][:, 0]) == (phases != "decode")
        assert differs(expected[1][:, 1], plain[1][:, 1])
        assert_same(steered(model, inputs, change), expected)
        assert_same(steered(model, inputs, change, use_cache=False), expected)
        if made.chunk is not None:
            assert_same(steered(model, inputs, change, prefill_chunk_size=made.chunk), expected)
        if phases == "all":
            for number in ALL:
                assert_same(steered(model, made.single(number), change), row(expected, number))


@each_family
def test_steered_words_are_other_words(name: str) -> None:
    made = family(name)
    plain = answer(made.model, made.with_image())[0]
    found = steered(made.model, made.with_image(), edits(made.model, "all"))[0]
    assert all(left != right for left, right in zip(plain.tolist(), found.tolist(), strict=True))


@each_family
def test_behind_the_last_layer_only_the_last_token_speaks(name: str) -> None:
    made = family(name)
    layer = steerable_layers(made.model)[-1]
    plain = answer(made.model, made.with_image())
    for tokens in set(kinds(name)) & {"image"}:
        assert_same(steered(made.model, made.with_image(), [Edit(layer, shifted, tokens, "prefill")]), plain)
        found = steered(made.model, made.with_image(), [Edit(layer, shifted, tokens, "all")])
        close(found[1][:, 0], plain[1][:, 0])
        assert differs(found[1][:, 1], plain[1][:, 1])
    found = steered(made.model, made.with_image(), [Edit(layer, shifted, "last", "prefill")])
    assert differs(found[1][:, 0], plain[1][:, 0])


def test_a_family_without_placeholders_says_so() -> None:
    made = family("idefics")
    for tokens in ("text", "image"):
        with pytest.raises(UsageError, match="this family has none"):
            steered(made.model, made.with_image(), [Edit(0, shifted, tokens)])


@pytest.mark.parametrize("name", ["idefics", "mllama"])
def test_chunks_that_transformers_refuses_are_refused_in_the_same_words(name: str) -> None:
    made = family(name)
    with pytest.raises(ValueError, match="Chunked prefill cannot split the raw multimodal inputs") as theirs:
        answer(made.model, made.with_image(), prefill_chunk_size=3)
    with pytest.raises(ValueError, match="Chunked prefill") as ours:
        steered(made.model, made.with_image(), edits(made.model), prefill_chunk_size=3)
    assert str(ours.value) == str(theirs.value)


# Idefics's black picture is refused as any other.
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"idefics"}))
def test_chunks_of_a_prompt_without_a_picture(name: str) -> None:
    made = family(name)
    inputs = made.text_only()
    inputs.pop("token_type_ids", None)  # PaliGemma without it reads in one direction
    for tokens in kinds(name):
        if tokens == "image":
            continue
        change = edits(made.model, tokens)
        whole = steered(made.model, inputs, change, "always")
        assert differs(whole[1], answer(made.model, inputs)[1])
        for size in (1, 3):
            assert_same(steered(made.model, inputs, change, "always", prefill_chunk_size=size), whole)


# -- ways of answering -------------------------------------------------------------------------------------


@each_family
def test_samples_repeat_with_their_seed_and_are_steered(name: str) -> None:
    made = family(name)

    def sampled(seed: int, made_edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return steered(made.model, made.with_image(), made_edits, do_sample=True, num_return_sequences=2)

    change = edits(made.model, change=by_row(VECTORS))
    found = sampled(0, change)
    assert equal(found, sampled(0, change))
    assert not torch.equal(found[0], sampled(1, change)[0])
    assert differs(found[1][:, 0], sampled(0, ())[1][:, 0])
    for number in ALL:  # both answers to a prompt begin with its own vector
        alone = steered(made.model, made.single(number), edits(made.model, change=by_row(VECTORS[number : number + 1])))
        close(found[1][2 * number : 2 * number + 2, 0], alone[1][:, 0].repeat(2, 1))


@each_family
@pytest.mark.parametrize("phases", PHASES)
def test_every_prompt_gets_its_own_vector_with_beams_too(name: str, phases: Phases) -> None:
    made = family(name)
    model = made.model
    plain = answer(model, made.with_image())
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}):
        found = _searched(model, made.with_image(), edits(model, "all", phases, by_row(VECTORS)), **options)
        for number in ALL:
            change = edits(model, "all", phases, by_row(VECTORS[number : number + 1]))
            alone = _searched(model, made.single(number), change, **options)
            count = len(alone[0])
            assert found[0][count * number : count * (number + 1)].tolist() == alone[0].tolist()
            if options:
                close(found[1][count * number : count * (number + 1)], alone[1])
    assert not torch.equal(found[0][::2], plain[0])


def _searched(model: nn.Module, inputs: Mapping[str, Any], made: Sequence[Edit], **options: Any) -> tuple[Any, Any]:
    """Words and, of beams, their scores."""
    with Intervention(made).on(model):
        found = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, **options)
    return found.sequences[:, -STEPS:], found.get("sequences_scores")


# -- prompts with and without a picture --------------------------------------------------------------------


@each_family
def test_prompts_without_a_picture_are_left_alone_to_the_bit_unless_always(name: str) -> None:
    made = family(name)
    model, inputs = made.model, made.text_only()
    plain, read = answer(model, inputs), logits(model, inputs)
    for tokens in set(kinds(name)) - {"image"}:
        change = edits(model, tokens)
        assert equal(steered(model, inputs, change), plain)
        found = steered(model, inputs, change, "always")
        assert differs(found[1][:, 0], plain[1][:, 0])
        with Intervention(change).on(model):
            assert torch.equal(logits(model, inputs), read)
        with Intervention(change, when="always").on(model):
            assert differs(logits(model, inputs)[:, -1], read[:, -1])


@each_family
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_of_a_mixed_batch_the_rows_with_a_picture_are_steered(name: str, options: dict[str, Any]) -> None:
    made = family(name)
    model, inputs = made.model, made.mixed()
    change = edits(model, "all", change=by_row(VECTORS))
    plain, _ = _searched(model, inputs, (), **options)
    found, _ = _searched(model, inputs, change, **options)
    full, _ = _searched(model, made.with_image(), change, **options)
    assert found[1].tolist() == plain[1].tolist()
    for number in (0, 2):
        assert found[number].tolist() == full[number].tolist() != plain[number].tolist()
    with Intervention(change).on(model):
        read = logits(model, inputs)
    assert torch.equal(read[1], logits(model, inputs)[1])
    assert differs(read[::2, -1], logits(model, inputs)[::2, -1])


def test_layers_that_only_read_the_picture_are_not_steered() -> None:
    made = family("mllama")
    assert steerable_layers(made.model) == (0, 2)
    assert not states(made.model, made.text_only())[1].any()  # it does not run
    with pytest.raises(NotApplied, match="decoder layer 1 fired 0 times"):
        steered(made.model, made.text_only(), [Edit(1, shifted)], "always")


@each_family
def test_all_layers_can_be_steered_but_those_that_only_read_the_picture(name: str) -> None:
    assert steerable_layers(family(name).model) == ((0, 2) if name == "mllama" else (0, 1, 2))


# -- other precisions and machines -------------------------------------------------------------------------


@each_family
def test_in_bf16_states_stay_in_bf16(name: str) -> None:
    made = family(name)
    model = copy.deepcopy(made.model).to(torch.bfloat16)
    inputs, only_seeing = (
        {key: value.bfloat16() if value.is_floating_point() else value for key, value in asked.items()}
        for asked in (made.mixed(), made.with_image())
    )
    plain = outputs(model, inputs)
    for tokens in kinds(name):
        change = edits(model, tokens)  # the vector is in fp32
        with Intervention(change).on(model):
            found = outputs(model, inputs)
        assert {held.dtype for held in found} == {torch.bfloat16}
        if tokens == "last":
            assert torch.equal(found[0][0, -1], (plain[0][0, -1].float() + VECTOR).bfloat16())
        for asked in (inputs, only_seeing):
            assert not equal(steered(model, asked, change), answer(model, asked))


@pytest.mark.parametrize("offload", [False, True], ids=["dispatched", "offloaded"])
def test_a_model_that_accelerate_placed_is_steered_alike(offload: bool) -> None:
    import accelerate

    made = family("llava")
    change = edits(made.model, "all", change=by_row(VECTORS))
    expected = steered(made.model, made.with_image(), change)
    placed = copy.deepcopy(made.model)
    if offload:
        accelerate.cpu_offload(placed, execution_device=torch.device("cpu"))
        assert placed.lm_head.weight.is_meta
    else:
        accelerate.dispatch_model(placed, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert all(hasattr(layer.mlp.down_proj, "_hf_hook") for layer in decoder_layers(placed))
    assert equal(steered(placed, made.with_image(), change), expected)


def test_adapters_are_steered_as_the_weights_they_make() -> None:
    made = family("llava")
    adapted = tiny.lora(copy.deepcopy(made.model), targets=("q_proj", "v_proj")).eval()
    change = edits(made.model, "all", change=by_row(VECTORS))
    found = steered(adapted, made.with_image(), change)
    assert differs(found[1], steered(made.model, made.with_image(), change)[1])
    assert_same(found, steered(adapted.merge_and_unload(), made.with_image(), change))


# -- LLaVA: decoding in other ways, conversations, embeddings ----------------------------------------------


@pytest.mark.parametrize("tokens", KINDS)
def test_drafted_tokens_are_steered_as_others_are(tokens: Tokens) -> None:
    made = family("llava")
    inputs = made.single(1)
    passes = []
    for number in (0, 1):
        change = [Edit(0, by_row(VECTORS[number : number + 1] / 3), tokens, "all")]
        found = []
        for options in ({}, {"prompt_lookup_num_tokens": 2}):
            with Intervention(change).on(made.model) as tally:
                found.append(answer(made.model, inputs, max_new_tokens=24, **options))
            passes.append(tally.passes)
        assert_same(found[1], found[0])
    assert passes[1] < passes[0] or passes[3] < passes[2]  # some drafts were taken


def test_a_cache_of_fixed_size() -> None:
    made = family("llava")
    change = edits(made.model, "all", change=by_row(VECTORS))
    assert_same(
        steered(made.model, made.with_image(), change, cache_implementation="static"),
        steered(made.model, made.with_image(), change),
    )


def first_turn(made: Family, inputs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The cache of an answer, and the inputs of the question after it."""
    from transformers import DynamicCache

    kept = DynamicCache(config=made.model.config)
    said, _ = answer(made.model, inputs, past_key_values=kept)
    ids = torch.cat([inputs["input_ids"], said, torch.tensor([[41, 42]] * len(said))], 1)
    return kept, {"input_ids": ids, "attention_mask": (ids != PAD).long()}


@pytest.mark.parametrize("shown", ["whole", "rest"])
def test_a_conversation_goes_on_from_a_cache(shown: str) -> None:
    made = family("llava")
    for tokens in ("all", "last", "text"):
        change = edits(made.model, tokens, change=by_row(VECTORS))
        with Intervention(change).on(made.model):
            kept, asked = first_turn(made, made.with_image())
            read = kept.get_seq_length()
            if shown == "rest":
                asked["input_ids"] = asked["input_ids"][:, read:]
                assert not (asked["input_ids"] == IMAGE).any()
            found = answer(made.model, asked, past_key_values=kept)
        kept, asked = first_turn(made, made.with_image())
        assert differs(found[1][:, 0], answer(made.model, asked, past_key_values=kept)[1][:, 0])


@pytest.mark.parametrize("shown", ["whole", "rest"])
def test_every_position_of_a_conversation_is_steered_as_if_read_at_once(shown: str) -> None:
    made = family("llava")
    change = edits(made.model, "all", change=by_row(VECTORS))
    with Intervention(change).on(made.model):
        kept, asked = first_turn(made, made.mixed())
        at_once = answer(made.model, made.mixed() | asked)
        if shown == "rest":
            asked["input_ids"] = asked["input_ids"][:, kept.get_seq_length() :]
        assert_same(answer(made.model, asked, past_key_values=kept), at_once)


def test_a_picture_that_a_later_turn_brings() -> None:
    made = family("llava")
    seen = made.with_image()["pixel_values"].flip(0)
    for tokens in KINDS:
        change = edits(made.model, tokens, change=by_row(VECTORS))
        found = []
        for shown in ("whole", "rest"):
            with Intervention(change).on(made.model) as tally:
                kept, asked = first_turn(made, made.text_only())
                assert not tally.changed
                asked["input_ids"][:, -1:] = IMAGE
                more = torch.tensor([[IMAGE] * (made.placeholders - 1) + [43, 44]] * len(ALL))
                ids = torch.cat([asked["input_ids"], more], 1)
                asked = {"attention_mask": (ids != PAD).long(), "pixel_values": seen}
                if shown == "rest":
                    ids = ids[:, kept.get_seq_length() :]
                found.append(answer(made.model, {"input_ids": ids, **asked}, past_key_values=kept))
                if tokens == "image":
                    assert tally.changed[0] == len(ALL) * (made.placeholders + STEPS - 1)
        assert_same(found[1], found[0])


def test_a_loop_written_by_hand_is_steered_as_generation_is() -> None:
    from transformers import DynamicCache

    made = family("llava")
    for tokens in KINDS:
        change = edits(made.model, tokens, change=by_row(VECTORS))
        expected = steered(made.model, made.mixed(), change)
        kept, inputs, found = DynamicCache(config=made.model.config), made.mixed(), []
        places_of = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode(), Intervention(change).on(made.model):
            read = made.model(**inputs, position_ids=places_of, past_key_values=kept)
            for step in range(STEPS):
                found.append(read.logits[:, -1])
                more = {"attention_mask": torch.cat([inputs["attention_mask"], torch.ones(3, step + 1).long()], 1)}
                said = expected[0][:, step : step + 1]
                more["position_ids"] = places_of[:, -1:] + step + 1
                read = made.model(input_ids=said, **more, past_key_values=kept)
            with pytest.raises(NotApplied, match="it is not known where its prompt ends"):
                made.model(input_ids=torch.tensor([[41, 42]] * 3), past_key_values=kept)
        close(torch.stack(found, 1), expected[1])


def test_a_conversation_whose_beginning_nobody_saw_is_refused() -> None:
    made = family("llava")
    found = []
    kept, asked = first_turn(made, made.with_image())
    whole = steered(made.model, asked, edits(made.model), past_key_values=kept)  # its ids show the pictures
    for sees in (None, [True] * 3, [False] * 3):
        kept, asked = first_turn(made, made.with_image())
        asked["input_ids"] = asked["input_ids"][:, kept.get_seq_length() :]
        with Intervention(edits(made.model), sees=sees).on(made.model):
            if sees is None:
                with pytest.raises(NotApplied, match="which prompts have a picture"):
                    answer(made.model, asked, past_key_values=kept)
            else:
                found.append(answer(made.model, asked, past_key_values=kept))
    assert_same(found[0], whole)
    assert differs(found[1][1][:, 0], whole[1][:, 0])


def embedded(made: Family, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same prompts as embeddings, pictures in their places."""
    model = made.model
    ids = inputs["input_ids"]
    found = model.get_input_embeddings()(ids)
    pictures = torch.cat(list(model.model.get_image_features(inputs["pixel_values"]).pooler_output))
    found = found.masked_scatter((ids == IMAGE)[..., None], pictures)
    return {"inputs_embeds": found, "attention_mask": inputs["attention_mask"]}


def test_embeddings_do_not_show_pictures_so_the_caller_has_to_say() -> None:
    made = family("llava")
    model, inputs = made.model, made.mixed()
    change = edits(model, "last", change=by_row(VECTORS))
    shown = embedded(made, inputs)
    assert_same(answer(model, shown), answer(model, inputs))
    with pytest.raises(NotApplied, match="which prompts have a picture"):
        steered(model, shown, change)
    with Intervention(change, sees=[True, False, True]).on(model):
        assert_same(answer(model, shown), steered_elsewhere(inputs, change))
    with Intervention(change, when="always", sees=[False] * 3).on(model):
        assert_same(answer(model, shown), steered_elsewhere(inputs, change, "always"))
    with Intervention(change, sees=[True, False]).on(model), pytest.raises(UsageError, match="2 values for 3 prompts"):
        answer(model, shown)
    pixels = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])} | {
        name: inputs[name] for name in ("attention_mask", "pixel_values")
    }
    assert_same(answer(model, pixels), answer(model, inputs))
    with pytest.raises(NotApplied, match="which prompts have a picture"):
        steered(model, pixels, change)


def steered_elsewhere(inputs: Mapping[str, Any], made: Sequence[Edit], when: When = "image") -> tuple[Tensor, Tensor]:
    """By another copy of LLaVA, while the shared one is being steered."""
    return steered(FAMILIES["llava"]().model, inputs, made, when)


# -- fails closed ------------------------------------------------------------------------------------------


class Skipped(nn.Module):
    """A layer that hands on what it gets."""

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        return hidden_states


@each_family
def test_a_layer_that_is_passed_by_is_noticed(name: str) -> None:
    model = copy.deepcopy(family(name).model)
    layer = steerable_layers(model)[-1]
    whole = next(module for module in model.modules() if isinstance(module, nn.ModuleList) and _is(module, model))
    kept = whole[layer]
    with Intervention([Edit(layer, shifted)]).on(model):
        whole[layer] = Skipped()
        with pytest.raises(NotApplied, match=f"decoder layer {layer} fired 0 times in {STEPS} passes"):
            answer(model, family(name).with_image())
        whole[layer] = kept
        answer(model, family(name).with_image())
        swap = model.register_forward_hook(lambda *_: whole.__setitem__(layer, Skipped()))
        with pytest.raises(NotApplied, match=f"fired 1 times in {STEPS} passes"):  # the prompt was steered, no more
            answer(model, family(name).with_image())
        swap.remove()


def _is(listed: nn.ModuleList, model: nn.Module) -> bool:
    return list(listed) == decoder_layers(model)


def test_what_runs_past_the_model_is_refused() -> None:
    made = family("llava")
    model, inputs = made.model, made.with_image()
    with Intervention(edits(model)).on(model):
        for _ in range(2):
            with pytest.raises(NotApplied, match="outside a pass of the whole model"):
                model.model(**inputs)
            logits(model, inputs)  # a pass that is over is not that of the next call
        kept = model(**made.single(0), use_cache=True).past_key_values
        with pytest.raises(NotApplied, match="it is not known where its prompt ends"):
            model(input_ids=torch.tensor([[41, 42]]), past_key_values=kept)


def test_a_layer_that_reads_other_positions_than_the_model_is_refused() -> None:
    model = copy.deepcopy(family("llava").model)
    layer = decoder_layers(model)[0]
    whole = layer.forward
    layer.forward = lambda states, *args, **options: whole(states, *args, **options)[:, -1:]
    with pytest.raises(NotApplied, match="decoder layer 0 holds 1 positions; the pass has 12"):
        steered(model, family("llava").with_image(), edits(model))


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_a_prompt_that_is_cut_on_its_way_to_the_model_is_noticed(tokens: Tokens) -> None:
    model = copy.deepcopy(family("llava").model)
    whole = model.prepare_inputs_for_generation
    kept = slice(1, None)

    @wraps(whole)
    def cut(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = whole(*args, **kwargs)
        if found["input_ids"].shape[1] > 1:
            found |= {name: found[name][:, kept] for name in ("input_ids", "position_ids")}
        return found

    change = edits(model, tokens)
    steered(model, family("llava").single(0), change)
    model.prepare_inputs_for_generation = cut
    with pytest.raises(NotApplied, match="begins at position 0 does not hold what the prompt has there"):
        steered(model, family("llava").single(0), change)
    kept = slice(0, -1)
    with pytest.raises(NotApplied, match="begins at position 9 does not hold what the prompt has there"):
        steered(model, family("llava").single(0), change)
    with pytest.raises(NotApplied, match=r"layer 0 changed \d of \d+ positions of the prompts"):
        steered(model, family("llava").single(0), change, max_new_tokens=1)


def test_a_cache_that_loses_positions_is_noticed() -> None:
    from transformers import DynamicCache

    made = family("llava")
    expected = "begins at position 6 does not hold what the prompt has there"
    for inputs in (made.single(0), embedded(made, made.single(0))):
        kept = DynamicCache(config=made.model.config)
        with Intervention(edits(made.model), sees=[True]).on(made.model), pytest.raises(NotApplied, match=expected):
            evict = made.model.register_forward_hook(lambda *_, kept=kept: kept.crop(6 - kept.get_seq_length()))
            try:
                answer(made.model, inputs, past_key_values=kept)
            finally:
                evict.remove()


@pytest.mark.parametrize("lost", ["cache", "ids"])
def test_what_a_later_turn_loses_is_noticed(lost: str) -> None:
    made = replace(family("llava"), model=copy.deepcopy(family("llava").model))
    whole = made.model.prepare_inputs_for_generation

    @wraps(whole)
    def cut(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = whole(*args, **kwargs)
        if found["input_ids"].shape[1] > 1:
            found |= {name: found[name][:, 1:] for name in ("input_ids", "position_ids")}
        return found

    with Intervention(edits(made.model)).on(made.model):
        kept, asked = first_turn(made, made.single(0))
        read = kept.get_seq_length()
        asked["input_ids"] = asked["input_ids"][:, read:]
        if lost == "ids":
            made.model.prepare_inputs_for_generation = cut
        else:
            made.model.register_forward_hook(lambda *_: kept.crop(6 - kept.get_seq_length()))
        with pytest.raises(NotApplied, match=f"begins at position {read if lost == 'ids' else 6} does not hold"):
            answer(made.model, asked, past_key_values=kept)


def test_one_intervention_at_a_time() -> None:
    model, other = family("llava").model, family("qwen2_vl").model
    with Intervention([]).on(model):
        for again in (Intervention([]), Intervention(edits(model))):
            with pytest.raises(UsageError, match="being steered already"), again.on(model):
                pass
        with Intervention(edits(other)).on(other):
            pass
    with Intervention(edits(model)).on(model):
        pass


def test_layers_that_the_model_has_not_are_refused() -> None:
    model = family("llava").model
    for layer in (-1, LAYERS):
        with (
            pytest.raises(ModelError, match=f"layer {layer}; the model has layers 0 to 2"),
            Intervention([Edit(layer, shifted)]).on(model),
        ):
            pass
