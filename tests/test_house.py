"""The rules of the house that a machine can check, over every file of src (and some over all files)."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SRC = REPO / "src" / "holdfast"
TESTS = REPO / "tests"
SKIPS = TESTS / "SKIPS.md"

CAPABILITIES = ("finetune", "steer", "ensemble", "agree", "study", "faces")
FOUNDATIONS = ("core", "data", "models", "raters", "report")
CORE_MAY_IMPORT = {"numpy", "filelock", "holdfast"} | set(sys.stdlib_module_names)
HEAVY = ("torch", "scipy", "transformers", "polars", "altair", "vl_convert")
BANNED_WORDS = {"manager", "handler", "helper", "util", "processor", "wrapper", "misc"}
MAX_LINES, P90_LINES, MAX_PARAMETERS = 120, 40, 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One parsed file of the package."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        parts = self.path.relative_to(SRC.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def part(self) -> str:
        """``finetune`` of ``holdfast.finetune.loop``; empty for ``holdfast`` itself."""
        return [*self.name.split("."), ""][1]

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(REPO)}:{getattr(node, 'lineno', 1)}"


@cache
def modules() -> tuple[Module, ...]:
    return tuple(Module(path, ast.parse(path.read_text("utf-8"), str(path))) for path in sorted(SRC.rglob("*.py")))


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Module, ast.AST]]:
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, kinds):
                yield module, node


def functions() -> Iterator[tuple[Module, Function]]:
    for module, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, Function)
        yield module, node


def dotted(node: ast.AST) -> str:
    """``torch.random.fork_rng`` for the expression of that spelling; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def parameters(function: Function) -> list[ast.arg]:
    names = function.args
    rest = [star for star in (names.vararg, names.kwarg) if star]
    return [*names.posonlyargs, *names.args, *names.kwonlyargs, *rest]


def imported(module: Module) -> Iterator[tuple[str, ast.AST]]:
    """Every module a file imports, at its top or inside functions, lazy table strings included."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.at(node)}: relative import"
            # `from holdfast import faces` imports holdfast.faces.
            yield node.module or "", node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lazy = re.fullmatch(r"(holdfast(?:\.\w+)+):\w+", node.value)
            if lazy:
                yield lazy[1], node


def tracked() -> list[Path]:
    """Files of the repository: what git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [REPO / name for name in listed.stdout.split("\0") if name and (REPO / name).is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        try:
            yield path.relative_to(REPO), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


def none_of(complaints: list[str]) -> None:
    assert not complaints, "\n" + "\n".join(complaints)


# --- names, shape, annotations -----------------------------------------------------------------------


def words(name: str) -> set[str]:
    """Words of a snake_case or CamelCase name, in the singular."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {word.lower().removesuffix("s") if word.lower() != "misc" else "misc" for word in found}


def defined_names() -> Iterator[tuple[str, str]]:
    for module in modules():
        yield module.path.stem, str(module.path.relative_to(REPO))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name, module.at(node)
            elif isinstance(node, ast.arg):
                yield node.arg, module.at(node)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.id if isinstance(node, ast.Name) else node.attr, module.at(node)


def test_names_are_split_into_words() -> None:
    assert words("HTTPManager") == {"http", "manager"}
    assert words("_text_utils") == {"text", "util"}
    assert not words("unwrapped_management") & BANNED_WORDS


def test_no_name_says_nothing() -> None:
    none_of([f"{where}: {name}" for name, where in defined_names() if words(name) & BANNED_WORDS])


def test_functions_are_short() -> None:
    lengths = {module.at(node): (node.end_lineno or node.lineno) - node.lineno + 1 for module, node in functions()}
    none_of([f"{where}: {lines} lines" for where, lines in lengths.items() if lines > MAX_LINES])
    ordered = sorted(lengths.values())
    p90 = ordered[int(0.9 * len(ordered))]
    longest = sorted(lengths.items(), key=lambda item: -item[1])[:10]
    assert p90 <= P90_LINES, f"90th percentile is {p90} lines; the longest: {longest}"


def test_functions_take_few_parameters() -> None:
    counts = {f"{module.at(node)} {node.name}": len(parameters(node)) for module, node in functions()}
    none_of([f"{where}: {count} parameters" for where, count in counts.items() if count > MAX_PARAMETERS])


def test_everything_is_annotated() -> None:
    complaints = []
    for module, node in functions():
        bare = [name.arg for name in parameters(node) if name.annotation is None and name.arg not in {"self", "cls"}]
        if bare or node.returns is None:
            complaints.append(f"{module.at(node)} {node.name}: {', '.join(bare) or 'the result'}")
    none_of(complaints)


# --- who may import whom -----------------------------------------------------------------------------


def test_capabilities_never_import_one_another() -> None:
    none_of(
        [
            f"{module.at(node)}: {module.part} imports {name}"
            for module in modules()
            if module.part in CAPABILITIES
            for name, node in imported(module)
            for other in (*CAPABILITIES, "cli")
            if other != module.part and (name + ".").startswith(f"holdfast.{other}.")
        ]
    )


def test_foundations_import_no_capability() -> None:
    none_of(
        [
            f"{module.at(node)}: {module.part} imports {name}"
            for module in modules()
            if module.part in FOUNDATIONS
            for name, node in imported(module)
            if (name + ".").startswith(tuple(f"holdfast.{part}." for part in (*CAPABILITIES, "cli")))
        ]
    )


def test_core_stands_on_the_standard_library_and_numpy() -> None:
    none_of(
        [
            f"{module.at(node)}: core imports {name}"
            for module in modules()
            if module.part == "core"
            for name, node in imported(module)
            if name.split(".")[0] not in CORE_MAY_IMPORT
            or (name.startswith("holdfast.") and not name.startswith("holdfast.core"))
        ]
    )


def test_every_folder_of_the_package_is_a_known_part() -> None:
    known = {*CAPABILITIES, *FOUNDATIONS, "cli"}
    assert {module.part for module in modules() if module.path.parent != SRC} <= known


PROBE = """
import sys
sys.argv = ["holdfast", *sys.argv[1:]]
try:
    {action}
except SystemExit as stop:
    assert not stop.code, stop.code
print("LOADED", *[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("import holdfast", []),
        ("from holdfast.cli.main import main; main()", ["--help"]),
        ("from holdfast.cli.main import main; main()", ["list"]),
        ("from holdfast.cli.main import main; main()", ["bench", "--help"]),
    ],
    ids=["import", "help", "list", "bench-help"],
)
def test_nothing_heavy_is_loaded(action: str, arguments: list[str]) -> None:
    probe = PROBE.format(action=action, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1].split() == ["LOADED"]


# --- errors ------------------------------------------------------------------------------------------


def class_bases() -> dict[str, tuple[str, set[str]]]:
    """Class name -> where it is defined, and the last part of each base's name."""
    return {
        node.name: (module.at(node), {dotted(base).rpartition(".")[2] for base in node.bases})
        for module, node in nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef)
    }


