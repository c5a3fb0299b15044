"""Every command as people type it: results on standard output, progress on standard error, exit codes, no trace."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from experiments import BOOSTER, MODEL, NAN, command, holdfast, made_files, recipe_file, surroundings
from holdfast.cli.main import COMMANDS, run
from holdfast.core.files import free_bytes
from holdfast.core.runs import Store, open_run
from holdfast.models.load import resolve

SAFETY = ("--safety", "sandbox/align-0")
SHORT = (
    "--steps",
    "4",
    "--batch-size",
    "4",
    "--max-length",
    "64",
    "--learning-rate",
    "1e-3",
    "--adapter.train",
    "body",
)
CPU = ("--device", "cpu")
ALIGN = ("align", "sft", "--model", MODEL, *SAFETY, *SHORT, *CPU)
TUNE = ("finetune", "sft", "--model", MODEL, "--user", "sandbox/review-0")
ONE = ("align", "sft", "--model", MODEL, *SAFETY, *CPU)


class Said:
    """What a command printed in this process, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def say(here: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def typed(*words: str | Path) -> Said:
        capsys.readouterr()
        code = run([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err, captured.err
        assert "bug in Holdfast" not in captured.err
        return Said(code, captured.out, captured.err)

    return typed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished small bench, its recipe beside it."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = recipe_file(folder, p="[0.1]")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert run(["bench", str(recipe), "--workers", "1", *CPU, "--runs", str(folder / "runs")]) == 0
    return folder


def mistaken(said: Said, code: int, *parts: str) -> None:
    """A user's mistake: its exit code, one line of what is wrong, a hint; nothing on standard output."""
    assert said.code == code, (said.code, said.out, said.err)
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert any(line.startswith("error: ") for line in lines), said.err
    assert lines[-1].startswith("  hint: "), said.err
    for part in parts:
        assert part in said.err, said.err


# --- the way through ---------------------------------------------------------------------------------


def test_from_a_model_to_its_rates(say: Any, here: Path) -> None:
    first = say(*ALIGN)
    assert first.code == 0, first.err
    folder = last_run(first)
    assert first.out.splitlines()[-1] == f"run: {folder}   next: holdfast finetune sft --model {folder} --user FILE"
    assert "4 steps, last loss" in first.out
    second = say(
        "finetune", "lisa", "--model", folder, "--user", "sandbox/review-0", "--poison", "sandbox/attack-0",
        "--p", "0.1", "--n", "40", *SAFETY, *SHORT, *CPU, "--align-steps", "2", "--user-steps", "2",
    )  # fmt: skip
    assert second.code == 0, second.err
    third = say("repair", "antidote", "--model", last_run(second), "--harmful", "sandbox/harmful-0",
                "--samples", "20", "--target", "delta", *CPU)  # fmt: skip
    assert third.code == 0, third.err
    fourth = say("ask", "--model", last_run(third), "--items", "sandbox/hazards-test-0", "--limit", "12",
                 "--max-new-tokens", "8", *CPU)  # fmt: skip
    assert fourth.code == 0, fourth.err
    assert "12 answers" in fourth.out
    assert "[hidden:" in fourth.out, "answers to harmful prompts are not printed unasked"
    asked = last_run(fourth)
    assert fourth.out.splitlines()[-1] == f"run: {asked}   next: holdfast judge {asked} --judge not-refused"
    judged = say("judge", asked, "--judge", "sandbox", "-j", "refusal")
    assert judged.code == 0, judged.err
    assert "Harmful score" in judged.out
    assert "n = 12   judge: sandbox" in judged.out
    shown = say("show", asked)
    assert ": ask, done," in shown.out
    assert "judge: sandbox" in shown.out
    listed = say("runs", "list")
    assert [line.split()[1] for line in listed.out.splitlines()[1:-1]] == ["ask", "repair", "finetune", "align"]
    assert all("done" in line for line in listed.out.splitlines()[1:-1])
    again = say(*ALIGN)
    assert again.code == 0
    assert "already there" in again.err


def last_run(said: Said) -> str:
    return said.out.splitlines()[-1].split()[1]


def test_with_json_one_document_comes_out_and_lines_of_json_beside_it(here: Path) -> None:
    done = holdfast(*ALIGN, "--json", cwd=here, PYTHONWARNINGS="error::UserWarning")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (result["kind"], result["steps"]) == ("align", 4)
    assert (here / result["run"] / "SEALED").is_file()
    assert result["next"].startswith("holdfast finetune sft --model ")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events][:2] == ["started", "started"]
    assert events[-1]["event"] == "finished"
    assert [event["done"] for event in events if event["event"] == "progress"] == [1, 2, 3, 4]


@pytest.mark.parametrize("words", [("list",), ("runs", "list"), ("doctor",), ("list", "methods")], ids=" ".join)
def test_every_listing_has_json(say: Any, words: tuple[str, ...]) -> None:
    assert json.loads(say(*words, "--json").out)


def test_list_says_what_there_is(say: Any) -> None:
    found = json.loads(say("list", "--json").out)
    names = {(row["stage"], row["name"]) for row in found["methods"]}
    assert {("align", "booster"), ("finetune", "lisa"), ("repair", "antidote")} <= names
    booster = next(row for row in found["methods"] if row["name"] == "booster")
    assert booster["needs"] == ["safety", "harmful"]
    assert booster["knobs"]["alpha"]["type"] == "float"
    assert {row["name"] for row in found["judges"]} >= {"sandbox", "refusal", "classifier"}
    assert {row["name"] for row in found["models"]} >= {"sandbox/micro-0", "sandbox/nano-0"}
    assert "sandbox" in {row["name"] for row in found["recipes"]}
    plain = say("list", "methods").out
    assert "align booster" in plain


def test_quiet_is_quiet(say: Any) -> None:
    said = say(*ALIGN, "--quiet")
    assert (said.code, said.err) == (0, "")
    assert said.out.count("\n") == 2


def test_progress_in_a_pipe_is_plain_lines(say: Any) -> None:
    said = say(*ALIGN)
    lines = said.err.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["1/4", "2/4", "3/4", "4/4"]
    assert lines[-1].startswith("align     sft-")
    assert "\x1b" not in said.err + said.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(say: Any, name: str) -> None:
    said = say(name, "--help")
    assert said.code == 0
    assert COMMANDS[name][1].split(":")[0].split(",")[0].split(".")[0].split()[0] in said.out


def test_help_of_a_method_has_its_knobs(say: Any) -> None:
    said = say("align", "booster", "--help")
    assert "--alpha" in said.out
    assert "--checkpoint-every" in said.out
    assert "--runs" in said.out


def test_the_version(say: Any) -> None:
    from holdfast import __version__

    assert say("--version").out.strip() == __version__


# --- bench, report, show -----------------------------------------------------------------------------


def test_a_dry_run_makes_nothing(say: Any, here: Path) -> None:
    recipe_file(here)
    said = say("bench", "small.toml", "--dry-run", *CPU)
    assert said.code == 0, said.err
    assert "to do: 2 align, 4 finetune, 6 ask (0 already there, 4 shared)" in said.out
    assert said.out.splitlines()[-1] == "next: holdfast bench small.toml"
    assert not (here / "runs").exists()


def test_a_bench_prints_its_table_and_names_its_page(say: Any, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    said = say("bench", "small.toml", "--workers", "1", *CPU)
    assert said.code == 0
    assert "Booster" in said.out
    page = Path(next(line for line in said.out.splitlines() if line.startswith("report: ")).removeprefix("report: "))
    assert "<html" in page.read_text("utf-8")
    assert said.out.splitlines()[-1].startswith("run: runs/bench-")
    # SFT and Booster at one p: 2 align, 2 finetune, 4 sets of answers are 8 stages.
    assert "[8/8] done" in said.err


def test_a_bench_in_json_is_its_result(say: Any, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.report.schema import check

    monkeypatch.chdir(finished)
    said = say("bench", "small.toml", "--workers", "1", "--json", *CPU)
    check(json.loads(said.out))
    assert all(json.loads(line)["event"] for line in said.err.splitlines())


def test_a_report_is_written_again(say: Any, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    (bench,) = (finished / "runs").glob("bench-*")
    said = say("report", bench.name, "--out", "page.html", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["report"] == "page.html"
    assert "A small experiment" in (finished / "page.html").read_text("utf-8")
    assert f"{bench.name}: bench, done" in say("show", "bench").out
    mistaken(say("report", next((finished / "runs").glob("booster-*")).name), 6, "reports are made of benches")


def test_a_bench_with_a_failing_cell_ends_with_code_1(say: Any, here: Path) -> None:
    recipe_file(here, NAN, p="[0.1]")
    said = say("bench", "small.toml", "--workers", "1", *CPU)
    assert said.code == 1
    assert "not finite" in said.out
    assert list((here / "runs").glob("bench-*/report.html"))


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["algn"], "align"), (["align", "boster"], "booster"), (["rns"], "runs"), (["finetune", "lsia"], "lisa")],
)
def test_a_mistyped_command_names_the_nearest(say: Any, words: list[str], meant: str) -> None:
    said = say(*words)
    assert said.code == 2
    assert meant in said.err + said.out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--stps", "3"], "--steps"),
        (["--steps", "three"], "three"),
        (["--schedule", "linar"], "linear"),
        (["--adapter.rnk", "3"], "rank"),
        (["--steps"], "--steps"),
    ],
)
def test_a_mistyped_flag_is_code_2(say: Any, words: list[str], part: str) -> None:
    said = say(*ONE, *words)
    assert said.code == 2
    assert part in said.err


def test_a_missing_flag_is_code_2(say: Any) -> None:
    said = say("align", "sft", "--model", MODEL)
    assert said.code == 2
    assert "--safety" in said.err


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["align", "sft", "--model", MODEL, "--safety", "absent.jsonl"], 3, ["absent.jsonl"]),
        (["align", "sft", "--model", MODEL, "--safety", "sandbox/algn-0"], 3, ["did you mean"]),
        (["align", "sft", "--model", "sandbox/micr-0", *SAFETY], 4, ["did you mean 'micro-0'?"]),
        (["align", "sft", "--model", "./absent", *SAFETY], 4, ["no model folder"]),
        (["align", "booster", "--model", MODEL, *SAFETY], 2, ["booster needs harmful data", "--harmful FILE"]),
        ([*ONE, "--epochs", "1", "--steps", "2"], 2, ["both epochs = 1 and steps"]),
        (["align", "sft", "--model", MODEL, *SAFETY, "--learning-rate", "-1"], 2, ["learning_rate = -1 is outside"]),
        (["align", "sft", "--model", MODEL, *SAFETY, "--learning-rate", "nan"], 2, ["not a finite number"]),
        (["align", "sft", "--model", MODEL, *SAFETY, "--template", "no field"], 2, ["{prompt}"]),
        (["align", "sft", "--model", MODEL, *SAFETY, "--device", "cuda:9"], 2, ["device 'cuda:9' is not there"]),
        (["align", "sft", "--model", MODEL, *SAFETY, "--seed", "-1"], 2, ["seed = -1 is outside"]),
        (["align", "sft", "--model", MODEL, *SAFETY, "--adapter.targets", "c_attn"], 2, ["no module 'c_attn'"]),
        ([*TUNE, "--p", "0.1"], 2, ["--poison FILE"]),
        ([*TUNE, "--poison", "sandbox/attack-0"], 2, ["--poison is given, and p is 0"]),
        (["align", "sft", "--model", MODEL, *SAFETY, "--harmful", "absent"], 2, ["sft does not use harmful data"]),
        (["align", "sft", "--model", MODEL, "--safety", "{ path = "], 2, ["--safety is not a TOML table", "columns"]),
        (["align", "sft", "--model", MODEL, "--safety", "{ pth = 'a' }"], 2, ["unknown key 'pth'", "did you mean 'path'?"]),
        ([*TUNE, "--p", "1.5"], 2, ["p = 1.5 is outside [0, 1]"]),
        (["finetune", "lisa", "--model", MODEL, "--user", "sandbox/review-0"], 2, ["lisa needs safety data"]),
        ([*TUNE, "--task", "sst"], 2, ["did you mean 'sst2'?"]),
        (["repair", "antidote", "--model", MODEL, "--harmful", "sandbox/harmful-0"], 4, ["not a run folder"]),
        (["ask", "--model", MODEL, "--items", "sandbox/hazards-tset-0"], 3, ["hazards-test"]),
        (["ask", "--model", MODEL, "--items", "sandbox/hazards-test-0", "--limit", "0"], 2, ["limit"]),
        (["ask", "--model", MODEL, "--items", "sandbox/hazards-test-0", "--max-new-tokens", "2000"], 3, ["context"]),
        (["judge", "absent"], 6, ["no run 'absent'"]),
        (["show", "absent"], 6, ["holdfast runs list"]),
        (["report", "absent"], 6, ["no run"]),
        (["runs", "lst"], 2, ["did you mean 'list'?"]),
        (["list", "judgs"], 2, ["did you mean 'judges'?"]),
        (["sandbox", "rebuid", "nano-0", "--out", "x"], 2, ["did you mean 'rebuild'?"]),
        (["sandbox", "rebuild", "nano-9", "--out", "x"], 4, ["nano-0"]),
        (["bench", "sandbx"], 2, ["did you mean 'sandbox'?"]),
        (["bench", "absent.toml"], 2, ["no recipe file"]),
    ],
)  # fmt: skip
def test_a_mistake_has_words_a_hint_and_its_code(say: Any, words: list[str], code: int, parts: list[str]) -> None:
    mistaken(say(*words), code, *parts)


