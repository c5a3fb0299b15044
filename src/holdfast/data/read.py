"""Reading datasets: files, sandbox sets and hub datasets become Rows to train on or Items to ask.

A :class:`Source` says where the data is and which part of it is meant. Reading goes through three steps,
each usable alone: :func:`read_records` (raw records, renamed and filtered), a converter (the default one
recognises the field's usual shapes by their columns; a Task brings its own), and the checks that every row
has a request and an answer. Nothing is guessed from values: what the columns do not say is an error that
names the columns found and what to type.

    shape            columns                                  where it is usual
    alpaca           instruction, output [, input]            Alpaca, Safety-Tuned LLaMAs
    prompt/response  prompt, response [, is_safe, category]   BeaverTails
    prompt/refusal   prompt, refusal                          BeaverTails with refusals
    question/answer  question, answer                         GSM8K
    conversation     messages (role, content)                 chat sets
                     conversations (from, value)              ShareGPT
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from holdfast.core.errors import DataError, MissingExtra, UsageError, nearest
from holdfast.core.keys import digest as json_digest
from holdfast.core.keys import file_digest
from holdfast.core.knobs import build, check, knob, resolved
from holdfast.core.records import Item
from holdfast.data.rows import Row

T = TypeVar("T")
Only = Literal["all", "safe", "unsafe"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SANDBOX = "sandbox/"
HUB = "hub:"

# (request, answer) columns in the order in which they are looked for.
PAIRS = (("instruction", "output"), ("prompt", "response"), ("prompt", "refusal"), ("question", "answer"))
CONVERSATIONS = ("messages", "conversations")
SHAPES = (
    "instruction/output (input), prompt/response (is_safe, category), prompt/refusal, question/answer, "
    "messages, conversations"
)
_ALIASES = {
    "prompt": ("prompt", "instruction", "question", "query", "request", "goal", "behavior", "input", "text"),
    "response": ("response", "output", "answer", "completion", "reply", "target", "chosen", "refusal"),
}
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """Where data is and which part of it is meant. Filters come before ``start`` and ``limit``."""

    path: str = knob(doc="a .jsonl, .json, .csv, .tsv or .parquet file; sandbox/NAME-SEED; hub:org/name[/config]")
    split: str = knob("train", "split of a hub dataset")
    columns: dict[str, str] = knob({}, "renames: our name = 'their column'")
    where: dict[str, Any] = knob({}, "keep records whose column (as the file names it) equals the value")
    names: tuple[str, ...] = knob((), "column names of a .csv or .tsv file that has no header line")
    task: str = knob("", "task that turns the records into rows: sst2, agnews, gsm8k, ...")
    start: int = knob(0, "rows to leave out at the beginning", low=0)
    limit: int | None = knob(None, "rows to keep at most", low=1)
    only: Only = knob("all", "all rows, or those whose is_safe says so")
    response: str = knob("", "one answer for every row (a refusal, for a set of prompts)")
    seed: int = knob(0, "seed of the draw from a sandbox set, and of pairing prompts with pictures", low=0)
    images: str = knob(
        "",
        "pictures of the items: the folder that an image column is relative to and that items without one draw "
        "from, 'scenes' for generated ones, or one picture for all such as plain:white",
    )

    def check(self, where: str) -> None:
        """Cross-field rules, none of which opens a file.

        Raises:
            UsageError: a path, rename or condition that cannot be meant.
        """
        if not self.path.strip():
            raise UsageError(f"{where}.path is empty", hint="give a file, sandbox/NAME-SEED or hub:org/name")
        # Tables come from TOML unchecked. A condition may be written with true or 3, a column name may not.
        tables: tuple[tuple[str, dict[str, Any], tuple[type, ...]], ...] = (
            ("columns", dict(self.columns), (str,)),
            ("where", self.where, (str, bool, int)),
        )
        for name, table, types in tables:
            for key, value in table.items():
                if not isinstance(value, types):
                    raise UsageError(f"{where}.{name}.{key} = {value!r} is not text", hint=f'write {key} = "..."')
        if self.response and not self.response.strip():
            raise UsageError(f"{where}.response is blank", hint="give the sentence that every row is to have as answer")
        if self.names and Path(self.path).suffix.lower() not in (".csv", ".tsv"):
            raise UsageError(
                f"{where}.names is for .csv and .tsv files", hint='rename with columns = { prompt = "..." }'
            )


class Record(dict[str, Any]):
    """One record as read, and where it stands: errors name ``FILE, line 12``.

    Args:
        values: column -> value.
        where: file or set.
        number: position there, from 1.
        unit: ``line`` or ``row``.
    """

    __slots__ = ("number", "unit", "where")

    def __init__(self, values: Mapping[str, Any], where: str = "", number: int = 0, unit: str = "row") -> None:
        super().__init__(values)
        self.where = where
        self.number = number
        self.unit = unit

    @property
    def place(self) -> str:
        """``FILE, line 12``."""
        return f"{self.where}, {self.unit} {self.number}"


Convert = Callable[[Sequence[Mapping[str, Any]]], list[Row]]


def source(value: str | Mapping[str, Any] | Source, where: str) -> Source:
    """A Source from what a recipe or a flag gives: a path, or a table of knobs.

    Raises:
        UsageError: it is neither, or a knob does not fit.
    """
    if isinstance(value, Source):
        made = value
    elif isinstance(value, str):
        made = Source(path=value)
    elif isinstance(value, Mapping):
        return build(Source, value, where)
    else:
        raise UsageError(f"{where} = {value!r} is not a data source", hint=f'write {where} = "FILE.jsonl"')
    check(made, where)
    return made


# -- the three public readings ------------------------------------------------------------------------


def read(source: Source, convert: Convert | None = None) -> list[Row]:
    """Rows of a source, each with a request and an answer.

    Args:
        source: what to read.
        convert: turns records into rows (a task's ``rows``); None recognises the shapes listed above.

    Raises:
        DataError: the source is missing, malformed, empty, or its columns or values are not what they must be.
        MissingExtra: a hub dataset without the ``datasets`` package.
    """
    records, rows = _selected(source, read_records(source), convert, answers=True)
    if source.response:
        # What is_safe said was said of the answer that is now replaced.
        rows = [replace(row, response=source.response, is_safe=None) for row in rows]
    _check_rows(source, records, rows, ("prompt", "response"))
    return rows


def items(source: Source, *, group: str = "", convert: Convert | None = None) -> list[Item]:
    """Items of a source: requests to ask, with a reference where the source has answers.

    Ids are the ``id`` column where it is there and tells all records apart, else positions in the source.

    Args:
        source: what to read; an answer column is not needed.
        group: question set that the items belong to; empty keeps what the source says.
        convert: as in :func:`read`.

    Raises:
        DataError, MissingExtra: as in :func:`read`; also a conversation of several turns, which an Item cannot hold.
    """
    if source.path.startswith(SANDBOX):
        if source.only != "all":
            raise DataError(
                f"{source.path}: sandbox items do not say is_safe, which only = {source.only!r} goes by",
                hint="leave 'only' out",
            )
        chosen = _sliced(source, read_records(source, questions=True))
        return _pictured(source, [_grouped(Item.from_json(record), group) for record in chosen])
    records, rows = _selected(source, read_records(source), convert, answers=False)
    _check_rows(source, records, rows, ("prompt",))
    aligned = len(records) == len(rows)
    names = _ids(records) if aligned else [str(number) for number in range(1, len(rows) + 1)]
    made: list[Item] = []
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        if row.history:
            raise DataError(
                f"{source.path}: item {name} is a conversation of several turns; an item asks once",
                hint="keep the single-turn records in a file of their own",
            )
        given = records[index].get("reference") if aligned else None
        reference = given if isinstance(given, str) else row.response or None
        image = str(records[index].get("image") or "") if aligned else ""
        made.append(_grouped(replace(row.as_item(name), reference=reference, image=image), group))
    return _pictured(source, made)


def _pictured(source: Source, found: list[Item]) -> list[Item]:
    """Items with names of pictures that open from here, and a picture for each where a folder of them is given.

    Raises:
        DataError: a named picture is not there, or the folder has none.
    """
    from holdfast.data import images

    own = Path(source.path).expanduser().parent
    given = Path(source.images).expanduser()
    folders = [given, own] if source.images and given.is_dir() else [own]
    made = []
    for item in found:
        if not item.image or images.is_generated(item.image):
            made.append(item)
            continue
        path = next((folder / item.image for folder in folders if (folder / item.image).is_file()), None)
        if path is None:
            raise DataError(
                f"{source.path}: item {item.id!r} names the picture {item.image}, which is not in {folders[0]}",
                hint="give the folder that the pictures are in: images = 'FOLDER' (--images FOLDER)",
            )
        # LLaVA's sets write the placeholder into the prompt; where it goes is the template's business.
        made.append(replace(item, image=str(path), prompt=item.prompt.replace("<image>", "").strip()))
    return images.paired(made, source.images, source.seed) if source.images else made


def read_records(source: Source, *, questions: bool = False) -> list[Record]:
    """Records of a source, ``where`` and ``columns`` applied, ``start`` and ``limit`` not yet.

    Args:
        source: what to read.
        questions: of the sandbox: read a set of items instead of a set of rows.

    Raises:
        DataError, MissingExtra: as in :func:`read`.
    """
    check(source, source.path)
    if source.path.startswith(SANDBOX):
        records = _sandbox_records(source, questions)
    elif source.path.startswith(HUB):
        records = _hub_records(source.path.removeprefix(HUB), source.split)
    else:
        records = _file_records(source)
    if not records:
        raise DataError(f"{source.path} has no records", hint="give a file or set with at least one")
    return _renamed(source, _matching(source, records))


def digest(source: Source) -> str:
    """SHA-256 (hex) of the source's content and knobs; the name and folder of a file do not count.

    Files are hashed by their bytes; sandbox sets and hub datasets by their records, so another revision of a
    dataset or another version of the sandbox gives another digest, and a cache in another place does not.

    Raises:
        DataError, MissingExtra: as in :func:`read`.
    """
    check(source, source.path)
    knobs = {name: value for name, value in resolved(source).items() if name not in ("path", "images")}
    if source.path.startswith(SANDBOX):
        from holdfast.data import sandbox

        name = source.path.removeprefix(SANDBOX).rpartition("-")[0]
        content = _records_digest(_sandbox_records(source, name in sandbox.ITEM_SETS))
    elif source.path.startswith(HUB):
        content = _records_digest(_hub_records(source.path.removeprefix(HUB), source.split))
    else:
        path = _existing(source.path)
        knobs["format"] = path.suffix.lower()
        with _reading(path):
            state = path.stat()
            content = _file_digest(path, state.st_size, state.st_mtime_ns)
    return json_digest({"content": content, "knobs": knobs})


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, modified: int) -> str:  # noqa: ARG001  (what the cache tells files by)
    """A file's digest; size and time of change tell a cached answer from one that is out of date."""
    return file_digest(path)


def _records_digest(records: Iterable[Record]) -> str:
    total = hashlib.sha256()
    for record in records:
        total.update(json.dumps(record, sort_keys=True, default=repr).encode("utf-8"))
        total.update(b"\n")
    return total.hexdigest()


# -- for tasks: values of a record --------------------------------------------------------------------


def place_of(record: Mapping[str, Any]) -> str:
    """Where a record stands, for messages: ``FILE, line 12``."""
    return record.place if isinstance(record, Record) else "a record"


def value_of(record: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of the columns that the record has.

    Raises:
        DataError: it has none of them.
    """
    for name in names:
        if name in record:
            return record[name]
    wanted = " or ".join(repr(name) for name in names)
    raise DataError(
        f"{place_of(record)} has no column {wanted}; it has: {_listed(record)}",
        hint=_rename_hint(names[:1], list(record)),
    )


def text_of(record: Mapping[str, Any], *names: str) -> str:
    """The text in the first of the columns that the record has; it may be blank.

    Raises:
        DataError: the record has none of them, or the value is not text.
    """
    value = value_of(record, *names)
    if isinstance(value, str):
        return value
    name = next(name for name in names if name in record)
    raise DataError(
        f"{place_of(record)}: {name!r} is {_kind(value)}, not text",
        hint=f"make every {name!r} a string, or name another column: columns = {{ {names[0]} = ... }}",
    )


# -- selection ----------------------------------------------------------------------------------------


def _selected(
    source: Source, records: list[Record], convert: Convert | None, *, answers: bool
) -> tuple[list[Record], list[Row]]:
    """Records and their rows after ``only``, ``start`` and ``limit``, in step where the converter allows."""
    make = convert or (lambda found: rows_from(found, answers=answers and not source.response))
    if source.only == "all":
        # Rows that nobody asked for are not converted.
        records = _sliced(source, records)
        return records, make(records)
    rows = make(records)
    if len(rows) != len(records):
        raise DataError(
            f"{source.path}: only = {source.only!r} needs one row for each record",
            hint="leave 'only' out: the converter of this task makes another number of rows",
        )
    unsaid = next((record for record, row in zip(records, rows, strict=True) if row.is_safe is None), None)
    if unsaid is not None:
        raise DataError(
            f"{unsaid.place} does not say is_safe, which only = {source.only!r} goes by",
            hint=_rename_hint(("is_safe",), list(unsaid)),
        )
    wanted = source.only == "safe"
    kept = [(record, row) for record, row in zip(records, rows, strict=True) if row.is_safe is wanted]
    if not kept:
        raise DataError(f"{source.path} has no {source.only} rows", hint="set only = 'all', or give another file")
    kept = _sliced(source, kept)
    return [record for record, _ in kept], [row for _, row in kept]


def _sliced(source: Source, found: list[T]) -> list[T]:
    if source.start >= len(found):
        raise DataError(
            f"{source.path}: start = {source.start} leaves none of {len(found)} rows",
            hint=f"set start to at most {len(found) - 1}",
        )
    stop = None if source.limit is None else source.start + source.limit
    return found[source.start : stop]


def _matching(source: Source, records: list[Record]) -> list[Record]:
    for column, value in source.where.items():
        wanted = _plain(value)
        if not any(column in record for record in records):
            columns = _columns(records)
            raise DataError(
                f"{source.path} has no column {column!r} to compare with {wanted!r}; it has: {_listed(columns)}",
                hint=f"{nearest(column, columns)}change where.{column}",
            )
        kept = [record for record in records if column in record and _plain(record[column]) == wanted]
        if not kept:
            values = list(dict.fromkeys(_plain(record.get(column)) for record in records))
            raise DataError(
                f"{source.path}: no record has {column} = {wanted!r}",
                hint=f"{nearest(wanted, values)}values there: {', '.join(values[:_SHOWN])}",
            )
        records = kept
    return records


def _plain(value: Any) -> str:
    """A value as TOML and CSV both would write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _renamed(source: Source, records: list[Record]) -> list[Record]:
    if not source.columns:
        return records
    columns = _columns(records)
    for ours, theirs in source.columns.items():
        if theirs not in columns:
            raise DataError(
                f"{source.path} has no column {theirs!r} (for {ours!r}); it has: {_listed(columns)}",
                hint=f"{nearest(theirs, columns)}change columns.{ours}",
            )
    gone = set(source.columns.values())
    made: list[Record] = []
    for record in records:
        values = {name: value for name, value in record.items() if name not in gone}
        values |= {ours: record[theirs] for ours, theirs in source.columns.items() if theirs in record}
        made.append(Record(values, record.where, record.number, record.unit))
    return made


def _columns(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(name) for record in records for name in record))


def _listed(columns: Iterable[Any]) -> str:
    """Column names for a message. Without a header line they are data, which may be long."""
    names = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(str, columns)]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "(none)"


