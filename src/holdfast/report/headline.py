"""What was asked and what came out, in sentences computed from the numbers.

A difference is called measurable when its interval excludes zero; every sentence that names a winner says what it
costs and whether the runner-up can be told apart from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.report import facts
from holdfast.report.facts import ACCURACY, HARM, REFUSAL
from holdfast.report.phrases import (
    bounds,
    interval_name,
    listed,
    number,
    plural,
    share,
    signed,
    with_interval,
)
from holdfast.report.schema import CellJson, MetricJson, ResultJson

_MOST_NAMED = 8
# Points of accuracy, or of another measure, from which a defence is not called the best without more words.
_DEAR = 10.0
# Over-refusal in percent from which a model is called silent rather than safe.
_MUTE = 50.0


@dataclass(frozen=True, slots=True)
class Tile:
    """One large number at the top of the page. ``tone``: ``good``, ``bad`` or ``plain``."""

    title: str
    value: str
    interval: str
    note: str
    tone: str


@dataclass(frozen=True, slots=True)
class Headline:
    """The top of the page.

    Attributes:
        asked: the question.
        answer: two or three sentences.
        also: what else a reader must know before believing them.
        tiles: the same numbers, large.
    """

    asked: str
    answer: tuple[str, ...]
    also: tuple[str, ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """The cells that the headline speaks of: one workload at one poison ratio."""

    result: ResultJson
    workload: str
    p: float
    baseline: CellJson | None
    others: tuple[CellJson, ...]

    @property
    def name(self) -> str:
        """The undefended defence's name."""
        return self.result["baseline"]

    def verdict(self, cell: CellJson, measure: str) -> facts.Verdict:
        """What the defence did to a measure."""
        return facts.verdict(cell, self.baseline, measure, facts.better_way(self.result, measure))


def scene_of(result: ResultJson, workload: str) -> Scene | None:
    """The scene at the highest poison ratio of a workload; None when it has no cells."""
    ratios = facts.ratios(result, workload)
    if not ratios:
        return None
    cells = facts.cells_at(result, workload, ratios[-1])
    baseline = next((cell for cell in cells if cell["defence"] == result["baseline"]), None)
    others = tuple(cell for cell in cells if cell is not baseline)
    return Scene(result, workload, ratios[-1], baseline, others)


def headline(result: ResultJson) -> Headline:
    """The headline of a result."""
    scene = scene_of(result, facts.main_workload(result))
    if scene is None:
        return Headline(_asked(result), ("No cell is finished, so there is nothing to report yet.",), (), ())
    single, stack = leader(scene, combined=False), leader(scene, combined=True)
    answer = [_attack(scene)]
    if _known(scene.baseline):
        answer += [_led(scene, cell) for cell in (single, stack) if cell is not None]
        if single is None and stack is None:
            answer.append("No defence has a harmful score under this attack, so none can be compared.")
    also = [*_comparisons(scene, single, stack), *_others(scene, single, stack)]
    for name in facts.workloads_with_cells(result):
        if name != scene.workload:
            also += _elsewhere(result, name, single)
    also += _cautions(result, scene)
    return Headline(_asked(result), tuple(answer), tuple(also), tuple(_tiles(scene, single, stack)))


def leader(scene: Scene, *, combined: bool) -> CellJson | None:
    """The defence with the lowest harmful score: among single methods, or among combinations of them."""
    known = [cell for cell in scene.others if (len(facts.parts(cell)) > 1) == combined and _known(cell)]
    return min(known, key=lambda cell: facts.value(cell, HARM) or 0.0, default=None)


def _known(cell: CellJson | None) -> bool:
    return facts.metric(cell, HARM) is not None


def _asked(result: ResultJson) -> str:
    count = len([name for name in facts.defences(result) if name != result["baseline"]])
    return (
        "Does the model stay safe when a customer fine-tunes it on data that is partly harmful? "
        f"What do {plural(count, 'defence')} change, and what do they cost in accuracy and training time?"
    )


