"""The page's server: who is let in, what comes back, and what never does."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from faces.drawn_key import BUDGET, decoded, drawn_key, encoded
from holdfast.core.errors import DataError, UsageError
from holdfast.data import drawn
from holdfast.faces import serve
from holdfast.faces.mask import Key, save_key
from holdfast.faces.protect import Outcome, Owner
from holdfast.faces.serve import Limits, address, build_app, listening, look, owners_of

PLACE = "http://127.0.0.1:8400"
OWNER, FRIEND, OTHER = range(3)


@pytest.fixture(scope="module")
def key() -> Key:
    return drawn_key(OWNER)


@pytest.fixture(scope="module")
def app(key: Key) -> FastAPI:
    return build_app({"mila": Owner.of(key)})


def client_of(app: FastAPI) -> TestClient:
    return TestClient(app, base_url=PLACE, headers={"Origin": PLACE}, raise_server_exceptions=False)


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return client_of(app)


@pytest.fixture(autouse=True)
def _leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Photos are worked on in a folder of this test; whatever the answer was, nothing stays in it."""
    place = tmp_path / "memory"
    place.mkdir()
    monkeypatch.setattr(serve, "_MEMORY", place)
    yield
    assert list(place.iterdir()) == []


def post(client: TestClient, content: Any, path: str = "protect", **values: str) -> Any:
    token = client.app.state.token  # type: ignore[attr-defined]
    return client.post(f"/{token}/{path}", params={"key": "mila", "suffix": ".png"} | values, content=content)


@cache
def photo(*people: int, seed: int = 20) -> drawn.Drawn:
    whom = [drawn.person(one) for one in people]
    return drawn.photo(whom[0], seed) if len(whom) == 1 else drawn.group(whom, seed)


# -- who is let in -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8400", "127.0.0.1.evil.example", "localhost.evil.example:1", "0.0.0.0:8400", ""],
)
def test_only_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    token = client.app.state.token  # type: ignore[attr-defined]
    reply = client.get(f"/{token}/", headers={"Host": host})
    assert reply.status_code == 421
    assert "not of this machine" in reply.json()["message"]


def test_both_names_of_this_machine_are_answered(client: TestClient) -> None:
    token = client.app.state.token  # type: ignore[attr-defined]
    for host in ("127.0.0.1:8400", "localhost:9000", "localhost"):
        assert client.get(f"/{token}/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/protect", "/wrong/", "/wrong/protect", "/docs", "/openapi.json"])
def test_nothing_is_answered_without_the_token(client: TestClient, path: str) -> None:
    for reply in (client.get(path), client.post(path, content=b"x")):
        assert reply.status_code == 403
        assert reply.json()["hint"] == "open the address that Holdfast printed"


