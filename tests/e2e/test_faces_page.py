"""The page as its user has it: a browser, photos dropped on it, results looked at and downloaded."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faces.drawn_key import BUDGET, decoded, drawn_key, encoded
from holdfast.data import drawn
from holdfast.faces.mask import save_key

OWNER, FRIEND, OTHER = range(3)
WIDTHS = [(390, 844), (1280, 900)]
SERVER = """
import sys
from pathlib import Path
from holdfast.faces.serve import build_app, owners_of, run
app = build_app(owners_of([Path(path) for path in sys.argv[1:]]))
try:
    run(app, 0, started=lambda url: print(url, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""
# What a person with a mouse does, said with the events that it makes.
DROP = """([kind, files]) => {
  const carried = new DataTransfer();
  for (const [name, type, text] of files) {
    const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    carried.items.add(new File([bytes], name, { type }));
  }
  const init = { bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried };
  const target = document.getElementById("drop");
  if (kind === "paste") return target.dispatchEvent(new ClipboardEvent("paste", init));
  for (const name of ["dragenter", "dragover", "drop"]) target.dispatchEvent(new DragEvent(name, init));
}"""
# Controls without a name, pictures without a text, repeated ids, and text that is too pale (WCAG: 4.5 to 1; 3 to 1 where large).
FAULTS = """() => {
  const found = [];
  const visible = (one) => one.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  for (const one of document.querySelectorAll("button, a[href], input:not([type=hidden]), progress, [role=group]")) {
    const labels = [...(one.labels || [])].map((label) => label.textContent).join("");
    const name = one.getAttribute("aria-label") || labels || (one.matches("input, progress") ? "" : one.textContent);
    if (visible(one) && !name.trim()) found.push(`no name: ${one.outerHTML}`);
  }
  for (const one of document.images) if (visible(one) && !one.alt) found.push(`no text: ${one.outerHTML}`);
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  if (new Set(ids).size !== ids.length) found.push(`ids repeat: ${ids}`);
  for (const reference of document.querySelectorAll("[aria-labelledby], [aria-describedby]"))
    for (const kind of ["aria-labelledby", "aria-describedby"])
      for (const id of (reference.getAttribute(kind) || "").split(" ").filter(Boolean))
        if (!document.getElementById(id)) found.push(`${kind} names nothing: ${id}`);
  const levels = [...document.querySelectorAll("h1, h2, h3")].filter(visible).map((one) => Number(one.tagName[1]));
  if (levels[0] !== 1 || levels.some((level, i) => i && level > levels[i - 1] + 1)) found.push(`headings: ${levels}`);

  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = parts(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let checked = 0;
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement, style = getComputedStyle(one);
    if (!texts.currentNode.data.trim() || !visible(one) || one.matches("script, style, noscript, .away, :disabled")) continue;
    checked += 1;
    const [a, b] = [light(parts(style.color)), light(behind(one))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < (large ? 3 : 4.5)) found.push(`contrast ${contrast.toFixed(2)}: ${one.outerHTML.slice(0, 120)}`);
  }
  if (checked < 8) found.push(`only ${checked} texts were looked at`);
  for (const one of document.querySelectorAll("button, .button, .check, .keys label")) {
    const place = one.getBoundingClientRect();
    if (visible(one) && (place.height < 44 || place.width < 44)) found.push(`small target: ${one.outerHTML}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push(`wider than the screen: ${document.documentElement.scrollWidth}`);
  return found;
}"""


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A browser to drive."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    with api.sync_playwright() as playwright:
        # The sandbox needs rights that containers do not have; the page is ours.
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_url(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with two keys; it must end in silence when told to."""
    place = tmp_path_factory.mktemp("keys")
    for name, person in (("mila", OWNER), ("jon", FRIEND)):
        save_key(drawn_key(person), place / f"{name}.p3")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, "mila.p3", "jon.p3"], cwd=place, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"TMPDIR": str(place)},
    )  # fmt: skip
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", ""), "no line tells what was asked for, or of which file"
    assert sorted(path.name for path in place.iterdir()) == ["jon.p3", "mila.p3"]


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, page_url: str) -> Iterator[Opened]:
    """Opens the page; afterwards nothing may have been asked of another host, and no script may have failed."""
    asked: list[str] = []
    complaints: list[str] = []
    contexts = []

    def go(size: tuple[int, int], scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, accept_downloads=True, **options
        )
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if "status of 422" not in said.text else None)
        page.goto(page_url)
        return page

    yield go
    for context in contexts:
        context.close()
    foreign = [url for url in asked if not url.startswith((page_url, f"blob:{page_url.rsplit('/', 2)[0]}/", "data:,"))]
    assert asked
    assert foreign == []
    assert complaints == []


def drop(page: Any, *files: tuple[str, str, bytes], kind: str = "drop") -> None:
    page.evaluate(DROP, [kind, [(name, type_, base64.b64encode(content).decode()) for name, type_, content in files]])


def card(page: Any, name: str) -> Any:
    return page.locator(".card", has=page.get_by_role("heading", name=name, exact=True))


def done(page: Any, text: str) -> None:
    page.get_by_role("status").get_by_text(text, exact=True).wait_for()


def taken(page: Any, button: Any) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        button.click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def shown_pixels(part: Any) -> np.ndarray:
    return decoded(part.screenshot(animations="disabled"))


@pytest.mark.parametrize("size", WIDTHS, ids=["phone", "desk"])
def test_photos_dropped_come_back_protected(opened: Opened, size: tuple[int, int]) -> None:
    page = opened(size)
    group = drawn.group([drawn.person(FRIEND), drawn.person(OWNER)], 20)
    broken = encoded(drawn.photo(drawn.person(OWNER), 21).pixels, "JPEG")[:3000]
    wall = encoded(np.full((200, 300, 3), 90, np.uint8))
    drop(page, ("us <b>.png", "image/png", encoded(group.pixels)), ("broken.jpg", "image/jpeg", broken))
    drop(page, ("wall.png", "image/png", wall), kind="paste")
    done(page, "3 photos: 1 protected, 1 untouched, 1 failed")
    assert page.locator("#alert").is_hidden()

    us = card(page, "us <b>.png")
    assert us.locator(".badge").inner_text() == "Protected"
    assert "of 2 faces the others stay as they are" in us.locator(".said").inner_text()
    assert "of 1 (SSIM)" in us.locator(".more").inner_text()
    assert "This file is cut short or damaged" in card(page, "broken.jpg").inner_text()
    assert "Untouched: no face was found." in card(page, "wall.png").inner_text()
    assert page.evaluate(FAULTS) == []

    name, content = taken(page, us.get_by_role("link"))
    assert name.endswith("-protected.png")
    change = np.abs(decoded(content) - group.pixels).max(2)
    rows, columns = np.nonzero(change)
    middle_x, middle_y = group.landmarks[1].mean(0)
    far = np.ptp(group.landmarks[1][:, 0]) * 2.2  # twice the distance of the eyes: the whole face and no other
    assert 0 < change.max() <= BUDGET
    assert np.abs(columns - middle_x).max() < far
    assert np.abs(rows - middle_y).max() < far

    name, content = taken(page, card(page, "wall.png").get_by_role("link"))
    assert name == "wall.png"
    assert np.array_equal(decoded(content), decoded(wall))


def test_a_zip_holds_all_that_is_protected(opened: Opened) -> None:
    page = opened(WIDTHS[1])
    photos = [encoded(drawn.photo(drawn.person(OWNER), seed).pixels, "JPEG", quality=95) for seed in (22, 23)]
    page.locator("#choose").set_input_files(
        [{"name": "Ünser Foto.JPG", "mimeType": "image/jpeg", "buffer": content} for content in photos]
        + [{"name": "she.png", "mimeType": "image/png", "buffer": encoded(drawn.photo(drawn.person(OTHER), 1).pixels)}]
    )
    done(page, "3 photos: 2 protected, 1 untouched")
    name, content = taken(page, page.get_by_role("button", name="Download 2 protected (ZIP)"))
    assert name == "protected-photos.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["Ünser Foto-protected.JPG", "Ünser Foto-protected-2.JPG"]
        for one, before in zip(archive.namelist(), photos, strict=True):
            change = np.abs(decoded(archive.read(one)) - decoded(before))
            assert 0.2 < change.mean() < 3
    page.get_by_role("button", name="Clear").click()  # everything was taken: nothing is asked
    assert page.locator(".card").count() == 0


def test_original_and_protected_are_compared(opened: Opened) -> None:
    page = opened(WIDTHS[1])
    # Browsers draw no TIFF: the server does it for them.
    shot = drawn.photo(drawn.person(OWNER), 24, (400, 300))
    drop(page, ("scan.tif", "image/tiff", encoded(shot.pixels, "TIFF")))
    done(page, "1 photo: 1 protected")
    view, slider = page.locator(".view"), page.get_by_role("slider")
    view.wait_for()
    slider.fill("100")
    original = shown_pixels(view)
    assert slider.get_attribute("aria-valuetext") == "100% original, 0% protected"
    slider.press("Home")
    protected = shown_pixels(view)
    assert np.abs(original - protected).max() > 4
    place = view.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + 20)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 0.75, place["y"] + 20)
    page.mouse.up()
    assert slider.input_value() == "75"

    face = page.get_by_role("button", name="Face", exact=True)
    face.press("Enter")
    assert face.get_attribute("aria-pressed") == "true"
    assert np.abs(shown_pixels(view) - protected).mean() > 5
    change = page.get_by_role("button", name="Change ×10")
    change.press("Space")
    assert change.get_attribute("aria-pressed") == "true"
    seen = shown_pixels(view)
    assert seen.max() > 50
    assert np.median(seen[:20]) == 0  # nothing changed above the face


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS, ids=["phone", "desk"])
def test_everything_has_a_name_and_can_be_read(opened: Opened, size: tuple[int, int], scheme: str) -> None:
    page = opened(size, scheme, reduced_motion="reduce")
    page.locator("summary").click()
    assert page.evaluate(FAULTS) == []
    backdrop = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (backdrop == "rgb(255, 255, 255)") is (scheme == "light")
    small = np.full((60, 60, 3), 90, np.uint8)
    drop(
        page,
        ("me.png", "image/png", encoded(drawn.photo(drawn.person(OWNER), 25).pixels)),
        ("a" * 120 + ".png", "image/png", encoded(small)),
        ("b.txt", "text/plain", b"hello"),
    )
    done(page, "3 photos: 1 protected, 1 untouched, 1 failed")
    page.locator(".view").first.wait_for()
    assert page.evaluate(FAULTS) == []


def test_the_keyboard_alone_is_enough(opened: Opened) -> None:
    page = opened(WIDTHS[1])
    page.on("filechooser", lambda _: None)  # from the start, so that no dialog opens before it is waited for
    # One stop for both keys: arrows choose between them.
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.value || document.activeElement.className"
            )
        )
    assert reached == ["away skip", "mila", "location", "choose"]
    with page.expect_file_chooser() as waiting:
        page.keyboard.press("Enter")
    page.get_by_role("radio", name="jon").check()
    page.get_by_role("checkbox", name="Remove where the photo was taken").uncheck()
    waiting.value.set_files(
        [{"name": "both.png", "mimeType": "image/png", "buffer": encoded(drawn.photo(drawn.person(FRIEND), 26).pixels)}]
    )
    done(page, "1 photo: 1 protected")


def test_a_photo_that_is_too_large_is_not_even_sent(opened: Opened) -> None:
    page = opened(WIDTHS[0])
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    page.evaluate(
        """() => {
          const carried = new DataTransfer();
          carried.items.add(new File([new Uint8Array(65e6)], "huge.jpg", { type: "image/jpeg" }));
          document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, dataTransfer: carried }));
        }"""
    )
    done(page, "1 photo: 1 failed")
    assert "This file has 65 MB; the most is 64 MB." in card(page, "huge.jpg").inner_text()
    assert "POST" not in sent


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><p>hello</p>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Another program's page on this machine: as near as a foreign page can come."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_other_pages_of_the_browser_reach_nothing(browser: Any, page_url: str, elsewhere: str) -> None:
    """Even with the secret they could neither read, send, nor frame it."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(elsewhere)
    tried = page.evaluate(
        """async (url) => {
          const quiet = (promise) => promise.then((reply) => reply.text(), () => "refused");
          const blind = { method: "POST", body: "x", mode: "no-cors" };
          const frame = Object.assign(document.createElement("iframe"), { src: url });
          document.body.append(frame);
          await new Promise((done) => { frame.onload = done; setTimeout(done, 5000); });
          return [await quiet(fetch(url)), await quiet(fetch(`${url}protect?key=mila`, blind))];
        }""",
        page_url,
    )
    framed = [frame.url for frame in page.frames[1:]]
    context.close()
    assert tried == ["refused", "refused"]
    assert framed == ["chrome-error://chromewebdata/"]
