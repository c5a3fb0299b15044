"""Interventions: changes of the hidden states behind decoder layers, while a model reads or answers.

Positions are absolute. A prompt of P tokens (padded on the left) fills positions 0 to P - 1 whatever pieces it is
read in, and answers follow from P on. What a forward pass holds is found from the length of its cache, so one
rule is right for cached and cacheless decoding, chunked prefill, beams, sampling and speculative decoding.

It fails closed. Hooks count what they changed; where a layer fired less often than the model ran, or a prompt's
positions were passed over, generation raises :class:`holdfast.core.errors.NotApplied` and returns nothing.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from holdfast.core.errors import ModelError, NotApplied, UsageError
from holdfast.models.architecture import decoder_layers, inner

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Tokens = Literal["last", "text", "image", "all"]
Phases = Literal["prefill", "all", "decode"]
When = Literal["image", "always"]

# States of shape (n, width) and, for each, the row of the prompt that it belongs to; returns states of that shape.
Change = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Edit:
    """One change behind one decoder layer.

    Attributes:
        layer: 0-based decoder layer; its output is changed.
        change: see :data:`Change`; must not write into what it is given.
        tokens: positions of the prompt that are changed: its last one, its text (all but padding and the
            picture's placeholders), the placeholders, or all but padding.
        phases: while the prompt is read, at every later position as well, or at those alone.
    """

    layer: int
    change: Change
    tokens: Tokens = "last"
    phases: Phases = "prefill"


@dataclass
class Prompt:
    """What is known of the prompts of a call: all boolean tensors of shape (rows, P) on the model's device.

    Attributes:
        real: not padding.
        image: placeholders of a picture; None where the family has none.
        sees: shape (rows,): whether the row has a picture.
        last: shape (rows,): position of the last token.
        start: position from which on the prompt is read in this call: earlier ones came from a cache.
        ids: token ids of its last positions (all of them, but for what came from a cache); None for embeddings.
    """

    real: Tensor
    image: Tensor | None
    sees: Tensor
    last: Tensor
    start: int = 0
    ids: Tensor | None = None
    answering: dict[tuple[Any, ...], _Plan | None] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Prompts in the batch."""
        return int(self.real.shape[0])

    @property
    def length(self) -> int:
        """P."""
        return int(self.real.shape[1])

    def chosen(self, tokens: Tokens) -> Tensor:
        """Positions that a kind of token stands at, shape (rows, P)."""
        import torch

        if tokens == "all":
            return self.real
        if tokens == "last":
            places = torch.arange(self.length, device=self.real.device)
            return places[None, :] == self.last[:, None]
        if self.image is None:
            raise UsageError(
                f"tokens = {tokens!r} needs placeholders of the picture in the prompt; this family has none",
                hint="use tokens = 'last' or 'all'",
            )
        return self.image if tokens == "image" else self.real & ~self.image

    def goes_on(self, ids: Tensor | None, begin: int) -> bool:
        """Whether a pass of these ids that begins at a position holds what the prompt has there."""
        import torch

        if ids is None or begin >= self.length:
            return True
        if self.ids is None:
            return False
        first = self.length - self.ids.shape[1]
        if begin < first:
            return False
        own = self.ids[:, begin - first :][:, : ids.shape[1]]
        times = _times(ids.shape[0], self.rows)
        return torch.equal(ids[:, : own.shape[1]], own.repeat_interleave(times, dim=0).to(ids.device))


@dataclass
class _Plan:
    """Where an edit applies in a pass.

    Attributes:
        rows, places: of the positions, row by row; ``places`` is None where every position of the pass is one.
        count: how many there are.
        covered: how many of them are positions of the prompts (each once, however many beams).
    """

    rows: Tensor
    places: Tensor | None
    count: int
    covered: int

    def on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Rows and places on a device."""
        if self.rows.device != device:
            self.rows = self.rows.to(device)
            self.places = self.places if self.places is None else self.places.to(device)
        return self.rows, self.places


@dataclass
class _Pass:
    """One forward pass of the whole model: what its positions are, and where edits apply in it."""

    prompt: Prompt
    begin: int
    length: int
    plans: dict[tuple[Any, ...], _Plan | None] = field(default_factory=dict)


@dataclass
class Tally:
    """What happened under an intervention: forward passes, firings and changed positions of each layer."""

    passes: int = 0
    fired: Counter[int] = field(default_factory=Counter)
    changed: Counter[int] = field(default_factory=Counter)
    covered: dict[tuple[int, int], int] = field(default_factory=dict)


class Intervention:
    """A set of edits, to be put on a model for a while.

    Args:
        edits: what is changed; none leaves the model as it is, to the bit.
        when: only rows that have a picture, or all.
        sees: shape (rows,): which rows have a picture, for callers whose inputs do not show it (embeddings instead
            of token ids).

    Use::

        with Intervention(edits).on(model):
            model.generate(**inputs)
    """

    def __init__(self, edits: Sequence[Edit], *, when: When = "image", sees: Sequence[bool] | None = None) -> None:
        self.edits = tuple(edits)
        self.when = when
        self.sees = sees
        self.tally = Tally()
        self._model: Any = None
        self._layers: Mapping[int, nn.Module] = {}
        self._prompt: Prompt | None = None
        self._pass: _Pass | None = None
        self._cached: weakref.WeakKeyDictionary[Any, Prompt] = weakref.WeakKeyDictionary()
        self._inside = False

    # -- on and off ------------------------------------------------------------------------------------

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[Tally]:
        """Steer a model inside the block; afterwards nothing of it is left on the model.

        Yields:
            the tally, which goes on counting.

        Raises:
            UsageError: the model is being steered already.
            ModelError: it has not the layers that the edits name.
            NotApplied: (from ``generate`` inside the block) a layer fired too seldom.
        """
        core: Any = inner(model)
        if core in _STEERED:
            raise UsageError(
                "this model is being steered already", hint="put all edits into one Intervention, or end the other one"
            )
        layers = decoder_layers(core)
        wrong = sorted({e.layer for e in self.edits if not 0 <= e.layer < len(layers)})
        if wrong:
            raise ModelError(
                f"an edit names decoder layer {wrong[0]}; the model has layers 0 to {len(layers) - 1}",
                hint="fit the vectors on this model",
            )
        self._model, self.tally = core, Tally()
        self._layers = {edit.layer: layers[edit.layer] for edit in self.edits}
        hooks: list[Any] = []
        if self.edits:
            hooks.append(core.register_forward_pre_hook(self._begin, with_kwargs=True))
            hooks.append(core.register_forward_hook(self._end, always_call=True))
        hooks += [layer.register_forward_hook(self._hook(number)) for number, layer in self._layers.items()]
        _STEERED.add(core)
        own = core.__dict__.get("generate")
        if self.edits:
            core.generate = self._generate(core.generate)
        try:
            yield self.tally
        finally:
            for hook in hooks:
                hook.remove()
            if self.edits:
                _restore(core, "generate", own)
            _STEERED.discard(core)
            self._model, self._prompt, self._pass = None, None, None

    def _generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def generate(*args: Any, **options: Any) -> Any:
            if self._inside:  # some ways of decoding call generate again
                return original(*args, **options)
            self._prompt = self._read_prompt(args, options)
            self._inside = True
            before = (self.tally.passes, Counter(self.tally.fired))
            self.tally.covered.clear()
            try:
                result = original(*args, **options)
            finally:
                self._inside = False
            self._check(before)
            self._remember(options.get("past_key_values"), getattr(result, "past_key_values", None))
            self._prompt = None
            return result

        return generate

    def _check(self, before: tuple[int, Counter[int]]) -> None:
        passes, fired = before
        ran = self.tally.passes - passes
        if ran < 1:
            raise NotApplied(
                "the model generated without running under the intervention's eyes",
                hint="steer the model whose generate() is called, without torch.compile around it",
            )
        for layer in self._layers:
            times = self.tally.fired[layer] - fired[layer]
            if times < ran:
                raise NotApplied(
                    f"the hook behind decoder layer {layer} fired {times} times in {ran} passes",
                    hint="turn off torch.compile and CUDA graphs (cache_implementation='dynamic'), or fold the shift "
                    "into the weights: holdfast steer fold",
                )
        self._check_covered()

    def _check_covered(self) -> None:
        """Every position of the prompts that an edit is for was changed once at least."""
        assert self._prompt is not None
        for number, edit in enumerate(self.edits):
            if edit.phases == "decode":
                continue
            wanted = self._rows_of(self._prompt)[:, None] & self._prompt.chosen(edit.tokens)
            expected = int(wanted[:, self._prompt.start :].sum())
            done = self.tally.covered.get((number, edit.layer), 0)
            if done < expected:
                raise NotApplied(
                    f"decoder layer {edit.layer} changed {done} of {expected} positions of the prompts",
                    hint="report the model's family: its prompt is not read as others are",
                )

    # -- what the inputs say ----------------------------------------------------------------------------

    def _read_prompt(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> Prompt:
        ids = args[0] if args else None
        for name in ("input_ids", "inputs"):
            ids = options.get(name) if ids is None else ids
        cache = options.get("past_key_values")
        read = 0 if cache is None else int(cache.get_seq_length())
        earlier = self._cached.get(cache) if cache is not None and read else None
        return self._prompt_of(ids, options, start=read, earlier=earlier)

    def _prompt_of(
        self, ids: Tensor | None, options: Mapping[str, Any], *, start: int = 0, earlier: Prompt | None = None
    ) -> Prompt:
        import torch

        embeds = options.get("inputs_embeds")
        shown = ids if ids is not None and ids.shape[-1] else embeds
        if shown is None:
            raise NotApplied("neither token ids nor embeddings were given", hint="call with input_ids=...")
        rows, length, device = shown.shape[0], shown.shape[1], shown.device
        mask = _padding(options)
        # Wider than the ids where a conversation goes on: the mask covers the cache as well.
        real = torch.ones(rows, length, dtype=torch.bool, device=device) if mask is None else mask.bool()
        image = None
        place = self._image_token()
        if ids is not None and ids.shape[-1] and place is not None:
            image = torch.zeros_like(real)
            image[:, real.shape[1] - length :] = ids == place
        known = earlier if earlier is not None and earlier.rows == rows else None
        # Where the ids are only the end of what the mask covers, a picture may stand in what a cache brought.
        unseen = known is None and start > 0 and real.shape[1] > length
        sees = self._sees(image if not unseen else None, options, rows, device, known)
        places = torch.arange(real.shape[1], device=device)
        last = torch.where(real, places[None, :], -1).amax(1)
        return Prompt(real, image, sees, last, start, ids if ids is not None and ids.shape[-1] else None)

    def _sees(
        self, image: Tensor | None, options: Mapping[str, Any], rows: int, device: torch.device, known: Prompt | None
    ) -> Tensor:
        import torch

        if self.sees is not None:
            found = torch.tensor(list(self.sees), device=device)
            if len(found) != rows:
                raise UsageError(f"'sees' has {len(found)} values for {rows} prompts", hint="give one a prompt")
            return found
        if self.when == "always":
            return torch.ones(rows, dtype=torch.bool, device=device)
        if image is not None:
            return image.any(1) if known is None else image.any(1) | known.sees
        for name in ("image_attention_mask", "cross_attention_mask"):
            if options.get(name) is not None:
                attended: Tensor = options[name].flatten(1).bool().any(1).to(device)
                return attended if known is None else attended | known.sees
        if options.get("pixel_values") is not None and (rows == 1 or self._image_token() is None):
            return torch.ones(rows, dtype=torch.bool, device=device)
        if self._image_token() is None and options.get("inputs_embeds") is None:
            return torch.zeros(rows, dtype=torch.bool, device=device)
        raise NotApplied(
            "the inputs do not show which prompts have a picture (embeddings instead of token ids, or the end of a "
            "conversation whose beginning was not steered)",
            hint="say it: Intervention(..., sees=[True, False, ...])",
        )

    def _image_token(self) -> int | None:
        return image_token(self._model)

    def _rows_of(self, prompt: Prompt) -> Tensor:
        return prompt.sees if self.when == "image" else prompt.sees | True

    def _remember(self, *caches: Any) -> None:
        for cache in caches:
            if cache is not None and self._prompt is not None:
                self._cached[cache] = self._prompt

    # -- the passes --------------------------------------------------------------------------------------

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Before a pass of the whole model: which positions it holds."""
        ids = options.get("input_ids", args[0] if args else None)
        shown = ids if ids is not None else options.get("inputs_embeds")
        if shown is None:
            raise NotApplied("neither token ids nor embeddings were given", hint="call with input_ids=...")
        cache = options.get("past_key_values")
        begin = 0 if cache is None else int(cache.get_seq_length())
        length = int(shown.shape[1])
        prompt = self._prompt if self._inside else self._alone(ids, options, begin, length)
        assert prompt is not None
        if not prompt.goes_on(ids, begin):
            raise NotApplied(
                f"a pass that begins at position {begin} does not hold what the prompt has there",
                hint="turn off what leaves tokens out of the prompt or of its cache (pruning, eviction)",
            )
        self.tally.passes += 1
        self._pass = _Pass(prompt, begin, length)

    def _end(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        """After it: every hook has fired. Layers that run outside a pass are refused, not taken for a part of it."""
        whole, self._pass = _output is not None, None
        silent = [layer for layer in self._layers if self.tally.fired[layer] < self.tally.passes]
        if whole and silent and not self._inside:
            raise NotApplied(
                f"the hook behind decoder layer {silent[0]} did not fire in a pass of the model",
                hint="steer the model that is called, without torch.compile around it",
            )

    def _alone(self, ids: Tensor | None, options: Mapping[str, Any], begin: int, length: int) -> Prompt:
        """The prompt of a forward pass outside ``generate``: the pass itself, or the one its cache came from."""
        cache = options.get("past_key_values")
        if begin == 0:
            prompt = self._prompt_of(ids, options)
            if cache is not None:
                self._cached[cache] = prompt
            return prompt
        found = self._cached.get(cache)
        if found is None or length > 1:
            raise NotApplied(
                "a pass goes on from a cache, and it is not known where its prompt ends",
                hint="let model.generate(...) read the prompt (prefill_chunk_size=... cuts it into chunks)",
            )
        return found

    def _hook(self, layer: int) -> Callable[..., Any]:
        edits = [(number, edit) for number, edit in enumerate(self.edits) if edit.layer == layer]

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            here = self._pass
            if here is None:
                raise NotApplied(
                    f"decoder layer {layer} ran outside a pass of the whole model", hint="call the model itself"
                )
            states = output[0] if isinstance(output, tuple) else output
            if states.shape[1] != here.length:
                raise NotApplied(
                    f"decoder layer {layer} holds {states.shape[1]} positions; the pass has {here.length}",
                    hint="report the model's family: its prompt is not read as others are",
                )
            self.tally.fired[layer] += 1
            changed = states
            for number, edit in edits:
                changed = self._changed(changed, here, number, edit)
            if changed is states:
                return output
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _changed(self, states: Tensor, here: _Pass, number: int, edit: Edit) -> Tensor:
        import torch

        times = _times(states.shape[0], here.prompt.rows)
        key = (edit.tokens, edit.phases, times)
        if key not in here.plans:
            here.plans[key] = self._plan(here, edit, times)
        plan = here.plans[key]
        if plan is None:
            return states
        rows, places = plan.on(states.device)
        if places is None:
            flat = states.reshape(-1, states.shape[-1])
            new = edit.change(flat, rows).to(states.dtype).view_as(states)
        else:
            edited = edit.change(states[rows, places], _prompt_rows(rows, times)).to(states.dtype)
            # Where the prompt is read, once; at generated tokens it would wait for the device at every step.
            if not bool(torch.isfinite(edited).all()):
                raise NotApplied(
                    f"an edit behind decoder layer {edit.layer} gives numbers that are not finite",
                    hint="use a smaller strength, or --precision fp32",
                )
            new = states.clone()
            new[rows, places] = edited
        self.tally.changed[edit.layer] += plan.count
        mark = (number, edit.layer)
        self.tally.covered[mark] = self.tally.covered.get(mark, 0) + plan.covered
        return new

    def _plan(self, here: _Pass, edit: Edit, times: int) -> _Plan | None:
        """Where an edit applies in a pass; None for nowhere. Found once a pass: it waits for the device."""
        import torch

        prompt = here.prompt
        answering = here.begin >= prompt.length
        if answering and edit.phases == "prefill":
            return None
        if answering and here.length == 1:
            # The common case, one token a row, is the same at every step.
            kept = (self.when, times)
            if kept not in prompt.answering:
                prompt.answering[kept] = self._answering(prompt, times)
            return prompt.answering[kept]
        chosen = self._positions(here, edit).repeat_interleave(times, dim=0)
        rows, places = torch.nonzero(chosen, as_tuple=True)
        inside = max(0, min(prompt.length - here.begin, here.length))
        covered = int(chosen[:, :inside].sum()) // times
        return _Plan(rows, places, len(rows), covered) if len(rows) else None

    def _answering(self, prompt: Prompt, times: int) -> _Plan | None:
        import torch

        steered = self._rows_of(prompt).repeat_interleave(times)
        rows = torch.nonzero(steered, as_tuple=True)[0]
        if not len(rows):
            return None
        if len(rows) == len(steered):
            return _Plan(_prompt_rows(rows, times), None, len(rows), 0)
        return _Plan(rows, torch.zeros_like(rows), len(rows), 0)

    def _positions(self, here: _Pass, edit: Edit) -> Tensor:
        """Where an edit applies in a pass, shape (rows of the prompt, length)."""
        import torch

        prompt = here.prompt
        inside = max(0, min(prompt.length - here.begin, here.length))  # positions of the prompt in this pass
        later = here.length - inside
        rows = self._rows_of(prompt)
        parts = []
        if inside:
            part = prompt.chosen(edit.tokens)[:, here.begin : here.begin + inside]
            parts.append(part if edit.phases != "decode" else torch.zeros_like(part))
        if later:
            part = rows.new_ones(prompt.rows, later)
            parts.append(part if edit.phases != "prefill" else torch.zeros_like(part))
        return torch.cat(parts, 1) & rows[:, None]


_STEERED: weakref.WeakSet[Any] = weakref.WeakSet()


def _restore(core: Any, name: str, own: Any) -> None:
    """Put an instance's attribute back: as it was, or away so that the class's shows again."""
    if own is None:
        delattr(core, name)
    else:
        setattr(core, name, own)


def _padding(options: Mapping[str, Any]) -> Tensor | None:
    """The mask that shows padding; None where there is none, or only one made ready for the attention."""
    mask = options.get("attention_mask")
    return None if mask is None or isinstance(mask, Mapping) or mask.dim() != 2 else mask


def _prompt_rows(rows: Tensor, times: int) -> Tensor:
    """Row of the prompt that each row of a pass belongs to."""
    import torch

    return rows if times == 1 else torch.div(rows, times, rounding_mode="floor")


def _times(rows: int, prompts: int) -> int:
    """Rows a prompt: beams and several answers repeat each prompt in place."""
    if rows % prompts:
        raise NotApplied(f"a pass has {rows} rows for {prompts} prompts", hint="report the way of decoding")
    return rows // prompts


def image_token(model: Any) -> int | None:
    """Token id that stands for (a part of) a picture in a prompt; None where the family has none."""
    config = inner(model).config
    for name in ("image_token_id", "image_token_index"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return None
