"""Antidote: remove harmful coordinates after the user's fine-tuning, whatever its hyper-parameters were.

Huang, Bhattacharya, Joshi, Kimball, Liu. "Antidote: Post-fine-tuning Safety Alignment for Large Language
Models against Harmful Fine-tuning", ICML 2025 (arXiv:2408.09600), Algorithm 1. Wanda scores (Sun et al.,
ICLR 2024) over harmful calibration data,

    S_ij = |W_ij| * ||X_j||_2 ,

name the coordinates that carry the harmful behaviour; the top ``density`` of them is removed:
W <- W * (1 - mask).

What is scored and removed (``target``):
  * ``adapter``: entries of the user's LoRA, set to 0: the paper's method. Needs the ``fresh`` adapter policy,
    since an adapter that was continued also holds the alignment.
  * ``delta``: entries of W_tuned - W_before, set back to W_before. The working analogue for full
    fine-tuning and for a continued adapter: zeroing 5% of fully tuned weights destroys the model.
  * ``weights``: entries of the tuned weights themselves, set to 0 (the paper's full fine-tuning variant,
    at densities near 1e-5).

Differences from the authors' code: scores are gathered by hooks in whole forward passes (theirs re-runs
the model layer by layer and breaks on current transformers); the ranking can span a row (theirs), a matrix or
all matrices; ``spare`` keeps coordinates that safety data needs as much (their ``good_mask``, off by default).
``score = "random"`` and ``"magnitude"`` are the paper's ablations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from holdfast.core.errors import UsageError
from holdfast.core.knobs import knob
from holdfast.finetune.method import Repair, RepairMethod, Stream
from holdfast.models.architecture import linear_modules

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Antidote(RepairMethod):
    """Remove the coordinates with the highest Wanda scores on harmful data."""

    density: float = knob(0.1, "share of coordinates removed", low=0, high=1, source="Antidote: 0.1 SST-2, 0.05 GSM8K")
    target: Literal["adapter", "delta", "weights"] = knob("adapter", "what is scored and removed")
    ranking: Literal["row", "matrix", "all"] = knob("row", "the top share of each row, each matrix, or all together")
    score: Literal["wanda", "magnitude", "random"] = knob("wanda", "wanda, or the paper's ablations")
    calibrate: Literal["harmful", "user"] = knob("harmful", "data whose activations weigh the scores")
    spare: float = knob(0.0, "share of coordinates kept because safety data scores them highest", low=0, high=1)
    modules: tuple[str, ...] = knob((), "endings of module names to work on; empty: all linear maps in the layers")

    name = "antidote"
    needs = ("harmful",)
    off = {"density": 0.0}
    title = "Antidote"
    paper = "Huang et al., ICML 2025, arXiv:2408.09600"

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The data that the scores are weighed by, and the safety data of ``spare``."""
        weighed: tuple[Stream, ...] = (self.calibrate,) if self.score == "wanda" else ()
        return (*weighed, "safety") if self.spare > 0 and self.score == "wanda" else weighed

    def check_tuning(self, *, lora: bool, continued: bool) -> None:
        """See :meth:`RepairMethod.check_tuning`."""
        if self.target == "adapter" and not lora:
            raise UsageError(
                "antidote target 'adapter' needs a LoRA, and this model was fine-tuned without one",
                hint="use target = 'delta'",
            )
        if self.target == "adapter" and continued:
            raise UsageError(
                "antidote target 'adapter' would remove the alignment too: this LoRA continued the aligned one",
                hint="use target = 'delta', or align with adapter policy = 'fresh'",
            )
        if self.target == "weights" and lora:
            raise UsageError(
                "antidote target 'weights' is for full fine-tuning; this model has a LoRA",
                hint="use target = 'adapter' or 'delta'",
            )

    def apply(self, subject: Repair) -> None:
        """See :meth:`RepairMethod.apply`.

        Raises:
            UsageError: the target does not fit how the model was tuned, or calibration data is missing.
        """
        modules = self._targets(subject)
        before = {name: _before(subject.aligned, name, module, self.target) for name, module in modules.items()}
        scores = self._scores(subject, modules, before, self.calibrate)
        masks = _top(scores, self.density, self.ranking)
        if self.spare > 0:
            needed = _top(self._scores(subject, modules, before, "safety"), self.spare, self.ranking)
            masks = {name: mask & ~needed[name] for name, mask in masks.items()}
        removed = _remove(modules, masks, before)
        subject.measured["removed"] = removed
        subject.measured["removed_share"] = removed / max(1, sum(mask.numel() for mask in masks.values()))

    def _targets(self, subject: Repair) -> dict[str, nn.Module]:
        # Under their names in the whole model, PEFT's part of it included: those are what `aligned` has.
        names = {id(module): name for name, module in subject.model.named_modules()}
        linear = {names[id(module)]: module for module in linear_modules(subject.model).values()}
        lora = {name: module for name, module in linear.items() if ".lora_" in name}
        continued = any(before.any() for name, before in subject.aligned.items() if "lora_B" in name)
        self.check_tuning(lora=bool(lora), continued=continued)
        chosen = lora or linear
        found = {n: m for n, m in chosen.items() if not self.modules or _within(n, self.modules)}
        if not found:
            there = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in chosen})
            raise UsageError(
                f"antidote modules {', '.join(self.modules)}: this model has none of them",
                hint=f"it has: {', '.join(there)}",
            )
        return found

    def _scores(
        self, subject: Repair, modules: Mapping[str, nn.Module], before: Mapping[str, Tensor], stream: Stream
    ) -> dict[str, Tensor]:
        """Score of every coordinate, in the (out, in) layout whatever the module's own."""
        import torch

        changes = {name: (_weight(module) - before[name]).abs().float() for name, module in modules.items()}
        if self.score == "magnitude":
            return changes
        if self.score == "random":
            rng = subject.generator
            return {n: torch.rand(c.shape, generator=rng).to(c.device) for n, c in changes.items()}
        batches = subject.calibration.get(stream)
        if not batches:
            raise UsageError(f"antidote needs {stream} data to weigh its scores", hint=f"give --{stream} FILE")
        norms = input_norms(subject.model, modules, batches)
        return {name: change * norms[name][None, :] for name, change in changes.items()}