def _check_rows(source: Source, records: Sequence[Record], rows: Sequence[Row], fields: Sequence[str]) -> None:
    """Refuse blank fields, all of them in one message, and text that cannot be written as UTF-8."""
    in_step = len(records) == len(rows)

    def name(index: int) -> str:
        return f"{records[index].unit} {records[index].number}" if in_step else f"row {index + 1}"

    if not rows:
        raise DataError(f"{source.path} gave no rows", hint="see that the task fits the data")
    for field in fields:
        blank = [index for index, row in enumerate(rows) if not getattr(row, field).strip()]
        if blank:
            shown = ", ".join(name(index) for index in blank[:_SHOWN]) + (", ..." if len(blank) > _SHOWN else "")
            raise DataError(
                f"{source.path}: {len(blank)} of {len(rows)} rows have a blank {field}: {shown}",
                hint=f"remove these rows or fill in their {field}"
                + ("; one answer for all rows: response = '...'" if field == "response" else ""),
            )
    for index, row in enumerate(rows):
        try:
            json.dumps(row.as_json(), ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{source.path}, {name(index)} has half of a character pair (a lone surrogate)",
                hint="write the file as UTF-8 without broken \\ud800-\\udfff escapes",
            ) from error


def _ids(records: Sequence[Record]) -> list[str]:
    given = [_plain(record.get("id", "")).strip() for record in records]
    if all(given) and len(set(given)) == len(given):
        return given
    return [str(record.number) for record in records]


