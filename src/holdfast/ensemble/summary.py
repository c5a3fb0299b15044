"""TOPLA-Summary: a model with long input reads the question and all candidates, and writes the answer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.events import Progressed, Sink, ignore
from holdfast.core.files import read_json, write_json
from holdfast.core.knobs import build, knob, resolved
from holdfast.models.load import quiet, require_torch

if TYPE_CHECKING:
    import torch

Candidates = Mapping[str, Sequence[str]]

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_RATES = {"tiny": 1e-3, "pretrained": 5e-5}
_IGNORED = -100


@dataclass(frozen=True)
class ToplaSummary:
    """[BOQ] question [EOQ] [BOC0] candidate [EOC0] ... -> answer, by an encoder-decoder of the LED family.

    Tekin, Ilhan, Huang, Hu, Liu, "LLM-TOPLA", Findings of EMNLP 2024, section 4.2: global attention on the question,
    local attention on the candidates, special tokens for each member. Differs from the authors' code: answers are
    generated (theirs are read from logits that were given the reference's words); padding is left out of the loss; the
    best epoch's weights are restored, not the last ones; marks are looked up, not fixed numbers; candidates keep their
    full stops; members are silenced at random in training, so that one may be missing.
    """

    name: ClassVar[str] = "topla-summary"
    version: ClassVar[int] = 1

    base: str = knob(
        "tiny", "folder or hub id of an LED model; tiny: a small one, from nothing", source="paper: led-base-16384"
    )
    epochs: int = knob(10, "passes over the items at most", low=1, source="authors' code")
    batch: int = knob(4, "items a step", low=1, source="authors' code")
    learning_rate: float = knob(0.0, "of AdamW; 0: 5e-5 for a pretrained base (authors' code), 1e-3 for tiny", low=0)
    patience: int = knob(3, "epochs without a better validation loss before it stops", low=1, source="authors' code")
    validation: float = knob(0.1, "share of the items that chooses the epoch", low=0.01, high=0.5)
    max_input: int = knob(
        16000,
        "input tokens at most; longer candidates are shortened, never the question",
        low=16,
        source="authors' code",
    )
    max_answer: int = knob(512, "answer tokens at most", low=1, source="authors' code")
    sentences: int = knob(6, "last sentences of a candidate that are kept; 0: all", low=0, source="authors' code")
    drop: float = knob(0.1, "chance that a member is silent at a training step", low=0, high=0.9)
    beams: int = knob(1, "beams of the answer; 1: greedy", low=1)
    width: int = knob(64, "width of the tiny model", low=8)
    layers: int = knob(2, "layers of the tiny model's encoder, and of its decoder", low=1)
    window: int = knob(64, "local attention window of the tiny model; even", low=2)
    seed: int = knob(0, "of weights, order and silence", low=0)

    def fit(
        self,
        questions: Sequence[str],
        candidates: Sequence[Candidates],
        references: Sequence[str],
        folder: Path,
        sink: Sink = ignore,
    ) -> Fuser:
        """Train, and keep model, tokenizer and card in a folder (safetensors and JSON).

        Args:
            questions: one an item.
            candidates: per item, member -> its answers; a member may be missing.
            references: right answers.
            folder: made if it is not there.
            sink: where progress goes.

        Raises:
            DataError: nothing to learn from, unequal lengths, an empty reference, or a question longer than the input.
            ModelError: the base is not of the LED family, or cannot be loaded.
            MissingExtra: PyTorch is not installed.
        """
        if not len(questions) == len(candidates) == len(references) or len(questions) < 2:
            raise DataError(
                f"{len(questions)} questions, {len(candidates)} candidate sets, {len(references)} references",
                hint="as many of each, at least two",
            )
        empty = next((place for place, text in enumerate(references) if not text.strip()), None)
        if empty is not None:
            raise DataError(f"reference {empty} is empty", hint="leave items without a reference out")
        require_torch()
        import torch

        members = tuple(dict.fromkeys(name for one in candidates for name in one))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model, tokenizer = self._start(members, [*questions, *references, *_texts(candidates)])
            fuser = Fuser(self, model, tokenizer, members)
            history = _Training(self, fuser, sink).run(questions, candidates, references)
        fuser.history = history
        fuser.save(folder)
        return fuser

    def _start(self, members: Sequence[str], texts: Sequence[str]) -> tuple[Any, Any]:
        marks = _marks(len(members))
        if self.base == "tiny":
            tokenizer = _word_tokenizer(texts, marks)
            return self._tiny(tokenizer), tokenizer
        from transformers import AutoTokenizer, LEDForConditionalGeneration

        from holdfast.models.load import resolve

        source = resolve(self.base)
        kind = read_json(source.folder / "config.json").get("model_type")
        if kind != "led":
            raise ModelError(
                f"{self.base} is a {kind} model", hint="an LED model: allenai/led-base-16384, or base = 'tiny'"
            )
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
                model = LEDForConditionalGeneration.from_pretrained(source.folder, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"{self.base} cannot be loaded: {error}", hint="an LED folder with safetensors weights"
            ) from error
        tokenizer.add_tokens(list(marks), special_tokens=True)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return model, tokenizer

    def _tiny(self, tokenizer: Any) -> Any:
        from transformers import LEDConfig, LEDForConditionalGeneration

        heads = max(1, self.width // 16)
        longest = self.window * math.ceil(min(self.max_input, 4096) / self.window)
        return LEDForConditionalGeneration(
            LEDConfig(
                vocab_size=len(tokenizer), d_model=self.width, encoder_layers=self.layers, decoder_layers=self.layers,
                encoder_ffn_dim=4 * self.width, decoder_ffn_dim=4 * self.width, encoder_attention_heads=heads,
                decoder_attention_heads=heads, attention_window=[self.window] * self.layers, dropout=0.0,
                max_encoder_position_embeddings=longest, max_decoder_position_embeddings=self.max_answer + 2,
                pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
            )
        )  # fmt: skip


class Fuser:
    """A trained model that fuses candidates.

    Attributes:
        knobs: what made it.
        members: names, in the order of their marks.
        history: validation loss of each epoch.
        shortened: inputs that were too long since it was made.
    """

    def __init__(self, knobs: ToplaSummary, model: Any, tokenizer: Any, members: Sequence[str]) -> None:
        self.knobs, self.model, self.tokenizer, self.members = knobs, model, tokenizer, tuple(members)
        self.history: list[float] = []
        self.shortened = 0
        self._mark = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in _marks(len(self.members))}

    def answer(self, questions: Sequence[str], candidates: Sequence[Candidates], batch: int = 64) -> list[str]:
        """The answers, by ``generate``; deterministic. The references are nowhere in sight.

        Args:
            questions: one an item.
            candidates: per item, member -> its answers; a member may be missing.
            batch: items at once.

        Raises:
            DataError: unequal lengths, a member that training did not have, or a question longer than the input.
        """
        import torch
        from transformers import GenerationConfig

        if len(questions) != len(candidates):
            raise DataError(f"{len(questions)} questions, {len(candidates)} candidate sets", hint="as many of each")
        config = self.model.config
        settings = GenerationConfig(
            do_sample=False, num_beams=self.knobs.beams, max_new_tokens=self.knobs.max_answer,
            pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id, bos_token_id=config.bos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )  # fmt: skip
        made: list[str] = []
        self.model.eval()
        for start in range(0, len(questions), batch):
            part = slice(start, start + batch)
            inputs = self.collate([self.encode(q, c) for q, c in zip(questions[part], candidates[part], strict=True)])
            with torch.inference_mode():
                out = self.model.generate(**inputs, generation_config=settings)
            made += [text.strip() for text in self.tokenizer.batch_decode(out, skip_special_tokens=True)]
        return made

    def encode(self, question: str, candidates: Candidates) -> tuple[list[int], int]:
        """Input tokens, and how many of them, from the start, are the question with its marks."""
        strangers = [name for name in candidates if name not in self.members]
        if strangers:
            raise DataError(f"no member {strangers[0]!r} in training", hint=f"members: {', '.join(self.members)}")
        asked = [self._mark["[BOQ]"], *self._ids(question), self._mark["[EOQ]"]]
        parts = [
            (place, self._ids(last_sentences(text, self.knobs.sentences)))
            for place, name in enumerate(self.members)
            for text in candidates.get(name, ())
        ]
        room = min(self.knobs.max_input, self._positions()) - len(asked) - 2 * len(parts)
        if room < 0:
            raise DataError(f"a question of {len(asked)} tokens leaves no room for candidates", hint="raise max_input")
        lengths = [len(ids) for _, ids in parts]
        keep = even_lengths(lengths, room)
        self.shortened += keep != lengths
        ids = list(asked)
        for (place, tokens), n in zip(parts, keep, strict=True):
            # The end of a candidate has its answer.
            ids += [self._mark[f"[BOC{place}]"], *tokens[len(tokens) - n :], self._mark[f"[EOC{place}]"]]
        return ids, len(asked)

    def collate(self, encoded: Sequence[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
        """Padded inputs with attention mask, and global attention on the question's tokens alone."""
        import torch

        windows = self.model.config.attention_window
        window = max(windows) if isinstance(windows, list) else int(windows)
        width = window * math.ceil(max(len(ids) for ids, _ in encoded) / window)
        tokens = torch.full((len(encoded), width), int(self.model.config.pad_token_id))
        seen, everywhere = torch.zeros_like(tokens), torch.zeros_like(tokens)
        for row, (ids, asked) in enumerate(encoded):
            tokens[row, : len(ids)] = torch.tensor(ids)
            seen[row, : len(ids)] = 1
            everywhere[row, :asked] = 1
        made = {"input_ids": tokens, "attention_mask": seen, "global_attention_mask": everywhere}
        return {name: tensor.to(self.model.device) for name, tensor in made.items()}

    def labels(self, references: Sequence[str]) -> torch.Tensor:
        """Answer tokens with an end; padding is left out of the loss."""
        import torch

        rows = [[*self._ids(text)[: self.knobs.max_answer - 1], self.model.config.eos_token_id] for text in references]
        made = torch.full((len(rows), max(len(row) for row in rows)), _IGNORED)
        for place, row in enumerate(rows):
            made[place, : len(row)] = torch.tensor(row)
        return made.to(self.model.device)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _positions(self) -> int:
        return int(self.model.config.max_encoder_position_embeddings)

    def save(self, folder: Path) -> None:
        """Write model (safetensors), tokenizer and card."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        card = {"method": self.knobs.name, "version": self.knobs.version, "knobs": resolved(self.knobs)}
        write_json(folder / "summary.json", card | {"members": list(self.members), "history": self.history})


def load(folder: Path) -> Fuser:
    """A fuser from the folder that :meth:`ToplaSummary.fit` wrote.

    Raises:
        DataError: the folder holds none, or a damaged one.
    """
    require_torch()
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, LEDForConditionalGeneration

    try:
        card = read_json(folder / "summary.json")
        with quiet():
            model = LEDForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        made = Fuser(build(ToplaSummary, card["knobs"], str(folder)), model, tokenizer, card["members"])
    except (OSError, KeyError, TypeError, ValueError, UsageError, SafetensorError) as error:
        raise DataError(f"{folder} holds no fuser: {error}", hint="train it again") from error
    made.history = card["history"]
    return made


class _Training:
    """One training under way."""

    def __init__(self, knobs: ToplaSummary, fuser: Fuser, sink: Sink) -> None:
        self.knobs, self.fuser, self.sink = knobs, fuser, sink
        self.generator = np.random.default_rng(knobs.seed)

    def run(self, questions: Sequence[str], candidates: Sequence[Candidates], references: Sequence[str]) -> list[float]:
        """Train; the best epoch's weights are in the model afterwards. Returns the validation losses."""
        import torch

        knobs, model = self.knobs, self.fuser.model
        order = self.generator.permutation(len(questions))
        held = max(1, round(knobs.validation * len(order)))
        check, train = order[:held], order[held:]
        rate = knobs.learning_rate or _RATES["tiny" if knobs.base == "tiny" else "pretrained"]
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
        total = knobs.epochs * math.ceil(len(train) / knobs.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.0, 1 - step / total))
        history: list[float] = []
        best, done = copy.deepcopy(model.state_dict()), 0
        for _ in range(knobs.epochs):
            model.train()
            for part in _parts(self.generator.permutation(train), knobs.batch):
                given = [self._silenced(candidates[i]) for i in part]
                loss = self._loss([questions[i] for i in part], given, [references[i] for i in part])
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                done += 1
                self.sink(Progressed(done=done, total=total, loss=float(loss.detach())))
            history.append(self._validated(questions, candidates, references, check))
            if history[-1] == min(history):
                best = copy.deepcopy(model.state_dict())  # a copy: the state's tensors go on changing
            if len(history) - 1 - int(np.argmin(history)) >= knobs.patience:
                break
        model.load_state_dict(best)
        return history

    def _loss(
        self, questions: Sequence[str], candidates: Sequence[Candidates], references: Sequence[str]
    ) -> torch.Tensor:
        encoded = [self.fuser.encode(q, c) for q, c in zip(questions, candidates, strict=True)]
        out = self.fuser.model(**self.fuser.collate(encoded), labels=self.fuser.labels(references))
        loss: torch.Tensor = out.loss
        return loss

    def _validated(
        self, questions: Sequence[str], candidates: Sequence[Candidates], references: Sequence[str], rows: Any
    ) -> float:
        import torch

        self.fuser.model.eval()
        sums = 0.0
        with torch.inference_mode():
            for part in _parts(rows, 64):
                loss = self._loss(
                    [questions[i] for i in part], [candidates[i] for i in part], [references[i] for i in part]
                )
                sums += float(loss) * len(part)
        return sums / len(rows)

    def _silenced(self, candidates: Candidates) -> Candidates:
        """The candidates without members that are silent this time; one always stays."""
        kept = {name: texts for name, texts in candidates.items() if self.generator.random() >= self.knobs.drop}
        return kept or dict(list(candidates.items())[:1])


