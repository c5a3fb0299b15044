from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.core.errors import ResourceError, RunError
from holdfast.core.files import RowFile, free_bytes, read_json, read_rows, write_bytes, write_json, write_text, writing


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 1,000 bytes: the system's refusal is the one of a full disk, without a disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def foreign() -> Iterator[Path]:
    """A folder that this process may read and not write, also where tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "there.json").write_text("1")
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        else:
            folder.chmod(0o555)
        try:
            yield folder
        finally:
            if me == 0:
                os.seteuid(0)
            folder.chmod(0o755)


def test_a_written_file_is_whole_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.json"
    write_json(path, {"a": "é"})
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_written_file_has_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640  # 666 without 027


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "file.json", float("nan"))
    assert read_json(tmp_path / "file.json") == 1


def test_a_kill_between_bytes_leaves_the_old_file(tmp_path: Path) -> None:
    """The writer is killed in the middle of its writing, many times over."""
    path = tmp_path / "file.json"
    write_json(path, {"n": -1, "pad": ""})
    loop = "import sys; from pathlib import Path; from holdfast.core.files import write_json; n = 0\n"
    loop += (
        f"while True: write_json(Path({str(path)!r}), {{'n': n, 'pad': 'x' * 300_000}}); n += 1; print(n, flush=True)"
    )
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        found = read_json(path)
        assert found["n"] >= 2
        assert len(found["pad"]) == 300_000


def test_damaged_json_is_named(tmp_path: Path) -> None:
    for content in (b'{"a": ', b"\xff\xfe", b""):
        (tmp_path / "file.json").write_bytes(content)
        with pytest.raises(RunError, match=r"file\.json is damaged") as caught:
            read_json(tmp_path / "file.json")
        assert str(tmp_path) in caught.value.hint


def test_rows_grow_and_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowFile(path) as rows:
        rows.append([{"n": 0}, {"n": 1}])
    with RowFile(path) as rows:
        rows.append([{"n": 2, "text": "line\nbreak é"}])
    assert read_rows(path) == [{"n": 0}, {"n": 1}, {"n": 2, "text": "line\nbreak é"}]
    assert read_rows(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_last_line_cut_anywhere_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    whole = b'{"n":0}\n{"n":1}\n'
    path.write_bytes(whole[: len(whole) - cut])  # 8 bytes a row: any cut of 1 to 8 leaves one row
    assert read_rows(path) == [{"n": 0}]
    with RowFile(path) as rows:
        rows.append([{"n": 2}])
    assert path.read_bytes() == b'{"n":0}\n{"n":2}\n'


def test_a_file_that_is_only_a_cut_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n":0')
    RowFile(path).close()
    assert path.read_bytes() == b""


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n":0}\n{"n":\n{"n":2}\n')
    with pytest.raises(RunError, match=r"rows\.jsonl, line 2 is damaged"):
        read_rows(path)


def test_rows_with_nan_are_refused_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowFile(path) as rows, pytest.raises(ValueError, match="JSON compliant"):
        rows.append([{"n": 1}, {"n": float("nan")}])
    assert path.read_bytes() == b""


def test_one_file_one_line_at_a_time_from_several_threads(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowFile(path) as rows:
        threads = [threading.Thread(target=lambda n=n: rows.append([{"n": n}] * 50)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_rows(path)) == 4 * 50


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, small_files: None) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(ResourceError, match="no space left on the disk while writing") as caught:
        write_bytes(path, b"x" * 1001)
    assert "the same command again" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "the temporary file must go"


def test_a_full_disk_keeps_the_whole_rows(tmp_path: Path, small_files: None) -> None:
    path = tmp_path / "rows.jsonl"

    def fill() -> None:
        with RowFile(path) as rows:
            for n in range(200):
                rows.append([{"n": n, "pad": "x" * 80}])

    with pytest.raises(ResourceError):
        fill()
    kept = read_rows(path)
    # A row with a number of one digit is {"n":0,"pad":"x..."} and a newline: 6 + 7 + 80 + 2 + 1 = 96 bytes, so ten
    # of them are 960 of the 1,000 bytes, and the eleventh is cut off.
    assert [row["n"] for row in kept] == list(range(10))


def test_a_full_disk_seen_by_a_library_in_rust(tmp_path: Path, small_files: None) -> None:
    import torch
    from safetensors.torch import save_file

    with pytest.raises(ResourceError, match="no space left"), writing(tmp_path / "w.safetensors"):
        save_file({"w": torch.zeros(1000)}, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, ResourceError),
        (errno.EDQUOT, ResourceError),
        (errno.EFBIG, ResourceError),
        (errno.EACCES, RunError),
        (errno.EROFS, RunError),
        (errno.EIO, RunError),
        (errno.ENOTDIR, RunError),
    ],
)
def test_what_the_system_refuses_has_words_and_an_exit_code(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, writing(Path("there")):
        raise OSError(number, "no")
    assert os.strerror(number) in str(caught.value)
    assert "--runs DIR" in str(caught.value)


def test_a_bug_inside_a_block_of_writing_stays_a_bug() -> None:
    with pytest.raises(KeyError), writing(Path("there")):
        raise KeyError("a bug (it has no number)")


def test_a_folder_that_may_not_be_written(foreign: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*Permission denied") as caught:
        write_json(foreign / "new.json", 1)
    assert "--runs DIR" in caught.value.hint
    with pytest.raises(RunError, match="cannot write"):
        RowFile(foreign / "rows.jsonl")
    with pytest.raises(RunError, match="cannot write"):
        write_json(foreign / "deep" / "new.json", 1)
    assert read_json(foreign / "there.json") == 1


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_json(tmp_path / "file" / "new.json", 1)


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    free = free_bytes(tmp_path / "not" / "yet")
    assert free == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.05)


def test_rows_are_one_json_object_a_line(tmp_path: Path) -> None:
    with RowFile(tmp_path / "rows.jsonl") as rows:
        rows.append([{"b": 1, "a": "\u2028"}])
    (line,) = (tmp_path / "rows.jsonl").read_text("utf-8").split("\n")[:-1]
    assert json.loads(line) == {"b": 1, "a": "\u2028"}
    assert line.startswith('{"b":1,')
