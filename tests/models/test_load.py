"""Finding and loading models: folders, adapters, runs; and what is refused, before anything in it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from holdfast.core.errors import ModelError
from holdfast.core.runs import Store
from holdfast.models.load import load_model, load_tokenizer, resolve

IDS = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny.llama().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """The same folder, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="module")
def adapter(saved: Path) -> Path:
    tuned = tiny.lora(tiny.llama())
    for config in tuned.peft_config.values():
        config.base_model_name_or_path = str(saved)
    tuned.save_pretrained(saved.parent / "adapter")
    return saved.parent / "adapter"


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- folders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.qwen2])
def test_a_folder_is_loaded_as_it_was_saved(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Tied output embeddings (GPT-2, this Qwen2) are not stored, and not missing either."""
    model = make()
    model.save_pretrained(tmp_path)
    loaded = load_model(resolve(str(tmp_path)), torch.float32)
    assert tiny.same(tiny.weights(loaded), tiny.weights(model))
    assert torch.equal(logits(loaded), logits(model))
    half = load_model(resolve(str(tmp_path)), torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_the_identity_follows_the_content_not_the_place(saved: Path, copied: Path) -> None:
    assert resolve(str(saved)).identity == resolve(str(copied)).identity
    (copied / "README.md").write_text("said about it")
    assert resolve(str(saved)).identity == resolve(str(copied)).identity
    edit_json(copied / "config.json", lambda content: content.update(rms_norm_eps=0.1))
    assert resolve(str(saved)).identity != resolve(str(copied)).identity


def test_the_tokenizer_lies_beside_the_model(saved: Path) -> None:
    loaded = load_tokenizer(resolve(str(saved)))
    text = "Ask w1 w2"
    assert loaded(text)["input_ids"] == tiny.tokenizer()(text)["input_ids"]
    assert loaded.chat_template == tiny.CHAT


def test_loading_leaves_the_librarys_settings_alone(saved: Path) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    load_model(resolve(str(saved)), torch.float32)
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before


# --- what is refused ---------------------------------------------------------------------------------


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"')


def other_shape(folder: Path) -> None:
    edit_json(folder / "config.json", lambda content: content.update(intermediate_size=32))


def lacking_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def no_language_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))


def of_unknown_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda content: content.update(model_type="unheard_of"))


@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (pickled_only, r"no safetensors weights, only pickled ones \(pytorch_model.bin\)", "can run code"),
        (truncated, "cannot be loaded", "if the file is damaged"),
        (without_config, "no config.json", "Hugging Face model folder"),
        (broken_config, "cannot be loaded", "causal language model"),
        (other_shape, "cannot be loaded", "if the file is damaged"),
        (lacking_a_tensor, "the weights lack model.layers.1.mlp.up_proj.weight", "if the file is damaged"),
        (no_language_model, "cannot be loaded", "causal language model"),
        (of_unknown_type, "cannot be loaded", "causal language model"),
    ],
)
def test_a_damaged_folder(damage: Callable[[Path], None], message: str, hint: str, copied: Path) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(resolve(str(copied)), torch.float32)
    assert hint in caught.value.hint


def test_code_in_the_folder_is_never_run(copied: Path, tmp_path: Path) -> None:
    """A custom class, and one that would replace a known architecture: neither module is imported."""
    ran = tmp_path / "ran"
    for name in ("modeling_own.py", "configuration_own.py", "tokenization_own.py"):
        (copied / name).write_text(f"open({str(ran)!r}, 'w').close()\n")
    own = {"AutoConfig": "configuration_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    edit_json(copied / "config.json", lambda content: content.update(auto_map=own))
    load_model(resolve(str(copied)), torch.float32)  # a known type: the library's own class
    edit_json(copied / "config.json", lambda content: content.update(auto_map=own, model_type="own"))
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_model(resolve(str(copied)), torch.float32)
    assert "no remote code" in caught.value.hint
    assert not ran.exists()


def test_no_tokenizer(copied: Path) -> None:
    for path in (copied / "tokenizer.json", copied / "tokenizer_config.json"):
        path.unlink()
    with pytest.raises(ModelError, match=r"tokenizer .* cannot be loaded"):
        load_tokenizer(resolve(str(copied)))


def test_a_folder_that_is_not_there_is_answered_with_the_nearest(saved: Path) -> None:
    with pytest.raises(ModelError, match="no model folder") as caught:
        resolve(str(saved.parent / "lama"))
    assert "did you mean 'llama'?" in caught.value.hint
    with pytest.raises(ModelError, match="no model folder"):
        resolve("./nothing/here")


def test_a_name_that_is_neither_folder_nor_on_the_hub() -> None:
    """The tests run offline, as does a user without a network."""
    with pytest.raises(ModelError, match="neither a folder nor to be had from the hub") as caught:
        resolve("nobody/nothing")
    assert "network" in caught.value.hint
    with pytest.raises(ModelError, match="neither a folder nor to be had from the hub"):
        resolve("not a name")


# --- adapters ----------------------------------------------------------------------------------------


def test_an_adapter_is_loaded_on_its_base(adapter: Path, saved: Path) -> None:
    source = resolve(str(adapter))
    assert source.folder == saved
    assert source.adapter == adapter
    assert source.identity["base"] == resolve(str(saved)).identity
    expected = logits(tiny.lora(tiny.llama()))
    tuned = load_model(source, torch.bfloat16)
    trainable = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())
    assert torch.equal(logits(load_model(source, torch.float32)), expected)
    merged = load_model(source, torch.float32, merge=True)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), expected)
    assert not torch.equal(expected, logits(load_model(resolve(str(saved)), torch.float32)))


def pickled_adapter(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def nameless(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", lambda content: content.update(base_model_name_or_path=None))


def its_own_base(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", lambda content: content.update(base_model_name_or_path=str(folder)))


def baseless(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", lambda content: content.update(base_model_name_or_path="/nowhere/base"))


def broken_adapter_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"r": 4')


def truncated_adapter(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled_adapter, r"no safetensors weights, only pickled ones \(adapter_model.bin\)"),
        (nameless, "does not name its base model"),
        (its_own_base, "names itself as its base"),
        (baseless, "no model folder /nowhere/base"),
        (broken_adapter_config, "adapter_config.json is damaged"),
        (truncated_adapter, "cannot be loaded"),
    ],
)
def test_a_damaged_adapter(damage: Callable[[Path], None], message: str, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    damage(copy)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(resolve(str(copy)), torch.float32)
    assert caught.value.hint


# --- runs --------------------------------------------------------------------------------------------


def made(root: Path, *, artifact: Path | None, name: str = "model", seal: bool = True) -> Path:
    run = Store(root).run("align", "sft-test", {"artifact": str(artifact)})
    run.artifacts.mkdir()
    if artifact is not None:
        shutil.copytree(artifact, run.artifacts / name)
    if seal:
        run.seal(1.0)
    return run.path


def test_a_run_gives_its_model(saved: Path, adapter: Path, tmp_path: Path) -> None:
    path = made(tmp_path, artifact=saved)
    source = resolve(str(path))
    assert source.identity == {"run": path.name.rpartition("-")[2]}
    assert tiny.same(tiny.weights(load_model(source, torch.float32)), tiny.weights(tiny.llama()))
    assert load_tokenizer(source).chat_template == tiny.CHAT
    tuned = resolve(str(made(tmp_path, artifact=adapter, name="adapter")))
    assert (tuned.folder, tuned.adapter is not None) == (saved, True)


def test_an_unfinished_or_damaged_run_is_refused(saved: Path, tmp_path: Path) -> None:
    unfinished = made(tmp_path / "a", artifact=saved, seal=False)
    with pytest.raises(ModelError, match="cannot be used: it is not sealed") as caught:
        resolve(str(unfinished))
    assert caught.value.hint == "run the command that made it again"
    damaged = made(tmp_path / "b", artifact=saved)
    truncated(damaged / "artifacts" / "model")
    with pytest.raises(ModelError, match=r"model\.safetensors changed its size"):
        resolve(str(damaged))
    empty = made(tmp_path / "c", artifact=None)
    with pytest.raises(ModelError, match="has no model: it is a align run"):
        resolve(str(empty))
