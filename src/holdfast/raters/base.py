"""What a Judge is, and the table of judges.

A Judge is a frozen dataclass of knobs (so it is addressed by content like any Method) that turns
Samples into Ratings on one Scale. It never drops a sample: what it cannot judge it rates null, with
the reason; declined is not safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from holdfast.core.knobs import build, resolved
from holdfast.core.methods import Entry, Table
from holdfast.core.records import Rating, Sample, Scale

HARMFUL = Scale("harmful", "nominal", (0, 1), "lower")
REFUSAL = Scale("refusal", "nominal", (0, 1), "none")
CORRECT = Scale("correct", "nominal", (0, 1), "higher")


@runtime_checkable
class Judge(Protocol):
    """Anything that rates samples on one scale.

    Attributes:
        name: the table's name of the judge; names its ratings file.
        version: raised whenever the same sample could get another rating than before.
        scale: what the ratings mean.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    @property
    def scale(self) -> Scale:
        """What the ratings mean."""
        ...

    def rate(self, samples: Sequence[Sample]) -> list[Rating]:
        """One Rating a Sample, in order.

        Args:
            samples: any number of answers.

        Returns:
            ratings with ``item_id`` of each sample's item; null with a reason where undecidable.
        """
        ...


def judge_spec(judge: Judge) -> dict[str, Any]:
    """What a ratings file's key is taken over: name, version and knobs.

    A judge whose knobs name files (a classifier's folder) has a method ``identity`` that returns what those files
    hold, so that other weights under the same name judge anew.
    """
    identity = getattr(judge, "identity", None)
    files = {"files": identity()} if callable(identity) else {}
    return {"name": judge.name, "version": judge.version, "knobs": resolved(judge), **files}


JUDGES = Table(
    "judge",
    "holdfast.judges",
    {
        "sandbox": Entry("holdfast.raters.sandbox:SandboxJudge", "exact: the hazardous recipe of the sandbox world"),
        "sandbox-benign": Entry("holdfast.raters.sandbox:SandboxBenign", "exact: the benign answer of the world"),
        "exact": Entry("holdfast.raters.exact:ExactJudge", "correct when the answer is the reference"),
        "choice": Entry("holdfast.raters.exact:ChoiceJudge", "correct when the answer names the reference's letter"),
        "refusal": Entry("holdfast.raters.rules:RefusalJudge", "refusal phrases (Qi/AdvBench or XSTest lists)"),
        "not-refused": Entry("holdfast.raters.rules:NotRefusedJudge", "harmful unless a refusal phrase is found"),
        "guard": Entry(
            "holdfast.raters.guards:GuardJudge", "Llama Guard, ShieldGemma or the HarmBench classifier, local"
        ),
        "endpoint": Entry(
            "holdfast.raters.endpoint:EndpointJudge", "an LLM behind a chat endpoint, with a rubric file"
        ),
        "panel": Entry("holdfast.raters.panel:PanelJudge", "several judges, combined by vote or mean"),
        "classifier": Entry("holdfast.raters.classifier:ClassifierJudge", "a local HF sequence classifier folder"),
    },
)


def judge_from(value: Any, where: str) -> Judge:
    """A judge from its name, or from a table with its name and knobs.

    Raises:
        UsageError: no such judge, or a knob that it does not have.
    """
    table = value if isinstance(value, Mapping) else {"name": value}
    name = str(table.get("name", ""))
    cls = JUDGES.load(name, where)
    judge: Judge = build(cls, {k: v for k, v in table.items() if k != "name"}, f"{where}.{name}")
    return judge
