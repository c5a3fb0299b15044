from __future__ import annotations

import sys
from pathlib import Path

import pytest

from holdfast.core.errors import UsageError
from holdfast.core.methods import Entry, Table

OWN = {"path": Entry("pathlib:Path", "ours"), "broken": Entry("pathlib:Nothing", "a slip of ours")}


def table(group: str = "holdfast.nothing") -> Table:
    return Table("method", group, OWN)


def installed(folder: Path, entry_points: str, **modules: str) -> None:
    """A third party's package as an installer leaves it: modules and a .dist-info folder."""
    info = folder / "acme_defences-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-defences\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def test_names_keep_their_order_and_load_nothing() -> None:
    made = table()
    assert list(made) == ["path", "broken"]
    assert "path" in made
    assert "other" not in made
    assert [entry.summary for _, entry in made.items()] == ["ours", "a slip of ours"]
    assert made.load("path") is Path


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        table().load("pth", "recipe.toml")
    assert caught.value.message == "recipe.toml: unknown method 'pth'"
    assert caught.value.hint == "did you mean 'path'? valid: broken, path"


def test_a_slip_of_ours_is_a_bug_and_shows_itself() -> None:
    with pytest.raises(AttributeError):
        table().load("broken")


def test_a_third_party_adds_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "[holdfast.t1]\nwall = acme_wall:Wall\n", acme_wall="class Wall:\n    brick = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = table("holdfast.t1")
    assert list(made) == ["path", "broken", "wall"]
    assert dict(made.items())["wall"].summary == "from acme-defences"
    assert "acme_wall" not in sys.modules, "a table must not import what nobody asked for"
    assert made.load("wall").brick == 1


def test_a_third_party_cannot_take_a_name_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "[holdfast.t2]\npath = acme_other:Path\n", acme_other="class Path: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert table("holdfast.t2").load("path") is Path


@pytest.mark.parametrize("target", ["acme_absent:Wall", "acme_here:Absent"])
def test_a_broken_third_party_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    installed(tmp_path, f"[holdfast.t3]\nwall = {target}\n", acme_here="x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=f"'wall' cannot be loaded from '{target}'") as caught:
        table("holdfast.t3").load("wall")
    assert "reinstall" in caught.value.hint
