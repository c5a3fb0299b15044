"""Reading outputs: flat tables, JSON Lines, run folders and rated tables become :class:`Outputs`.

    wide       item, gold, one column a model (subject, n_options as wanted)                 .csv .tsv .parquet .jsonl
    nested     {"item", "gold" or "references", "answers": {model: text, [texts] or null}}   .jsonl
               also "options", "subject", "probs" {model: {option: p}}, "scores" {model: x}, "cost" {model: dollars}
    long       item, model, answer (gold, subject, sample, cost, score)                      .csv .tsv .parquet .jsonl
    ratings    item, rater, kind, label: judges are the models, people's most common label is right
    runs       folders of 'holdfast ask': one model each, the same items, with references

Nothing is dropped in silence. A model that was not asked an item (no row, no key) is missing there; one that was asked
and whose answer cannot be read (empty, null) abstains, which is a failure.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.core.errors import DataError, UsageError, nearest
from holdfast.ensemble import answers as read
from holdfast.ensemble.answers import KINDS, Kind
from holdfast.ensemble.outputs import Outputs

if TYPE_CHECKING:
    from holdfast.core.runs import Run

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_KNOWN = {
    "item": ("item", "item_id", "id", "question_id"),
    "gold": ("gold", "reference", "references", "target"),
    "subject": ("subject", "category", "group", "task"),
    "options": ("options", "choices"),
    "n_options": ("n_options",),
    "question": ("question", "prompt"),
    "model": ("model",),
    "answer": ("answer", "prediction", "output"),
    "sample": ("sample",),
    "cost": ("cost",),
    "score": ("score",),
}
_ASIDE = ("split", "document", "system", "weight")
_SHOWN = 8
_LABELS = 60


@dataclass(frozen=True)
class Layout:
    """Which columns mean what, and how answers are read.

    Attributes:
        columns: our name -> the table's name.
        models: models to read, in this order; empty for all.
        kind: what an answer is; None to look.
        threshold: score from which a long answer counts as right.
        cost: dollars an item of models, over what the table says.
        labels: of a choice, folded; empty to look.
        unknown: right answers need not be known.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    kind: Kind | None = None
    threshold: float = 0.5
    cost: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    unknown: bool = False


@dataclass(frozen=True)
class Question:
    """One item to ask.

    Attributes:
        item: id.
        prompt: question.
        options: texts of the options, in order of their letters.
        gold: right answers, where they are known.
        subject: subject, where there is one.
    """

    item: str
    prompt: str
    options: tuple[str, ...] = ()
    gold: tuple[str, ...] = ()
    subject: str = ""


