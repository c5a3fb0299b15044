"""Antidote (arXiv:2408.09600, Algorithm 1) and Wanda scores (arXiv:2306.11695) against arithmetic by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from holdfast.core.errors import UsageError
from holdfast.finetune.method import Repair
from holdfast.finetune.post_finetuning.antidote import Antidote, _top, input_norms
from holdfast.finetune.streams import calibration_batches
from holdfast.models.architecture import linear_modules

HARMFUL = tiny.rows("harmful", 7)
SAFETY = tiny.rows("safety", 5)


def tuned(make: Callable[..., nn.Module] = tiny.llama) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model, and the weights that it had before every one of its parameters moved a little."""
    model = make()
    before = tiny.weights(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model, before


def subject(model: nn.Module, before: Mapping[str, Tensor], seed: int = 0, **calibration: Any) -> Repair:
    sets = calibration or {"harmful": HARMFUL, "safety": SAFETY}
    batches: Any = {name: calibration_batches(found, 3, tiny.PAD, tiny.CPU) for name, found in sets.items()}
    return Repair(model, before, batches, torch.Generator().manual_seed(seed))


def linear_weights(model: nn.Module) -> list[str]:
    """Names of the weights of all linear maps in the layers, by the shape of their names."""
    parts = ("_proj.weight", "c_attn.weight", "c_proj.weight", "c_fc.weight")
    return [name for name, _ in model.named_parameters() if name.endswith(parts)]


def inputs_by_row(model: nn.Module, rows: list[tiny.Encoded]) -> dict[str, Tensor]:
    """Sum over tokens of squared inputs to each linear map: one unpadded row at a time, float64."""
    sums: dict[str, Tensor] = {}
    modules = {name: m for name, m in model.named_modules() if f"{name}.weight" in linear_weights(model)}

    def add(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], _out: Tensor) -> None:
            sums[name] = sums.get(name, 0) + inputs[0].detach().double().square().sum(dim=(0, 1))

        return hook

    hooks = [module.register_forward_hook(add(name)) for name, module in modules.items()]
    for row in rows:
        model(input_ids=torch.tensor([row.ids]))
    for hook in hooks:
        hook.remove()
    return sums


def expected_mask(score: Tensor, share: float) -> Tensor:
    """The top round(share * columns) of each row, by sorting."""
    count = round(share * score.shape[1])
    mask = torch.zeros_like(score, dtype=torch.bool)
    for row, values in enumerate(score.tolist()):
        for column in sorted(range(len(values)), key=lambda j: -values[j])[:count]:
            mask[row, column] = True
    return mask


# --- counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "columns", "kept"),
    [
        (0.1, 4096, 410),  # 409.6, lora_A of a 4096-wide model
        (0.1, 256, 26),  # 25.6, lora_B of rank 256
        (0.01, 4096, 41),  # 40.96
        (0.01, 256, 3),  # 2.56
        (0.05, 32, 2),  # 1.6: small ranks are coarse
        (0.01, 32, 0),  # 0.32
        (1.0, 32, 32),
    ],
)
def test_counts_of_a_row(density: float, columns: int, kept: int) -> None:
    score = torch.rand(6, columns, generator=torch.Generator().manual_seed(0))
    assert _top({"w": score}, density, "row")["w"].sum(1).tolist() == [kept] * 6


def test_counts_of_a_matrix_and_of_all() -> None:
    """Shapes 10 x 30 and 40 x 5: at 0.1 a matrix loses 30 and 20, together 50, in whatever split the scores say."""
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(10, 30, generator=generator), "b": 10 + torch.rand(40, 5, generator=generator)}
    by_matrix = _top(scores, 0.1, "matrix")
    assert [int(by_matrix[name].sum()) for name in "ab"] == [30, 20]
    together = _top(scores, 0.1, "all")
    # All of b scores above all of a, so the 50 come from b.
    assert [int(together[name].sum()) for name in "ab"] == [0, 50]
    assert together["a"].shape == (10, 30)
    assert float(scores["b"][together["b"]].min()) > float(scores["b"][~together["b"]].max())


@pytest.mark.parametrize("ranking", ["row", "matrix", "all"])
def test_the_highest_scores_go(ranking: str) -> None:
    """Scores 0..11 in a 3 x 4 matrix at density 1/4: one in each row, or the three highest of all."""
    mask = _top({"w": torch.arange(12.0).reshape(3, 4)}, 0.25, ranking)["w"]
    places = [tuple(place) for place in mask.nonzero().tolist()]
    assert places == ([(0, 3), (1, 3), (2, 3)] if ranking == "row" else [(2, 1), (2, 2), (2, 3)])


