"""A page on this machine where a person drops photos and gets them back protected.

``build_app`` makes the application, ``run`` serves it on 127.0.0.1 and on nothing else. The browser is the one way in,
and other pages are open in it too, so that four things are asked of a request: a Host of this machine (a foreign name
that was made to point here, DNS rebinding, is refused), a path that begins with the token of this start, for what sends
a photo also an Origin that is this page, and a size within the limit. There is no path that gives a mask or what a key
knows of a face; a photo lies in a private folder, in memory where the system has one, while it is worked on, and its
name never arrives here.

Paths, below ``/TOKEN``:

    GET  /           the page, complete in itself
    POST /protect    a photo's bytes -> the protected photo's, with what became of it in the header X-Holdfast (JSON)
    POST /picture    a photo's bytes -> PNG, for formats that browsers do not draw (TIFF, HEIC)

What fails is answered with ``{"message", "hint"}``.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from holdfast.core.errors import HoldfastError, UsageError
from holdfast.faces.mask import load_key
from holdfast.faces.people import faces_in
from holdfast.faces.photo import SUFFIXES, open_photo
from holdfast.faces.protect import Outcome, Owner, Protecting, own_faces, protect_photo
from holdfast.report import standalone

HOST = "127.0.0.1"
_OURS = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_MEMORY = Path("/dev/shm")  # files there never reach a disk
_WIDEST = 3000  # pixels of a picture that is only looked at
# How a changed face looks, by its SSIM. Our words: no panel of people was asked.
_LOOKS = (
    (0.97, "The change is hard to see, even side by side."),
    (0.94, "The change is easy to miss; side by side it shows as faint texture."),
    (0.90, "The change shows when one looks for it: faint texture on the skin."),
    (0.0, "The change is plain to see; a key that was learned to be less visible would help."),
)
_KINDS = (
    (b"\xff\xd8\xff", "image/jpeg", ".jpg"),
    (b"\x89PNG", "image/png", ".png"),
    (b"RIFF", "image/webp", ".webp"),
    (b"II*\0", "image/tiff", ".tif"),
    (b"MM\0*", "image/tiff", ".tif"),
    (b"BM", "image/bmp", ".bmp"),
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Limits:
    """How much is taken at a time.

    Attributes:
        megabytes: of one photo.
        in_flight: photos that are being sent or worked on; one more is asked to come back.
    """

    megabytes: int = 64
    in_flight: int = 4


def owners_of(paths: Sequence[Path]) -> dict[str, Owner]:
    """Owners of keys by the name that the page shows: the file's, without its ending.

    Raises:
        DataError: a key is missing or damaged.
        ModelError: the recognisers of a key are not at hand.
    """
    found: dict[str, Owner] = {}
    for path in paths:
        name, number = path.stem, 2
        while name in found:
            name, number = f"{path.stem} ({number})", number + 1
        found[name] = Owner.of(load_key(path))
    return found


def build_app(owners: Mapping[str, Owner], *, limits: Limits = Limits()) -> FastAPI:
    """The web application; ``app.state.token`` is the secret part of its address.

    Args:
        owners: by the name to show, as :func:`owners_of` gives them.
        limits: how much is taken at a time.

    Raises:
        UsageError: there is no owner.
    """
    if not owners:
        raise UsageError("no key to protect photos with", hint="'holdfast faces learn' makes one")
    token = secrets.token_urlsafe(24)
    app = FastAPI(title="Holdfast faces", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.token = token
    desk = _Desk(limits)

    @app.middleware("http")
    async def _guarded(request: Request, go_on: RequestResponseEndpoint) -> Response:
        return _safe(_refusal(request, token) or await go_on(request))

    @app.exception_handler(Exception)
    async def _bug(_request: Request, _error: Exception) -> Response:
        # Outside of the middleware, so that the server still writes the traceback to the terminal.
        return _safe(_problem(500, "Something went wrong inside Holdfast", "the terminal that it runs in says more"))

    @app.get(f"/{token}/")
    async def page() -> HTMLResponse:
        return _page(list(owners), limits)

    @app.post(f"/{token}/protect")
    async def protect(request: Request, key: str = "", suffix: str = "", location: str = "drop") -> Response:
        owner = owners.get(key)
        if owner is None:
            return _problem(404, "There is no such key", "reload the page and choose another one")
        how = Protecting(drop_location=location != "keep")
        return await desk.take(request, suffix, lambda source: _protected(source, owner, how))

    @app.post(f"/{token}/picture")
    async def picture(request: Request, suffix: str = "") -> Response:
        return await desk.take(request, suffix, _picture)

    return app


def run(app: FastAPI, port: int = 0, *, started: Callable[[str], object] = lambda _: None) -> None:
    """Serve the page on this machine until Ctrl-C.

    Args:
        app: of :func:`build_app`.
        port: to listen on; 0: any free one.
        started: told the address once it answers.

    Raises:
        UsageError: the port is taken.
    """
    with listening(port) as place:
        started(address(app, place))
        server_of(app).run([place])


def listening(port: int) -> socket.socket:
    """A socket of this machine alone.

    Raises:
        UsageError: the port is taken, or no port.
    """
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((HOST, port))
        place.listen(64)
    except (OSError, OverflowError) as error:
        place.close()
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise UsageError(f"port {port}: {reason}", hint="choose another one; 0 takes any that is free") from error
    return place


def address(app: FastAPI, place: socket.socket) -> str:
    """Where the page is, with its secret."""
    return f"http://{HOST}:{place.getsockname()[1]}/{app.state.token}/"


def server_of(app: FastAPI) -> uvicorn.Server:
    """A server that writes no line per request: addresses hold the token."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none", lifespan="off"
    )  # fmt: skip
    return uvicorn.Server(config)


