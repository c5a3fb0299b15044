"""The documentation runs, and has a page for everything there is.

A fenced ``bash`` or ``python`` block runs when an HTML comment stands right before it::

    <!-- runs: fast -->      in every test run
    <!-- runs: shared -->    where the data folder beside the checkout is there
    <!-- runs: slow -->      in `make docs-check`

The blocks of one page run in order in one folder, which looks like a checkout (recipes/ and, beside it,
shared/ are there), so a later block may use what an earlier one made.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
DOCS = REPO / "docs"
PAGES = sorted([*REPO.glob("*.md"), *DOCS.rglob("*.md")])
KINDS = ("fast", "shared", "slow")
BLOCK = re.compile(
    r"^<!-- runs: (?P<kind>[\w ]+) -->\n(?:[ \t]*\n)*```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
MARK = re.compile(r"<!--\s*runs:")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One runnable block of a page."""

    page: Path
    line: int
    kind: str
    language: str
    code: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(page, line, found["kind"], found["language"], found["code"])


def command(block: Block) -> list[str]:
    if block.language == "python":
        return [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", block.code]
    return ["bash", "-euo", "pipefail", "-c", block.code]


def run(block: Block, folder: Path) -> None:
    place = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
    done = subprocess.run(
        command(block), cwd=folder, env=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    where = f"{block.page.relative_to(REPO)}:{block.line}"
    assert done.returncode == 0, f"{where} ended with {done.returncode}\n{block.code}\n{done.stdout}\n{done.stderr}"


def checkout(place: Path, page: Path) -> Path:
    """A folder for one page, with what a reader's checkout has."""
    folder = place / page.relative_to(REPO).with_suffix("").as_posix().replace("/", "-") / "holdfast"
    folder.mkdir(parents=True)
    (folder / "recipes").symlink_to(REPO / "recipes")
    if (REPO.parent / "shared").is_dir():
        (folder.parent / "shared").symlink_to(REPO.parent / "shared")
    return folder


def run_blocks(kind: str, place: Path) -> None:
    """Runs the blocks of one kind on every page that has some, after that page's fast blocks."""
    for page in PAGES:
        chosen = [block for block in blocks(page) if block.kind in {"fast", kind}]
        if any(block.kind == kind for block in chosen):
            folder = checkout(place, page)
            for block in chosen:
                run(block, folder)


def test_fast_blocks_run(tmp_path: Path) -> None:
    run_blocks("fast", tmp_path)


def test_blocks_with_shared_data_run(tmp_path: Path, shared: Path) -> None:
    run_blocks("shared", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_slow_blocks_run(tmp_path: Path) -> None:
    run_blocks("slow", tmp_path)


def test_every_mark_is_understood() -> None:
    """A misspelt mark would silently run nothing."""
    for page in PAGES:
        found = list(blocks(page))
        assert len(found) == len(MARK.findall(page.read_text("utf-8"))), f"{page.name}: a mark stands before no block"
        for block in found:
            assert block.kind in KINDS, f"{page.name}:{block.line}: runs: {block.kind}"
            assert block.language in {"bash", "python"}, f"{page.name}:{block.line}: cannot run {block.language}"


def test_readme_opens_with_the_two_commands_and_runs_code() -> None:
    text = (REPO / "README.md").read_text("utf-8")
    first = re.search(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert first, "README.md has no bash block"
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in first[1].splitlines()}
    kinds = {(block.kind, block.language) for block in blocks(REPO / "README.md")}
    assert {language for _, language in kinds} == {"bash", "python"}


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for found in LINK.finditer(FENCE.sub("", page.read_text("utf-8"))):
            target = (found["target"] or found["image"]).partition("#")[0]
            outside = "://" in target or target.startswith("mailto:")
            if target and not outside and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(REPO)}: {target}")
    assert not broken, "\n".join(broken)


# --- a page for everything ---------------------------------------------------------------------------


def headings(page: Path) -> list[str]:
    assert page.exists(), f"{page.relative_to(REPO)} is missing"
    return re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)


def has_heading(page: Path, name: str) -> bool:
    """A heading with the name as a word of its own: ``## `sst2` `` or ``## holdfast align``."""
    return any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", heading) for heading in headings(page))


def methods() -> dict[str, type]:
    """Name -> class, over the tables of methods; a name that two stages share has one page."""
    from holdfast.ensemble.combine import COMBINERS, FUSERS
    from holdfast.faces.method import MASKS
    from holdfast.finetune.alignment import ALIGNMENT
    from holdfast.finetune.finetuning import FINETUNING
    from holdfast.finetune.post_finetuning import POST_FINETUNING
    from holdfast.steer.method import STEERING

    return {
        name: table.load(name)
        for table in (COMBINERS, FUSERS, POST_FINETUNING, FINETUNING, ALIGNMENT, STEERING, MASKS)
        for name in table
    }


def commands() -> list[str]:
    """Names of the console's commands, nested ones as ``runs list``; a method's own command has its own page."""
    from holdfast.cli.main import app

    tables = methods()

    def below(parent: object, before: str) -> Iterator[str]:
        for name in parent:  # type: ignore[attr-defined]
            if not name.startswith("-") and not (before and name in tables):
                yield f"{before}{name}"
                yield from below(parent[name], f"{before}{name} ")  # type: ignore[index]

    return list(below(app, ""))


def test_every_command_has_a_heading_in_the_reference() -> None:
    page = DOCS / "commands.md"
    missing = [name for name in commands() if not has_heading(page, name)]
    assert not missing, f"docs/commands.md has no heading for: {', '.join(missing)}"


def test_every_command_in_the_reference_exists() -> None:
    named = {
        found[1].strip()
        for text in headings(DOCS / "commands.md")
        if (found := re.match(r"`?holdfast ([\w -]+)", text))
    }
    assert named <= set(commands()), f"docs/commands.md describes no command: {sorted(named - set(commands()))}"


def test_every_method_has_a_page() -> None:
    missing = [name for name in methods() if not (DOCS / "methods" / f"{name}.md").exists()]
    assert not missing, f"docs/methods/ has no page for: {', '.join(missing)}"


def test_every_page_of_a_method_has_a_method() -> None:
    pages = {page.stem for page in (DOCS / "methods").glob("*.md")} - {"README", "index"}
    assert pages <= set(methods()), f"pages without a method: {sorted(pages - set(methods()))}"


def test_every_knob_is_on_its_methods_page() -> None:
    from holdfast.core.knobs import describe

    missing = []
    for name, method in methods().items():
        page = DOCS / "methods" / f"{name}.md"
        text = page.read_text("utf-8") if page.exists() else ""
        missing += [f"{page.name}: {knob}" for knob in describe(method) if f"`{knob}`" not in text]
    assert not missing, "not described on the method's page:\n" + "\n".join(missing)


@pytest.mark.parametrize("kind", ["judges", "tasks"])
def test_every_judge_and_task_has_a_heading(kind: str) -> None:
    from holdfast.finetune.tasks import TASKS
    from holdfast.raters.base import JUDGES

    page = DOCS / f"{kind}.md"
    missing = [name for name in {"judges": JUDGES, "tasks": TASKS}[kind] if not has_heading(page, name)]
    assert not missing, f"docs/{kind}.md has no heading for: {', '.join(missing)}"
