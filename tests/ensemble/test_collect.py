"""Asking members: real server processes, killed half-way where it matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemble.servers import MemberServer
from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.runs import Store
from holdfast.ensemble.collect import capabilities, collect, option_probabilities
from holdfast.ensemble.members import Member, Members, Prompt, read_members
from holdfast.ensemble.table import Question, read_outputs, read_questions
from holdfast.models.chat import Answers, Reply

Start = Callable[[], MemberServer]
ITEMS = [Question(f"q{k}", f"item {k} = {'ABCD'[k % 4]}", ("w", "x", "y", "z"), ("ABCD"[k % 4],)) for k in range(12)]


def member(server: MemberServer, model: str, **more: Any) -> Member:
    return Member(name=model, url=f"{server.url}/v1", model=model, retries=0, timeout=10, **more)


def asked(members: Members, folder: Path) -> tuple[dict[str, Any], Path]:
    out = folder / "answers.jsonl"
    return collect(members, ITEMS, out, store=Store(folder / "runs"), cache=folder / "cache"), out


def test_answers_costs_and_what_pick_reads(start_server: Start, tmp_path: Path) -> None:
    server = start_server()
    members = Members((member(server, "good", price_in=1.0, price_out=10.0), member(server, "wrong")))
    done, out = asked(members, tmp_path)
    assert done["good"]["answers"] == 12
    assert done["good"]["dollars"] == pytest.approx(12 * (100 * 1 + 10 * 10) / 1e6)
    assert done["good"]["dollars_now"] == done["good"]["dollars"]
    outputs = read_outputs([out])
    assert outputs.accuracy.tolist() == [1.0, 0.0]
    assert outputs.cost is not None
    assert outputs.cost[0] == pytest.approx(200 / 1e6)
    again, _ = asked(members, tmp_path)
    assert server.asked()["count"] == 24, "nothing is asked twice"
    assert again["good"]["dollars_now"] == 0
    assert again["good"]["dollars"] == done["good"]["dollars"]


def test_several_samples_are_asked_one_by_one(start_server: Start, tmp_path: Path) -> None:
    server = start_server()
    _, out = asked(Members((member(server, "moody", samples=3, temperature=1.0),)), tmp_path)
    texts = json.loads(out.read_text().splitlines()[0])["answers"]["moody"]
    assert len(set(texts)) == 3, "each sample has a seed of its own"
    assert server.asked()["count"] == 36


def test_a_member_that_dies_is_set_aside_and_asked_again_later(start_server: Start, tmp_path: Path) -> None:
    first, second = start_server(), start_server()
    warned: list[str] = []
    members = Members((member(first, "dies", concurrency=1), member(second, "good")))
    done = collect(
        members, ITEMS, tmp_path / "a.jsonl", store=Store(tmp_path), cache=tmp_path / "cache",
        sink=lambda event: warned.append(getattr(event, "message", "")),
    )  # fmt: skip
    assert done["good"]["missing"] == 0
    assert (done["dies"]["answers"], done["dies"]["missing"]) == (3, 9)
    assert "cannot be reached" in done["dies"]["reason"]
    assert sum("dies is set aside" in text for text in warned) == 1
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert sum("dies" in row["answers"] for row in rows) == 3, "missing, not an abstention"
    third = start_server()
    moved = Members((Member(**{**members.member[0].__dict__, "url": members.member[0].url}), members.member[1]))
    assert (
        collect(moved, ITEMS, tmp_path / "a.jsonl", store=Store(tmp_path), cache=tmp_path / "cache")["good"]["missing"]
        == 0
    )
    assert second.asked()["count"] == 12, "the other member is not asked again"
    assert third.asked()["count"] == 0


def test_a_killed_collection_never_asks_twice(start_server: Start, tmp_path: Path) -> None:
    server = start_server()
    (tmp_path / "members.toml").write_text(
        f'[[member]]\nname = "p"\nurl = "{server.url}/v1"\nmodel = "pauses"\nconcurrency = 2\n'
    )
    rows = [{"item": one.item, "question": one.prompt, "gold": one.gold[0]} for one in ITEMS]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable,
        "-m",
        "holdfast.cli.main",
        "ensemble",
        "collect",
        "members.toml",
        "items.jsonl",
        "out.jsonl",
    ]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.asked()["count"] < 5:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = server.asked()["count"]
    assert before < len(ITEMS)
    assert not (tmp_path / "out.jsonl").exists()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "holdfast ensemble pick out.jsonl" in done.stdout
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(ITEMS)
    assert server.asked()["count"] <= len(ITEMS) + 2, "only what was under way at the kill is asked again"


def test_probabilities_of_options(start_server: Start, tmp_path: Path) -> None:
    server = start_server()
    members = Members((member(server, "probs"), member(server, "plain")), Prompt(logprobs=True))
    _, out = asked(members, tmp_path)
    row = json.loads(out.read_text().splitlines()[2])
    assert set(row["probs"]) == {"probs"}, "a server that refuses log-probabilities gives votes"
    assert sum(row["probs"]["probs"].values()) == pytest.approx(1)
    assert row["probs"]["probs"]["C"] > row["probs"]["probs"]["B"] > 0
    outputs = read_outputs([out])
    assert outputs.probabilities
    assert outputs.accuracy.tolist() == [1.0, 1.0]


def test_probabilities_by_hand() -> None:
    reply = Reply("A", "stop", alternatives=({"the": -0.1}, {"A": -1.0, " a": -1.0, "B": -2.0, "Z": -0.1}))
    found = option_probabilities(reply, 2)
    share = 2 * 2.718281828**-1 / (2 * 2.718281828**-1 + 2.718281828**-2)
    assert found["A"] == pytest.approx(share, abs=1e-6)
    assert option_probabilities(Reply("A", "stop"), 4) == {}


def test_capabilities(start_server: Start) -> None:
    server = start_server()
    able, plain = capabilities(member(server, "moody")), capabilities(member(server, "plain"))
    assert (able["answers"], able["logprobs"], able["several"], able["seed"]) == (True, True, True, True)
    assert (plain["logprobs"], plain["several"], plain["seed"]) == (False, False, None)
    with pytest.raises(ModelError, match="cannot be reached"):
        capabilities(Member("gone", "http://127.0.0.1:9/v1", "x", retries=0))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "missing required key 'member'"),
        ("member = []\n", "no member"),
        ('[[member]]\nname = "a"\n', "either url or local"),
        ('[[member]]\nname = "a"\nurl = "http://x/v1"\n', "names no model"),
        ('[[member]]\nname = "a"\nurl = "x"\nmodel = "m"\n', "no http address"),
        ('[[member]]\nname = "a"\nulr = "http://x/v1"\n', "did you mean 'url'"),
        ('[[member]]\nname = "a"\nlocal = "x"\n[[member]]\nname = "a"\nlocal = "y"\n', "two members are called 'a'"),
        ('[prompt]\ntemplate = "hello"\n[[member]]\nname = "a"\nlocal = "x"\n', "no {prompt}"),
        ('[[member]\nname = "a"', "TOML"),
    ],
)
def test_wrong_members_files(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "members.toml"
    path.write_text(text)
    with pytest.raises((UsageError, DataError)) as caught:
        read_members(path)
    assert told in str(caught.value)


def test_prompts_fill_foreign_text_in_once() -> None:
    prompt = Prompt(template="Q: {prompt}\n{options}\nA:")
    assert prompt.message("what is {options}?", ("{prompt}", "no")) == "Q: what is {options}?\nA. {prompt}\nB. no\nA:"


def test_wrong_questions(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    for text, told in (("item\n1\n", "no column 'question'"), ("item,question\n1,a\n1,b\n", "stands there twice")):
        path.write_text(text)
        with pytest.raises(DataError, match=told):
            read_questions(path)
    path.write_text('item,question,options\n1,a,"[""x"", ""y""]"\n')
    assert read_questions(path)[0].options == ("x", "y")


def test_many_open_the_cache_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(place: int) -> str | None:
        base = Answers(tmp_path / str(place // 16))
        base.put(str(place), Reply(f"text {place}", "stop"))
        found = base.get(str(place))
        base.close()
        return None if found is None else found.text

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(96))) == [f"text {place}" for place in range(96)]


def test_the_cache_file_survives_damage_and_says_so(tmp_path: Path) -> None:
    from holdfast.core.errors import RunError

    base = Answers(tmp_path)
    base.put("k", Reply("text", "stop", 1, 2, 0.5, ({"a": -1.0},), ("other",)))
    base.close()
    again = Answers(tmp_path)
    found = again.get("k")
    assert found == Reply("text", "stop", 1, 2, 0.5, ({"a": -1.0},), ("other",), cached=True)
    assert again.get("none") is None
    again.close()
    for more in ("answers.sqlite-wal", "answers.sqlite-shm"):
        (tmp_path / more).unlink(missing_ok=True)
    (tmp_path / "answers.sqlite").write_text("something else entirely, and long enough to be no database" * 40)
    with pytest.raises(RunError, match=r"answers\.sqlite"):
        Answers(tmp_path)


def test_local_members_answer_too(tmp_path: Path) -> None:
    members = Members((Member("tiny", local="sandbox/micro-0", max_tokens=8),))
    done, out = asked(members, tmp_path)
    assert done["tiny"]["answers"] == 12
    assert all(isinstance(json.loads(line)["answers"]["tiny"], str) for line in out.read_text().splitlines())