def _grouped(item: Item, group: str) -> Item:
    return replace(item, group=group) if group else item


# -- records to rows ----------------------------------------------------------------------------------


def rows_from(records: Sequence[Mapping[str, Any]], *, answers: bool = True) -> list[Row]:
    """Rows of records in one of the field's usual shapes, recognised by the columns of the first.

    Args:
        records: as read; all in the same shape.
        answers: whether an answer column is needed; without one the response is empty.

    Raises:
        DataError: the columns are of no known shape or of several, or a value has the wrong type.
    """
    if not records:
        return []
    first = records[0]
    conversation = next((name for name in CONVERSATIONS if name in first), None)
    if conversation is not None:
        return [_conversation_row(record, conversation, answers) for record in records]
    request, answer = _shape(first, answers)
    return [_plain_row(record, request, answer) for record in records]


def _shape(record: Mapping[str, Any], answers: bool) -> tuple[str, str]:
    """Names of the request's and the answer's column; the latter empty where there is none and none is needed."""
    columns = [str(name) for name in record]
    where = record.where if isinstance(record, Record) else "the data"
    if answers and {"prompt", "response", "refusal"} <= set(columns):
        # One of them is harmful, the other is not: picking silently would train on the wrong one.
        raise DataError(
            f"{where} has both 'response' and 'refusal': which one is the answer?",
            hint='write columns = { response = "refusal" } for safety data, or columns = { response = "response" }',
        )
    for request, answer in PAIRS:
        if request in record and answer in record:
            return request, answer
    if not answers:
        for request, _ in PAIRS:
            if request in record:
                return request, ""
    raise DataError(
        f"{where} is in no shape that can be read: its columns are {_listed(columns)}; shapes: {SHAPES}",
        hint=_shape_hint(columns, answers),
    )


