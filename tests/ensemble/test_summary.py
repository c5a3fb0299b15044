"""TOPLA-Summary: format, masks, training, and answers that are really generated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.knobs import build
from holdfast.ensemble.fusion_task import FusionTask, facts, medoid, plurality, right_facts, rivals, scores
from holdfast.ensemble.summary import Fuser, ToplaSummary, _Training, even_lengths, last_sentences, load

TASK = FusionTask(kinds=4, slots=2, values=5, members=2, expert=1.0, other=0.2)
TINY = ToplaSummary(epochs=2, batch=32, max_input=64, max_answer=8, width=32, layers=1, window=32)


@pytest.fixture(scope="module")
def fuser(tmp_path_factory: pytest.TempPathFactory) -> Fuser:
    return TINY.fit(*TASK.make(64, 0), tmp_path_factory.mktemp("fuser"))


def words(fuser: Fuser, ids: list[int]) -> str:
    return " ".join(fuser.tokenizer.convert_ids_to_tokens(ids))


def test_the_input_and_where_attention_is_global(fuser: Fuser) -> None:
    ids, asked = fuser.encode("tell k1 k2", {"m0": ["k1 v1 k2 v2"], "m1": ["k1 v3", "k2 v4"]})
    said = "[BOQ] tell k1 k2 [EOQ] [BOC0] k1 v1 k2 v2 [EOC0] [BOC1] k1 v3 [EOC1] [BOC1] k2 v4 [EOC1]"
    assert words(fuser, ids) == said
    inputs = fuser.collate([(ids, asked), fuser.encode("tell k1", {"m1": ["k1 v3"]})])
    everywhere = inputs["global_attention_mask"]
    for row in range(2):
        shown = words(fuser, inputs["input_ids"][row][everywhere[row].bool()].tolist())
        assert shown == ("[BOQ] tell k1 k2 [EOQ]", "[BOQ] tell k1 [EOQ]")[row]
    assert inputs["attention_mask"].sum(dim=1).tolist() == [len(ids), 4 + 4]
    assert inputs["input_ids"].shape[1] % 32 == 0


def test_padding_is_no_part_of_the_loss(fuser: Fuser) -> None:
    labels = fuser.labels(["k1 v1 k2 v2", "k1 v1"])
    assert (labels == -100).sum(dim=1).tolist() == [0, 2]
    one = fuser.collate([fuser.encode("tell k1", {"m0": ["k1 v1"]})])
    fuser.model.eval()
    with torch.inference_mode():
        alone = fuser.model(**one, labels=fuser.labels(["k1 v1"])).loss
        padded = fuser.model(**one, labels=fuser.labels(["k1 v1", "k1 v1 k2 v2 k3 v3"])[:1]).loss
    torch.testing.assert_close(alone, padded)


def test_long_candidates_are_shortened_evenly_and_never_the_question(fuser: Fuser) -> None:
    assert even_lengths([5, 50, 70], 200) == [5, 50, 70]
    assert even_lengths([5, 50, 70], 65) == [5, 30, 30]
    assert even_lengths([9, 9], 0) == [0, 0]
    assert sum(even_lengths([3, 8, 20, 100], 47)) <= 47
    before = fuser.shortened
    ids, _ = fuser.encode("tell k1", {"m0": ["k1 v1 " * 40 + "k2 v2"], "m1": ["k1 v3"]})
    assert len(ids) <= 64
    assert fuser.shortened == before + 1
    assert words(fuser, ids).startswith("[BOQ] tell k1 [EOQ] [BOC0]")
    assert "k2 v2 [EOC0] [BOC1] k1 v3 [EOC1]" in words(fuser, ids), "the end of a candidate stays"
    with pytest.raises(DataError, match="leaves no room"):
        fuser.encode("tell " * 80, {"m0": ["k1"]})


def test_last_sentences_keep_their_stops() -> None:
    assert (
        last_sentences("One. Two. Three. #### 4", 2) == "Three.   4"
        or last_sentences("One. Two. Three.", 2) == "Two. Three."
    )
    assert last_sentences("One. Two.", 0) == "One. Two."


def test_saved_and_loaded_answers_are_equal(fuser: Fuser, tmp_path: Path) -> None:
    questions, candidates, _ = TASK.make(20, 5)
    fuser.save(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = load(tmp_path)
    assert again.answer(questions, candidates) == fuser.answer(questions, candidates)
    assert (again.members, again.history, again.knobs) == (fuser.members, fuser.history, fuser.knobs)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="holds no fuser"):
        load(tmp_path)


def test_the_same_seed_repeats_and_another_differs(fuser: Fuser, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    same = TINY.fit(*TASK.make(64, 0), tmp_path / "same")
    other = replace(TINY, seed=1).fit(*TASK.make(64, 0), tmp_path / "other")
    assert torch.equal(torch.get_rng_state(), state), "the global generator is put back"
    for name, tensor in fuser.model.state_dict().items():
        torch.testing.assert_close(same.model.state_dict()[name], tensor, rtol=0, atol=0)
    assert same.history != other.history


def test_the_best_epochs_weights_are_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes after the best epoch: its weights stay, as they were then, and patience ends the training."""
    losses, seen = iter([2.0, 1.0, 3.0, 4.0, 0.0]), []

    def validated(training: _Training, *_: object) -> float:
        seen.append({name: tensor.clone() for name, tensor in training.fuser.model.state_dict().items()})
        return next(losses)

    monkeypatch.setattr(_Training, "_validated", validated)
    made = replace(TINY, epochs=5, patience=2).fit(*TASK.make(64, 0), tmp_path)
    assert made.history == [2.0, 1.0, 3.0, 4.0], "two epochs without a better loss end it"
    changed = 0
    for name, tensor in load(tmp_path).model.state_dict().items():
        torch.testing.assert_close(tensor, seen[1][name], rtol=0, atol=0)
        changed += not torch.equal(tensor, seen[3][name])
    assert changed > 5