def test_each_start_has_its_own_token(key: Key) -> None:
    owners = {"mila": Owner.of(key)}
    tokens = {build_app(owners).state.token for _ in range(5)}
    assert len(tokens) == 5
    assert all(len(token) >= 32 for token in tokens)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:3000"},  # another program's page on this machine
        {"Origin": "https://127.0.0.1:8400"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_only_the_page_itself_may_send_photos(client: TestClient, headers: dict[str, str]) -> None:
    token = client.app.state.token  # type: ignore[attr-defined]
    reply = client.post(f"/{token}/protect?key=mila", content=b"x", headers=headers)
    assert reply.status_code == 403
    assert "does not come from the page" in reply.json()["message"]


# -- limits --------------------------------------------------------------------------------------------


def test_a_photo_above_the_limit_is_refused(key: Key) -> None:
    client = client_of(build_app({"mila": Owner.of(key)}, limits=Limits(megabytes=1)))

    def pieces() -> Iterator[bytes]:  # no length is declared
        for _ in range(3):
            yield bytes(500_000)

    for content in (bytes(1_000_001), pieces()):
        reply = post(client, content)
        assert reply.status_code == 413
        assert reply.json() == {"message": "A photo may have 1 MB at most", "hint": "shrink it, or save it as JPEG"}
    assert "is empty (0 bytes)" in post(client, b"").json()["message"]


def test_too_many_at_once_are_asked_to_come_back(key: Key) -> None:
    client = client_of(build_app({"mila": Owner.of(key)}, limits=Limits(in_flight=0)))
    assert post(client, b"x").status_code == 429


def test_a_place_becomes_free_again_whatever_the_answer_was(key: Key) -> None:
    client = client_of(build_app({"mila": Owner.of(key)}, limits=Limits(megabytes=1, in_flight=1)))
    for content, status in ((b"x", 422), (iter([bytes(600_000)] * 2), 413), (b"x", 422)):
        assert post(client, content).status_code == status


# -- what comes back -----------------------------------------------------------------------------------


def test_the_owners_face_alone_is_changed(client: TestClient) -> None:
    shown = photo(FRIEND, OWNER)
    reply = post(client, encoded(shown.pixels))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "image/png"
    told = json.loads(reply.headers["x-holdfast"])
    assert (told["status"], told["faces"], told["changed"], told["suffix"]) == ("protected", 2, 1, ".png")
    assert told["text"] == "Your face was changed; of 2 faces the others stay as they are."
    assert 0.5 < told["ssim"] < 1
    assert f"{told['ssim']:.2f} of 1" in told["look"]

    change = np.abs(decoded(reply.content) - shown.pixels).max(2)
    assert 0 < change.max() <= BUDGET
    (left, top, right, bottom), (height, width) = told["boxes"][0], change.shape
    middle_x, middle_y = shown.landmarks[1].mean(0)
    assert left * width < middle_x < right * width
    assert top * height < middle_y < bottom * height
    rows, columns = np.nonzero(change)
    reach_x, reach_y = (right - left) * width, (bottom - top) * height
    assert np.abs(columns - middle_x).max() < reach_x
    assert np.abs(rows - middle_y).max() < reach_y


@pytest.mark.parametrize(
    ("people", "text"),
    [
        ([OTHER], "Untouched: its face is not yours."),
        ([FRIEND, OTHER], "Untouched: none of its 2 faces is yours."),
    ],
)
def test_photos_of_others_come_back_as_they_were(client: TestClient, people: list[int], text: str) -> None:
    shown = photo(*people)
    reply = post(client, encoded(shown.pixels))
    told = json.loads(reply.headers["x-holdfast"])
    assert (told["text"], told["boxes"], told["ssim"]) == (text, [], None)
    assert np.array_equal(decoded(reply.content), shown.pixels)


def test_a_photo_without_faces_comes_back_as_it_was(client: TestClient) -> None:
    told = json.loads(post(client, encoded(np.full((120, 160, 3), 90, np.uint8))).headers["x-holdfast"])
    assert (told["status"], told["text"]) == ("untouched", "Untouched: no face was found.")


@pytest.mark.parametrize(
    ("outcome", "text", "notes"),
    [
        (Outcome("", "protected", faces=1, changed=1, ssim=0.98), "Your face was changed.", []),
        (Outcome("", "protected", faces=3, changed=2, ssim=0.9, message="a; b"), "2 of 3 faces look like yours and were changed.",
         ["A", "B"]),
        (Outcome("", "already", faces=1, message="it carries one of these masks already; more"),
         "Already protected: it carries one of these masks already.", ["More"]),
        (Outcome("", "untouched", faces=3, message="none of its 3 faces is the owner's"),
         "Untouched: none of its 3 faces is yours.", []),
    ],
)  # fmt: skip
def test_what_became_of_a_photo_in_words(outcome: Outcome, text: str, notes: list[str]) -> None:
    words = serve._words(outcome)
    assert (words["text"], words["notes"]) == (text, notes)
    assert bool(words["look"]) is (outcome.status == "protected")


@pytest.mark.parametrize(("location", "kept"), [("drop", False), ("keep", True), ("", False), ("?", False)])
def test_where_a_photo_was_taken_is_dropped_unless_asked(client: TestClient, location: str, kept: bool) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    sink = io.BytesIO()
    Image.fromarray(photo(OWNER).pixels).save(sink, "JPEG", exif=exif)
    values = {"location": location} if location else {}
    reply = post(client, sink.getvalue(), suffix=".jpg", **values)
    assert reply.headers["content-type"] == "image/jpeg"
    assert bool(Image.open(io.BytesIO(reply.content)).getexif().get_ifd(0x8825)) is kept


@pytest.mark.parametrize(
    ("kind", "suffix", "type_", "back"),
    [
        ("JPEG", "", "image/jpeg", ".jpg"),
        ("JPEG", ".JPG", "image/jpeg", ".jpg"),
        ("JPEG", ".jpeg", "image/jpeg", ".jpeg"),
        ("PNG", ".odd", "image/png", ".png"),
        ("GIF", ".gif", "image/png", ".png"),
        ("WEBP", ".webp", "image/webp", ".webp"),
        ("TIFF", "/../x.tif", "image/tiff", ".tif"),
        ("BMP", ".bmp", "image/bmp", ".bmp"),
        ("AVIF", ".avif", "image/avif", ".avif"),
    ],
)
def test_type_and_suffix_fit_what_was_written(
    client: TestClient, kind: str, suffix: str, type_: str, back: str
) -> None:
    reply = post(client, encoded(np.full((64, 64, 3), 90, np.uint8), kind), suffix=suffix)
    assert reply.status_code == 200, reply.text
    assert (reply.headers["content-type"], json.loads(reply.headers["x-holdfast"])["suffix"]) == (type_, back)
    assert Image.open(io.BytesIO(reply.content)).size == (64, 64)


def test_what_browsers_do_not_draw_is_drawn_for_them(client: TestClient) -> None:
    shown = photo(OWNER).pixels
    reply = post(client, encoded(shown, "TIFF"), "picture", suffix=".tif")
    assert reply.headers["content-type"] == "image/png"
    assert np.array_equal(decoded(reply.content), shown)
    wide = post(client, encoded(np.zeros((10, 6000, 3), np.uint8)), "picture")
    assert decoded(wide.content).shape == (5, 3000, 3)


# -- what fails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (b"", ".jpg", "This file is empty (0 bytes)"),
        (b"hello", ".txt", "This file is not a picture of a known format"),
        (encoded(np.zeros((64, 64, 3), np.uint8))[:60], ".png", "This file is cut short or damaged"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ".heic", "This file is a HEIC/HEIF picture|This file is cut short"),
        (b"II*\0" + bytes(60), ".dng", "This file is a camera's raw file"),
    ],
)
def test_what_is_no_photo_is_told(client: TestClient, content: bytes, suffix: str, message: str) -> None:
    for path in ("protect", "picture"):
        reply = post(client, content, path, suffix=suffix)
        assert reply.status_code == 422
        assert reply.json()["message"].startswith(tuple(message.split("|")))
        assert reply.json()["hint"]
        assert not re.search(r"/|holdfast-|photo\.", reply.json()["message"].replace("HEIC/HEIF", ""))


