"""Vaccine (arXiv:2402.01109, equations 1-4) against its definition, to first order and by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

import tiny
from holdfast.finetune.alignment.vaccine import Vaccine, VaccineStep
from holdfast.finetune.passes import LoopPasses
from tiny import Encoded

ROWS = tiny.rows("safety", 6)
Output = tuple[Tensor, ...] | Tensor


def layers(model: nn.Module) -> list[nn.Module]:
    """Written out per family, unlike the search in ``models.architecture``."""
    core = model.get_base_model() if hasattr(model, "peft_config") else model
    return list(core.transformer.h if hasattr(core, "transformer") else core.model.layers)


def sites(model: nn.Module, site: str) -> list[nn.Module]:
    found = layers(model)
    return found if site == "layer" else [layer.attn if hasattr(layer, "attn") else layer.self_attn for layer in found]


def with_offsets(places: Sequence[nn.Module], offsets: Sequence[Tensor]) -> None:
    """Replace each module's forward by one that adds an offset to its output."""

    def replaced(forward: Callable[..., Output], offset: Tensor) -> Callable[..., Output]:
        def added(*args: object, **kwargs: object) -> Output:
            out = forward(*args, **kwargs)
            return (out[0] + offset, *out[1:]) if isinstance(out, tuple) else out + offset

        return added

    for module, offset in zip(places, offsets, strict=True):
        module.forward = replaced(module.forward, offset)  # type: ignore[method-assign]


def by_hand(
    model: nn.Module, rows: Sequence[Encoded], rho: float, site: str = "attention", norm: str = "batch"
) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Vaccine's gradient by copies of the model; also dL/dh_l and e_l of every site."""
    width = max(len(row.ids) for row in rows)
    shape = (len(rows), width, model.config.hidden_size)
    first = copy.deepcopy(model)
    zeros = [torch.zeros(shape, requires_grad=True) for _ in layers(model)]
    with_offsets(sites(first, site), zeros)
    slopes = list(torch.autograd.grad(tiny.plain_loss(first, rows), zeros))
    if norm == "batch":
        size = math.sqrt(sum(float(g.double().square().sum()) for g in slopes))
        pushes = [rho * g / size for g in slopes]
    else:
        per_row = torch.stack([g.square().sum(dim=(1, 2)) for g in slopes]).sum(0).sqrt()
        pushes = [rho * g / per_row[:, None, None] for g in slopes]
    second = copy.deepcopy(model)
    with_offsets(sites(second, site), pushes)
    second.zero_grad()
    tiny.plain_loss(second, rows).backward()
    return tiny.gradients(second), slopes, pushes


def stepped(model: nn.Module, method: Vaccine, rows: Sequence[Encoded], batch: int, accumulate: int = 1) -> LoopPasses:
    passes = tiny.passes(model, tiny.streams({"safety": rows}, batch, accumulate))
    method.start(passes)(passes)
    return passes


def pushes_of(model: nn.Module, method: Vaccine, rows: Sequence[Encoded]) -> tuple[list[Tensor], Sequence[Encoded]]:
    """e_l of each site as the method computes them, and the rows in the order of the batch."""
    stream = tiny.streams({"safety": rows}, len(rows))
    passes = tiny.passes(model, stream)
    step = method.start(passes)
    assert isinstance(step, VaccineStep)
    batch = passes.draw("safety")
    lengths = [int((ids != tiny.PAD).sum()) for ids in batch.micros[0].ids]
    order = [next(r for r in rows if list(r.ids) == ids[:n].tolist())
             for ids, n in zip(batch.micros[0].ids, lengths, strict=True)]  # fmt: skip
    return step._perturbations(passes, batch)[0], order


def norm_of(parts: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(p.double().square().sum()) for p in parts))


@pytest.mark.parametrize("rho", [0.01, 2.0])
def test_all_perturbations_together_have_norm_rho(rho: float) -> None:
    pushes, _ = pushes_of(tiny.llama(), Vaccine(rho=rho), ROWS)
    assert len(pushes) == 2
    assert norm_of(pushes) == pytest.approx(rho, rel=1e-5)


def test_with_a_norm_for_each_row_every_row_has_norm_rho() -> None:
    pushes, _ = pushes_of(tiny.llama(), Vaccine(rho=2.0, norm="row"), ROWS)
    for row in range(len(ROWS)):
        assert norm_of([p[row] for p in pushes]) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("norm", ["batch", "row"])
def test_padding_is_not_perturbed(norm: str) -> None:
    pushes, order = pushes_of(tiny.llama(), Vaccine(rho=2.0, norm=norm), ROWS)  # type: ignore[arg-type]
    padded = 0
    for row, encoded in enumerate(order):
        for push in pushes:
            assert bool(push[row, : len(encoded.ids) - 1].any())
            # The last real token predicts nothing, so its output carries no loss either.
            assert not bool(push[row, len(encoded.ids) - 1 :].any())
        padded += pushes[0].shape[1] - len(encoded.ids)
    assert padded > 0, "no row of this batch is padded"


