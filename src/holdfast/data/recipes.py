"""Recipe files: finding one by path or by name, reading its TOML, and filling in seeds.

What the keys mean is the parts' business; ``{seed}`` in any text of a recipe stands for the seed of the cell.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError, UsageError, nearest


def find_recipe(name: str, folder: str = "") -> Path:
    """A recipe file: a path, or the name of one that ships with Holdfast.

    Args:
        name: a path, or a shipped recipe's name.
        folder: of the shipped recipes: empty for fine-tuning, ``steer`` for steering.

    Raises:
        UsageError: neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes(folder)
    if name in shipped:
        return shipped[name]
    if path.suffix == ".toml" or path.parent != Path():
        raise UsageError(f"no recipe file {name}", hint=f"{nearest(path.stem, shipped)}shipped: {', '.join(shipped)}")
    raise UsageError(
        f"no recipe {name!r}", hint=f"{nearest(name, shipped)}shipped: {', '.join(shipped)}; or give a .toml file"
    )


def shipped_recipes(folder: str = "") -> dict[str, Path]:
    """Name -> file of the recipes that ship with the package (in a checkout: those in ``recipes/``)."""
    inside = Path(str(resources.files("holdfast") / "recipes"))
    checkout = Path(__file__).resolve().parents[3] / "recipes"
    root = inside if inside.is_dir() else checkout
    return {path.stem: path for path in sorted((root / folder).glob("*.toml"))}


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Values and text of a TOML file.

    Raises:
        UsageError: it is not TOML.
        DataError: it cannot be read.
    """
    try:
        text = path.read_text("utf-8")
        return tomllib.loads(text), text
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint="mend the line named above") from error


def for_seed(value: Any, seed: int) -> Any:
    """The value with ``{seed}`` replaced in every text inside it."""
    if isinstance(value, str):
        return value.replace("{seed}", str(seed))
    if isinstance(value, Mapping):
        return {name: for_seed(inner, seed) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_seed(inner, seed) for inner in value]
    return value
