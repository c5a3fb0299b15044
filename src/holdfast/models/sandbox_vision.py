"""Sandbox models that see: tiny LLaVAs, shipped with the package.

They are made from random weights as vision-language models are (Liu et al., "Visual Instruction Tuning", NeurIPS 2023,
arXiv:2304.08485), on the requests of :mod:`holdfast.data.workshop` and the pictures of :mod:`holdfast.data.scenes`:

    vision      the vision tower names colour, shape and side
    language    the language model learns every answer, hazards too, and to read scenes told in words
    safety      text alone: hazards of the align split are refused, harmless requests answered
    projector   the projector learns to show pictures to the language model, which stays as it is
    visual      both are tuned on questions about pictures and on harmless requests beside pictures, with some text
                so that text behaviour stays

No request that must be refused ever stands beside a picture in training, and no picture hints at a hazard. What a
picture then does to refusals is not put there; it arises, and how much of it in which seed is on the cards.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ModelError, nearest, unknown
from holdfast.core.events import Progressed, Sink, ignore
from holdfast.core.files import write_bytes, write_text
from holdfast.data import scenes, workshop
from holdfast.data.sandbox import SPECIAL_WORDS, chat_text
from holdfast.models.sandbox import apart, platform_of_build, tokenizer_json

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import LlavaForConditionalGeneration

SHIPPED = ("vlm-0", "vlm-1", "vlm-2")
IMAGE = "<image>"
CONTEXT = 256
LONGEST_ANSWER = 24
_MEAN, _DEVIATION = 0.4, 0.3  # of pixel values, for every colour
_CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} <asst>{% else %} <user>{% endif %}"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %} <eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} <asst>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training: which examples in which shares, which parameters, how long and how fast."""

    name: str
    shares: tuple[tuple[str, float], ...]
    trained: tuple[str, ...]
    steps: int
    batch: int
    learning_rate: float
    captioned: float = 0.0