# -- what is let in ------------------------------------------------------------------------------------


def _refusal(request: Request, token: str) -> Response | None:
    """Why a request is not answered; None if it is."""
    host = request.headers.get("host", "")
    if not _OURS.fullmatch(host):
        return _problem(421, "This address is not of this machine", "open the address that Holdfast printed")
    given = request.scope["path"].split("/")[1]
    if not secrets.compare_digest(given.encode(), token.encode()):
        return _problem(403, "This address lacks the secret of this start", "open the address that Holdfast printed")
    if request.method in ("GET", "HEAD"):
        return None
    apart = request.headers.get("sec-fetch-site", "same-origin") != "same-origin"
    if apart or request.headers.get("origin", "") != f"http://{host}":
        return _problem(403, "This request does not come from the page", "use the page, or 'holdfast faces protect'")
    return None


def _safe(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _problem(status: int, message: str, hint: str) -> JSONResponse:
    return JSONResponse({"message": message, "hint": hint}, status)


class _Desk:
    """Takes photos in, one at a time to work on: a large one needs much memory, and the networks use all cores."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.here = 0
        self.turn = CapacityLimiter(1)

    async def take(self, request: Request, suffix: str, work: Callable[[Path], Response]) -> Response:
        """Receive a photo, work on it, forget it."""
        most = self.limits.megabytes * 1_000_000
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > most:
            return self._too_large()
        if self.here >= self.limits.in_flight:
            return _problem(429, "Too many photos at once", "wait a moment")
        self.here += 1
        try:
            with _private_folder(most) as folder:
                source = folder / f"photo{suffix if _SUFFIX.fullmatch(suffix) else ''}"
                if not await _received(request, source, most):
                    return self._too_large()
                return await to_thread.run_sync(_told, work, source, limiter=self.turn)
        except ClientDisconnect:
            return _problem(400, "The photo did not arrive whole", "send it again")
        finally:
            self.here -= 1

    def _too_large(self) -> Response:
        return _problem(413, f"A photo may have {self.limits.megabytes} MB at most", "shrink it, or save it as JPEG")


async def _received(request: Request, target: Path, most: int) -> bool:
    """Whether a body fitted into its file."""
    size = 0
    with target.open("wb") as sink:
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                return False
            sink.write(chunk)
    return True


@contextmanager
def _private_folder(most: int) -> Iterator[Path]:
    """A folder that only this user can look into, in memory where there is room, gone afterwards."""
    try:
        roomy = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 8 * most
    except OSError:
        roomy = False
    with tempfile.TemporaryDirectory(prefix="holdfast-", dir=_MEMORY if roomy else None) as folder:
        yield Path(folder)


def _told(work: Callable[[Path], Response], source: Path) -> Response:
    """What work gives; what fails, in words that do not name our file."""
    try:
        return work(source)
    except HoldfastError as error:
        message = error.message.replace(str(source), "this file").replace(str(source.parent), "the folder")
        return _problem(422, _sentence(message), error.hint)


# -- what is given back --------------------------------------------------------------------------------


def _protected(source: Path, owner: Owner, how: Protecting) -> Response:
    suffix = source.suffix if source.suffix in SUFFIXES else ""
    outcome = protect_photo(source, source.with_name(f"protected{suffix}"), owner, how)
    made = Path(outcome.target)
    content = made.read_bytes()
    kind, usual = _kind(content)
    told = _words(outcome) | {
        "status": outcome.status,
        "faces": outcome.faces,
        "changed": outcome.changed,
        "ssim": None if outcome.ssim is None else round(outcome.ssim, 4),
        "boxes": _boxes(source, owner) if outcome.changed else [],
        "suffix": made.suffix or usual,
    }
    return Response(content, media_type=kind, headers={"X-Holdfast": json.dumps(told)})


def _words(outcome: Outcome) -> dict[str, Any]:
    """What became of a photo, for its owner."""
    if outcome.status != "protected":
        why, *notes = outcome.message.replace("the owner's", "yours").split("; ")
        text = f"{'Already protected' if outcome.status == 'already' else 'Untouched'}: {why}."
        return {"text": text, "look": "", "notes": [_sentence(note) for note in notes]}
    if outcome.faces == 1:
        text = "Your face was changed."
    elif outcome.changed == 1:
        text = f"Your face was changed; of {outcome.faces} faces the others stay as they are."
    else:
        text = f"{outcome.changed} of {outcome.faces} faces look like yours and were changed."
    notes = [note for note in outcome.message.split("; ") if note]
    return {"text": text, "look": look(outcome.ssim or 0.0), "notes": [_sentence(note) for note in notes]}


def look(ssim: float) -> str:
    """How visible a change is, in plain words, with the number that says so."""
    words = next(words for least, words in _LOOKS if ssim >= least or not least)
    return f"{words} Similarity {ssim:.2f} of 1 (SSIM)."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _boxes(source: Path, owner: Owner) -> list[list[float]]:
    """Where the owner's faces are: left, top, right, bottom as shares of the upright photo."""
    pixels = open_photo(source).pixels
    height, width = pixels.shape[:2]
    found = faces_in(pixels)
    boxes = [found[place].face.box for place in own_faces(found, owner)]
    return [[round(float(v) / n, 5) for v, n in zip(box, (width, height) * 2, strict=True)] for box in boxes]


def _kind(content: bytes) -> tuple[str, str]:
    """Media type and usual suffix of what we wrote."""
    known = ((kind, suffix) for start, kind, suffix in _KINDS if content.startswith(start))
    return next(known, ("image/avif", ".avif"))


def _picture(source: Path) -> Response:
    """A photo as every browser can draw it."""
    from PIL import Image

    image = Image.fromarray(open_photo(source).pixels)
    image.thumbnail((_WIDEST, _WIDEST))
    sink = io.BytesIO()
    image.save(sink, format="PNG", compress_level=1)
    return Response(sink.getvalue(), media_type="image/png")


def _page(names: Sequence[str], limits: Limits) -> HTMLResponse:
    nonce = secrets.token_urlsafe(16)
    heic = importlib.util.find_spec("pillow_heif") is not None
    facts = {"megabytes": limits.megabytes, "atOnce": max(1, limits.in_flight // 2), "suffixes": SUFFIXES}
    text = (
        standalone.environment()
        .get_template("faces-serve.html.j2")
        .render(
            names=list(names),
            megabytes=limits.megabytes,
            heic=heic,
            accept=",".join(("image/*", *SUFFIXES)),
            facts=standalone.embeddable(facts),
            nonce=nonce,
        )
    )
    policy = (
        f"{_HEADERS['Content-Security-Policy']}; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src blob: data:; connect-src 'self'"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})
