"""Predictors of success: numbers from the anchors alone that say whether a method can work at a layer.

    cosine      between the image's shift of harmful and of harmless prompts. Near 1, the shift is one constant and can
                be taken back for all; near 0 it depends on what is asked, and a constant steers harmless requests into
                refusal.
    along       part of the shift's length that lies along the safety direction: what can matter for refusals.
    separable   how well a line tells harmful from harmless prompts *with* their pictures (area under the ROC curve of
                cross-fitted differences of means). Without it no constant works; methods that read the text alone
                (sample level, transplant) do.
    sunk        how far the image moves the harmful prompts' coordinate towards the harmless side, as a share of the
                distance between the two classes in text.

They are guides without intervals, and say what cannot work rather than what will: docs/how-to/vision-language.md has a
model on which a constant leaves half of the hazards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from holdfast.steer.method import Anchors, SteeringMethod, coordinate

if TYPE_CHECKING:
    from torch import Tensor

_FOLDS = 5


def layer_predictors(anchors: Anchors) -> list[dict[str, Any]]:
    """The predictors at every steerable layer.

    Returns:
        one object a layer: ``layer``, ``cosine``, ``along``, ``separable`` and ``separable_text`` (areas, 0.5 is
        chance), ``sunk``. Where a length is zero there is no shift or no difference between the classes, and what
        would be divided by it is 0.
    """
    import torch

    shift = {g: anchors.states(g, "image") - anchors.states(g, "text") for g in ("harmful", "benign")}
    safety = anchors.safety()
    means = {g: shift[g].mean(1) for g in shift}
    cosine = torch.nn.functional.cosine_similarity(means["harmful"], means["benign"], dim=-1)
    along = (means["harmful"] * safety).sum(-1).abs() / means["harmful"].norm(dim=-1).clamp(min=1e-12)
    gap = _mean_coordinate(anchors, "benign", safety) - _mean_coordinate(anchors, "harmful", safety)
    sunk = (means["harmful"] * safety).sum(-1) / gap.clamp(min=1e-12)
    return [
        {
            "layer": layer,
            "cosine": round(float(cosine[layer]), 4),
            "along": round(float(along[layer]), 4),
            "separable": round(separability(*(anchors.states(g, "image")[layer] for g in ("harmful", "benign"))), 4),
            "separable_text": round(
                separability(*(anchors.states(g, "text")[layer] for g in ("harmful", "benign"))), 4
            ),
            "sunk": round(float(sunk[layer]), 4),
        }
        for layer in anchors.layers
    ]


def _mean_coordinate(anchors: Anchors, group: str, safety: Tensor) -> Tensor:
    return coordinate(anchors.states(group, "text"), safety).mean(1)


def separability(harmful: Tensor, benign: Tensor) -> float:
    """Area under the ROC curve of a cross-fitted difference of means; 0.5 is chance.

    Args:
        harmful: states of harmful prompts, shape (items, width).
        benign: likewise of harmless ones.
    """
    import torch

    folds = min(_FOLDS, len(harmful), len(benign))
    if folds < 2:
        return 0.5
    scores: dict[str, list[Tensor]] = {"harmful": [], "benign": []}
    for fold in range(folds):
        left = {n: torch.arange(len(s)) % folds == fold for n, s in (("harmful", harmful), ("benign", benign))}
        mean_h, mean_b = harmful[~left["harmful"]].mean(0), benign[~left["benign"]].mean(0)
        direction, middle = mean_h - mean_b, (mean_h + mean_b) / 2
        scores["harmful"].append((harmful[left["harmful"]] - middle) @ direction)
        scores["benign"].append((benign[left["benign"]] - middle) @ direction)
    high, low = torch.cat(scores["harmful"]), torch.cat(scores["benign"])
    wins = (high[:, None] > low[None, :]).float() + 0.5 * (high[:, None] == low[None, :]).float()
    return float(wins.mean())


def predictors(anchors: Anchors, method: SteeringMethod) -> dict[str, Any]:
    """Predictors at every layer, in words for the layers that a method steers, and warnings.

    Returns:
        ``layers`` (see :func:`layer_predictors`), ``text`` and ``warnings``; empty for methods without layers.
    """
    chosen: Sequence[int] = getattr(method, "layers", ())
    if not chosen:
        return {}
    found = layer_predictors(anchors)
    here = [row for row in found if row["layer"] in chosen]
    text = [
        f"layer {row['layer']}: shifts of harmful and harmless prompts have cosine {row['cosine']:.2f}; "
        f"{100 * row['along']:.0f}% of the shift lies along the safety direction; with pictures the classes separate "
        f"with area {row['separable']:.2f} (text alone {row['separable_text']:.2f}); the image takes back "
        f"{100 * row['sunk']:.0f}% of the distance between them"
        for row in here
    ]
    return {"layers": found, "text": text, "warnings": warnings(method, here, len(anchors.layers))}


def warnings(method: SteeringMethod, here: Sequence[dict[str, Any]], depth: int) -> list[str]:
    """What the predictors warn of for a method at its layers."""
    made = []
    constant = getattr(method, "level", "") == "dataset" or method.name in ("caa", "refusal-direction")
    unaligned = [row["layer"] for row in here if row["cosine"] < 0.3]
    blind = [row["layer"] for row in here if row["separable"] < 0.7]
    if constant and unaligned and getattr(method, "gate", "none") == "none":
        made.append(
            f"the image shifts harmful and harmless prompts differently at layer {unaligned[0]}: a constant shift may "
            "refuse harmless requests; the sample level and transplant do not rest on it"
        )
    if constant and blind:
        made.append(
            f"with pictures, harmful and harmless prompts are hardly apart at layer {blind[0]}: no constant can tell "
            "them; use the sample level or transplant"
        )
    if method.name == "cmrm" and len(here) > depth // 2 and (getattr(method, "strength", 0) or 0) > 0.2:
        made.append("adding a shift at most layers accumulates: use one or two layers, or a strength of at most 0.2")
    return made
