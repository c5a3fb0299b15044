"""Loading models: the shipped sandbox ones, folders, hub ids and run folders, all the same way.

A reference is one of
    sandbox/micro-0         a model that ships with Holdfast
    path/to/folder          a Hugging Face model folder, or a PEFT adapter folder
    org/name[@revision]     a hub id
    runs/booster-7f3a9c21e0 a run folder (its artifact is loaded)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from holdfast.core.errors import MissingExtra, ModelError, nearest
from holdfast.core.keys import folder_digest
from holdfast.core.runs import open_run

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Everything that can change what a model answers; READMEs and the like cannot.
_MEANINGFUL = (
    ".safetensors",
    "config.json",
    "tokenizer.json",
    ".model",
    ".jinja",
    ".txt",
    "index.json",
    "chat_template.json",
    "vocab.json",
    "added_tokens.json",
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model found on disk.

    Attributes:
        reference: what the user called it.
        folder: the base model's files.
        identity: what a key is taken over: content, never a path.
        adapter: folder of the PEFT adapter on top, if there is one.
        base: how to call the base model from anywhere: an absolute folder, or a hub id.
    """

    reference: str
    folder: Path
    identity: dict[str, Any]
    adapter: Path | None = None
    base: str = ""


def require_torch(extra: str = "finetune") -> None:
    """Say which extra to install when the training stack is missing.

    Args:
        extra: the extra that brings it and all else that the caller needs.

    Raises:
        MissingExtra: torch, transformers or peft is not installed.
    """
    import importlib.util

    for package in ("torch", "transformers", "peft", "accelerate", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(extra, package)


def resolve(reference: str) -> ModelSource:
    """Find a model without loading it.

    Raises:
        ModelError: nothing is there, it is not a model, or it has only pickled weights.
    """
    if reference.startswith("sandbox/"):
        return _sandbox(reference)
    folder = Path(reference).expanduser()
    if (folder / "spec.json").is_file():
        return _from_run(reference, folder)
    if folder.is_dir():
        return _from_folder(reference, folder)
    if reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise ModelError(
            f"no model folder {reference}", hint=f"{nearest(folder.name, siblings)}give a folder with config.json"
        )
    return _from_hub(reference)


def _sandbox(reference: str) -> ModelSource:
    from holdfast.models import sandbox, sandbox_vision

    name = reference.removeprefix("sandbox/")
    if name not in (*sandbox.SHIPPED, *sandbox_vision.SHIPPED):
        names = (*sandbox.SHIPPED, *sandbox_vision.SHIPPED)
        listed = ", ".join(f"sandbox/{known}" for known in names)
        raise ModelError(f"no sandbox model {name!r}", hint=f"{nearest(name, names)}shipped: {listed}")
    folder = sandbox_vision.shipped(name) if name in sandbox_vision.SHIPPED else sandbox.shipped(name)
    if not folder.is_dir():
        raise ModelError(f"the files of {reference} are missing from this installation", hint="reinstall holdfast")
    return ModelSource(reference, folder, {"digest": _digest(folder)}, base=str(folder.resolve()))


def _from_run(reference: str, folder: Path) -> ModelSource:
    run = open_run(folder)
    problem = run.damage()
    if problem is not None:
        raise ModelError(f"run {run.name} cannot be used: {problem}", hint="run the command that made it again")
    identity = {"run": run.key}
    for name in ("adapter", "model"):
        artifact = run.artifacts / name
        if artifact.is_dir():
            found = _from_folder(reference, artifact)
            return ModelSource(reference, found.folder, identity, found.adapter, found.base)
    raise ModelError(
        f"run {run.name} has no model: it is a {run.kind} run", hint="give an align, finetune or repair run"
    )


def _from_folder(reference: str, folder: Path) -> ModelSource:
    if (folder / "adapter_config.json").is_file():
        _require_safetensors(folder)
        below = resolve(_base_of(folder))
        identity = {"adapter": _digest(folder), "base": below.identity}
        return ModelSource(reference, below.folder, identity, folder, below.base)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model folder: no config.json", hint="give a Hugging Face model folder")
    _require_safetensors(folder)
    return ModelSource(reference, folder, {"digest": _digest(folder)}, base=str(folder.resolve()))


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads((adapter / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{adapter}/adapter_config.json is damaged: {error}", hint="make the adapter again") from error
    if not base:
        raise ModelError(
            f"{adapter} is an adapter that does not name its base model", hint="add base_model_name_or_path"
        )
    if Path(str(base)).expanduser().resolve() == adapter.resolve():
        raise ModelError(f"{adapter} is an adapter that names itself as its base", hint="set base_model_name_or_path")
    return str(base)


def _require_safetensors(folder: Path) -> None:
    """PEFT and transformers would fall back to pickled weights where there are no others."""
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
    raise ModelError(
        f"{folder} has no safetensors weights" + (f", only pickled ones ({pickled[0]})" if pickled else ""),
        hint="pickled weights can run code and are never loaded: convert them with "
        "model.save_pretrained(folder) in an environment that you trust",
    )


def _from_hub(reference: str) -> ModelSource:
    require_torch()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = reference.partition("@")
    patterns = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model {reference!r} is neither a folder nor to be had from the hub: {_first_line(error)}",
            hint="check the spelling and the network (hub models need it once), or give a local folder",
        ) from error
    # A snapshot folder is named by its commit, which identifies every byte in it.
    return ModelSource(reference, folder, {"hub": name, "revision": folder.name}, base=name)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _digest(folder: Path) -> str:
    stamp = tuple(sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in folder.iterdir() if p.is_file()))
    return _digest_once(folder, stamp)


@lru_cache(maxsize=256)
def _digest_once(folder: Path, _stamp: tuple[tuple[str, int, int], ...]) -> str:
    """Digest of a model folder, taken again only when a file's size or time changed."""
    return folder_digest(folder, _MEANINGFUL)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model (or beside its adapter, when it has one of its own).

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    require_torch()
    from transformers import AutoTokenizer

    own = source.adapter if source.adapter and (source.adapter / "tokenizer_config.json").is_file() else source.folder
    try:
        return AutoTokenizer.from_pretrained(own, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the tokenizer of {source.reference} cannot be loaded: {_first_line(error)}",
            hint="the folder needs tokenizer.json and tokenizer_config.json",
        ) from error


def load_model(source: ModelSource, dtype: torch.dtype, *, merge: bool = False) -> PreTrainedModel | nn.Module:
    """Load weights (safetensors only, never remote code) and the adapter on top, trainable.

    Args:
        source: what :func:`resolve` found.
        dtype: type of the base weights; adapters stay fp32.
        merge: fold the adapter into the weights (for answering).

    Raises:
        ModelError: the folder is damaged, needs remote code, or is not a causal language model.
    """
    require_torch()
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
            model, found = loaded
            if found["missing_keys"]:
                # transformers fills what is missing with random numbers and only warns.
                raise ValueError(f"the weights lack {sorted(found['missing_keys'])[0]}")
            if source.adapter is not None:
                model = _with_adapter(model, source.adapter, merge)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{source.reference} cannot be loaded: {_first_line(error)}",
            hint="it must be a causal language model in Hugging Face format with safetensors weights "
            "that needs no remote code; if the file is damaged, fetch or make it again",
        ) from error
    return cast("PreTrainedModel | nn.Module", model)


def _with_adapter(model: PreTrainedModel, adapter: Path, merge: bool) -> Any:
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(model, str(adapter), is_trainable=not merge)
    return tuned.merge_and_unload() if merge else tuned


@contextmanager
def quiet() -> Iterator[None]:
    """Loading bars belong to the renderer, not to a library; the setting is put back afterwards."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
