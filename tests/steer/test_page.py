from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.records import Metric, Rating
from holdfast.raters.measure import difference, rate
from holdfast.report.charts import save, specification
from holdfast.steer import charts
from holdfast.steer.diagnose import CONDITIONS, degrades
from holdfast.steer.page import render, render_diagnosis, write, write_diagnosis
from holdfast.steer.plan import BASE
from holdfast.steer.results import recommended

Json = dict[str, Any]

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTjX5wAAAABJRU5ErkJggg=="
)
BASE_UNSAFE = (16, 14)
MEASURES: dict[str, Json] = {
    "harmful_score": {"label": "Unsafe rate", "unit": "%", "better": "lower", "group": "harmful", "judge": "not-refused", "utility": False},
    "harmful_score:sandbox": {"label": "Harmful score (sandbox)", "unit": "%", "better": "lower", "group": "harmful", "judge": "sandbox", "utility": False},
    "over_refusal": {"label": "Over-refusal", "unit": "%", "better": "lower", "group": "benign", "judge": "refusal", "utility": True},
    "visual_correct": {"label": "Visual accuracy", "unit": "%", "better": "higher", "group": "visual", "judge": "exact", "utility": True},
}  # fmt: skip
# Positive ratings of 40 items in each of two seeds.
METHODS: dict[str, dict[str, tuple[int, int]]] = {
    BASE: {"harmful_score": BASE_UNSAFE, "harmful_score:sandbox": (12, 10), "over_refusal": (1, 1), "visual_correct": (36, 35)},
    "Gentle": {"harmful_score": (4, 5), "harmful_score:sandbox": (3, 4), "over_refusal": (1, 1), "visual_correct": (36, 35)},
    "Brutal": {"harmful_score": (0, 0), "harmful_score:sandbox": (0, 0), "over_refusal": (30, 31), "visual_correct": (9, 8)},
}  # fmt: skip
PLAIN = {"harmful_score": (1, 0), "harmful_score:sandbox": (1, 0), "over_refusal": (0, 0)}


def ratings(positive: int, n: int = 40) -> list[Rating]:
    return [Rating(f"i{i}", float(i < positive)) for i in range(n)]


def groups(counts: Sequence[int]) -> list[list[Rating]]:
    return [ratings(count) for count in counts]


def row(workload: str, title: str) -> Json:
    counts, base = METHODS[title], METHODS[BASE]
    method = None if title == BASE else {"name": title.lower(), "title": title, "paper": f"Author of {title} 2025"}
    metrics = {name: rate(name, MEASURES[name]["better"], groups(found)).as_json() for name, found in counts.items()}
    against = {
        name: difference(name, MEASURES[name]["better"], groups(found), groups(base[name])).as_json()
        for name, found in counts.items()
        if method
    }
    chosen: Json = {
        "fit": "f",
        "knobs": {"layers": [2], "strength": 0.5},
        "tried": 6,
        "predictors": ["layer 2: a sentence"],
    }
    seeds = [{"seed": s, "values": {}, "run": f"ask-{s}", **(chosen if method else {})} for s in (0, 1)]
    cost = {"ratio": 1.25, "low": 1.1, "high": 1.42, "rounds": 5, "extra": "2 more prefills"} if method else None
    return {
        "workload": workload, "title": title, "note": "", "method": method, "metrics": metrics, "against": against,
        "seeds": seeds, "cost": cost, "missing": [],
    }  # fmt: skip


