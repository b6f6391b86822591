"""chainctl: chain federated fine-tuning from the command line.

`stages` and `schemas` are general names.  A foreign package of the same name would be imported in place of ours
without a word, so this module makes sure that ours are the ones that would be found.
"""

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"


def _refuse_impostors() -> None:
    home = Path(__file__).resolve().parent.parent
    for name in ("schemas", "stages"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise ImportError(
                f"chainctl needs its own package '{name}' at {home / name}, but Python would import"
                f" {found or 'nothing'}. Another distribution has a package of that name: install chainctl into an"
                " environment of its own."
            )


_refuse_impostors()
