"""Shipped recognisers: small networks trained on drawn faces, from random weights.

Each has learned to tell apart a thousand people of :mod:`holdfast.data.drawn` by CosFace's margin (Wang et al.,
"CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018, arXiv:1801.09414, equation 4):

    -log exp(s (cos t_y - m)) / (exp(s (cos t_y - m)) + sum of exp(s cos t_j) over the others j)

on crops that are shifted, scaled, dimmed, blurred, covered in part and compressed, so that none of this is a way around
them. What differs from the paper: the margin grows from nothing over the first half, because so small a network does
not start under the whole of it; and a person's centre is a linear map of the measures that the face is drawn by, plus
a part of its own, so that what is learned of one person holds for the next. They know nothing of real faces; their use
is to try things out, and to be a team of different families for tests. No photograph of anybody went into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from holdfast.core.errors import unknown
from holdfast.core.events import Progressed, Sink, ignore
from holdfast.core.files import write_bytes, write_json
from holdfast.data import drawn
from holdfast.faces.align import align, crop
from holdfast.faces.detect import find_faces
from holdfast.faces.nets import build_network
from holdfast.faces.recogniser import CARD, Input, Recogniser, load_recogniser
from holdfast.models.sandbox import apart, platform_of_build

TEST_PEOPLE = 400  # seed of the first of those whom figures are measured on
THRESHOLD_PEOPLE = 500  # and of those whom ``same_person`` is set on
FALSE_ACCEPTS = 1e-3


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a shipped recogniser is made (sizes chosen for 10 minutes of one CPU core).

    Attributes:
        architecture, options: the network, see :mod:`holdfast.faces.nets`.
        group: of training people, see :func:`holdfast.data.drawn.training_people`.
        seed: of weights, order and changes of crops.
        people, photos: trained on, photos of each.
        epochs, batch, rate: of AdamW; the rate rises for a twentieth of the steps, then falls along a cosine.
        margin, scale: m and s of the loss.
    """

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    group: int = 0
    seed: int = 0
    people: int = 1000
    photos: int = 10
    epochs: int = 6
    batch: int = 64
    rate: float = 3e-3
    margin: float = 0.3
    scale: float = 24.0

    @property
    def input(self) -> Input:
        """What its network is fed."""
        return Input(size=int(self.options.get("size", drawn.CROP)))


_MOBILE = {"embedding": 64, "width": 0.25, "size": 80}
RECIPES: dict[str, Recipe] = {
    "drawn-mobile": Recipe("mobilefacenet", _MOBILE, epochs=7),
    "drawn-residual": Recipe(
        "iresnet", {"layers": [1, 1, 1, 1], "embedding": 48, "width": 16, "size": 64}, seed=1, group=1, epochs=6
    ),
    "drawn-plain": Recipe("plain", {"embedding": 64, "channels": [16, 32, 48, 64], "size": 80}, seed=2, epochs=10),
    "drawn-patch": Recipe("patch", {"embedding": 64, "size": 80}, seed=3, group=1, epochs=12, rate=2e-3),
    "drawn-mobile-b": Recipe("mobilefacenet", _MOBILE, seed=4, group=1, epochs=7),
}
SHIPPED = tuple(RECIPES)


def build(
    name: str | Recipe, out: Path, *, progress: Sink = ignore, cache: Path | None = None, measure: bool = True
) -> Path:
    """Train a recogniser and save it as a folder that :func:`holdfast.faces.recogniser.load_recogniser` reads.

    One thread and generators of its own: the same call writes the same weights on the same platform, and leaves
    torch's random state and thread count as they were.

    Args:
        name: one of :data:`SHIPPED`, or a recipe made by hand.
        out: folder to write.
        progress: receives the loss now and then.
        cache: folder that keeps crops for the next build from the same people.
        measure: whether figures are measured and put on the card; without, ``same_person`` is a guess.

    Returns:
        ``out``.

    Raises:
        UsageError: no such recogniser.
    """
    if isinstance(name, str) and name not in RECIPES:
        raise unknown("shipped recogniser", name, RECIPES)
    recipe = RECIPES[name] if isinstance(name, str) else name
    with apart(recipe.seed):
        network = _trained(recipe, training_crops(recipe, cache), progress)
        _save(network, recipe, out, name if isinstance(name, str) else recipe.architecture)
        if measure:
            _measure(out, cache)
    return out


