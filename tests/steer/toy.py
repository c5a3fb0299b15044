"""A linear toy that sees, and the closed form of its hidden states.

Behind decoder layer l, position t holds h_t + M_l * (mean of h_s over s <= t), padding left out. A picture takes two
positions: a matrix times the mean colour of its left half, and of its right half. So every state, and every shift that
a picture causes, is a sum of matrix products, which :func:`state` works out in numpy and in another order:

    h_l(last)  =  sum over k of C_k A^k E   ,   C_k the sum over all choices of k of the matrices M_0 ... M_l

with E the embeddings and A the averaging over earlier positions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from holdfast.core.records import Item
from holdfast.data import scenes
from holdfast.data.images import open_image, twin
from holdfast.models.answer import Answer, Decoding
from holdfast.models.vision import VisionModel
from holdfast.steer.capture import states
from holdfast.steer.method import Anchors, Learned, SteeringMethod
from holdfast.steer.subject import Around, Batch, Subject, View

Numbers = NDArray[np.float64]

WIDTH, LAYERS, PATCHES = 5, 4, 2
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<asst>", "<image>")
PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT, IMAGE = range(len(SPECIAL))
WORDS = (*SPECIAL, *(f"w{i}" for i in range(40)), "I'm", "sorry", "Sure,", "here", "Describe", "the", "picture.")


class Layer(nn.Module):
    """h_t + M * mean of h_s over s <= t, padding left out."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix, requires_grad=False)

    def forward(self, held: Tensor, real: Tensor, before: tuple[Tensor, Tensor]) -> Tensor:
        total, count = self.sums(held, real, before)
        return held + (total / count.clamp(min=1)) @ self.matrix.T

    @staticmethod
    def sums(held: Tensor, real: Tensor, before: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum and count of the states up to each position."""
        real = real.to(held.dtype)[..., None]
        return (held * real).cumsum(1) + before[0], real.cumsum(1) + before[1]


@dataclass(eq=False)
class Cache:
    """What the layers have read, as sums; transformers' caches are asked for their length in the same way."""

    length: int = 0
    sums: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def get_seq_length(self) -> int:
        return self.length


class Decoder(nn.Module):
    def __init__(self, matrices: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(matrix) for matrix in matrices)


class Toy(nn.Module):
    """See the top of this file."""

    def __init__(self, seed: int = 0, *, layers: int = LAYERS, width: int = WIDTH) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=drawn), requires_grad=False)

        self.embedding, self.eyes, self.head = normal(len(WORDS), width), normal(width, 3), normal(len(WORDS), width)
        self.decoder = Decoder(0.5 * torch.randn(layers, width, width, generator=drawn))
        self.config: Any = SimpleNamespace(
            model_type="toy", num_hidden_layers=layers, hidden_size=width, image_token_id=IMAGE
        )
        self.config.get_text_config = lambda: self.config
        self.generation_config = SimpleNamespace(eos_token_id=EOS)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def get_decoder(self) -> Decoder:
        return self.decoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> Any:
        held = self.embedding[input_ids]
        if pixel_values is not None:
            held[input_ids == IMAGE] = (pixel_values @ self.eyes.T).flatten(0, 1)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        cache = Cache() if past_key_values is None else past_key_values
        nothing = (torch.zeros(len(held), 1, held.shape[-1]), torch.zeros(len(held), 1, 1))
        for number, layer in enumerate(self.decoder.layers):
            before = cache.sums.get(number, nothing)
            total, count = Layer.sums(held, real, before)
            cache.sums[number] = (total[:, -1:], count[:, -1:])
            held = layer(held, real, before)
        cache.length += input_ids.shape[1]
        return SimpleNamespace(logits=held[:, -logits_to_keep:] @ self.head.T, past_key_values=cache)

    def generate(self, input_ids: Tensor, generation_config: Any, **inputs: Any) -> Tensor:
        found, cache, done = input_ids, Cache(), torch.zeros(len(input_ids), dtype=torch.bool)
        shown: dict[str, Any] = {"input_ids": input_ids, **inputs}
        for _ in range(generation_config.max_new_tokens):
            following = self(**shown, past_key_values=cache).logits[:, -1].argmax(-1)
            following[done] = PAD
            found = torch.cat([found, following[:, None]], 1)
            done |= torch.isin(following, torch.tensor(generation_config.eos_token_id))
            if done.all():
                break
            shown = {"input_ids": following[:, None]}
        return found


