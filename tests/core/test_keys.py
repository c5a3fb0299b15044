from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.keys import KEY_LENGTH, canonical, digest, file_digest, folder_digest, key_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_canonical_json_is_sorted_and_dense() -> None:
    assert canonical({"b": 1, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1}'


def test_digest_is_sha256_of_the_canonical_text() -> None:
    assert digest({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()
    # The hash of two characters, as any sha256sum prints it for `printf '[]'`.
    assert digest([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


def test_a_key_is_ten_hex_digits() -> None:
    assert key_of([]) == "4f53cda18c"
    assert KEY_LENGTH == 10


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_have_no_key(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of({"rho": [number]})


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_the_order_of_names_does_not_count(value: dict[str, object]) -> None:
    assert digest(dict(reversed(value.items()))) == digest(value)


@given(json_values, json_values)
def test_different_values_have_different_keys(left: object, right: object) -> None:
    assert (digest(left) == digest(right)) == (canonical(left) == canonical(right))


def test_an_integer_and_a_float_are_told_apart() -> None:
    assert key_of({"rho": 1}) != key_of({"rho": 1.0})


def test_file_digest_reads_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = bytes(range(256)) * 5000  # 1,280,000 bytes: more than one chunk of 2^20 = 1,048,576
    path.write_bytes(content)
    assert file_digest(path) == hashlib.sha256(content).hexdigest()


def test_folder_digest_counts_names_and_bytes_of_the_named_kinds(tmp_path: Path) -> None:
    def made(name: str, **files: str) -> Path:
        folder = tmp_path / name
        for file, content in files.items():
            path = folder / file.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return folder

    def of(folder: Path) -> str:
        return folder_digest(folder, [".json", ".txt"])

    first = of(made("first", a_json="1", sub__b_txt="2", README_md="x"))
    assert of(made("elsewhere", a_json="1", sub__b_txt="2", README_md="y")) == first  # the .md does not count
    assert of(made("changed", a_json="1", sub__b_txt="3")) != first
    assert of(made("renamed", c_json="1", sub__b_txt="2")) != first
    assert of(made("moved", a_json="1", b_txt="2")) != first
    assert of(made("more", a_json="1", sub__b_txt="2", c_txt="")) != first
