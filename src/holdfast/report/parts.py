"""Parts that pages of several capabilities share: a page from a template, a figure, the look of a chart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from holdfast.report import standalone
from holdfast.report.charts import specification, svg

INK, QUIET, GRID, PEOPLE, JUDGE, PALE = "#1F2933", "#52606D", "#E4E7EB", "#0B5394", "#C05600", "#9AA5B1"
_GRADIENT = re.compile(r"gradient_\d+")
FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"


def page(template: str, content: Mapping[str, Any]) -> str:
    """A self-contained HTML page. Equal contents give equal bytes.

    Args:
        template: file of the templates folder.
        content: what the template calls ``page``.
    """
    scripts = [standalone.vega_script(), standalone.source("report.js")]
    made: str = (
        standalone.environment()
        .get_template(template)
        .render(
            page=content,
            css=standalone.script(standalone.source("report.css")),
            policy=standalone.policy(scripts),
            scripts=[standalone.script(text) for text in scripts],
        )
    )
    return made


def figure(name: str, chart: Any, title: str, text: str) -> dict[str, Any]:
    """A chart for a page: the still picture, and the specification that makes it interactive."""
    spec = specification(chart)
    return {
        "id": name, "title": title, "text": text, "alt": title, "svg": Markup(_own_ids(svg(spec), name)),
        # Without the schema's address, and with the field that the page's script looks into.
        "specification": standalone.embeddable({"datasets": {}} | standalone.without_schema(spec)),
    }  # fmt: skip


def _own_ids(text: str, name: str) -> str:
    """Gradients named after their figure: the renderer numbers them, and a page has one name space."""
    numbers = list(dict.fromkeys(_GRADIENT.findall(text)))
    return _GRADIENT.sub(lambda found: f"{name}-gradient-{numbers.index(found[0])}", text)


def look(margin: int) -> dict[str, Any]:
    """Settings that all charts share.

    Args:
        margin: width of what stands beside the plot, in pixels.
    """
    axis = {
        "gridColor": GRID, "domainColor": PALE, "tickColor": PALE, "labelColor": INK, "titleColor": INK,
        "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 600, "titlePadding": 8,
    }  # fmt: skip
    title = {"anchor": "start", "fontSize": 13, "fontWeight": 600, "color": INK, "offset": 8}
    config = {"font": FONT, "view": {"stroke": None}, "axis": axis, "title": title}
    return {"usermeta": {"margin": margin}, "padding": 4, "background": "white", "config": config}