def diagnosis(image: int = 18, *, points: bool = False) -> Json:
    """As of one model whose unsafe rate is ``image`` of 40 with pictures and 1 of 40 without."""
    counts = {"text": 1, "caption": 1, "image": image, "blank": 6, "noise": 6}
    conditions: list[Json] = []
    for name, title in CONDITIONS.items():
        found = {"harmful_score": counts[name], "over_refusal": 2}
        metrics = {m: rate(m, "lower", [ratings(k)]).as_json() for m, k in found.items()}
        text = {"harmful_score": counts["text"], "over_refusal": 2}
        gaps = {m: difference(m, "lower", [ratings(k)], [ratings(text[m])]).as_json() for m, k in found.items()}
        conditions.append(
            {"name": name, "title": title, "metrics": metrics, "against_text": {} if name == "text" else gaps}
        )
    made: Json = {
        "conditions": conditions,
        "layers": [layer(n) for n in range(3)],
        "model": {"reference": "sandbox/vlm-0", "attacked": False},
    }
    if points:
        made["points"] = [
            {"layer": n, "group": g, "view": v, "x": 0.2 * n - 0.1 * i, "y": 0.1 * i, "share": 0.625}
            for n in range(3) for g in ("harmful", "benign") for v in ("text", "image") for i in range(4)
        ]  # fmt: skip
    return made


def layer(number: int) -> Json:
    distance = Metric(
        "distance", 0.3, 0.25, 0.35, 48, "of the text's length", "none", method="Student's t over prompts"
    ).as_json()
    return {
        "layer": number, "cosine": -0.004, "along": 0.41, "separable": 0.97, "separable_text": 1.0, "sunk": 0.123,
        "distance_harmful": distance, "distance_benign": distance | {"value": 0.21},
    }  # fmt: skip


def examples() -> list[Json]:
    def one(group: str, reference: str, answer: str) -> Json:
        answers = {title: f"{answer} {title}" for title in METHODS}
        return {
            "group": group,
            "prompt": f"a {group} prompt",
            "reference": reference,
            "image": PICTURE,
            "answers": answers,
        }

    return [
        one("harmful", "SECRETREFERENCE", "SECRETANSWER"),
        one("benign", "stir the soup", "stir"),
        one("visual", "a red square", "red"),
    ]


def comparison() -> Json:
    workloads = {
        "released": {"title": "As released", "model": "sandbox/vlm-{seed}"},
        "tuned": {"title": "Tuned", "model": "tuned-{seed}"},
    }
    result: Json = {
        "format": 1, "title": "Pictures and refusals", "command": "holdfast steer compare x.toml",
        "recipe": "title = 'x'\n[choice]\nprice = 7.0\n", "notes": ["A note of the recipe."], "seeds": [0, 1], "budget": 2.0,
        "measures": MEASURES, "workloads": workloads, "rows": [row(w, title) for w in workloads for title in METHODS],
        "plain": {w: {m: rate(m, "lower", groups(k)).as_json() for m, k in PLAIN.items()} for w in workloads},
        "diagnoses": [
            {"workload": w, "seed": s, **diagnosis(18 if s == 0 else 2, points=w == "released" and s == 0)}
            for w in workloads for s in (0, 1)
        ],
        "examples": examples(), "anchors": {"harmful": 48, "benign": 48}, "environment": {"torch": "2.9"},
        "complete": True, "failed": [],
    }  # fmt: skip
    for one in result["diagnoses"]:
        one["degrades"] = degrades(one)
    return advised(result)


def advised(result: Json) -> Json:
    return result | {"recommended": {w: recommended(result, w) for w in result["workloads"]}}


def changed(result: Json, **changes: Any) -> Json:
    return copy.deepcopy(result) | changes


def absent(metric: Json, reason: str) -> Json:
    return metric | {"value": None, "low": None, "high": None, "n": 0, "reason": reason}


@pytest.fixture(scope="module")
def result() -> Json:
    return comparison()


@pytest.fixture(scope="module")
def html(result: Json) -> str:
    return render(result)


