"""The licence of every dependency, of every extra: what a resolver would install, and under which terms.

pip resolves without installing (`--dry-run --report`), so that no gigabytes arrive; the report holds each package's
metadata.  A licence that is neither permissive nor weak copyleft, or that nobody can name, fails the release.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from license_expression import AND, OR, ExpressionError, get_spdx_licensing

from release.shell import Failed, run

EXTRAS = ("data", "report", "sign", "import", "export", "eval", "tensorboard", "mlflow", "wandb", "docs")
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC"),
    *("LLVM-exception", "LicenseRef-BSD", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
}
WEAK_COPYLEFT = {"LGPL-2.1-or-later", "MPL-2.0"}  # may be used as they are; chainctl ships none of their files
ALLOWED = PERMISSIVE | WEAK_COPYLEFT
CLASSIFIERS = {  # what older metadata says in place of an SPDX expression
    "Apache Software License": "Apache-2.0",
    "BSD License": "LicenseRef-BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
WORDS = {  # the same in free text
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "The MIT License (MIT)": "MIT",
}
SPDX = get_spdx_licensing()


def resolve(wheel: Path, torch: str) -> list[dict[str, Any]]:
    """The metadata of all that the wheel would bring along with all extras, by name."""
    wanted = f"chainctl[{','.join(EXTRAS)}] @ {wheel.resolve().as_uri()}"
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed")
        run(*pip, "--report", report, f"torch=={torch}", wanted)
        found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    return sorted((one for one in found if one["name"] != "chainctl"), key=lambda one: str(one["name"]).lower())


def license_of(metadata: Mapping[str, Any]) -> str | None:
    """The SPDX expression of a package, from the most exact field that it has; None where none can be read."""
    first_line = next(iter(str(metadata.get("license") or "").strip().splitlines()), "").strip()
    for told in (metadata.get("license_expression"), WORDS.get(first_line, first_line)):
        if told and is_spdx(told):
            return str(told)
    labels = [one.split(" :: ")[-1] for one in metadata.get("classifier", ()) if one.startswith("License ::")]
    if labels and all(label in CLASSIFIERS for label in labels):
        return " OR ".join(CLASSIFIERS[label] for label in labels)
    return None


def is_spdx(text: str) -> bool:
    """Whether every name in an expression is in SPDX's list."""
    try:
        return not SPDX.unknown_license_keys(text)
    except ExpressionError:
        return False


def is_allowed(expression: str) -> bool:
    """Whether the terms can be kept: of alternatives one is enough, of a conjunction each must be."""
    return holds(SPDX.parse(expression, simple=False))


def holds(node: Any) -> bool:
    """`is_allowed` of a part of an expression."""
    if isinstance(node, AND):
        return all(holds(part) for part in node.args)
    if isinstance(node, OR):
        return any(holds(part) for part in node.args)
    return all(symbol.key in ALLOWED for symbol in node.decompose())


def write_licenses(packages: list[dict[str, Any]], path: Path) -> None:
    """A table of all packages.  Raises `Failed` with those whose licence is unknown or not allowed."""
    found = {f"{one['name']} {one['version']}": license_of(one) for one in packages}
    rows = [f"| {name} | {told or 'unknown'} |" for name, told in found.items()]
    path.write_text("\n".join(["| package | licence |", "|---|---|", *rows, ""]))
    bad = [f"{name} ({told or 'unknown'})" for name, told in found.items() if not told or not is_allowed(told)]
    if bad:
        raise Failed(f"licences unknown or not allowed: {', '.join(bad)}; see {path}")
