"""The sample result, as a module: tests build their own variants of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def sample() -> ModuleType:
    """The module ``sample.py`` beside this file."""
    place = importlib.util.spec_from_file_location("report_sample", Path(__file__).with_name("sample.py"))
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.fixture
def result(sample: ModuleType) -> dict[str, Any]:
    """A fresh sample result, to be changed at will."""
    found: dict[str, Any] = sample.result()
    return found
