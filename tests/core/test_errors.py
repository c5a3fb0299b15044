from __future__ import annotations

import pickle

import pytest

from holdfast.core import errors
from holdfast.core.errors import HoldfastError, MissingExtra, UsageError, nearest, unknown


def every_error() -> list[type[HoldfastError]]:
    return [HoldfastError, *HoldfastError.__subclasses__()]


def test_exit_codes() -> None:
    assert {cls.__name__: cls.exit_code for cls in every_error()} == {
        "HoldfastError": 1, "UsageError": 2, "DataError": 3, "ModelError": 4, "MissingExtra": 5, "RunError": 6,
        "ResourceError": 7, "TrainingError": 8, "RequestRefused": 10, "NotApplied": 11, "Interrupted": 130,
    }  # fmt: skip


def test_an_error_prints_its_hint() -> None:
    assert str(UsageError("wrong", hint="do this")) == "wrong\n  hint: do this"
    assert str(UsageError("wrong")) == "wrong"


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtra("finetune", "torch")
    assert "'torch'" in error.message
    assert error.hint == "pip install 'holdfast[finetune]'"


@pytest.mark.parametrize("cls", every_error(), ids=lambda cls: cls.__name__)
def test_errors_travel_between_processes(cls: type[HoldfastError]) -> None:
    made = MissingExtra("vision", "PIL") if cls is MissingExtra else cls("what", hint="then")
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), again.message, again.hint) == (cls, made.message, made.hint)


def test_nearest_is_silent_when_nothing_is_close() -> None:
    assert nearest("boster", ["booster", "lisa"]) == "did you mean 'booster'? "
    assert nearest("zzz", ["booster", "lisa"]) == ""
    assert nearest("x", []) == ""


def test_unknown_lists_what_is_valid() -> None:
    error = unknown("judge", "refusl", {"refusal": 1, "classifier": 2}, "recipe.toml")
    assert error.message == "recipe.toml: unknown judge 'refusl'"
    assert error.hint == "did you mean 'refusal'? valid: classifier, refusal"
    assert unknown("list", "x", ["a"]).message == "unknown list 'x'"


def test_the_tree_is_flat_so_that_each_code_means_one_thing() -> None:
    assert all(cls.__bases__ == (HoldfastError,) for cls in HoldfastError.__subclasses__())
    assert errors.__doc__ is not None
