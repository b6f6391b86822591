"""A report as one HTML page that needs nothing else: no network, no fonts, and no script to be read.

Everything that is put into the page is escaped by Jinja, once: names of devices, labels, files and settings are text
whatever they hold.  The page allows its own style sheet and script, by their SHA-256, and nothing more.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from schemas.errors import BadInput
from schemas.visible import visible_text
from stages.report.parts import Report

TEMPLATES = Path(__file__).parent / "templates"


def render(report: Report) -> bytes:
    """The page.  The same report gives the same bytes.  Raises `BadInput` where Jinja is missing."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise BadInput("reports need Jinja", hint="pip install jinja2") from None

    def shown(value: Any) -> Any:
        return visible_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (Markup(loader.get_source(environment, name)[0]) for name in ("style.css", "script.js"))
    page = environment.get_template("page.html").render(
        report=report,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    return (page + "\n").encode()


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
