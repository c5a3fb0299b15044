from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments import BODY, BOOSTER, CPU, MODEL, SHORT, aligned, plan_of, recipe_file, tuned
from holdfast.core.errors import DataError, HoldfastError, ModelError
from holdfast.core.keys import key_of
from holdfast.core.stage import request_key
from holdfast.data.mixes import Mix
from holdfast.data.read import Source
from holdfast.finetune.alignment.booster import Booster
from holdfast.finetune.alignment.sft import SFT
from holdfast.finetune.alignment.vaccine import Vaccine
from holdfast.finetune.plan import chain, make_plan
from holdfast.finetune.post_finetuning.antidote import Antidote
from holdfast.finetune.recipe import find_recipe, read_recipe
from holdfast.finetune.settings import Adapter, Training
from holdfast.finetune.stages import RepairStage, UserData
from holdfast.models.answer import Decoding
from holdfast.models.ask import Ask
from holdfast.models.load import resolve

# --- counts ------------------------------------------------------------------------------------------


def test_the_default_recipe_shares_what_its_defences_share() -> None:
    """Six defences, three ways of fine-tuning (mixed at p = 0 and 0.1, stress at 0.1), three seeds.

    Per seed:
      align     SFT, Vaccine, Booster                                   3  (Lisa and Antidote start from SFT's,
                                                                            the stack from Booster's)
      finetune  SFT, Vaccine, Booster, Lisa, stack: 5 x 3              15  (Antidote mends SFT's)
      repair    Antidote, stack: 2 x 3                                  6
      ask       6 defences x 3, and the 3 aligned models               21
                                                                       45, so 3 x 45 = 135 requests
    Without sharing each answered model would be made alone: of the 18 cells of a seed SFT, Vaccine, Booster and
    Lisa have 3 requests (align, finetune, ask), Antidote and the stack 4: 4 x 3 x 3 + 2 x 3 x 4 = 60; the aligned
    models 3 x 2 = 6; together 66, so 3 x (66 - 45) = 63 are shared.
    """
    recipe, text = read_recipe(find_recipe("sandbox"))
    assert [d.title for d in recipe.defence] == [
        "SFT", "Vaccine", "Booster", "Lisa", "Antidote", "Booster + Lisa + Antidote"
    ]  # fmt: skip
    assert [(w.name, w.p) for w in recipe.workload] == [("mixed", (0.0, 0.1)), ("stress", (0.1,))]
    plan = make_plan(recipe, text)
    assert Counter(request.kind for request in plan.requests.values()) == {
        "align": 3 * 3, "finetune": 3 * 15, "repair": 3 * 6, "ask": 3 * 21
    }  # fmt: skip
    assert len(plan.requests) == 135
    assert len(plan.cells) == 3 * 21
    assert plan.shared == 63


def test_parents_come_first(tmp_path: Path) -> None:
    plan = plan_of(recipe_file(tmp_path))
    order = list(plan.requests)
    assert all(order.index(parent) < order.index(child) for child, parent in plan.parents.items())
    # SFT and Booster: 2 align, 2 x 2 finetune, 2 x 2 + 2 ask = 12; all but the 2 align have a parent.
    assert len(order) == 12
    assert len(plan.parents) == 10


def test_cells_know_their_place(tmp_path: Path) -> None:
    plan = plan_of(recipe_file(tmp_path))
    assert [cell.name for cell in plan.cells] == [
        "SFT (aligned, seed 0)", "SFT (mixed, p = 0, seed 0)", "SFT (mixed, p = 0.1, seed 0)",
        "Booster (aligned, seed 0)", "Booster (mixed, p = 0, seed 0)", "Booster (mixed, p = 0.1, seed 0)",
    ]  # fmt: skip
    assert [cell.ask.attacked for cell in plan.cells] == [False, False, True] * 2
    assert {len(cell.ask.items) for cell in plan.cells} == {24}  # 12 hazards and 12 reviews


