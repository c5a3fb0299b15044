"""What must hold of the training loop whatever the method: each method of the tables is tested by existing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import tiny
from holdfast.core.errors import Interrupted, TrainingError, UsageError
from holdfast.core.events import Event, Progressed, Warned
from holdfast.finetune import checkpoint
from holdfast.finetune.alignment import ALIGNMENT
from holdfast.finetune.alignment.sft import SFT
from holdfast.finetune.alignment.vaccine import Vaccine
from holdfast.finetune.finetuning import FINETUNING
from holdfast.finetune.finetuning.lisa import Lisa
from holdfast.finetune.loop import make_accelerator
from holdfast.finetune.method import StepObject, TrainingMethod
from holdfast.finetune.passes import LoopPasses
from holdfast.finetune.settings import Training
from holdfast.finetune.streams import RowStream, collate
from holdfast.models.template import Encoded

METHODS: dict[str, TrainingMethod] = {
    f"{table.group.rpartition('.')[2]}-{name}": table.load(name)()
    for table in (ALIGNMENT, FINETUNING)
    for name in table
}
# Short states, so that a few steps see both and a switch.
METHODS["finetuning-lisa"] = Lisa(rho=0.5, align_steps=2, user_steps=2)
KINDS: dict[str, Callable[[], nn.Module]] = {
    "full": tiny.llama,
    "body": lambda: tiny.body(tiny.llama()),
    "lora": lambda: tiny.lora(tiny.llama(), dropout=0.3),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


# --- the loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.qwen2, lambda: tiny.lora(tiny.llama())])
def test_the_loss_is_that_of_transformers(make: Callable[[], nn.Module], precision: str) -> None:
    rows = tiny.rows("safety", 6)
    expected = float(tiny.plain_loss(make(), rows).detach())
    passes = tiny.passes(make(), tiny.streams({"safety": rows}, 3, accumulate=2), precision=precision)
    found = float(passes.backward(passes.draw("safety")))
    assert found == pytest.approx(expected, rel=1e-6 if precision == "fp32" else 2e-2)
    assert passes._keeps, "the projection of prompt positions is not left out"


def test_the_first_token_carries_no_loss() -> None:
    """An answer without a prompt: 6 tokens, of which 5 are predicted from the ones before them."""
    row = Encoded((3, 4, 5, 6, 7, 8), 0)
    model = tiny.llama()
    passes = tiny.passes(model, tiny.streams({"safety": [row]}, 1))
    batch = passes.draw("safety")
    assert batch.tokens == 5
    logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    expected = -sum(float(logits[i, row.ids[i + 1]].detach()) for i in range(5)) / 5
    assert float(passes.backward(batch)) == pytest.approx(expected, rel=1e-5)


@every_method
def test_accumulation_is_one_large_batch(method: TrainingMethod) -> None:
    """Rows of different lengths: 4 x 2 rows give the gradient of 1 x 8, over several steps."""
    found = []
    for batch, accumulate in ((8, 1), (2, 4)):
        model = tiny.llama()
        passes = tiny.passes(model, tiny.streams(tiny.data(8), batch, accumulate))
        step = method.start(passes)
        losses = []
        for _ in range(5):
            model.zero_grad()
            losses.append(float(step(passes)))
            last = tiny.gradients(model)
            with torch.no_grad():
                for p in passes.parameters:
                    p.sub_(0.1 * p.grad)
            passes.step += 1
        found.append((last, losses))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    tiny.assert_close(found[0][0], found[1][0], atol=5e-6, rtol=1e-4)


def test_noise_belongs_to_the_batch() -> None:
    """With dropout: the same batch twice, the same gradient; the next batch of the same rows, another."""
    rows = {"safety": tiny.rows("safety", 1)}
    for model in (tiny.lora(tiny.llama(), dropout=0.5), tiny.llama(attention_dropout=0.5), tiny.gpt2(resid_pdrop=0.5)):
        passes = tiny.passes(model, tiny.streams(rows, 1))
        first, second = passes.draw("safety"), passes.draw("safety")
        losses = [float(passes.gradient(batch)[1]) for batch in (first, first, second)]
        assert losses[0] == losses[1]
        assert losses[0] != losses[2]


# --- interruption ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    weights: dict[str, Tensor]
    measured: dict[str, float]
    first: dict[str, float]
    losses: list[tuple[int, float]]


STEPS = 7


def unbroken(make: Callable[[], nn.Module], method: TrainingMethod, folder: Path, **settings: Any) -> Whole:
    model = make()
    outcome = tiny.fit(model, method, folder, steps=STEPS, **settings)
    assert outcome.steps == STEPS
    return Whole(tiny.weights(model), outcome.measured, outcome.first, outcome.losses)


@pytest.mark.parametrize("kind", KINDS)
@every_method
def test_interrupted_anywhere_and_gone_on_it_ends_the_same(method: TrainingMethod, kind: str, tmp_path: Path) -> None:
    """Ctrl-C inside the 2nd, 7th, 9th, ... forward pass (each is another place inside a step), again and again."""
    settings: dict[str, Any] = {"batch_size": 2, "accumulate": 2, "schedule": "cosine", "warmup": 0.3}
    expected = unbroken(KINDS[kind], method, tmp_path / "whole", **settings)
    stops = 0
    for at in (2, 7, 9, 12, 11):
        model = KINDS[kind]()
        tiny.Interruption(model, at)
        try:
            tiny.fit(model, method, tmp_path / "broken", steps=STEPS, **settings)
        except Interrupted:
            stops += 1
    assert stops >= 2
    model = KINDS[kind]()
    outcome = tiny.fit(model, method, tmp_path / "broken", steps=STEPS, **settings)
    assert tiny.same(tiny.weights(model), expected.weights)
    assert (outcome.measured, outcome.first, outcome.losses) == (expected.measured, expected.first, expected.losses)
    assert outcome.steps == STEPS


def test_an_interruption_loses_at_most_the_step_it_falls_in(tmp_path: Path) -> None:
    """Ctrl-C in the forward pass of the 5th step, without any checkpoint before: the next sitting starts there."""
    model = tiny.llama()
    tiny.Interruption(model, 5)
    with pytest.raises(Interrupted, match="stopped at step 4 of 7"):
        tiny.fit(model, SFT(), tmp_path, steps=STEPS)
    found = checkpoint.load(tmp_path, lambda event: pytest.fail(str(event)))
    assert found is not None
    assert found.step == 4
    assert found.values["positions"] == {"safety": 4}


@pytest.mark.parametrize("where", ["before", "after", "backward"])
@pytest.mark.parametrize("every", [0, 2])
def test_interrupted_in_the_update_or_the_backward_pass(every: int, where: str, tmp_path: Path) -> None:
    """Half-updated weights, or updated ones that still count as the step before, must not be saved."""
    method = METHODS["finetuning-lisa"]
    expected = unbroken(tiny.llama, method, tmp_path / "whole")
    model = tiny.llama()
    seen = []

    def interrupt(*_: Any) -> None:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt

    if where == "backward":
        hook = next(model.parameters()).register_hook(interrupt)
    else:
        register = register_optimizer_step_pre_hook if where == "before" else register_optimizer_step_post_hook
        hook = register(interrupt)
    try:
        with pytest.raises(Interrupted):
            tiny.fit(model, method, tmp_path / "broken", steps=STEPS, every=every)
    finally:
        hook.remove()
    model = tiny.llama()
    tiny.fit(model, method, tmp_path / "broken", steps=STEPS)
    assert tiny.same(tiny.weights(model), expected.weights)


@pytest.mark.parametrize("at", range(1, 7))
def test_lisa_goes_on_from_the_middle_of_either_state(at: int, tmp_path: Path) -> None:
    method = Lisa(rho=2.0, align_steps=2, user_steps=3)
    expected = unbroken(tiny.llama, method, tmp_path / "whole")
    model = tiny.llama()
    tiny.Interruption(model, at + 1)
    with pytest.raises(Interrupted):
        tiny.fit(model, method, tmp_path / "broken", steps=STEPS)
    model = tiny.llama()
    tiny.fit(model, method, tmp_path / "broken", steps=STEPS)
    assert tiny.same(tiny.weights(model), expected.weights)


class Mutating(SFT):
    """A method whose state changes in place, before its pass: half a step must never be saved."""

    def start(self, passes: Any) -> StepObject:
        return MutatingStep(passes)


class MutatingStep(StepObject):
    def __init__(self, passes: Any) -> None:
        self.kept = [torch.zeros_like(p) for p in passes.parameters]
        self.seen: list[int] = []

    def __call__(self, passes: Any) -> Any:
        for kept, parameter in zip(self.kept, passes.parameters, strict=True):
            kept.mul_(0.5).add_(parameter.detach())
        self.seen.append(passes.step)
        loss = passes.backward(passes.draw("safety"))
        for kept, parameter in zip(self.kept, passes.parameters, strict=True):
            parameter.grad.add_(kept, alpha=0.01 * len(self.seen))
        return loss

    def state(self) -> dict[str, Any]:
        return {"kept": self.kept, "seen": self.seen}

    def restore(self, state: Any) -> None:
        self.kept, self.seen = state["kept"], state["seen"]


@pytest.mark.parametrize("every", [0, 2])
def test_state_that_changes_in_place_is_never_saved_half_changed(every: int, tmp_path: Path) -> None:
    expected = unbroken(tiny.llama, Mutating(), tmp_path / "whole")
    model = tiny.llama()
    tiny.Interruption(model, 4)
    with pytest.raises(Interrupted):
        tiny.fit(model, Mutating(), tmp_path / "broken", steps=STEPS, every=every)
    model = tiny.llama()
    tiny.fit(model, Mutating(), tmp_path / "broken", steps=STEPS)
    assert tiny.same(tiny.weights(model), expected.weights)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize(
    "file", ["parameters.safetensors", "optimizer.safetensors", "method.safetensors", "state.json"]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    file: str, damage: Callable[[Path], object], tmp_path: Path
) -> None:
    if (file, damage) == ("state.json", flip):
        damage = truncate  # a flipped last byte of JSON is its newline
    method = METHODS["finetuning-lisa"]
    expected = unbroken(tiny.llama, method, tmp_path / "whole")
    tiny.fit(tiny.llama(), method, tmp_path / "broken", steps=STEPS, every=2)
    assert [path.name for path in checkpoints(tmp_path / "broken")] == ["step-000000004", "step-000000006"]
    damage(checkpoints(tmp_path / "broken")[-1] / file)
    events: list[Event] = []
    model = tiny.llama()
    tiny.fit(model, method, tmp_path / "broken", steps=STEPS, sink=events.append)
    assert tiny.same(tiny.weights(model), expected.weights)
    said = [event.message for event in events if isinstance(event, Warned)]
    assert len(said) == 2
    assert said[0].startswith("checkpoint step-000000006 is damaged")
    assert said[1] == "going on from step 4 of 7"


def test_when_every_checkpoint_is_damaged_it_starts_anew(tmp_path: Path) -> None:
    expected = unbroken(tiny.llama, SFT(), tmp_path / "whole")
    tiny.fit(tiny.llama(), SFT(), tmp_path / "broken", steps=STEPS, every=2)
    for path in checkpoints(tmp_path / "broken"):
        flip(path / "parameters.safetensors")
    model = tiny.llama()
    outcome = tiny.fit(model, SFT(), tmp_path / "broken", steps=STEPS)
    assert tiny.same(tiny.weights(model), expected.weights)
    assert outcome.losses == expected.losses


def test_checkpoints_do_not_change_the_result(tmp_path: Path) -> None:
    method = METHODS["finetuning-lisa"]
    expected = unbroken(tiny.llama, method, tmp_path / "none")
    assert tiny.same(unbroken(tiny.llama, method, tmp_path / "each", every=1).weights, expected.weights)
    assert not checkpoints(tmp_path / "none")


# --- what is not finite, what is empty ---------------------------------------------------------------


class Poisoned(SFT):
    """From one step on the loss is NaN, or the gradient is and the loss is not."""

    loss_at: int | None = None
    gradient_at: int | None = None

    def start(self, passes: Any) -> StepObject:
        return PoisonedStep(type(self))


class PoisonedStep(StepObject):
    def __init__(self, plan: Any) -> None:
        self._plan = plan

    def __call__(self, passes: Any) -> Any:
        loss = passes.backward(passes.draw("safety"))
        if passes.step == self._plan.gradient_at:
            passes.parameters[0].grad[0] = math.inf
        return loss * math.nan if passes.step == self._plan.loss_at else loss


def holds_nan(folder: Path) -> bool:
    found = [checkpoint._read(path) for path in checkpoints(folder)]
    return any(not bool(t.isfinite().all()) for c in found for group in c.tensors.values() for t in group.values())


@pytest.mark.parametrize("every", [0, 1, 3])
def test_a_loss_that_is_not_finite_names_its_step(every: int, tmp_path: Path) -> None:
    """0-based step 4 of 7 is the fifth."""
    method = type("Method", (Poisoned,), {"loss_at": 4})()
    with pytest.raises(TrainingError, match="the loss is not finite at step 5 of 7") as caught:
        tiny.fit(tiny.llama(), method, tmp_path, steps=STEPS, every=every)
    assert "learning_rate" in caught.value.hint
    kept = [path.name[-1] for path in checkpoints(tmp_path)]
    assert kept == {0: [], 1: ["3", "4"], 3: ["3"]}[every]


@pytest.mark.parametrize("every", [1, 5])
def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(every: int, tmp_path: Path) -> None:
    """The loss of that step is finite; the weights after it are not."""
    method = type("Method", (Poisoned,), {"gradient_at": 4})()
    with pytest.raises(TrainingError, match="not finite"):
        tiny.fit(tiny.llama(), method, tmp_path, steps=STEPS, every=every)
    assert not holds_nan(tmp_path)
    model = tiny.llama()
    with pytest.raises(TrainingError, match="not finite"):
        tiny.fit(model, method, tmp_path, steps=STEPS)


def test_a_gradient_that_is_not_finite_in_the_last_step_is_no_result(tmp_path: Path) -> None:
    method = type("Method", (Poisoned,), {"gradient_at": STEPS - 1})()
    with pytest.raises(TrainingError, match="the weights are not finite after step 7 of 7"):
        tiny.fit(tiny.llama(), method, tmp_path, steps=STEPS)


def test_a_learning_rate_that_explodes_ends_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        tiny.fit(tiny.llama(), SFT(), tmp_path, steps=40, learning_rate=1e30, clip=0.0, every=1)
    assert not holds_nan(tmp_path)


def test_a_first_step_without_gradient_is_an_error(tmp_path: Path) -> None:
    class Nothing(SFT):
        def start(self, passes: Any) -> StepObject:
            return NothingStep()

    class NothingStep(StepObject):
        def __call__(self, passes: Any) -> Any:
            return torch.tensor(1.0)

    with pytest.raises(TrainingError, match="no gradient at all"):
        tiny.fit(tiny.llama(), Nothing(), tmp_path)


# --- surroundings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@every_method
def test_global_randomness_and_threads_are_left_alone(method: TrainingMethod, kind: str, tmp_path: Path) -> None:
    model = KINDS[kind]()
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    tiny.fit(model, method, tmp_path, steps=3, gradient_checkpointing=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@every_method
def test_recomputing_activations_changes_nothing(method: TrainingMethod, tmp_path: Path) -> None:
    found = []
    for recompute in (False, True):
        model = tiny.lora(tiny.llama(), dropout=0.3)
        tiny.fit(model, method, tmp_path / str(recompute), steps=3, gradient_checkpointing=recompute)
        found.append(tiny.weights(model))
    tiny.assert_close(*found, atol=1e-5, rtol=1e-4)


@every_method
def test_in_bf16_the_trainables_stay_fp32(method: TrainingMethod, tmp_path: Path) -> None:
    model = tiny.lora(tiny.llama().to(torch.bfloat16))
    before = tiny.weights(model)
    tiny.fit(model, method, tmp_path, steps=3, precision="bf16")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_what_is_frozen_stays(tmp_path: Path) -> None:
    model = tiny.body(tiny.llama())
    before = tiny.weights(model)
    tiny.fit(model, SFT(), tmp_path, weight_decay=0.1)
    same = {name for name, weight in tiny.weights(model).items() if torch.equal(weight, before[name])}
    assert same == {"model.embed_tokens.weight", "lm_head.weight"}


def test_an_absent_device_is_named() -> None:
    with pytest.raises(UsageError, match="device 'xpu' is not there"):
        make_accelerator("fp32", "xpu")


def test_progress_is_told(tmp_path: Path) -> None:
    events: list[Event] = []
    outcome = tiny.fit(tiny.llama(), Vaccine(), tmp_path, steps=3, sink=events.append)
    told = [event for event in events if isinstance(event, Progressed)]
    assert [(event.done, event.total) for event in told] == [(1, 3), (2, 3), (3, 3)]
    assert [(event.done, event.loss) for event in told] == outcome.losses
    assert outcome.measured.keys() == {"activation_gradient_norm"} == outcome.first.keys()
    assert told[0].detail == outcome.first
    assert told[2].detail == outcome.measured


# --- optimiser and schedule --------------------------------------------------------------------------


def test_one_step_is_adamw_with_clipping(tmp_path: Path) -> None:
    """First step of AdamW (betas .9, .999): m/(1-.9) = g and v/(1-.999) = g^2, so w - lr (g/(|g| + eps) + decay w)."""
    model = tiny.llama()
    before = tiny.weights(model)
    rows = tiny.rows("safety", 4)
    gradient = tiny.plain_gradient(model, rows)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
    clip = 0.5
    assert norm > clip
    tiny.fit(model, SFT(), tmp_path, sets={"safety": rows}, steps=1, clip=clip, weight_decay=0.1)
    expected = {}
    for name, w in before.items():
        g = gradient[name] * clip / norm
        expected[name] = w - 0.01 * (g / (g.abs() + 1e-8) + 0.1 * w)
    # Where g is near eps the quotient depends on its last bits.
    firm = {name: gradient[name].abs() * clip / norm > 1e-5 for name in before}
    tiny.assert_close(
        {n: w[firm[n]] for n, w in tiny.weights(model).items()}, {n: w[firm[n]] for n, w in expected.items()}
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"schedule": "linear", "warmup": 0.5}, [1 / 2, 1, 1, 1 / 2]),
        ({"schedule": "constant", "warmup": 0.5}, [1 / 2, 1, 1, 1]),
        ({"schedule": "cosine"}, [1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2]),
        ({"warmup": 1.0}, [1 / 4, 2 / 4, 3 / 4, 1]),
    ],
)
def test_factors_on_the_rate(settings: dict[str, Any], expected: list[float]) -> None:
    """Four steps: after a warm-up of r steps, step s is (s - r) / (4 - r) along the decay."""
    training = Training(**settings)
    assert [training.rate_at(step, 4) for step in range(4)] == pytest.approx(expected)


def test_the_rate_reaches_the_optimiser(tmp_path: Path) -> None:
    """With warm-up over both steps the first moves weights by lr/2 (AdamW's first step is lr times the sign)."""
    model = tiny.llama()
    before = tiny.weights(model)
    tiny.Interruption(model, 2)
    with pytest.raises(Interrupted):
        tiny.fit(model, SFT(), tmp_path, steps=2, learning_rate=0.01, warmup=1.0)
    moves = torch.cat([(w - before[n]).abs().flatten() for n, w in tiny.weights(model).items()])
    assert float(moves.max()) == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "rows", "steps"),
    [
        ({"epochs": 2.0, "batch_size": 4}, 10, 5),  # 20 / 4
        ({"epochs": 1.0, "batch_size": 4}, 10, 3),  # 2.5 -> 3
        ({"epochs": 1.0, "batch_size": 4, "accumulate": 2}, 10, 2),  # 1.25 -> 2
        ({"batch_size": 10}, 1000, 2000),  # 20 epochs
        ({"epochs": 0.001}, 10, 1),
        ({"steps": 7}, 10, 7),
    ],
)
def test_number_of_steps(settings: dict[str, Any], rows: int, steps: int) -> None:
    assert Training(**settings).total_steps(rows) == steps


