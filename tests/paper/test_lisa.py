"""Lisa (arXiv:2405.18641, Algorithm 1 and equation 2) against hand-computed trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from holdfast.finetune import checkpoint
from holdfast.finetune.finetuning.lisa import Lisa
from holdfast.finetune.finetuning.sft import SFT
from holdfast.finetune.method import StepObject

TARGET = {"safety": 1.0, "user": -1.0}


def start(method: Lisa, steps: int = 100) -> tuple[tiny.HandPasses, StepObject]:
    """One number w from 0; f = (w - 1)^2 / 2 on the alignment set, h = (w + 1)^2 / 2 on the user's data."""
    losses = {name: lambda w, target=target: (w - target).square().sum() / 2 for name, target in TARGET.items()}
    passes = tiny.HandPasses([nn.Parameter(torch.zeros(1))], losses, steps)
    return passes, method.start(passes)


def trajectory(method: Lisa, count: int, steps: int = 100) -> tuple[list[str], list[float], list[float]]:
    """Streams drawn, gradients applied, and w after each step of descent at rate 1/2."""
    passes, step = start(method, steps)
    slopes, places = [], []
    for _ in range(count):
        step(passes)
        slopes.append(float(passes.parameters[0].grad))
        passes.descend(0.5)
        places.append(float(passes.parameters[0].detach()))
    return passes.drawn, slopes, places


def test_both_anchors_by_hand() -> None:
    """rho = 2, K1 = K2 = 2, rate 1/2; every number is a dyadic fraction, so float32 is exact.

    step state  anchor           gradient (w -/+ 1) + 2 (w - anchor)          w after
    0    align  user  =  0       (0 - 1) + 2 * 0               = -1            1/2
    1    align  user  =  0       (1/2 - 1) + 2 * 1/2           =  1/2          1/4      align stops at 1/4
    2    user   align =  1/4     (1/4 + 1) + 2 * 0             =  5/4         -3/8
    3    user   align =  1/4     (-3/8 + 1) + 2 * (-5/8)       = -5/8         -1/16     user stops at -1/16
    4    align  user  = -1/16    (-1/16 - 1) + 2 * 0           = -17/16        15/32
    5    align  user  = -1/16    (15/32 - 1) + 2 * 17/32       =  17/32        13/64    align stops at 13/64
    6    user   align =  13/64   (13/64 + 1) + 2 * 0           =  77/64       -51/128
    7    user   align =  13/64   (-51/128 + 1) + 2 * (-77/128) = -77/128      -25/256
    """
    drawn, slopes, places = trajectory(Lisa(rho=2.0, align_steps=2, user_steps=2), 8)
    assert drawn == ["safety", "safety", "user", "user"] * 2
    assert slopes == [-1, 1 / 2, 5 / 4, -5 / 8, -17 / 16, 17 / 32, 77 / 64, -77 / 128]
    assert places == [1 / 2, 1 / 4, -3 / 8, -1 / 16, 15 / 32, 13 / 64, -51 / 128, -25 / 256]


@pytest.mark.parametrize(
    ("align", "user", "states"),
    [
        (1, 1, "AUAUAUAUAUAU"),
        (2, 3, "AAUUUAAUUUAA"),
        (3, 1, "AAAUAAAUAAAU"),
        (1, 9, "AUUUUUUUUUAU"),
        (20, 1, "AAAAAAAAAAAA"),
        (0, 5, "UUUUUUUUUUUU"),
    ],
)
def test_the_schedule_of_states(align: int, user: int, states: str) -> None:
    drawn, *_ = trajectory(Lisa(align_steps=align, user_steps=user), 12)
    assert drawn == [{"A": "safety", "U": "user"}[state] for state in states]


def test_rho_zero_is_bso() -> None:
    """Two states and no pull: each gradient is w - 1 or w + 1 alone; at rate 1/2 from 0."""
    drawn, slopes, places = trajectory(Lisa(rho=0.0, align_steps=1, user_steps=2), 6)
    assert drawn == ["safety", "user", "user"] * 2
    # w: 0 -> 1/2 -> -1/4 -> -5/8 -> 3/16 -> -13/32 -> -45/64
    assert slopes == [-1, 3 / 2, 3 / 4, -13 / 8, 19 / 16, 19 / 32]
    assert places == [1 / 2, -1 / 4, -5 / 8, 3 / 16, -13 / 32, -45 / 64]


