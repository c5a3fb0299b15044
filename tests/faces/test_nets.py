"""Architectures: published sizes and names, and outputs against other ways to the same number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import ModelError, UsageError
from holdfast.faces import nets

TINY = {
    "mobilefacenet": {"embedding": 8, "width": 0.25, "size": 32},
    "iresnet": {"layers": [1, 1, 1, 1], "embedding": 8, "width": 16, "size": 32},
    "plain": {"embedding": 8, "channels": [8, 8], "size": 32},
    "patch": {"embedding": 8, "patch": 8, "dimension": 16, "depth": 1, "heads": 2, "hidden": 16, "size": 32},
}


def size_of(architecture: str, **options: object) -> int:
    with torch.device("meta"):
        network = nets.build_network(architecture, options)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("layers", "millions"),
    # insightface, recognition/arcface_torch: parameters of r18, r34, r50, r100 at 512 dimensions.
    [((2, 2, 2, 2), 24.02), ((3, 4, 6, 3), 34.14), ((3, 4, 14, 3), 43.59), ((3, 13, 30, 3), 65.16)],
)
def test_iresnet_has_the_published_size(layers: tuple[int, ...], millions: float) -> None:
    assert size_of("iresnet", layers=layers) / 1e6 == pytest.approx(millions, abs=0.006)


def test_mobilefacenet_has_the_size_of_the_papers_table() -> None:
    def conv(inputs: int, outputs: int, kernel: int, groups: int = 1, prelu: bool = True) -> int:
        return inputs // groups * outputs * kernel**2 + 2 * outputs + (outputs if prelu else 0)

    total, channels = conv(3, 64, 3) + conv(64, 64, 3, 64), 64
    for expansion, outputs, repeats in ((2, 64, 5), (4, 128, 1), (2, 128, 6), (4, 128, 1), (2, 128, 2)):
        for _ in range(repeats):
            inner = expansion * channels
            total += conv(channels, inner, 1) + conv(inner, inner, 3, inner) + conv(inner, outputs, 1, prelu=False)
            channels = outputs
    total += conv(128, 512, 1) + conv(512, 512, 7, 512, prelu=False) + conv(512, 128, 1, prelu=False)
    assert size_of("mobilefacenet") == total
    assert total / 1e6 == pytest.approx(0.99, abs=0.02)  # the paper: 0.99 million


def test_iresnet_takes_insightfaces_names() -> None:
    """Keys of a published r50 file, as insightface's iresnet.py writes them."""
    with torch.device("meta"):
        there = nets.build_network("iresnet", {"layers": (3, 4, 14, 3)}).state_dict()
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"}
    wanted |= {f"{layer}.{part}" for layer in ("bn1", "bn2", "features") for part in norm}
    for number, count in enumerate((3, 4, 14, 3), 1):
        for place in range(count):
            unit = f"layer{number}.{place}"
            wanted |= {f"{unit}.{part}.weight" for part in ("conv1", "conv2", "prelu")}
            wanted |= {f"{unit}.bn{bn}.{part}" for bn in (1, 2, 3) for part in norm}
        wanted |= {f"layer{number}.0.downsample.0.weight"}
        wanted |= {f"layer{number}.0.downsample.1.{part}" for part in norm}
    assert set(there) == wanted
    assert there["fc.weight"].shape == (512, 25088)
    assert there["layer3.0.downsample.0.weight"].shape == (256, 128, 1, 1)
    assert there["layer2.0.conv1.weight"].shape == (128, 64, 3, 3)


def test_a_residual_unit_by_hand() -> None:
    unit = nets._Unit(1, 1, 1).eval()
    with torch.no_grad():
        for convolution, factor in ((unit.conv1, 2.0), (unit.conv2, 3.0)):
            convolution.weight.zero_()
            convolution.weight[0, 0, 1, 1] = factor
        unit.prelu.weight.fill_(0.25)
    x = torch.tensor([[[[1.0, -1.0], [0.5, -4.0]]]])
    shrink = 1 / np.sqrt(1 + 1e-5)
    inner = 2 * shrink**2 * x
    expected = x + 3 * shrink * torch.where(inner > 0, inner, 0.25 * inner)
    assert torch.allclose(unit(x), expected, atol=1e-6)
    assert unit.downsample is None
    assert nets._Unit(1, 1, 2).eval()(x).shape == (1, 1, 1, 1)


def test_a_bottleneck_adds_its_input_only_where_shapes_agree() -> None:
    same, other = nets._Bottleneck(8, 8, 1, 2).eval(), nets._Bottleneck(8, 8, 2, 2).eval()
    x = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for unit in (same, other):
            unit.narrow.conv.weight.zero_()
        assert torch.equal(same(x), x)
        assert not other(x).any()


def test_attention_agrees_with_torchs_own() -> None:
    generator = torch.Generator().manual_seed(1)
    block = nets._Block(16, 2, 8).eval()
    own = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 16, generator=generator)
    with torch.no_grad():
        own.in_proj_weight.copy_(block.mixed.weight)
        own.in_proj_bias.copy_(block.mixed.bias)
        own.out_proj.load_state_dict(block.joined.state_dict())
        block.narrowed.weight.zero_()
        block.narrowed.bias.zero_()
        normal = block.before(x)
        assert torch.allclose(block(x), x + own(normal, normal, normal)[0], atol=1e-5)


def test_plain_by_hand() -> None:
    network = nets.Plain(embedding=1, channels=(4,), size=2).eval()
    convolution, norm = network.features[0], network.features[2]
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        convolution.weight[:, 0, 2, 2] = 1.0
        network.fc.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
        network.fc.bias.zero_()
        norm.bias.copy_(torch.tensor([1.0, 2.0, 3.0, -4.0]))
        x = torch.zeros(1, 3, 2, 2)
        x[0, 0] = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
        # A group is one channel of one place after pooling: normalised to zero, so the bias and the ReLU remain.
        assert network(x.repeat(2, 1, 1, 1)).flatten().tolist() == pytest.approx([1 + 20 + 300] * 2, rel=1e-4)


@pytest.mark.parametrize("architecture", list(nets.ARCHITECTURES))
def test_every_architecture_gives_vectors_and_gradients_and_exports(architecture: str) -> None:
    network = nets.build_network(architecture, TINY[architecture]).eval()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    vectors = network(x)
    assert vectors.shape == (3, 8)
    assert torch.allclose(network(x[1:2]), vectors[1:2], atol=1e-5)  # no statistics of the batch
    vectors.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    exported = torch.export.export(network, (x.detach(),)).module()
    assert torch.allclose(exported(x.detach()), vectors, atol=1e-5)


def test_what_is_not_there_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'iresnet'"):
        nets.build_network("iresent")
    with pytest.raises(ModelError, match="did you mean 'embedding'"):
        nets.build_network("plain", {"embeding": 3})
    for architecture, options in (
        ("mobilefacenet", {"size": 100}), ("iresnet", {"layers": [1, 2]}), ("iresnet", {"width": 8}), ("plain", {"channels": []}),
        ("plain", {"channels": [6]}), ("patch", {"dimension": 30}), ("patch", {"depth": "x"}),
    ):  # fmt: skip
        with pytest.raises(ModelError, match="cannot be built"):
            nets.build_network(architecture, options)