# --- streams -----------------------------------------------------------------------------------------


def drawn(stream: RowStream, count: int) -> Iterator[list[tuple[int, ...]]]:
    for _ in range(count):
        batch = stream.draw(tiny.CPU)
        yield [tuple(row.tolist()) for micro in batch.micros for row in micro.ids]


NUMBERED = [Encoded((3 + number, 3 + number), 1) for number in range(10)]


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 1), (10, 1), (12, 2)])
def test_each_row_comes_once_in_each_pass(batch: int, accumulate: int) -> None:
    """Also where batches straddle passes, or hold more rows than there are."""
    stream = RowStream(NUMBERED, batch, accumulate, tiny.PAD, 0, "user")
    found = [row for rows in drawn(stream, 60) for row in rows]
    passes = [found[start : start + 10] for start in range(0, len(found) - 9, 10)]
    assert all(sorted(part) == [row.ids for row in NUMBERED] for part in passes)
    assert len({tuple(part) for part in passes}) > 1, "the order is never shuffled anew"


def test_the_position_alone_decides_the_batch() -> None:
    def at(position: int, name: str = "user", seed: int = 0) -> tuple[list[tuple[int, ...]], int]:
        stream = RowStream(NUMBERED, 3, 2, tiny.PAD, seed, name)
        stream.position = position
        batch = stream.draw(tiny.CPU)
        return [tuple(row.tolist()) for micro in batch.micros for row in micro.ids], batch.noise

    stream = RowStream(NUMBERED, 3, 2, tiny.PAD, 0, "user")
    in_turn = []
    for _ in range(8):
        batch = stream.draw(tiny.CPU)
        in_turn.append(([tuple(row.tolist()) for micro in batch.micros for row in micro.ids], batch.noise))
    assert [at(position) for position in reversed(range(8))] == in_turn[::-1]
    assert len({noise for _, noise in in_turn}) == 8
    assert at(0) != at(0, name="harmful")
    assert at(0) != at(0, seed=1)