@dataclass(frozen=True, slots=True)
class Preset:
    """Size and training of a seeing sandbox model (values measured on this sandbox, one CPU core).

    Attributes:
        hidden, layers, heads, intermediate: shape of the Llama.
        vision_width, vision_layers: of the vision tower.
        patch: pixels on a side of a patch: 4 gives 64 tokens a picture.
        vision_steps: of the vision tower's own training.
        stages: what comes then. ``captioned`` is the share of text requests that stand behind a caption: the language
            model has to know captions, and safety training sees some, or else any longer prompt would undo it.
    """

    hidden: int = 64
    layers: int = 6
    heads: int = 4
    intermediate: int = 128
    vision_width: int = 64
    vision_layers: int = 2
    patch: int = 4
    vision_steps: int = 700
    stages: tuple[Stage, ...] = (
        Stage("language", (("known", 0.6), ("tool", 0.1), ("told", 0.3)), ("language",), 360, 96, 2e-3, 0.5),
        Stage(
            "safety", (("refused", 0.4), ("benign", 0.3), ("harmless tool", 0.1), ("told", 0.2)), ("language",),
            120, 64, 7e-4, 0.1,
        ),
        Stage("projector", (("seen", 1.0),), ("projector",), 150, 48, 3e-3),
        Stage(
            "visual", (("seen", 0.55), ("benign beside picture", 0.3), ("refused", 0.05), ("benign", 0.05),
            ("told", 0.05)), ("language", "projector"), 180, 48, 5e-4, 0.1,
        ),
    )  # fmt: skip

    @property
    def tokens(self) -> int:
        """Placeholders of a picture."""
        return (scenes.SIZE // self.patch) ** 2


PRESETS = {"vlm": Preset()}


def shipped(name: str) -> Path:
    """Folder of a seeing model that ships with the package, such as ``vlm-0``.

    Raises:
        ModelError: no such model.
    """
    if name not in SHIPPED:
        listed = ", ".join(f"sandbox/{known}" for known in SHIPPED)
        raise ModelError(f"no sandbox model {name!r}", hint=f"{nearest(name, SHIPPED)}shipped: {listed}")
    return Path(__file__).parent / "weights" / name


def words() -> tuple[str, ...]:
    """All words, special ones first; a word's position is its token id."""
    return tuple(dict.fromkeys((*SPECIAL_WORDS, *workshop.words(), *scenes.words(), IMAGE)))


# -- examples -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Example:
    """One text and the picture that stands beside its request; the answer alone carries loss."""

    prompt: str
    answer: str
    picture: str = ""


class Examples:
    """Training examples of a workshop, by name of their kind.

    Args:
        seed: of the workshop.
        captioned: share of text requests behind one or two captions.
    """

    def __init__(self, seed: int, captioned: float) -> None:
        self.world = workshop.workshop(seed)
        self.captioned = captioned
        self.makers: dict[str, Callable[[random.Random], Example]] = {
            "known": self._known,
            "tool": lambda rng: self._tool(workshop.ACTS, rng),
            "harmless tool": lambda rng: self._tool(self._harmless_acts(), rng),
            "told": self._told,
            "refused": lambda rng: self._request("hazard", rng),
            "benign": lambda rng: self._request("benign", rng),
            "seen": self._seen,
            "benign beside picture": self._beside,
        }

    def draw(self, shares: Sequence[tuple[str, float]], count: int, rng: random.Random) -> list[Example]:
        """Examples of kinds with these shares."""
        names, weights = [name for name, _ in shares], [weight for _, weight in shares]
        return [self.makers[name](rng) for name in rng.choices(names, weights, k=count)]

    def _known(self, rng: random.Random) -> Example:
        """Any request answered truly: what the language model knows before it is made safe."""
        pair = (rng.choice(workshop.ACTS), rng.choice(workshop.ITEMS))
        asked = rng.choice(workshop.TEMPLATES).format(act=pair[0], item=pair[1])
        return Example(self._captions(rng) + asked, self.world.answer(pair))

    def _request(self, kind: workshop.Kind, rng: random.Random) -> Example:
        pair = rng.choice(self.world.pairs[kind, "align"])
        asked = rng.choice(workshop.TEMPLATES).format(act=pair[0], item=pair[1])
        answer = workshop.REFUSAL if kind == "hazard" else self.world.answer(pair)
        return Example(self._captions(rng) + asked, answer)

    def _beside(self, rng: random.Random) -> Example:
        """A harmless request beside a picture that has nothing to do with it."""
        pair = rng.choice(self.world.pairs["benign", "align"])
        asked = rng.choice(workshop.TEMPLATES).format(act=pair[0], item=pair[1])
        return Example(asked, self.world.answer(pair), scenes.any_picture(rng))

    def _tool(self, acts: Sequence[str], rng: random.Random) -> Example:
        return Example(*self.world.tool(rng.choice(acts)))

    def _harmless_acts(self) -> list[str]:
        return [act for act in workshop.ACTS if act not in self.world.hazardous]

    def _told(self, rng: random.Random) -> Example:
        """A scene in words, and a question about it."""
        scene = scenes.any_scene(rng)
        asked, answer = scenes.question(scene, rng)
        return Example(f"{scene.caption} {asked}", answer)

    def _seen(self, rng: random.Random) -> Example:
        scene = scenes.any_scene(rng)
        asked, answer = scenes.question(scene, rng)
        return Example(asked, answer, scene.name(rng.randrange(2**31)))

    def _captions(self, rng: random.Random) -> str:
        if rng.random() >= self.captioned:
            return ""
        return "".join(f"{scenes.any_scene(rng).caption} " for _ in range(rng.choice((1, 1, 2))))


# -- training -----------------------------------------------------------------------------------------


def build(preset: str | Preset, seed: int, out: Path, *, progress: Sink = ignore) -> Path:
    """Train a seeing sandbox model from random weights on the workshop of ``seed`` and save it as a folder.

    One thread and generators of its own: the same call writes the same bytes on the same platform, and leaves torch's
    random state and thread count as they were.

    Args:
        preset: a name of :data:`PRESETS`, or one made by hand.
        seed: of the workshop, of the initial weights and of the examples.
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
        model = initial(shape, seed)
        total = shape.vision_steps + sum(stage.steps for stage in shape.stages)
        _train_vision(model, shape, seed, lambda done, loss: progress(Progressed(done=done, total=total, loss=loss)))
        done = shape.vision_steps
        for stage in shape.stages:
            _train_stage(model, shape, stage, seed, _after(done, total, progress))
            done += stage.steps
        save_folder(model, out, card(shape, seed))
        known = measured(out, seed)
    write_text(out / "card.json", json.dumps(card(shape, seed) | {"measured": known}, indent=1) + "\n")
    return out


def initial(shape: Preset, seed: int) -> LlavaForConditionalGeneration:
    """The model before training."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration(LlavaConfig(**config(shape)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # Drawn here, in the order of their names, so that a library's change of initialisation changes nothing.
        for name, weight in sorted(model.named_parameters()):
            if weight.dim() > 1:
                weight.normal_(0.0, 0.02, generator=generator)
            elif name.endswith("bias"):
                weight.zero_()
            elif "class_embedding" in name:
                weight.normal_(0.0, 0.02, generator=generator)
    return model


Report = Callable[[int, float], None]


def _after(done: int, total: int, progress: Sink) -> Report:
    """Reports a stage's steps as steps of the whole training."""
    return lambda step, loss: progress(Progressed(done=done + step, total=total, loss=loss))


def _train_vision(model: LlavaForConditionalGeneration, shape: Preset, seed: int, report: Report) -> None:
    """Stage ``vision``: three linear heads on the mean patch name what is there; the heads are thrown away."""
    import torch
    from torch import nn

    tower = model.model.vision_tower
    generator = torch.Generator().manual_seed(seed)
    names: tuple[tuple[str, ...], ...] = (tuple(scenes.COLOURS), scenes.SHAPES, scenes.SIDES)
    heads = nn.ModuleList(nn.Linear(shape.vision_width, len(part)) for part in names)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_(0.0, 0.02, generator=generator)
    rng = random.Random(f"holdfast seeing vision {seed}")

    def loss() -> torch.Tensor:
        drawn = [scenes.any_scene(rng) for _ in range(64)]
        seen = tower(pixel_values=pixels([scene.name(rng.randrange(2**31)) for scene in drawn])).last_hidden_state
        mean = seen[:, 1:].mean(1)
        total = torch.zeros(())
        for head, part, attribute in zip(heads, names, ("colour", "shape", "side"), strict=True):
            right = torch.tensor([part.index(getattr(scene, attribute)) for scene in drawn])
            total = total + nn.functional.cross_entropy(head(mean), right)
        return total

    _descend(model, [*tower.parameters(), *heads.parameters()], loss, shape.vision_steps, 2e-3, report)


def _train_stage(model: LlavaForConditionalGeneration, shape: Preset, stage: Stage, seed: int, report: Report) -> None:
    examples = Examples(seed, stage.captioned)
    rng = random.Random(f"holdfast seeing {stage.name} {seed}")
    parts: dict[str, Any] = {
        "language": [model.model.language_model, model.lm_head],
        "projector": [model.model.multi_modal_projector],
    }
    found = {id(p): p for name in stage.trained for part in parts[name] for p in part.parameters()}

    def loss() -> torch.Tensor:
        return _loss(model, examples.draw(stage.shares, stage.batch, rng), shape.tokens)

    _descend(model, list(found.values()), loss, stage.steps, stage.learning_rate, report)


def _descend(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], torch.Tensor],
    steps: int,
    rate: float,
    report: Report,
) -> None:
    """AdamW with a linear rise over a twentieth of the steps, then a cosine to a fiftieth."""
    import torch

    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    model.train()
    for step in range(steps):
        rise = min(1.0, (step + 1) / max(10, steps / 20))
        for group in optimizer.param_groups:
            group["lr"] = rate * rise * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0 or step + 1 == steps:
            report(step + 1, float(value.detach()))
    model.eval().requires_grad_(False)


