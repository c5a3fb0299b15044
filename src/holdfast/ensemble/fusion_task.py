"""A task with a known right answer for models that write: facts about slots, members that are experts on some of them.

A question names slots of different kinds; the reference states one fact for each. Every member writes all facts. It is
nearly always right about its own kinds, and often wrong elsewhere, where wrong members like to fall for the same trap.
So no member is good at all of it, and the majority is misled: whoever learns which member to believe about which kind
beats them all. Symbols only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.core.knobs import knob
from holdfast.ensemble.answers import token_f1

Candidates = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class FusionTask:
    """How items are made."""

    kinds: int = knob(8, "kinds of slots", low=2)
    slots: int = knob(3, "slots of a question", low=1)
    values: int = knob(16, "values that a slot may have", low=3)
    members: int = knob(4, "members", low=2)
    expert: float = knob(0.95, "chance that a member is right about its own kinds", low=0, high=1)
    other: float = knob(0.35, "chance that it is right about others", low=0, high=1)
    trap: float = knob(0.6, "chance that a wrong member says what other wrong ones say", low=0, high=1)

    def make(self, n: int, seed: int) -> tuple[list[str], list[Candidates], list[str]]:
        """Questions, candidates of each member (one sample), and references."""
        generator = np.random.default_rng([seed, n])
        questions: list[str] = []
        candidates: list[Candidates] = []
        references: list[str] = []
        for _ in range(n):
            kinds = np.sort(generator.choice(self.kinds, self.slots, replace=False))
            truth = generator.integers(0, self.values, self.slots)
            trap = (truth + generator.integers(1, self.values, self.slots)) % self.values
            said: dict[str, Sequence[str]] = {}
            for member in range(self.members):
                skill = np.where(kinds % self.members == member, self.expert, self.other)
                wrong = (truth + generator.integers(1, self.values, self.slots)) % self.values
                wrong = np.where(generator.random(self.slots) < self.trap, trap, wrong)
                said[f"m{member}"] = [_text(kinds, np.where(generator.random(self.slots) < skill, truth, wrong))]
            questions.append("tell " + " ".join(f"k{kind}" for kind in kinds))
            candidates.append(said)
            references.append(_text(kinds, truth))
        return questions, candidates, references


def _text(kinds: NDArray[np.integer], values: NDArray[np.integer]) -> str:
    return " ".join(f"k{kind} v{value}" for kind, value in zip(kinds, values, strict=True))


def facts(text: str) -> dict[str, str]:
    """Slot -> value of a text; the first value of a slot counts."""
    words, found = text.split(), dict[str, str]()
    for slot, value in zip(words[::2], words[1::2], strict=False):
        found.setdefault(slot, value)
    return found


def right_facts(text: str, reference: str) -> float:
    """Share of the reference's facts that a text states."""
    wanted, said = facts(reference), facts(text)
    return sum(said.get(slot) == value for slot, value in wanted.items()) / len(wanted)


def plurality(candidates: Candidates) -> str:
    """For each slot the value that most members state; ties to the member named first."""
    said = [facts(text) for texts in candidates.values() for text in texts]
    slots = list(dict.fromkeys(slot for one in said for slot in one))
    return " ".join(
        f"{slot} {Counter(one[slot] for one in said if slot in one).most_common(1)[0][0]}" for slot in slots
    )


def medoid(candidates: Candidates) -> str:
    """The candidate with the largest token F1 with the others."""
    texts = [text for given in candidates.values() for text in given]
    return max(texts, key=lambda text: sum(token_f1(text, other) for other in texts))


def rivals(candidates: Sequence[Candidates], best: str) -> dict[str, list[str]]:
    """What the fuser has to beat: the best single member (chosen in training), medoid, plurality of facts."""
    return {
        "best single": [one[best][0] for one in candidates],
        "medoid": [medoid(one) for one in candidates],
        "plurality of facts": [plurality(one) for one in candidates],
    }


def scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Per item: share of right facts, whether all are right, token F1."""
    pairs = list(zip(texts, references, strict=True))
    right = np.array([right_facts(text, reference) for text, reference in pairs])
    return {
        "facts": right,
        "exact": (right == 1).astype(np.float64),
        "token F1": np.array([token_f1(text, reference) for text, reference in pairs]),
    }