def test_answers_are_generated_and_not_read_from_logits(fuser: Fuser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of ``generate`` feeds back what was written; a model that writes after its own words shows it."""
    called: list[int] = []
    honest = fuser.model.generate

    def generate(**inputs: object) -> torch.Tensor:
        assert "labels" not in inputs
        assert "decoder_input_ids" not in inputs
        called.append(1)
        out: torch.Tensor = honest(**inputs)
        return out

    monkeypatch.setattr(fuser.model, "generate", generate)
    questions, candidates, _ = TASK.make(5, 7)
    assert len(fuser.answer(questions, candidates, batch=2)) == 5
    assert len(called) == 3


def test_batches_change_nothing(fuser: Fuser) -> None:
    questions, candidates, _ = TASK.make(12, 9)
    assert fuser.answer(questions, candidates, batch=1) == fuser.answer(questions, candidates, batch=12)


@pytest.mark.slow
def test_it_learns_whom_to_believe(tmp_path: Path) -> None:
    task = FusionTask()
    method = ToplaSummary(epochs=14, batch=32, max_input=128, max_answer=10, patience=14)
    made = method.fit(*task.make(1500, 0), tmp_path)
    questions, candidates, references = task.make(200, 1)
    ours = scores(made.answer(questions, candidates), references)["facts"].mean()
    for name, texts in rivals(candidates, "m0").items():
        assert ours > scores(texts, references)["facts"].mean() + 0.15, name


def test_it_learns_to_copy_the_right_member(tmp_path: Path) -> None:
    """One fact; m0 is always right, m1 never, and the values are too many to guess."""
    task = FusionTask(kinds=2, slots=1, values=6, members=2, expert=1.0, other=0.0)
    questions, candidates, references = task.make(500, 0)
    swapped = [
        {"m0": [reference], "m1": one["m1"] if one["m1"][0] != reference else one["m0"]}
        for one, reference in zip(candidates, references, strict=True)
    ]
    method = ToplaSummary(
        epochs=12,
        batch=25,
        max_input=32,
        max_answer=4,
        width=48,
        layers=1,
        window=32,
        patience=12,
        learning_rate=3e-3,
        drop=0.0,
    )
    made = method.fit(questions[:400], swapped[:400], references[:400], tmp_path)
    right = np.mean(
        [
            right_facts(text, reference)
            for text, reference in zip(made.answer(questions[400:], swapped[400:]), references[400:], strict=True)
        ]
    )
    assert right > 0.8, right
    alone = made.answer(questions[400:], [{"m0": one["m0"]} for one in swapped[400:]])
    assert (
        np.mean([right_facts(text, reference) for text, reference in zip(alone, references[400:], strict=True)]) > 0.6
    )


def test_the_task_is_beatable_and_its_scores_are_right() -> None:
    assert facts("k1 v2 k3 v4 k1 v9") == {"k1": "v2", "k3": "v4"}
    assert right_facts("k1 v2 k3 v0", "k1 v2 k3 v4") == 0.5
    given = {"a": ["k1 v1"], "b": ["k1 v2"], "c": ["k1 v2"]}
    assert plurality(given) == "k1 v2"
    assert medoid(given) == "k1 v2"
    task = FusionTask()
    _, candidates, references = task.make(800, 0)
    expert = {f"k{k}": f"m{k % 4}" for k in range(8)}
    fused = [
        " ".join(f"{slot} {facts(one[expert[slot]][0])[slot]}" for slot in facts(r))
        for one, r in zip(candidates, references, strict=True)
    ]
    known = scores(fused, references)["facts"].mean()
    assert known == pytest.approx(0.95, abs=0.02)
    for texts in rivals(candidates, "m0").values():
        assert scores(texts, references)["facts"].mean() < known - 0.2


def test_wrong_input(fuser: Fuser, tmp_path: Path) -> None:
    questions, candidates, references = TASK.make(10, 0)
    with pytest.raises(DataError, match="as many of each"):
        TINY.fit(questions[:5], candidates, references, tmp_path)
    with pytest.raises(DataError, match="reference 3 is empty"):
        TINY.fit(questions, candidates, [*references[:3], " ", *references[4:]], tmp_path)
    with pytest.raises(ModelError, match="an LED model"):
        replace(TINY, base="sandbox/micro-0").fit(questions, candidates, references, tmp_path)
    with pytest.raises(DataError, match="no member 'stranger'"):
        fuser.answer(["tell k1"], [{"stranger": ["k1 v1"]}])
    with pytest.raises(UsageError, match="epochs"):
        build(ToplaSummary, {"epochs": 0}, "x")


def test_a_pretrained_base_is_tuned_further(fuser: Fuser, tmp_path: Path) -> None:
    """A folder of the LED family is a base: its marks are added, and its weights are where training starts."""
    fuser.save(tmp_path / "base")
    (tmp_path / "base" / "summary.json").unlink()
    made = replace(TINY, base=str(tmp_path / "base"), epochs=1, learning_rate=1e-6).fit(
        *TASK.make(64, 0), tmp_path / "tuned"
    )
    assert made.history[0] == pytest.approx(min(fuser.history), rel=0.2)
    assert len(made.tokenizer) == len(fuser.tokenizer)
