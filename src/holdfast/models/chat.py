"""The one client for chat endpoints that speak the OpenAI protocol: judges and ensembles ask through it.

Hosted models, vLLM, llama.cpp, Ollama and others speak it. Requests keep to a rate limit; what is busy or broken for a
moment is asked again (the client waits as long as the server's Retry-After says); each answer is kept in one SQLite
file, so that a killed run goes on where it stopped and pays nothing twice. The API key comes from an environment
variable and goes into no file and no message.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from holdfast.core.errors import HoldfastError, MissingExtra, ModelError, RequestRefused, ResourceError, RunError
from holdfast.core.keys import key_of

_SHOWN = 80
_FILE, _LOCK = "answers.sqlite", "answers.lock"
_WAIT = 60.0  # seconds for another process's write


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked.

    Attributes:
        url: base address, up to /v1.
        model: name of the model, as the endpoint knows it.
        key: environment variable that holds the API key; unset: no key is sent.
        timeout: seconds to wait for an answer.
        retries: times that a busy or broken server is asked again.
        per_minute: requests a minute at most; 0: no limit.
        flag: what stands before a setting's name where a user types it, for hints.
    """

    url: str
    model: str
    key: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 5
    per_minute: int = 0
    flag: str = "--knob."

    def how(self, name: str, value: object) -> str:
        """What a user types to change a setting."""
        return f"{self.flag}{name} {value}" if self.flag else f"{name} = {value} in the members file"


@dataclass(frozen=True)
class Question:
    """What is asked; equal questions to one model have one answer in the cache.

    Attributes:
        messages: chat messages, role and content.
        temperature, top_p, seed, max_tokens: as the protocol defines them.
        run: number of a repeated asking: another one asks anew.
        logprobs: alternatives wanted for each token; 0: no log-probabilities.
        schema: JSON schema of the answer, with its name.
        n: answers wanted in one call.
    """

    messages: tuple[Mapping[str, str], ...]
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = 0
    max_tokens: int = 512
    run: int = 1
    logprobs: int = 0
    schema: Mapping[str, Any] | None = None
    n: int = 1


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: what was said; the refusal, when ``finish`` is ``refusal``.
        finish: ``stop``, ``length``, ``refusal`` or what else the server says.
        tokens_in, tokens_out: as the server counts them; 0 when it does not say.
        seconds: that the answer took when it was asked for.
        alternatives: for each token, its alternatives with their log-probabilities; empty when not given.
        others: further answers to the same call.
        cached: whether it came from the cache, and cost nothing now.
    """

    text: str
    finish: str
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    alternatives: tuple[Mapping[str, float], ...] = ()
    others: tuple[str, ...] = ()
    cached: bool = False


class Chat:
    """A client for one endpoint; threads may share it.

    Args:
        endpoint: where.
        cache: folder of the answers already paid for; None: none.

    Raises:
        MissingExtra: the client library is not installed.
    """

    def __init__(self, endpoint: Endpoint, cache: Path | None = None) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise MissingExtra("llm", "openai") from error
        self.openai: Any = openai
        self.endpoint = endpoint
        self.client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=os.environ.get(endpoint.key) or "none",
            timeout=endpoint.timeout,
            max_retries=endpoint.retries,
        )
        self.pace = Pace(endpoint.per_minute)
        self.cache = None if cache is None else Answers(cache)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        if self.cache is not None:
            self.cache.close()

    def ask(self, question: Question) -> Reply:
        """The answer, from the cache where it is there.

        Raises:
            RequestRefused: the server does not take a request of this form.
            ModelError: it cannot be reached, refuses the key, or does not know the model.
            ResourceError: it stayed busy after all retries.
        """
        if self.cache is None:
            return self._asked(question)
        key = key_of({"url": self.endpoint.url, "model": self.endpoint.model, **asdict(question)})
        known = self.cache.get(key)
        if known is not None:
            return known
        reply = self._asked(question)
        self.cache.put(key, reply)
        return reply

    def _asked(self, question: Question) -> Reply:
        more: dict[str, Any] = {}
        if question.schema is not None:
            more["response_format"] = {"type": "json_schema", "json_schema": dict(question.schema)}
        if question.logprobs:
            more |= {"logprobs": True, "top_logprobs": question.logprobs}
        if question.n > 1:
            more["n"] = question.n
        optional = {"seed": question.seed, "top_p": question.top_p}
        more |= {name: value for name, value in optional.items() if value is not None}
        self.pace.wait()
        began = time.monotonic()
        try:
            made = self.client.chat.completions.create(
                model=self.endpoint.model, messages=[dict(one) for one in question.messages],  # type: ignore[misc]
                temperature=question.temperature, max_tokens=question.max_tokens, **more,
            )  # fmt: skip
        except self.openai.OpenAIError as error:
            raise self._said(error) from None
        return _reply(made, time.monotonic() - began)

    def _said(self, error: Exception) -> HoldfastError:
        """An error of ours for one of the client's; it never holds the key."""
        at, module = self.endpoint, self.openai
        if isinstance(error, module.BadRequestError | module.UnprocessableEntityError):
            return RequestRefused(
                f"{at.url} refused the request: {short(str(error))}", hint=f"check {at.how('model', 'NAME')}"
            )
        if isinstance(error, module.AuthenticationError | module.PermissionDeniedError):
            hint = f"put the key into the environment variable {at.key}, or name another: {at.how('key', 'VARIABLE')}"
            return ModelError(f"{at.url} does not accept the API key", hint=hint)
        if isinstance(error, module.NotFoundError):
            hint = "is the address right up to /v1, and the model loaded?"
            return ModelError(f"{at.url} does not know the model {at.model!r}", hint=hint)
        if isinstance(error, module.APITimeoutError):
            return ModelError(f"{at.url} gave no answer in {at.timeout:g} s", hint=at.how("timeout", 600))
        if isinstance(error, module.APIConnectionError):
            return ModelError(f"{at.url} cannot be reached", hint="is the server running, and the address right?")
        if isinstance(error, module.RateLimitError):
            hint = f"the same command goes on; {at.how('per_minute', 20)} asks more slowly"
            return ResourceError(f"{at.url} stayed busy after {at.retries} retries", hint=hint)
        return ModelError(f"{at.url}: {short(str(error))}", hint="the same command goes on where it stopped")


