from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import BODY, CPU, MODEL, SHORT, aligned, made_files, tuned
from holdfast.core.errors import DataError, HoldfastError, ModelError, TrainingError, UsageError
from holdfast.core.events import Event, StageFinished, Warned
from holdfast.core.runs import Store, open_run
from holdfast.data.mixes import Mix
from holdfast.data.read import Source
from holdfast.finetune.alignment.booster import Booster
from holdfast.finetune.finetuning.lisa import Lisa
from holdfast.finetune.post_finetuning.antidote import Antidote
from holdfast.finetune.settings import Adapter, Training
from holdfast.finetune.stages import RepairStage, UserData, tuned_from
from holdfast.models.engine import Engine
from holdfast.models.load import load_model, resolve

LORA = Adapter(rank=4, scale=8)
FRESH = Adapter(rank=4, scale=8, policy="fresh")
HARMFUL = {"harmful": Source("sandbox/harmful-0", limit=20)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("runs"))


def rows(path: Path, *pairs: tuple[str, str]) -> Source:
    path.write_text("".join(json.dumps({"prompt": a, "response": b}) + "\n" for a, b in pairs))
    return Source(str(path))


def test_a_chain_is_made_with_its_parents(store: Store) -> None:
    mend = RepairStage(Antidote(target="delta"), tuned(aligned()), HARMFUL)
    events: list[Event] = []
    run = mend.make(store, CPU, events.append)
    assert [e.stage for e in events if isinstance(e, StageFinished)] == ["align", "finetune", "repair"]
    assert run.spec["attacked"] is True
    assert resolve(open_run(run.path).provenance["start"]).identity == {"run": aligned().make(store, CPU).key}
    card = json.loads((run.artifacts / "model" / "holdfast.json").read_text())
    assert (card["attacked"], card["method"]["name"], card["run"]) == (True, "antidote", run.name)
    assert mend.make(store, CPU).key == run.key
    # Whoever may read what the user writes may read, and so serve, the model.
    (written := run.path / "written").touch()
    assert (run.artifacts / "model" / "model.safetensors").stat().st_mode == written.stat().st_mode
    written.unlink()


def test_the_marks_of_attacked_weights(store: Store) -> None:
    clean, poisoned = tuned(aligned(), p=0), tuned(aligned())
    assert not aligned().attacked
    assert not clean.attacked
    assert poisoned.attacked
    run = poisoned.make(store, CPU)
    from_folder = replace(tuned(str(run.path), p=0))
    assert from_folder.attacked, "a folder's own spec says what it was tuned on"


def test_the_same_stage_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    stage = tuned(aligned())
    one = stage.make(store, CPU)
    other = stage.make(Store(tmp_path), Engine(device="cpu", checkpoint_every=1))
    assert one.name == other.name
    assert made_files(one) == made_files(other)


def test_another_seed_gives_other_weights(store: Store) -> None:
    one, other = (aligned(seed=seed).make(store, CPU) for seed in (0, 1))
    name = "artifacts/model/model.safetensors"
    assert made_files(one)[name] != made_files(other)[name]


def parameters(reference: Path) -> dict[str, torch.Tensor]:
    model = load_model(resolve(str(reference)), torch.float32, merge=True)
    return {name: p.detach() for name, p in model.named_parameters()}