def _shape_hint(columns: Sequence[str], answers: bool) -> str:
    hint = _rename_hint(("prompt", "response") if answers else ("prompt",), columns)
    if any(request in columns for request, _ in PAIRS):
        return hint + "; for one answer to all prompts: response = '...'"
    if "label" in columns or "class" in columns:
        return hint + "; for labelled texts name a task: task = 'sst2'"
    return hint


def _rename_hint(ours: Sequence[str], columns: Sequence[str]) -> str:
    """``columns = { prompt = "goal", response = "..." }`` with the likeliest of the columns found."""
    if any(len(name) > 40 or name.isdecimal() for name in columns):
        return "if the file has no header line, name its columns: names = ['...', '...']"
    taken: set[str] = set()
    parts: list[str] = []
    for name in ours:
        if name in columns:
            taken.add(name)
            continue
        free = {column.lower(): column for column in columns if column not in taken}
        aliases = _ALIASES.get(name, (name,))
        guess = next((free[alias] for alias in aliases if alias in free), None)
        if guess is None:
            close = [found for alias in aliases for found in get_close_matches(alias, list(free), n=1, cutoff=0.8)]
            guess = free[close[0]] if close else "..."
        taken.add(guess)
        parts.append(f'{name} = "{guess}"')
    return f"name the columns: columns = {{ {', '.join(parts)} }}"


