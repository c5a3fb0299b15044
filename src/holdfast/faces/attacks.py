"""What an adversary does to protected faces before, or in order to, recognise them.

Three tables; one more attack is one more line in one of them:

    TRANSFORMS  change each photo by itself: compression, blur, noise, denoisers, purification
    ESTIMATES   learn the mask from several photos of a person and take it off
    LEARNERS    train on protected photos with names: a map on top of a recogniser, or its last layers

All of them work on aligned crops (n, 3, 112, 112), 0..255, and give whole numbers as a photo would store them. JPEG
and resizing happen at the crop's own 112 pixels, which is harsher than on a photo whose face is larger. The adversary
of the second and third table never sees the photo that is to be recognised among those it learns from.

Mask estimation follows what was found to defeat one mask for all photos: the photos change and the mask does not, so
the mean of high-passed aligned photos tends to the mask. Total variation: Chambolle, "An Algorithm for Total Variation
Minimization and Applications", JMIV 20 (2004), equation 9. Bilateral filter: Tomasi and Manduchi, ICCV 1998, equation
5. Whitening: Hatch, Kajarekar and Stolcke, "Within-Class Covariance Normalization for SVM-based Speaker Recognition",
Interspeech 2006, equation 11.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.core.errors import ModelError, unknown
from holdfast.faces.recogniser import Recogniser

HIGH_PASS = 3.0
"""Standard deviation in pixels of the blur that is taken away before photos are averaged."""


def _stored(crops: Tensor) -> Tensor:
    return crops.clamp(0, 255).round()


# -- photo by photo -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transform:
    """A change of each photo by itself.

    Attributes:
        title: in reports.
        change: crops (n, 3, 112, 112) and a generator to crops of the same shape.
    """

    title: str
    change: Callable[[Tensor, torch.Generator], Tensor]


def jpeg(crops: Tensor, quality: int) -> Tensor:
    """Crops after a round trip through Pillow's JPEG (colours at half resolution, as by default)."""
    from PIL import Image

    made = []
    for one in _stored(crops).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        stream = io.BytesIO()
        Image.fromarray(one).save(stream, "JPEG", quality=quality)
        with Image.open(stream) as opened:
            made.append(torch.from_numpy(np.array(opened.convert("RGB"))))
    return torch.stack(made).permute(0, 3, 1, 2).float() if made else crops


def blurred(crops: Tensor, deviation: float) -> Tensor:
    """Gaussian blur; the picture continues as its mirror image."""
    radius = math.ceil(3 * deviation)
    place = torch.arange(-radius, radius + 1, dtype=crops.dtype)
    weight = torch.exp(-(place**2) / (2 * deviation**2))
    weight = weight / weight.sum()
    n, channels, height, width = crops.shape
    flat = functional.pad(crops.reshape(n * channels, 1, height, width), (radius,) * 4, mode="reflect")
    flat = functional.conv2d(functional.conv2d(flat, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))
    return flat.view(n, channels, height, width)


