"""The benign tasks that customers fine-tune on, and how their answers are scored.

A Task is a frozen dataclass of knobs and a Judge on the ``correct`` scale: it turns the records of a
dataset into Rows, and rates answers. The table holds strings; nothing is imported until used.
"""

from __future__ import annotations

from holdfast.core.methods import Entry, Table

TASKS = Table(
    "task",
    "holdfast.tasks",
    {
        "sandbox": Entry("holdfast.finetune.tasks.sandbox:SandboxTask", "reviews of the sandbox world"),
        "sst2": Entry("holdfast.finetune.tasks.sst2:SST2", "sentiment of a sentence (SST-2)"),
        "agnews": Entry("holdfast.finetune.tasks.agnews:AGNews", "topic of a news item (AG News)"),
        "gsm8k": Entry("holdfast.finetune.tasks.gsm8k:GSM8K", "grade-school arithmetic (GSM8K)"),
        "exact": Entry("holdfast.finetune.tasks.exact:ExactMatch", "any data: the answer equals the reference"),
    },
)
