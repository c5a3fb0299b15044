"""What makes an HTML file stand alone: scripts inlined and named by hash, JSON that cannot end its script element.

The page's Content-Security-Policy allows exactly the inlined scripts and no network at all. Vega usually compiles
expressions with ``new Function``, which would need 'unsafe-eval'; the bundle has Vega's interpreter, and with
``ast: true`` it is used instead, so no exception is made. Styles are inline because Vega sets them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


@cache
def source(name: str) -> str:
    """A file of the templates folder."""
    return (resources.files("holdfast.report") / "templates" / name).read_text("utf-8")


@cache
def vega_script() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script that can stand in a script element."""
    import vl_convert

    # Its stub asks for a snippet, the function does not; None gives window.vegaEmbed.
    bundle: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]
    # Inside an element, `</script` would end it and `<!--` would change how the rest is read. In JavaScript both
    # occur in strings and regular expressions only, where these escapes mean the same.
    return bundle.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "\\x3C!--")


def policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy for a page with these inline scripts and nothing else."""
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def embeddable(value: Any) -> Markup:
    """JSON for a script element: no character in it can end the element or begin a tag."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def script(text: str) -> Markup:
    """A script of ours, not to be escaped."""
    return Markup(text)


def without_schema(specification: Mapping[str, Any]) -> dict[str, Any]:
    """A specification without the address of its schema, which a page does not need."""
    return {name: value for name, value in specification.items() if name != "$schema"}


def chart_page(specification: Mapping[str, Any]) -> str:
    """One chart as an HTML file that needs no network."""
    scripts = [vega_script(), source("report.js")]
    page: str = (
        environment()
        .get_template("chart.html.j2")
        .render(
            policy=policy(scripts),
            scripts=[script(text) for text in scripts],
            css=script(source("report.css")),
            specification=embeddable(without_schema(specification)),
        )
    )
    return page


@cache
def environment() -> jinja2.Environment:
    """The templates' environment: everything is escaped unless it is Markup, and a missing name is an error."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