def training_crops(recipe: Recipe, cache: Path | None = None) -> NDArray[np.uint8]:
    """Crops of the people that a recipe trains on, shape (people, photos, 112, 112, 3)."""

    def make() -> NDArray[np.uint8]:
        people = drawn.training_people(recipe.people, recipe.group)
        return np.stack([np.stack([drawn.aligned(one, photo) for photo in range(recipe.photos)]) for one in people])

    return _kept(cache, f"crops-{recipe.group}-{recipe.people}-{recipe.photos}", make)


def _kept(cache: Path | None, name: str, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Crops out of a folder, made and put there when they are not."""
    if cache is None:
        return make()
    place = cache / f"{name}.npy"
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, make())
    return np.asarray(np.load(place, allow_pickle=False))


# -- training -----------------------------------------------------------------------------------------


def _trained(recipe: Recipe, crops: NDArray[np.uint8], progress: Sink) -> torch.nn.Module:
    """A network trained by a recipe, in evaluation mode."""
    generator = torch.Generator().manual_seed(recipe.seed)
    network = build_network(recipe.architecture, recipe.options)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    flat = torch.from_numpy(np.ascontiguousarray(crops.reshape(-1, *crops.shape[2:])))
    labels = torch.arange(crops.shape[0]).repeat_interleave(crops.shape[1])
    with torch.no_grad():
        width = network(recipe.input.prepared(torch.zeros(2, 3, drawn.CROP, drawn.CROP))).shape[1]
    known = traits(recipe)
    # A direction for each person; thrown away afterwards.
    own = torch.nn.Parameter(torch.zeros(crops.shape[0], width))
    shared = torch.nn.Parameter(torch.randn(known.shape[1], width, generator=generator) / math.sqrt(known.shape[1]))
    trained = [*(p for p in network.parameters() if p.requires_grad), own, shared]
    optimizer = torch.optim.AdamW(trained, recipe.rate, betas=(0.9, 0.99), weight_decay=0.02, fused=True)
    each = max(1, len(flat) // recipe.batch)
    total = recipe.epochs * each
    network.train()
    for step in range(total):
        if step % each == 0:
            order = torch.randperm(len(flat), generator=generator)
        rows = order[(step % each) * recipe.batch :][: recipe.batch]
        rise = min(1.0, (step + 1) / max(10, total / 20))
        for part in optimizer.param_groups:
            part["lr"] = recipe.rate * rise * max(0.01, 0.5 * (1 + math.cos(math.pi * step / total)))
        changed = _changed(flat[rows].permute(0, 3, 1, 2).float(), generator)
        cosines = (
            functional.normalize(network(recipe.input.prepared(changed))) @ functional.normalize(known @ shared + own).T
        )
        margin = recipe.margin * min(1.0, 2 * step / total)
        loss = cosface(cosines, labels[rows], margin, recipe.scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0 or step + 1 == total:
            progress(Progressed(done=step + 1, total=total, loss=float(loss.detach())))
    return network.eval().requires_grad_(False)


def traits(recipe: Recipe) -> Tensor:
    """What people's faces are made of, one row each, standardised."""
    people = drawn.training_people(recipe.people, recipe.group)
    rows = [
        [*someone.measures.values(), *someone.skin, *someone.hair, *someone.eyes, someone.hair_length]
        for someone in people
    ]
    values = torch.tensor(rows)
    return ((values - values.mean(0)) / (values.std(0) + 1e-6)).clamp(-3, 3)


def cosface(cosines: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """CosFace's loss (equation 4) of cosines to all centres, shape (n, people), mean over the batch."""
    right = functional.one_hot(labels, cosines.shape[1])
    return functional.cross_entropy(scale * (cosines - margin * right), labels)


def _changed(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Crops as other cameras, detectors and files would have left them."""
    crops = _moved(crops, generator)
    n = len(crops)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    def some(share: float) -> Tensor:
        return torch.rand(n, generator=generator) < share

    soft = some(0.25)
    if soft.any():
        small = functional.interpolate(crops[soft], scale_factor=0.5, mode="bilinear", antialias=True)
        crops[soft] = functional.interpolate(small, crops.shape[-2:], mode="bilinear")
    crops = crops * uniform(0.75, 1.2, 3, 1, 1).lerp(uniform(0.7, 1.3, 1, 1, 1), 0.75) + uniform(-14, 14, 1, 1, 1)
    crops = crops + torch.randn(crops.shape, generator=generator) * (uniform(0, 9, 1, 1, 1))
    squeezed = some(0.3)
    if squeezed.any():
        crops[squeezed] = _compressed(crops[squeezed], uniform(8, 45, 1, 1, 1)[squeezed])
    for row in torch.nonzero(some(0.2)).flatten().tolist():
        top, left, tall, wide = (int(v) for v in torch.randint(0, 80, (4,), generator=generator))
        crops[row, :, top : top + 8 + tall // 3, left : left + 8 + wide // 3] = crops[row].mean()
    return crops.clamp(0, 255)


def _moved(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to 3 pixels, scaled by up to 5 %, turned by up to 3 degrees."""
    draws = torch.rand(len(crops), 4, generator=generator) * 2 - 1
    turn, size = draws[:, 0] * math.radians(3), 1 + 0.05 * draws[:, 1]
    sine, cosine = size * turn.sin(), size * turn.cos()
    shift = draws[:, 2:] * (6 / crops.shape[-1])
    matrix = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], 1).reshape(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(crops.shape), align_corners=False)
    return functional.grid_sample(crops, grid, padding_mode="border", align_corners=False)


def _compressed(crops: Tensor, step: Tensor) -> Tensor:
    """What JPEG does to a picture: each 8 by 8 block's cosine transform rounded, the more the higher the frequency."""
    n, channels, height, width = crops.shape
    k = torch.arange(8.0)
    basis = torch.cos(math.pi * (2 * k + 1) * k[:, None] / 16) * 0.5
    basis[0] /= math.sqrt(2)
    blocks = crops.reshape(n, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    quantum = step[..., None, None] * (0.3 + 0.1 * (k + k[:, None]))
    rounded = torch.round((basis @ blocks @ basis.T) / quantum) * quantum
    return (basis.T @ rounded @ basis).transpose(3, 4).reshape(crops.shape)


# -- figures ------------------------------------------------------------------------------------------


def figures(vectors: Tensor, threshold: float | None = None) -> dict[str, float]:
    """How well unit vectors tell people apart.

    Args:
        vectors: shape (people, photos, dimension).
        threshold: cosine from which two photos count as one person; without, the least with one false accept in a
            thousand among these very pairs.

    Returns:
        rank_1: share of photos but the first whose nearest first photo is their own person's.
        tar, far: shares of genuine and impostor pairs at or above the threshold.
        d_prime: distance of the two means in units of their pooled deviation; with means and deviations.
    """
    people, photos, _ = vectors.shape
    cosines = torch.einsum("apd,bqd->apbq", vectors, vectors)
    first = cosines[:, 1:, :, 0].argmax(-1)
    right = (first == torch.arange(people)[:, None]).float().mean()
    one, other = torch.triu_indices(photos, photos, 1)
    genuine = cosines.diagonal(dim1=0, dim2=2)[one, other].flatten()
    impostor = torch.cat([cosines[a, :, a + 1 :].flatten() for a in range(people - 1)])
    if threshold is None:
        threshold = float(impostor.sort().values[-1 - int(FALSE_ACCEPTS * len(impostor))]) + 1e-6
    spread = math.sqrt(0.5 * float(genuine.var() + impostor.var()))
    return {
        "rank_1": float(right),
        "tar": float((genuine >= threshold).float().mean()),
        "far": float((impostor >= threshold).float().mean()),
        "threshold": threshold,
        "d_prime": float(genuine.mean() - impostor.mean()) / spread,
        "genuine_mean": float(genuine.mean()),
        "genuine_deviation": float(genuine.std()),
        "impostor_mean": float(impostor.mean()),
        "impostor_deviation": float(impostor.std()),
        "people": people,
        "photos": photos,
        "genuine_pairs": len(genuine),
        "impostor_pairs": len(impostor),
    }


def photographed(people: Sequence[drawn.Person], photos: int, *, detected: bool) -> NDArray[np.uint8]:
    """Crops of photographs, aligned by the detector's landmarks or by the true ones.

    Where the detector finds nothing, the crop is black: that photo counts against the recogniser, as it would outside.

    Returns:
        Shape (people, photos, 112, 112, 3).
    """
    made = np.zeros((len(people), photos, drawn.CROP, drawn.CROP, 3), np.uint8)
    for row, someone in enumerate(people):
        for number in range(photos):
            photo = drawn.photo(someone, number)
            found = [face.landmarks for face in find_faces(photo.pixels)] if detected else list(photo.landmarks)
            if found:
                made[row, number] = crop(photo.pixels, align(found[0])).round().byte().permute(1, 2, 0).numpy()
    return made


def measured(
    recogniser: Recogniser, people: int = 60, photos: int = 8, *, cache: Path | None = None
) -> dict[str, dict[str, float]]:
    """Figures of a recogniser on drawn people whom it never saw; the threshold comes from others.

    Args:
        recogniser: to be measured.
        people: in each of the two sets.
        photos: of each.
        cache: folder that keeps the crops.
    """

    def vectors(first: int, detected: bool) -> tuple[Tensor, int]:
        crops = _kept(
            cache,
            f"photographed-{first}-{people}-{photos}-{'detected' if detected else 'true'}",
            lambda: photographed(drawn.demo_people(people, first), photos, detected=detected),
        )
        pixels = torch.from_numpy(crops).flatten(0, 1).permute(0, 3, 1, 2).float()
        missed = int((pixels.amax((1, 2, 3)) == 0).sum())
        return recogniser.embed_all(pixels).reshape(people, photos, -1), missed

    threshold = figures(vectors(THRESHOLD_PEOPLE, True)[0])["threshold"]
    found = {}
    for name, detected in (("detected", True), ("true_landmarks", False)):
        seen, missed = vectors(TEST_PEOPLE, detected)
        found[name] = {key: round(value, 4) for key, value in figures(seen, threshold).items()} | {"not_found": missed}
    return found


# -- saving -------------------------------------------------------------------------------------------


def _save(network: torch.nn.Module, recipe: Recipe, out: Path, name: str) -> None:
    from safetensors.torch import save

    # The count of batches in normalisation layers is training's business.
    tensors = {
        key: value.detach().half().contiguous()
        for key, value in sorted(network.state_dict().items())
        if not key.endswith("num_batches_tracked")
    }
    with torch.no_grad():
        dimension = network(recipe.input.prepared(torch.zeros(2, 3, drawn.CROP, drawn.CROP))).shape[1]
    write_bytes(out / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    card = {
        "format": 1,
        "architecture": recipe.architecture,
        "options": recipe.options,
        "input": asdict(recipe.input),
        "dimension": int(dimension),
        "same_person": 0.5,
        "title": f"{name}: {recipe.architecture} trained on drawn faces",
        "licence": "Apache-2.0",
        "source": "trained by holdfast.faces.sandbox from random weights; no photograph of anybody went into it",
        "training": f"CosFace on {recipe.people} drawn people, {recipe.photos} photos of each, {recipe.epochs} epochs",
        "recipe": asdict(recipe),
        "built_on": platform_of_build(),
    }
    write_json(out / CARD, card)


def _measure(out: Path, cache: Path | None) -> None:
    """Put figures of what was saved (half precision and all) on its card."""
    recogniser = load_recogniser(str(out))
    found = measured(recogniser, cache=cache)
    card = dict(recogniser.card) | {"same_person": found["detected"]["threshold"], "measured": found}
    write_json(out / CARD, card)