def test_a_data_flag_takes_the_table_of_a_recipe(say: Any, here: Path) -> None:
    """The same rows under other column names, renamed on the command line, give the same run."""
    plain = [{"prompt": f"say {word}", "response": word} for word in ("yes", "no", "so")]
    other = [{"q": row["prompt"], "a": row["response"]} for row in plain]
    written(here / "plain.jsonl", *plain)
    written(here / "other.jsonl", *other)
    table = '{ path = "other.jsonl", columns = { prompt = "q", response = "a" } }'
    weights = []
    for source in ("plain.jsonl", table):
        said = say("align", "sft", "--model", MODEL, "--safety", source, *SHORT, *CPU)
        assert said.code == 0, said.err
        weights.append((here / last_run(said) / "artifacts" / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([], ["rows.jsonl is empty"]),
        ([{"question": "a"}], ["question"]),
        ([{"prompt": "a", "reply": "b"}], ["reply"]),
        ([{"prompt": "a", "response": ""}], ["row", "response"]),
        ([{"prompt": "a", "response": 3}], ["response", "not text"]),
        ([{"prompt": " ".join(["good"] * 100), "response": "b"}], ["no room for an answer"]),
    ],
    ids=["empty", "no answer", "unknown column", "blank", "a number", "all masked"],
)
def test_data_that_cannot_be_trained_on_is_code_3(say: Any, here: Path, rows: list[Any], parts: list[str]) -> None:
    path = written(here / "rows.jsonl", *rows)
    said = say("align", "sft", "--model", MODEL, "--safety", path, *SHORT, *CPU)
    mistaken(said, 3, *parts)


