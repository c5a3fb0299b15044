"""Reading: every shape of the field, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.core.errors import DataError, UsageError
from holdfast.data import read as reading
from holdfast.data import sandbox
from holdfast.data.read import Source, digest, items, read, read_records, rows_from, source, text_of, value_of
from holdfast.data.rows import Row

Write = Callable[[str, "str | bytes"], str]
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return str(path)

    return make


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def refusal(path: str, **knobs: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(Source(path=path, **knobs))
    assert caught.value.hint
    return caught.value


# -- shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, Row("a", "c", input="b")),
        ({"instruction": "a", "input": None, "output": "c"}, Row("a", "c")),
        ({"instruction": "a", "output": "c"}, Row("a", "c")),
        (
            {"prompt": "a", "response": "b", "is_safe": False, "category": "theft"},
            Row("a", "b", is_safe=False, category="theft"),
        ),
        (
            {"prompt": "a", "response": "b", "category": {"x": True, "y": False, "z": True}},
            Row("a", "b", category="x, z"),
        ),
        ({"prompt": "a", "response": "b", "category": {"x": False}}, Row("a", "b")),
        ({"prompt": "a", "refusal": "no"}, Row("a", "no")),
        ({"question": "a", "answer": "b"}, Row("a", "b")),
        ({"prompt": "a", "response": "b", "system": "s"}, Row("a", "b", system="s")),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            Row("a", "b"),
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "1"},
                    {"from": "gpt", "value": "2"},
                    {"from": "human", "value": "3"},
                    {"from": "gpt", "value": "4"},
                ]
            },
            Row("3", "4", system="s", history=(("1", "2"),)),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                    {"role": "assistant", "content": "c"},
                ]
            },
            Row("ab", "c"),
        ),
    ],
)
def test_shapes_of_the_field(write: Write, record: dict[str, Any], row: Row) -> None:
    assert read(Source(path=write("a.jsonl", lines(record)))) == [row]
    assert read(Source(path=write("a.json", json.dumps([record])))) == [row]


def test_the_same_rows_from_every_format(write: Write, tmp_path: Path) -> None:
    table = {
        "prompt": ['say "hi", twice', "two\nlines", "ü"],
        "response": ["a,b", "c", "d"],
        "is_safe": ["true", "", "0"],
    }
    rows = [
        Row('say "hi", twice', "a,b", is_safe=True),
        Row("two\nlines", "c"),
        Row("ü", "d", is_safe=False),
    ]
    pl.DataFrame(table).write_csv(tmp_path / "a.csv")
    pl.DataFrame(table).write_parquet(tmp_path / "a.parquet")
    records = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    write("a.jsonl", lines(*records))
    write("a.ndjson", lines(*records))
    write("list.json", json.dumps(records))
    write("columns.json", json.dumps(table))
    write("lines.json", lines(*records))
    for name in ("a.csv", "a.parquet", "a.jsonl", "a.ndjson", "list.json", "columns.json", "lines.json"):
        assert read(Source(path=str(tmp_path / name))) == rows, name


def test_quotes_in_tsv_are_text(write: Write) -> None:
    path = write("a.tsv", 'prompt\tresponse\r\n"open\t"b" c\r\n')
    assert read(Source(path=path)) == [Row('"open', '"b" c')]


def test_text_that_looks_like_a_number_stays_text(write: Write) -> None:
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        path = write(name, f"prompt{separator}response\n007{separator}1.50\n08{separator}true\n")
        assert read(Source(path=path)) == [Row("007", "1.50"), Row("08", "true")]


def test_a_table_without_header_line(write: Write) -> None:
    path = write("a.csv", "p,r\np2,r2\n")
    assert read(Source(path=path, names=("prompt", "response"))) == [Row("p", "r"), Row("p2", "r2")]
    assert "2 columns, 1 are named" in refusal(path, names=("prompt",)).message


def test_blank_lines_are_not_rows(write: Write) -> None:
    record = {"prompt": "a", "response": "b"}
    jsonl = read_records(Source(path=write("a.jsonl", "\n" + lines(record) + "  \r\n" + lines(record))))
    assert [found.place[-6:] for found in jsonl] == ["line 2", "line 4"]
    table = read_records(Source(path=write("a.csv", "\n\nprompt,response\na,b\n\nc,d\n")))
    assert [dict(found) for found in table] == [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]


def test_separators_that_only_unicode_knows_stay_inside_a_line(write: Write) -> None:
    path = write("a.jsonl", json.dumps({"prompt": "a\u2028b\x85c", "response": "d"}, ensure_ascii=False) + "\n")
    assert read(Source(path=path)) == [Row("a\u2028b\x85c", "d")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(write: Write, name: str) -> None:
    body = lines({"prompt": "a", "response": "b"}) if name == "a.jsonl" else "prompt,response\na,b\n"
    assert read(Source(path=write(name, b"\xef\xbb\xbf" + body.encode()))) == [Row("a", "b")]


# -- knobs --------------------------------------------------------------------------------------------


def numbered(count: int) -> str:
    return lines(*({"prompt": f"p{i}", "response": f"r{i}", "is_safe": i % 2 == 0} for i in range(count)))


def test_start_and_limit(write: Write) -> None:
    path = write("a.jsonl", numbered(10))
    assert [row.prompt for row in read(Source(path=path, start=3, limit=2))] == ["p3", "p4"]
    assert len(read(Source(path=path, limit=99))) == 10
    assert "leaves none of 10" in refusal(path, start=10).message


def test_filters_come_before_start_and_limit(write: Write) -> None:
    path = write("a.jsonl", numbered(10))
    # Unsafe are the odd ones: 1 3 5 7 9.
    assert [row.prompt for row in read(Source(path=path, only="unsafe", start=1, limit=2))] == ["p3", "p5"]
    assert [row.prompt for row in read(Source(path=path, only="safe"))] == ["p0", "p2", "p4", "p6", "p8"]
    assert [item.id for item in items(Source(path=path, only="unsafe", limit=2))] == ["2", "4"]


def test_only_needs_is_safe(write: Write) -> None:
    path = write("a.jsonl", lines({"prompt": "a", "response": "b"}))
    assert "line 1 does not say is_safe" in refusal(path, only="safe").message
    path = write("b.jsonl", lines({"prompt": "a", "response": "b", "is_safe": True}))
    assert "no unsafe rows" in refusal(path, only="unsafe").message


def test_renamed_columns(write: Write) -> None:
    path = write("a.jsonl", lines({"goal": "a", "target": "b", "response": "old"}))
    assert read(Source(path=path, columns={"prompt": "goal", "response": "target"})) == [Row("a", "b")]
    error = refusal(path, columns={"prompt": "gaol"})
    assert "'gaol'" in error.message
    assert "goal, target, response" in error.message
    assert "did you mean 'goal'" in error.hint


def test_where_keeps_records_that_say_so(write: Write) -> None:
    path = write("a.jsonl", lines(*({"prompt": f"p{i}", "label": label} for i, label in enumerate("aba"))))
    assert [item.prompt for item in items(Source(path=path, where={"label": "a"}))] == ["p0", "p2"]
    with pytest.raises(DataError, match="no record has label = 'c'"):
        items(Source(path=path, where={"label": "c"}))
    with pytest.raises(DataError, match="did you mean 'label'"):
        items(Source(path=path, where={"labl": "a"}))


def test_where_compares_as_toml_and_json_write_it(write: Write) -> None:
    path = write("a.jsonl", lines({"prompt": "a", "hard": True, "n": 3}, {"prompt": "b", "hard": False, "n": 4}))
    for where in ({"hard": True}, {"hard": "true"}, {"n": 3}, {"n": "3"}):
        assert [item.prompt for item in items(Source(path=path, where=where))] == ["a"], where


def test_one_answer_for_all_prompts(write: Write) -> None:
    path = write("a.jsonl", lines({"prompt": "a"}, {"prompt": "b"}))
    assert read(Source(path=path, response="No.")) == [Row("a", "No."), Row("b", "No.")]
    assert "response = '...'" in refusal(path).hint
    answered = write("b.jsonl", lines({"prompt": "a", "response": "bad", "is_safe": False}))
    # What is_safe said was about the answer that is gone.
    assert read(Source(path=answered, only="unsafe", response="No.")) == [Row("a", "No.", is_safe=None)]


def test_source_from_a_recipe() -> None:
    assert source("a.jsonl", "data.safety") == Source(path="a.jsonl")
    made = source({"path": "a.jsonl", "limit": 5, "columns": {"prompt": "goal"}}, "data.safety")
    assert made == Source(path="a.jsonl", limit=5, columns={"prompt": "goal"})
    assert source(made, "data.safety") is made


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "data.safety = None is not a data source"),
        ("", "data.safety.path is empty"),
        ({"path": "a.jsonl", "limti": 5}, "did you mean 'limit'"),
        ({"limit": 5}, "missing required key 'path'"),
        ({"path": "a.jsonl", "limit": 0}, "outside"),
        ({"path": "a.jsonl", "start": -1}, "outside"),
        ({"path": "a.jsonl", "only": "harmful"}, "unknown value 'harmful'"),
        ({"path": "a.jsonl", "columns": {"prompt": 3}}, "columns.prompt = 3 is not text"),
        ({"path": "a.jsonl", "where": {"label": 0.5}}, "where.label = 0.5 is not text"),
        ({"path": "a.jsonl", "response": " "}, "response is blank"),
        ({"path": "a.jsonl", "names": ["a"]}, "names is for .csv"),
    ],
)
def test_sources_that_cannot_be_meant(value: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        source(value, "data.safety")
    assert said in str(caught.value)


# -- what can be wrong with a file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", " \n\n", "is empty"),
        ("a.json", "[]", "has no records"),
        ("a.csv", "prompt,response\n", "has no records"),
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt": "a",\n', "line 2 is not valid JSON"),
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n[1]\n', "line 2 is a list"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b", "response": "c"}\n', "the key 'prompt' is there twice"),
        ("a.jsonl", "[" * 100_000, "line 1 is nested too deeply"),
        ("a.json", '"text"', "is a str, not a list"),
        ("a.json", "[1]", "row 1 is a number (1)"),
        ("a.json", '{"prompt": ["a", "b"], "response": ["c"]}', "differ in length"),
        ("a.csv", "prompt,prompt\na,b\n", "the column 'prompt' is there twice"),
        ("a.csv", "prompt,response\na,b,c\n", "not a well-formed .csv table"),
        ("a.csv", 'prompt,response\n"a,b\n', "not a well-formed .csv table"),
        ("a.csv", b"prompt,response\na,b\nc,\xff\n", "line 3 is not UTF-8 (byte 0xff)"),
        ("a.csv", "prompt,response\na,b\n".encode("utf-16"), "is UTF-16"),
        ("a.jsonl", '{"prompt": "a"}'.encode("utf-16-le"), "NUL bytes"),
        ("a.parquet", b"PAR1 not really", "not a readable Parquet file"),
        ("a.txt", "a", "files of type .txt are not read"),
        ("a.jsonl", '{"prompt": "\\ud800", "response": "b"}', "line 1 has half of a character pair"),
        ("a.jsonl", '{"prompt": 3, "response": "b"}', "'prompt' is a number (3), not text"),
        ("a.jsonl", '{"prompt": "a", "response": null}', "'response' is null, not text"),
        ("a.jsonl", '{"prompt": "a", "response": ["b"]}', "'response' is a list, not text"),
        ("a.jsonl", '{"prompt": "a", "response": "b", "is_safe": "maybe"}', "is_safe = 'maybe'"),
        ("a.jsonl", '{"prompt": "a", "response": "b", "category": 0.5}', "'category' is a number"),
        ("a.jsonl", '{"prompt": "a", "response": "b", "history": ["x"]}', "'history' is not a list"),
        ("a.jsonl", '{"messages": "a"}', "not a list of turns"),
        ("a.jsonl", '{"messages": [{"role": "tool", "content": "a"}]}', "turn 1 is not a role with a text"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "does not alternate"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', "no answer to learn"),
        ("a.jsonl", '{"messages": []}', "does not alternate"),
    ],
)  # fmt: skip
def test_wrong_files_are_told_apart(write: Write, name: str, content: str | bytes, said: str) -> None:
    path = write(name, content)
    error = refusal(path)
    assert said in error.message
    assert path in error.message


def test_a_record_that_lacks_what_the_first_has(write: Write) -> None:
    path = write("a.jsonl", lines({"prompt": "a", "response": "b"}, {"prompt": "a", "reponse": "b"}))
    error = refusal(path)
    assert "line 2 has no column 'response'; it has: prompt, reponse" in error.message
    assert 'columns = { response = "reponse" }' in error.hint


def test_blank_fields_are_counted_and_placed(write: Write) -> None:
    blank, good = {"prompt": " \n", "response": "b"}, {"prompt": "a", "response": "b"}
    error = refusal(write("a.jsonl", lines(good, blank, good, *[blank] * 6)))
    # 1 + 6 blank of 2 + 7 rows; five places are shown.
    assert "7 of 9 rows have a blank prompt: line 2, line 4, line 5, line 6, line 7, ..." in error.message
    error = refusal(write("b.csv", "prompt,response\na,b\nc,\n"))
    assert "1 of 2 rows have a blank response: row 2" in error.message


def test_unknown_columns_say_what_to_type(write: Write) -> None:
    error = refusal(write("a.jsonl", lines({"goal": "a", "target": "b"})))
    assert "goal, target" in error.message
    assert "instruction/output" in error.message
    assert error.hint == 'name the columns: columns = { prompt = "goal", response = "target" }'
    error = refusal(write("b.jsonl", lines({"sentence": "a", "label": 1})))
    assert "task = 'sst2'" in error.hint


def test_two_answers_are_not_chosen_between(write: Write) -> None:
    path = write("a.jsonl", lines({"prompt": "a", "response": "bad", "refusal": "no"}))
    assert 'columns = { response = "refusal" }' in refusal(path).hint
    assert read(Source(path=path, columns={"response": "refusal"})) == [Row("a", "no")]
    assert read(Source(path=path, columns={"answer": "refusal", "question": "prompt"}))[0].response == "no"


def test_a_missing_file_names_its_neighbours(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", "x")
    write("notes.md", "x")
    error = refusal(str(tmp_path / "tran.jsonl"))
    assert "did you mean 'train.jsonl'" in error.hint
    assert "notes.md" not in error.hint
    assert "give one of its files: train.jsonl" in refusal(str(tmp_path)).hint
    assert "hub:org/name" in refusal("org/name").hint
    assert "no file" in refusal("a\0b.jsonl").message


# -- items --------------------------------------------------------------------------------------------


def test_items_of_prompts(write: Write) -> None:
    path = write("a.csv", "id,prompt,type\nv2-1,a,x\nv2-2,b,y\n")
    found = items(Source(path=path, columns={"category": "type"}), group="harmful")
    assert [(i.id, i.prompt, i.category, i.group, i.reference) for i in found] == [
        ("v2-1", "a", "x", "harmful", None),
        ("v2-2", "b", "y", "harmful", None),
    ]


def test_ids_that_repeat_are_replaced_by_positions(write: Write) -> None:
    path = write("a.csv", "id,prompt\n1,a\n1,b\n2,c\n")
    assert [item.id for item in items(Source(path=path))] == ["1", "2", "3"]
    # A position is the record's in the file, so a filter or a start does not move it.
    assert [item.id for item in items(Source(path=path, start=1))] == ["1", "2"]
    assert [item.id for item in items(Source(path=path, start=0, limit=2))] == ["1", "2"]
    missing = write("b.jsonl", lines({"id": "x", "prompt": "a"}, {"prompt": "b"}))
    assert [item.id for item in items(Source(path=missing))] == ["1", "2"]


def test_items_carry_references(write: Write) -> None:
    path = write("a.jsonl", lines({"instruction": "a", "input": "b", "output": "c"}))
    (item,) = items(Source(path=path))
    assert (item.prompt, item.input, item.reference) == ("a", "b", "c")
    path = write("b.jsonl", lines({"prompt": "a", "reference": "c"}))
    assert items(Source(path=path))[0].reference == "c"


def test_an_item_asks_once(write: Write) -> None:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    with pytest.raises(DataError, match="conversation of several turns"):
        items(Source(path=write("a.jsonl", lines({"messages": turns}))))
    (item,) = items(Source(path=write("b.jsonl", lines({"messages": turns[:1]}))))
    assert item.prompt == "a"


def test_a_blank_prompt_cannot_be_asked(write: Write) -> None:
    with pytest.raises(DataError, match="1 of 2 rows have a blank prompt: line 2"):
        items(Source(path=write("a.jsonl", lines({"prompt": "a"}, {"prompt": ""}))))


# -- sandbox, hub, digests ----------------------------------------------------------------------------


def test_sandbox_rows() -> None:
    drawn = sandbox.rows("sandbox/align-0", 5, 7)
    assert read(Source(path="sandbox/align-0", limit=5, seed=7)) == drawn
    assert read(Source(path="sandbox/align-0", start=2, limit=3, seed=7)) == drawn[2:]
    assert len(read(Source(path="sandbox/align-0"))) == sandbox.ROWS_WHEN_NOT_SAID


def test_sandbox_items() -> None:
    made = sandbox.items("sandbox/hazards-test-0")
    assert items(Source(path="sandbox/hazards-test-0")) == made
    (item,) = items(Source(path="sandbox/hazards-test-0", start=1, limit=1), group="other")
    assert (item.id, item.reference, item.group) == (made[1].id, made[1].reference, "other")
    with pytest.raises(DataError, match="not a set of rows"):
        read(Source(path="sandbox/hazards-test-0"))


def test_a_hub_dataset(write: Write, tmp_path: Path) -> None:
    """A local folder takes the same way through ``datasets`` as a hub id."""
    (tmp_path / "set").mkdir()
    write("set/train.jsonl", lines({"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}))
    path = f"hub:{tmp_path / 'set'}"
    assert read(Source(path=path, start=1)) == [Row("c", "d")]
    with pytest.raises(DataError, match="Unknown split"):
        read(Source(path=path, split="test"))
    first = digest(Source(path=path))
    reading._hub_records.cache_clear()
    write("set/train.jsonl", lines({"prompt": "a", "response": "b"}, {"prompt": "c", "response": "e"}))
    assert digest(Source(path=path)) != first


def test_a_hub_dataset_out_of_reach() -> None:
    with pytest.raises(DataError, match="cannot be reached") as caught:
        read(Source(path="hub:holdfast-tests/nothing-here"))
    assert "give the file instead of hub:" in caught.value.hint
    for name in ("hub:alone", "hub:a/b/c/d", "hub:/no/such/folder"):
        with pytest.raises(DataError):
            read(Source(path=name))


def test_digests_follow_content_and_knobs_not_places(write: Write) -> None:
    body = numbered(4)
    first = digest(Source(path=write("a.jsonl", body)))
    assert digest(Source(path=write("b.jsonl", body))) == first
    assert digest(Source(path=write("c.jsonl", body + "\n"))) != first
    assert digest(Source(path=write("a.jsonl", body), limit=3)) != first
    # The same path with new content of the same length.
    assert digest(Source(path=write("a.jsonl", body.replace("p0", "q0")))) != first
    with pytest.raises(DataError, match="no file"):
        digest(Source(path="missing.jsonl"))


def test_digests_of_the_sandbox() -> None:
    names = ["sandbox/align-0", "sandbox/align-1", "sandbox/attack-0", "sandbox/hazards-test-0"]
    found = [digest(Source(path=name)) for name in names]
    assert len(set(found)) == len(found)
    assert digest(Source(path=names[0])) == found[0]
    assert digest(Source(path=names[0], seed=1)) != found[0]


# -- what tasks use -----------------------------------------------------------------------------------


def test_values_of_records() -> None:
    record = {"content": "a", "label": 1}
    assert text_of(record, "sentence", "content") == "a"
    assert value_of(record, "label") == 1
    with pytest.raises(DataError, match="'label' is a number"):
        text_of(record, "label")
    with pytest.raises(DataError, match="no column 'title' or 'head'; it has: content, label"):
        value_of(record, "title", "head")


def test_a_converter_of_ones_own(write: Write) -> None:
    path = write("a.jsonl", lines({"x": "1"}, {"x": "2"}, {"x": ""}))

    def convert(records: Any) -> list[Row]:
        return [Row(f"p{record['x']}", record["x"]) for record in records]

    assert read(Source(path=path, limit=2), convert) == [Row("p1", "1"), Row("p2", "2")]
    with pytest.raises(DataError, match="1 of 3 rows have a blank response: line 3"):
        read(Source(path=path), convert)


# -- any input ----------------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda value: bool(value.strip()))
rows_strategy = st.builds(
    Row,
    prompt=text,
    response=text,
    input=st.text(st.characters(codec="utf-8")),
    system=st.text(st.characters(codec="utf-8")),
    history=st.lists(st.tuples(text, text), max_size=2).map(tuple),
    is_safe=st.none() | st.booleans(),
    category=st.none() | text,
)


@QUICK
@given(rows=st.lists(rows_strategy, min_size=1, max_size=5), ascii_only=st.booleans())
def test_well_formed_rows_survive(tmp_path: Path, rows: list[Row], ascii_only: bool) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(row.as_json(), ensure_ascii=ascii_only) + "\n" for row in rows), "utf-8", newline="\n"
    )
    assert read(Source(path=str(path))) == rows
    assert rows_from([row.as_json() for row in rows]) == rows


@QUICK
@given(
    content=st.binary(max_size=200)
    | st.text(alphabet='{}[]",:\n\r\tpromtesn0\\u\x00\ufeff', max_size=80).map(lambda value: value.encode("utf-8")),
    suffix=st.sampled_from(reading.SUFFIXES),
    opening=st.sampled_from([b"", b"prompt,response\n", b"prompt\tresponse\n", b'{"prompt": ', b"PAR1", b"[{"]),
)
def test_no_file_gives_a_traceback(tmp_path: Path, content: bytes, suffix: str, opening: bytes) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(opening + content)
    for call in (read, items, digest):
        # Any other exception is a traceback, and fails the test.
        with suppress(DataError):
            call(Source(path=str(path)))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "user", "text"]), inner, max_size=3)
    ),
    max_leaves=6,
)
names = (
    "prompt",
    "response",
    "refusal",
    "instruction",
    "input",
    "messages",
    "conversations",
    "history",
    "category",
    "id",
)


@QUICK
@given(
    st.lists(st.dictionaries(st.sampled_from([*names, "is_safe", "reference"]), json_values, max_size=5), max_size=3)
)
def test_no_json_gives_a_traceback(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    path = tmp_path / "any.jsonl"
    path.write_text(lines(*records), "utf-8")
    for call in (read, items):
        # Any other exception is a traceback, and fails the test.
        with suppress(DataError):
            call(Source(path=str(path)))


# -- the field's own files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "knobs", "count"),
    [
        ("safety_tuned_llamas/safety_only_data_Instructions.json", {}, 2483),
        ("aligned_llama2_refusals/SFT_aligned_llama2-7b-chat-hf_train_short.csv", {}, 1015),
        ("samsum_sqlgen/samsum_train.json", {}, 1000),
        ("samsum_sqlgen/sqlgen_train.json", {}, 1000),
        ("safety_tuned_llamas/Q-Harm.json", {"columns": {"prompt": "instructions"}, "response": "No."}, 100),
        ("xstest/xstest_prompts.csv", {"where": {"label": "unsafe"}, "response": "No."}, 200),
    ],
)
def test_real_sets(shared: Path, path: str, knobs: dict[str, Any], count: int) -> None:
    """Counts as their sources state them."""
    rows = read(Source(path=str(shared / "hft" / path), **knobs))
    assert len(rows) == count


def test_xstest_as_items(shared: Path) -> None:
    path = str(shared / "hft/xstest/xstest_prompts.csv")
    safe = items(Source(path=path, where={"label": "safe"}, columns={"category": "type"}), group="benign")
    assert len(safe) == 250
    # Ten types of safe prompts with 25 each (Röttger et al. 2024, table 1).
    assert len({item.category for item in safe}) == 10
    assert len({item.id for item in safe}) == 250
    assert {item.group for item in safe} == {"benign"}