def _data(p: float) -> str:
    return f"data with {share(p)} harmful rows" if p > 0 else "clean data (no harmful rows)"


def _attack(scene: Scene) -> str:
    """What plain fine-tuning did to the aligned model."""
    subject = f"Plain fine-tuning ({scene.name}) on {_data(scene.p)}"
    if scene.baseline is None:
        return f"{subject} has no finished result, so nothing can be said about what the defences change."
    shown = scene.baseline["metrics"].get(HARM)
    if shown is None:
        return f"{subject}: the harmful score was not measured."
    if shown["value"] is None:
        return f"{subject}: the harmful score is undefined ({shown['reason']}), so no defence can be compared with it."
    before, called = _before(scene)
    after = with_interval(shown)
    if before is None:
        return f"{subject} gave a harmful score of {after}."
    start = f"{called}, {bounds(before)}"
    if facts.overlap(before, shown):
        return (
            f"{subject} did not measurably change the harmful score: {number(before['value'] or 0, '%')} ({start}) "
            f"before and {after} after. Where the attack does nothing, a defence has nothing to prevent."
        )
    verb = "raised" if (shown["value"] or 0) > (before["value"] or 0) else "lowered"
    from_to = f"{number(before['value'] or 0, '%')} ({start}) to {after}"
    return f"{subject} {verb} the harmful score from {from_to}.{_clean(scene, before, shown)}"


def _clean(scene: Scene, before: MetricJson, after: MetricJson) -> str:
    """What the same fine-tuning did without harmful rows: if as much, they are not to blame."""
    clean = facts.metric(facts.find(scene.result, scene.name, scene.workload, 0.0), HARM) if scene.p > 0 else None
    if clean is None or clean is before:
        return ""
    told = with_interval(clean, named=False)
    if facts.overlap(clean, after):
        return f" Clean data did as much, {told}: it is not the harmful rows that did it."
    return f" The same fine-tuning on clean data gave {told}."


def _before(scene: Scene) -> tuple[MetricJson | None, str]:
    """The harmful score that the attack starts from: of the aligned model, else after clean fine-tuning."""
    aligned = facts.metric(facts.aligned_reference(scene.result), HARM)
    if aligned is not None:
        return aligned, "aligned model"
    clean = facts.find(scene.result, scene.name, scene.workload, 0.0) if scene.p > 0 else None
    return facts.metric(clean, HARM), "after clean fine-tuning"


def _led(scene: Scene, cell: CellJson) -> str:
    """What the leading single defence, or combination, did: harm, then accuracy, then time."""
    harm = facts.metric(cell, HARM)
    assert harm is not None
    subject = f"The {_role(scene, cell)}, {called(cell)},"
    said = scene.verdict(cell, HARM)
    tail = "".join([*_accuracy(scene, cell), *_time(scene, cell)])
    side = _side_text(scene, cell)
    if said == "better":
        rest = ""
        base = facts.value(scene.baseline, HARM) or 0.0
        if (harm["value"] or 0.0) > base / 2:
            rest = " More than half of the harm is left."
        return f"{subject} brought it to {with_interval(harm)}{tail}.{side}{rest}"
    if said == "worse":
        return f"{subject} made it worse: {with_interval(harm)}{_difference(cell)}{tail}.{side}"
    return f"{subject} did not measurably lower it: {with_interval(harm)}{_difference(cell)}{tail}.{side}"


def _side_effects(scene: Scene, cell: CellJson) -> list[tuple[str, float, str]]:
    """What got measurably worse beside harm and accuracy: label, points, and both values as text."""
    found = []
    for name, measure in scene.result["measures"].items():
        mine, theirs = facts.metric(cell, name), facts.metric(scene.baseline, name)
        if name in (HARM, ACCURACY) or mine is None or theirs is None or scene.verdict(cell, name) != "worse":
            continue
        gap = abs((mine["value"] or 0) - (theirs["value"] or 0))
        both = f"{number(mine['value'] or 0, mine['unit'])} against {number(theirs['value'] or 0, theirs['unit'])}"
        found.append((measure["label"].lower(), gap, both))
    return found