def test_a_key_that_is_not_there_is_told(client: TestClient) -> None:
    assert post(client, b"x", key="jon").status_code == 404


def test_a_bug_shows_nothing_of_its_inside(key: Key) -> None:
    misfit = dataclasses.replace(key, person={name: torch.ones(2, 3) for name in key.person})
    client = client_of(build_app({"mila": Owner.of(misfit)}))
    reply = post(client, encoded(photo(OWNER).pixels))
    assert reply.status_code == 500
    assert reply.json()["message"] == "Something went wrong inside Holdfast"
    assert "Traceback" not in reply.text
    assert reply.headers["cache-control"] == "no-store"


# -- what never comes back -----------------------------------------------------------------------------


def test_no_path_gives_the_key(app: FastAPI, client: TestClient, key: Key) -> None:
    paths = {getattr(route, "path", "") for route in app.routes}
    assert paths == {f"/{app.state.token}/{name}" for name in ("", "protect", "picture")}
    secrets = [mask.to(torch.int8).numpy().tobytes()[5000:5016] for mask in key.masks]
    reply = client.get(f"/{app.state.token}/")
    made = post(client, encoded(photo(OTHER).pixels))
    for content in (reply.content, made.content, str(made.headers).encode()):
        assert not any(secret in content for secret in secrets)
    assert set(json.loads(made.headers["x-holdfast"])) == {
        "status", "text", "look", "notes", "faces", "changed", "ssim", "boxes", "suffix",
    }  # fmt: skip


