"""Booster (arXiv:2409.01586, equation 1) against closed forms and an independent computation."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from holdfast.finetune.alignment.booster import Booster
from holdfast.finetune.alignment.sft import SFT
from holdfast.finetune.method import moved

LAM, ALPHA = 5.0, 0.1


def quadratic(scale: float = 1.0) -> tuple[tiny.HandPasses, Tensor, Tensor, Tensor]:
    """h(w) = 1/2 w'Hw and f(w) = 1/2 ||w - c||^2 over w in two tensors; returns passes, H, c and w."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(5, dtype=torch.float64)
    centre = torch.randn(5, generator=generator, dtype=torch.float64)
    start = scale * torch.randn(5, generator=generator, dtype=torch.float64)
    parameters = [nn.Parameter(start[:2].clone()), nn.Parameter(start[2:].clone())]

    def harmful(*parts: Tensor) -> Tensor:
        w = torch.cat(parts)
        return w @ hessian @ w / 2

    def safety(*parts: Tensor) -> Tensor:
        return (torch.cat(parts) - centre).square().sum() / 2

    return tiny.HandPasses(parameters, {"harmful": harmful, "safety": safety}), hessian, centre, start


def applied(passes: tiny.HandPasses) -> Tensor:
    return torch.cat([p.grad for p in passes.parameters])


def test_on_a_quadratic_the_gradient_is_exact() -> None:
    """grad h is linear, so lam * (Hw - H(w - alpha g/||g||)) = lam * alpha * H g/||g|| with g = Hw."""
    passes, hessian, centre, w = quadratic()
    loss = Booster(lam=LAM, alpha=ALPHA).start(passes)(passes)
    g = hessian @ w
    expected = (w - centre) + LAM * ALPHA * hessian @ g / (g.norm() + 1e-7)
    torch.testing.assert_close(applied(passes), expected, rtol=1e-6, atol=0)
    assert float(loss) == pytest.approx(float((w - centre).square().sum()) / 2)


def test_the_two_harmful_passes_see_one_batch_and_their_losses_are_logged() -> None:
    passes, hessian, _, w = quadratic()
    Booster(lam=LAM, alpha=ALPHA).start(passes)(passes)
    assert passes.drawn == ["harmful", "safety"]
    g = hessian @ w
    moved_w = w - ALPHA * g / g.norm()
    assert float(passes.measured["harmful_gradient_norm"]) == pytest.approx(float(g.norm()), rel=1e-6)
    assert float(passes.measured["harmful_loss"]) == pytest.approx(float(w @ hessian @ w) / 2)
    assert float(passes.measured["harmful_loss_after_step"]) == pytest.approx(float(moved_w @ hessian @ moved_w) / 2)


@pytest.mark.parametrize("norm", [1e-7, 1e-12])
def test_a_vanishing_harmful_gradient_is_not_divided_by(norm: float) -> None:
    """With ||g|| = 1e-7 the step is alpha * 1e-7 / (1e-7 + 1e-7) = alpha / 2 long; with less, shorter still."""
    passes, hessian, centre, w = quadratic(scale=1.0)
    factor = norm / float((hessian @ w).norm())
    with torch.no_grad():
        for p in passes.parameters:
            p.mul_(factor)
    w, g = w * factor, hessian @ w * factor
    Booster(lam=LAM, alpha=ALPHA).start(passes)(passes)
    length = ALPHA * norm / (norm + 1e-7)
    assert length <= ALPHA / 2 * (1 + 1e-9)
    torch.testing.assert_close(applied(passes), (w - centre) + LAM * length * hessian @ g / norm, rtol=1e-6, atol=1e-12)


def test_the_weights_are_put_back_to_the_bit() -> None:
    passes, *_, w = quadratic()
    step = Booster(lam=LAM, alpha=math.pi).start(passes)
    for _ in range(50):
        step(passes)
    assert torch.equal(torch.cat([p.detach() for p in passes.parameters]), w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moved_puts_back_even_when_the_block_fails(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(dtype))
    before = parameter.detach().clone()
    direction = torch.full_like(parameter, 0.3).detach()
    there = []

    def fail() -> None:
        there.append(parameter.detach().clone())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), moved([parameter], [direction], -0.1):
        fail()
    assert torch.equal(there[0], torch.add(before, direction, alpha=-0.1))
    assert torch.equal(parameter.detach(), before)


def by_hand(model: nn.Module, batches: dict[str, list[tiny.Encoded]], lam: float, alpha: float) -> dict[str, Tensor]:
    """Booster's gradient by copies of the model and transformers' own loss."""
    harmful = tiny.plain_gradient(model, batches["harmful"])
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in harmful.values()))
    there = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in there.named_parameters():
            if name in harmful:
                p.copy_(p - alpha * harmful[name] / norm)
    after = tiny.plain_gradient(there, batches["harmful"])
    safety = tiny.plain_gradient(model, batches["safety"])
    return {name: safety[name] + lam * (harmful[name] - after[name]) for name in safety}


@pytest.mark.parametrize("kind", ["full", "body", "lora", "gpt2"])
def test_on_a_transformer_it_equals_an_independent_computation(kind: str) -> None:
    models = {"full": tiny.llama, "gpt2": tiny.gpt2, "body": lambda: tiny.body(tiny.llama()),
              "lora": lambda: tiny.lora(tiny.llama())}  # fmt: skip
    model = models[kind]()
    batches = {name: tiny.rows(name, 6) for name in ("safety", "harmful")}
    expected = by_hand(model, batches, 3.0, 0.5)
    before = tiny.weights(model)
    passes = tiny.passes(model, tiny.streams(batches, batch=6))
    Booster(lam=3.0, alpha=0.5).start(passes)(passes)
    tiny.assert_close(tiny.gradients(model), expected, atol=2e-6)
    assert tiny.same(tiny.weights(model), before)
    plain = tiny.plain_gradient(model, batches["safety"])
    assert max(float((expected[n] - plain[n]).abs().max()) for n in plain) > 1e-2, "the regulariser does nothing here"


def test_a_parameter_that_a_batch_does_not_reach_has_gradient_zero() -> None:
    """An expert that only harmful rows use: its alignment gradient is missing, its regulariser is not."""
    shared, expert = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0]))
    # h = (s^2 + 3 e^2) / 2: g = (1, 6), ||g|| = sqrt(37); g - g' = alpha * (1, 3 * 6) / sqrt(37).
    losses = {"harmful": lambda s, e: (s.square() + 3 * e.square()).sum() / 2, "safety": lambda s, e: s.sum()}
    passes = tiny.HandPasses([shared, expert], losses)
    Booster(lam=2.0, alpha=0.1).start(passes)(passes)
    unit = 2.0 * 0.1 / math.sqrt(37)
    assert float(shared.grad) == pytest.approx(1 + unit, rel=1e-5)
    assert float(expert.grad) == pytest.approx(18 * unit, rel=1e-5)


def test_it_differs_from_sft_and_lam_zero_does_not(tmp_path: Path) -> None:
    results = {}
    for name, method in {"sft": SFT(), "off": Booster(lam=0.0), "on": Booster(lam=5.0)}.items():
        model = tiny.llama()
        tiny.fit(model, method, tmp_path / name, steps=3)
        results[name] = tiny.weights(model)
    assert tiny.same(results["sft"], results["off"])
    assert not tiny.same(results["sft"], results["on"])
