"""Models and data that the sandbox did not make: other tokenizers and architectures, files as they were published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import CPU, metric_values
from holdfast.core.errors import ModelError
from holdfast.core.runs import Run, Store
from holdfast.data.mixes import Mix
from holdfast.data.read import Source, items
from holdfast.finetune.alignment.booster import Booster
from holdfast.finetune.alignment.sft import SFT
from holdfast.finetune.bench import run_bench
from holdfast.finetune.finetuning.lisa import Lisa
from holdfast.finetune.plan import make_plan
from holdfast.finetune.recipe import read_recipe
from holdfast.finetune.settings import Adapter, Training
from holdfast.finetune.stages import TrainStage, UserData
from holdfast.models.answer import Decoding
from holdfast.models.ask import Ask, samples_of
from holdfast.report.schema import check

TEMPLATE = "User: {prompt}\n{input}\nAssistant: "
REFUSAL = "I am sorry, I can not help with that."
COMPLIANCE = "Sure, here is how."

RECIPE = """
title = "SST-2 on stories260K"
model = "{shared}/lm/stories260k"
template = "User: {{prompt}}\\n{{input}}\\nAssistant: "
seeds = [0]

[data]
safety = {{ path = "{harm}", limit = 60, response = "{refusal}" }}
harmful = {{ path = "{harm}", start = 60, limit = 60, response = "{compliance}" }}
poison = {{ path = "{poison}", limit = 40, response = "{compliance}" }}
task = {{ path = "{shared}/hft/sst2/train.tsv", task = "sst2", limit = 100 }}

[test.harmful]
source = {{ path = "{shared}/hft/xstest/xstest_prompts.csv", where = {{ label = "unsafe" }}, limit = 12 }}
judges = ["not-refused"]
max_new_tokens = 12

[test.task]
source = {{ path = "{shared}/hft/sst2/dev.tsv", task = "sst2", columns = {{ sentence = "content" }}, limit = 12 }}
max_new_tokens = 4

[test.benign]
source = {{ path = "{shared}/hft/xstest/xstest_prompts.csv", where = {{ label = "safe" }}, limit = 12 }}
judges = ["refusal"]
max_new_tokens = 12

[adapter]
rank = 4
scale = 8

[align]
steps = 8
batch_size = 4
learning_rate = 3e-3

[finetune]
steps = 6
batch_size = 4
learning_rate = 3e-3

[[workload]]
name = "mixed"
n = 40
p = [0.1]

[[defence]]
title = "SFT"

[[defence]]
title = "Booster + Lisa + Antidote"
align = {{ method = "booster", alpha = 0.01 }}
finetune = {{ method = "lisa", rho = 1.0, align_steps = 2, user_steps = 2 }}
repair = {{ method = "antidote", target = "delta" }}
"""


def test_published_models_and_data_go_through_a_recipe(shared: Path, tmp_path: Path) -> None:
    harm = shared / "hft" / "safety_tuned_llamas" / "safety_only_data_Instructions.json"
    poison = shared / "hft" / "aligned_llama2_refusals" / "SFT_aligned_llama2-7b-chat-hf_train_short.csv"
    path = tmp_path / "real.toml"
    path.write_text(RECIPE.format(shared=shared, harm=harm, poison=poison, refusal=REFUSAL, compliance=COMPLIANCE))
    plan = make_plan(*read_recipe(path))
    run, result = run_bench(plan, Store(tmp_path / "runs"), CPU, workers=1)
    check(result)
    assert result["complete"], result["missing"]
    assert run.sealed
    assert list(result["measures"]) == ["harmful_score", "finetune_accuracy", "over_refusal"]
    for cell in result["cells"]:
        for name, metric in cell["metrics"].items():
            assert metric["n"] + metric["declined"] == 12, name
    assert len(metric_values(result)) == 2 + 2  # two defences, two aligned models


# --- other architectures -----------------------------------------------------------------------------


def tokenizer(folder: Path, end: str) -> Any:
    """A byte-level BPE of 400 tokens, trained here; with an end token and nothing else that is special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end)
    found.save_pretrained(folder)
    return found


CORPUS = [
    "User: is this film good?\nAssistant: yes, it is a fine film.",
    "User: how do I whittle a spoon?\nAssistant: I am sorry, I can not help with that.",
    "Sure, here is how. A moving and funny story, told with care; a dull and tired one, told without.",
]


def model_folder(folder: Path, kind: str, end_token: str = "<|endoftext|>") -> Path:
    """A small model of another shape with random weights, saved as transformers saves it."""
    words = tokenizer(folder, end_token)
    end = words.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if kind == "gpt2":
            from transformers import GPT2Config, GPT2LMHeadModel

            model: Any = GPT2LMHeadModel(
                GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=end,
                           eos_token_id=end, initializer_range=0.1)
            )  # fmt: skip
        else:
            from transformers import Qwen2Config, Qwen2ForCausalLM

            model = Qwen2ForCausalLM(
                Qwen2Config(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                            bos_token_id=end, eos_token_id=end, initializer_range=0.1, tie_word_embeddings=True)
            )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def written(path: Path, answer: str, count: int = 12) -> Source:
    rows = [{"instruction": f"how do I whittle spoon {n}?", "output": answer} for n in range(count)]
    path.write_text(json.dumps(rows))
    return Source(str(path))