class Reader(HTMLParser):
    """What a reader sees (without scripts, styles and drawings), row by row, and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.row_classes: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._skipped = 0
        self._inside = False
        self.feed(page)
        self.text = " ".join(self.text.split())
        self.rows = [" ".join(text.split()) for text in self.rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._skipped += tag in ("script", "style", "svg")
        if tag == "tr":
            self._inside = True
            self.rows.append("")
            self.row_classes.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in ("script", "style", "svg")
        self._inside &= tag != "tr"

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.text += f" {data}"
            if self._inside:
                self.rows[-1] += f" {data}"

    def row(self, start: str) -> str:
        return next(text for text in self.rows if text.startswith(start))


def brackets(metric: Json, digits: int = 1) -> str:
    return f"[{metric['low']:.{digits}f}, {metric['high']:.{digits}f}]".replace("-", "−")


# --- a comparison ------------------------------------------------------------------------------------


def test_every_rate_has_its_interval_and_difference(result: Json, html: str) -> None:
    page = Reader(html)
    for one in result["rows"][:3]:
        seen = page.row(one["title"])
        for metric in one["metrics"].values():
            assert f"{metric['value']:.1f}%" in seen
            assert brackets(metric) in seen
        for gap in one["against"].values():
            assert brackets(gap) in seen
    heads = next(text for text in page.rows if text.startswith("Method") and "not-refused" in text)
    assert heads.count("n = 80") == 4
    assert "judge: sandbox" in heads
    assert "1.25× [1.10, 1.42] n = 5 rounds 2 more prefills" in page.row("Gentle")
    assert "Author of Gentle 2025" in page.row("Gentle")
    assert not re.search(r"\b(None|nan|NaN|null)\b", page.text)


def test_differences_are_told_apart_without_colour(result: Json, html: str) -> None:
    page = Reader(html)
    gap = result["rows"][2]["against"]["over_refusal"]
    assert f"▲ +{gap['value']:.1f} {brackets(gap)}" in page.row("Brutal")
    assert "≈ 0.0" in page.row("Gentle")
    assert re.search(r'class="diff worse">▲ \+', html)
    assert re.search(r'class="diff better">▼ −', html)


def test_the_recommended_row_is_marked_and_advised(result: Json, html: str) -> None:
    page = Reader(html)
    assert result["recommended"]["released"]["title"] == "Gentle"
    marked = [text for text, kind in zip(page.rows, page.row_classes, strict=True) if kind == "recommended"]
    assert len(marked) == 2
    assert all(text.startswith("Gentle * recommended") for text in marked)
    unsafe = result["rows"][1]["metrics"]["harmful_score"]
    assert f"use Gentle (* in the table): unsafe rate {37.5:.1f}" in page.text
    assert f"→ {unsafe['value']:.1f} {brackets(unsafe)}" in page.text
    assert "over-refusal 0.0" in page.text
    tiles = html[html.index('<ul class="tiles">') :][:1600]
    assert re.search(r'class="bad".*?37\.5%', tiles, re.DOTALL)
    assert re.search(rf'class="good".*?Gentle.*?{unsafe["value"]:.1f}%', tiles, re.DOTALL)


def test_seeds_that_do_not_degrade_are_named(html: str) -> None:
    page = Reader(html)
    assert "The picture does not raise the unsafe rate of seed 1 by more than chance" in page.text
    assert "Seed 0: The picture raises the unsafe rate from 2.5" in page.text
    image = rate("harmful_score", "lower", [ratings(18)]).as_json()
    assert f"45.0% {brackets(image)}" in page.row("Image and request")
    assert "— asks about the picture" in page.row("No picture, no steering")


def test_harmful_answers_are_not_in_the_file(result: Json, html: str) -> None:
    assert "SECRETANSWER" not in html
    assert "SECRETREFERENCE" not in html
    assert "[hidden, 24 characters]" in html
    assert "--show-text" in Reader(html).text
    shown = render(result, show_text=True)
    assert "SECRETANSWER Gentle" in shown
    assert "SECRETREFERENCE" not in shown
    assert "--show-text" not in Reader(shown).text
    for page in (html, shown):
        assert "stir the soup" in page
        assert "a harmful prompt" in page


def test_answers_show_their_pictures_and_verdicts(result: Json) -> None:
    judged = changed(result)
    judged["examples"][0]["verdicts"] = {
        BASE: {"harmful_score": 1.0, "harmful_score:sandbox": 0.0},
        "Gentle": {"harmful_score": None},
    }
    judged["examples"][1]["image"] = "https://example.org/x.png"
    page = Reader(render(judged))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [one["src"] for one in images] == [PICTURE] * 2
    assert all(one["alt"] for one in images)
    assert "No steering: unsafe, safe by sandbox" in page.text


def test_what_was_chosen_is_told_once(html: str) -> None:
    page = Reader(html)
    assert page.row("Gentle 0 and 1 2 0.5 — 6")
    assert page.text.count("layer 2: a sentence") == 1
    assert "plus 7 times every point" in page.text


def test_layers_are_drawn_and_written(html: str) -> None:
    page = Reader(html)
    figures = [attributes["data-chart"] for _, attributes in page.tags if "data-chart" in attributes]
    assert {f"states-{n}" for n in range(3)} <= set(figures)
    assert {f"predictor-{key}" for key in charts.PREDICTORS} <= set(figures)
    assert len(figures) == len(set(figures)) == 2 + 2 * 5 + 3 + 1 + 4
    assert "0.30 [0.25, 0.35]" in page.row("2 0.30")
    assert "0.00 0.41 0.97 1.00 0.12" in page.row("2 0.30")
    assert "−0.00" not in page.text
    assert "62% of the variance" in page.text


def test_many_layers_are_folded_and_none_is_lost(result: Json) -> None:
    deep = changed(result)
    points = [point for point in deep["diagnoses"][0]["points"] if point["layer"] == 0]
    deep["diagnoses"][0]["points"] = [point | {"layer": n} for n in range(25) for point in points]
    page = render(deep)
    for n in range(25):
        assert f'data-chart="states-{n}"' in page
    assert "The other 16 layers" in page
    assert (
        page.index('data-chart="states-24"') < page.index("The other 16 layers") < page.index('data-chart="states-1"')
    )


def test_nothing_comes_from_elsewhere(html: str) -> None:
    page = Reader(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http://" not in re.sub(r"http://www\.w3\.org[^\"'\s]*", "", html.split("<script>", maxsplit=1)[0])


def test_tables_and_charts_can_be_read_aloud(html: str) -> None:
    page = Reader(html)
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert sum(tag == "caption" for tag, _ in page.tags) == tables
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    alts = {a["data-chart"]: a["aria-label"] or "" for _, a in page.tags if "data-chart" in a}
    assert "Gentle: unsafe rate 11.2%" in alts["methods-1-plane"]
    assert "Seed 0, Image and request: 45.0%" in alts["picture-1"]


def test_foreign_text_stays_text(result: Json) -> None:
    evil = json.loads(json.dumps(result).replace("Gentle", EVIL).replace("a benign prompt", EVIL))
    page = render(evil | {"title": EVIL, "notes": [EVIL], "command": EVIL, "recipe": EVIL}, show_text=True)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=alert(2)&gt;") > 8


def test_equal_results_make_equal_bytes(result: Json, html: str, tmp_path: Path) -> None:
    write(json.loads(json.dumps(result)), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8") == html


# --- what may be missing -----------------------------------------------------------------------------


def test_failed_runs_are_told_and_leave_dashes(result: Json) -> None:
    broken = changed(result, complete=False, failed=["out of memory <12 GiB>"])
    gone, part = broken["rows"][2], broken["rows"][1]
    gone |= {"seeds": [], "missing": [0, 1], "against": {}, "cost": None}
    gone["metrics"] = {name: absent(metric, "no answers") for name, metric in gone["metrics"].items()}
    part |= {"missing": [1], "against": {}}
    part["metrics"]["visual_correct"] = absent(part["metrics"]["visual_correct"], "the judge declined")
    page = Reader(render(advised(broken)))
    assert "This comparison is not complete." in page.text
    assert "out of memory <12 GiB>" in page.text
    assert page.row("Brutal").endswith("— not finished: seeds 0 and 1")
    assert "1 of 2 seeds: seed 1 not finished" in page.row("Gentle")
    assert "— the judge declined" in page.row("Gentle")
    assert page.row("Gentle").count("— no paired difference") == 3


def test_no_recommendation_says_so(result: Json) -> None:
    page = Reader(render(changed(result, recommended=dict.fromkeys(result["workloads"]))))
    assert "no method lowers the unsafe rate within 2 points of every utility" in page.text
    assert "Recommended method none" in page.text
    assert "recommended" not in page.row_classes


def test_a_picture_that_changes_nothing_needs_no_method(result: Json) -> None:
    calm = changed(result)
    for one in calm["diagnoses"]:
        one["degrades"] = False
    page = Reader(render(calm))
    assert "raises the unsafe rate of no seed" in page.text
    assert "Steered not needed" in page.text


def test_no_answers_give_no_advice(result: Json) -> None:
    empty = changed(result, plain={w: {} for w in result["workloads"]}, diagnoses=[], examples=[], complete=False)
    for one in empty["rows"]:
        one |= {"seeds": [], "missing": [0, 1], "against": {}, "cost": None}
        one["metrics"] = {name: absent(metric, "no answers") for name, metric in one["metrics"].items()}
    page = Reader(render(advised(empty)))
    assert "no advice, since too little was finished" in page.text
    assert "no method lowers" not in page.text
    assert "No diagnosis was finished" in page.text
    for heading in ("What a picture does", "Where in the network", "Look at answers"):
        assert heading not in page.text


def test_one_seed_one_workload_and_no_visual_exam(result: Json) -> None:
    small = changed(result, seeds=[0], workloads={"released": result["workloads"]["released"]})
    small["measures"] = {name: about for name, about in MEASURES.items() if name != "visual_correct"}
    small["rows"] = [one for one in small["rows"] if one["workload"] == "released"]
    small["diagnoses"] = small["diagnoses"][:1]
    small["examples"] = small["examples"][:2]
    for one in small["rows"]:
        one["seeds"] = one["seeds"][:1]
        for part in ("metrics", "against"):
            one[part].pop("visual_correct", None)
    page = Reader(render(advised(small)))
    assert "There is one seed" in page.text
    assert "Visual accuracy" not in page.text
    assert "visual right" not in page.text
    assert not [a for t, a in page.tags if t == "p" and a.get("class") == "group"]


# --- a diagnosis -------------------------------------------------------------------------------------


def test_a_diagnosis_says_what_the_picture_does() -> None:
    found = diagnosis(points=True) | {"command": "holdfast steer diagnose --model sandbox/vlm-0"}
    html = render_diagnosis(found)
    page = Reader(html)
    image = found["conditions"][2]
    metric, gap = image["metrics"]["harmful_score"], image["against_text"]["harmful_score"]
    assert "The picture raises the unsafe rate from 2.5" in page.text
    assert "A caption does not do it" in page.text
    assert f"45.0% {brackets(metric)} ▲ +42.5 {brackets(gap)}" in page.row("Image and request")
    assert "What the picture adds paired difference +42.5" in page.text
    assert "each condition asked with 40 harmful and 40 harmless prompts" in page.text
    assert page.row("2 0.30")
    assert "holdfast steer diagnose --model sandbox/vlm-0" in page.text
    assert len([1 for _, attributes in page.tags if "data-chart" in attributes]) == 1 + 3 + 1 + 4
    assert render_diagnosis(json.loads(json.dumps(found))) == html


def test_a_diagnosis_without_rates_or_points_claims_nothing(tmp_path: Path) -> None:
    found = diagnosis()
    image = found["conditions"][2]
    for part in ("metrics", "against_text"):
        image[part]["harmful_score"] = absent(image[part]["harmful_score"], "the judge declined every answer")
    write_diagnosis(found, tmp_path / "report.html")
    page = Reader((tmp_path / "report.html").read_text("utf-8"))
    assert "Whether the picture raises the unsafe rate is unknown: image and request: the judge declined" in page.text
    assert "nothing to restore" not in page.text
    assert "The states themselves" not in page.text
    assert "Run it again" not in page.text


# --- charts ------------------------------------------------------------------------------------------


def test_the_plane_shows_the_worst_loss(result: Json) -> None:
    brutal = result["rows"][2]
    name, points, low, high = charts.loss(brutal) or ("", 0.0, 0.0, 0.0)
    gap = brutal["against"]["over_refusal"]
    assert (name, points, low, high) == ("over_refusal", gap["value"], gap["low"], gap["high"])
    gentle = charts.loss(result["rows"][1])
    assert gentle is not None
    assert gentle[1] == 0.0
    crowded, even = charts.plane(result, "released"), charts.plane(without(result, "Brutal"), "released")
    assert crowded is not None
    assert even is not None
    assert "symlog" in json.dumps(specification(crowded))
    assert "symlog" not in json.dumps(specification(even))
    assert "budget: 2 points" in json.dumps(specification(even))


def without(result: Json, title: str) -> Json:
    return changed(result, rows=[one for one in result["rows"] if one["title"] != title])


def test_nothing_known_makes_no_chart(result: Json) -> None:
    bare = changed(result, rows=[], diagnoses=[], plain={})
    assert charts.plane(bare, "released") is None
    assert charts.methods(bare, "released", "harmful_score") is None
    assert charts.conditions([]) is None
    assert charts.distances([]) is None
    assert charts.predictor([charts.Series("", "", [layer(0) | {"cosine": None}])], "cosine") is None


def test_charts_are_valid_and_can_be_saved(result: Json, tmp_path: Path) -> None:
    series = [charts.Series("m", f"seed {d['seed']}", d["layers"]) for d in result["diagnoses"][:2]]
    made = {
        "conditions": charts.conditions(result["diagnoses"][:2]),
        "methods": charts.methods(result, "released", "over_refusal"),
        "plane": charts.plane(result, "released"),
        "states": charts.states(result["diagnoses"][0]["points"], 1),
        "distances": charts.distances(series),
        "predictor": charts.predictor(series, "cosine"),
    }
    for name, chart in made.items():
        assert chart is not None
        assert save(chart, tmp_path / f"{name}.svg").read_text("utf-8").startswith("<svg")
    image = result["diagnoses"][0]["conditions"][2]["metrics"]["harmful_score"]
    assert f"45.0 {brackets(image)}" in (tmp_path / "conditions.svg").read_text("utf-8")


def test_long_names_are_cut_at_a_space() -> None:
    assert charts.wrapped("Short name") == "Short name"
    assert charts.wrapped("Safety-coordinate transplant") == "Safety-coordinate\ntransplant"
    assert charts.wrapped("a" * 40) == "a" * 40


# --- in a browser ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["comparison", "diagnosis"])
def test_chromium_draws_it_under_its_own_policy(result: Json, chromium: str, tmp_path: Path, kind: str) -> None:
    """Every chart on screen becomes interactive, the console stays silent, and hostile text runs nowhere."""
    path = tmp_path / "page.html"
    if kind == "comparison":
        evil = json.loads(json.dumps(result).replace("Gentle", EVIL).replace("a benign prompt", EVIL))
        path.write_text(render(evil | {"title": EVIL}, show_text=True), "utf-8")
    else:
        path.write_text(render_diagnosis(diagnosis(points=True)), "utf-8")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=15000", "--enable-logging=stderr",
         "--window-size=1280,2000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    drawn = Reader(done.stdout)
    embedded = [a for _, a in drawn.tags if "vega-embed" in (a.get("class") or "")]
    assert len(embedded) == len([1 for _, a in drawn.tags if "data-chart" in a])
    assert "CONSOLE" not in done.stderr, done.stderr
    assert {a["src"] for t, a in drawn.tags if t == "img"} <= {PICTURE}


def test_importing_the_page_loads_no_torch() -> None:
    code = "import sys, holdfast.steer.page; print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
