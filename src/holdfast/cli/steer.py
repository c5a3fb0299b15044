"""``holdfast steer``: does an image switch refusals off, and restoring them at inference time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from holdfast.cli.common import Common, base_of, emit, method_app, source_from, this_command
from holdfast.core.errors import RunError, UsageError
from holdfast.core.knobs import check, knob
from holdfast.core.runs import Run
from holdfast.models.engine import Engine
from holdfast.steer.choose import Choice
from holdfast.steer.method import STEERING, SteeringMethod
from holdfast.steer.subject import CAPTION_PROMPT

if TYPE_CHECKING:
    from holdfast.core.records import Item
    from holdfast.steer.exam import Exam
    from holdfast.steer.stage import Speaking

Flat = Parameter(name="*")

steer = App(name="steer", help="An image must not switch refusals off: diagnose it, and restore them without training.")


@dataclass(frozen=True)
class ModelFlags:
    """Which model, and how it is spoken to."""

    model: str = knob(doc="sandbox/vlm-0, a folder of a vision-language model, a run, or a hub id")
    template: str = knob("auto", "how the model is spoken to: auto, or a text with {prompt} and {image}")
    precision: Literal["fp32", "bf16"] = knob("fp32", "type of the weights")
    caption_prompt: str = knob(CAPTION_PROMPT, "how the model is asked to describe a picture")

    @property
    def speaking(self) -> Speaking:
        """How the model is spoken to."""
        from holdfast.steer.stage import Speaking

        return Speaking(self.template, self.precision, self.caption_prompt)


@dataclass(frozen=True)
class PromptFlags:
    """Prompts, their pictures, and who rates the answers."""

    harmful: str = knob(doc="harmful prompts: a file, sandbox/workshop-hazards-align-0, or hub:org/name")
    benign: str = knob(doc="harmless prompts")
    images: str = knob("", "pictures for prompts that name none: a folder, scenes (generated), or plain:white")
    judges: tuple[str, ...] = knob(("not-refused",), "judges of harmful answers, e.g. --judges not-refused,sandbox")
    benign_judges: tuple[str, ...] = knob(("refusal",), "judges of harmless answers, e.g. refusal,exact")
    max_new_tokens: int = knob(64, "longest answer in tokens", low=1)
    limit: int | None = knob(None, "use only so many prompts of each class", low=2)
    seed: int = knob(0, "seed of pairing prompts with pictures", low=0)


@dataclass(frozen=True)
class ValidationFlags:
    """What open knobs are chosen by. Without files, every second prompt of the anchors' files."""

    validation_harmful: str = knob("", "harmful prompts to choose by")
    validation_benign: str = knob("", "harmless prompts to choose by")
    validation_visual: str = knob("", "questions about pictures with their answers, to choose by")
    visual_judge: str = knob("exact", "judge of answers about pictures: exact, choice")
    anchor_limit: int = knob(128, "anchors of each class at most", low=2)


