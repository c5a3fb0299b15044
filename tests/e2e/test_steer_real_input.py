"""Steering on models and prompts that Holdfast did not make: a pretrained language model given eyes, public prompt sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.cli.main import run
from holdfast.core.records import Sample
from holdfast.data import read
from holdfast.data.images import check_images, open_image
from holdfast.raters.exact import ChoiceJudge


@pytest.fixture(scope="module")
def stories_with_eyes(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K (a pretrained Llama with a tokenizer of its own) inside a LLaVA whose vision tower is random."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    source = shared / "lm" / "stories260k"
    language = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    place = tokenizer.convert_tokens_to_ids("<image>")
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=vision, text_config=language.config, image_token_index=place, image_seq_length=4,
                vision_feature_layer=-1, tie_word_embeddings=language.config.tie_word_embeddings,
            )
        ).eval()  # fmt: skip
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    folder = tmp_path_factory.mktemp("stories") / "seeing"
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
    LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


def command(*words: str, folder: Path) -> int:
    return run([*words, "--runs", str(folder / "runs"), "--quiet"])


def test_a_model_without_a_chat_template_says_what_to_type(
    stories_with_eyes: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = str(shared / "hft" / "xstest" / "xstest_prompts.csv")
    code = command(
        "steer", "diagnose", "--model", str(stories_with_eyes), "--images", "scenes", "--limit", "4",
        "--harmful", f"{{ path = '{prompts}', where = {{ label = 'unsafe' }} }}",
        "--benign", f"{{ path = '{prompts}', where = {{ label = 'safe' }} }}", folder=tmp_path,
    )  # fmt: skip
    told = capsys.readouterr().err
    assert code == 4
    assert "has no chat template" in told
    assert "--template 'USER: {image}{prompt} ASSISTANT:'" in told


def test_a_real_model_on_xstest_with_generated_pictures(
    stories_with_eyes: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = str(shared / "hft" / "xstest" / "xstest_prompts.csv")
    common = [
        "--model", str(stories_with_eyes), "--images", "scenes", "--template", "USER: {image}{prompt} ASSISTANT:",
        "--harmful", f"{{ path = '{prompts}', where = {{ label = 'unsafe' }} }}",
        "--benign", f"{{ path = '{prompts}', where = {{ label = 'safe' }} }}",
        "--limit", "24", "--max-new-tokens", "8",
    ]  # fmt: skip
    assert command("steer", "diagnose", *common, folder=tmp_path) == 0
    shown = capsys.readouterr().out
    assert "Request alone" in shown
    # A story teller refuses nothing, with a picture or without: nothing to restore.
    assert "there is nothing to restore" in shown
    assert command("steer", "fit", "cmrm", *common, "--choice.first", "8", folder=tmp_path) == 0
    (fitted,) = (tmp_path / "runs").glob("cmrm-*")
    card = json.loads((fitted / "artifacts" / "steering" / "card.json").read_text("utf-8"))
    assert card["model"]["shape"] == {"layers": 5, "width": 64}
    assert card["anchors"]["harmful"] == card["anchors"]["benign"] == 12
    questions = str(shared / "vlm" / "llava_bench_coco" / "qa90_questions.jsonl")
    assert (
        command(
            "steer", "apply", str(fitted), "--items", f"{{ path = '{questions}', columns = {{ prompt = 'text' }} }}",
            "--images", "scenes", "--group", "visual", "--limit", "3", "--max-new-tokens", "6", folder=tmp_path,
        )
        == 3
    ), "its image column names COCO pictures, which are not there"  # fmt: skip
    assert "names the picture" in capsys.readouterr().err


def llava_bench(shared: Path) -> list[dict[str, Any]]:
    text = (shared / "vlm" / "llava_bench_coco" / "qa90_questions.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_llava_bench_questions_go_in_with_a_folder_of_pictures(shared: Path, tmp_path: Path) -> None:
    rows = llava_bench(shared)
    for number, name in enumerate(sorted({row["image"] for row in rows})):
        open_image(f"scene:red-circle-left-{number}").save(tmp_path / name)
    path = shared / "vlm" / "llava_bench_coco" / "qa90_questions.jsonl"
    found = read.items(read.Source(str(path), columns={"prompt": "text"}, images=str(tmp_path)), group="visual")
    assert len(found) == 90
    check_images(found)
    assert [Path(item.image).name for item in found] == [row["image"] for row in rows]


def test_scienceqa_questions_go_in_and_their_letters_are_judged(shared: Path, tmp_path: Path) -> None:
    rows = json.loads((shared / "vlm" / "scienceqa" / "llava_test_CQM-A.json").read_text("utf-8"))
    chosen = [row for row in rows if "image" in row][:30] + [row for row in rows if "image" not in row][:10]
    for number, row in enumerate(chosen[:30]):
        (tmp_path / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        open_image(f"scene:blue-cross-right-{number}").save(tmp_path / row["image"])
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(chosen), "utf-8")
    found = read.items(read.Source(str(path), images=str(tmp_path)), group="visual")
    check_images(found)
    assert [item.image for item in found[:30]] == [str(tmp_path / row["image"]) for row in chosen[:30]]
    assert all(item.image for item in found), "a question without a picture of its own gets one of the folder"
    assert found[0].reference == chosen[0]["conversations"][1]["value"]
    right = [Sample(item, item.reference or "", 1, "stop") for item in found]
    assert {rating.value for rating in ChoiceJudge().rate(right)} == {1.0}
    wrong = [Sample(item, "The answer is H.", 1, "stop") for item in found]
    assert {rating.value for rating in ChoiceJudge().rate(wrong)} == {0.0}
