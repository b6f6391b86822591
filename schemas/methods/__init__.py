"""What each method adds to the contract: its settings, a plan's decisions, and its progress in a state.

`chain.method` chooses a method.  Its three records are members of unions tagged by that name, which `register` extends:
a plan holds `settings.chain` and `decisions`, a state holds `progress`.
"""

from schemas.methods.chain import ChainDecisions, ChainProgress, ChainSettings, Convergence
from schemas.methods.references import FullAdaptersSettings, LinearProbeSettings, NoFineTuningSettings
from schemas.methods.registry import (
    DEFAULT_METHOD,
    ChosenDecisions,
    ChosenProgress,
    ChosenSettings,
    MethodDecisions,
    MethodProgress,
    MethodSettings,
    default_settings,
    known_methods,
    register,
    settings_class,
)

register(ChainSettings, ChainDecisions, ChainProgress)
register(FullAdaptersSettings)
register(LinearProbeSettings)
register(NoFineTuningSettings)

__all__ = [
    "DEFAULT_METHOD",
    "ChainDecisions",
    "ChainProgress",
    "ChainSettings",
    "ChosenDecisions",
    "ChosenProgress",
    "ChosenSettings",
    "Convergence",
    "FullAdaptersSettings",
    "LinearProbeSettings",
    "MethodDecisions",
    "MethodProgress",
    "MethodSettings",
    "NoFineTuningSettings",
    "default_settings",
    "known_methods",
    "register",
    "settings_class",
]
