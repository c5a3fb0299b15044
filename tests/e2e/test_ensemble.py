"""The ensemble as its users have it: pick, answer, serve, and a member that dies."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from ensemble.servers import MemberServer

Start = Callable[[], MemberServer]
HOLDFAST = [sys.executable, "-m", "holdfast.cli.main"]


def holdfast(place: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run([*HOLDFAST, *words], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def table(path: Path, names: tuple[str, ...], skills: tuple[float, ...], n: int = 240) -> None:
    generator = np.random.default_rng(5)
    lines = [",".join(("item", "gold", *names))]
    for item in range(n):
        gold = int(generator.integers(4))
        given = [gold if generator.random() < skill else int(generator.integers(4)) for skill in skills]
        lines.append(",".join([str(item), "ABCD"[gold], *("ABCD"[code] for code in given)]))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def picked(tmp_path: Path) -> tuple[Path, str]:
    table(tmp_path / "answers.csv", ("good", "voted", "wrong"), (0.9, 0.6, 0.0), 400)
    out = holdfast(tmp_path, "ensemble", "fit", "answers.csv", "--method", "log-odds-vote", "--json", "--quiet")
    return tmp_path, json.loads(out)["run"]


def test_pick_shows_a_table_and_makes_a_page(tmp_path: Path) -> None:
    table(tmp_path / "answers.csv", ("a", "b", "c", "d"), (0.6, 0.6, 0.55, 0.0))
    first = holdfast(tmp_path, "ensemble", "pick", "answers.csv", "--charts", "figures")
    for told in (
        "best single: ",
        "plurality of all",
        "any model right (oracle)",
        "over the best single",
        "report: runs/ensemble-",
    ):
        assert told in first
    (run,) = (tmp_path / "runs").glob("ensemble-*")
    assert (run / "SEALED").exists()
    assert "Which of my models, and is it worth it?" in (run / "report.html").read_text()
    assert len(list((tmp_path / "figures").glob("*.pdf"))) == 4
    again = holdfast(tmp_path, "ensemble", "pick", "answers.csv")
    assert again.split("\n\n")[:3] == first.split("\n\n")[:3], "the same numbers, from the run"
    (run / "metrics.json").unlink()
    assert holdfast(tmp_path, "ensemble", "pick", "answers.csv").split("\n\n")[:3] == first.split("\n\n")[:3]


def test_answer_combines_new_items_and_leaves_missing_members_out(picked: tuple[Path, str]) -> None:
    place, run = picked
    (place / "new.csv").write_text("item,good,voted,wrong\nx,A,B,B\ny,,C,D\nz,,,\n")
    rows = json.loads(holdfast(place, "ensemble", "answer", run, "new.csv", "--json"))["answers"]
    assert [row["answer"] for row in rows] == ["A", "C", None]
    assert rows[0]["probability"] > 0.4
    assert rows[2]["probability"] is None
    (place / "one.csv").write_text("item,good\nx,D\n")
    assert json.loads(holdfast(place, "ensemble", "answer", run, "one.csv", "--json"))["answers"][0]["answer"] == "D"
    (place / "other.csv").write_text("item,stranger\nx,D\n")
    assert "no member has answers" in holdfast(place, "ensemble", "answer", run, "other.csv", code=3)


def members_file(place: Path, **servers: MemberServer) -> Path:
    parts = [
        f'[[member]]\nname = "{name}"\nurl = "{server.url}/v1"\nmodel = "{name}"\nretries = 0\ntimeout = 5\nprice_out = 1.0\n'
        for name, server in servers.items()
    ]
    path = place / "members.toml"
    path.write_text("\n".join(parts))
    return path


def serving(place: Path, run: str, **env: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [*HOLDFAST, "ensemble", "serve", run, "members.toml", "--port", "0", "--json", "--quiet"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True, env=os.environ | env)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(timeout=20)
    assert process.stdout is not None
    process.stdout.close()


def test_a_stock_client_gets_answers_while_a_member_is_killed(picked: tuple[Path, str], start_server: Start) -> None:
    place, run = picked
    first, second = start_server(), start_server()
    members_file(place, good=first, voted=second, wrong=second)
    process, said = serving(place, run)
    try:
        client = openai.OpenAI(base_url=said["url"], api_key="none", max_retries=0)
        assert [one.id for one in client.models.list()] == [said["model"]]
        answers = []
        for turn in range(8):
            if turn == 4:
                first.stop()  # the strongest member dies between two requests
            question = f"item {turn} = {'ABCD'[turn % 4]}"
            made = client.chat.completions.create(model=said["model"], messages=[{"role": "user", "content": question}])
            answers.append(made.choices[0].message.content)
            behind = made.model_dump()["holdfast"]
            assert made.usage is not None
            assert behind["dollars"] == pytest.approx(1e-5 * (3 if turn < 4 else 2))
            assert (behind["members"]["good"]["error"] is None) == (turn < 4)
            assert 0 < behind["probability"] <= 1
        assert answers[:4] == ["A", "B", "C", "D"]
        assert len(answers) == 8
        with client.chat.completions.create(
            model=said["model"], messages=[{"role": "user", "content": "item 1 = B"}], stream=True
        ) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "B"
        second.stop()
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=said["model"], messages=[{"role": "user", "content": "x = A"}])
        assert caught.value.status_code == 503
        assert "no member answered" in str(caught.value)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="another", messages=[{"role": "user", "content": "x = A"}])
        line = http.client.HTTPConnection(said["url"].split("/")[2])
        line.request("POST", "/v1/chat/completions", headers={"Content-Length": "9000000"})
        assert line.getresponse().status == 413, "before the body is read"
        line.close()
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=said["model"], messages=[])
    finally:
        stop(process)


def test_a_member_that_dies_while_it_is_asked(picked: tuple[Path, str], start_server: Start) -> None:
    place, run = picked
    first, second = start_server(), start_server()
    members_file(place, good=first, voted=second, wrong=second)
    text = (place / "members.toml").read_text().replace('model = "good"', 'model = "slow"')
    (place / "members.toml").write_text(text)
    process, said = serving(place, run)
    try:
        client = openai.OpenAI(base_url=said["url"], api_key="none", max_retries=0)
        with ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(
                    client.chat.completions.create,
                    model=said["model"],
                    messages=[{"role": "user", "content": f"item {k} = {'ABCD'[k]}"}],
                )
                for k in range(4)
            ]
            while first.asked()["count"] < 4:
                time.sleep(0.05)
            first.stop()  # four answers are under way
            made = [one.result() for one in asked]
        assert all(one.choices[0].message.content for one in made)
        behind = [one.model_dump()["holdfast"]["members"]["good"] for one in made]
        assert all(one["error"] for one in behind), behind
    finally:
        stop(process)


def test_slow_members_are_not_waited_for_and_the_key_is_asked_for(
    picked: tuple[Path, str], start_server: Start
) -> None:
    place, run = picked
    server = start_server()
    members_file(place, good=server, voted=server, wrong=server)
    text = (place / "members.toml").read_text().replace('model = "voted"', 'model = "slow"')
    (place / "members.toml").write_text(text.replace("timeout = 5", "timeout = 0.5"))
    process, said = serving(place, run, HOLDFAST_API_KEY="sesame")
    try:
        locked = openai.OpenAI(base_url=said["url"], api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            locked.models.list()
        client = openai.OpenAI(base_url=said["url"], api_key="sesame", max_retries=0)
        began = time.monotonic()
        made = client.chat.completions.create(model=said["model"], messages=[{"role": "user", "content": "item = C"}])
        assert time.monotonic() - began < 2.5
        assert made.choices[0].message.content == "C"
        assert "gave no answer" in made.model_dump()["holdfast"]["members"]["voted"]["error"]
    finally:
        stop(process)
    everywhere = "0.0.0.0"  # noqa: S104
    said_no = holdfast(place, "ensemble", "serve", run, "members.toml", "--host", everywhere, code=2)
    assert "HOLDFAST_API_KEY is not set" in said_no


def test_an_ensemble_is_asked_and_judged_like_any_model(picked: tuple[Path, str], start_server: Start) -> None:
    place, run = picked
    server = start_server()
    members_file(place, good=server, voted=server, wrong=server)
    rows = [{"instruction": f"item {k} = {'ABCD'[k % 4]}", "output": "ABCD"[k % 4]} for k in range(6)]
    (place / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("ask", "--model", run, "--items", "items.jsonl", "--group", "task", "--members", "members.toml")
    made = json.loads(holdfast(place, *words, "--json", "--quiet"))
    judged = json.loads(holdfast(place, "judge", made["run"], "--judge", "task:exact", "--json", "--quiet"))
    assert judged["metrics"][0]["value"] == 100.0
    count = server.asked()["count"]
    holdfast(place, *words, "--json", "--quiet")
    assert server.asked()["count"] == count
    assert "--members" in holdfast(place, *words[:-2], code=2)


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("item,gold,a,b\n1,A,A,B\n1,B,A,B\n", (), "item '1' stands there 2 times"),
        ("item,gold,a,b\n1,A,A,B\n2,B,A,B\n", (), "at least 20 are needed"),
        ("item,a,b\n1,A,B\n", (), "no item has a right answer"),
        ("id,gold\n1,A\n", (), "no model"),
        ("key,gold,a\n1,A,B\n", (), "no column 'item'"),
        ("item,gold,a\n1,A,B\n", ("--models", "a,c"), "no column 'c'"),
        ("item,gold,a\n1,A,B\n", ("--method", "pluralty"), "did you mean 'plurality'"),
        ("item,gold,a\n1,A,B\n", ("--size", "3"), "there are 1 models"),
        ("item,gold,a\n1,A,B\n", ("--columns.glod", "x"), "did you mean 'gold'"),
        ("item,gold,a\n1,A,B\n", ("--cost.b", "1"), "no model 'b'"),
    ],
)
def test_wrong_input_says_what_to_type(tmp_path: Path, text: str, words: tuple[str, ...], told: str) -> None:
    (tmp_path / "answers.csv").write_text(text)
    said = subprocess.run(
        [*HOLDFAST, "ensemble", "pick", "answers.csv", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode in (2, 3), said.stdout
    assert told in said.stderr
    assert "hint:" in said.stderr
