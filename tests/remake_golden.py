"""Golden documents made again after one was edited: canonical bytes, and each names the others by their new digests.

    python -m tests.remake_golden

Until the first release a change of a schema stays version 1: edit the document in `tests/golden/v1`, run this, and put
what it prints into `tests/fleet/golden.py`.  After the first release `v1` is never made again.
"""

import json
from pathlib import Path
from typing import Any

from schemas.base import canonical_json, sha256_digest
from schemas.kinds import ARTIFACTS, DOCUMENTS, LINES, artifact_model
from tests.fleet.golden import DIGESTS

GOLDEN = Path(__file__).parent / "golden" / "v1"
# Each names only documents before it; the others name none that is here.
CHAIN = ("profile", "plan", "update", "state", "measured", "evaluation", "perplexity", "benchmark", "checkpoint")


def main() -> None:
    """Write every golden document anew and print the digests."""
    others = [name for name in DOCUMENTS if name not in (*CHAIN, *LINES, "recipe")]
    new: dict[str, str] = {}
    for kind in (*CHAIN, *others):
        for name in artifact_model(kind).LINES if kind in ARTIFACTS else ():
            _rewrite(GOLDEN / name, DIGESTS, new)
        path = GOLDEN / f"{kind}.json"
        document = json.loads(_rewrite(path, DIGESTS, new))
        data = canonical_json(_with_references(kind, document))
        path.write_bytes(data)
        new[kind] = sha256_digest(data)
    print("\n".join(f'    "{kind}": "{digest.removeprefix("sha256:")}",' for kind, digest in new.items()))


def _rewrite(path: Path, old: dict[str, str], new: dict[str, str]) -> str:
    text = path.read_text(encoding="utf-8")
    for earlier, digest in new.items():
        text = text.replace(f"sha256:{old.get(earlier)}", digest)
    path.write_text(text, encoding="utf-8")
    return text


def _with_references(kind: str, document: Any) -> Any:
    """The document with size and SHA-256 of the files of lines beside it."""
    for name in artifact_model(kind).LINES if kind in ARTIFACTS else ():
        data = (GOLDEN / name).read_bytes()
        reference = next(one for one in document["files"] if one["name"] == name)
        reference |= {"size_bytes": len(data), "sha256": sha256_digest(data)}
    return document


if __name__ == "__main__":
    main()