def noisy(crops: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise on every value."""
    return crops + deviation * torch.randn(crops.shape, generator=generator)


def median3(crops: Tensor) -> Tensor:
    """The median of each 3 x 3 neighbourhood, channel by channel."""
    padded = functional.pad(crops, (1, 1, 1, 1), mode="reflect")
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.flatten(4).median(-1).values


def resized(crops: Tensor, share: float) -> Tensor:
    """Down to a share of the side, and back."""
    side = crops.shape[-1]
    small = functional.interpolate(
        crops, (round(side * share),) * 2, mode="bilinear", align_corners=False, antialias=True
    )
    return functional.interpolate(small, (side, side), mode="bilinear", align_corners=False)


def _slopes(u: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences, zero at the far edges."""
    down, right = u[..., 1:, :] - u[..., :-1, :], u[..., 1:] - u[..., :-1]
    return functional.pad(down, (0, 0, 0, 1)), functional.pad(right, (0, 1))


def _divergence(down: Tensor, right: Tensor) -> Tensor:
    """Minus the adjoint of :func:`_slopes`, for fields that are zero at the far edges as slopes are."""
    return down - functional.pad(down, (0, 0, 1, 0))[..., :-1, :] + right - functional.pad(right, (1, 0))[..., :-1]


def flattened(crops: Tensor, strength: float, steps: int = 40) -> Tensor:
    """Total-variation denoising: least |u - crops|^2 / 2 + strength TV(u), channel by channel.

    Args:
        crops: shape (n, 3, height, width).
        strength: in grey levels.
        steps: of the fixed-point iteration on the dual.
    """
    down, right = torch.zeros_like(crops), torch.zeros_like(crops)
    for _ in range(steps):
        to_down, to_right = _slopes(_divergence(down, right) - crops / strength)
        size = 1 + 0.25 * (to_down**2 + to_right**2).sqrt()
        down, right = (down + 0.25 * to_down) / size, (right + 0.25 * to_right) / size
    return crops - strength * _divergence(down, right)


def bilateral(crops: Tensor, deviation: float = 2.0, levels: float = 20.0, radius: int = 3) -> Tensor:
    """Means over neighbours that are near in place and in colour.

    Args:
        crops: shape (n, 3, height, width).
        deviation: of the weight by distance, in pixels.
        levels: of the weight by difference in colour, in grey levels (root mean square over channels).
        radius: of the window.
    """
    height, width = crops.shape[-2:]
    padded = functional.pad(crops, (radius,) * 4, mode="reflect")
    total, weights = torch.zeros_like(crops), torch.zeros_like(crops[:, :1])
    for down in range(2 * radius + 1):
        for right in range(2 * radius + 1):
            other = padded[..., down : down + height, right : right + width]
            far = ((down - radius) ** 2 + (right - radius) ** 2) / deviation**2
            unlike = ((other - crops) ** 2).mean(1, keepdim=True) / levels**2
            weight = torch.exp(-(far + unlike) / 2)
            total += weight * other
            weights += weight
    return total / weights


def purified(crops: Tensor, generator: torch.Generator, copies: int = 8) -> Tensor:
    """The mean of copies that were moved by up to 1.5 pixels and 2 degrees, noised (4 levels), and compressed.

    What survives all copies is the face; a mask that depends on exact pixels does not.
    """
    total = torch.zeros_like(crops)
    for _ in range(copies):
        shift = (torch.rand(len(crops), 2, generator=generator) - 0.5) * 2 * 1.5 / (crops.shape[-1] / 2)
        angle = (torch.rand(len(crops), generator=generator) - 0.5) * 2 * math.radians(2)
        turn = torch.stack([angle.cos(), -angle.sin(), shift[:, 0], angle.sin(), angle.cos(), shift[:, 1]], 1)
        grid = functional.affine_grid(turn.view(-1, 2, 3), list(crops.shape), align_corners=False)
        moved = functional.grid_sample(crops, grid, mode="bilinear", padding_mode="border", align_corners=False)
        quality = int(torch.randint(60, 91, (1,), generator=generator))
        total += jpeg(noisy(moved, 4.0, generator), quality)
    return total / copies


TRANSFORMS: Mapping[str, Transform] = {
    "jpeg90": Transform("JPEG, quality 90", lambda x, _: jpeg(x, 90)),
    "jpeg75": Transform("JPEG, quality 75", lambda x, _: jpeg(x, 75)),
    "jpeg50": Transform("JPEG, quality 50", lambda x, _: jpeg(x, 50)),
    "jpeg30": Transform("JPEG, quality 30", lambda x, _: jpeg(x, 30)),
    "blur1": Transform("Gaussian blur, 1 pixel", lambda x, _: blurred(x, 1.0)),
    "blur2": Transform("Gaussian blur, 2 pixels", lambda x, _: blurred(x, 2.0)),
    "noise8": Transform("Gaussian noise, 8 grey levels", lambda x, g: noisy(x, 8.0, g)),
    "median3": Transform("median of 3 x 3", lambda x, _: median3(x)),
    "resize50": Transform("half the resolution", lambda x, _: resized(x, 0.5)),
    "variation": Transform("total-variation denoising, 8 grey levels", lambda x, _: flattened(x, 8.0)),
    "bilateral": Transform("bilateral filter, 2 pixels and 20 grey levels", lambda x, _: bilateral(x)),
    "purify": Transform("mean of 8 moved, noised, compressed copies", purified),
    "jpeg50blur1": Transform("JPEG, quality 50, then blur, 1 pixel", lambda x, _: blurred(jpeg(x, 50), 1.0)),
}
"""Attacks on each photo by itself."""


def transformed(name: str, crops: Tensor, generator: torch.Generator) -> Tensor:
    """Crops after a transform of the table, as a photo stores them.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in TRANSFORMS:
        raise unknown("transform", name, TRANSFORMS)
    return _stored(TRANSFORMS[name].change(_stored(crops), generator))


# -- the mask, from photos that wear it ---------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A guess of a person's mask from their photos.

    Attributes:
        title: in reports.
        photos: protected photos that the adversary has.
        beside: what it has beside them: clean faces of "others", or the same photos "clean".
        guess: (protected photos, what is beside them) -> candidate masks (c, 3, 112, 112). Of several, the adversary
            keeps the one after whose removal a photo comes nearest to anybody in the gallery.
    """

    title: str
    photos: int
    beside: Literal["others", "clean"]
    guess: Callable[[Tensor, Tensor], Tensor]


def high_pass(crops: Tensor) -> Tensor:
    """What a blur of :data:`HIGH_PASS` pixels takes away."""
    return crops - blurred(crops, HIGH_PASS)


def averaged(protected: Tensor, others: Tensor, *, middle: bool = False, population: bool = False) -> Tensor:
    """The mask as the mean (or median) of high-passed photos.

    Args:
        protected: photos of one person, shape (m, 3, 112, 112).
        others: clean faces of other people; may be empty.
        middle: the median at each pixel instead of the mean.
        population: take away the mean of the high-passed ``others``: what all faces share (eyes, mouth) is no mask.
    """
    photos = high_pass(protected)
    # quantile, not Tensor.median: of an even number that one takes the lower of the two in the middle.
    found = photos.quantile(0.5, dim=0, keepdim=True) if middle else photos.mean(0, keepdim=True)
    if population and len(others):
        found = found - high_pass(others).mean(0, keepdim=True)
    return found


def differences(protected: Tensor, clean: Tensor) -> Tensor:
    """Masks as leaked pairs show them: exact, but for pixels that were clipped. One candidate a pair."""
    return protected - clean


ESTIMATES: Mapping[str, Estimate] = {
    "average4": Estimate("mean of 4 high-passed photos taken off", 4, "others", averaged),
    "average8": Estimate("mean of 8 high-passed photos taken off", 8, "others", averaged),
    "median8": Estimate("median of 8 high-passed photos taken off", 8, "others", partial(averaged, middle=True)),
    "average8population": Estimate(
        "mean of 8 high-passed photos less that of other people", 8, "others", partial(averaged, population=True)
    ),
    "pair1": Estimate("one photo leaked with and without its mask", 1, "clean", differences),
    "pair4": Estimate("four photos leaked with and without their masks", 4, "clean", differences),
}
"""Attacks that learn the mask."""


# -- recognisers that learn from protected photos -----------------------------------------------------


@dataclass(frozen=True)
class Learner:
    """An adversary that owns a recogniser and has protected photos with names.

    Attributes:
        title: in reports.
        clean: whether it has clean photos of the person in its gallery too; else all it has of them is protected.
        head: embeddings (n, d) with labels (n,) -> a matrix (d, d'); vectors become ``normalize(e @ matrix)``.
        net: where given instead, a recogniser, crops, labels and a generator -> a recogniser.
        classes: compare with one mean vector for each person instead of with each photo.
    """

    title: str
    clean: bool = False
    head: Callable[[Tensor, Tensor], Tensor] | None = None
    net: Callable[[Recogniser, Tensor, Tensor, torch.Generator], Recogniser] | None = None
    classes: bool = False


def unchanged(embeddings: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001  (the signature of a head)
    """The head that changes nothing."""
    return torch.eye(embeddings.shape[1])


def whitened(embeddings: Tensor, labels: Tensor, shrinkage: float = 0.1) -> Tensor:
    """The inverse square root of the covariance within people: directions in which one's photos differ count less.

    A mask that some photos of people wear and others do not is such a direction, where the adversary has both. Closed
    form, no training: W = ((1 - a) S + a tr(S)/d I)^(-1/2) with S the pooled covariance within people.

    Args:
        embeddings: unit vectors, shape (n, d).
        labels: whose they are, shape (n,), 0..c-1.
        shrinkage: a, towards a multiple of the identity: S has rank n - c at most.
    """
    _, place = labels.unique(return_inverse=True)
    people = int(place.max()) + 1
    vectors = embeddings.double()
    sums = torch.zeros(people, vectors.shape[1], dtype=torch.float64).index_add_(0, place, vectors)
    around = vectors - (sums / place.bincount()[:, None])[place]
    within = around.T @ around / max(len(vectors) - people, 1)
    size = within.trace() / len(within)
    if float(size) <= 1e-12:
        return torch.eye(embeddings.shape[1])  # one photo each: nothing is known of how a person's photos differ
    values, axes = torch.linalg.eigh((1 - shrinkage) * within + shrinkage * size * torch.eye(len(within)).double())
    matrix: Tensor = axes * values.rsqrt() @ axes.T
    return matrix.float()


def tuned(
    recogniser: Recogniser,
    crops: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 30,
    rate: float = 1e-4,
    last: float = 0.25,
) -> Recogniser:
    """A copy of a recogniser after gradient steps on its last layers; the original stays as it was.

    Exactly: the last quarter of the network's matrices and kernels, in the order in which the module lists them, and
    one vector for each person (starting at the mean of their photos) are trained with Adam on the cross-entropy of
    16 cos(photo, person): 30 batches of 32 photos drawn with replacement, half of them mirrored. Normalisation layers
    and biases stay. That costs about a thousand embeddings and part of their gradients. It is a small adversary: a
    large one would train all layers on many people's photos.

    Args:
        recogniser: what it starts from.
        crops: photos with names, protected or not, shape (n, 3, 112, 112).
        labels: shape (n,), 0..c-1.
        generator: of the draws.
        steps: batches.
        rate: of Adam on the network; on the people's vectors a hundred times as much.
        last: share of the matrices and kernels that is trained.

    Raises:
        ModelError: the recogniser gives no gradients, or has nothing to train.
    """
    if not isinstance(recogniser.network, nn.Module) or not recogniser.differentiable:
        raise ModelError(f"{recogniser.name} gives no gradients", hint="give weights that torch runs, not ONNX")
    network = copy.deepcopy(recogniser.network).eval().requires_grad_(False)
    # Graphs keep their constants as buffers, so that nothing trains them by accident.
    parameters: list[Tensor] = list(network.parameters())
    # Matrices and kernels only. torch 2.13 crashes in the gradient of a GroupNorm whose scale is trained and whose
    # input is not, which would be so where the trained part begins with one.
    weights = [value for value in parameters or network.buffers() if sum(size > 1 for size in value.shape) > 1]
    if not weights:
        raise ModelError(f"{recogniser.name} has no layer that could be trained", hint="leave this attack out")
    chosen = [value.requires_grad_(True) for value in weights[-max(1, round(last * len(weights))) :]]
    made = replace(recogniser, name=f"{recogniser.name}, tuned", network=network, digest=f"{recogniser.digest}:tuned")
    known = recogniser.embed_all(crops)
    people = torch.stack([known[labels == number].mean(0) for number in range(int(labels.max()) + 1)]).requires_grad_()
    optimiser = torch.optim.Adam([{"params": chosen, "lr": rate}, {"params": [people], "lr": 100 * rate}])
    with torch.enable_grad():
        for _ in range(steps):
            batch = torch.randint(len(crops), (min(32, len(crops)),), generator=generator)
            mirror = torch.rand(len(batch), generator=generator) < 0.5
            seen = torch.where(mirror[:, None, None, None], crops[batch].flip(-1), crops[batch])
            cosines = made.embed(seen) @ functional.normalize(people, dim=1).T
            optimiser.zero_grad()
            functional.cross_entropy(16 * cosines, labels[batch]).backward()
            optimiser.step()
    for value in chosen:
        value.requires_grad_(False)
    return made


LEARNERS: Mapping[str, Learner] = {
    "whiten": Learner("a head that whitens, learned from protected photos with names", head=whitened),
    "whitenboth": Learner("a head that whitens, learned from protected and clean photos", clean=True, head=whitened),
    "meanboth": Learner("one mean of protected and clean photos for each person", True, unchanged, classes=True),
    "tune": Learner("the recogniser's last layers trained on protected photos with names", net=tuned),
}
"""Attacks that train a recogniser."""


def titles() -> dict[str, str]:
    """Every attack's name with its title, in the order of the tables."""
    tables: tuple[Mapping[str, Transform | Estimate | Learner], ...] = (TRANSFORMS, ESTIMATES, LEARNERS)
    return {name: one.title for table in tables for name, one in table.items()}


def usual() -> list[str]:
    """Names of the attacks that cost a few embeddings for each photo: all but those that train a network."""
    return [name for name in titles() if name not in LEARNERS or LEARNERS[name].net is None]


def checked(names: Sequence[str]) -> list[str]:
    """Names of attacks, each once, in the order given.

    Raises:
        UsageError: there is none of that name.
    """
    known = titles()
    for name in names:
        if name not in known:
            raise unknown("attack", name, known)
    return list(dict.fromkeys(names))