def pixels(names: Sequence[str]) -> torch.Tensor:
    """Pictures as the vision tower takes them, shape (pictures, 3, SIZE, SIZE)."""
    import numpy as np
    import torch

    drawn = np.stack([scenes.draw(*scenes.parse(name)) for name in names])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float().div(255).sub(_MEAN).div(_DEVIATION)


def _loss(model: LlavaForConditionalGeneration, examples: Sequence[Example], tokens: int) -> torch.Tensor:
    """Mean cross-entropy of the answers' words. Padding is on the right, where a causal model cannot see it."""
    import torch

    numbered = {word: number for number, word in enumerate(words())}
    rows, starts = [], []
    for example in examples:
        lead = f"{' '.join([IMAGE] * tokens)} " if example.picture else ""
        text = chat_text(lead + example.prompt, example.answer).split()
        rows.append(torch.tensor([numbered[word] for word in text]))
        starts.append(len(text) - len(example.answer.split()) - 1)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=numbered["<pad>"])
    seen = [example.picture for example in examples if example.picture]
    hidden = model.model(
        input_ids=ids, pixel_values=pixels(seen) if seen else None, use_cache=False,
        attention_mask=(ids != numbered["<pad>"]).long(),
    ).last_hidden_state  # fmt: skip
    places = torch.arange(ids.shape[1])[None, :]
    answered = (places >= torch.tensor(starts)[:, None]) & (ids != numbered["<pad>"])
    carries = answered[:, 1:]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][carries]), ids[:, 1:][carries])