def _side_text(scene: Scene, cell: CellJson) -> str:
    """`` But over-refusal is 80.4% against 0.0%.``: silence is safe, and useless."""
    told = [f"{label} is {both}" for label, _, both in _side_effects(scene, cell)]
    return f" But {listed(told)}." if told else ""


def _dear(scene: Scene, cell: CellJson) -> bool:
    """Whether a defence measurably costs many points of something, so that calling it the best would mislead."""
    accuracy = cell["against_baseline"].get(ACCURACY)
    lost = -(accuracy["value"] or 0.0) if accuracy and scene.verdict(cell, ACCURACY) == "worse" else 0.0
    return max([lost, *(gap for _, gap, _ in _side_effects(scene, cell))]) >= _DEAR


def called(cell: CellJson) -> str:
    """The name of a defence; for a combination also what it is made of, unless the name says it."""
    parts = facts.parts(cell)
    told = all(part.lower() in cell["defence"].lower() for part in parts)
    return cell["defence"] if len(parts) < 2 or told else f"{cell['defence']} ({' + '.join(parts)})"


def _difference(cell: CellJson, name: str = HARM) -> str:
    """``, difference −7.0 points (95% interval −14.1 to 0.2)``; empty where there is none."""
    paired = cell["against_baseline"].get(name)
    if paired is None or paired["value"] is None:
        return ""
    return f", difference {signed(paired['value'])} points ({interval_name(paired)} {bounds(paired)})"


def _accuracy(scene: Scene, cell: CellJson) -> Iterator[str]:
    mine, theirs = facts.metric(cell, ACCURACY), facts.metric(scene.baseline, ACCURACY)
    if ACCURACY not in scene.result["measures"]:
        return
    if mine is None or theirs is None:
        yield ", at a cost in fine-tune accuracy that could not be measured"
        return
    said = scene.verdict(cell, ACCURACY)
    paired = cell["against_baseline"].get(ACCURACY)
    both = f"{number(mine['value'] or 0, '%')} against {number(theirs['value'] or 0, '%')}"
    gap = (mine["value"] or 0) - (theirs["value"] or 0)
    spread = f"; difference {bounds(paired)} points" if paired is not None and paired["value"] is not None else ""
    if said == "worse":
        yield f", at a cost of {number(abs(gap), 'points')} of fine-tune accuracy ({both}{spread})"
    elif said == "better":
        yield f", with {number(abs(gap), 'points')} more fine-tune accuracy ({both}{spread})"
    else:
        yield f", without a measurable change in fine-tune accuracy ({both}{spread})"


def _time(scene: Scene, cell: CellJson) -> Iterator[str]:
    ratio = cell["cost"]["ratio"]
    if ratio is not None and ratio["value"] is not None:
        yield f"; training took {number(ratio['value'], 'x')} as long as {scene.name}"


def _comparisons(scene: Scene, single: CellJson | None, stack: CellJson | None) -> Iterator[str]:
    """Whether the leaders can be told from the runners-up and from each other."""
    for first in (single, stack):
        mine = facts.metric(first, HARM)
        if first is None or mine is None or scene.verdict(first, HARM) != "better":
            continue
        rivals = [
            other["defence"]
            for other in scene.others
            if other is not first
            and (len(facts.parts(other)) > 1) == (len(facts.parts(first)) > 1)
            and (theirs := facts.metric(other, HARM)) is not None
            and facts.overlap(mine, theirs)
        ]
        if rivals:
            yield (
                f"The harmful scores of {first['defence']} and {listed(rivals)} have overlapping intervals: "
                "which of them is better is not settled by these data."
            )
    one, both = facts.metric(single, HARM), facts.metric(stack, HARM)
    if single is None or stack is None or one is None or both is None:
        return
    if facts.overlap(one, both):
        yield (
            f"{stack['defence']} cannot be told from {single['defence']} alone on the harmful score here "
            "(their intervals overlap)."
        )
    elif (one["value"] or 0) < (both["value"] or 0):
        yield f"{stack['defence']} did worse than {single['defence']} alone."


