"""Steering artifacts: what a method learned, with the card that says from what (safetensors, JSON, a README).

steering.safetensors    tensors by name, shape (layers, ...), fp32
card.json               method and knobs, model, anchors, validation, what was tried, predictors of success
README.md               the same for people
pictures/00.png ...     the unrelated pictures of the view ``natural``
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ModelError, RunError, UsageError
from holdfast.core.files import read_json, write_bytes, write_json, write_text
from holdfast.core.knobs import build, check
from holdfast.core.runs import open_run
from holdfast.data.images import open_image
from holdfast.steer.method import STEERING, Learned, SteeringMethod

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 1
KIND = "steer"
FOLDER = "steering"
_STRONGEST = 100.0


@dataclass(frozen=True)
class Steering:
    """A fitted method.

    Attributes:
        method: with every knob settled.
        learned: its tensors.
        card: where they come from.
        pool: unrelated pictures.
    """

    method: SteeringMethod
    learned: Learned
    card: Mapping[str, Any]
    pool: tuple[Image, ...] = ()

    def save(self, folder: Path) -> None:
        """Write the artifact."""
        import io

        from safetensors.torch import save

        tensors = {name: value.float().contiguous() for name, value in sorted(self.learned.items())}
        # One key: the order of several is not fixed, and equal fits are to give equal bytes.
        sign = "shift points from text to image and is subtracted; vector is added"
        about = {"holdfast": json.dumps({"format": FORMAT, "method": self.method.name, "sign": sign})}
        write_bytes(folder / "steering.safetensors", save(tensors, metadata=about))
        for old in (folder / "pictures").glob("*.png"):
            old.unlink()
        for number, picture in enumerate(self.pool):
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            write_bytes(folder / "pictures" / f"{number:02d}.png", stream.getvalue())
        write_json(folder / "card.json", dict(self.card))
        write_text(folder / "README.md", readme(self.card))

    def check_model(self, model: Any, identity: Mapping[str, Any], *, other: bool = False) -> None:
        """Refuse a model that the vectors were not fitted on.

        Args:
            model: the loaded model.
            identity: what identifies its files.
            other: take another model of the same shape.

        Raises:
            ModelError: another layer count or width; or another model, unless ``other``.
        """
        check_shape(self.card, model)
        if not other and dict(identity) != self.card["model"]["identity"]:
            raise ModelError(
                f"these vectors were fitted on another model ({self.card['model']['reference']})",
                hint="fit them on this model: holdfast steer fit; or, for a model tuned from that one, --other-model",
            )


def check_shape(card: Mapping[str, Any], model: Any) -> None:
    """Refuse a model of another depth or width than the one the vectors come from.

    Raises:
        ModelError: it is.
    """
    here = shape_of(model)
    there = card["model"]["shape"]
    for name, what in (("layers", "decoder layers"), ("width", "numbers in a hidden state")):
        if here[name] != there[name]:
            raise ModelError(
                f"the vectors are for a model with {there[name]} {what}; this one has {here[name]}",
                hint="fit them on this model: holdfast steer fit",
            )


def shape_of(model: Any) -> dict[str, int]:
    """Decoder layers and width of a model."""
    config = model.config.get_text_config()
    return {"layers": int(config.num_hidden_layers), "width": int(config.hidden_size)}


def load_steering(path: Path) -> Steering:
    """A fitted method from its run folder, or from the folder of its artifact.

    Raises:
        RunError: there is none, or it is damaged or of a newer format.
        DataError: a picture is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = artifact_folder(path)
    try:
        card = read_json(folder / "card.json")
        tensors = load((folder / "steering.safetensors").read_bytes())
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} holds no steering vectors", hint="give the run of a 'holdfast steer fit'") from error
    try:
        newer = card.get("format", 0) > FORMAT
        if not newer:
            method = build(STEERING.load(card["method"]["name"]), card["method"]["knobs"], f"{folder}/card.json")
            depth, width = (int(card["model"]["shape"][name]) for name in ("layers", "width"))
    except KeyError as error:
        raise RunError(f"{folder}/card.json is damaged: it lacks {error}", hint="fit again") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise RunError(f"{folder}/card.json is damaged: {error}", hint="fit again") from error
    if newer:
        raise RunError(f"{folder} was written by a newer Holdfast", hint="pip install --upgrade holdfast")
    for key, value in tensors.items():
        if value.shape[:1] != (depth,):
            found = value.shape[0] if value.dim() else 0
            raise RunError(f"{folder}: {key!r} has {found} layers, the card says {depth}", hint="fit again")
        if value.dim() > 1 and value.shape[1] != width:
            raise RunError(f"{folder}: {key!r} is {value.shape[1]} wide, the card says {width}", hint="fit again")
        if not bool(value.isfinite().all()):
            raise RunError(f"{folder}: {key!r} holds numbers that are not finite", hint="fit again")
    check(method, f"{folder}/card.json")
    check_strength(getattr(method, "strength", None), f"{folder}/card.json")
    beyond = [layer for layer in getattr(method, "layers", ()) if layer >= depth]
    if beyond:
        raise RunError(f"{folder}/card.json names layer {beyond[0]} of {depth}", hint="fit again")
    method.check_settled()
    pool = tuple(open_image(str(picture)) for picture in sorted((folder / "pictures").glob("*.png")))
    return Steering(method, tensors, card, pool)


def check_strength(strength: float | None, where: str) -> None:
    """Refuse a strength that weakens safety or can only break the model.

    Raises:
        UsageError: it is negative or beyond all reason.
    """
    if strength is not None and strength < 0:
        raise UsageError(
            f"{where}.strength = {strength:g}: a negative strength weakens safety", hint="give a strength of 0 or more"
        )
    if strength is not None and strength > _STRONGEST:
        raise UsageError(
            f"{where}.strength = {strength:g} can only break the model", hint=f"give at most {_STRONGEST:g}; 1 is usual"
        )


def artifact_folder(path: Path) -> Path:
    """Folder of the artifact of a run, checked; or the folder itself."""
    if not (path / "spec.json").is_file():
        return path
    run = open_run(path)
    if run.kind != KIND:
        raise RunError(f"{run.name} is a {run.kind} run", hint="give the run of a 'holdfast steer fit'")
    problem = run.damage()
    if problem is not None:
        raise RunError(f"run {run.name} cannot be used: {problem}", hint="run the command that made it again")
    return run.artifacts / FOLDER


def readme(card: Mapping[str, Any]) -> str:
    """The card for people."""
    method, model = card["method"], card["model"]
    what = (
        "It changes hidden states at inference time so that an image does not switch off the refusals which the "
        "language model gives to the text alone. It restores inherited alignment only, and does nothing against harm "
        "that is in the image itself."
    )
    anchors = (
        f"Anchors: {card['anchors']['harmful']} harmful and {card['anchors']['benign']} harmless prompts; no "
        "validation prompt is among them."
    )
    lines = [
        f"# {method['title']} for {model['reference']}",
        "",
        f"Method: `{method['name']}` ({method['paper']}). Made with Holdfast {card['made_with']}.",
        "",
        what,
        "",
        "| knob | value |",
        "|---|---|",
        *(f"| {name} | `{json.dumps(value)}` |" for name, value in method["knobs"].items()),
        "",
        anchors,
        "",
    ]
    if card["predictors"]:
        lines += ["Predictors of success at the steered layers:", ""]
        lines += [f"- {line}" for line in card["predictors"]["text"]]
    return "\n".join(lines) + "\n"
