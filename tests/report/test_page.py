"""The page stands alone, shows nothing foreign as HTML, hides what is to be hidden, and leaves no gap unexplained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.errors import RunError
from holdfast.report import page, standalone

Result = dict[str, Any]
EVIL = """</script><script>alert(1)</script><img src=x onerror="alert(2)"> & 'quotes' <!-- {{ 7 * 7 }}"""


class Reader(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@cache
def _written(text: str, show_text: bool) -> str:
    return page.render(json.loads(text), show_text=show_text)


def read(result: Result, *, show_text: bool = False) -> Reader:
    return Reader(_written(json.dumps(result), show_text))


def html(result: Result, *, show_text: bool = False) -> str:
    return _written(json.dumps(result), show_text)


def test_nothing_in_the_page_can_be_fetched(result: Result) -> None:
    found = read(result)
    for tag, attributes in found.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
        assert "url(" not in (attributes.get("style") or "")
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
    css = standalone.source("report.css")
    assert not re.search(r"url\(|@import|https?:", css)
    assert "https:" not in found.text


def test_the_policy_allows_the_inlined_scripts_and_no_network(result: Result) -> None:
    import base64
    import hashlib

    found = read(result)
    policy = next(m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    run = [s for s, a in zip(found.scripts, found.all("script"), strict=True) if a.get("type") != "application/json"]
    assert len(run) == 2
    for script in run:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_vega_is_in_the_page_once(result: Result) -> None:
    assert html(result).count("vegaEmbed=") + html(result).count("vegaEmbed =") <= 2
    assert html(result).count(standalone.vega_script()[:2000]) == 1
    assert len(html(result)) < 2_500_000


def hostile(result: Result) -> Result:
    for part in ("cells", "aligned", "answers"):
        for row in result[part]:
            row["defence"] += EVIL if row["defence"] != "SFT" else ""
    result.update(title=EVIL, command=EVIL, recipe=EVIL, model=EVIL, notes=[EVIL], environment={EVIL: EVIL})
    result["complete"] = False
    result["missing"] = [{"defence": EVIL, "workload": "mixed", "p": 0.1, "seed": 0, "reason": EVIL}]
    result["threat_model"] = {"claim": EVIL, "rows": [{"stage": EVIL, "who": EVIL, "sees": [EVIL], "controls": [EVIL]}]}
    for workload in result["workloads"].values():
        workload.update(title=EVIL, text=EVIL)
    for measure in result["measures"].values():
        measure["label"] = EVIL
    for row in result["answers"]:
        row.update(prompt=EVIL, text=EVIL, reason=EVIL, group=EVIL)
    for cell in result["cells"]:
        cell["stages"][0].update(method=EVIL, knobs={EVIL: EVIL}, chosen=EVIL)
        cell["seeds"][0]["runs"] = [EVIL]
    return result


def test_foreign_text_is_text(result: Result, sample: Any) -> None:
    plain = read(sample.result(), show_text=True)
    found = read(hostile(result), show_text=True)
    # The same scripts as without it: none was added, none cut short.
    assert len(found.scripts) == len(plain.scripts)
    assert not found.all("img")
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    for script, attributes in zip(found.scripts, found.all("script"), strict=True):
        assert "alert(1)</" not in script
        if attributes.get("type") == "application/json":
            spec = json.loads(script)
            assert EVIL in json.dumps(spec, ensure_ascii=False).replace('\\"', '"')
    assert "alert(1)" in found.text
    assert "{{ 7 * 7 }}" in found.text
    assert EVIL not in html(result, show_text=True)


def test_answers_are_left_out_unless_asked_for(result: Result) -> None:
    closed, shown = html(result), html(result, show_text=True)
    for text in ("do zorbex to blint", "step one: glim the harm", "I cannot do that."):
        assert text not in closed
        assert text in shown
    assert "[hidden: run with --show-text] 23 characters" in closed
    assert "[hidden: run with --show-text]" not in shown
    # The user's own task and harmless questions are no secret.
    assert "name a fruit" in closed


def test_verdicts_on_answers_in_words(result: Result) -> None:
    found = read(result, show_text=True).text
    for words in ("not harmful", "refused", "right", "declined: the judge found no verdict"):
        assert words in found


def test_equal_results_give_equal_bytes(result: Result, sample: Any, tmp_path: Path) -> None:
    first = html(result).encode()
    # Drawn again: the counters of the drawing library have moved on.
    second = page.write(sample.result(), tmp_path / "report.html").read_bytes()
    assert first == second


def test_every_number_of_a_cell_is_in_the_table(result: Result) -> None:
    found = read(result).text
    for words in ("94.0 91.4 to 96.6, n = 600", "▼ −93.0 (−94.9 to −91.1)", "▼ −5.0", "≈ 0.0 (−1.2 to 1.2)", "2.11×",
                  "44 s, peak 377 MiB"):  # fmt: skip
        assert words in found


def test_the_whole_story_is_there(result: Result) -> None:
    found = read(result).text
    for words in (
        "Does the model stay safe", "The best single defence, Booster", "Before any user fine-tuning",
        "Fine-tuning as a service", "the uploaded rows: a share p of them harmful", "best harmful score on validation",
        "lam = 5.0", "lr = 0.002", "holdfast bench sandbox", 'align = { method = "booster"', "2.13.0",
        "Attackers who hold the weights", "bootstrap over seeds, then items",
    ):  # fmt: skip
        assert words in found, words


def test_undefined_and_declined_are_shown_with_reason_and_count(result: Result, sample: Any) -> None:
    sample.find(result, "Booster")["metrics"]["harmful_score"].update(declined=7)
    cell = sample.find(result, "Lisa")
    cell["metrics"]["harmful_score"].update(value=None, low=None, high=None, n=0, reason="the judge declined all")
    cell["against_baseline"]["harmful_score"].update(value=None, low=None, high=None, reason="nothing to pair")
    del cell["metrics"]["over_refusal"]
    cell["cost"] = {"seconds": None, "ratio": None, "peak_bytes": None}
    for seed in cell["seeds"]:
        seed["harmful_score"] = None
    found = read(result).text
    assert "undefined: the judge declined all" in found
    assert "not measured" in found
    assert "n = 600, 7 declined" in found
    assert "Judges declined 7 answers" in found
    assert not re.search(r"\bNaN\b|\bNone\b", found)


def test_an_incomplete_grid_says_so_on_top(result: Result) -> None:
    result["cells"] = [c for c in result["cells"] if (c["defence"], c["p"]) != ("Lisa", 0.1)]
    sft = next(c for c in result["cells"] if c["defence"] == "Booster")
    sft["seeds"] = sft["seeds"][:2]
    result["complete"] = False
    result["missing"] = [
        {"defence": "Lisa", "workload": w, "p": 0.1, "seed": s, "reason": "the loss is not finite"}
        for w in ("mixed", "stress")
        for s in (0, 1, 2)
    ]
    found = read(result).text
    assert found.index("This result is not complete. 6 trained models of the plan are missing.") < found.index(
        "Does the"
    )
    assert "Lisa, Customer data, p = 0.1, seed 2: the loss is not finite" in found
    assert "not finished: the loss is not finite" in found
    assert "2 of 3 seeds" in found


def test_a_result_without_any_cell_renders(result: Result) -> None:
    result.update(cells=[], aligned=[], answers=[], complete=False)
    assert "No cell is finished" in read(result).text


def test_a_workload_that_failed_whole_is_still_there(result: Result) -> None:
    result["cells"] = [cell for cell in result["cells"] if cell["workload"] != "stress"]
    result["complete"] = False
    result["missing"] = [{"defence": "SFT", "workload": "stress", "p": 0.1, "seed": 0, "reason": "out of memory"}]
    found = read(result).text
    assert "Stress: no cell is finished." in found
    assert "not finished: out of memory" in found


def test_it_can_be_read_without_seeing_it(result: Result) -> None:
    found = read(result)
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("h1")) == 1
    assert len(found.all("caption")) == len(found.all("table"))
    boxes = [a for a in found.all("div") if "data-chart" in a]
    assert len(boxes) == 7
    for box in boxes:
        assert box["role"] == "img"
        assert len(box["aria-label"] or "") > 60
    assert all(head.get("scope") in ("col", "row") for head in found.all("th"))
    names = [a["id"] for _, a in found.elements if "id" in a]
    assert len(names) == len(set(names))
    targets = {(a["href"] or "")[1:] for a in found.all("a")}
    assert targets <= set(names)


def test_a_thousand_cells(result: Result, sample: Any) -> None:
    import time

    names = [f"D{i}" for i in range(20)]
    ps = [i / 50 for i in range(10)]
    result["workloads"] = {f"w{i}": {"title": f"Workload {i}", "text": ""} for i in range(5)}
    rows = [(d, w, p) for d in ["SFT", *names[1:]] for w in result["workloads"] for p in ps]
    result["cells"] = [sample.cell(d, w, p, 100 * p, 95.0) for d, w, p in rows]
    assert len(result["cells"]) == 1000
    sample.compare(result)
    standalone.vega_script()
    began = time.process_time()
    found = page.render(result)
    assert time.process_time() - began < 20
    assert len(found) < 9_000_000


def test_a_damaged_result_is_refused_and_nothing_is_written(result: Result, tmp_path: Path) -> None:
    del result["cells"][0]["metrics"]
    with pytest.raises(RunError):
        page.write(result, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_package_loads_no_charts() -> None:
    code = "import sys, holdfast.report, holdfast.report.terminal, holdfast.report.schema\n"
    code += "print([m for m in ('altair', 'jinja2', 'torch', 'scipy', 'rich', 'vl_convert') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_chromium_draws_it_under_its_own_policy(result: Result, chromium: str, tmp_path: Path) -> None:
    """All charts become interactive, the console stays silent, and hostile text runs nowhere."""
    path = tmp_path / "report.html"
    path.write_text(html(hostile(result), show_text=True), "utf-8")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--enable-logging=stderr",
         "--window-size=1280,2000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    drawn = Reader(done.stdout)
    embedded = [a for a in drawn.all("div") if "vega-embed" in (a.get("class") or "")]
    assert len(embedded) == 7
    assert "CONSOLE" not in done.stderr, done.stderr
    assert not drawn.all("img")