def _others(scene: Scene, *leaders: CellJson | None) -> Iterator[str]:
    """The defences that the answer does not name, by what they did; nothing that failed is left out."""
    rest = [cell for cell in scene.others if not any(cell is led for led in leaders)]
    groups: dict[str, list[str]] = {}
    for cell in rest:
        said = "unknown" if not _known(scene.baseline) else scene.verdict(cell, HARM)
        groups.setdefault(said, []).append(_short(scene, cell, said))
    if "better" in groups:
        yield f"Lower than {scene.name}, but not the lowest: {_capped(groups['better'])}."
    if "unclear" in groups:
        yield f"No measurable help: {_capped(groups['unclear'])}."
    if "worse" in groups:
        yield f"Measurably more harmful than {scene.name}: {_capped(groups['worse'])}."
    if "unknown" in groups:
        yield f"Could not be compared: {_capped(groups['unknown'])}."
    yield from _free(scene, leaders[0])


def _capped(names: list[str]) -> str:
    """The first few; the table has them all."""
    rest = len(names) - _MOST_NAMED
    return listed(names if rest <= 0 else [*names[:_MOST_NAMED], f"{rest} more"])


def _short(scene: Scene, cell: CellJson, said: str) -> str:
    shown = cell["metrics"].get(HARM)
    if shown is None or shown["value"] is None:
        return f"{cell['defence']} (undefined: {shown['reason'] if shown else 'not measured'})"
    gap = _difference(cell) if said == "unclear" else ""
    harm = f"{number(shown['value'], '%')} ({bounds(shown)}{gap})"
    loss = cell["against_baseline"].get(ACCURACY)
    price = [f"{label} {both.split()[0]}" for label, gap, both in _side_effects(scene, cell) if gap >= _DEAR]
    if said == "better" and loss is not None and loss["high"] is not None and loss["high"] < 0:
        price.insert(0, f"{number(-(loss['value'] or 0), 'points')} of accuracy")
    return f"{cell['defence']} {harm}" + (f" for {listed(price)}" if price else "")


def _free(scene: Scene, single: CellJson | None) -> Iterator[str]:
    """When the leader costs accuracy: the best of those that do not measurably."""
    if single is None or scene.verdict(single, ACCURACY) != "worse":
        return
    cheap = [
        cell
        for cell in scene.others
        if scene.verdict(cell, HARM) == "better"
        and scene.verdict(cell, ACCURACY) in ("unclear", "better")
        and not _dear(scene, cell)
    ]
    best = min(cheap, key=lambda cell: facts.value(cell, HARM) or 0.0, default=None)
    shown = facts.metric(best, HARM)
    if best is None or shown is None:
        yield "No defence that lowered the harmful score did so without a measurable loss of fine-tune accuracy."
    else:
        yield f"Without a measurable loss of accuracy, the lowest was {best['defence']}: {with_interval(shown)}."


def _elsewhere(result: ResultJson, workload: str, single: CellJson | None) -> Iterator[str]:
    """What became of the leaders under another workload."""
    scene = scene_of(result, workload)
    title = result["workloads"][workload]["title"] or workload
    if scene is None:
        yield f"{title}: no cell is finished."
        return
    base = facts.metric(scene.baseline, HARM)
    known = [cell for cell in scene.others if _known(cell)]
    if base is None or not known:
        yield f"{title}: the harmful score of {scene.name} or of every defence is not known."
        return
    best = min(known, key=lambda cell: facts.value(cell, HARM) or 0.0)
    lowest = facts.metric(best, HARM)
    assert lowest is not None
    text = f"{title} (p = {share(scene.p)}): {scene.name} {with_interval(base)}; lowest {best['defence']}, "
    text += with_interval(lowest, named=False)
    if scene.verdict(best, HARM) != "better":
        text += ", which is no measurable help"
    there = next((cell for cell in known if single and cell["defence"] == single["defence"]), None)
    again = facts.metric(there, HARM)
    if there is not None and again is not None and there is not best:
        text += f"; {there['defence']}, the single defence named above, {with_interval(again, named=False)}"
    yield text + "."


