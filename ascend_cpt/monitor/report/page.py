"""Puts a report together as one HTML page that loads nothing else: plotly's script is copied into it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ascend_cpt.errors import CptError


class PlotlyMissing(CptError):
    """The report cannot be written, because plotly is not installed."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a page shows."""

    title: str
    comparison: str
    """HTML of the table that compares several runs; empty for one run."""
    sections: str
    """HTML of the runs' own tables."""
    data: dict[str, Any]
    """The runs and charts, for web/page.js."""


def to_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: a `<` in a name could end it or begin a comment in it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def render_page(content: Content) -> str:
    """Return the page.

    Raises:
        PlotlyMissing: plotly is not installed.
    """
    web = files("ascend_cpt.monitor.report") / "web"
    plotly, script = load_plotly(), (web / "page.js").read_text(encoding="utf-8")
    parts = {
        "@POLICY@": _make_policy(plotly, script),
        "@TITLE@": html.escape(content.title),
        "@STYLE@": (web / "page.css").read_text(encoding="utf-8"),
        "@COMPARISON@": content.comparison,
        "@SECTIONS@": content.sections,
        "@DATA@": to_json(content.data),
        "@PLOTLY@": plotly,
        "@SCRIPT@": script,
    }
    # Replace in one pass, because a name can contain a placeholder.
    template = (web / "page.html").read_text(encoding="utf-8")
    return re.sub("|".join(parts), lambda match: parts[match.group()], template)


@cache
def load_plotly() -> str:
    """Return plotly's script.

    Raises:
        PlotlyMissing: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise PlotlyMissing(
            "the report needs plotly, which this Python does not have; install the packages of requirements/base.txt "
            "(bash scripts/quickstart.sh updates .venv) and run python tools/report.py RUN"
        ) from None
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _make_policy(*scripts: str) -> str:
    """Return a policy with which a browser runs only these scripts and connects only to the server of the page."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
