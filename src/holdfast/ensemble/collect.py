"""Asking members: all items, or one; what a member can do; the answers file that everything else reads.

Every answer of an endpoint is on disk as soon as it came (:mod:`holdfast.models.chat`), and a local model's answers are
a run of their own, so a killed collection that is started again asks for the rest only. An endpoint that dies is set
aside with the reason; the others finish, and the same command asks it for what is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError, HoldfastError, RequestRefused
from holdfast.core.events import Progressed, Sink, Warned, ignore
from holdfast.core.files import write_text
from holdfast.core.runs import Store
from holdfast.ensemble import answers as read
from holdfast.ensemble.members import Member, Members, Prompt
from holdfast.ensemble.table import Question as Asked
from holdfast.models.chat import Chat, Question, Reply

_ALTERNATIVES = 20  # the protocol's largest number of alternatives


@dataclass
class Given:
    """What one member said to one item.

    Attributes:
        texts: its answers; None where it refused.
        probs: probability of each option letter, when asked for and given.
        cost: dollars that the answers cost when they were asked for.
        spent: dollars of what was asked now (answers on disk cost nothing again).
        seconds: of the calls.
        tokens: input and output tokens.
        error: why there is no answer; empty when there is one.
    """

    texts: list[str | None] = field(default_factory=list)
    probs: dict[str, float] = field(default_factory=dict)
    cost: float = 0.0
    spent: float = 0.0
    seconds: float = 0.0
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    error: str = ""


class Line:
    """An open line to a member at an endpoint; threads may share it.

    Args:
        member: whom.
        prompt: how items become messages.
        cache: folder of the answers on disk; None: none.
    """

    def __init__(self, member: Member, prompt: Prompt, cache: Path | None) -> None:
        self.member, self.prompt = member, prompt
        self.chat = Chat(member.endpoint, cache)
        self.logprobs = prompt.logprobs

    def ask(self, asked: Asked) -> Given:
        """All the member's answers to an item.

        Raises:
            HoldfastError: the endpoint cannot be asked.
        """
        text = self.prompt.message(asked.prompt, asked.options)
        return self.say([{"role": "user", "content": text}], len(asked.options))

    def say(self, messages: Sequence[Mapping[str, str]], n_options: int = 0) -> Given:
        """All the member's answers to a conversation."""
        system = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
        given = Given()
        for sample in range(self.member.samples):
            reply = self._reply((*system, *messages), sample, n_options)
            given.texts.append(None if reply.finish == "refusal" else reply.text)
            given.probs = given.probs or option_probabilities(reply, n_options)
            cost = self.member.cost(reply.tokens_in, reply.tokens_out)
            given.cost += cost
            given.spent += 0.0 if reply.cached else cost
            given.seconds += reply.seconds
            given.tokens[0] += reply.tokens_in
            given.tokens[1] += reply.tokens_out
        return given

    def _reply(self, messages: tuple[Mapping[str, str], ...], sample: int, n_options: int) -> Reply:
        member = self.member
        wanted = _ALTERNATIVES if self.logprobs and n_options and sample == 0 else 0
        question = Question(
            messages, member.temperature, seed=member.seed + sample, max_tokens=member.max_tokens, run=sample + 1,
            logprobs=wanted,
        )  # fmt: skip
        try:
            return self.chat.ask(question)
        except RequestRefused:
            if not wanted:
                raise
            self.logprobs = False  # this server gives none: its answers are votes
            return self._reply(messages, sample, n_options)


def option_probabilities(reply: Reply, n_options: int) -> dict[str, float]:
    """Probabilities of the option letters from the first token that has one among its alternatives; sums to 1."""
    letters = {chr(ord("A") + k) for k in range(n_options)}
    for alternatives in reply.alternatives[:8]:
        found: dict[str, float] = {}
        for token, logprob in alternatives.items():
            letter = read.fold(token).upper()
            if letter in letters:
                found[letter] = found.get(letter, 0.0) + math.exp(logprob)
        total = sum(found.values())
        if total > 0:
            return {letter: p / total for letter, p in sorted(found.items())}
    return {}


def collect(
    members: Members, items: Sequence[Asked], out: Path, *, store: Store, cache: Path, sink: Sink = ignore
) -> dict[str, Any]:
    """Ask all members for all items, and write the answers file.

    Args:
        members: whom.
        items: ids unique.
        out: JSON Lines file, one item a row; written when all is done, what there is.
        store: where runs of local models go.
        cache: folder of the answers on disk.
        sink: where progress goes.

    Returns:
        for each member: answers, missing (with the reason), dollars, dollars spent now, seconds.

    Raises:
        DataError: an item stands there twice, or there is none.
        HoldfastError: a local model cannot be loaded.
    """
    ids = [one.item for one in items]
    if not ids or len(set(ids)) < len(ids):
        twice = next((one for one in ids if ids.count(one) > 1), None)
        raise DataError(
            f"item {twice!r} stands there twice" if ids else "no items", hint="each item has an id of its own"
        )
    tally = _Tally(len(items) * len(members.member), sink)
    given: dict[str, list[Given]] = {}
    for member in members.member:
        if member.local:  # one model in memory at a time
            given[member.name] = _local(member, members.prompt, items, store, sink)
            tally.add(len(items))
    remote = [member for member in members.member if member.url]
    with ThreadPoolExecutor(max(len(remote), 1)) as pool:
        found: dict[str, Future[list[Given]]] = {
            member.name: pool.submit(_remote, member, members.prompt, items, cache, tally) for member in remote
        }
        given |= {name: future.result() for name, future in found.items()}
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(members, items, given)))
    return {name: _summary(given[name]) for name in members.names}