def last_sentences(text: str, n: int) -> str:
    """The last sentences of a text, with their full stops; all for 0."""
    if not n:
        return text
    parts = [part for part in text.replace("####", " ").split(". ") if part.strip()]
    return ". ".join(parts[-n:])


def even_lengths(lengths: Sequence[int], room: int) -> list[int]:
    """Lengths cut to one common limit, the largest with which all fit into the room."""
    if sum(lengths) <= room:
        return list(lengths)
    limit, left, ordered = 0, room, sorted(lengths)
    for place, length in enumerate(ordered):
        share = left // (len(ordered) - place)
        if length > share:
            limit = share
            break
        left -= length
    return [min(length, limit) for length in lengths]


def _marks(n_members: int) -> tuple[str, ...]:
    return ("[BOQ]", "[EOQ]", *(mark for k in range(n_members) for mark in (f"[BOC{k}]", f"[EOC{k}]")))


def _texts(candidates: Sequence[Candidates]) -> Iterator[str]:
    for one in candidates:
        for texts in one.values():
            yield from texts


def _word_tokenizer(texts: Sequence[str], marks: Sequence[str]) -> Any:
    """Words of the training texts as tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(word for text in texts for word in text.split())
    vocabulary = {word: place for place, word in enumerate([*_SPECIAL, *marks, *(w for w in words if w not in marks)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )  # fmt: skip
    made.add_tokens(list(marks), special_tokens=True)
    return made


def _parts(order: Any, size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield [int(i) for i in order[start : start + size]]