def test_one_error_tree_in_one_file() -> None:
    exceptions = {
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException) and not issubclass(value, Warning)
    }
    classes, grown = class_bases(), True
    ours: set[str] = set()
    while grown:
        found = {name for name, (_, bases) in classes.items() if bases & (exceptions | ours)}
        grown, ours = found != ours, found
    assert "HoldfastError" in ours
    none_of([f"{classes[name][0]}: {name}" for name in ours if "core/errors.py" not in classes[name][0]])


def error_classes() -> dict[str, type[Exception]]:
    from holdfast.core import errors

    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.HoldfastError)
    }


def test_each_error_has_its_own_exit_code_and_is_drawn_in_the_tree() -> None:
    from holdfast.core import errors

    found = error_classes()
    codes = {name: getattr(value, "exit_code", None) for name, value in found.items()}
    assert len(set(codes.values())) == len(codes), codes
    for name, code in codes.items():
        assert re.search(rf"\b{name}\s+{code}\b", errors.__doc__ or ""), f"the drawn tree does not show {name} {code}"


def test_each_raised_error_says_what_to_do_next() -> None:
    """``hint=`` at every raise of our errors (MissingExtra makes its own)."""
    names = set(error_classes()) - {"MissingExtra"}
    none_of(
        [
            f"{module.at(node)}: {dotted(node.func)} without a hint"
            for module, node in nodes(ast.Call)
            if isinstance(node, ast.Call)
            and dotted(node.func).rpartition(".")[2] in names
            and not any(word.arg in {"hint", None} for word in node.keywords)
        ]
    )


# --- randomness, printing, safety --------------------------------------------------------------------


def calls_with_surroundings() -> Iterator[tuple[Module, ast.Call, list[ast.AST]]]:
    def walk(module: Module, node: ast.AST, around: list[ast.AST]) -> Iterator[tuple[Module, ast.Call, list[ast.AST]]]:
        if isinstance(node, ast.Call):
            yield module, node, around
        for child in ast.iter_child_nodes(node):
            yield from walk(module, child, [*around, node])

    for module in modules():
        yield from walk(module, module.tree, [])


def forks_rng(node: ast.AST) -> bool:
    """A ``with torch.random.fork_rng():``, which puts the global generator back."""
    return isinstance(node, ast.With) and any(
        isinstance(item.context_expr, ast.Call) and dotted(item.context_expr.func).endswith("fork_rng")
        for item in node.items
    )


