"""Fixtures of all tests, and the surroundings they run in: one thread, no network, no shared caches."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

# Before anything imports torch, polars or a tokenizer: each reads these once. One thread makes results
# repeat and keeps two test processes from waiting on each other's barriers.
_CACHE = tempfile.TemporaryDirectory(prefix="holdfast-tests-")
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "POLARS_MAX_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": _CACHE.name,
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }
)

import pytest  # noqa: E402  (after the environment)

from ensemble.servers import MemberServer  # noqa: E402

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder beside the checkout: real models and data that are not Holdfast's to ship."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data folder beside the checkout (../shared/data) is not there")
    return folder


@pytest.fixture
def start_server() -> Iterator[Callable[[], MemberServer]]:
    """Starts processes whose endpoints behave as members of an ensemble; all end with the test."""
    running: list[MemberServer] = []

    def start() -> MemberServer:
        running.append(MemberServer())
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium that draws pages."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("there is no Chromium on this machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the fixtures they ask for, so that `-m 'not browser'` needs no hand-kept marks."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "shared" in names:
            item.add_marker("shared")
        if "chromium" in names:
            item.add_marker("browser")


@pytest.fixture(autouse=True)
def _unlike_any_other_test(request: pytest.FixtureRequest) -> None:
    """Puts the global generators in a state that is this test's own.

    Holdfast takes randomness as an argument, so no result may depend on these. A test that passes only
    after another one, or only in one order, would depend on them: here the order changes nothing, and two
    tests never share a state by chance.
    """
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
