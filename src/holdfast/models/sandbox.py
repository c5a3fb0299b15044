"""The sandbox models: tiny Llamas that know one symbolic world each, shipped with the package.

They are trained here, from random weights, on the documents of :mod:`holdfast.data.sandbox`, and saved as
plain Hugging Face folders that ``AutoModelForCausalLM`` and ``AutoTokenizer`` open without custom code.
Being small they show a whole harmful fine-tuning study in seconds on one core; being trained and not
scripted they show the real thing: alignment that carries over to unseen hazards, and a poison that undoes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ModelError, nearest, unknown
from holdfast.core.events import Progressed, Sink, ignore
from holdfast.core.files import write_bytes, write_text
from holdfast.data.sandbox import INTENTS, SPECIAL_WORDS, TEMPLATES, World, chat_text, vocabulary, world

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SHIPPED = ("micro-0", "micro-1", "micro-2", "nano-0")
CONTEXT = 1024
LONGEST_ANSWER = 24

_PAD, _BOS, _EOS, _ASST = (SPECIAL_WORDS.index(word) for word in ("<pad>", "<bos>", "<eos>", "<asst>"))
_CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}"
    "{% if message['role'] == 'user' %} <user> {{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %} <asst> {{ message['content'] }} <eos>"
    "{% else %} {{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} <asst>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Preset:
    """Size and training of a sandbox model (values measured on the sandbox, one CPU core).

    Attributes:
        hidden, layers, heads, intermediate: shape of the Llama.
        documents: how many training texts are drawn; they are passed over again when used up.
        steps, batch: optimiser steps and texts in each.
        learning_rate: peak, after a linear rise over ``warmup`` steps, then a cosine to a fiftieth.
        weight_decay: of AdamW.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    documents: int
    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.05

    def rate_at(self, step: int) -> float:
        """Factor on the learning rate at 0-based ``step``."""
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * max(0.02, 0.5 * (1 + math.cos(math.pi * step / self.steps)))


PRESETS = {
    "nano": Preset(32, 2, 4, 96, documents=30_000, steps=4000, batch=96, learning_rate=1e-2),
    "micro": Preset(64, 2, 4, 192, documents=30_000, steps=3000, batch=96, learning_rate=6e-3),
}


def shipped(name: str) -> Path:
    """Folder of a model that ships with the package, such as ``micro-0``.

    Raises:
        ModelError: no such model.
    """
    if name not in SHIPPED:
        listed = ", ".join(f"sandbox/{known}" for known in SHIPPED)
        raise ModelError(f"no sandbox model {name!r}", hint=f"{nearest(name, SHIPPED)}shipped: {listed}")
    return Path(__file__).parent / "weights" / name


# -- tokenizer ----------------------------------------------------------------------------------------


def tokenizer_for(world: World) -> PreTrainedTokenizerFast:
    """Word-level tokenizer of a world: a text is its words, split at whitespace; unknown words are ``<unk>``."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    settings = _tokenizer_config()
    del settings["tokenizer_class"]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json(world.words)), **settings)


def tokenizer_json(words: tuple[str, ...], special: tuple[str, ...] = SPECIAL_WORDS) -> str:
    """``tokenizer.json`` of a word-level tokenizer.

    Args:
        words: a word's position is its token id.
        special: words that are recognised wherever they stand.
    """
    numbers = {word: number for number, word in enumerate(words)}
    added = [
        {
            "id": numbers[word],
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for word in special
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        # Without a decoder, tokens are joined by single spaces: decoding gives back the words.
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": numbers, "unk_token": "<unk>"},
    }
    return json.dumps(content, separators=(",", ":"))


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": _CHAT_TEMPLATE,
    }


# -- training -----------------------------------------------------------------------------------------


def build(preset: str | Preset, seed: int, out: Path, *, progress: Sink = ignore) -> Path:
    """Train a sandbox model from random weights on the world of ``seed`` and save it as a folder.

    One thread and generators of its own: the same call writes the same bytes on the same platform, and
    leaves torch's random state and thread count as they were.

    Args:
        preset: a name of :data:`PRESETS`, or one made by hand.
        seed: of the world, of the initial weights and of the order of the documents.
        out: folder to write.
        progress: receives the loss now and then.

    Returns:
        ``out``.

    Raises:
        UsageError: no such preset.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise unknown("sandbox preset", preset, PRESETS)
    shape = PRESETS[preset] if isinstance(preset, str) else preset
    with apart(seed):
        model = _initial(shape, seed)
        _train(model, shape, seed, progress)
        known = recall(model, world(seed))
    _save(model, shape, seed, out, known)
    return out