def test_padding_and_labels() -> None:
    micro = collate([Encoded((5, 6, 7, 8), 2), Encoded((9, 10), 1)], tiny.PAD, tiny.CPU)
    assert micro.ids.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert micro.labels.tolist() == [[-100, -100, 7, 8], [-100, 10, -100, -100]]
    assert micro.tokens == 3


def test_a_checkpoint_of_a_method_is_json_and_safetensors(tmp_path: Path) -> None:
    tiny.fit(tiny.llama(), METHODS["finetuning-lisa"], tmp_path, steps=STEPS, every=3)
    (first, _) = checkpoints(tmp_path)
    assert sorted(path.name for path in first.iterdir()) == [
        "method.safetensors", "optimizer.safetensors", "parameters.safetensors", "state.json",
    ]  # fmt: skip
    values = json.loads((first / "state.json").read_text())["values"]
    assert values["method"] == {"aligning": False, "clock": 1}  # A A U
    assert values["positions"] == {"user": 1, "safety": 2}


def test_passes_leave_other_gradients_alone() -> None:
    model = tiny.llama()
    passes: LoopPasses = tiny.passes(model, tiny.streams(tiny.data(4), 4))
    batch = passes.draw("safety")
    passes.backward(batch)
    before = tiny.gradients(model)
    found, loss = passes.gradient(batch)
    assert tiny.same(tiny.gradients(model), before)
    tiny.assert_close(dict(zip(before, found, strict=True)), before)
    passes.backward(batch)
    tiny.assert_close(tiny.gradients(model), {name: 2 * g for name, g in before.items()})
    assert math.isfinite(float(loss))


