"""Which licence a package has, from metadata as packages write it, and which may come along."""

from pathlib import Path

import pytest

from release.licenses import is_allowed, license_of, write_licenses
from release.shell import Failed

OSI = "License :: OSI Approved :: "


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"license_expression": "Apache-2.0 OR BSD-3-Clause", "license": "other"}, "Apache-2.0 OR BSD-3-Clause"),
        ({"license": "MIT"}, "MIT"),
        ({"license": "Apache 2.0 License"}, "Apache-2.0"),
        ({"license": "MPL-2.0 AND MIT"}, "MPL-2.0 AND MIT"),
        ({"license": "BSD 3-Clause License\n\nCopyright (c)", "classifier": [f"{OSI}BSD License"]}, "LicenseRef-BSD"),
        ({"classifier": [f"{OSI}MIT License", f"{OSI}Apache Software License"]}, "MIT OR Apache-2.0"),
        ({"classifier": [f"{OSI}MIT License", f"{OSI}A licence of its own"]}, None),
        ({"license": "Dual License"}, None),
        ({"license": ""}, None),
        ({}, None),
    ],
)
def test_the_licence_is_read_from_the_most_exact_field(metadata: dict[str, object], expected: str | None) -> None:
    assert license_of(metadata) == expected


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("LicenseRef-BSD", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-3.0-only) AND AGPL-3.0-or-later", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
    ],
)
def test_of_alternatives_one_is_enough_and_of_a_conjunction_each_is_needed(expression: str, allowed: bool) -> None:
    assert is_allowed(expression) is allowed


def test_all_are_listed_before_the_bad_ones_fail_the_release(tmp_path: Path) -> None:
    good = {"name": "good", "version": "1", "license": "MIT"}
    unknown = {"name": "odd", "version": "2", "license": "ask me"}
    forbidden = {"name": "strict", "version": "3", "license_expression": "AGPL-3.0-only"}
    with pytest.raises(Failed, match=r"odd 2 \(unknown\), strict 3 \(AGPL-3.0-only\)"):
        write_licenses([good, unknown, forbidden], tmp_path / "licenses.md")
    assert "| good 1 | MIT |" in (tmp_path / "licenses.md").read_text()
