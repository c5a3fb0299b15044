"""Holdfast keeps the safety alignment of a model through what its deployers do to it.

Names below load their module on first use, so that ``import holdfast`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Store": "holdfast.core.runs",
    "Item": "holdfast.core.records",
    "Sample": "holdfast.core.records",
    "Rating": "holdfast.core.records",
    "Metric": "holdfast.core.records",
    "HoldfastError": "holdfast.core.errors",
    "Row": "holdfast.data.rows",
    "Source": "holdfast.data.read",
    "Mix": "holdfast.data.mixes",
    "Training": "holdfast.finetune.settings",
    "Adapter": "holdfast.finetune.settings",
    "TrainStage": "holdfast.finetune.stages",
    "RepairStage": "holdfast.finetune.stages",
    "UserData": "holdfast.finetune.stages",
    "Ask": "holdfast.models.ask",
    "NotRefusedJudge": "holdfast.raters.rules",
    "RefusalJudge": "holdfast.raters.rules",
    "SandboxJudge": "holdfast.raters.sandbox",
    "Decoding": "holdfast.models.answer",
    "Engine": "holdfast.models.engine",
    "judge_run": "holdfast.raters.judging",
    "samples_of": "holdfast.models.ask",
    "rate": "holdfast.raters.measure",
    "bench": "holdfast.finetune.bench",
    "Booster": "holdfast.finetune.alignment.booster",
    "Vaccine": "holdfast.finetune.alignment.vaccine",
    "Lisa": "holdfast.finetune.finetuning.lisa",
    "SafeInstruct": "holdfast.finetune.finetuning.safeinstruct",
    "Antidote": "holdfast.finetune.post_finetuning.antidote",
    "DefenceMixin": "holdfast.finetune.trainer",
    "SteeredModel": "holdfast.steer.model",
    "FitStage": "holdfast.steer.stage",
    "AskSteered": "holdfast.steer.stage",
    "Intervention": "holdfast.steer.intervene",
    "Edit": "holdfast.steer.intervene",
    "Cmrm": "holdfast.steer.methods.cmrm",
    "Transplant": "holdfast.steer.methods.transplant",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from holdfast.core.errors import HoldfastError as HoldfastError
    from holdfast.core.records import Item as Item
    from holdfast.core.records import Metric as Metric
    from holdfast.core.records import Rating as Rating
    from holdfast.core.records import Sample as Sample
    from holdfast.core.runs import Store as Store
    from holdfast.data.mixes import Mix as Mix
    from holdfast.data.read import Source as Source
    from holdfast.data.rows import Row as Row
    from holdfast.finetune.alignment.booster import Booster as Booster
    from holdfast.finetune.alignment.vaccine import Vaccine as Vaccine
    from holdfast.finetune.bench import bench as bench
    from holdfast.finetune.finetuning.lisa import Lisa as Lisa
    from holdfast.finetune.finetuning.safeinstruct import SafeInstruct as SafeInstruct
    from holdfast.finetune.post_finetuning.antidote import Antidote as Antidote
    from holdfast.finetune.settings import Adapter as Adapter
    from holdfast.finetune.settings import Training as Training
    from holdfast.finetune.stages import RepairStage as RepairStage
    from holdfast.finetune.stages import TrainStage as TrainStage
    from holdfast.finetune.stages import UserData as UserData
    from holdfast.finetune.trainer import DefenceMixin as DefenceMixin
    from holdfast.models.answer import Decoding as Decoding
    from holdfast.models.ask import Ask as Ask
    from holdfast.models.ask import samples_of as samples_of
    from holdfast.models.engine import Engine as Engine
    from holdfast.raters.judging import judge_run as judge_run
    from holdfast.raters.measure import rate as rate
    from holdfast.raters.rules import NotRefusedJudge as NotRefusedJudge
    from holdfast.raters.rules import RefusalJudge as RefusalJudge
    from holdfast.raters.sandbox import SandboxJudge as SandboxJudge
    from holdfast.steer.intervene import Edit as Edit
    from holdfast.steer.intervene import Intervention as Intervention
    from holdfast.steer.methods.cmrm import Cmrm as Cmrm
    from holdfast.steer.methods.transplant import Transplant as Transplant
    from holdfast.steer.model import SteeredModel as SteeredModel
    from holdfast.steer.stage import AskSteered as AskSteered
    from holdfast.steer.stage import FitStage as FitStage


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