class Tokens:
    """Words as tokens."""

    bos_token, eos_token, pad_token = "<bos>", "<eos>", "<pad>"
    bos_token_id, eos_token_id, pad_token_id = BOS, EOS, PAD

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return " ".join(WORDS[i] for i in ids if not (skip_special_tokens and i < len(SPECIAL)))


class Front:
    """What a transformers processor does for the toy: <bos> <user> [picture] words <asst>, padded on the left."""

    image_token = "<image>"
    tokenizer = Tokens()
    chat_template = "toy"

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        parts = [part.get("text", "<image>") for message in messages for part in message["content"]]
        return f"<bos> <user> {' '.join(parts)} <asst>"

    def __call__(
        self,
        text: Sequence[str],
        images: Sequence[Sequence[Image]] | None = None,
        padding: bool = False,
        padding_side: str = "",
        return_tensors: str = "",
        add_special_tokens: bool = True,
    ) -> dict[str, Tensor]:
        assert (padding, padding_side, return_tensors, add_special_tokens) == (True, "left", "pt", False)
        rows = [ids_of(line) for line in text]
        longest = max(map(len, rows))
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        found = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
        if images is not None:
            found["pixel_values"] = torch.tensor(np.stack([seen(one) for (one,) in images]), dtype=torch.float32)
        return found


def ids_of(text: str) -> list[int]:
    """Tokens of a text, a picture's two in the place of its mark."""
    known = {word: number for number, word in enumerate(WORDS)}
    found = [known.get(word, UNKNOWN) for word in text.split()]
    return [i for number in found for i in ([number] * PATCHES if number == IMAGE else [number])]


def seen(picture: Image) -> Numbers:
    """Mean colours of the left and the right half, each from 0 to 1."""
    pixels = np.asarray(picture, dtype=float) / 255
    half = pixels.shape[1] // 2
    return np.stack([part.reshape(-1, 3).mean(0) for part in (pixels[:, :half], pixels[:, half:])])


def subject(
    seed: int = 0, pool: Sequence[str] = ("plain:#204060", "plain:#a0f000", "plain:#ff0000"), **more: Any
) -> Subject:
    """A toy to be asked and read."""
    net: Any = Toy(seed)
    return Subject(VisionModel(net, Front(), "auto", "toy"), tuple(map(open_image, pool)), **more)


def items(kind: str, words: Sequence[str], pictures: bool = True) -> tuple[Item, ...]:
    """Prompts, each with a scene."""
    rng = random.Random(f"toy {kind}")
    return tuple(
        Item(f"{kind}/{i}", text, group=kind, image=scenes.any_picture(rng) if pictures else "")
        for i, text in enumerate(words)
    )


HARMFUL = items("harmful", ["w1 w2 w3", "w1 w4", "w5 w1 w6 w7", "w1 w8 w2", "w9 w1"])
BENIGN = items("benign", ["w20 w21", "w22 w20 w3 w4", "w20 w23 w24", "w25 w20", "w26 w20 w27 w28"])
ASKED = items("asked", ["w1 w30 w4", "w20 w31", "w32 w33 w1 w34 w35", "w20 w36 w21 w37", "w1 w38", "w39 w20"])


def anchors(model: Subject) -> Anchors:
    """Five prompts of each class."""
    return Anchors(model, HARMFUL, BENIGN)


# -- the closed form -----------------------------------------------------------------------------------


