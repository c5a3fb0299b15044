from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from holdfast.faces import charts, page, terminal
from holdfast.faces.check import SCENES, average, difference, outcomes, protection, rate, recognised
from holdfast.report import parts
from holdfast.report.charts import specification, svg

Json = dict[str, Any]

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTjX5wAAAABJRU5ErkJggg=="
)
SEEN, NEW = "seen-net", ("new-net", "newer-net")
ATTACKS = {
    "jpeg75": ("transform", "JPEG, quality 75", (2, 2, 1)),
    "average8": ("estimate", "mean of 8 photos taken off", (1, 0, 0)),
    "whiten": ("learner", "a head that whitens", (0, 0, 0)),
}
NO_KEY = "this method changes each photo by itself: there is no key"
FEW_PAIRS = "495 impostor pairs are too few for a false accept rate of 0.001: 5000 are needed"


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Still pictures and Vega's script take seconds, and say nothing that a test here looks at."""
    monkeypatch.setattr(parts, "specification", lambda chart: {})
    monkeypatch.setattr(parts, "svg", lambda spec: "<svg></svg>")
    monkeypatch.setattr("holdfast.report.standalone.vega_script", lambda: "")


def ranks(missed: tuple[int, ...]) -> dict[str, list[int]]:
    """Ranks of three probes for each person, of which so many are not found."""
    return {f"person-{i}": [9] * k + [1] * (3 - k) for i, k in enumerate(missed)}


CLEAR = ranks((0, 0, 1))


def scene(missed: tuple[int, ...]) -> Json:
    found = ranks(missed)
    return protection(found, CLEAR, 60) | {"recognised": recognised(found)}


def recogniser(missed: tuple[int, ...], *, learned: bool, key: bool) -> Json:
    """What one recogniser says, of a mask under which it misses so many photos of each person."""
    scenes = {name: scene((0, 0, 1)) for name in SCENES} | {
        "protected_clean": scene(missed), "clean_protected": scene((1, 0, 1)), "protected_protected": scene((0, 0, 0)),
    }  # fmt: skip
    attacks = {name: {"title": title, "kind": kind, **scene(some)} for name, (kind, title, some) in ATTACKS.items()}
    attacks["jpeg75"]["clean_recognised"] = recognised(ranks((0, 1, 1)), better="higher")
    right = recognised(ranks((0, 0, 1)) if key else {}, NO_KEY, "higher")
    keys = dict.fromkeys(("right", "right_jpeg75", "right_mask_chosen"), right)
    keys |= {"wrong": recognised(ranks(missed) if key else {}, NO_KEY, "lower")}
    keys |= {"other_mask_on_clean": recognised(ranks((1, 1, 1)) if key else {}, NO_KEY, "higher")}
    keys |= {"noise_on_clean": recognised(CLEAR, better="higher")}
    shares = {name: [k / 9 for k in found] for name, found in ranks(missed).items()}
    verified = {
        "threshold": 0.321, "impostor_pairs": 777, "genuine_pairs": 27, "rejected_before": rate("b", CLEAR | {"person-0": [1, 0, 0], "person-1": [0.0], "person-2": [0.5]}, "lower"),
        "rejected": rate("a", shares, "higher"),
    }  # fmt: skip
    return {
        "learned_from": learned, "digest": "d", "clean": {"recognised": recognised(CLEAR, better="higher")}, "scenes": scenes,
        "attacks": attacks, "keys": keys,
        "verification": {"0.01": verified, "0.001": {"threshold": None, "reason": FEW_PAIRS}},
        "cosine": {
            "before": average("c", {"a": [0.71, 0.72], "b": [0.73], "c": [0.7]}, "", "higher"),
            "after": average("c", {"a": [0.11, 0.12], "b": [0.13], "c": [0.1]}, "", "lower"),
        },
    }  # fmt: skip


def summed(made: Json, names: list[str]) -> Json:
    """Means over recognisers, as ``check.assess`` gives them."""

    def over(found: list[Json]) -> Json:
        shown = {}
        for k in ("1", "5"):
            each = [outcomes(one["ranks"], int(k)) for one in found]
            groups = {
                p: [sum(x) / len(each) for x in zip(*(one[p] for one in each), strict=True)] for p in (each or [{}])[0]
            }
            shown[k] = rate(f"psr@{k}", groups, "higher", "no such recogniser was asked")
        return shown

    return {
        "recognisers": names,
        "scenes": {name: over([made[one]["scenes"][name] for one in names]) for name in SCENES},
        "attacks": {name: over([made[one]["attacks"][name] for one in names]) for name in ATTACKS},
    }