def test_every_answer_is_closed_to_other_pages_and_kept_nowhere(client: TestClient) -> None:
    token = client.app.state.token  # type: ignore[attr-defined]
    replies = [client.get(f"/{token}/"), client.get("/"), client.get(f"/{token}/x"), client.put(f"/{token}/protect"),
               post(client, b"x"), post(client, encoded(np.zeros((32, 32, 3), np.uint8)))]  # fmt: skip
    assert [reply.status_code for reply in replies] == [200, 403, 404, 405, 422, 200]
    for reply in replies:
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in reply.headers
        assert "set-cookie" not in reply.headers
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


def test_the_page_is_complete_in_itself(key: Key) -> None:
    owner = Owner.of(key)
    app = build_app({"mila": owner, "<b>&jon": owner})
    client = client_of(app)
    first, second = (client.get(f"/{app.state.token}/") for _ in range(2))
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", first.headers["content-security-policy"])
    assert nonce
    assert first.text.count(f'nonce="{nonce[1]}"') == 2
    assert nonce[1] not in second.text
    assert not re.search(r"https?://|//\w+\.|url\(|@import|src=\"|<[^>]+ style=|<[^>]+ on\w+=", first.text)
    assert "<b>&jon" not in first.text
    assert "&lt;b&gt;&amp;jon" in first.text
    assert "up to 64 MB each" in first.text


# -- names, words, sockets -----------------------------------------------------------------------------


def test_keys_are_named_after_their_files(key: Key, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_key(key, tmp_path / folder / "mila.p3")
    found = owners_of([tmp_path / "a" / "mila.p3", tmp_path / "b" / "mila.p3"])
    assert list(found) == ["mila", "mila (2)"]
    assert torch.equal(found["mila"].key.masks, key.masks)
    with pytest.raises(DataError, match="no key"):
        owners_of([tmp_path / "none.p3"])
    with pytest.raises(UsageError, match="no key"):
        build_app({})


def test_words_follow_similarity() -> None:
    words = [look(value) for value in (1.0, 0.97, 0.95, 0.92, 0.5, -0.1)]
    assert [text.split("; ")[0].split(",")[0] for text in words] == [
        "The change is hard to see",
        "The change is hard to see",
        "The change is easy to miss",
        "The change shows when one looks for it: faint texture on the skin. Similarity 0.92 of 1 (SSIM).",
        "The change is plain to see",
        "The change is plain to see",
    ]


def test_it_listens_on_this_machine_alone(app: FastAPI) -> None:
    with listening(0) as place:
        host, port = place.getsockname()
        assert host == "127.0.0.1"
        assert address(app, place) == f"http://127.0.0.1:{port}/{app.state.token}/"
        with pytest.raises(UsageError, match=f"port {port}: Address already in use"):
            listening(port)
    with pytest.raises(UsageError, match="no such port"):
        listening(70_000)
    with socket.socket() as again:  # the port is free once the socket is closed
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((host, port))