GLOBAL_SEEDS = re.compile(
    r"torch\.(random\.|cuda\.|mps\.)?manual_seed(_all)?|random\.seed|(np|numpy)\.random\.seed|(\w+\.)*set_seed"
)


def test_nothing_seeds_a_global_generator() -> None:
    none_of(
        [
            f"{module.at(call)}: {dotted(call.func)}"
            for module, call, around in calls_with_surroundings()
            if GLOBAL_SEEDS.fullmatch(dotted(call.func)) and not any(forks_rng(node) for node in around)
        ]
    )


def test_only_the_cli_prints() -> None:
    none_of(
        [
            f"{module.at(node)}: print"
            for module, node in nodes(ast.Call)
            if isinstance(node, ast.Call) and dotted(node.func) == "print" and module.part != "cli"
        ]
    )


def test_no_pickle_and_no_remote_code() -> None:
    complaints = []
    for module in modules():
        for name, node in imported(module):
            if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}:
                complaints.append(f"{module.at(node)}: imports {name}")
    for module, node in nodes(ast.Call):
        assert isinstance(node, ast.Call)
        if dotted(node.func) in {"torch.load", "torch.save", "eval", "exec"}:
            complaints.append(f"{module.at(node)}: {dotted(node.func)}")
        for word in node.keywords:
            allowed = isinstance(word.value, ast.Constant) and word.value.value is False
            if word.arg == "trust_remote_code" and not allowed:
                complaints.append(f"{module.at(node)}: trust_remote_code")
    none_of(complaints)


# The split spelling keeps this file out of its own net.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|farm|root|Users/\w+|home/(?!user\b)\w+|tmp/\w*bash\w*)/")
HAZARDS = (
    "sarin", "novichok", "ricin", "anthrax", "semtex", "napalm", "TATP", "PETN", "molotov", "pipe bomb",
    "methamphetamine", "fentanyl", "ransomware", "keylogger",
)  # fmt: skip


def test_no_path_of_a_machine() -> None:
    none_of([f"{path}: {found[0]}" for path, text in texts() for found in MACHINE_PATH.finditer(text)])


def test_no_harmful_text() -> None:
    """Hazards of the sandbox are symbols; real prompts stay outside the repository."""
    pattern = re.compile(rf"\b({'|'.join(HAZARDS)})\b", re.IGNORECASE)
    here = Path(__file__).resolve().relative_to(REPO)
    none_of([f"{path}: {found[0]}" for path, text in texts() if path != here for found in pattern.finditer(text)])


def test_weights_are_safetensors() -> None:
    pickled = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".joblib"}
    none_of([str(path.relative_to(REPO)) for path in tracked() if path.suffix in pickled])


# --- skips -------------------------------------------------------------------------------------------


def skips(tree: ast.Module, module: str) -> Iterator[str]:
    """Names of the tests and fixtures of a file that may be skipped or are expected to fail."""

    def is_skip(node: ast.AST) -> bool:
        name = dotted(node)
        return name in {"pytest.skip", "pytest.importorskip", "pytest.xfail"} or bool(
            re.fullmatch(r"pytest\.mark\.(skip|skipif|xfail)", name)
        )

    inside: set[ast.AST] = set()
    for outer in ast.walk(tree):
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found = [node for node in ast.walk(outer) if is_skip(node)]
            if found and not inside & set(found):
                yield outer.name
            inside |= set(found)
    if any(is_skip(node) and node not in inside for node in ast.walk(tree)):
        yield module


def skip_rows() -> dict[str, str]:
    """``| test or fixture | reason |`` -> name: reason."""
    rows = {}
    for line in SKIPS.read_text("utf-8").splitlines() if SKIPS.exists() else []:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|", 1)]
        if line.startswith("|") and len(cells) == 2 and not set(cells[0]) <= set("-: ") and "reason" not in cells[1:]:
            rows[cells[0].strip("`")] = cells[1]
    return rows


def all_skips() -> set[str]:
    return {
        name
        for path in TESTS.rglob("*.py")
        if path != Path(__file__).resolve()
        for name in skips(ast.parse(path.read_text("utf-8")), path.relative_to(TESTS).as_posix())
    }


def test_every_skip_has_a_row_with_its_reason() -> None:
    rows = skip_rows()
    none_of(
        [f"{name} may be skipped, and tests/SKIPS.md has no row for it" for name in sorted(all_skips() - set(rows))]
    )
    none_of([f"tests/SKIPS.md gives no reason for {name}" for name, reason in rows.items() if len(reason) < 10])


def test_no_row_outlives_its_skip() -> None:
    none_of([f"tests/SKIPS.md: nothing called {name} is skipped" for name in sorted(set(skip_rows()) - all_skips())])
