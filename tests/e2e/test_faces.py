"""The commands learn, protect and reveal as a user types them, on drawn people."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faces import toy
from holdfast.cli.faces import PRESETS
from holdfast.cli.main import run
from holdfast.data import drawn
from holdfast.faces.mask import load_key, save_key
from holdfast.faces.people import faces_in
from holdfast.faces.protect import Owner

ME, FRIEND = 3, 4
TEAM = ("--recognisers", "drawn-mobile,drawn-residual")
QUICK = ("--masks", "2", "--steps", "22", "--batch", "4", "--step", "2", "--last-step", "0.5", "--scales", "112",
         "--scales", "28", "--admix", "0", "--coarse", "0", "--apart", "0", "--cancel", "0", "--pull", "0", "--colour",
         "1", "--device", "cpu", "--preset", "strong")  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _few_others() -> Iterator[None]:
    """Sixty strangers are drawn each time a mask is learned: four will do here. Faces are found once."""
    with toy.remembering(), pytest.MonkeyPatch.context() as patched:
        patched.setattr("holdfast.faces.learn._DRAWN_PEOPLE", 4)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of one person, of a group, of a friend; and the key that was learned from the first."""
    folder = tmp_path_factory.mktemp("place")
    for seed in range(5):
        toy.save(toy.photo(ME, seed), folder / "mine" / f"{seed}.png")
    toy.save(toy.photo(ME, 20), folder / "new" / "me.jpg", quality=95)
    toy.save(drawn.group([drawn.person(FRIEND), drawn.person(ME)], 2).pixels, folder / "new" / "sub" / "two.png")
    toy.save(toy.photo(FRIEND, 1), folder / "new" / "friend.png")
    runs = ("--runs", str(folder / "runs"), "--quiet")
    assert run(["faces", "learn", str(folder / "mine"), *TEAM, *QUICK, *runs, "--out", str(folder / "me.p3")]) == 0
    return folder


def command(place: Path, *words: str) -> list[str]:
    return ["faces", *words, "--runs", str(place / "runs")]


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def likeness(place: Path, photo: Path) -> float:
    owner = Owner.of(load_key(place / "me.p3"))
    return max(float(owner.likeness(one.crop[None])[0]) for one in faces_in(toy.read(photo).astype(np.uint8)))


# -- learning ------------------------------------------------------------------------------------------


def test_learning_gives_a_private_key_within_its_preset(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = load_key(place / "me.p3")
    assert stat.S_IMODE((place / "me.p3").stat().st_mode) == 0o600
    assert len(key) == 2
    least, budget = PRESETS["strong"]
    assert key.budget == budget
    assert key.card["knobs"]["ssim"] == least
    assert 2 <= float(key.masks.abs().max()) <= budget
    assert key.card["seen"]["ssim"] >= least - 0.003
    # Again, it is found; what is printed names the key and the next command.
    again = command(place, "learn", str(place / "mine"), *TEAM, *QUICK)
    assert run(again) == 0
    text = capsys.readouterr().out
    assert "2 masks from 5 photos" in text
    assert "Keep the key private" in text
    assert "holdfast faces protect" in text.splitlines()[-1]
    assert run([*again, "--json"]) == 0
    told = result(capsys)
    assert Path(told["key"]).read_bytes() == (place / "me.p3").read_bytes()
    assert told["masks"] == 2
    assert told["photos"] == 5


def test_the_default_method_can_be_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(place, "learn", "chameleon", str(place / "mine"), *TEAM, *QUICK, "--json", "--quiet")) == 0
    assert Path(result(capsys)["key"]).read_bytes() == (place / "me.p3").read_bytes()


def test_presets_give_way_to_what_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, wanted in (
        (("--preset", "subtle"), PRESETS["subtle"]),
        (("--preset", "strong", "--budget", "10"), (PRESETS["strong"][0], 10.0)),
        (("--preset", "strong", "--ssim", "0.98"), (0.98, PRESETS["strong"][1])),
        ((), PRESETS["balanced"]),
    ):
        words = ("learn", "noise", str(place / "mine"), "--recognisers", "drawn-mobile", *flags, "--json", "--quiet")
        assert run(command(tmp_path, *words)) == 0
        knobs = load_key(Path(result(capsys)["key"])).card["knobs"]
        assert (knobs["ssim"], knobs["budget"]) == wanted
    assert PRESETS == {"subtle": (0.97, 8.0), "balanced": (0.94, 16.0), "strong": (0.90, 24.0)}


# -- protecting and revealing --------------------------------------------------------------------------