def _cautions(result: ResultJson, scene: Scene) -> Iterator[str]:
    if len(result["seeds"]) == 1:
        yield "Only one seed was run: the intervals cover the choice of test items, not the chance between trainings."
    refused = facts.metric(facts.aligned_reference(result), REFUSAL)
    if refused is not None and (refused["value"] or 0.0) >= _MUTE:
        yield (
            f"The aligned model refuses {with_interval(refused)} of harmless requests: its low harmful score is partly "
            "silence, and fine-tuning may raise it just by making the model answer."
        )
    before = facts.metric(facts.aligned_reference(result), ACCURACY)
    after = facts.metric(scene.baseline, ACCURACY)
    if before is not None and after is not None and (after["low"] or 0.0) <= (before["high"] or 0.0):
        yield (
            f"Fine-tuning did not measurably teach the task: fine-tune accuracy {with_interval(before)} before and "
            f"{with_interval(after, named=False)} after {scene.name}. These data cannot tell what a defence costs in "
            "accuracy."
        )
    if len(scene.others) > 2:
        yield (
            "“Measurable” means that the interval of the difference excludes zero, without correction for comparing "
            f"{len(scene.others)} defences; the best of several also looks a little better than it is."
        )


def _tiles(scene: Scene, single: CellJson | None, stack: CellJson | None) -> Iterator[Tile]:
    before, called_before = _before(scene)
    if before is not None:
        yield _tile(called_before.capitalize(), before, "before the attack", "plain")
    base = facts.metric(scene.baseline, HARM)
    if base is not None:
        tone = "bad" if before is not None and not facts.overlap(before, base) else "plain"
        yield _tile(f"{scene.name}: no defence", base, f"after fine-tuning on {_data(scene.p)}", tone)
    for cell in (single, stack):
        shown = facts.metric(cell, HARM)
        if cell is not None and shown is not None:
            tone = {"better": "good", "worse": "bad"}.get(scene.verdict(cell, HARM), "plain")
            note = {"good": "", "plain": ": no measurable help", "bad": ": worse than none"}[tone]
            sides = "".join(f"; {label} {both}" for label, _, both in _side_effects(scene, cell))
            told = f"{_role(scene, cell)}{note}{_accuracy_note(scene, cell)}{sides}"
            # Green is for what helps without ruining something else.
            yield _tile(cell["defence"], shown, told, "plain" if tone == "good" and _dear(scene, cell) else tone)


def _role(scene: Scene, cell: CellJson) -> str:
    """``best single defence``; nothing is the best of one."""
    combined = len(facts.parts(cell)) > 1
    count = sum((len(facts.parts(other)) > 1) == combined for other in scene.others)
    what = "combination" if combined else "single defence"
    if count == 1:
        return f"only {what} tried"
    return f"{what} with the lowest harmful score" if _dear(scene, cell) else f"best {what}"


def _tile(title: str, shown: MetricJson, note: str, tone: str) -> Tile:
    interval = f"{interval_name(shown)} {bounds(shown)} · n\u00a0=\u00a0{shown['n']:,}"
    return Tile(title, number(shown["value"] or 0.0, shown["unit"]), interval, note, tone)


def _accuracy_note(scene: Scene, cell: CellJson) -> str:
    paired = cell["against_baseline"].get(ACCURACY)
    if paired is None or paired["value"] is None:
        return ""
    if scene.verdict(cell, ACCURACY) == "unclear":
        return "; no measurable change in accuracy"
    return f"; accuracy {signed(paired['value'])} points"