# --- scores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.qwen2])
def test_input_norms_are_those_of_unpadded_rows(make: Callable[..., nn.Module]) -> None:
    model = make()
    batches = calibration_batches(HARMFUL, 3, tiny.PAD, tiny.CPU)
    assert any(not bool(batch["mask"].all()) for batch in batches), "no row here is padded"
    norms = input_norms(model, linear_modules(model), batches)
    expected = inputs_by_row(model, HARMFUL)
    assert norms.keys() == expected.keys()
    tiny.assert_close({n: v.double() for n, v in norms.items()}, {n: v.sqrt() for n, v in expected.items()})


def test_dropout_does_not_reach_the_scores() -> None:
    model = tiny.lora(tiny.llama(), dropout=0.5)
    modules = {n: m for n, m in linear_modules(model).items() if "lora_A" in n}
    batches = calibration_batches(HARMFUL, 3, tiny.PAD, tiny.CPU)
    quiet = input_norms(model.eval(), modules, batches)
    assert tiny.same(input_norms(model.train(), modules, batches), quiet)
    assert model.training


@pytest.mark.parametrize("target", ["delta", "weights"])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_what_goes_is_what_wanda_scores_highest(make: Callable[..., nn.Module], target: Any) -> None:
    """Score |W - W_before| * ||X_j|| (W_before = 0 for whole weights); what goes becomes W_before, to the bit."""
    model, before = tuned(make)
    after = tiny.weights(model)
    inputs = inputs_by_row(model, HARMFUL)
    job = subject(model, before)
    Antidote(density=0.2, target=target).apply(job)
    removed = 0
    for name, weight in tiny.weights(model).items():
        if name not in linear_weights(model):
            assert torch.equal(weight, after[name]), name
            continue
        start = before[name] if target == "delta" else torch.zeros_like(weight)
        columns = inputs[name.removesuffix(".weight")].sqrt()
        conv = make is tiny.gpt2  # Conv1D keeps (in, out)
        change = (after[name] - start).abs().double()
        mask = expected_mask((change.T if conv else change) * columns, 0.2)
        mask = mask.T if conv else mask
        assert torch.equal(weight, torch.where(mask, start, after[name])), name
        removed += int(mask.sum())
    assert removed > 0
    assert job.measured["removed"] == removed
    assert job.measured["removed_share"] == pytest.approx(0.2, abs=0.02)


def fresh_adapter() -> nn.Module:
    return tiny.lora(tiny.llama()).eval()


def test_an_adapter_loses_its_highest_entries() -> None:
    model = fresh_adapter()
    after = tiny.weights(model)
    modules = {n: m for n, m in model.named_modules() if n.endswith(("lora_A.default", "lora_B.default"))}
    norms = input_norms(model, modules, calibration_batches(HARMFUL, 3, tiny.PAD, tiny.CPU))
    Antidote(density=0.25).apply(subject(model, {}))
    for name, weight in tiny.weights(model).items():
        if "lora_" not in name:
            assert torch.equal(weight, after[name]), name
            continue
        # rank 4 and widths 16 and 24: 4, 1 and 6 of a row
        mask = expected_mask(after[name].abs() * norms[name.removesuffix(".weight")], 0.25)
        assert mask.sum(1).tolist() == [{16: 4, 4: 1, 24: 6}[mask.shape[1]]] * mask.shape[0]
        assert torch.equal(weight, after[name] * ~mask), name