def _plain_row(record: Mapping[str, Any], request: str, answer: str) -> Row:
    return Row(
        prompt=text_of(record, request),
        response=text_of(record, answer) if answer else "",
        input=_optional_text(record, "input"),
        system=_optional_text(record, "system"),
        history=_history(record),
        is_safe=_truth(record),
        category=_category(record),
    )


def _optional_text(record: Mapping[str, Any], name: str) -> str:
    return "" if record.get(name) is None else text_of(record, name)


def _truth(record: Mapping[str, Any]) -> bool | None:
    value = record.get("is_safe")
    if value is None or value == "":
        return None
    found = _TRUTH.get(_plain(value).lower())
    if found is None:
        raise DataError(
            f"{place_of(record)}: is_safe = {value!r} is neither true nor false", hint="write true or false"
        )
    return found


def _category(record: Mapping[str, Any]) -> str | None:
    """A name as it is; of a table of booleans (BeaverTails) the names that are true, or None."""
    value = record.get("category")
    if isinstance(value, Mapping):
        value = [name for name, holds in value.items() if holds is True]
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    if value is None or value == "":
        return None
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        f"{place_of(record)}: 'category' is {_kind(value)}", hint="give a name, or a table of names with true or false"
    )


def _history(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    value = record.get("history") or []
    turns = [tuple(turn) if isinstance(turn, (list, tuple)) else () for turn in value] if _is_list(value) else [()]
    if any(len(turn) != 2 or not all(isinstance(text, str) for text in turn) for turn in turns):
        raise DataError(
            f"{place_of(record)}: 'history' is not a list of [user, assistant] pairs",
            hint='write history = [["first question", "first answer"]]',
        )
    return tuple((str(user), str(assistant)) for user, assistant in turns)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


# -- conversations ------------------------------------------------------------------------------------


def _conversation_row(record: Mapping[str, Any], column: str, answers: bool) -> Row:
    """The last answer of a conversation is what is trained on; the turns before it are history."""
    place = place_of(record)
    system, turns = _turns(value_of(record, column), f"{place}, {column}")
    asked = turns[0::2]
    answered = turns[1::2]
    if any(role != "user" for role, _ in asked) or any(role != "assistant" for role, _ in answered) or not asked:
        order = ", ".join(role for role, _ in turns) or "no turns"
        raise DataError(
            f"{place}: {column} does not alternate user, assistant, user, ...: {order}",
            hint="start with the user (after an optional system message) and let the turns alternate",
        )
    if answers and len(asked) != len(answered):
        raise DataError(
            f"{place}: {column} ends with the user, so there is no answer to learn",
            hint="end each conversation with the assistant, or give one answer to all: response = '...'",
        )
    response = answered[-1][1] if len(asked) == len(answered) else ""
    pairs = zip(asked[:-1], answered, strict=False)
    history = tuple((question, answer) for (_, question), (_, answer) in pairs)
    return Row(asked[-1][1], response, "", system, history, _truth(record), _category(record))


def _turns(value: Any, place: str) -> tuple[str, list[tuple[str, str]]]:
    """System message and (role, text) of the other turns."""
    if not _is_list(value):
        raise DataError(
            f"{place} is {_kind(value)}, not a list of turns", hint="store conversations as JSON or Parquet"
        )
    found: list[tuple[str, str]] = []
    for number, turn in enumerate(value, 1):
        table = turn if isinstance(turn, Mapping) else {}
        name = table.get("role", table.get("from"))
        text = _turn_text(table.get("content", table.get("value")))
        role = _ROLES.get(str(name).lower())
        if role is None or text is None:
            raise DataError(
                f"{place}, turn {number} is not a role with a text (role: {name!r})",
                hint=f"roles: {', '.join(_ROLES)}; give each turn as role/content or from/value, content as text",
            )
        found.append((role, text))
    system = found.pop(0)[1] if found and found[0][0] == "system" else ""
    return system, found


def _turn_text(value: Any) -> str | None:
    """A turn's text; of a list of parts (vision-language chat sets) only when all parts are text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in value]
        return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    return None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a boolean ({value})"
    if isinstance(value, (int, float)):
        return f"a number ({value})"
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if _is_list(value) else f"a {type(value).__name__}"


# -- files --------------------------------------------------------------------------------------------


def _existing(name: str) -> Path:
    """The file of a path.

    Raises:
        DataError: there is none (nearest names of the folder are given), or its format is not read.
    """
    path = Path(name).expanduser()
    with _reading(path):
        folder = path.is_dir()
        there = path.is_file()
        siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() and not there else []
    if folder:
        readable = [p.name for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES]
        raise DataError(
            f"{name} is a folder", hint=f"give one of its files: {', '.join(readable[:_SHOWN]) or 'none fit'}"
        )
    if not there:
        looks_hub = name.count("/") == 1 and path.suffix.lower() not in SUFFIXES
        aside = f"for a dataset of the hub write 'hub:{name}'; " if looks_hub else ""
        close = nearest(path.name, siblings)
        known = [s for s in siblings if s.lower().endswith(SUFFIXES)]
        there_is = f"in {path.parent}: {', '.join(known[:_SHOWN])}" if known else "check the path"
        raise DataError(f"no file {name}", hint=f"{close}{aside}{there_is}")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{name}: files of type {path.suffix or '(none)'} are not read", hint=f"use {', '.join(SUFFIXES)}"
        )
    return path


class _reading:  # noqa: N801  (a context manager, named as it reads in a with statement)
    """Turns the operating system's refusals to read a path into a DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # ValueError: a path with a NUL character.
        if isinstance(error, (OSError, ValueError)) and not isinstance(error, DataError):
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"cannot read {self.path}: {reason}", hint="check the path and its permissions") from error