def test_a_file_that_is_no_json_lines(say: Any, here: Path) -> None:
    (here / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n')
    mistaken(say("align", "sft", "--model", MODEL, "--safety", "rows.jsonl", *SHORT, *CPU), 3, "rows.jsonl, line 2")


def test_a_loss_that_is_not_finite_is_code_8(say: Any) -> None:
    said = say(*ONE, "--steps", "4", "--learning-rate", "1e30", "--clip", "0", "--adapter.train", "body")
    mistaken(said, 8, "not finite", "learning_rate")


def test_a_recipe_with_an_unknown_key_is_code_2(say: Any, here: Path) -> None:
    path = recipe_file(here)
    path.write_text(path.read_text().replace("batch_size", "batchsize", 1))
    mistaken(say("bench", "small.toml", "--dry-run"), 2, "small.toml.align: unknown key 'batchsize'", "'batch_size'")


def test_p_outside_the_unit_interval_is_code_2(say: Any, here: Path) -> None:
    recipe_file(here, p="[0.0, 1.1]")
    mistaken(say("bench", "small.toml"), 2, "p = 1.1 is outside [0, 1]")


def test_a_repeated_flag_is_not_silently_merged(say: Any) -> None:
    said = say(*ALIGN, "--learning-rate", "1e-4")
    assert said.code == 2


def model_copy(here: Path) -> Path:
    shutil.copytree(resolve(MODEL).folder, here / "model")
    return here / "model"


def test_a_model_without_a_chat_template_is_code_4(say: Any, here: Path) -> None:
    folder = model_copy(here)
    for path in folder.glob("*.jinja"):
        path.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    mistaken(say("align", "sft", "--model", folder, *SAFETY, *SHORT, *CPU), 4, "no chat template", "--template alpaca")


def test_a_damaged_model_is_code_4(say: Any, here: Path) -> None:
    folder = model_copy(here)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    mistaken(say("align", "sft", "--model", folder, *SAFETY, *SHORT, *CPU), 4)
    mistaken(say("ask", "--model", folder, "--items", "sandbox/hazards-test-0", "--limit", "3", *CPU), 4)


def test_a_bug_shows_its_trace(say: Any, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Store, "list", broken)
    assert run(["runs", "list"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "This is a bug in Holdfast" in said


def test_a_missing_extra_is_code_5(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest))
    mistaken(say(*ALIGN), 5, "'peft'", "pip install 'holdfast[finetune]'")


# --- damage, disks and interruptions -----------------------------------------------------------------


def test_half_a_run_folder_is_made_again(say: Any, here: Path) -> None:
    folder = here / last_run(say(*ALIGN))
    before = made_files(open_run(folder))
    shutil.rmtree(folder / "artifacts")
    mistaken(
        say("ask", "--model", folder, "--items", "sandbox/hazards-test-0", *CPU), 4, "is missing", "run the command"
    )
    assert "is missing" in say("show", folder).out
    again = say(*ALIGN)
    assert again.code == 0
    assert "making it again" in again.err
    assert made_files(open_run(folder)) == before


def test_a_run_folder_without_its_spec_is_made_again(say: Any, here: Path) -> None:
    folder = here / last_run(say(*ALIGN))
    before = made_files(open_run(folder))
    (folder / "spec.json").unlink()
    mistaken(say("show", folder), 6)
    assert say(*ALIGN).code == 0
    assert made_files(open_run(folder)) == before


def test_a_damaged_spec_is_code_6(say: Any, here: Path) -> None:
    folder = here / last_run(say(*ALIGN))
    (folder / "spec.json").write_text("{")
    mistaken(say(*ALIGN), 6, "spec.json is damaged", "delete")


def test_damaged_ratings_are_made_again(say: Any, here: Path) -> None:
    asked = last_run(say("ask", "--model", MODEL, "--items", "sandbox/hazards-test-0", "--limit", "6",
                         "--max-new-tokens", "4", *CPU))  # fmt: skip
    before = say("judge", asked, "--judge", "sandbox").out
    (rows,) = (here / asked / "ratings").glob("*.jsonl")
    content = rows.read_bytes()
    rows.write_bytes(content[:-5])
    mistaken(say("show", asked), 6, "changed after it was finished")
    assert say("judge", asked, "--judge", "sandbox").out == before
    assert rows.read_bytes() == content


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    """A disk of 256 KiB: a file system in memory."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("mounting a small file system needs rights that this process does not have")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def test_a_small_disk_is_said_before_training(say: Any, tiny_disk: Path) -> None:
    mistaken(say(*ALIGN, "--runs", tiny_disk / "runs"), 7, "GiB of disk")


def test_a_disk_that_fills_up_while_answers_come(say: Any, here: Path, tiny_disk: Path) -> None:
    """The same command goes on when there is room again, and the answers are those of a disk with room."""
    words = ("ask", "--model", MODEL, "--items", "sandbox/hazards-test-0", "--limit", "60", "--max-new-tokens", "4",
             "--answer-batch", "10", *CPU)  # fmt: skip
    whole = open_run(here / last_run(say(*words)))
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * free_bytes(tiny_disk))
    with ballast.open("r+b") as stream:
        stream.truncate(ballast.stat().st_size - 16 * 1024)
    mistaken(say(*words, "--runs", tiny_disk / "runs"), 7, "no space left on the disk", "the same command again")
    ballast.unlink()
    said = say(*words, "--runs", tiny_disk / "runs")
    assert said.code == 0, said.err
    assert made_files(open_run(Path(last_run(said)))) == made_files(whole)


LIMITED = """
import resource, sys
from holdfast.cli.main import run
from holdfast.finetune import making
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
sys.exit(run(sys.argv[1:]))
"""


def test_weights_that_find_no_room_are_code_7_and_nothing_is_lost(say: Any, here: Path) -> None:
    """No file may grow beyond 20,000 bytes, which the weights do: the refusal comes from the library that saves."""
    done = subprocess.run(
        [*command()[:1], "-c", LIMITED, *ALIGN],
        cwd=here,
        env=surroundings(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    again = say(*ALIGN)
    assert again.code == 0, again.err
    assert open_run(here / last_run(again)).sealed


@pytest.fixture
def not_ours() -> Iterator[Path]:
    """A folder of runs that this process may not write, also where tests run as root."""
    root = Path(tempfile.mkdtemp(prefix="holdfast-theirs-"))
    root.chmod(0o755)
    (root / "runs").mkdir()
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    else:
        (root / "runs").chmod(0o555)
    try:
        yield root / "runs"
    finally:
        if me == 0:
            os.seteuid(0)
        shutil.rmtree(root)


def test_a_folder_that_may_not_be_written_is_code_6(say: Any, not_ours: Path) -> None:
    os.chdir("/")  # the temporary folders of tests are closed to others
    mistaken(say(*ALIGN, "--runs", not_ours), 6, "cannot write", "Permission denied", "--runs DIR")
    assert say("runs", "list", "--runs", not_ours).code == 0


def test_runs_in_a_file_is_code_6(say: Any, here: Path) -> None:
    (here / "file").write_text("")
    mistaken(say(*ALIGN, "--runs", "file"), 6, "cannot write")


LONG = ("align", "sft", "--model", MODEL, *SAFETY, "--batch-size", "4", "--max-length", "64", "--learning-rate", "1e-3",
        "--adapter.train", "body", *CPU, "--steps", "150", "--json")  # fmt: skip


def until(process: subprocess.Popen[str], kind: str, count: int) -> None:
    """Read the command's events until the ``count``-th of a kind."""
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line)["event"] == kind:
            count -= 1
        if count == 0:
            return


def started(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words), cwd=cwd, env=surroundings(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_ctrl_c_in_training_keeps_the_steps_made(say: Any, here: Path) -> None:
    # Inside an update nothing is saved, and the last checkpoint counts: by the fifth step there is one.
    process = started(*LONG, "--checkpoint-every", "2", cwd=here)
    until(process, "progress", 5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped at step" in err
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    (folder,) = (here / "runs").glob("sft-*")
    assert list((folder / "checkpoint").glob("step-*"))
    again = say(*LONG)
    assert again.code == 0, again.err
    assert "going on from step" in again.err
    unbroken = json.loads(say(*LONG, "--runs", "others").out)["run"]
    assert made_files(open_run(folder)) == made_files(open_run(here / unbroken))


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_in_a_bench_with_two_processes(here: Path) -> None:
    """The signal reaches the whole process group; whoever was idle must not print a trace, and nobody may stay."""
    recipe_file(here, BOOSTER, p="[0.1]", steps=3000)
    process = started("bench", "small.toml", "--workers", "2", "--json", *CPU, cwd=here)
    until(process, "grid", 1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "the same command goes on" in err
    deadline = time.monotonic() + 20
    while alive(process.pid):
        assert time.monotonic() < deadline, "a process of the bench is still there"
        time.sleep(0.1)


def test_a_reader_that_goes_away_is_no_bug(here: Path) -> None:
    with started("list", cwd=here) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "methods\n"
        process.stdout.close()
        said = process.stderr.read()
    assert "Traceback" not in said
    assert "Exception ignored" not in said