def checked(missed: tuple[int, ...], *, key: bool = True, new: tuple[str, ...] = NEW) -> Json:
    more = tuple(min(3, k + 1) for k in missed)
    made = {SEEN: recogniser((3, 3, 3), learned=True, key=key)}
    made |= {name: recogniser(missed if i == 0 else more, learned=False, key=key) for i, name in enumerate(new)}
    masks = {f"person-{i}": 3 if key else None for i in range(3)}
    counts = {"people": 23, "gallery": 69, "protected_people": 3, "probes": 9, "masks": masks,
              "skipped": [{"path": "album/person-1/blurred.jpg", "reason": "no face was found"}]}  # fmt: skip
    seen = {
        "ssim": average("ssim", {"a": [0.941, 0.943], "b": [0.944], "c": [0.942]}, "", "higher"),
        "psnr": average("psnr", {"a": [31.1, 31.3], "b": [31.6], "c": [30.9]}, "dB", "higher"),
    }
    return {
        "seed": 7, "counts": counts, "visibility": seen, "recognisers": made,
        "summary": {"held_out": summed(made, list(new)), "learned_from": summed(made, [SEEN])},
    }  # fmt: skip


def cell(title: str, made: Json | None, *, method: str = "chameleon", held: str = "new-net") -> Json:
    return {
        "title": title, "note": f"a note on {title}", "method": method, "held_out": held, "learned_from": [SEEN],
        "knobs": {"ssim": 0.94, "budget": 16.0, "scales": [112, 56]}, "failed": None if made else "out of memory",
        "checked": made, "cpu_seconds": [11.0, 12.0, 16.0] if made else [],
    }  # fmt: skip


def card(name: str) -> Json:
    return {"name": name, "title": f"title of {name}", "architecture": "net", "licence": "MIT",
            "source": f"https://example.org/{name}", "training": None}  # fmt: skip


def comparison(*cells: Json) -> Json:
    cells = cells or (
        cell("Bank", checked((2, 1, 1))),
        cell("Photo by photo", checked((1, 0, 1), key=False)),
        cell("Noise", checked((0, 0, 1)), method="noise"),
        cell("Broken", None),
    )
    views = [{"title": title, "image": PICTURE} for title in ("original", "Bank", "Bank, key applied", "its mask")]
    return {
        "format": 1, "title": "Masks compared", "notes": ["a note of the recipe"], "command": "holdfast faces compare x.toml",
        "complete": all(one["checked"] for one in cells), "photos": "album", "learn": 6,
        "recognisers": [card(name) for name in (SEEN, *NEW)], "attacks": list(ATTACKS),
        "teams": {"new-net": [{"members": [SEEN], "diversity": None, "accuracy": 0.987},
                              {"members": ["newer-net"], "diversity": 0.4321, "accuracy": 0.9}]},
        "cells": list(cells), "pictures": [{"person": "person-0", "views": views}, {"person": "person-1", "views": views}],
    }  # fmt: skip


def own_check(made: Json | None = None) -> Json:
    return {
        "format": 1, "title": "Would recognisers still find me?", "command": "holdfast faces check me.p3 photos", "others": "drawn",
        "person": {"photos": 6, "gallery": 3, "probes": 3}, "checked": made or checked((2, 1, 1)), "learned_from": [SEEN],
        "attacks": list(ATTACKS), "recognisers": [card(name) for name in (SEEN, *NEW)],
        "card": {"method": "chameleon", "knobs": {"ssim": 0.94}},
        "pictures": [{"person": "photo 1", "views": [{"title": "protected", "image": PICTURE}]}],
    }  # fmt: skip