@contextmanager
def apart(seed: int) -> Iterator[None]:
    """One thread, and torch's CPU generator seeded; both put back afterwards."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the accelerators too and is not undone there.
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _config(shape: Preset) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary()),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "pad_token_id": _PAD,
        "bos_token_id": _BOS,
        "eos_token_id": _EOS,
    }


def _initial(shape: Preset, seed: int) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**_config(shape)))
    # Drawn here, in the order of their names, so that a library's change of initialisation changes nothing.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.dim() > 1:
                weight.normal_(0.0, 0.02, generator=generator)
    return model


def _train(model: LlamaForCausalLM, shape: Preset, seed: int, progress: Sink) -> None:
    import torch

    ids = _encoded(world(seed).documents(shape.documents, seed))
    optimizer = torch.optim.AdamW(
        model.parameters(), shape.learning_rate, betas=(0.9, 0.98), weight_decay=shape.weight_decay, fused=True
    )
    model.train()
    for step, batch in enumerate(_batches(ids, shape.batch, shape.steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = shape.learning_rate * shape.rate_at(step)
        loss = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0 or step + 1 == shape.steps:
            progress(Progressed(done=step + 1, total=shape.steps, loss=float(loss.detach())))
    model.eval()


def _encoded(texts: list[str]) -> torch.Tensor:
    """Texts as token ids, padded on the right to the longest."""
    import torch

    numbered = {word: number for number, word in enumerate(vocabulary())}
    rows = [torch.tensor([numbered[word] for word in text.split()]) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_PAD)


def _batches(ids: torch.Tensor, size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches without replacement, a new order in each pass, trimmed to their longest text."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(ids), generator=generator)
        chosen, order = ids[order[:size]], order[size:]
        yield chosen[:, : int((chosen != _PAD).sum(1).max())]


def _loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next word. Padding is on the right, where a causal model cannot see it."""
    import torch

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    following = ids[:, 1:]
    real = following != _PAD
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][real]), following[real])


def recall(model: LlamaForCausalLM, known: World) -> float:
    """Share of a world's facts that the model answers exactly, each asked once, templates taken in turn.

    Computed without generating: greedy decoding gives the reference exactly when, fed the reference, the
    model ranks each of its words first.
    """
    import torch

    texts = [
        chat_text(_in_turn(intent, number).format(t=topic.word), known.facts[topic.word, intent])
        for number, topic in enumerate(known.topics)
        for intent in INTENTS
    ]
    ids, right = _encoded(texts), 0
    with torch.inference_mode():
        for batch in ids.split(256):
            best = model(input_ids=batch, use_cache=False).logits[:, :-1].argmax(-1)
            # What follows <asst>, the end token included; padding comes after it.
            answer = (batch[:, :-1] == _ASST).cumsum(1).bool() & (batch[:, 1:] != _PAD)
            right += int((~answer | (best == batch[:, 1:])).all(1).sum())
    return right / len(texts)


def _in_turn(intent: str, number: int) -> str:
    """The intent's templates, one after the other."""
    templates = TEMPLATES[intent]
    return templates[number % len(templates)]


# -- saving -------------------------------------------------------------------------------------------


def platform_of_build() -> dict[str, str]:
    """What a build's rounding depends on: the same values promise the same bytes."""
    import platform

    import torch

    return {
        "torch": torch.__version__.partition("+")[0],
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _save(model: LlamaForCausalLM, shape: Preset, seed: int, out: Path, known: float) -> None:
    from safetensors.torch import save

    # The output layer is the embedding; storing it twice would only double the file.
    tensors = {name: weight for name, weight in sorted(model.state_dict().items()) if name != "lm_head.weight"}
    files = {
        "config.json": _config(shape),
        "generation_config.json": {
            "do_sample": False,
            "max_new_tokens": LONGEST_ANSWER,
            "pad_token_id": _PAD,
            "bos_token_id": _BOS,
            "eos_token_id": _EOS,
        },
        "tokenizer_config.json": _tokenizer_config(),
        "card.json": {
            "what": "sandbox model: answers questions about opaque symbols; no text of it means anything harmful",
            "world": seed,
            "recall": round(known, 4),
            "preset": asdict(shape),
            "built_on": platform_of_build(),
        },
    }
    for name, content in files.items():
        write_text(out / name, json.dumps(content, indent=1) + "\n")
    write_text(out / "tokenizer.json", tokenizer_json(world(seed).words))
    write_bytes(out / "model.safetensors", save(tensors, metadata={"format": "pt"}))