def test_two_names_of_one_thing_share_everything(tmp_path: Path) -> None:
    plan = plan_of(recipe_file(tmp_path, '\n[[defence]]\ntitle = "Again"\nchosen = "for no reason"\n'))
    # The second defence is plain SFT too: 1 align, 2 finetune, 3 ask.
    assert Counter(r.kind for r in plan.requests.values()) == {"align": 1, "finetune": 2, "ask": 3}
    assert len(plan.cells) == 1 + 2 + 2


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("sandbox/align-{seed}", "absent.jsonl", DataError),
        ("sandbox/align-{seed}", "sandbox/algn-0", DataError),
        ("sandbox/hazards-test-{seed}", "sandbox/hazards-tset-0", DataError),
        ('"' + MODEL + '"', '"sandbox/mikro-0"', HoldfastError),
        ('"' + MODEL + '"', '"./absent"', ModelError),
    ],
)
def test_what_is_not_there_is_said_before_anything_runs(
    tmp_path: Path, old: str, new: str, kind: type[HoldfastError]
) -> None:
    path = recipe_file(tmp_path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(kind) as caught:
        plan_of(path)
    assert caught.value.hint


def test_one_method_with_two_settings_is_two_aligned_models(tmp_path: Path) -> None:
    """They must not be pooled under one name as if they were seeds of one."""
    more = BOOSTER + '\n[[defence]]\ntitle = "Strong"\nalign = { method = "booster", alpha = 0.02 }\n'
    plan = plan_of(recipe_file(tmp_path, more))
    titles = [cell.defence.title for cell in plan.cells if cell.workload is None]
    assert titles == ["SFT", "Booster", "Booster (Strong)"]


# --- keys --------------------------------------------------------------------------------------------


def test_a_key_does_not_depend_on_where_files_are(tmp_path: Path) -> None:
    rows = '{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n'
    keys = set()
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.jsonl").write_text(rows)
        shutil.copytree(resolve(MODEL).folder, folder / f"model-{name}")
        data = {"safety": Source(str(folder / f"{name}.jsonl"))}
        keys.add(request_key(aligned(data=data, base=str(folder / f"model-{name}"))))
    assert len(keys) == 1


def test_a_shipped_model_and_its_copy_are_one(tmp_path: Path) -> None:
    shutil.copytree(resolve(MODEL).folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("notes do not change what a model answers")
    assert request_key(aligned(base=str(tmp_path / "copy"))) == request_key(aligned())


def alignments() -> dict[str, Any]:
    more = {"safety": Source("sandbox/align-0", limit=41)}
    return {
        "as it is": {},
        "rate": {"training": Training(steps=4, batch_size=4, learning_rate=2e-3, max_length=64)},
        "steps": {"training": Training(steps=5, batch_size=4, learning_rate=1e-3, max_length=64)},
        "clip": {"training": Training(steps=4, batch_size=4, learning_rate=1e-3, max_length=64, clip=0.5)},
        "schedule": {"training": Training(steps=4, batch_size=4, learning_rate=1e-3, max_length=64, schedule="cosine")},
        "adapter": {"adapter": Adapter(train="full")},
        "rank": {"adapter": Adapter(rank=4)},
        "policy": {"adapter": Adapter(rank=4, policy="fresh")},
        "seed": {"seed": 1},
        "template": {"template": "alpaca"},
        "data": {"data": more},
        "draw": {"data": {"safety": Source("sandbox/align-0", limit=40, seed=1)}},
        "world": {"data": {"safety": Source("sandbox/align-1", limit=40)}},
        "vaccine": {"method": Vaccine()},
        "vaccine rho": {"method": Vaccine(rho=1.0)},
        "booster": {"method": Booster()},
        "booster alpha": {"method": Booster(alpha=0.5)},
    }


def test_a_key_changes_with_everything_that_the_result_depends_on() -> None:
    keys = {name: request_key(aligned(**changes)) for name, changes in alignments().items()}
    assert len(set(keys.values())) == len(keys), keys
    assert keys["as it is"] == request_key(aligned())


def test_a_key_changes_with_one_byte_of_data(tmp_path: Path) -> None:
    keys = []
    for text in ("b", "c"):
        (tmp_path / "rows.jsonl").write_text(f'{{"prompt": "a", "response": "{text}"}}\n')
        keys.append(request_key(aligned(data={"safety": Source(str(tmp_path / "rows.jsonl"))})))
    assert keys[0] != keys[1]


def test_a_key_changes_with_one_byte_of_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve(MODEL).folder, folder)
    before = request_key(aligned(base=str(folder)))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert request_key(aligned(base=str(folder))) != before


def test_a_key_changes_with_the_version_of_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    before = request_key(aligned())
    monkeypatch.setattr(SFT, "version", 2)
    assert request_key(aligned()) != before


def test_data_that_a_method_does_not_draw_from_is_no_part_of_its_key() -> None:
    """SFT aligned with and without a harmful set at hand is one run; Booster's is another for another set."""
    safety = {"safety": Source("sandbox/align-0", limit=40)}
    assert request_key(aligned(data=safety)) == request_key(aligned())
    other = safety | {"harmful": Source("sandbox/harmful-0", limit=30)}
    assert request_key(aligned(Booster(), data=other)) != request_key(aligned(Booster()))


def test_user_stages_are_told_apart_by_mix_and_parent() -> None:
    base, other = aligned(), aligned(Booster())
    keys = [
        request_key(s) for s in (tuned(base), tuned(other), tuned(base, p=0.25), tuned(base, n=20), tuned(base, p=0))
    ]
    assert len(set(keys)) == 5
    assert tuned(base).spec["base"] == {"run": request_key(base)}


def test_without_poison_its_source_does_not_count() -> None:
    task = Source("sandbox/review-0", limit=60)
    one, other = (UserData(task, Source("sandbox/attack-0", limit=n), Mix(40, 0.0)) for n in (10, 20))
    assert one.identity() == other.identity() == UserData(task, None, Mix(40, 0.0)).identity()


def test_repairs_and_answers_hang_on_their_chain() -> None:
    stage = tuned(aligned())
    data = {"harmful": Source("sandbox/harmful-0", limit=40)}
    mend = RepairStage(Antidote(), stage, data)
    assert [request.kind for request in chain(mend)] == ["repair", "finetune", "align"]
    keys = {
        request_key(r)
        for r in (
            mend,
            RepairStage(Antidote(density=0.2), stage, data),
            RepairStage(Antidote(), stage, data, samples=9),
        )
    }
    assert len(keys) == 3


def test_how_work_is_executed_is_no_part_of_a_key() -> None:
    """Engine settings are given to ``make``, so no spec can hold them; this names the fields that must stay out."""
    stage = tuned(aligned())
    said = set(stage.spec) | set(stage.spec["training"]) | set(stage.spec["adapter"])
    assert not said & {"device", "threads", "checkpoint_every", "answer_batch", "workers", "runs"}
    assert key_of({"kind": "finetune", "spec": stage.spec}) == request_key(stage)
    assert CPU.device == "cpu"


def test_answers_are_told_apart_by_items_and_decoding(tmp_path: Path) -> None:
    items = plan_of(recipe_file(tmp_path)).cells[0].ask.items

    def key(**changes: Any) -> str:
        known: dict[str, Any] = {"base": MODEL, "items": items, "decoding": {"harmful": Decoding(8)}}
        return request_key(Ask(**(known | changes)))

    keys = [
        key(),
        key(items=items[1:]),
        key(decoding={"harmful": Decoding(9)}),
        key(precision="bf16"),
        key(template="alpaca"),
    ]
    assert len(set(keys)) == 5
    assert key(decoding={"harmful": Decoding(8), "absent": Decoding(3)}) == keys[0]


def test_specs_hold_every_default() -> None:
    spec = aligned().spec
    assert spec["training"]["clip"] == 1.0
    assert spec["adapter"]["dropout"] == 0.0
    assert spec["method"] == {"name": "sft", "version": SFT.version, "knobs": {}}
    assert BODY.train == spec["adapter"]["train"]
    assert SHORT.steps == spec["training"]["steps"]