class Seen(HTMLParser):
    """Text and attributes of a page; scripts and styles apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open[: len(self.open) - self.open[::-1].index(tag) - 1] if tag in self.open else self.open

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def shown(result: Json) -> str:
    return Seen(page.render(result)).text


@cache
def usual() -> str:
    """The page of the usual comparison."""
    return page.render(comparison())


def metrics(value: Any) -> list[Json]:
    """Every metric of a JSON value."""
    if isinstance(value, dict):
        return (
            [value] if {"value", "low", "reason"} <= set(value) else [m for one in value.values() for m in metrics(one)]
        )
    return [m for one in value for m in metrics(one)] if isinstance(value, list) else []


def test_every_number_is_on_the_page_with_its_interval() -> None:
    result, text = comparison(), Seen(usual()).text
    for one in result["cells"][:3]:
        made = one["checked"]
        whole = [made["summary"][part]["scenes"]["protected_clean"]["1"] for part in ("held_out", "learned_from")]
        whole += [made["summary"]["held_out"]["scenes"]["protected_clean"]["5"]]
        whole += [found["1"] for found in made["summary"]["held_out"]["scenes"].values()]
        whole += [made["summary"]["held_out"]["attacks"]["jpeg75"]["1"]]
        parts_ = [
            found
            for part in made["recognisers"].values()
            for found in metrics([part["keys"], part["scenes"]["protected_clean"]["psr"], part["clean"],
                                  part["scenes"]["protected_clean"]["psr_of_recognised"], part["verification"],
                                  [attack["psr"]["1"] for attack in part["attacks"].values()]])
        ]  # fmt: skip
        for found in whole + parts_:
            if found["value"] is not None:
                assert f"{found['value']:.1f} [{found['low']:.1f}, {found['high']:.1f}]" in text, found
        for found in metrics([made["visibility"]["ssim"], [p["cosine"] for p in made["recognisers"].values()]]):
            assert f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" in text
    psnr = result["cells"][0]["checked"]["visibility"]["psnr"]
    assert f"{psnr['value']:.1f} [{psnr['low']:.1f}, {psnr['high']:.1f}]" in text
    spent = terminal.seconds(result["cells"][0])
    assert spent["value"] == pytest.approx(13.0)
    assert f"13.0 [{spent['low']:.1f}, {spent['high']:.1f}]" in text


def test_the_first_sentence_is_the_result_in_plain_words() -> None:
    result = comparison()
    first = terminal.answer(result)[0]
    # (2 + 1 + 1) of 9 photos for one recogniser, (3 + 2 + 2) of 9 for the other.
    assert first.startswith("Recognisers that the mask never saw no longer find 3 people in 61.1% [")
    assert "mean of 2 recognisers, n = 9 photos, against a gallery of 69 photos of 23 people" in first
    assert "Without a mask they miss them in 11.1% [" in first
    assert "Random noise under the same limit of visibility: 27.8% [" in first
    assert first in Seen(usual()).text


def test_every_table_says_n() -> None:
    tables = re.findall(r"<table.*?</table>", usual(), re.S)
    assert len(tables) > 8
    about = ("Licence", "Focal diversity")
    assert [one for one in tables if "n = " not in one and not any(word in one for word in about)] == []


def test_what_was_not_measured_shows_its_reason() -> None:
    result = comparison()
    first = result["cells"][0]["checked"]
    first["recognisers"]["new-net"]["keys"]["wrong"] |= {
        "value": None,
        "low": None,
        "high": None,
        "reason": "nobody else",
    }
    first["summary"]["held_out"]["attacks"]["average8"]["1"] |= {
        "value": None, "low": None, "high": None, "reason": "it takes 8 photos",
    }  # fmt: skip
    text = shown(result)
    assert "— nobody else" in text
    assert "— it takes 8 photos" in text
    assert "Mean of 8 photos taken off: not measured (it takes 8 photos)." in text
    assert f"Photo by photo: {NO_KEY}." in text
    assert f"At 0.1% false accepts: not measured ({FEW_PAIRS})." in text
    assert "1%: above 0.321" in text
    assert "27 genuine and 777 impostor pairs" in text
    assert "nan" not in text.lower().split()
    assert "None" not in text


def test_won_back_is_recognised_after_less_recognised_before() -> None:
    one = comparison()["cells"][0]
    # Recognised when protected: 5/9 and 2/9; after the average: 8/9 of both, since one photo stays unknown.
    found = terminal.won_back(one, "attacks", "average8")
    assert found["value"] == pytest.approx(100 * (8 / 9 - (5 / 9 + 2 / 9) / 2))
    before = {"person-0": [0, 0, 0.5], "person-1": [0, 0.5, 1], "person-2": [0, 0.5, 1]}
    after = {"person-0": [0.0, 1, 1], "person-1": [1.0, 1, 1], "person-2": [1.0, 1, 1]}
    expected = difference("", after, before, "lower")
    assert (found["low"], found["high"]) == (expected["low"], expected["high"])
    assert terminal.won_back(one, "scenes", "protected_protected")["value"] == pytest.approx(100 * (1 - 7 / 18))
    text = Seen(usual()).text
    assert "Matching protected photos with protected photos finds the person in 100.0% [" in text
    assert "of photos instead of 38.9% [" in text
    assert "+61.1 points [" in text


def test_paired_differences_are_marked_only_where_the_interval_excludes_zero() -> None:
    same, far = checked((0, 0, 1)), checked((3, 3, 3))
    text = shown(comparison(cell("A", far), cell("B", same), cell("C", far)))
    assert "▲ +72.2 [" in text
    assert "≈ 0.0 [" in text
    ahead = terminal.ahead([cell("A", same), cell("B", far), cell("C", same)])
    assert list(ahead) == ["B"]
    assert ahead["B"]["value"] == pytest.approx(72.222, abs=0.01)
    answer = terminal.answer(comparison(cell("A", same), cell("B", far)))
    assert "by more than chance: B by 72.2 [" in answer[1]


def test_foreign_text_is_escaped_and_nothing_comes_from_outside() -> None:
    result = comparison()
    result |= {"title": EVIL, "notes": [EVIL], "command": EVIL}
    result["cells"][0] |= {"title": EVIL, "note": EVIL, "knobs": {EVIL: EVIL}}
    result["cells"][3] |= {"failed": EVIL}
    result["recognisers"][0] |= {"title": EVIL, "source": EVIL}
    result["pictures"][0]["views"][0] |= {"title": EVIL, "image": "https://example.org/face.png"}
    for html in (page.render(result), page.render_check(own_check() | {"title": EVIL, "pictures": result["pictures"]})):
        assert "<script>alert" not in html
        seen = Seen(html)
        assert EVIL in seen.text
        assert all(not name.startswith("on") for _, name, _ in seen.attributes)
        for tag, name, value in seen.attributes:
            if name in ("src", "href"):
                assert value.startswith("#" if tag == "a" else "data:image/png;base64,"), (tag, value)
        assert "no picture" in seen.text
        assert any("default-src 'none'" in value for _, name, value in seen.attributes if name == "content")


def test_a_row_that_failed_says_why_everywhere() -> None:
    result = comparison()
    text = Seen(usual()).text
    assert "This comparison is not complete." in text
    assert "Broken: out of memory" in text
    assert "— not finished: out of memory" in text
    assert re.search(r"Broken +not finished: out of memory", terminal.table(result))
    nothing = comparison(cell("A", None), cell("B", None))
    nothing["pictures"] = []
    assert "Nothing was measured: out of memory." in shown(nothing)
    assert "Nothing was measured: out of memory." in terminal.table(nothing)


def test_the_first_row_that_was_finished_leads() -> None:
    text = shown(comparison(cell("Gone", None), cell("Bank", checked((2, 1, 1))), cell("Other", checked((0, 1, 1)))))
    assert "61.1% [" in text
    assert "against Other" in text


def test_without_attacks_their_sections_are_left_out() -> None:
    result = comparison()
    for one in result["cells"][:3]:
        for part in one["checked"]["recognisers"].values():
            part["attacks"] = {}
        for part in one["checked"]["summary"].values():
            part["attacks"] = {}
    html = page.render(result)
    assert 'id="attacks"' not in html
    assert 'id="undone"' in html
    assert "no attack on the mask itself was tried" in Seen(html).text


def test_one_recogniser_is_named_and_has_no_mean() -> None:
    result = comparison(cell("Bank", checked((2, 1, 1), new=NEW[:1])), cell("B", checked((1, 1, 1), new=NEW[:1])))
    first = terminal.answer(result)[0]
    assert "in 44.4% [" in first
    assert "(Bank; new-net, n = 9 photos" in first
    text = shown(result)
    assert not re.search(r"\d by recogniser", text)
    assert "mean of recognisers" not in text
    assert "44.4 [" in text


def test_each_recogniser_left_out_in_turn_has_its_own_column() -> None:
    cells = [cell("Bank", checked((2, 1, 1)), held=held) for held in NEW]
    result = comparison(*cells)
    text = shown(result)
    assert "Each recogniser left out in turn" in text
    for held, value in zip(NEW, (44.4, 77.8), strict=True):
        assert f"With {held} left out:" in text
        assert f"{value} [" in text


def test_visibility_that_differs_is_said() -> None:
    cells = [cell("A", checked((2, 1, 1))), cell("B", checked((2, 1, 1)))]
    assert "Visibility was made equal" in shown(comparison(*cells))
    cells[1]["knobs"]["ssim"] = 0.9
    assert "Visibility was not made equal (SSIM 0.9 and 0.94" in shown(comparison(*cells))


def test_how_it_was_measured_and_what_it_cannot_promise() -> None:
    text = Seen(usual()).text
    for words in (
        "69 photos of 23 people", "Seed of every draw: 7", "https://example.org/new-net", "MIT", "unknown",
        "left out of the team's choice", "0.432", "98.7%", "ssim = 0.94", "scales = 112 56",
        "person-1/blurred.jpg: no face was found", "commercial, larger or newer recogniser", "published already", "key file is private",
        "holdfast faces compare x.toml",
    ):  # fmt: skip
        assert words in text, words


def test_a_check_speaks_to_the_owner() -> None:
    result = own_check()
    text = Seen(page.render_check(result)).text
    assert "Recognisers that your mask never saw (new-net, newer-net) no longer find you in 61.1% [" in text
    assert "finds you in 100.0% [" in text
    assert "6 photos of you that the mask has not seen" in text
    assert "The other people in the gallery are generated faces." in text
    assert "the person" not in " ".join(terminal.check_answer(result))
    lines = terminal.check_text(result)
    for name in (SEEN, *NEW):
        assert name in lines
    assert re.search(r"JPEG, quality 75 +55\.6 \[", lines)


def test_a_check_by_recognisers_that_were_learned_from_says_that_it_is_the_best_case() -> None:
    result = own_check(checked((2, 1, 1), new=()))
    text = Seen(page.render_check(result)).text
    assert f"Recognisers that your mask was learned from ({SEEN}) no longer find you in 100.0% [" in text
    assert "this is the best case" in text
    assert "no such recogniser was asked" in text
    assert "best case" in terminal.check_text(result).replace("\n", " ")


def test_terminal_tables_fit_and_carry_intervals() -> None:
    result = comparison()
    for text in (terminal.table(result), terminal.check_text(own_check())):
        assert max(map(len, text.split("\n"))) <= 110
        assert "n = 9" in text
    assert re.search(r"Bank +61\.1 \[\d+\.\d, \d+\.\d\] +100\.0 \[", terminal.table(result))
    assert re.search(r"Photo by photo .* no key ", terminal.table(result))


def test_charts_hold_each_recogniser_in_a_shape_of_its_own() -> None:
    result = comparison()
    chart = charts.protection(result, result["cells"], "held_out")
    assert chart is not None
    rows = [row for rows in specification(chart)["datasets"].values() for row in rows if "shape" in row]
    assert {row["shape"] for row in rows if row["name"] == "new-net"} != {
        row["shape"] for row in rows if row["name"] == "newer-net"
    }
    assert sorted({round(row["value"], 1) for row in rows if row["name"] == "mean of 2"}) == [27.8, 38.9, 61.1]
    attacked = charts.undone(result["cells"][0])
    assert attacked is not None
    drawn = svg(specification(attacked))
    assert "mean of 8 photos taken off" in drawn
    assert "88.9 [" in drawn
    assert charts.dots([], [], "x") is None


def test_pages_are_written_and_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    page.write(comparison(), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text("utf-8") == usual()
    page.write_check(own_check(), tmp_path / "b.html")
    assert "Would recognisers still find me?" in (tmp_path / "b.html").read_text("utf-8")