class Answers:
    """Answers already paid for, in one SQLite file that threads and processes share.

    Args:
        folder: where the file is.

    Raises:
        RunError: the file is damaged, or is something else.
    """

    def __init__(self, folder: Path) -> None:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / _FILE
        self._lock = threading.Lock()
        try:
            self._base = sqlite3.connect(self.path, timeout=_WAIT, check_same_thread=False, isolation_level=None)
            # Two that open a new file at once would meet at the change of its mode, where SQLite does not wait.
            with FileLock(folder / _LOCK):
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise RunError(f"{self.path}: {error}", hint="move it away: answers are then asked for anew") from error

    def get(self, key: str) -> Reply | None:
        """The answer under a key; None without one, or where it is damaged."""
        with self._lock:
            row = self._base.execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            value = json.loads(row[0])
            parts = {**value, "alternatives": tuple(value["alternatives"]), "others": tuple(value["others"])}
            return replace(Reply(**parts), cached=True)
        except (ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer; it is on disk when this returns."""
        with self._lock:
            text = json.dumps(asdict(reply), ensure_ascii=False)
            self._base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()


class Pace:
    """At most so many starts a minute, evenly spread."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.gap = 60 / per_minute if per_minute else 0.0
        self.clock, self.next, self.lock = clock, 0.0, threading.Lock()

    def wait(self) -> None:
        """Sleep until the next start is due."""
        if not self.gap:
            return
        with self.lock:
            now = self.clock()
            start = max(now, self.next)
            self.next = start + self.gap
        time.sleep(max(0.0, start - now))


def short(text: str) -> str:
    """A foreign text as part of a message."""
    line = " ".join(text.split())
    return repr(line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…")


def _reply(made: Any, seconds: float) -> Reply:
    usage = getattr(made, "usage", None)
    counted = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
    if not made.choices:
        return Reply("", "stop", *counted, seconds)
    choice = made.choices[0]
    if choice.message.refusal or choice.finish_reason == "content_filter":
        return Reply(choice.message.refusal or "content filter", "refusal", *counted, seconds)
    content = getattr(choice.logprobs, "content", None) or ()
    alternatives = tuple(
        {one.token: float(one.logprob) for one in (token.top_logprobs or [token])} for token in content
    )
    others = tuple(one.message.content or "" for one in made.choices[1:])
    return Reply(choice.message.content or "", str(choice.finish_reason), *counted, seconds, alternatives, others)