def _file_records(source: Source) -> list[Record]:
    path = _existing(source.path)
    with _reading(path):
        content = path.read_bytes()
    suffix = path.suffix.lower()
    if not content.strip():
        raise DataError(f"{source.path} is empty", hint="give a file with at least one row")
    if suffix == ".parquet":
        return _parquet(source.path, content)
    text = _decoded(source.path, content)
    if suffix in (".csv", ".tsv"):
        return _table(source, text, suffix)
    if suffix == ".json":
        return _json(source.path, text)
    return list(_json_lines(source.path, text))


def _decoded(where: str, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise DataError(f"{where} is UTF-16 or UTF-32, not UTF-8", hint=f"convert it: iconv -f UTF-16 -t UTF-8 {where}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{where}, line {line} is not UTF-8 (byte 0x{content[error.start]:02x})",
            hint=f"if it is Latin-1: iconv -f LATIN1 -t UTF-8 {where}",
        ) from error
    if "\x00" in text:
        raise DataError(f"{where} holds NUL bytes: it is not a text file in UTF-8", hint="save it as UTF-8 text")
    return text


def _json_lines(where: str, text: str) -> Iterator[Record]:
    # Not str.splitlines: JSON strings may hold other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        value = _parsed(line, f"{where}, line {number}", "each line must be one whole JSON object")
        if not isinstance(value, dict):
            raise DataError(
                f"{where}, line {number} is {_kind(value)}, not an object",
                hint='write one object a line: {"prompt": "...", "response": "..."}',
            )
        yield Record(value, where, number, "line")


def _parsed(text: str, place: str, hint: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError as error:
        raise DataError(f"{place} is nested too deeply", hint=hint) from error
    except ValueError as error:
        raise DataError(f"{place} is not valid JSON: {error}", hint=hint) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} is there twice")
    return table


def _json(where: str, text: str) -> list[Record]:
    """A list of objects, an object of columns (name -> list), or JSON Lines under another name."""
    lines = [line for line in text.split("\n") if line.strip()]
    opening = text.lstrip()[:1]
    if opening == "{" and len(lines) > 1 and lines[0].rstrip().endswith("}") and lines[1].lstrip().startswith("{"):
        return list(_json_lines(where, text))
    value = _parsed(text, where, "give a list of objects, or one object a line")
    if isinstance(value, dict) and value and all(map(_is_column, value.values())):
        # An empty list stands for a column that has no values at all (as in Safety-Tuned LLaMAs' test sets).
        value = {name: column for name, column in value.items() if column}
        lengths = {name: len(column) for name, column in value.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"{where}: its columns differ in length: {lengths}", hint="give each column one value a row"
            )
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"{where} is {_kind(value)}, not a list of objects", hint='write [{"prompt": "..."}, ...]')
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise DataError(f"{where}, row {number} is {_kind(row)}, not an object", hint='write {"prompt": "..."}')
    return [Record(row, where, number) for number, row in enumerate(value, 1)]