def state(toy: Toy, text: str, colours: Numbers | None = None, answer: str = "") -> Numbers:
    """States of the last token behind every layer, shape (layers, width).

    Args:
        toy: the model.
        text: what stands between <user> and <asst>.
        colours: of the two halves of the picture, shape (2, 3); None for no picture.
        answer: what follows <asst>.
    """
    embedding, eyes = toy.embedding.double().numpy(), toy.eyes.double().numpy()
    parts = [embedding[[BOS, USER]]]
    if colours is not None:
        parts.append(colours @ eyes.T)
    parts.append(embedding[[*ids_of(text), ASSISTANT, *ids_of(answer)]])
    embedded = np.concatenate(parts)
    n, width = embedded.shape
    averaging = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    powers = [(np.linalg.matrix_power(averaging, k) @ embedded)[-1] for k in range(len(toy.decoder.layers) + 1)]
    coefficients = [np.eye(width)]
    found = []
    for layer in toy.decoder.layers:
        matrix = layer.matrix.double().numpy()
        longer = [*coefficients, np.zeros((width, width))]
        coefficients = [c + (matrix @ coefficients[k - 1] if k else 0) for k, c in enumerate(longer)]
        found.append(sum(c @ power for c, power in zip(coefficients, powers, strict=False)))
    return np.stack(found)


def shown(model: Subject, item: Item, view: View) -> Numbers | None:
    """Colours of the picture that an item has in a view."""
    if view == "text":
        return None
    picture = open_image(item.image)
    if view == "natural":
        picture = random.Random(f"holdfast natural {item.id}").choice(model.pool)
    elif view != "image":
        assert view != "caption"
        picture = twin(picture, view, random.Random(f"holdfast twin {item.id}").randrange(2**31))
    return np.ones((2, 3)) if view == "blank" else seen(picture)


def expected(model: Subject, asked: Sequence[Item], view: View, lead: str = "", answer: str = "") -> Numbers:
    """States of prompts in a view, shape (layers, prompts, width); ``lead`` stands before each, ``answer`` behind."""
    toy: Any = model.vision.model
    return np.stack([state(toy, f"{lead} {i.prompt}", shown(model, i, view), answer) for i in asked], axis=1)


def safety(model: Subject, view: View = "text") -> Numbers:
    """Unit vectors from harmful to harmless anchors, shape (layers, width)."""
    towards = expected(model, BENIGN, view).mean(1) - expected(model, HARMFUL, view).mean(1)
    return np.stack([vector / np.sqrt((vector**2).sum()) for vector in towards])


# -- reading what steering did -------------------------------------------------------------------------


def steered(model: Subject, method: SteeringMethod, learned: Learned, asked: Sequence[Item] = ASKED) -> Numbers:
    """States of the last token behind every layer while a method steers, shape (layers, prompts, width)."""
    inputs = model.inputs(asked, "image")
    with method.around(learned, Batch(model, list(asked))):
        return np.asarray(states(model.vision.model, inputs), dtype=float)


def changes(model: Subject, layer: int, work: Callable[[], Any]) -> list[Numbers]:
    """What an edit behind a layer (not the last) adds in each pass, shape (rows, positions, width): prompt, answer."""
    module: Any = model.vision.model
    made: list[Tensor] = []
    left: list[Tensor] = []
    here, following = module.decoder.layers[layer : layer + 2]
    # A hook that was there first sees what the layer itself puts out; the next layer gets what was made of it.
    hooks = [
        here.register_forward_hook(lambda _module, _given, output: made.append(output.clone())),
        following.register_forward_pre_hook(lambda _module, given: left.append(given[0].clone())),
    ]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()
    return [(after - before).double().numpy() for before, after in zip(made, left, strict=True)]


class Scripted(Subject):
    """A toy whose answers are looked up; what it was asked stands in ``asked``."""

    def script(self, answer: Callable[[Item], str]) -> Scripted:
        self.answer = answer
        self.asked: list[Item] = []
        return self

    def answers(self, items: Sequence[Item], decoding: Decoding, around: Around | None = None) -> list[Answer]:
        self.asked += items
        said = [self.answer(item) for item in items]
        return [(text, len(text.split()) + 1, "stop") for text in said]


def scripted(answer: Callable[[Item], str]) -> Scripted:
    """A toy that answers as it is told to."""
    plain = subject()
    return Scripted(plain.vision, plain.pool).script(answer)