@dataclass
class Row:
    """One item as it was read."""

    item: str
    gold: tuple[str, ...] = ()
    subject: str = ""
    options: tuple[str, ...] = ()
    n_options: int = 0
    answers: dict[str, list[str | None]] = field(default_factory=dict)
    probs: dict[str, dict[str, float]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    question: str = ""


def read_rows(path: Path, layout: Layout = Layout()) -> list[Row]:
    """The items of a table as they stand there; see :func:`read_outputs`."""
    return _from_file(path, layout)


def read_outputs(paths: Sequence[Path], layout: Layout = Layout()) -> Outputs:
    """Outputs from one table, or from several run folders of one model each.

    Raises:
        DataError: a file is missing, malformed or lacks a column; an item stands there twice; models answered
            different items; there is no model, or no right answer anywhere.
        UsageError: a model or a column that is asked for is not there.
    """
    if all(path.is_dir() for path in paths):
        rows, name = _from_runs(paths), ", ".join(path.name for path in paths)
    elif len(paths) == 1:
        rows, name = _from_file(paths[0], layout), str(paths[0])
    else:
        raise UsageError("give one table, or several run folders", hint="holdfast ensemble pick answers.csv")
    return outputs_of(rows, layout, name)


def read_questions(path: Path, columns: Mapping[str, str] = MappingProxyType({})) -> list[Question]:
    """Questions to ask, from a .csv, .tsv, .jsonl or .parquet table.

    Args:
        path: the table: item, question (or prompt), and as wanted gold, subject, options (a list, or JSON of one).
        columns: our name -> the table's name.

    Raises:
        DataError: the file is missing or malformed, has no question, or an item stands there twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint=f"give a {', '.join(SUFFIXES)} file")
    records = list(_json_lines(path)) if path.suffix in (".jsonl", ".ndjson") else _polars(path).to_dicts()
    there = list(dict.fromkeys(key for record in records for key in record))
    layout = Layout(columns)
    named = {ours: _column(there, ours, layout, path) for ours in _KNOWN}
    if named["question"] is None:
        raise DataError(f"{path}: no column 'question'; columns: {_shown(there)}", hint="--columns.question COLUMN")
    made: list[Question] = []
    for place, record in enumerate(records, 1):
        prompt = record.get(str(named["question"]))
        if prompt in (None, ""):
            raise DataError(f"{path}: row {place} has no question", hint="each row needs one")
        item = str(record.get(named["item"] or "", "") or place)
        gold = _listed(record.get(named["gold"] or ""))
        options = _option_list(record.get(named["options"] or ""), path, place)
        made.append(Question(item, str(prompt), options, gold, str(record.get(named["subject"] or "") or "")))
    twice = [item for item, n in Counter(one.item for one in made).items() if n > 1]
    if twice:
        raise DataError(f"{path}: item {twice[0]!r} stands there twice", hint="each item has an id of its own")
    return made


def _option_list(value: Any, path: Path, place: int) -> tuple[str, ...]:
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{path}: row {place}: options are no JSON list", hint='["first", "second"]') from error
    if value in (None, ""):
        return ()
    if not isinstance(value, list):
        raise DataError(f"{path}: row {place}: options are no list", hint='["first", "second"]')
    return tuple(str(one) for one in value)


# --- files -------------------------------------------------------------------------------------------


def _from_file(path: Path, layout: Layout) -> list[Row]:
    if not path.is_file():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"{path}: no such file", hint=f"{nearest(path.name, there)}give a {', '.join(SUFFIXES)} file or run folders"
        )
    if path.suffix in (".jsonl", ".ndjson"):
        records = list(_json_lines(path))
        if records and "answers" in records[0]:
            return [_nested(record, path, place) for place, record in enumerate(records, 1)]
        return _flat(records, list(dict.fromkeys(key for record in records for key in record)), path, layout)
    table = _polars(path)
    return _flat(table.to_dicts(), table.columns, path, layout)


def _polars(path: Path) -> Any:
    import polars as pl

    try:
        if path.suffix in (".csv", ".tsv"):
            found = pl.read_csv(path, separator="\t" if path.suffix == ".tsv" else ",", infer_schema=False)
            twice = [name for name in found.columns if "_duplicated_" in name]
            if twice:
                name = twice[0].partition("_duplicated_")[0]
                raise DataError(f"{path}: two columns are called {name!r}", hint="each column needs a name of its own")
            return found
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: {reason}", hint=f"is it a well-formed {path.suffix} file in UTF-8?") from error
    raise DataError(f"{path}: cannot read {path.suffix or 'a file without suffix'}", hint=f"use {', '.join(SUFFIXES)}")


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8", hint="save it as UTF-8") from error
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{place}: not JSON: {error}", hint="one JSON object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{place}: not a JSON object", hint="one JSON object a line")
        yield record


def _nested(record: Mapping[str, Any], path: Path, place: int) -> Row:
    item = _first(record, "item")
    answered = record.get("answers")
    if item is None or not isinstance(answered, Mapping):
        raise DataError(
            f"{path}:{place}: needs item and answers", hint='{"item": ..., "gold": ..., "answers": {"model": "text"}}'
        )
    options = tuple(str(option) for option in _first(record, "options") or ())
    return Row(
        item=str(item),
        gold=_listed(_first(record, "gold")),
        subject=str(_first(record, "subject") or ""),
        question=str(_first(record, "question") or ""),
        options=options,
        n_options=_whole(record.get("n_options"), path, place) or len(options),
        answers={str(model): _answer_list(given) for model, given in answered.items()},
        probs={str(m): dict(p) for m, p in (record.get("probs") or {}).items() if p},
        scores={str(m): float(x) for m, x in (record.get("scores") or {}).items() if x is not None},
        cost={str(m): float(x) for m, x in (record.get("cost") or {}).items() if x is not None},
    )


def _flat(records: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path, layout: Layout) -> list[Row]:
    if not records:
        raise DataError(f"{path}: no rows", hint="one item a row: item, gold, and a column a model")
    named = {ours: _column(columns, ours, layout, path) for ours in _KNOWN}
    if named["item"] is None:
        raise DataError(
            f"{path}: no column 'item'; columns: {_shown(columns)}", hint="--columns.item COLUMN names the item's id"
        )
    if "rater" in columns and "label" in columns:
        return _rated(records, str(named["item"]), path)
    if named["model"] is not None and named["answer"] is not None:
        return _long(records, named, path)
    return _wide(records, columns, named, path, layout)


def _wide(
    records: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    named: Mapping[str, str | None],
    path: Path,
    layout: Layout,
) -> list[Row]:
    aside = {theirs for ours, theirs in named.items() if theirs and ours not in ("model", "answer", "cost", "score")}
    models = layout.models or tuple(column for column in columns if column not in aside and column not in _ASIDE)
    for model in models:
        if model not in columns:
            raise UsageError(
                f"{path}: no column {model!r} for a model", hint=nearest(model, columns).strip() or _shown(columns)
            )
    rows = []
    for place, record in enumerate(records, 1):
        row = _row(record, named, path, place)
        row.answers = {model: _answer_list(record.get(model)) for model in models}
        rows.append(row)
    return rows


def _long(records: Sequence[Mapping[str, Any]], named: Mapping[str, str | None], path: Path) -> list[Row]:
    rows: dict[str, Row] = {}
    seen: set[tuple[str, str, str]] = set()
    for place, record in enumerate(records, 1):
        fresh = _row(record, named, path, place)
        row = rows.setdefault(fresh.item, fresh)
        if row.gold != fresh.gold:
            raise DataError(
                f"{path}: item {row.item!r} has two right answers", hint="gold belongs to the item, not to the row"
            )
        model = str(record[str(named["model"])])
        sample = str(record.get(named["sample"] or "", ""))
        if (row.item, model, sample) in seen:
            raise DataError(
                f"{path}: {model!r} answers item {row.item!r} twice", hint="several answers need a column 'sample'"
            )
        seen.add((row.item, model, sample))
        row.answers.setdefault(model, []).extend(_answer_list(record.get(str(named["answer"]))))
        for ours, kept in (("cost", row.cost), ("score", row.scores)):
            value = record.get(named[ours] or "")
            if value not in (None, ""):
                kept[model] = kept.get(model, 0.0) * (ours == "cost") + _real(value, path, place)
    return list(rows.values())


def _rated(records: Sequence[Mapping[str, Any]], item: str, path: Path) -> list[Row]:
    """Judges as models, and the most common label of people as the right answer; ties leave it unknown."""
    people: dict[str, Counter[str]] = defaultdict(Counter)
    judges: dict[str, dict[str, list[str | None]]] = defaultdict(dict)
    for record in records:
        kind, name, label = str(record.get("kind") or "").lower(), str(record["rater"]), record["label"]
        where = str(record[item])
        if kind in ("human", "person", "people"):
            if label not in (None, ""):
                people[where][str(label)] += 1
        else:
            judges[where].setdefault(name, []).extend(_answer_list(label))
    if not judges or not people:
        lacking = "judge" if not judges else "person"
        raise DataError(f"{path}: no {lacking} among the raters", hint="kind is human or judge")
    rows = []
    for where, given in judges.items():
        top = people[where].most_common(2)
        clear = len(top) == 1 or (len(top) == 2 and top[0][1] > top[1][1])
        rows.append(Row(where, gold=(top[0][0],) if clear else (), answers=given))
    return rows


def _row(record: Mapping[str, Any], named: Mapping[str, str | None], path: Path, place: int) -> Row:
    def value(ours: str) -> Any:
        column = named[ours]
        return None if column is None else record.get(column)

    if value("item") in (None, ""):
        raise DataError(f"{path}: row {place} has no item", hint="each row needs the id of its item")
    options = value("options")
    listed = tuple(str(one) for one in options) if isinstance(options, (list, tuple)) else ()
    return Row(
        item=str(value("item")),
        gold=_listed(value("gold")),
        subject=str(value("subject") or ""),
        question=str(value("question") or ""),
        options=listed,
        n_options=_whole(value("n_options"), path, place) or len(listed),
    )


def _from_runs(paths: Sequence[Path]) -> list[Row]:
    from holdfast.core.runs import open_run
    from holdfast.models.ask import samples_of

    rated = _from_ratings(open_run(paths[0])) if len(paths) == 1 else None
    if rated is not None:
        return rated
    places = [path.resolve() for path in paths]
    twice = next((path for path in paths if places.count(path.resolve()) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice", hint="one run a model")
    rows: dict[str, Row] = {}
    asked = [_asked_model(path) for path in paths]
    for path, model in zip(paths, asked, strict=True):
        run = open_run(path)
        name = model if model and asked.count(model) == 1 else run.name
        for sample in samples_of(run):
            item = sample.item
            row = rows.setdefault(item.id, Row(item.id, _listed(item.reference), item.category or ""))
            if row.gold != _listed(item.reference):
                raise DataError(
                    f"{path}: item {item.id!r} has another reference than elsewhere",
                    hint="ask all models the same items",
                )
            row.answers.setdefault(name, []).append(sample.text)
    return list(rows.values())


def _asked_model(path: Path) -> str:
    """What the model of an 'ask' run was called, as its events say; empty when they do not."""
    from holdfast.core.files import read_rows

    file = path / "events.jsonl"
    events = read_rows(file) if file.is_file() else []
    labels = [
        str(row.get("label", "")) for row in events if row.get("event") == "started" and row.get("stage") == "ask"
    ]
    return next((label for label in reversed(labels) if label not in ("", "ask")), "")


def _from_ratings(run: Run) -> list[Row] | None:
    """The judges of a run that people rated as well, as models; None where they did not."""
    from holdfast.raters.judging import ratings_of
    from holdfast.raters.people import PEOPLE, who

    files = ratings_of(run)
    scales = [file.scale.name for file in files if file.judge["name"] == PEOPLE]
    if not scales:
        return None
    records = [
        {
            "item": rating.item_id,
            "rater": who(file)[0],
            "kind": who(file)[1],
            "label": "" if rating.value is None else f"{rating.value:g}",
        }
        for file in files
        if file.scale.name == scales[0]
        for rating in file.ratings
    ]
    return _rated(records, "item", run.path)


# --- from rows to arrays -----------------------------------------------------------------------------


def outputs_of(rows: Sequence[Row], layout: Layout = Layout(), name: str = "answers") -> Outputs:
    """Rows as arrays.

    Raises:
        DataError: an item twice, no model, or no right answer anywhere.
        UsageError: a model that is asked for, or that has a price, is not there.
    """
    twice = [item for item, n in Counter(row.item for row in rows).items() if n > 1]
    if twice:
        raise DataError(
            f"{name}: item {twice[0]!r} stands there {sum(row.item == twice[0] for row in rows)} times",
            hint="an item is one row; several answers of a model need a long table with 'sample'",
        )
    there = list(dict.fromkeys(model for row in rows for model in row.answers))
    for asked in (*layout.models, *layout.cost):
        if asked not in there:
            raise UsageError(
                f"{name}: no model {asked!r}; models: {_shown(there)}",
                hint=nearest(asked, there).strip() or "check the spelling",
            )
    models = layout.models or tuple(there)
    if not models:
        raise DataError(f"{name}: no model", hint="one column a model, or answers: {model: text}")
    if not layout.unknown and not any(row.gold or row.scores for row in rows):
        raise DataError(
            f"{name}: no item has a right answer",
            hint="--columns.gold COLUMN names it; without right answers nothing can be fitted",
        )
    kind = layout.kind or _kind(rows)
    made = _Coder(kind, rows, models, layout).coded()
    return _noted(made)


def _kind(rows: Sequence[Row]) -> Kind:
    """What answers look like: few labels, numbers, or texts."""
    if any(row.options or row.n_options or row.probs for row in rows):
        return "choice"
    golds = [one for row in rows for one in row.gold]
    labels = {read.fold(one) for one in golds}
    if len(labels) <= _LABELS and all(len(label) <= 12 for label in labels) and len(golds) > 2 * len(labels):
        return "choice"
    if golds and all(_is_number(one) for one in golds):
        return "number"
    words = sorted(len(one.split()) for one in golds) or [100]
    return "short" if words[len(words) // 2] <= 8 else "long"


def _is_number(text: str) -> bool:
    return read.number(text) is not None and len(text.split()) == 1


class _Coder:
    """Fills the arrays of :class:`Outputs`, item by item."""

    def __init__(self, kind: Kind, rows: Sequence[Row], models: Sequence[str], layout: Layout) -> None:
        if kind not in KINDS:
            raise UsageError(f"unknown kind {kind!r}", hint=f"--kind {' or '.join(KINDS)}")
        self.kind, self.rows, self.models, self.layout = kind, rows, tuple(models), layout
        self.labels = self._label_set() if kind == "choice" else {}
        self.unread = 0

    def _label_set(self) -> dict[str, int]:
        if self.layout.labels:
            return {label: k for k, label in enumerate(self.layout.labels)}
        most = max((max(row.n_options, len(row.options)) for row in self.rows), default=0)
        if most:
            return {chr(ord("a") + k): k for k in range(most)}
        golds = {read.fold(one) for row in self.rows for one in row.gold}
        given = Counter(read.fold(a) for row in self.rows for texts in row.answers.values() for a in texts if a)
        frequent = {label for label, n in given.items() if len(label) <= 2 and n >= max(2, len(self.rows) // 1000)}
        return {label: k for k, label in enumerate(sorted(golds | frequent))}

    def coded(self) -> Outputs:
        parts = [self._item(row) for row in self.rows]
        n_items, n_models = len(parts), len(self.models)
        widest = max((len(part[0]) for part in parts), default=1)
        belief = np.zeros((n_items, n_models, widest), dtype=np.float32)
        valid, correct = np.zeros((n_items, widest), bool), np.zeros((n_items, widest), bool)
        score = np.zeros((n_items, n_models))
        for place, (candidates, right, given, quality) in enumerate(parts):
            valid[place, : len(candidates)] = True
            correct[place, : len(right)] = right
            belief[place, :, : given.shape[1]] = given
            score[place] = quality
        names = sorted({row.subject for row in self.rows})
        return Outputs(
            items=tuple(row.item for row in self.rows),
            models=self.models,
            kind=self.kind,
            belief=belief,
            valid=valid,
            correct=correct,
            asked=np.array([[model in row.answers for model in self.models] for row in self.rows]),
            candidates=tuple(part[0] for part in parts),
            group=np.array([names.index(row.subject) for row in self.rows], dtype=np.int64),
            groups=tuple(names),
            score=score,
            cost=self._cost(),
            samples=np.array([max(len(row.answers.get(m, ())) for row in self.rows) for m in self.models]),
            probabilities=any(row.probs for row in self.rows),
            known=np.array([bool(row.gold) or bool(row.scores) for row in self.rows]),
            labels=tuple(self.labels),
            threshold=self.layout.threshold,
        )

    def _cost(self) -> Any:
        sums = {m: [row.cost[m] for row in self.rows if m in row.cost] for m in self.models}
        cost = {m: float(np.mean(values)) for m, values in sums.items() if values} | dict(self.layout.cost)
        return np.array([cost[m] for m in self.models]) if all(m in cost for m in self.models) else None

    def _item(self, row: Row) -> tuple[tuple[str, ...], list[bool], Any, list[float]]:
        if self.kind == "choice":
            return self._choice(row)
        if self.kind == "long":
            return self._long(row)
        return self._open(row)

    def _choice(self, row: Row) -> tuple[tuple[str, ...], list[bool], Any, list[float]]:
        size = row.n_options or len(self.labels)
        labels = {label: k for label, k in self.labels.items() if k < size}
        names = tuple(label.upper() if len(label) == 1 else label for label in labels)
        golds = {read.label_in(gold, labels) for gold in row.gold}
        if row.gold and None in golds:
            raise DataError(
                f"item {row.item!r}: the right answer {row.gold[0]!r} is none of its options {_shown(names)}",
                hint="check gold and n_options, or give another --kind",
            )
        given = np.zeros((len(self.models), len(labels)), dtype=np.float32)
        for place, model in enumerate(self.models):
            if model in row.probs:
                given[place] = self._shares(row.probs[model], labels, row.item, model)
                continue
            codes = [read.label_in(text, labels) for text in row.answers.get(model, []) if text]
            for code in codes:
                if code is not None:
                    given[place, code] += 1
        given /= np.maximum(given.sum(axis=1, keepdims=True), 1e-12)
        right = [k in golds for k in range(len(labels))]
        return names, right, given, list(self._quality(row, given, right))

    def _shares(self, probs: Mapping[str, float], labels: Mapping[str, int], item: str, model: str) -> Any:
        shares = np.zeros(len(labels), dtype=np.float32)
        for name, p in probs.items():
            code = labels.get(read.fold(name))
            if code is None or not 0 <= float(p) <= 1:
                raise DataError(
                    f"item {item!r}, {model!r}: no probability of an option: {name!r} = {p}",
                    hint="probs: {option: p}, p in [0, 1]",
                )
            shares[code] += float(p)
        return shares

    def _open(self, row: Row) -> tuple[tuple[str, ...], list[bool], Any, list[float]]:
        """Numbers and short texts: the distinct answers are the candidates, in order of appearance."""
        names: list[str] = []
        keys: list[Any] = []
        given: list[dict[int, float]] = []
        for model in self.models:
            counts: dict[int, float] = defaultdict(float)
            for text in row.answers.get(model, []):
                key = self._key(text)
                if key is None or text is None:
                    continue
                place = next((k for k, other in enumerate(keys) if self._same(key, other)), len(keys))
                if place == len(keys):
                    keys.append(key)
                    names.append(text.strip() if self.kind == "short" else f"{key.normalize():f}")
                counts[place] += 1
            given.append(counts)
        golds = [key for key in map(self._key, row.gold) if key is not None]
        right = [any(self._same(key, gold) for gold in golds) for key in keys]
        shares = np.zeros((len(self.models), max(len(keys), 1)), dtype=np.float32)
        for model_place, counts in enumerate(given):
            for place, n in counts.items():
                shares[model_place, place] = n / sum(counts.values())
        return tuple(names), right, shares, list(self._quality(row, shares, right, names))

    def _long(self, row: Row) -> tuple[tuple[str, ...], list[bool], Any, list[float]]:
        """Each model's (first) text is a candidate of its own; right is what scores enough."""
        texts = [next((t for t in row.answers.get(m, []) if t), "") or "" for m in self.models]
        quality = [row.scores.get(m, read.best_f1(t, row.gold)) for m, t in zip(self.models, texts, strict=True)]
        shares = np.diag(np.array([bool(t) for t in texts], dtype=np.float32))
        return tuple(texts), [q >= self.layout.threshold for q in quality], shares, quality

    def _quality(self, row: Row, given: Any, right: Sequence[bool], names: Sequence[str] = ()) -> Iterable[float]:
        for place, model in enumerate(self.models):
            if model in row.scores:
                yield row.scores[model]
            elif not given[place].any():
                yield 0.0
            else:
                best = int(given[place].argmax())
                yield read.best_f1(names[best], row.gold) if self.kind == "short" else float(right[best])

    def _key(self, text: str | None) -> Any:
        if text is None:
            return None
        return read.number(text) if self.kind == "number" else (read.normal(text) or None)

    def _same(self, left: Any, right: Any) -> bool:
        return read.same_number(left, right) if isinstance(left, Decimal) else bool(left == right)


def _noted(made: Outputs) -> Outputs:
    notes = []
    missing = (~made.asked).sum(axis=0)
    for model, n in zip(made.models, missing.tolist(), strict=True):
        if n:
            notes.append(f"{model} was not asked {n:,} of {made.n_items:,} items")
    silent = (made.asked & (made.codes < 0)).sum(axis=0)
    often = [
        f"{m} {n / made.n_items:.0%}"
        for m, n in zip(made.models, silent.tolist(), strict=True)
        if n > 0.02 * made.n_items
    ]
    if often:
        notes.append(f"answers that cannot be read count as failures: {', '.join(often)}")
    unknown = int((~made.known).sum())
    if unknown:
        notes.append(f"{unknown:,} items have no right answer and are not used")
    return replace(made, notes=tuple(notes))


def _column(columns: Sequence[str], ours: str, layout: Layout, path: Path) -> str | None:
    if ours in layout.columns:
        theirs = layout.columns[ours]
        if theirs not in columns:
            raise UsageError(
                f"{path}: no column {theirs!r} (--columns.{ours} {theirs}); columns: {_shown(columns)}",
                hint=nearest(theirs, columns).strip() or "check the spelling",
            )
        return theirs
    unknown = [name for name in layout.columns if name not in _KNOWN]
    if unknown:
        raise UsageError(
            f"--columns.{unknown[0]}: no such part of an answer",
            hint=f"{nearest(unknown[0], _KNOWN)}parts: {', '.join(_KNOWN)}",
        )
    return next((name for name in _KNOWN[ours] if name in columns and name not in layout.models), None)


def _first(record: Mapping[str, Any], ours: str) -> Any:
    return next((record[name] for name in _KNOWN[ours] if record.get(name) is not None), None)


def _listed(value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return tuple(str(one) for one in value) if isinstance(value, (list, tuple)) else (str(value),)


def _answer_list(value: Any) -> list[str | None]:
    if isinstance(value, (list, tuple)):
        return [None if one is None else str(one) for one in value]
    return [None] if value is None or value == "" else [str(value)]


def _whole(value: Any, path: Path, place: int) -> int:
    if value in (None, ""):
        return 0
    try:
        return int(value)
    except ValueError as error:
        raise DataError(
            f"{path}: row {place}: n_options = {value!r} is no number", hint="how many options the item has"
        ) from error


def _real(value: Any, path: Path, place: int) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise DataError(
            f"{path}: row {place}: {value!r} is no number", hint="cost is dollars, score is in [0, 1]"
        ) from error


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
