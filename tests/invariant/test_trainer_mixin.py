"""Defences inside ``transformers.Trainer`` and TRL's ``SFTTrainer`` against Holdfast's own loop."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import tiny
from holdfast.core.errors import UsageError
from holdfast.finetune.alignment.booster import Booster
from holdfast.finetune.alignment.sft import SFT
from holdfast.finetune.alignment.vaccine import Vaccine
from holdfast.finetune.finetuning.lisa import Lisa
from holdfast.finetune.finetuning.safeinstruct import SafeInstruct
from holdfast.finetune.method import OWN_STREAM, TrainingMethod
from holdfast.finetune.streams import StepBatch, collate
from holdfast.finetune.trainer import DefenceMixin
from tiny import Encoded

STEPS = 6
LISA = Lisa(rho=0.5, align_steps=2, user_steps=2, discard_user=True)
METHODS = {
    "sft": SFT(), "booster": Booster(lam=2.0, alpha=0.5), "vaccine": Vaccine(rho=0.5),
    "vaccine-row": Vaccine(rho=0.5, norm="row"), "lisa": LISA,
}  # fmt: skip
SETS = {name: tiny.rows(name, 48) for name in ("safety", "harmful", "user")}


def examples(stream: str) -> list[dict[str, Any]]:
    return [{"stream": stream, "row": row} for row in SETS[stream]]


class Recorder:
    """Pads like any collator; remembers which rows each micro-batch of each stream held."""

    def __init__(self) -> None:
        self.seen: dict[str, list[list[Encoded]]] = {}

    def __call__(self, found: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        rows = [example["row"] for example in found]
        self.seen.setdefault(found[0]["stream"], []).append(rows)
        micro = collate(rows, tiny.PAD, tiny.CPU)
        lengths = torch.tensor([len(row.ids) for row in rows])
        mask = (torch.arange(micro.ids.shape[1])[None, :] < lengths[:, None]).long()
        return {"input_ids": micro.ids, "labels": micro.labels, "attention_mask": mask}


class Replay:
    """A stream that hands out recorded micro-batches in their order."""

    def __init__(self, micros: Sequence[Sequence[Encoded]], accumulate: int) -> None:
        self._micros, self._accumulate, self.position = micros, accumulate, 0

    def draw(self, device: torch.device) -> StepBatch:
        begin = self.position * self._accumulate
        self.position += 1
        found = self._micros[begin : begin + self._accumulate]
        return StepBatch(tuple(collate(rows, tiny.PAD, device) for rows in found), 0)


class Defended(DefenceMixin, Trainer):
    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Stop(TrainerCallback):
    def __init__(self, at: int) -> None:
        self._at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = control.should_training_stop or state.global_step == self._at
        return control


def arguments(folder: Path, batch: int = 4, accumulate: int = 1, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate,
        "max_steps": STEPS, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "remove_unused_columns": False, "logging_steps": 1, "seed": 0,
    }  # fmt: skip
    return TrainingArguments(**settings | changes)


def defended(
    model: nn.Module, method: TrainingMethod, args: TrainingArguments, **more: Any
) -> tuple[Defended, Recorder]:
    own = OWN_STREAM[method.stage]
    given = {f"{name}_dataset": examples(name) for name in method.needs if name != own}
    recorder = Recorder()
    settings = {"train_dataset": examples(own), "data_collator": recorder} | given | more
    return Defended(model=model, args=args, defence=method, **settings), recorder


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (2, 3)])
@pytest.mark.parametrize("name", METHODS)
def test_the_trainer_gives_the_weights_of_our_loop(name: str, batch: int, accumulate: int, tmp_path: Path) -> None:
    method = METHODS[name]
    theirs = tiny.llama()
    trainer, recorder = defended(theirs, method, arguments(tmp_path / "trainer", batch, accumulate))
    trainer.train()
    ours = tiny.llama()
    replay = {stream: Replay(micros, accumulate) for stream, micros in recorder.seen.items()}
    outcome = tiny.fit(
        ours, method, tmp_path / "loop", replay=replay, steps=STEPS, batch_size=batch, accumulate=accumulate
    )
    tiny.assert_close(tiny.weights(theirs), tiny.weights(ours), atol=2e-5, rtol=1e-4)
    told = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert told == pytest.approx([loss for _, loss in outcome.losses], abs=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_accumulation_is_one_large_batch(name: str, tmp_path: Path) -> None:
    found = []
    for batch, accumulate in ((8, 1), (2, 4)):
        model = tiny.llama()
        trainer, recorder = defended(model, METHODS[name], arguments(tmp_path / str(batch), batch, accumulate))
        trainer.train()
        found.append((tiny.weights(model), recorder.seen))
    flat = [
        {stream: [row for micro in micros for row in micro] for stream, micros in seen.items()} for _, seen in found
    ]
    assert {s: rows[: STEPS * 8] for s, rows in flat[0].items()} == {
        s: rows[: STEPS * 8] for s, rows in flat[1].items()
    }
    tiny.assert_close(found[0][0], found[1][0], atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sft"])
def test_the_defence_is_active_and_logged(name: str, tmp_path: Path) -> None:
    results = {}
    method = METHODS[name]
    plain = SFT() if method.stage == "align" else Lisa(align_steps=0)
    for kind, used in {"plain": plain, "defended": method}.items():
        model = tiny.llama()
        trainer, _ = defended(model, used, arguments(tmp_path / kind))
        trainer.train()
        results[kind] = (tiny.weights(model), trainer.state.log_history)
    assert not tiny.same(results["plain"][0], results["defended"][0])
    logged = {key for entry in results["defended"][1] for key in entry if key.startswith("defence/")}
    assert logged == {
        "booster": {f"defence/harmful_{what}" for what in ("gradient_norm", "loss", "loss_after_step")},
        "vaccine": {"defence/activation_gradient_norm"},
    }.get(name, set())


@pytest.mark.parametrize("at", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["lisa", "booster"])
def test_a_resumed_run_ends_like_an_unbroken_one(name: str, at: int, tmp_path: Path) -> None:
    """Stopped after a step in either state and at a switch; data order, anchors and clock are taken up again."""
    whole = tiny.llama()
    defended(whole, METHODS[name], arguments(tmp_path / "whole"))[0].train()
    saving = arguments(tmp_path / "broken", save_strategy="steps", save_steps=1)
    broken, _ = defended(tiny.llama(), METHODS[name], saving, callbacks=[Stop(at)])
    broken.train()
    assert broken.state.global_step == at
    model = tiny.llama()
    resumed, _ = defended(model, METHODS[name], saving)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == STEPS
    tiny.assert_close(tiny.weights(model), tiny.weights(whole), atol=0, rtol=0)


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    Trainer(model=tiny.llama(), args=args, train_dataset=examples("user"), data_collator=Recorder()).train()
    trainer, _ = defended(tiny.llama(), LISA, arguments(tmp_path, max_steps=4))
    with pytest.raises(UsageError, match="holds no state of a defence"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_rows_of_the_other_sets_come_once_in_each_pass(tmp_path: Path) -> None:
    """6 steps of 4 rows over a harmful set of 8: three passes, each row once in each, in another order."""
    few = examples("harmful")[:8]
    trainer, recorder = defended(tiny.llama(), Booster(), arguments(tmp_path), harmful_dataset=few)
    trainer.train()
    rows = [row.ids for micro in recorder.seen["harmful"] for row in micro]
    passes = [rows[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(part) == sorted(example["row"].ids for example in few) for part in passes)
    assert len({tuple(part) for part in passes}) > 1


def test_dropout_is_the_same_in_all_passes_over_a_batch(tmp_path: Path) -> None:
    """With dropout and alpha near 0, both harmful passes give one loss."""
    trainer, _ = defended(tiny.llama(attention_dropout=0.5), Booster(alpha=1e-7), arguments(tmp_path, max_steps=1))
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["defence/harmful_loss"] == pytest.approx(entry["defence/harmful_loss_after_step"], rel=1e-5)


# --- errors ------------------------------------------------------------------------------------------


def test_a_missing_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="booster needs harmful data"):
        defended(tiny.llama(), Booster(), arguments(tmp_path), harmful_dataset=None)


def test_a_method_that_changes_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="safeinstruct only changes the rows") as caught:
        defended(tiny.llama(), SafeInstruct(), arguments(tmp_path))
    assert "train_dataset" in caught.value.hint


def test_knobs_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"booster\.lam = -1 is outside"):
        defended(tiny.llama(), Booster(lam=-1.0), arguments(tmp_path))


def test_trainables_below_fp32_are_refused(tmp_path: Path) -> None:
    trainer, _ = defended(tiny.llama().to(torch.bfloat16), Vaccine(), arguments(tmp_path))
    with pytest.raises(UsageError, match=r"trainable parameters are torch\.bfloat16"):
        trainer.train()


# --- TRL ---------------------------------------------------------------------------------------------


def trl_weights(method: TrainingMethod, folder: Path, **given: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class DefendedSFT(DefenceMixin, SFTTrainer):
        pass

    def sentences(name: str) -> Any:
        rng = random.Random(name)
        words = lambda count: " ".join(f"w{rng.randrange(20)}" for _ in range(count))  # noqa: E731
        return Dataset.from_list([{"prompt": words(4) + " ", "completion": words(3)} for _ in range(16)])

    own = OWN_STREAM[method.stage]
    args = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4,
        learning_rate=1e-2, lr_scheduler_type="constant", save_strategy="no", report_to=[], use_cpu=True, bf16=False,
        disable_tqdm=True, logging_steps=1, max_length=32, seed=0, activation_checkpointing=False,
    )  # fmt: skip
    model = tiny.llama()
    trainer = DefendedSFT(
        model=model, args=args, train_dataset=sentences(own), processing_class=tiny.tokenizer(), defence=method,
        **{f"{name}_dataset": sentences(name) for name in method.needs if name != own},
    )  # fmt: skip
    trainer.train()
    return tiny.weights(model), trainer.state.log_history


@pytest.mark.parametrize("method", [Booster(lam=2.0, alpha=0.5), LISA], ids=["booster", "lisa"])
def test_in_trl_the_defence_is_active(method: TrainingMethod, tmp_path: Path) -> None:
    plain = SFT() if method.stage == "align" else Lisa(align_steps=0)
    expected, _ = trl_weights(plain, tmp_path / "plain")
    found, history = trl_weights(method, tmp_path / "defended")
    assert not tiny.same(found, expected)
    if isinstance(method, Booster):
        norms = [entry["defence/harmful_gradient_norm"] for entry in history if "loss" in entry]
        assert len(norms) == 4
        assert all(norm > 0 for norm in norms)