def input_norms(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """||X_j||_2 of each module's inputs over all real tokens of the batches; each of shape (in_features,)."""
    import torch

    sums: dict[str, Tensor] = {}
    current: dict[str, Tensor] = {}

    def gather(name: str) -> object:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            real = inputs[0][current["mask"]].float()
            sums[name] = sums.get(name, torch.zeros((), device=real.device)) + real.pow(2).sum(0)

        return hook

    hooks = [module.register_forward_pre_hook(gather(name)) for name, module in modules.items()]  # type: ignore[arg-type]
    training = model.training
    model.eval()  # dropout would put noise into the scores
    try:
        with torch.no_grad():
            for batch in batches:
                current["mask"] = batch["mask"]
                model(input_ids=batch["input_ids"], use_cache=False)
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()
    return {name: total.sqrt() for name, total in sums.items()}


def _top(scores: Mapping[str, Tensor], share: float, ranking: str) -> dict[str, Tensor]:
    """Masks of the top share of coordinates; counts are rounded to the nearest whole number."""
    import torch

    if ranking == "row":
        return {name: _top_of_rows(score, round(share * score.shape[1])) for name, score in scores.items()}
    if ranking == "matrix":
        flat = {name: _top_of_rows(s.reshape(1, -1), round(share * s.numel())) for name, s in scores.items()}
        return {name: mask.reshape(scores[name].shape) for name, mask in flat.items()}
    together = torch.cat([score.flatten() for score in scores.values()])[None, :]
    mask = _top_of_rows(together, round(share * together.numel()))[0]
    parts = mask.split([score.numel() for score in scores.values()])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _top_of_rows(score: Tensor, count: int) -> Tensor:
    import torch

    mask = torch.zeros_like(score, dtype=torch.bool)
    return mask.scatter_(1, score.topk(count, dim=1).indices, True) if count else mask


def _remove(modules: Mapping[str, nn.Module], masks: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> int:
    import torch

    removed = 0
    with torch.no_grad():
        for name, module in modules.items():
            weight = _weight(module)
            # copy_ through the (possibly transposed) view writes into the module's own storage.
            weight.copy_(torch.where(masks[name], before[name].to(weight.dtype), weight))
            removed += int(masks[name].sum())
    return removed


def _before(aligned: Mapping[str, Tensor], name: str, module: nn.Module, target: str) -> Tensor:
    """Weights before the user's fine-tuning in the (out, in) layout; zeros where removal means zero."""
    import torch

    weight = _weight(module)
    if target != "delta":
        return torch.zeros_like(weight)
    found = aligned[f"{name}.weight"].to(weight.device, weight.dtype)
    return found.T if _transposed(module) else found


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    return weight.T if _transposed(module) else weight


def _transposed(module: nn.Module) -> bool:
    """GPT-2's Conv1D keeps its weight as (in, out)."""
    return type(module).__name__ == "Conv1D"


def _within(name: str, endings: tuple[str, ...]) -> bool:
    return any(part == ending for part in name.split(".") for ending in endings)