class _Tally:
    """Counts finished questions of all threads."""

    def __init__(self, total: int, sink: Sink) -> None:
        import threading

        self.total, self.sink, self.done, self.lock = total, sink, 0, threading.Lock()

    def add(self, n: int = 1) -> None:
        with self.lock:
            self.done += n
            self.sink(Progressed(done=self.done, total=self.total))

    def warn(self, message: str) -> None:
        with self.lock:
            self.sink(Warned(message=message))


def _remote(member: Member, prompt: Prompt, items: Sequence[Asked], cache: Path, tally: _Tally) -> list[Given]:
    """One endpoint, several questions at a time; after a failure it is asked nothing more."""
    line = Line(member, prompt, cache)
    failed: list[str] = []

    def one(asked: Asked) -> Given:
        if failed:
            return Given(error=failed[0])
        try:
            made = line.ask(asked)
        except HoldfastError as error:
            if not failed:
                failed.append(error.message)
                tally.warn(f"{member.name} is set aside: {error.message}")
            return Given(error=error.message)
        tally.add()
        return made

    with line.chat, ThreadPoolExecutor(member.concurrency) as pool:
        return list(pool.map(one, items))


def _local(member: Member, prompt: Prompt, items: Sequence[Asked], store: Store, sink: Sink) -> list[Given]:
    from holdfast.core.records import Item
    from holdfast.models.answer import Decoding
    from holdfast.models.ask import Ask, samples_of

    asked = tuple(
        Item(one.item, prompt.message(one.prompt, one.options), system=prompt.system, group="ensemble") for one in items
    )
    request = Ask(member.local, asked, {"ensemble": Decoding(max_new_tokens=member.max_tokens)})
    samples = {sample.item.id: sample for sample in samples_of(request.make(store, sink=sink))}
    return [Given(texts=[samples[one.item].text], tokens=[0, samples[one.item].tokens]) for one in items]


def _rows(members: Members, items: Sequence[Asked], given: Mapping[str, Sequence[Given]]) -> Iterable[dict[str, Any]]:
    for place, asked in enumerate(items):
        here = {name: given[name][place] for name in members.names}
        there = {name: one for name, one in here.items() if not one.error}
        row: dict[str, Any] = {"item": asked.item, "prompt": asked.prompt}
        row |= {"gold": list(asked.gold)} if asked.gold else {}
        row |= {"subject": asked.subject} if asked.subject else {}
        row |= {"options": list(asked.options)} if asked.options else {}
        row["answers"] = {name: one.texts[0] if len(one.texts) == 1 else one.texts for name, one in there.items()}
        probs = {name: one.probs for name, one in there.items() if one.probs}
        row |= {"probs": probs} if probs else {}
        row["cost"] = {name: one.cost for name, one in there.items()}
        row["seconds"] = {name: round(one.seconds, 3) for name, one in there.items()}
        yield row


def _summary(given: Sequence[Given]) -> dict[str, Any]:
    missing = [one.error for one in given if one.error]
    return {
        "answers": len(given) - len(missing),
        "missing": len(missing),
        "reason": missing[0] if missing else "",
        "dollars": sum(one.cost for one in given),
        "dollars_now": sum(one.spent for one in given),
        "seconds": round(sum(one.seconds for one in given), 3),
        "tokens": [sum(one.tokens[side] for one in given) for side in (0, 1)],
    }


def capabilities(member: Member) -> dict[str, Any]:
    """What an endpoint can do, by asking it: answers, log-probabilities, several answers a call, seeds.

    Returns:
        ``answers``, ``logprobs``, ``several``, ``seed`` (True, False, or None when it cannot be told) and ``seconds``.

    Raises:
        ModelError: it cannot be reached, refuses the key, or does not know the model.
    """
    if member.local:
        return {"answers": True, "logprobs": False, "several": False, "seed": True, "seconds": None}
    ask = ({"role": "user", "content": "Name a colour, an animal and a number, in one line."},)
    with Chat(member.endpoint) as chat:
        plain = chat.ask(Question(ask, max_tokens=24))
        hot = [_able(chat, Question(ask, 1.0, seed=seed, max_tokens=24)) for seed in (11, 11, 12)]
        alternatives = _able(chat, Question(ask, max_tokens=1, logprobs=5))
        several = _able(chat, Question(ask, 1.0, max_tokens=8, n=2))
    texts = [one.text if one is not None else None for one in hot]
    repeats = None if None in texts else texts[0] == texts[1] and (True if texts[0] != texts[2] else None)
    return {
        "answers": bool(plain.text),
        "logprobs": alternatives is not None and bool(alternatives.alternatives),
        "several": several is not None and len(several.others) == 1,
        "seed": repeats,
        "seconds": round(plain.seconds, 3),
    }


def _able(chat: Chat, question: Question) -> Reply | None:
    try:
        return chat.ask(question)
    except RequestRefused:
        return None