def test_lora_kept_goes_on_training_one_adapter(store: Store) -> None:
    first = aligned(adapter=LORA).make(store, CPU)
    second = tuned(aligned(adapter=LORA), adapter=LORA).make(store, CPU)
    for run in (first, second):
        assert sorted(p.name for p in run.artifacts.iterdir()) == ["adapter", "losses.json"]
        config = json.loads((run.artifacts / "adapter" / "adapter_config.json").read_text())
        assert resolve(config["base_model_name_or_path"]).identity == resolve(MODEL).identity
        assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_lora_afresh_merges_the_first_and_adds_a_second(store: Store) -> None:
    first = aligned(adapter=FRESH).make(store, CPU)
    second = tuned(aligned(adapter=FRESH), adapter=FRESH).make(store, CPU)
    assert (first.artifacts / "model" / "model.safetensors").is_file()
    assert not (first.artifacts / "adapter").exists()
    config = json.loads((second.artifacts / "adapter" / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == (first.artifacts / "model").resolve()


def test_what_a_setting_trains_is_what_changes(store: Store) -> None:
    before = parameters(resolve(MODEL).folder)

    def changed(adapter: Adapter) -> set[str]:
        after = parameters(aligned(adapter=adapter).make(store, CPU).path)
        return {name for name in before if not torch.equal(before[name], after[name])}

    body, full, lora = (changed(Adapter(train="body")), changed(Adapter(train="full")), changed(LORA))
    assert full == set(before), "every weight"
    assert full - body == {name for name in before if "embed" in name}, "all but the embeddings"
    assert lora == {name for name in before if name.endswith("_proj.weight")}, "the linear maps in the layers"


def test_settings_that_contradict_the_adapter_of_the_model(store: Store) -> None:
    run = aligned(adapter=LORA).make(store, CPU)
    for adapter in (BODY, FRESH):
        with pytest.raises(UsageError, match="carries a LoRA, and the settings ask for") as caught:
            tuned(str(run.path), adapter=adapter).make(store, CPU)
        assert "policy = 'fresh'" in caught.value.hint


def test_a_module_that_is_not_there(store: Store) -> None:
    with pytest.raises(UsageError, match="no module 'c_attn'") as caught:
        aligned(adapter=Adapter(targets=("q_proj", "c_attn"))).make(store, CPU)
    assert "q_proj" in caught.value.hint


# --- bad input ---------------------------------------------------------------------------------------


def refused(stage: Any, store: Store, kind: type[HoldfastError], match: str) -> HoldfastError:
    with pytest.raises(kind, match=match) as caught:
        stage.make(store, CPU)
    assert caught.value.hint
    return caught.value


def test_a_method_without_its_data(store: Store) -> None:
    only = {"safety": Source("sandbox/align-0", limit=40)}
    error = refused(aligned(Booster(), data=only), store, UsageError, "booster needs harmful data")
    assert "--harmful FILE" in error.hint
    assert "data.harmful" in error.hint
    user = {"user": tuned(aligned()).data["user"]}
    refused(replace(tuned(aligned(), method=Lisa()), data=user), store, UsageError, "lisa needs safety data")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"training": Training(steps=4, learning_rate=-1.0)}, "learning_rate = -1 is outside"),
        ({"training": Training(steps=4, epochs=1.0)}, "both epochs = 1 and steps = 4"),
        ({"training": Training(steps=4, warmup=1.5)}, r"warmup = 1\.5 is outside \[0, 1\]"),
        ({"adapter": Adapter(rank=0)}, "rank = 0 is outside"),
        ({"method": Booster(alpha=float("nan"))}, "alpha = nan is not a finite number"),
    ],
)
def test_a_knob_out_of_range(store: Store, changes: dict[str, Any], match: str) -> None:
    refused(aligned(**changes), store, UsageError, match)


def test_an_impossible_mix(store: Store) -> None:
    for mix, match in (
        (Mix(40, 1.5), r"p = 1\.5 is outside \[0, 1\]"),
        (Mix(4, 0.1), "no harmful row at all"),  # round(0.4) = 0
    ):
        user = replace(tuned(aligned()).data["user"], mix=mix)  # type: ignore[type-var]
        refused(tuned(aligned(), data={"user": user}), store, UsageError, match)


def test_a_pool_that_is_too_small(store: Store, tmp_path: Path) -> None:
    """n = 40 at p = 0.5 needs 20 task rows; the file has 2."""
    small = rows(tmp_path / "small.jsonl", ("a", "b"), ("c", "d"))
    user = UserData(small, Source("sandbox/attack-0", limit=40), Mix(40, 0.5))
    refused(tuned(aligned(), data={"user": user}), store, DataError, "need 20 task rows; the source gives 2")


def test_answers_without_any_room(store: Store, tmp_path: Path) -> None:
    long = rows(tmp_path / "long.jsonl", (" ".join(["good"] * 100), "yes"), ("good", "yes"))
    error = refused(aligned(data={"safety": long}), store, DataError, "1 of 2 rows of the safety set have no room")
    assert "max_length" in error.hint


def test_an_answer_that_is_cut_is_a_warning(store: Store, tmp_path: Path) -> None:
    long = rows(tmp_path / "cut.jsonl", *[("good", " ".join(["bad"] * 100))] * 4)
    events: list[Event] = []
    aligned(data={"safety": long}).make(store, CPU, events.append)
    said = [event.message for event in events if isinstance(event, Warned)]
    assert said == ["4 of 4 safety answers were cut at 64 tokens"]


def test_a_loss_that_is_not_finite(store: Store) -> None:
    stage = aligned(training=replace(SHORT, learning_rate=1e30, clip=0.0))
    error = refused(stage, store, TrainingError, "not finite")
    assert "learning_rate" in error.hint
    run = store.run(stage.kind, stage.label, stage.spec)
    assert not run.sealed
    assert not run.artifacts.exists(), "weights that are not finite must not be left as a result"


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        ("./absent", "no model folder"),
        ("sandbox/mikro-0", "mikro-0"),
        ("{folder}", "not a model folder: no config.json"),
    ],
)
def test_models_that_are_not_there(store: Store, tmp_path: Path, reference: str, match: str) -> None:
    with pytest.raises(HoldfastError, match=match) as caught:
        aligned(base=reference.format(folder=tmp_path)).make(store, CPU)
    assert caught.value.hint


