"""Recognisers: networks that turn an aligned face into a vector, so that photos of one person lie close together.

A recogniser is a folder (``recogniser.json`` beside ``model.safetensors``), a name of a shipped one, or an ONNX file:

    drawn-mobile            shipped, trained by Holdfast on drawn faces: for demonstrations and tests
    mobileface-v2           shipped, trained by others on photos, under a permissive licence
    path/to/folder          your own weights under one of the architectures of holdfast.faces.nets
    path/to/model.onnx      your own, through ONNX Runtime: it can judge a mask, but a mask cannot learn from it

Weights are safetensors, never pickles, and no code comes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.core.errors import MissingExtra, ModelError, RunError, nearest
from holdfast.core.files import read_json
from holdfast.core.keys import file_digest
from holdfast.faces.align import SIDE

WEIGHTS = Path(__file__).parent / "weights"
CARD = "recogniser.json"
BATCH = 32
_ORDERS = ("RGB", "BGR")


@dataclass(frozen=True)
class Input:
    """What a network expects.

    Attributes:
        size: pixels a side.
        order: of the colours.
        mean, scale: it gets (pixel - mean) * scale of pixels 0 to 255.
    """

    size: int = SIDE
    order: str = "RGB"
    mean: float = 127.5
    scale: float = 1 / 128

    def __post_init__(self) -> None:
        if self.order not in _ORDERS or not 16 <= self.size <= 1024:
            raise ModelError(
                f"input of a recogniser: order {self.order!r}, size {self.size}",
                hint="order is RGB or BGR, size 16 to 1024 pixels",
            )

    def prepared(self, crops: Tensor) -> Tensor:
        """Crops (n, 3, 112, 112) as the network wants them."""
        if crops.shape[-1] != self.size:
            shrinks = crops.shape[-1] > self.size
            crops = functional.interpolate(
                crops, (self.size, self.size), mode="bilinear", align_corners=False, antialias=shrinks
            )
        if self.order == "BGR":
            crops = crops.flip(1)
        # Depthwise convolutions are faster where the channels of a pixel lie together.
        return ((crops - self.mean) * self.scale).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Recogniser:
    """A recogniser that is ready to be asked.

    Attributes:
        name: how reports call it.
        network: prepared pixels to vectors (n, dimension), not normalised.
        input: what the network expects.
        card: what is known of it: licence, source, measured figures.
        digest: of its weights; part of every key.
        differentiable: whether a mask can learn from it.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    input: Input
    card: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    differentiable: bool = True

    @property
    def same_person(self) -> float:
        """Cosine from which two photos count as one person (one false accept in a thousand, where measured)."""
        return float(self.card.get("same_person", 0.35))

    def embed(self, crops: Tensor) -> Tensor:
        """Unit vectors of aligned faces, shape (n, dimension); differentiable where the network is.

        Args:
            crops: shape (n, 3, 112, 112), RGB, 0..255.
        """
        return functional.normalize(self.network(self.input.prepared(crops)).flatten(1), dim=1)

    def embed_all(self, crops: Tensor, batch: int = BATCH) -> Tensor:
        """Unit vectors without gradients, in batches."""
        with torch.no_grad():
            parts = [self.embed(part) for part in crops.split(batch)]
        return torch.cat(parts) if parts else torch.zeros(0, int(self.card.get("dimension", 0)))

    def to(self, device: torch.device | str) -> Recogniser:
        """The same one on a device; ONNX Runtime's stay where they are."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        return self


def shipped() -> list[str]:
    """Names of the recognisers that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob(f"*/{CARD}"))


def load_recogniser(reference: str) -> Recogniser:
    """A recogniser by its shipped name, folder or ONNX file.

    Raises:
        ModelError: there is none, its card or weights are damaged, or the weights do not fit the architecture.
        MissingExtra: an ONNX file without ONNX Runtime.
    """
    place = find_recogniser(reference)
    if place.suffix == ".onnx":
        return _from_onnx(place)
    stamp = tuple((place / name).stat().st_mtime_ns for name in (CARD, "model.safetensors"))
    return _from_folder(place, stamp)


def load_recognisers(references: Sequence[str]) -> list[Recogniser]:
    """Several recognisers, each named once.

    Raises:
        ModelError: see :func:`load_recogniser`; or two have the same weights.
    """
    found = [load_recogniser(reference) for reference in references]
    for number, one in enumerate(found):
        twin = next((other for other in found[:number] if other.digest == one.digest), None)
        if twin is not None:
            raise ModelError(f"{references[number]} and {twin.name} have the same weights", hint="name each one once")
    return found


