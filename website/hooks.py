"""What mkdocs calls while it builds: the generated pages become files, and equations become MathML.

Both happen at build time, so that a page needs no script and no network.  The font of the equations comes with the
site: without a table of mathematical constants, which few systems' fonts have, browsers set MathML badly.
"""

import re
from html import unescape
from importlib.resources import files as resources
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from website.reference import PAGES

FONT = resources("ziamath.fonts") / "STIXTwoMath-Regular.ttf"
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """What is not in docs/: the reference, and the font."""
    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    files.append(File.generated(config, "assets/math.ttf", content=FONT.read_bytes()))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """The page with each equation as MathML."""
    return EQUATION.sub(_math, html)


def _math(found: re.Match[str]) -> str:
    tag, opening, latex = found.groups()
    math = convert(unescape(latex).strip(), display="block" if opening == "[" else "inline")
    return f'<div class="equation">{math}</div>' if tag == "div" else math