def _is_column(value: Any) -> bool:
    """Whether a value lists one plain value a row; a list of objects is something else, such as turns."""
    return isinstance(value, list) and not any(isinstance(part, dict) for part in value)


def _table(source: Source, text: str, suffix: str) -> list[Record]:
    """CSV with quoting; TSV without, as in GLUE, where a quote is a quote."""
    import polars as pl

    where, tabs = source.path, suffix == ".tsv"
    text = text.lstrip("\r\n")
    header = list(source.names) or _header(where, text, tabs)
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise DataError(f"{where}: the column {repeated[0]!r} is there twice", hint="give each column its own name")
    if tabs:
        # Polars keeps carriage returns where quoting is off.
        text = text.replace("\r\n", "\n")
    try:
        frame = pl.read_csv(
            text.encode("utf-8"), separator="\t" if tabs else ",", quote_char=None if tabs else '"',
            infer_schema=False, has_header=not source.names,
        )  # fmt: skip
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).split("\n\n", 1)[0].strip()
        raise DataError(
            f"{where} is not a well-formed {suffix} table: {reason}",
            hint="see that every row has as many fields as the header and that quotes are closed (a quote inside "
            "a quoted field is written twice)",
        ) from error
    if len(frame.columns) != len(header):
        raise DataError(
            f"{where} has {len(frame.columns)} columns, {len(header)} are named: {', '.join(header)}",
            hint="name all columns in their order",
        )
    records = [
        Record({name: value or "" for name, value in zip(header, row, strict=True)}, where, number)
        for number, row in enumerate(frame.rows(), 1)
        # A row of nothing is a blank line.
        if any(value is not None for value in row)
    ]
    return records


