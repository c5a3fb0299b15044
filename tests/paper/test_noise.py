"""The control: random signs, nothing learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from faces import toy
from holdfast.faces.methods.noise import Noise
from holdfast.faces.window import window


def test_it_is_signs_of_one_size_within_the_window() -> None:
    found = Noise(ssim=0.94, budget=16.0, shape="none").learn(toy.subject(), 3)
    sizes = found.abs().unique()
    assert len(sizes) == 1
    assert float(sizes) >= 1
    assert float(found.sign().mean()) == pytest.approx(0, abs=0.02)
    # No pixel knows its neighbours or its other channels.
    signs = found[0].sign().numpy()
    for other in (np.roll(signs, 1, 1), np.roll(signs, 1, 2), np.roll(signs, 1, 0)):
        assert abs((signs * other).mean()) < 0.02
    oval = Noise(ssim=0.94, budget=16.0, shape="oval").learn(toy.subject(), 3)
    assert torch.equal(oval.sign().abs(), (oval != 0).float())
    inside = window("oval").expand_as(oval) > 0.9
    assert torch.equal(oval[inside].sign(), found[inside].sign())


def test_it_learns_nothing_from_the_recognisers() -> None:
    one = Noise(ssim=0.94).learn(toy.subject(seeds=(0, 1)), 0)
    assert torch.equal(one, Noise(ssim=0.94).learn(toy.subject(seeds=(5,)), 0))