@pytest.mark.parametrize("site", ["attention", "layer"])
def test_the_loss_rises_by_rho_times_the_slope_to_first_order(site: str) -> None:
    """max over ||e|| <= rho of <e, g> is rho * ||g||: the ascent direction, not the descent."""
    model, rho = tiny.llama(), 1e-2
    _, slopes, _ = by_hand(model, ROWS, rho, site)
    passes = tiny.passes(model, tiny.streams({"safety": ROWS}, 6))
    plain = float(tiny.plain_loss(model, ROWS).detach())
    loss = float(Vaccine(rho=rho, site=site).start(passes)(passes))  # type: ignore[arg-type]
    assert loss - plain == pytest.approx(rho * norm_of(slopes), rel=2e-3)
    if site == "attention":
        assert float(passes.measured["activation_gradient_norm"]) == pytest.approx(norm_of(slopes), rel=1e-5)


def lora_on_mlp() -> nn.Module:
    return tiny.lora(tiny.llama(), targets=("down_proj",))


@pytest.mark.parametrize("norm", ["batch", "row"])
@pytest.mark.parametrize("site", ["attention", "layer"])
@pytest.mark.parametrize(
    "make", [tiny.llama, tiny.gpt2, tiny.qwen2, lambda: tiny.lora(tiny.llama()), lora_on_mlp],
    ids=["llama", "gpt2", "qwen2", "lora", "lora-on-mlp"],
)  # fmt: skip
def test_the_applied_gradient_equals_an_independent_computation(
    make: Callable[[], nn.Module], site: str, norm: str
) -> None:
    model = make()
    expected, *_ = by_hand(model, ROWS, 0.5, site, norm)
    before = tiny.weights(model)
    stepped(model, Vaccine(rho=0.5, site=site, norm=norm), ROWS, batch=6)  # type: ignore[arg-type]
    found = tiny.gradients(model)
    tiny.assert_close(found, expected, atol=2e-6)
    assert tiny.same(tiny.weights(model), before)
    plain = tiny.plain_gradient(model, ROWS)
    assert max(float((plain[n] - found[n]).abs().max()) for n in plain) > 1e-3, "the perturbation does nothing here"


@pytest.mark.parametrize("norm", ["batch", "row"])
def test_accumulation_is_one_large_batch(norm: str) -> None:
    """One norm spans the step: 3 x 2 rows give the gradient of 1 x 6."""
    results = []
    for batch, accumulate in ((6, 1), (2, 3)):
        model = tiny.llama()
        stepped(model, Vaccine(rho=1.0, norm=norm), ROWS, batch, accumulate)  # type: ignore[arg-type]
        results.append(tiny.gradients(model))
    tiny.assert_close(*results, atol=2e-6)


def test_with_a_norm_for_each_row_the_strength_does_not_depend_on_the_batch() -> None:
    """Rows alone, their gradients averaged by answer tokens, equal the rows in one batch."""
    model = tiny.llama()
    stepped(model, Vaccine(rho=0.5, norm="row"), ROWS, batch=6)
    together = tiny.gradients(model)
    tokens = [row.response_tokens for row in ROWS]
    alone = []
    for row in ROWS:
        single = tiny.llama()
        stepped(single, Vaccine(rho=0.5, norm="row"), [row], batch=1)
        alone.append(tiny.gradients(single))
    mean = {n: sum(g[n] * t for g, t in zip(alone, tokens, strict=True)) / sum(tokens) for n in together}
    tiny.assert_close(together, mean, atol=2e-6)


class Faint(LoopPasses):
    """Passes whose loss is scaled down."""

    scale = 1.0

    def losses(self, batch: object) -> Iterator[Tensor]:
        for loss in super().losses(batch):  # type: ignore[arg-type]
            yield loss * self.scale


@pytest.mark.parametrize("norm", ["batch", "row"])
def test_a_vanishing_slope_is_not_divided_by(norm: str) -> None:
    """||g|| scaled to 1e-7: the push is rho * 1e-7 / (1e-7 + 1e-7) = rho / 2 long."""
    model, rows = tiny.llama(), ROWS[:1]
    _, slopes, _ = by_hand(model, rows, 1.0)
    made = tiny.passes(model, tiny.streams({"safety": rows}, 1))
    passes = Faint(made._accelerator, model, made.parameters, made.streams, 10)
    passes.scale = 1e-7 / norm_of(slopes)
    step = Vaccine(rho=2.0, norm=norm).start(passes)  # type: ignore[arg-type]
    assert isinstance(step, VaccineStep)
    assert norm_of(step._perturbations(passes, passes.draw("safety"))[0]) == pytest.approx(1.0, rel=1e-3)


def test_dropout_is_the_same_in_both_passes() -> None:
    """With dropout, rho near 0 must give SFT's gradient under the same noise, not another draw's."""
    found = []
    for rho in (0.0, 1e-6):
        model = tiny.lora(tiny.llama(), dropout=0.5)
        stepped(model, Vaccine(rho=rho), ROWS, batch=6)
        found.append(tiny.gradients(model))
    tiny.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing() -> None:
    found = []
    for recompute in (False, True):
        model = tiny.llama()
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        for site in ("attention", "layer"):
            stepped(model, Vaccine(rho=0.5, site=site), ROWS, batch=2, accumulate=3)  # type: ignore[arg-type]
        found.append(tiny.gradients(model))
    tiny.assert_close(*found, atol=1e-6)


def test_no_hook_is_left_behind() -> None:
    model = tiny.llama()
    stepped(model, Vaccine(rho=0.5), ROWS, batch=6)
    assert not any(module._forward_hooks for module in model.modules())