# --- what a step may rely on -------------------------------------------------------------------------


class WatchingStep(StepObject):
    def __init__(self, plan: Any) -> None:
        self._plan = plan

    def __call__(self, passes: Any) -> Any:
        self._plan.found.append(all(p.grad is None for p in passes.parameters))
        draws = [torch.rand(3, generator=passes.generator()).tolist() for _ in range(2)]
        self._plan.drawn.setdefault(passes.step, []).extend(draws)
        if passes.step == self._plan.stop_at:
            self._plan.stop_at = -1
            raise KeyboardInterrupt
        return passes.backward(passes.draw("safety"))


@dataclass(frozen=True)
class Watching(TrainingMethod):
    """Notes what it finds at the beginning of each step."""

    found: list[bool]
    drawn: dict[int, list[list[float]]]
    stop_at: int = -1

    name = "watching"
    stage = "align"
    needs = ("safety",)
    title = paper = "none"

    def start(self, passes: Any) -> StepObject:
        plan = type("Plan", (), {"found": self.found, "drawn": self.drawn, "stop_at": self.stop_at})
        return WatchingStep(plan)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_begins_with_an_empty_gradient(accumulate: int, tmp_path: Path) -> None:
    """Booster adds up all its passes in ``.grad``: what an earlier step left there would be applied twice."""
    method = Watching([], {})
    tiny.fit(tiny.llama(), method, tmp_path, steps=4, accumulate=accumulate)
    assert method.found == [True] * 4


def test_randomness_of_a_step_belongs_to_the_step(tmp_path: Path) -> None:
    """Two draws in a step are equal (one generator a call), steps differ, and an interrupted step draws again."""
    whole, broken = Watching([], {}), Watching([], {}, stop_at=2)
    tiny.fit(tiny.llama(), whole, tmp_path / "whole", steps=4)
    with pytest.raises(Interrupted):
        tiny.fit(tiny.llama(), broken, tmp_path / "broken", steps=4)
    tiny.fit(tiny.llama(), Watching([], broken.drawn), tmp_path / "broken", steps=4)
    assert [draws[0] == draws[1] for draws in whole.drawn.values()] == [True] * 4
    assert len({tuple(draws[0]) for draws in whole.drawn.values()}) == 4
    assert {step: draws[0] for step, draws in broken.drawn.items()} == {s: d[0] for s, d in whole.drawn.items()}
    assert all(draw == draws[0] for draws in broken.drawn.values() for draw in draws)