def test_protected_and_revealed_from_end_to_end(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    before = {path: path.read_bytes() for path in (place / "new").rglob("*") if path.is_file()}
    words = ("protect", str(place / "me.p3"), str(place / "new"), "--out", str(out), "--json", "--quiet")
    assert run(command(place, *words)) == 0
    told = result(capsys)
    assert (told["protected"], told["untouched"]) == (2, 1)
    rows = {Path(row["source"]).name: row for row in told["photos"]}
    assert (rows["me.jpg"]["faces"], rows["me.jpg"]["changed"]) == (1, 1)
    assert (rows["two.png"]["faces"], rows["two.png"]["changed"]) == (2, 1)
    assert rows["friend.png"]["status"] == "untouched"
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == ["friend.png", "me.jpg", "sub/two.png"]
    assert likeness(place, place / "new" / "me.jpg") > 0 > likeness(place, out / "me.jpg")
    assert np.array_equal(toy.read(out / "friend.png"), toy.read(place / "new" / "friend.png"))

    assert run(command(place, "reveal", str(place / "me.p3"), str(out), "--out", str(back), "--json", "--quiet")) == 0
    told = result(capsys)
    assert (told["revealed"], told["untouched"]) == (2, 1)
    assert likeness(place, back / "me.jpg") > 0
    assert likeness(place, back / "sub" / "two.png") > 0

    twice = ("protect", str(place / "me.p3"), str(out / "me.jpg"), "--out", str(tmp_path / "twice"))
    assert run(command(place, *twice)) == 0
    assert "already" in capsys.readouterr().out


def test_a_runs_key_serves_by_the_runs_name(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = (place / "runs").glob("chameleon-*")
    for number, name in enumerate((folder.name, folder.name.rpartition("-")[2], str(folder))):
        out = tmp_path / str(number)
        words = ("protect", name, str(place / "new" / "me.jpg"), "--out", str(out), "--quiet")
        assert run(command(place, *words)) == 0
        assert "1 protected" in capsys.readouterr().out
        assert (out / "me.jpg").read_bytes() == (tmp_path / "0" / "me.jpg").read_bytes()


def test_a_key_that_others_can_read_is_warned_of(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "open.p3"
    shutil.copy(place / "me.p3", key)
    key.chmod(0o644)
    assert (
        run(command(place, "protect", str(key), str(place / "new" / "friend.png"), "--out", str(tmp_path / "a"))) == 0
    )
    assert f"chmod 600 {key}" in capsys.readouterr().err
    key.chmod(0o600)
    assert (
        run(command(place, "protect", str(key), str(place / "new" / "friend.png"), "--out", str(tmp_path / "b"))) == 0
    )
    assert "chmod" not in capsys.readouterr().err


def test_settings_reach_the_photos(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = str(place / "new" / "sub" / "two.png")
    words = ("protect", str(place / "me.p3"), photo, "--every-face", "--min-ssim", "0.97", "--json", "--quiet")
    assert run(command(place, *words, "--out", str(tmp_path / "a"))) == 0
    (row,) = result(capsys)["photos"]
    assert row["changed"] == 2
    assert row["ssim"] >= 0.97
    assert "weakened" in row["message"]
    assert run(command(place, *words, "--out", str(tmp_path / "a"))) == 1  # it is there already
    assert result(capsys)["failed"] == 1
    assert run(command(place, *words, "--out", str(tmp_path / "a"), "--overwrite")) == 0


# -- errors and their exit codes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("learn", "{few}"), 3, "2 photos; 3 are the least"),
        (("learn", "{mixed}"), 3, "of 3 photos show one and the same person, and 3 are the least"),
        (("learn", "{empty}"), 3, "no photos in"),
        (("learn", "{none}"), 3, "no photo or folder"),
        (("learn",), 3, "no photos in nothing"),
        (("learn", "{mine}", "--recognisers", "{onnx}"), 4, "cannot learn from an ONNX file"),
        (("learn", "{mine}", "--recognisers", "drawn-mobil"), 4, "did you mean 'drawn-mobile'"),
        (("learn", "fawkes", "{mine}"), 2, "learns no mask"),
        (("learn", "lowkey", "{mine}"), 2, "learns no mask"),
        (("learn", "noise", "{mine}", "--budget", "65"), 2, "outside [0, 64]"),
        (("learn", "noise", "{mine}", "--out", "{key}"), 2, "is there already"),
        (("learn", "noise", "{mine}", "--out", "{empty}/me.key"), 2, "ends in .p3"),
        (("learn", "noise", "{mine}", "--out", "{none}/me.p3"), 2, "no folder"),
        (("learn", "noise", "{mine}", "--others", "{none}"), 3, "no photo or folder"),
        (("protect", "{key}", "--out", "{out}"), 3, "no photos were named"),
        (("protect", "{key}", "{none}", "--out", "{out}"), 3, "no file or folder"),
        (("protect", "{key}", "{empty}", "--out", "{out}"), 3, "no pictures among"),
        (("protect", "{none}.p3", "{mine}", "--out", "{out}"), 3, "no key"),
        (("protect", "{damaged}", "{mine}", "--out", "{out}"), 3, "is no key, or is damaged"),
        (("protect", "nobody", "{mine}", "--out", "{out}"), 6, "no run 'nobody'"),
        (("protect", "{key}", "{mine}", "--out", "{mine}"), 2, "is the folder of the photos"),
        (("protect", "{key}", "{mine}"), 2, "--out"),
        (("reveal", "{orphan}", "{mine}", "--out", "{out}"), 4, "recognisers of this key"),
    ],
)
def test_mistakes_are_told_with_their_exit_code(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, message: str
) -> None:
    for name in ("few", "mixed", "empty"):
        (tmp_path / name).mkdir()
    for seed in range(2):
        shutil.copy(place / "mine" / f"{seed}.png", tmp_path / "few")
        shutil.copy(place / "mine" / f"{seed}.png", tmp_path / "mixed")
    shutil.copy(place / "new" / "friend.png", tmp_path / "mixed")
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "damaged.p3").write_bytes((place / "me.p3").read_bytes()[:-9])
    key = load_key(place / "me.p3")
    orphan = type(key)(key.masks, {"gone": key.person["drawn-mobile"]}, {"budget": 24})
    save_key(orphan, tmp_path / "orphan.p3")
    names = {
        "few": tmp_path / "few", "mixed": tmp_path / "mixed", "empty": tmp_path / "empty", "none": tmp_path / "none",
        "mine": place / "mine", "onnx": tmp_path / "m.onnx", "key": place / "me.p3", "damaged": tmp_path / "damaged.p3",
        "orphan": tmp_path / "orphan.p3", "out": tmp_path / "out",
    }  # fmt: skip
    given = [word.format(**names) for word in words]
    if "learn" in words and "--recognisers" not in words:
        given += ["--recognisers", "drawn-mobile"]
    assert run(["faces", *given, "--runs", str(tmp_path / "runs")]) == code
    told = capsys.readouterr()
    assert message in told.err + told.out
    assert "Traceback" not in told.err
    assert not list(tmp_path.glob("runs/*/artifacts/key.p3"))
    assert not list((tmp_path / "out").glob("*.*"))


def test_photos_that_cannot_be_read_are_left_out_and_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(place / "mine", folder)
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes()[:300])
    (folder / "8.jpg").mkdir()
    words = ("learn", "noise", str(folder), "--recognisers", "drawn-mobile")
    assert run(command(tmp_path, *words)) == 0
    told = capsys.readouterr()
    assert "9.png" in told.err
    assert "from 5 photos" in told.out
    key = next((tmp_path / "runs").glob("noise-*")).name
    assert run(command(tmp_path, "protect", key, str(folder), "--out", str(tmp_path / "out"), "--quiet")) == 1
    out = capsys.readouterr().out
    assert "1 failed" in out
    assert "9.png: failed" in out
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_a_folder_that_cannot_be_read_or_written_is_no_bug(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever runs this may be root, who can read everything: the operating system's answer is put on instead."""
    locked = tmp_path / "locked"
    shutil.copytree(place / "mine", locked)
    original = os.scandir

    def refused(path: Any = ".") -> Any:
        if Path(str(path)).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "scandir", refused)
        assert run(command(tmp_path, "learn", "noise", str(locked), "--recognisers", "drawn-mobile")) in (3, 6)
    told = capsys.readouterr().err
    assert "locked" in told
    assert "Traceback" not in told
    (tmp_path / "file").write_text("")
    words = ("protect", str(place / "me.p3"), str(place / "new" / "me.jpg"), "--out", str(tmp_path / "file"))
    assert run(command(place, *words)) == 2
    assert "is a file" in capsys.readouterr().err


def test_likeness_out_of_its_range_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """97 instead of 0.97 would take the mask off every photo and call it protected."""
    for value in ("97", "-0.1", "nan"):
        words = ("protect", str(place / "me.p3"), str(place / "new" / "me.jpg"), "--min-ssim", value)
        assert run(command(place, *words, "--out", str(tmp_path / "out"))) == 2
        assert "0 to 1" in capsys.readouterr().err
    for value in ("0", "101"):
        words = ("protect", str(place / "me.p3"), str(place / "new" / "me.jpg"), "--quality", value)
        code = run(command(place, *words, "--out", str(tmp_path / "out")))
        told = capsys.readouterr()
        assert code in (1, 2)
        assert "quality" in told.err + told.out
    assert not list(tmp_path.glob("out/*"))
