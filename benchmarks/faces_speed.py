"""What learning and applying a mask cost, in CPU seconds, against limits and the authors' way of learning.

    python benchmarks/faces_speed.py

Learning: 8 generated photos, 2 recognisers of real faces, the default settings; limit 30 s of CPU time. The peer is
the authors' objective and schedule (Chameleon.published) on the same photos and recognisers: the ratios are of one
photo of one step, and of the whole. Applying: an aligned face (limit 20 ms) and a face of 1120 pixels in a photo of 12
megapixels, without decoding (limit 150 ms). Writes benchmarks/results/faces_speed.json; ends with exit code 1 where a
limit is missed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from holdfast.data import drawn
from holdfast.faces.align import TEMPLATE, align
from holdfast.faces.detect import find_faces
from holdfast.faces.method import Subject
from holdfast.faces.methods.chameleon import Chameleon
from holdfast.faces.protect import changed_pixels
from holdfast.faces.recogniser import load_recognisers

OUT = Path(__file__).parent / "results" / "faces_speed.json"
PHOTOS, ROUNDS = 8, 9


def cpu(work: Callable[[], object], rounds: int = ROUNDS) -> dict[str, float]:
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return {"least": min(times), "median": statistics.median(times), "rounds": rounds}


def subject() -> Subject:
    def crops(people: list[drawn.Person], shots: range) -> torch.Tensor:
        pixels = [drawn.aligned(one, shot) for one in people for shot in shots]
        return torch.stack([torch.from_numpy(one).permute(2, 0, 1).float() for one in pixels])

    team = load_recognisers(["openvino-0095", "mobileface-v2"])
    return Subject(crops(drawn.demo_people(1), range(PHOTOS)), tuple(team), crops(drawn.training_people(60), range(1)))


def main() -> int:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    person = subject()
    default, published = Chameleon(), Chameleon.published(PHOTOS)
    learn = cpu(lambda: default.learn(person, 0), rounds=3)
    theirs = cpu(lambda: published.learn(person, 0), rounds=1)
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    small = rng.integers(0, 256, (250, 250, 3), dtype=np.uint8)
    mask = (torch.rand(3, 112, 112) - 0.5) * 16
    face = cpu(lambda: changed_pixels(small, [align(TEMPLATE + 60)], mask, 16))
    photo = cpu(lambda: changed_pixels(large, [align(TEMPLATE * 10 + 900)], mask, 16))
    portrait = drawn.photo(drawn.demo_people(1)[0], 0, (640, 640)).pixels
    found = cpu(lambda: find_faces(portrait))
    step, their_step = (
        one["least"] / method.steps / method.batch for one, method in ((learn, default), (theirs, published))
    )
    limits = {"learn": (learn["least"], 30.0), "face": (face["least"], 0.020), "photo": (photo["least"], 0.150)}
    result = {
        "learn": learn, "published": theirs, "settings": {"steps": default.steps, "batch": default.batch},
        "published_settings": {"steps": published.steps, "batch": published.batch},
        "step_per_photo_ratio": step / their_step, "whole_ratio": learn["least"] / theirs["least"],
        "face": face, "photo_12_megapixels": photo, "detect_640": found,
        "within": {name: value <= limit for name, (value, limit) in limits.items()},
    }  # fmt: skip
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    for name, (value, limit) in limits.items():
        print(f"{name:8} {value:8.3f} s of CPU, limit {limit} s: {'within' if value <= limit else 'MISSED'}")
    print(f"detect   {found['least']:8.3f} s of CPU, 640 pixels")
    print(f"one photo of one step costs {step / their_step:.2f} of the authors', the whole {result['whole_ratio']:.2f}")
    return 0 if all(result["within"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