def find_recogniser(reference: str) -> Path:
    """Where a recogniser is: its folder or ONNX file.

    Raises:
        ModelError: there is none of that name.
    """
    inside = WEIGHTS / reference
    if reference in shipped():
        return inside
    place = Path(reference).expanduser()
    if place.suffix == ".onnx" and place.is_file():
        return place
    if (place / CARD).is_file():
        if not (place / "model.safetensors").is_file():
            raise ModelError(f"{reference} has no model.safetensors", hint="weights go beside its card, as safetensors")
        return place
    if place.is_dir():
        raise ModelError(
            f"{reference} is a folder without {CARD}", hint="docs/how-to/own-recogniser.md says what it holds"
        )
    names = shipped()
    raise ModelError(
        f"no recogniser {reference!r}",
        hint=f"{nearest(reference, names)}shipped: {', '.join(names)}; or give a folder or an .onnx file",
    )


def identity_of(reference: str) -> dict[str, str]:
    """What a key is taken over: the name and the weights' content, read without loading them."""
    place = find_recogniser(reference)
    if place.suffix == ".onnx":
        return {"name": place.stem, "digest": file_digest(place)}
    return {"name": place.name, "digest": _folder_digest(place)}


def _folder_digest(place: Path) -> str:
    # The card says what the network is fed: another mean is another recogniser.
    return f"{file_digest(place / 'model.safetensors')}:{file_digest(place / CARD)[:16]}"


@lru_cache(maxsize=32)
def _from_folder(place: Path, stamp: tuple[int, ...]) -> Recogniser:  # noqa: ARG001  (a changed file is read anew)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = _card(place / CARD)
    try:
        if card["format"] != 1:
            raise ModelError(f"{place / CARD} has format {card['format']}", hint="this version reads format 1")
        tensors = {name: value.float() for name, value in load_file(place / "model.safetensors").items()}
        network = _network(card, tensors, place)
        made = Input(**card["input"])
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{place / CARD} is no card of a recogniser: {error}",
            hint="docs/how-to/own-recogniser.md says what it holds",
        ) from error
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{place}: the weights do not load: {error}", hint="the file is damaged: copy it again"
        ) from error
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Recogniser(place.name, network.eval().requires_grad_(False), made, card, _folder_digest(place))


def _card(path: Path) -> Any:
    """What a card says, as JSON."""
    try:
        return read_json(path)
    except RunError as error:
        raise ModelError(error.message, hint="write it anew, as docs/how-to/own-recogniser.md says") from error


def _network(card: Mapping[str, Any], tensors: dict[str, Tensor], place: Path) -> nn.Module:
    if card["architecture"] == "graph":
        from holdfast.faces.graph import Graph

        return Graph(card["options"], tensors)
    from holdfast.faces.nets import build_network

    network = build_network(card["architecture"], card.get("options", {}))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
        raise ModelError(
            f"the weights in {place} do not fit {card['architecture']}: {reason[:200]}",
            hint=f"check 'architecture' and 'options' in {CARD}",
        ) from error
    return network


def _from_onnx(path: Path) -> Recogniser:
    """An ONNX file; ``model.json`` beside ``model.onnx`` says what it is fed, else the file's shape does."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnx", "onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise ModelError(f"{path} does not open as an ONNX model: {reason}", hint="export it again") from error
    inputs = session.get_inputs()
    card = _card(path.with_suffix(".json")) if path.with_suffix(".json").is_file() else {}
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, "3"):
        raise ModelError(f"{path} takes {shape}, not one batch of RGB crops (n, 3, size, size)", hint="export it anew")
    size = shape[2] if isinstance(shape[2], int) else SIDE
    made = Input(**card["input"]) if "input" in card else Input(size)
    name = inputs[0].name
    single = shape[0] == 1

    def network(pixels: Tensor) -> Tensor:
        batch = pixels.detach().cpu().numpy()
        parts = [batch[i : i + 1] for i in range(len(batch))] if single else [batch]
        return torch.cat([torch.from_numpy(session.run(None, {name: part})[0]).flatten(1) for part in parts])

    return Recogniser(path.stem, network, made, card, file_digest(path), differentiable=False)
