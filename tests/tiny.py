"""Models, rows and passes small enough to check by hand; the tests of training and of models share them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.events import Sink, ignore
from holdfast.finetune.loop import Job, Outcome, make_accelerator, train
from holdfast.finetune.method import TrainingMethod
from holdfast.finetune.passes import LoopPasses
from holdfast.finetune.settings import Training
from holdfast.finetune.streams import RowStream
from holdfast.models.engine import Engine
from holdfast.models.template import Encoded

VOCABULARY = 50
PAD = 0
CPU = torch.device("cpu")


def llama(seed: int = 0, **changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": PAD,
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
    }  # fmt: skip
    return _seeded(seed, lambda: LlamaForCausalLM(LlamaConfig(**shape | changes)))


def qwen2(seed: int = 0, **changes: Any) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": PAD,
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2, "tie_word_embeddings": True,
    }  # fmt: skip
    return _seeded(seed, lambda: Qwen2ForCausalLM(Qwen2Config(**shape | changes)))


def gpt2(seed: int = 0, **changes: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    return _seeded(seed, lambda: GPT2LMHeadModel(GPT2Config(**shape | changes)))


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def body(model: nn.Module) -> nn.Module:
    """All trainable but the embeddings."""
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        part.requires_grad_(False)
    return model


def lora(
    model: nn.Module, *, dropout: float = 0.0, targets: Sequence[str] = ("q_proj", "v_proj", "down_proj")
) -> nn.Module:
    """A LoRA whose B is not zero, so that every tensor has a gradient."""
    from peft import LoraConfig, get_peft_model

    def make() -> nn.Module:
        config = LoraConfig(
            r=4, lora_alpha=8, lora_dropout=dropout, target_modules=list(targets), task_type="CAUSAL_LM"
        )
        tuned = get_peft_model(model, config)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        return tuned

    return _seeded(7, make)


def rows(name: str, count: int = 12, shortest: int = 5, longest: int = 14, seed: int = 0) -> list[Encoded]:
    """Rows of different lengths, prompt and answer both at least two tokens."""
    rng = random.Random(f"{name}-{seed}")
    made = []
    for _ in range(count):
        length = rng.randint(shortest, longest)
        made.append(Encoded(tuple(rng.randrange(3, VOCABULARY) for _ in range(length)), rng.randint(2, length - 2)))
    return made


def data(count: int = 12) -> dict[str, list[Encoded]]:
    return {name: rows(name, count) for name in ("safety", "harmful", "user")}


def streams(
    sets: Mapping[str, Sequence[Encoded]], batch: int, accumulate: int = 1, seed: int = 0
) -> dict[Any, RowStream]:
    return {name: RowStream(found, batch, accumulate, PAD, seed, name) for name, found in sets.items()}


def passes(model: nn.Module, sets: Mapping[Any, RowStream], steps: int = 10, precision: str = "fp32") -> LoopPasses:
    """The loop's own passes over a model in training mode."""
    accelerator = make_accelerator(precision, "cpu")
    prepared = accelerator.prepare(model)
    prepared.train()
    return LoopPasses(accelerator, prepared, [p for p in model.parameters() if p.requires_grad], sets, steps)


def fit(
    model: nn.Module,
    method: TrainingMethod,
    folder: Path,
    *,
    sets: Mapping[str, Sequence[Encoded]] | None = None,
    replay: Mapping[Any, Any] | None = None,
    steps: int = 6,
    seed: int = 0,
    every: int = 0,
    sink: Sink = ignore,
    **settings: Any,
) -> Outcome:
    """Train in place with Holdfast's loop, from a checkpoint in ``folder`` if one is there."""
    training = Training(**{"steps": steps, "batch_size": 4, "learning_rate": 1e-2} | settings)
    found = replay or streams(sets or data(), training.batch_size, training.accumulate, seed)
    used = {name: stream for name, stream in found.items() if name in method.needs}
    return train(Job(model, method, used, training, steps, folder), Engine(device="cpu", checkpoint_every=every), sink)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Equal to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def assert_close(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], atol: float = 1e-6, rtol: float = 1e-5
) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=atol, rtol=rtol, msg=partial(_named, name))


def _named(name: str, message: str) -> str:
    return f"{name}: {message}"


def plain_loss(model: nn.Module, found: Sequence[Encoded]) -> Tensor:
    """Mean cross-entropy of the answer tokens by transformers' own loss, on a padded batch with its mask."""
    width = max(len(row.ids) for row in found)
    ids = torch.tensor([[*row.ids, *[PAD] * (width - len(row.ids))] for row in found])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in found])
    place = torch.arange(width)[None, :]
    answer = (place >= torch.tensor([[row.prompt_length] for row in found])) & mask.bool()
    return model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~answer, -100)).loss


def plain_gradient(model: nn.Module, found: Sequence[Encoded]) -> dict[str, Tensor]:
    """Gradient of :func:`plain_loss` at the model's weights, by a copy of the model."""
    other = copy.deepcopy(model)
    other.zero_grad()
    plain_loss(other, found).backward()
    return gradients(other)


class HandPasses:
    """The protocol of Passes for functions that can be written down: stream name -> loss of the parameters."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], losses: Mapping[str, Callable[..., Tensor]], steps: int = 100
    ) -> None:
        self.parameters = parameters
        self.model = nn.ParameterList(parameters)
        self.step, self.total_steps = 0, steps
        self.drawn: list[str] = []
        self.measured: dict[str, Any] = {}
        self._losses = losses

    def draw(self, stream: str) -> str:
        self.drawn.append(stream)
        return stream

    def losses(self, batch: str) -> Iterator[Tensor]:
        yield self._losses[batch](*self.parameters)

    def back(self, loss: Tensor) -> None:
        loss.backward()

    def backward(self, batch: str, scale: float = 1.0) -> Tensor:
        (loss,) = self.losses(batch)
        self.back(scale * loss)
        return loss.detach()

    def gradient(self, batch: str) -> tuple[list[Tensor], Tensor]:
        (loss,) = self.losses(batch)
        return list(torch.autograd.grad(loss, list(self.parameters))), loss.detach()

    def log(self, **numbers: Any) -> None:
        self.measured.update(numbers)

    def descend(self, rate: float) -> None:
        """One step of gradient descent."""
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.sub_(rate * parameter.grad)
                parameter.grad = None
        self.step += 1


class Interruption:
    """Raises KeyboardInterrupt at the n-th forward pass (1-based) of a model."""

    def __init__(self, model: nn.Module, at: int) -> None:
        self._left = at
        self._hook = model.register_forward_pre_hook(self._count)

    def _count(self, _module: nn.Module, _inputs: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self._hook.remove()
            raise KeyboardInterrupt


CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(chat: str | None = CHAT, **changes: Any) -> Any:
    """Byte-level pieces with a few merges, learned on the spot: spaces and newlines join what follows them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    letters = [*"0123456789wadehilnopqrstuyRITB#.:?,", *map(chr, (0x120, 0x10A))]
    merges = [(chr(0x120), "w")]
    pieces = [*special, *letters, *("".join(pair) for pair in merges)]
    model = models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges)
    core = Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    settings = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | changes
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=special[3:], **settings,
    )  # fmt: skip
    made.chat_template = chat
    return made