@steer.command
def demo(
    *,
    workers: int = 0,
    show_text: bool = False,
    engine: Annotated[Engine, Flat] = Engine(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Before and after on the embedded sandbox: three seeing models, every method, one report with pictures.

    Args:
        workers: processes; 0 is one for each core.
        show_text: print answers to harmful prompts in the report.
    """
    return compare("sandbox", workers=workers, show_text=show_text, engine=engine, common=common)


@steer.command
def compare(
    recipe: str,
    *,
    workers: int = 0,
    show_text: bool = False,
    dry_run: bool = False,
    engine: Annotated[Engine, Flat] = Engine(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Compare steering methods: a recipe in, a table and a report out.

    Args:
        recipe: a TOML file, or the name of a shipped one ('holdfast list recipes').
        workers: processes; 0 is one for each core.
        show_text: print answers to harmful prompts in the report.
        dry_run: check everything, print what would run, and stop.
    """
    from holdfast.data.recipes import find_recipe
    from holdfast.models.vision import require_vision

    require_vision()
    from holdfast.steer.compare import make_plan, run_compare
    from holdfast.steer.recipe import read_recipe
    from holdfast.steer.terminal import table

    plan = make_plan(*read_recipe(find_recipe(recipe, "steer")))
    if dry_run:
        kinds = [task.request.kind for task in plan.tasks.values()]
        counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
        text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        then = f"holdfast steer compare {recipe}"
        emit(common, {"runs": counts}, f"everything fits; runs to make: {text}", then=then)
        return 0
    with common.sink() as sink:
        run, result = run_compare(
            plan, common.store, engine, workers=workers, command=this_command(), show_text=show_text, sink=sink
        )
    text = f"{table(result)}\n\nreport: {run.path / 'report.html'}"
    emit(common, _lean(result), text, run=run.path, then=f"holdfast steer report {run.path}")
    return 0 if result["complete"] else 1


def _lean(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result for machines, without pictures and points."""
    return {name: value for name, value in result.items() if name not in ("examples", "diagnoses")}


@steer.command
def report(
    run: str, *, out: Path | None = None, show_text: bool = False, common: Annotated[Common, Flat] = Common()
) -> int:
    """Write the page of a comparison again.

    Args:
        run: run folder, name or key of a 'holdfast steer compare' or 'demo'.
        out: file to write; by default report.html in the run folder.
        show_text: print answers to harmful prompts.
    """
    from holdfast.core.files import read_json
    from holdfast.steer.compare import KIND
    from holdfast.steer.page import write

    found = common.store.find(run)
    if found.kind != KIND or not (found.path / "metrics.json").is_file():
        raise RunError(f"{found.name} is no finished comparison", hint="give the run of a 'holdfast steer compare'")
    page = out or found.path / "report.html"
    write(read_json(found.path / "metrics.json"), page, show_text=show_text)
    emit(common, {"report": str(page)}, f"report: {page}", run=found.path)
    return 0


@steer.command
def diagnose(
    *,
    model: Annotated[ModelFlags, Flat],
    prompts: Annotated[PromptFlags, Flat],
    engine: Annotated[Engine, Flat] = Engine(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Does an image switch this model's refusals off, where in the network, and which method can work?"""
    check(model, "diagnose")
    check(prompts, "diagnose")
    from holdfast.models.vision import require_vision

    require_vision()
    from holdfast.steer.diagnose import Diagnosis, degrades, read_diagnosis
    from holdfast.steer.page import write_diagnosis
    from holdfast.steer.terminal import diagnosis_table

    exams = {group: _exam(group, getattr(prompts, group), prompts) for group in ("harmful", "benign")}
    request = Diagnosis(base_of(model.model, common), exams, model.speaking)
    request.validate()
    with common.sink() as sink:
        run = request.make(common.store, engine, sink)
    result = read_diagnosis(run) | {"command": this_command()}
    page = run.path / "report.html"
    write_diagnosis(result, page)
    text = f"{diagnosis_table(result)}\n\nreport: {page}"
    pictures = f" --images {prompts.images}" if prompts.images else ""
    then = f"holdfast steer fit transplant --model {model.model} --harmful FILE --benign FILE{pictures}"
    lean = {"conditions": result["conditions"], "layers": result["layers"], "degrades": degrades(result)}
    emit(common, lean, text, run=run.path, then=then)
    return 0


def _fit(method: SteeringMethod) -> Callable[..., int]:
    def command(
        *,
        model: Annotated[ModelFlags, Flat],
        prompts: Annotated[PromptFlags, Flat],
        validation: Annotated[ValidationFlags, Flat] = ValidationFlags(),
        choice: Choice = Choice(),
        engine: Annotated[Engine, Flat] = Engine(),
        common: Annotated[Common, Flat] = Common(),
    ) -> int:
        """Fit a steering method on anchors; what is left open is chosen on validation prompts."""
        for flags in (model, prompts, validation):
            check(flags, "fit")
        from holdfast.models.vision import require_vision

        require_vision()
        from holdfast.steer.stage import FitStage

        harmful, benign, exams = _material(prompts, validation, settled=method.settled)
        base = base_of(model.model, common)
        request = FitStage(method, base, harmful, benign, exams, choice, model.speaking)
        request.validate()
        with common.sink() as sink:
            run = request.make(common.store, engine, sink)
        return _fitted(run, base, common)

    return command


def _fitted(run: Run, base: str, common: Common) -> int:
    from holdfast.steer.artifact import load_steering
    from holdfast.steer.terminal import fit_text

    steering = load_steering(run.path)
    result = {name: steering.card[name] for name in ("method", "choice", "predictors")}
    then = f"holdfast steer apply {run.path} --model {base} --items FILE --images FOLDER"
    emit(common, result, fit_text(steering.card), run=run.path, then=then)
    return 0


steer.command(method_app("fit", "Fit a steering method: vectors, layers and strength.", STEERING, _fit))


def _exam(group: str, text: str, prompts: PromptFlags) -> Exam:
    from holdfast.steer.exam import exam

    judges = {"harmful": prompts.judges, "benign": prompts.benign_judges}[group]
    table = {
        "source": source_from(text, f"--{group}"), "images": prompts.images, "max_new_tokens": prompts.max_new_tokens,
        "judges": [name.strip() for part in judges for name in part.split(",")],
    }  # fmt: skip
    made = exam(group, table, f"--{group}", seed=prompts.seed)
    return made.part(prompts.limit) if prompts.limit else made


def _material(
    prompts: PromptFlags, validation: ValidationFlags, *, settled: bool
) -> tuple[tuple[Item, ...], tuple[Item, ...], dict[str, Exam]]:
    """Anchors and validation exams from flags; one file for both is cut in two."""
    from holdfast.steer.exam import exam

    found = {group: _exam(group, getattr(prompts, group), prompts) for group in ("harmful", "benign")}
    exams: dict[str, Exam] = {}
    for group in ("harmful", "benign"):
        given = getattr(validation, f"validation_{group}")
        if given:
            exams[group] = _exam(group, given, replace(prompts, seed=prompts.seed + 1000))
        elif not settled:
            half = len(found[group].items) // 2
            if half < 2:
                raise UsageError(
                    f"--{group} has {len(found[group].items)} prompts: too few for anchors and for choosing",
                    hint=f"--validation-{group} FILE, or name --layers and --strength",
                )
            # In turns, so that a file that is sorted by topic gives both parts every topic.
            whole = found[group].items
            exams[group] = replace(found[group], items=whole[1::2])
            found[group] = replace(found[group], items=whole[::2])
    if validation.validation_visual:
        table = {
            "source": source_from(validation.validation_visual, "--validation-visual"), "images": prompts.images,
            "judges": [validation.visual_judge], "max_new_tokens": prompts.max_new_tokens,
        }  # fmt: skip
        exams["visual"] = exam("visual", table, "--validation-visual", seed=prompts.seed + 1000)
    anchors = {group: _distinct(found[group]).part(validation.anchor_limit).items for group in found}
    return anchors["harmful"], anchors["benign"], {} if settled else exams


def _distinct(found: Exam) -> Exam:
    """Each prompt once: a prompt that is there twice is one anchor."""
    return replace(found, items=tuple({item.prompt: item for item in reversed(found.items)}.values())[::-1])


@dataclass(frozen=True)
class ApplyFlags:
    """Who is asked what, steered."""

    items: str = knob(
        doc="prompts: a file (with an image column, or with --images), or sandbox/workshop-hazards-test-0"
    )
    model: str = knob("", "the model; empty: the one that the method was fitted on")
    group: Literal["harmful", "benign", "visual"] = knob("harmful", "what the prompts are (names what judges measure)")
    images: str = knob("", "pictures for prompts that name none: a folder, scenes, or plain:white")
    max_new_tokens: int = knob(64, "longest answer in tokens", low=1)
    limit: int | None = knob(None, "ask only the first ones", low=1)
    seed: int = knob(0, "seed of pairing prompts with pictures", low=0)
    other_model: bool = knob(False, "the model was tuned from the one that the method was fitted on")


@steer.command
def apply(
    run: str,
    *,
    flags: Annotated[ApplyFlags, Flat],
    show: int = 3,
    show_text: bool = False,
    engine: Annotated[Engine, Flat] = Engine(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Let the steered model answer prompts with pictures; the answers are kept and can be judged.

    Args:
        run: run of a 'holdfast steer fit', or the folder of its artifact.
        show: answers printed.
        show_text: print answers to harmful prompts too.
    """
    check(flags, "apply")
    from holdfast.models.vision import require_vision

    require_vision()
    from holdfast.models.answer import Decoding
    from holdfast.models.ask import samples_of
    from holdfast.steer.artifact import load_steering
    from holdfast.steer.stage import AskSteered, Speaking

    path = _steering_path(run, common)
    card = load_steering(path).card
    base = base_of(flags.model or card["model"]["reference"], common)
    items = _items(flags)
    decoding: dict[str, Decoding] = {flags.group: Decoding(flags.max_new_tokens)}
    request = AskSteered(path, base, items, decoding, Speaking(**card["speaking"]), flags.other_model)
    request.validate()
    with common.sink() as sink:
        made = request.make(common.store, engine, sink)
    samples = samples_of(made)
    hidden = flags.group == "harmful" and not show_text
    lines = [f"{len(samples)} answers, {sum(s.finish == 'length' for s in samples)} cut at the length limit"]
    for sample in samples[:show]:
        text = f"[hidden: {len(sample.text)} characters; --show-text shows it]" if hidden else sample.text
        lines.append(f"  {sample.item.prompt[:90]}\n    -> {text[:200]}")
    judge = {"benign": "refusal", "visual": "exact"}.get(flags.group, "not-refused")
    result = {"answers": len(samples), "attacked": request.attacked, "file": str(made.path / "samples.jsonl")}
    emit(common, result, "\n".join(lines), run=made.path, then=f"holdfast judge {made.path} --judge {judge}")
    return 0


def _items(flags: ApplyFlags) -> tuple[Item, ...]:
    from holdfast.data import read

    source = source_from(flags.items, "--items")
    source = replace(source, images=flags.images or source.images, seed=flags.seed, limit=flags.limit or source.limit)
    return tuple(read.items(source, group=flags.group))


def _steering_path(run: str, common: Common) -> Path:
    """The folder of a run or artifact, by path, name or key."""
    path = Path(run)
    return path if path.exists() else common.store.find(run).path


@steer.command
def fold(
    run: str,
    *,
    model: str = "",
    out: Path | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Make a constant shift part of the weights: a plain Hugging Face folder that any engine serves at no cost.

    Args:
        run: run of a 'holdfast steer fit' whose method is a constant shift.
        model: the model; empty: the one that the method was fitted on.
        out: folder to copy the model to; it must not be there yet.
        precision: type of the saved weights.
    """
    from holdfast.models.vision import require_vision

    require_vision()
    from holdfast.steer.artifact import load_steering
    from holdfast.steer.fold import Fold

    path = _steering_path(run, common)
    base = base_of(model or load_steering(path).card["model"]["reference"], common)
    if out is not None and out.exists():
        raise UsageError(f"{out} is there already", hint="name a folder that is not there yet")
    request = Fold(path, base, precision)
    request.validate()
    with common.sink() as sink:
        made = request.make(common.store, None, sink)
    folder = made.artifacts / "model"
    if out is not None:
        _copied(folder, out)
        folder = out
    summary = (made.seal_record() or {}).get("summary", {})
    text = (
        f"folded into layer {', '.join(map(str, summary['layers']))}: {folder}\n"
        f"{summary['added_parameters']:,} parameters more. It is steered with and without a picture: measure text-only "
        "requests, or let the original weights serve them."
    )
    then = f"holdfast ask --model {folder} --items FILE"
    emit(common, {"folder": str(folder), **summary}, text, run=made.path, then=then)
    return 0


def _copied(folder: Path, out: Path) -> None:
    """Copy a folder in one step: killed half-way, the name is still free."""
    import os

    from holdfast.core.files import writing

    aside = out.with_name(f".{out.name}.copying")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(folder, aside)
        os.replace(aside, out)


@steer.command
def graft(
    model: str,
    *,
    language: str = "",
    out: Path,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Take the language model out of a vision-language model, or put another one in.

    Without --language, its language model is written as a folder that 'holdfast finetune' can tune; with it, the
    vision-language model with that language model in it. So a model whose language part was tuned on a customer's
    data is a workload here too.

    Args:
        model: the vision-language model.
        language: run or folder of the language model to put in.
        out: folder to write; it must not be there yet.
    """
    from holdfast.models.vision import require_vision

    require_vision()
    from holdfast.models.graft import put_language_model, take_language_model

    if out.exists():
        raise UsageError(f"{out} is there already", hint="name a folder that is not there yet")
    base = base_of(model, common)
    if language:
        put_language_model(base, base_of(language, common), out)
        then = f"holdfast steer diagnose --model {out} --harmful FILE --benign FILE"
    else:
        take_language_model(base, out)
        then = f"holdfast finetune sft --model {out} --user FILE"
    emit(common, {"folder": str(out)}, f"written: {out}", then=then)
    return 0