def _header(where: str, text: str, tabs: bool) -> list[str]:
    """Column names. Read here because Polars renames repeated ones without a word."""
    try:
        first = next(csv.reader(io.StringIO(text, newline=""))) if not tabs else None
    except (csv.Error, StopIteration) as error:
        raise DataError(
            f"{where}: its header line cannot be read: {error}", hint="close the header's quotes"
        ) from error
    names = first if first is not None else text.split("\n", 1)[0].split("\t")
    return [name.strip() for name in names]


def _parquet(where: str, content: bytes) -> list[Record]:
    import polars as pl

    try:
        rows = pl.read_parquet(io.BytesIO(content)).to_dicts()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise DataError(
            f"{where} is not a readable Parquet file: {str(error).splitlines()[0]}", hint="write it again"
        ) from error
    return [Record(row, where, number) for number, row in enumerate(rows, 1)]


# -- sandbox and hub ----------------------------------------------------------------------------------


def _sandbox_records(source: Source, questions: bool) -> list[Record]:
    from holdfast.data import sandbox

    if questions:
        values = [item.as_json() for item in sandbox.items(source.path)]
    else:
        # A filter leaves fewer rows than were drawn, so then as many are drawn as when nothing is said.
        whole = source.limit is None or source.only != "all" or bool(source.where)
        drawn = None if whole else source.start + (source.limit or 0)
        values = [row.as_json() for row in sandbox.rows(source.path, drawn, source.seed)]
    return [Record(value, source.path, number) for number, value in enumerate(values, 1)]


@lru_cache(maxsize=4)
def _hub_records(reference: str, split: str) -> list[Record]:
    """Records of ``org/name[/config]`` or of a local folder in the layout of ``datasets``; read once a process."""
    name, config = _hub_name(reference)
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("finetune", "datasets") from error
    where = f"{HUB}{reference}"
    try:
        found = datasets.load_dataset(name, config, split=split)
        return [Record(row, where, number) for number, row in enumerate(found.to_list(), 1)]
    except ConnectionError as error:
        raise DataError(
            f"{where} cannot be reached: {_first_line(error)}",
            hint="check the network, or download it where there is one and give the file instead of hub:",
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{where} cannot be loaded: {_first_line(error)}",
            hint="check name, config (hub:org/name/config) and split; a gated dataset needs 'hf auth login'",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hub_name(reference: str) -> tuple[str, str | None]:
    """Dataset and config of a reference.

    Raises:
        DataError: it is not of the form org/name or org/name/config.
    """
    if reference.startswith((".", "/", "~")):
        folder = Path(reference).expanduser()
        if not folder.is_dir():
            raise DataError(f"no folder {reference}", hint="give a folder in the layout of datasets, or hub:org/name")
        return str(folder), None
    parts = reference.split("/")
    if not all(parts) or len(parts) not in (2, 3):
        raise DataError(f"{HUB}{reference} names no dataset", hint="write hub:org/name or hub:org/name/config")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