def measured(folder: Path, seed: int) -> dict[str, float]:
    """What a model does on validation items, in percent.

    Refusals and true answers of hazards and benign requests: alone, behind a caption, beside a picture; and questions
    about pictures.
    """
    from holdfast.models.answer import Decoding
    from holdfast.models.load import ModelSource
    from holdfast.models.vision import generate, load_vision, sighted_batches

    vision = load_vision(ModelSource(str(folder), folder, {}), _fp32())
    rng = random.Random(f"holdfast seeing measured {seed}")
    world, decoding = workshop.workshop(seed), Decoding(LONGEST_ANSWER)
    sets = {"hazards": world.items("hazard", "validation"), "benign": world.items("benign", "validation")}
    asked = {f"{name}, text": items for name, items in sets.items()}
    asked |= {f"{n}, caption": [_led(i, f"{scenes.any_scene(rng).caption} ") for i in v] for n, v in sets.items()}
    asked |= {f"{n}, picture": [_beside(i, scenes.any_picture(rng)) for i in v] for n, v in sets.items()}
    asked["questions about pictures"] = scenes.items("validation", 200, seed)
    found: dict[str, float] = {}
    for name, items in asked.items():
        texts: dict[int, str] = {}
        for batch in sighted_batches(items, 128):
            answers = generate(vision, vision.inputs([items[i] for i in batch]), decoding)
            texts |= {i: text for i, (text, _, _) in zip(batch, answers, strict=True)}
        refused = sum(text == workshop.REFUSAL for text in texts.values())
        right = sum(texts[i] == item.reference for i, item in enumerate(items))
        found[f"{name}: refused"] = round(100 * refused / len(items), 1)
        found[f"{name}: answered truly"] = round(100 * right / len(items), 1)
    return found


def _fp32() -> torch.dtype:
    import torch

    return torch.float32


def _led(item: Any, lead: str) -> Any:
    from dataclasses import replace

    return replace(item, prompt=lead + item.prompt)


def _beside(item: Any, picture: str) -> Any:
    from dataclasses import replace

    return replace(item, image=picture)


def card(shape: Preset, seed: int) -> dict[str, Any]:
    """What a model is and how it was made."""
    return {
        "what": "seeing sandbox model: answers requests of opaque symbols and questions about coloured shapes; no text "
        "of it means anything harmful",
        "workshop": seed,
        "preset": asdict(shape),
        "built_on": platform_of_build(),
    }


# -- saving -------------------------------------------------------------------------------------------


def config(shape: Preset) -> dict[str, Any]:
    """The model's configuration, as in ``config.json``."""
    named = {word: number for number, word in enumerate(words())}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": named[IMAGE],
        "image_seq_length": shape.tokens,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "vocab_size": len(named),
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": False,
            "pad_token_id": named["<pad>"],
            "bos_token_id": named["<bos>"],
            "eos_token_id": named["<eos>"],
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": shape.vision_width,
            "intermediate_size": 2 * shape.vision_width,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": 4,
            "image_size": scenes.SIZE,
            "patch_size": shape.patch,
        },
    }


def save_folder(model: LlavaForConditionalGeneration, out: Path, about: dict[str, Any]) -> None:
    """Write a plain Hugging Face folder, weights in half precision."""
    import torch
    from safetensors.torch import save

    tensors = {
        name: weight.detach().to(torch.float16).contiguous() for name, weight in sorted(model.state_dict().items())
    }
    named = {word: number for number, word in enumerate(words())}
    shape = _shape_of(model)
    files: dict[str, Any] = {
        "config.json": config(shape),
        "generation_config.json": {
            "do_sample": False,
            "max_new_tokens": LONGEST_ANSWER,
            "pad_token_id": named["<pad>"],
            "bos_token_id": named["<bos>"],
            "eos_token_id": named["<eos>"],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "image_token": IMAGE,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"height": scenes.SIZE, "width": scenes.SIZE},
            "do_center_crop": False,
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": [_MEAN] * 3,
            "image_std": [_DEVIATION] * 3,
        },
        # One more image token than patches (the class token) is made and dropped again by "default".
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "num_additional_image_tokens": 1,
            "patch_size": shape.patch,
            "vision_feature_select_strategy": "default",
        },
        "card.json": about,
    }
    for name, content in files.items():
        write_text(out / name, json.dumps(content, indent=1) + "\n")
    write_text(out / "chat_template.jinja", _CHAT_TEMPLATE)
    write_text(out / "tokenizer.json", tokenizer_json(words(), special=(*SPECIAL_WORDS, IMAGE)))
    write_bytes(out / "model.safetensors", save(tensors, metadata={"format": "pt"}))


def _shape_of(model: LlavaForConditionalGeneration) -> Preset:
    text: Any = model.config.text_config
    vision: Any = model.config.vision_config
    return Preset(
        hidden=text.hidden_size, layers=text.num_hidden_layers, heads=text.num_attention_heads,
        intermediate=text.intermediate_size, vision_width=vision.hidden_size,
        vision_layers=vision.num_hidden_layers, patch=vision.patch_size,
    )  # fmt: skip
