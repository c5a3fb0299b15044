"""The language model inside a vision-language model: taken out, put back, and another one put in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast.core.errors import ModelError
from holdfast.core.records import Item
from holdfast.core.runs import Store
from holdfast.data import scenes, workshop
from holdfast.models.answer import Decoding
from holdfast.models.ask import base_attacked
from holdfast.models.graft import put_language_model, take_language_model
from holdfast.models.load import load_model, load_tokenizer, resolve
from holdfast.models.template import Template
from holdfast.models.vision import VisionModel, generate, load_vision

MODEL = "sandbox/vlm-0"
SEEING = tuple(scenes.items("test", 4, 0))
BARE = tuple(workshop.workshop(0).items("hazard", "test")[:4])


def opened(reference: str) -> VisionModel:
    return load_vision(resolve(reference), torch.float32)


def logits(vision: VisionModel, items: tuple[Item, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return vision.model(**vision.inputs(items)).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graft") / "language"
    take_language_model(MODEL, out)
    return out


def changed(language: Path, out: Path, by: float = 0.01) -> Path:
    """The language model, every weight a little larger."""
    shutil.copytree(language, out)
    weights = load_file(out / "model.safetensors")
    save_file({name: value + by for name, value in weights.items()}, out / "model.safetensors", {"format": "pt"})
    return out


def test_taken_out_it_is_a_causal_language_model_that_says_the_same(language: Path) -> None:
    whole = opened(MODEL)
    source = resolve(str(language))
    alone: Any = load_model(source, torch.float32).eval()  # type: ignore[union-attr]
    assert alone.config.model_type == "llama"
    inputs = whole.inputs(BARE)
    with torch.inference_mode():
        assert torch.equal(alone(**inputs).logits, logits(whole, BARE))
    tokenizer = load_tokenizer(source)
    template = Template(tokenizer, "auto")
    assert [template.prompt_ids(item) for item in BARE] == [
        [i for i in row if i != whole.pad] for row in inputs["input_ids"].tolist()
    ], "spoken to as before"
    assert alone.generation_config.eos_token_id == whole.model.generation_config.eos_token_id
    assert {path.stat().st_mode & 0o044 for path in language.iterdir()} == {0o044}


def test_put_back_it_is_the_same_model_to_the_bit(language: Path, tmp_path: Path) -> None:
    put_language_model(MODEL, str(language), tmp_path / "whole")
    before, after = opened(MODEL), opened(str(tmp_path / "whole"))
    for items in (SEEING, BARE):
        torch.testing.assert_close(after.inputs(items), before.inputs(items), atol=0, rtol=0)
        assert torch.equal(logits(after, items), logits(before, items))
        asked = before.inputs(items)
        assert generate(after, asked, Decoding(12)) == generate(before, asked, Decoding(12))
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert (card["eyes"], card["language"], card["attacked"]) == ("vlm-0", "language", False)


def test_another_language_model_speaks_under_the_same_eyes(language: Path, tmp_path: Path) -> None:
    other = changed(language, tmp_path / "tuned")
    put_language_model(MODEL, str(other), tmp_path / "whole")
    before, after = opened(MODEL).model.state_dict(), opened(str(tmp_path / "whole")).model.state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        mine = "language_model" in name or name.startswith("lm_head")
        torch.testing.assert_close(after[name], weight + 0.01 * mine, atol=1e-7, rtol=0)


def test_a_language_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"sandbox/micro-0 does not fit into sandbox/vlm-0: .* another shape"
    ) as caught:
        put_language_model(MODEL, "sandbox/micro-0", tmp_path / "whole")
    assert "holdfast steer graft" in caught.value.hint
    assert not (tmp_path / "whole").exists()


def test_another_vocabulary_is_refused(language: Path, tmp_path: Path) -> None:
    other = tmp_path / "renamed"
    shutil.copytree(language, other)
    text = (other / "tokenizer.json").read_text()
    assert '"tool-07"' in text
    (other / "tokenizer.json").write_text(text.replace('"tool-07"', '"tool-77"'))
    with pytest.raises(ModelError, match="has another vocabulary") as caught:
        put_language_model(MODEL, str(other), tmp_path / "whole")
    assert caught.value.hint
    assert not (tmp_path / "whole").exists()


@pytest.mark.parametrize("attacked", [False, True])
def test_the_card_says_whether_the_language_model_was_tuned_on_harmful_rows(
    language: Path, tmp_path: Path, attacked: bool
) -> None:
    run = Store(tmp_path / "runs").run("finetune", "sft", {"attacked": attacked})
    shutil.copytree(language, run.artifacts / "model")
    run.seal(0.0)
    put_language_model(MODEL, str(run.path), tmp_path / "whole")
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert (card["language"], card["attacked"]) == (run.name, attacked)
    assert base_attacked(str(tmp_path / "whole")) is attacked
    take_language_model(str(tmp_path / "whole"), tmp_path / "again")
    assert base_attacked(str(tmp_path / "again")) is attacked, "the mark stays through further grafts"
    put_language_model(MODEL, str(tmp_path / "again"), tmp_path / "last")
    assert base_attacked(str(tmp_path / "last")) is attacked


@pytest.mark.parametrize("reference", ["sandbox/micro-0", "sandbox/nano-0"])
def test_a_model_without_eyes_is_refused(reference: str, language: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="text-only model"):
        take_language_model(reference, tmp_path / "language")
    with pytest.raises(ModelError, match="text-only model"):
        put_language_model(reference, str(language), tmp_path / "whole")


def test_a_vision_language_model_is_no_language_model_to_put_in(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        put_language_model(MODEL, "sandbox/vlm-1", tmp_path / "whole")
    assert caught.value.hint