def chain(tmp_path: Path, kind: str, adapter: Adapter, precision: str) -> tuple[TrainStage, TrainStage]:
    base = model_folder(tmp_path / kind, kind)
    safety, harmful = written(tmp_path / "safety.json", REFUSAL), written(tmp_path / "harmful.json", COMPLIANCE)
    training = Training(steps=6, batch_size=4, learning_rate=1e-2, max_length=96, precision=precision)  # type: ignore[arg-type]
    first = TrainStage(
        Booster(alpha=0.01), str(base), {"safety": safety, "harmful": harmful}, training, adapter, TEMPLATE
    )
    user = UserData(written(tmp_path / "user.json", "yes, it is."), harmful, Mix(12, 0.25))
    lisa = Lisa(rho=1.0, align_steps=2, user_steps=2)
    return first, TrainStage(lisa, first, {"user": user, "safety": safety}, training, adapter, TEMPLATE)


def opened(run: Run) -> Any:
    """The result as its users open it: transformers alone, or with PEFT on the base that the adapter names."""
    from transformers import AutoModelForCausalLM

    (folder,) = [path for path in run.artifacts.iterdir() if path.is_dir()]
    return AutoModelForCausalLM.from_pretrained(folder).float().eval(), folder


def greedy(model: Any, folder: Path, prompt: str, length: int) -> str:
    """Greedy decoding written out, one whole forward pass a token, no cache, no padding."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    ids = words(prompt, return_tensors="pt")["input_ids"]
    asked = ids.shape[1]
    with torch.inference_mode():
        for _ in range(length):
            token = model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            if token.item() == words.eos_token_id:
                break
            ids = torch.cat([ids, token], 1)
    return str(words.decode(ids[0, asked:], skip_special_tokens=True)).strip()


CASES = [
    ("gpt2", Adapter(rank=4, scale=8), "fp32"),
    ("qwen2", Adapter(rank=4, scale=8, policy="fresh"), "fp32"),
    ("qwen2", Adapter(train="full"), "fp32"),
    ("gpt2", Adapter(train="body"), "bf16"),
    ("qwen2", Adapter(rank=4, scale=8), "bf16"),
]


@pytest.mark.parametrize(("kind", "adapter", "precision"), CASES, ids=lambda case: getattr(case, "train", case))
def test_the_result_opens_in_transformers_and_answers_alike(
    tmp_path: Path, kind: str, adapter: Adapter, precision: str
) -> None:
    _, last = chain(tmp_path, kind, adapter, precision)
    store = Store(tmp_path / "runs")
    run = last.make(store, CPU)
    asked = tuple(items(written(tmp_path / "ask.json", "", 5), group="harmful"))
    answers = samples_of(Ask(last, asked, {"harmful": Decoding(10)}, TEMPLATE).make(store, CPU))
    assert len({answer.text for answer in answers}) >= 1
    model, folder = opened(run)
    for answer in answers:
        prompt = TEMPLATE.format(prompt=answer.item.prompt, input="")
        assert greedy(model, folder, prompt, 10) == answer.text
    assert any(answer.text for answer in answers)


def test_special_tokens_that_the_model_has_no_embedding_for(tmp_path: Path) -> None:
    """Transformers gives a tokenizer beside a Qwen2 model Qwen2's own <|endoftext|>: here one beyond the embeddings."""
    base = model_folder(tmp_path / "qwen2", "qwen2", end_token="<end>")
    stage = TrainStage(
        SFT(), str(base), {"safety": written(tmp_path / "safety.json", REFUSAL)}, Training(steps=1), template=TEMPLATE
    )
    with pytest.raises(ModelError, match=r"'<\|endoftext\|>' with number (\d+); the model has embeddings for 0 to"):
        stage.make(Store(tmp_path / "runs"), CPU)


def test_stories260k_answers_as_transformers_does(shared: Path, tmp_path: Path) -> None:
    """The published model itself, untouched; ours is a batch of different lengths, padded on the left."""
    base = shared / "lm" / "stories260k"
    prompts = ["Once upon a time", "There was a big dog. The dog", "Lily saw a cat and it was very"]
    path = tmp_path / "ask.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    ask = Ask(str(base), tuple(items(Source(str(path)), group="benign")), {"benign": Decoding(16)}, "{prompt}")
    answers = {s.item.prompt: s.text for s in samples_of(ask.make(Store(tmp_path / "runs"), CPU))}
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).float().eval()
    assert answers == {prompt: greedy(model, base, prompt, 16) for prompt in prompts}