def copied_model(folder: Path) -> Path:
    shutil.copytree(resolve(MODEL).folder, folder / "model")
    return folder / "model"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(b""),
    ],
    ids=["cut", "garbage", "empty"],
)
def test_a_damaged_weights_file(store: Store, tmp_path: Path, spoil: Any) -> None:
    folder = copied_model(tmp_path)
    spoil(folder / "model.safetensors")
    refused(aligned(base=str(folder)), store, ModelError, "safetensors|cannot be loaded")


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "nonesuch"}', "{}"])
def test_a_damaged_configuration(store: Store, tmp_path: Path, content: str) -> None:
    folder = copied_model(tmp_path)
    (folder / "config.json").write_text(content)
    refused(aligned(base=str(folder)), store, ModelError, "cannot be (loaded|used)")


def test_pickled_weights_are_never_loaded(store: Store, tmp_path: Path) -> None:
    folder = copied_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(aligned(base=str(folder)), store, ModelError, r"no safetensors weights, only pickled ones \(pytorch_model")


def test_a_model_without_a_chat_template(store: Store, tmp_path: Path) -> None:
    folder = copied_model(tmp_path)
    for path in folder.glob("*.jinja"):
        path.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    error = refused(aligned(base=str(folder)), store, ModelError, "no chat template")
    assert "--template" in error.hint
    assert aligned(base=str(folder), template="{prompt} ").make(store, CPU).sealed


def test_a_repair_needs_the_run_of_a_fine_tuning(store: Store, tmp_path: Path) -> None:
    refused(RepairStage(Antidote(), str(tmp_path), HARMFUL), store, ModelError, "is not a run folder")
    run = aligned().make(store, CPU)
    refused(RepairStage(Antidote(), str(run.path), HARMFUL), store, UsageError, "is a align run|is an align run")


def test_a_repair_that_cannot_fit_is_refused_before_training(store: Store) -> None:
    """Antidote's default removes entries of the user's LoRA: there is none, or it holds the alignment too."""
    before = len(store.list())
    refused(RepairStage(Antidote(), tuned(aligned()), HARMFUL), Store(store.root / "none"), UsageError, "needs a LoRA")
    kept = Adapter(train="lora", rank=2)
    continued = replace(tuned(replace(aligned(), adapter=kept)), adapter=kept)
    none = Store(store.root / "none")
    with pytest.raises(UsageError, match="would remove the alignment too"):
        RepairStage(Antidote(), continued, HARMFUL).validate()
    with pytest.raises(UsageError, match="is for full fine-tuning"):
        RepairStage(Antidote(target="weights"), continued, HARMFUL).validate()
    RepairStage(Antidote(target="delta"), continued, HARMFUL).validate()
    fresh = replace(kept, policy="fresh")
    RepairStage(Antidote(), replace(tuned(replace(aligned(), adapter=fresh)), adapter=fresh), HARMFUL).validate()
    assert (len(store.list()), none.list()) == (before, [])


def test_a_repair_needs_where_fine_tuning_started(store: Store, tmp_path: Path) -> None:
    run = tuned(aligned()).make(store, CPU)
    folder = tmp_path / "copy"
    shutil.copytree(run.path, folder)
    assert tuned_from(str(folder))[1].identity == resolve(str(aligned().make(store, CPU).path)).identity
    header = json.loads((folder / "spec.json").read_text())
    del header["provenance"]["start"]
    (folder / "spec.json").write_text(json.dumps(header))
    with pytest.raises(ModelError, match="does not record its start"):
        tuned_from(str(folder))


def test_a_run_that_is_damaged_is_no_model(store: Store, tmp_path: Path) -> None:
    run = aligned().make(store, CPU)
    folder = tmp_path / "copy"
    shutil.copytree(run.path, folder)
    (folder / "artifacts" / "model" / "model.safetensors").unlink()
    error = refused(
        tuned(str(folder)), store, ModelError, r"cannot be used: artifacts/model/model\.safetensors is missing"
    )
    assert "run the command that made it again" in error.hint


def test_a_device_that_is_not_there(store: Store) -> None:
    with pytest.raises(UsageError, match="device 'cuda:7' is not there"):
        aligned(seed=99).make(store, Engine(device="cuda:7"))


def test_a_damaged_checkpoint_goes_back_to_the_one_before(store: Store, tmp_path: Path) -> None:
    """Interrupted at step 3 of 4 with a checkpoint after each step; the newest is spoiled; the end is the same."""
    whole = aligned(seed=3).make(store, CPU)
    other = Store(tmp_path)

    def stop(event: Event) -> None:
        if getattr(event, "done", 0) == 3 and getattr(event, "loss", None) is not None:
            raise KeyboardInterrupt

    with pytest.raises(HoldfastError, match="stopped at step"):
        aligned(seed=3).make(other, Engine(device="cpu", checkpoint_every=1), stop)
    run = other.run("align", "sft", aligned(seed=3).spec)
    newest = max((run.path / "checkpoint").glob("step-*"))
    (newest / "parameters.safetensors").write_bytes(b"garbage")
    events: list[Event] = []
    assert made_files(aligned(seed=3).make(other, CPU, events.append)) == made_files(whole)
    said = " ".join(event.message for event in events if isinstance(event, Warned))
    assert f"checkpoint {newest.name} is damaged" in said
    assert "going on from step" in said