def test_removing_all_of_an_adapter_leaves_the_base_model() -> None:
    model, base = fresh_adapter(), tiny.llama()
    ids = torch.tensor([HARMFUL[0].ids])
    assert not torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    Antidote(density=1.0).apply(subject(model, {}))
    torch.testing.assert_close(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_the_change_of_a_continued_adapter_is_taken_back() -> None:
    """``delta`` on a LoRA: entries go back to the adapter that alignment made, found under the model's own names."""
    model, before = tuned(fresh_adapter)
    after = tiny.weights(model)
    Antidote(density=1.0, target="delta").apply(subject(model, before))
    for name, weight in tiny.weights(model).items():
        assert torch.equal(weight, before[name] if "lora_" in name else after[name]), name


def test_removing_the_whole_change_gives_the_weights_before() -> None:
    model, before = tuned()
    Antidote(density=1.0, target="delta").apply(subject(model, before))
    now = tiny.weights(model)
    assert all(torch.equal(now[name], before[name]) for name in linear_weights(model))


def changed(model: nn.Module, after: Mapping[str, Tensor], part: str = "") -> dict[str, Tensor]:
    return {n: w != after[n] for n, w in tiny.weights(model).items() if n in linear_weights(model) and part in n}


def masks_of(method: Antidote, seed: int = 0, **calibration: Any) -> dict[str, Tensor]:
    model, before = tuned()
    after = tiny.weights(model)
    method.apply(subject(model, before, seed, **calibration))
    return changed(model, after)


def test_what_safety_data_needs_is_spared() -> None:
    """The mask of harmful data without the coordinates that safety data scores highest."""
    harmful = masks_of(Antidote(density=0.3, target="delta"))
    safety = masks_of(Antidote(density=0.2, target="delta"), harmful=SAFETY)
    spared = masks_of(Antidote(density=0.3, target="delta", spare=0.2))
    assert tiny.same(spared, {name: mask & ~safety[name] for name, mask in harmful.items()})
    assert not tiny.same(spared, harmful)


def test_user_data_can_weigh_the_scores() -> None:
    user = tiny.rows("user", 5)
    found = masks_of(Antidote(density=0.3, target="delta", calibrate="user"), harmful=HARMFUL, user=user)
    assert tiny.same(found, masks_of(Antidote(density=0.3, target="delta"), harmful=user))
    assert not tiny.same(found, masks_of(Antidote(density=0.3, target="delta")))


def test_magnitude_forgets_the_inputs() -> None:
    model, before = tuned()
    after = tiny.weights(model)
    found = masks_of(Antidote(density=0.2, target="delta", score="magnitude"), harmful=HARMFUL)
    for name, mask in found.items():
        assert torch.equal(mask, expected_mask((after[name] - before[name]).abs(), 0.2)), name
    assert not tiny.same(found, masks_of(Antidote(density=0.2, target="delta")))


def test_random_follows_its_generator() -> None:
    method = Antidote(density=0.25, target="delta", score="random")
    found = masks_of(method, seed=1)
    assert tiny.same(found, masks_of(method, seed=1))
    assert not tiny.same(found, masks_of(method, seed=2))
    assert all((mask.sum(1) == round(0.25 * mask.shape[1])).all() for mask in found.values())


def test_only_the_named_modules_are_touched() -> None:
    model, before = tuned()
    after = tiny.weights(model)
    Antidote(density=0.5, target="delta", modules=("q_proj", "down_proj")).apply(subject(model, before))
    touched = {name.split(".")[-2] for name, mask in changed(model, after).items() if mask.any()}
    assert touched == {"q_proj", "down_proj"}


@pytest.mark.parametrize("off", [Antidote(density=0.0, target="delta"), Antidote(density=0.001, target="delta")])
def test_a_density_that_rounds_to_nothing_removes_nothing(off: Antidote) -> None:
    """0.001 of 16 or 24 columns is 0."""
    model, before = tuned()
    after = tiny.weights(model)
    job = subject(model, before)
    off.apply(job)
    assert tiny.same(tiny.weights(model), after)
    assert job.measured["removed"] == 0


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "method", "message"),
    [
        (tiny.llama, Antidote(), "'adapter' needs a LoRA"),
        (fresh_adapter, Antidote(target="weights"), "'weights' is for full fine-tuning"),
        (tiny.llama, Antidote(target="delta", modules=("query",)), "modules query: this model has none of them"),
        (tiny.llama, Antidote(target="delta", calibrate="user"), "needs user data"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[..., nn.Module], method: Antidote, message: str) -> None:
    model, before = tuned(make)
    after = copy.deepcopy(tiny.weights(model))
    with pytest.raises(UsageError, match=message) as caught:
        method.apply(subject(model, before))
    assert caught.value.hint
    assert tiny.same(tiny.weights(model), after)


def test_sparing_without_safety_data_is_refused() -> None:
    model, before = tuned()
    with pytest.raises(UsageError, match="needs safety data"):
        Antidote(target="delta", spare=0.1).apply(subject(model, before, harmful=HARMFUL))
