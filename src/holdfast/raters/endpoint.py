"""An LLM behind a chat endpoint that speaks the OpenAI protocol, as a judge with a rubric.

Requests run several at a time, through :mod:`holdfast.models.chat`, which keeps each answer on disk: a killed judging
goes on where it stopped and pays nothing twice. An answer that is no label is null with the reason: never dropped,
never replaced by a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from holdfast.core.errors import RequestRefused, UsageError
from holdfast.core.keys import file_digest
from holdfast.core.knobs import knob
from holdfast.core.records import Rating, Sample, Scale
from holdfast.models.chat import Chat, Endpoint, Question, Reply, short
from holdfast.raters.rubric import Rubric, read_rubric

_OBJECT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class EndpointJudge:
    """What the model behind a chat endpoint answers to a rubric."""

    name: ClassVar[str] = "endpoint"
    version: ClassVar[int] = 1

    rubric: str = knob(doc="rubric file (TOML)")
    url: str = knob(doc="base URL of the endpoint, e.g. http://localhost:8000/v1")
    model: str = knob(doc="name of the model, as the endpoint knows it")
    key: str = knob("OPENAI_API_KEY", "environment variable that holds the API key; unset: no key is sent")
    temperature: float = knob(0.0, "of the sampling", low=0, high=2)
    seed: int = knob(0, "sent to the endpoint; many servers ignore it", low=0)
    run: int = knob(1, "number of a repeated judging: another one asks anew", low=1)
    max_tokens: int = knob(512, "longest answer; models that think aloud need more", low=1)
    structured: bool = knob(True, "ask for JSON by schema; a server that refuses is asked for plain text")
    concurrency: int = knob(4, "requests under way at once", low=1, high=256)
    per_minute: int = knob(0, "requests a minute at most; 0: no limit", low=0)
    timeout: float = knob(120.0, "seconds to wait for an answer", low=1)
    retries: int = knob(5, "times that a busy or broken server is asked again", low=0)
    cache: str = knob("runs/.answers", "folder of the answers already paid for; empty: none")

    @property
    def scale(self) -> Scale:
        """The scale of the rubric."""
        return self._rubric().scale

    def check(self, where: str) -> None:
        """The rubric and the address, without asking the endpoint.

        Raises:
            UsageError, DataError: the rubric or the address cannot be meant.
        """
        self._rubric()
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"{where}.url = {self.url!r} is no http address", hint="http://localhost:8000/v1")

    def identity(self) -> str:
        """Digest of the rubric file."""
        return file_digest(Path(self.rubric).expanduser())

    def _rubric(self) -> Rubric:
        return read_rubric(Path(self.rubric).expanduser())

    def rate(self, samples: Sequence[Sample]) -> list[Rating]:
        """One rating a sample, in order; null where the answer is no label.

        Raises:
            ModelError: the endpoint cannot be reached, refuses the key, or does not know the model.
            ResourceError: it stayed busy after all retries.
        """
        if not samples:
            return []
        asked = _Asking(self, self._rubric())
        with asked.chat, ThreadPoolExecutor(self.concurrency) as pool:
            first = asked.rate(samples[0])  # alone: what is wrong with address, key or model shows here, once
            rest = [pool.submit(asked.rate, sample) for sample in samples[1:]]
            try:
                return [first, *(future.result() for future in rest)]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class _Asking:
    """One judging under way: the client, and whether the server takes a schema."""

    def __init__(self, judge: EndpointJudge, rubric: Rubric) -> None:
        self.judge, self.rubric = judge, rubric
        self.structured = judge.structured
        endpoint = Endpoint(judge.url, judge.model, judge.key, judge.timeout, judge.retries, judge.per_minute)
        self.chat = Chat(endpoint, Path(judge.cache) if judge.cache else None)

    def rate(self, sample: Sample) -> Rating:
        reply = self._ask(self.rubric.question(sample))
        return self._rating(sample.item.id, reply.text, reply.finish)

    def _rating(self, item: str, text: str, finish: str) -> Rating:
        if finish == "refusal":
            return Rating(item, None, f"the judge refused: {short(text)}")
        says = _label_in(text)
        value = self.rubric.value_of(says if says is not None else text)
        if value is not None:
            return Rating(item, value)
        cut = "cut at the length limit: " if finish == "length" else ""
        return Rating(item, None, f"invalid answer of the judge: {cut}{short(text)}")

    def _ask(self, question: str) -> Reply:
        judge, tried = self.judge, self.structured
        system = ({"role": "system", "content": self.rubric.system},) if self.rubric.system else ()
        schema = {"name": "rating", "strict": True, "schema": self.rubric.schema()} if tried else None
        asked = Question(
            (*system, {"role": "user", "content": question}), judge.temperature, seed=judge.seed,
            max_tokens=judge.max_tokens, run=judge.run, schema=schema,
        )  # fmt: skip
        try:
            return self.chat.ask(asked)
        except RequestRefused:
            if not tried:
                raise
            self.structured = False  # some servers know no schema
            return self._ask(question)


def _label_in(text: str) -> object | None:
    """The label of the last JSON object in a text; None without one."""
    for found in reversed(_OBJECT.findall(text)):
        try:
            value = json.loads(found)
        except ValueError:
            continue
        if isinstance(value, dict) and "label" in value:
            return value["label"]  # type: ignore[no-any-return]
    return None
