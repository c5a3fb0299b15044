"""The members file: whom an ensemble asks, and how. One TOML file.

[prompt]
system = "Answer with one letter."
template = '''{prompt}
{options}
Answer:'''                        # {options} become lines "A. ..."
logprobs = false                  # true: first-token log-probabilities of the option letters become probabilities

[[member]]
name = "small"                    # names its answers
url = "http://localhost:8000/v1"  # an endpoint that speaks the OpenAI protocol (vLLM, llama.cpp, Ollama, hosted)
model = "qwen"
price_in = 0.15                   # dollars for a million tokens
price_out = 0.60

[[member]]
name = "local"
local = "sandbox/micro-0"         # or a model in this process: a folder, a hub id, a run folder
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError, UsageError
from holdfast.core.keys import key_of
from holdfast.core.knobs import build, knob, resolved
from holdfast.models.chat import Endpoint

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Prompt:
    """How an item becomes a message."""

    system: str = knob("", "system message; empty: none")
    template: str = knob("{prompt}\n{options}", "message with {prompt} and {options}")
    logprobs: bool = knob(False, "first-token log-probabilities of option letters as probabilities")

    def check(self, where: str) -> None:
        """The template has a place for the prompt.

        Raises:
            UsageError: it has not.
        """
        if "{prompt}" not in self.template:
            raise UsageError(f"{where}.template has no {{prompt}}", hint="template = '{prompt}\\n{options}'")

    def message(self, prompt: str, options: tuple[str, ...] = ()) -> str:
        """The message for one item. Foreign text is filled in once, as it is."""
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, options, strict=False))
        before, _, after = self.template.partition("{prompt}")
        first, second = (part.replace("{options}", listed) for part in (before, after))
        return f"{first}{prompt}{second}".strip()


@dataclass(frozen=True)
class Member:
    """One model of an ensemble."""

    name: str = knob(doc="names its answers")
    url: str = knob("", "base URL of an endpoint that speaks the OpenAI protocol, up to /v1")
    model: str = knob("", "the model's name at the endpoint")
    local: str = knob("", "a model in this process: a folder, sandbox/..., a hub id, a run folder")
    key: str = knob("OPENAI_API_KEY", "environment variable that holds the API key")
    price_in: float = knob(0.0, "dollars for a million input tokens", low=0)
    price_out: float = knob(0.0, "dollars for a million output tokens", low=0)
    samples: int = knob(1, "answers an item", low=1)
    temperature: float = knob(0.0, "of the sampling", low=0, high=2)
    max_tokens: int = knob(512, "longest answer in tokens", low=1)
    seed: int = knob(0, "sent to the endpoint; many servers ignore it", low=0)
    timeout: float = knob(120.0, "seconds to wait for an answer", low=0.1)
    retries: int = knob(5, "times that a busy or broken endpoint is asked again", low=0)
    per_minute: int = knob(0, "requests a minute at most; 0: no limit", low=0)
    concurrency: int = knob(4, "requests under way at once", low=1, high=256)

    def check(self, where: str) -> None:
        """One place to ask.

        Raises:
            UsageError: both or neither of url and local, no model at a url, several samples of a local model.
        """
        if bool(self.url) == bool(self.local):
            raise UsageError(
                f"{where}: {self.name!r} needs either url or local", hint='url = "http://localhost:8000/v1"'
            )
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UsageError(f"{where}: url = {self.url!r} is no http address", hint='url = "http://localhost:8000/v1"')
        if self.url and not self.model:
            raise UsageError(f"{where}: {self.name!r} names no model", hint='model = "NAME", as the endpoint knows it')
        if self.local and self.samples > 1:
            raise UsageError(f"{where}: {self.name!r} answers greedily: one sample", hint="samples = 1, or an endpoint")

    @property
    def endpoint(self) -> Endpoint:
        """Where it is asked."""
        return Endpoint(self.url, self.model, self.key, self.timeout, self.retries, self.per_minute, flag="")

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Dollars of a call."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


@dataclass(frozen=True)
class Members:
    """Whom an ensemble asks, and how."""

    member: tuple[Member, ...] = knob(doc="the members")
    prompt: Prompt = knob(Prompt(), "how an item becomes a message")

    def check(self, where: str) -> None:
        """Names differ.

        Raises:
            UsageError: no member, or two of one name.
        """
        names = [one.name for one in self.member]
        twice = next((name for name in names if names.count(name) > 1), None)
        if not names or twice is not None:
            raise UsageError(
                f"{where}: two members are called {twice!r}" if names else f"{where}: no member",
                hint="[[member]] with a name of its own",
            )
        for place, one in enumerate(self.member, 1):
            one.check(f"{where}, member {place}")

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names."""
        return tuple(one.name for one in self.member)

    def of(self, names: tuple[str, ...]) -> Members:
        """The members of these names, in this order.

        Raises:
            UsageError: one is not there.
        """
        known = {one.name: one for one in self.member}
        missing = [name for name in names if name not in known]
        if missing:
            raise UsageError(f"the members file has no {missing[0]!r}", hint=f"it has: {', '.join(known)}")
        return Members(tuple(known[name] for name in names), self.prompt)

    def identity(self) -> str:
        """Digest of everything that answers depend on; prices and patience are not among it."""
        aside = ("price_in", "price_out", "timeout", "retries", "per_minute", "concurrency", "key")
        members = [{k: v for k, v in resolved(one).items() if k not in aside} for one in self.member]
        return key_of({"members": members, "prompt": resolved(self.prompt)})


def read_members(path: Path) -> Members:
    """The members of a file.

    Raises:
        DataError: the file is missing or no TOML.
        UsageError: an unknown key, a wrong value, no member, or two of one name.
    """
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file", hint="a TOML file with [[member]] tables: docs/how-to/ensembles.md"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no TOML: {error}", hint="docs/how-to/ensembles.md shows one") from error
    return build(Members, found, str(path))
