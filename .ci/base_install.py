"""Builds the wheel and uses it as a newcomer would: a clean environment, no extras, another folder.

Standard library only. Run by ``make base-check`` with the development environment's Python, which
builds the wheel; the clean environment then holds the wheel and its base dependencies, at the lock's
versions, and nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "scipy", "transformers", "polars", "altair", "vl_convert")
EXTRA_ONLY = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "PIL")
HELP_SECONDS = 0.5
# Five of them are the face detector and three recognisers of real faces, without which nobody is protected.
WHEEL_MIB = 12
NEEDS_TORCH = (
    (["demo"], "finetune"),
    (["bench", "sandbox"], "finetune"),
    (["steer", "demo"], "vision"),
    (["faces", "demo"], "faces"),
)
# Runs a command in this process and tells which heavy modules it left loaded.
PROBE = f"""
import sys
from holdfast.cli.main import main
sys.argv[0] = "holdfast"
code = 0
try:
    main()
except SystemExit as stop:
    code = stop.code or 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print("LOADED", *loaded, file=sys.stderr)
sys.exit(code)
"""


def say(text: str) -> None:
    """Prints one finished check."""
    print(f"  ok: {text}", flush=True)


def require(condition: bool, complaint: str) -> None:
    """Stops the check when a promise is not kept."""
    if not condition:
        sys.exit(f"base install: {complaint}")


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command away from the checkout, without the checkout's variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HOLDFAST"))}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False, timeout=300)


def build(place: Path) -> Path:
    """The wheel of this checkout, made with the build backend of the development environment."""
    make = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*make, "--wheel-dir", str(place), str(ROOT)], check=True)
    (wheel,) = place.glob("holdfast-*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """What must be in the wheel, and what must not."""
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    for pattern in (
        "holdfast/py.typed",
        "holdfast/models/weights/**/*.safetensors",
        "holdfast/report/templates/*",
        "holdfast/recipes/*.toml",
        "holdfast-*.dist-info/licenses/LICENSE",
    ):
        # PurePath.match knows no ** before Python 3.13: match the parts around it.
        head, _, tail = pattern.partition("**/")
        found = [
            name for name in names if name.match(pattern) or (tail and str(name).startswith(head) and name.match(tail))
        ]
        require(bool(found), f"no {pattern} in {wheel.name}")
    strays = [
        str(name)
        for name in names
        if not name.parts[0].startswith("holdfast")
        or "tests" in name.parts
        or name.name.startswith(("test_", "conftest"))
        or name.suffix in {".pyc", ".ipynb", ".bin", ".pkl", ".pt"}
    ]
    require(not strays, f"does not belong in {wheel.name}: {', '.join(strays)}")
    size = wheel.stat().st_size / 2**20
    require(size <= WHEEL_MIB, f"{wheel.name} has {size:.1f} MiB; at most {WHEEL_MIB} were promised")
    say(f"{wheel.name}: {len(names)} files, {size:.1f} MiB, with weights, templates, recipes, py.typed; no tests")


def install(wheel: Path, place: Path) -> Path:
    """A clean environment with the wheel and its base dependencies."""
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / "bin" / "python"
    add = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "requirements" / "lock.txt")]
    subprocess.run([*add, str(wheel)], check=True)
    find = f"import importlib.util as u; print(*[name for name in {EXTRA_ONLY!r} if u.find_spec(name)])"
    found = run([str(python), "-c", find], place).stdout.split()
    require(not found, f"the base install brought {', '.join(found)}")
    say(f"installed without {', '.join(EXTRA_ONLY)}")
    return python


def check_light(python: Path, place: Path) -> None:
    """``--help`` and ``list`` work and load nothing heavy."""
    for arguments in (["--help"], ["list"], ["list", "--json"]):
        done = run([str(python), "-c", PROBE, *arguments], place)
        shown = f"holdfast {' '.join(arguments)}"
        require(done.returncode == 0, f"{shown} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        loaded = done.stderr.strip().splitlines()[-1].split()[1:]
        require(not loaded, f"{shown} loads {', '.join(loaded)}")
        say(f"{shown} works and loads none of {', '.join(HEAVY)}")


def check_speed(python: Path, place: Path) -> None:
    """``--help`` is quick; the fastest of several, because a busy machine only ever adds time."""
    command = [str(python.parent / "holdfast"), "--help"]
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        require(run(command, place).returncode == 0, "holdfast --help fails as a console script")
        seconds.append(time.perf_counter() - began)
    require(min(seconds) < HELP_SECONDS, f"holdfast --help takes {min(seconds):.2f} s, not under {HELP_SECONDS}")
    say(f"holdfast --help takes {min(seconds):.2f} s (fastest of {len(seconds)}; limit {HELP_SECONDS})")


def check_missing_extra(python: Path, place: Path) -> None:
    """A command that needs PyTorch says what to install, with its own exit code."""
    for arguments, extra in NEEDS_TORCH:
        done = run([str(python.parent / "holdfast"), *arguments], place)
        shown = f"holdfast {' '.join(arguments)}"
        told = f"{done.stdout}{done.stderr}"
        require(done.returncode == 5, f"{shown} without PyTorch ended with {done.returncode}, not 5:\n{told}")
        require(f"pip install 'holdfast[{extra}]'" in told, f"{shown} does not say what to install:\n{told}")
        require("Traceback" not in told, f"{shown} shows a traceback:\n{told}")
        say(f"{shown} without PyTorch: exit code 5 and the pip command")


def check_agree(python: Path, place: Path) -> None:
    """``holdfast agree`` needs no extra: from a table to a verdict, a page and charts."""
    rows = [f"{i},{i % 3},{(i + (i % 7 == 0)) % 3},{(i + (i % 11 == 0)) % 3}" for i in range(300)]
    (place / "ratings.csv").write_text("\n".join(["item,ann,bob,judge", *rows]) + "\n")
    flags = "--people ann,bob --judges judge --labels 0,1,2 --level nominal --charts figures"
    done = run([str(python.parent / "holdfast"), "agree", "ratings.csv", *flags.split()], place)
    require(done.returncode == 0, f"holdfast agree ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    require("judge: replaceable" in done.stdout, f"holdfast agree gave another verdict:\n{done.stdout}")
    require(any((place / "runs").glob("agree-*/report.html")), "holdfast agree wrote no page")
    require(any((place / "figures").glob("*.pdf")), "holdfast agree wrote no charts")
    say("holdfast agree gives a verdict, a page and charts without any extra")


def check_ensemble(python: Path, place: Path) -> None:
    """``holdfast ensemble pick`` needs no extra either: a team, a page, and an ensemble that answers."""
    rows = [
        f"{i},{'ABCD'[i % 4]},{'ABCD'[(i + (i % 3 == 0)) % 4]},{'ABCD'[(i + (i % 5 == 0)) % 4]}" for i in range(200)
    ]
    (place / "answers.csv").write_text("\n".join(["item,gold,one,two", *rows]) + "\n")
    command = [str(python.parent / "holdfast"), "ensemble"]
    done = run([*command, "pick", "answers.csv", "--size", "2"], place)
    require(done.returncode == 0, f"holdfast ensemble pick ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    (made,) = (place / "runs").glob("ensemble-*")
    require((made / "report.html").exists(), "holdfast ensemble pick wrote no page")
    done = run([*command, "answer", str(made), "answers.csv"], place)
    require(done.returncode == 0 and done.stdout.count('"answer": ') == 200, f"no answers:\n{done.stdout}{done.stderr}")
    say("holdfast ensemble picks, fits and answers without any extra")


def main() -> None:
    """All checks, in order."""
    with tempfile.TemporaryDirectory(prefix="holdfast-base-") as folder:
        place = Path(folder)
        wheel = build(place)
        check_contents(wheel)
        python = install(wheel, place)
        check_light(python, place)
        check_speed(python, place)
        check_missing_extra(python, place)
        check_agree(python, place)
        check_ensemble(python, place)


if __name__ == "__main__":
    main()
