"""Golden documents made again after one was edited: canonical bytes, and each names the others by their new digests.

    python -m tests.remake_golden

Until the first release a change of a schema stays version 1: edit the document in `tests/golden/v1`, run this, and put
what it prints into `tests/schemas/test_manifests.py`.  After the first release `v1` is never made again.
"""

import json
from pathlib import Path

from schemas.base import canonical_json, sha256_digest

GOLDEN = Path(__file__).parent / "golden" / "v1"
# Each names only documents before it.
ORDER = (
    *("profile", "plan", "update", "state", "measured", "evaluation", "perplexity", "benchmark", "checkpoint"),
    *("refusal", "bundle"),
)


def main() -> None:
    """Write every golden document anew and print the digests."""
    from tests.schemas.test_manifests import DIGESTS

    new: dict[str, str] = {}
    for kind in ORDER:
        path = GOLDEN / f"{kind}.json"
        text = path.read_text(encoding="utf-8")
        for earlier, digest in new.items():
            text = text.replace(f"sha256:{DIGESTS.get(earlier)}", digest)
        data = canonical_json(json.loads(text))
        path.write_bytes(data)
        new[kind] = sha256_digest(data)
    print("\n".join(f'    "{kind}": "{digest.removeprefix("sha256:")}",' for kind, digest in new.items()))


if __name__ == "__main__":
    main()