def test_the_pull_is_rho_times_the_distance_in_every_tensor() -> None:
    """Losses without slope: what is applied is rho * (w - anchor) alone, tensor by tensor."""
    a, b = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([[3.0]]))

    def flat(*parts: Tensor) -> Tensor:
        return sum(0 * p.sum() for p in parts)  # type: ignore[return-value]

    passes = tiny.HandPasses([a, b], {"safety": flat, "user": flat})
    step = Lisa(rho=0.25, align_steps=5, user_steps=5).start(passes)
    with torch.no_grad():
        a.add_(torch.tensor([4.0, 8.0]))
        b.sub_(16.0)
    step(passes)
    assert a.grad.tolist() == [1.0, 2.0]  # 0.25 * (4, 8)
    assert b.grad.tolist() == [[-4.0]]  # 0.25 * -16


@pytest.mark.parametrize(("share", "plain"), [(0.0, 0), (0.25, 5), (0.3, 6), (1.0, 20)])
def test_the_proximal_term_can_wait(share: float, plain: int) -> None:
    """Of 20 steps the first share * 20 are without the term: there the gradient is w -/+ 1 alone."""
    passes, step = start(Lisa(rho=2.0, align_steps=50, proximal_after=share), steps=20)
    with torch.no_grad():
        passes.parameters[0].fill_(8.0)
    for number in range(20):
        step(passes)
        # Both anchors are at 0: 8 - 1 alone, and 2 * 8 more with the term.
        assert float(passes.parameters[0].grad) == (7 if number < plain else 23), number
        passes.descend(0.0)


def test_discarding_user_batches_draws_them_and_changes_nothing_else() -> None:
    keeps = trajectory(Lisa(rho=2.0, align_steps=2, user_steps=1), 6)
    drops = trajectory(Lisa(rho=2.0, align_steps=2, user_steps=1, discard_user=True), 6)
    assert keeps[0] == ["safety", "safety", "user"] * 2
    assert drops[0] == ["user", "safety", "user", "safety", "user"] * 2
    assert keeps[1:] == drops[1:]


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_run_goes_on_from_its_state(stop: int, tmp_path: Path) -> None:
    """Interrupted after any step, in either state and at every switch, through a checkpoint on disk."""
    method = Lisa(rho=2.0, align_steps=2, user_steps=3)
    whole = trajectory(method, 12)

    passes, step = start(method)
    for _ in range(stop):
        step(passes)
        passes.descend(0.5)
    tensors, values = checkpoint.flatten(step.state())
    checkpoint.save(tmp_path, checkpoint.Checkpoint(stop, {"method": tensors}, values))
    w = passes.parameters[0].detach().clone()

    other, resumed = start(method)
    with torch.no_grad():
        other.parameters[0].copy_(w)
    other.step = stop
    found = checkpoint.load(tmp_path, lambda event: pytest.fail(str(event)))
    assert found is not None
    resumed.restore(checkpoint.unflatten(found.tensors["method"], found.values, tiny.CPU))
    places = []
    for _ in range(stop, 12):
        resumed(other)
        other.descend(0.5)
        places.append(float(other.parameters[0].detach()))
    assert other.drawn == whole[0][stop:]
    assert places == whole[2][stop:]


def test_anchors_are_copies() -> None:
    """Weights that move on must not drag the anchor with them."""
    passes, step = start(Lisa(rho=1.0, align_steps=1, user_steps=3))
    step(passes)
    with torch.no_grad():
        passes.parameters[0].fill_(0.5)
    passes.parameters[0].grad = None
    step(passes)  # switches: the alignment state stopped at 1/2
    with torch.no_grad():
        passes.parameters[0].fill_(8.0)
    passes.parameters[0].grad = None
    step(passes)
    assert float(passes.parameters[0].grad) == (8 + 1) + (8 - 0.5)


def test_a_parameter_that_a_batch_does_not_reach_is_still_pulled() -> None:
    shared, expert = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    losses = {"safety": lambda s, e: s.sum(), "user": lambda s, e: (s + e).sum()}
    passes = tiny.HandPasses([shared, expert], losses)
    step = Lisa(rho=3.0, align_steps=2, user_steps=2).start(passes)
    with torch.no_grad():
        expert.fill_(2.0)
    step(passes)
    assert float(shared.grad) == 1.0
    assert float(expert.grad) == 6.0  # 3 * (2 - 0)


def test_without_alignment_steps_it_is_sft(tmp_path: Path) -> None:
    results: dict[str, Any] = {}
    methods: Sequence[tuple[str, Any]] = [
        ("sft", SFT()), ("off", Lisa(align_steps=0)), ("on", Lisa(align_steps=1, user_steps=2)),
    ]  # fmt: skip
    for name, method in methods:
        model = tiny.llama()
        tiny.fit(model, method, tmp_path / name, steps=4)
        results[name] = tiny.weights(model)
    assert tiny.same(results["sft"], results["off"])
    assert not tiny.same(results["sft"], results["on"])
