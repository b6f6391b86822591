"""recipe.toml: the settings of a federation, as a person writes them.

Settings come from flags, then the environment (`CHAINCTL_<SECTION>_<KEY>`), then the recipe, then defaults.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.base import describe_validation_error
from schemas.errors import BadInput, UsageProblem
from schemas.methods import DEFAULT_METHOD, MethodSettings, default_settings, known_methods, settings_class
from schemas.settings import Settings

ENVIRONMENT_PREFIX = "CHAINCTL_"
RENAMED = {"numerics.dtype": "numerics.compute"}  # older names, which go on working


def parse_recipe(
    text: str,
    *,
    source: str,
    environment: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
    method: str | None = None,
) -> Settings:
    """Settings of a recipe, overridden by the environment and by `section.key=value` strings.

    Another `method` than the recipe's replaces its section `[chain]` by that method's defaults, before anything
    overrides them.  Raises `BadInput` for a recipe that is not TOML or has unknown, missing or wrong settings,
    `UsageProblem` for an override or a variable that names no setting, for a wrong value in either, and for an unknown
    method.
    """
    document = _read(text, source, method)
    given = [*_from_environment(environment or {}), *map(_from_override, overrides)]
    for name, key, value in given:
        _set(document, name, key, value)
    try:
        return Settings.model_validate(_tuples(document))
    except ValidationError as error:
        overridden = {(section, key) if section else (key,) for section, key, _ in given}
        misused = all({problem["loc"][:1], problem["loc"][:2]} & overridden for problem in error.errors())
        raise (UsageProblem if misused else BadInput)(
            f"{'--set or the environment' if misused else source} has settings that cannot be used",
            values=describe_validation_error(error),
            hint="'chainctl recipe new' explains every setting; those of [chain] belong to its method, and may also "
            "come from --set or CHAINCTL_CHAIN_…",
        ) from None


def origins(
    text: str, *, source: str, environment: Mapping[str, str] | None = None, overrides: Iterable[str] = ()
) -> dict[str, str]:
    """Where settings come from that are not defaults, by their paths: `source`, a variable's name, or `--set`.

    For what `parse_recipe` takes from the same arguments.
    """
    found: dict[tuple[str, str], str] = {}
    for section, value in _read(text, source, None).items():
        keys = [(section, key) for key in value] if isinstance(value, dict) else [("", section)]
        found |= dict.fromkeys(keys, source)
    paths = _known_paths()
    found |= {where: _variable(path) for path, where in paths.items() if _variable(path) in (environment or {})}
    found |= {_from_override(override)[:2]: "--set" for override in overrides}
    return {path: found[where] for path, where in setting_paths().items() if where in found}


def _read(text: str, source: str, method: str | None) -> dict[str, Any]:
    """The document of a recipe, with the method's section where another method is asked for."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{source} is not TOML: {error}") from None
    except RecursionError:
        raise BadInput(f"{source} is not a recipe: it is nested too deeply") from None
    if method is not None:
        check_method(method)
        section = document.get("chain")
        if not isinstance(section, dict) or section.get("method", DEFAULT_METHOD) != method:
            document["chain"] = {"method": method}
    _take_new_names(document)
    return document


def _take_new_names(document: dict[str, Any]) -> None:
    """Older names of settings become the newer ones; one that is there under both names is left to be refused."""
    for old, new in RENAMED.items():
        section, key = old.split(".")
        place, name = document.get(section), new.split(".")[1]
        if isinstance(place, dict) and key in place and name not in place:
            place[name] = place.pop(key)


def setting_paths() -> dict[str, tuple[str, str]]:
    """Every setting as `section.key` (or `key` at the top), with its (section, key)."""
    paths: dict[str, tuple[str, str]] = {}
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys = [key for one in _records(section) for key in one.model_fields]
            paths |= {f"{name}.{key}": (name, key) for key in keys}
        else:
            paths[name] = ("", name)
    return paths


def setting_values(settings: Settings) -> dict[str, Any]:
    """Every setting of these settings by its path."""
    values: dict[str, Any] = {}
    for name, value in settings:
        values |= {f"{name}.{key}": item for key, item in value} if isinstance(value, BaseModel) else {name: value}
    return values


def _known_paths() -> dict[str, tuple[str, str]]:
    """The settings, by older names too."""
    paths = setting_paths()
    return paths | {old: paths[new] for old, new in RENAMED.items()}


def _records(section: type[BaseModel]) -> list[type[BaseModel]]:
    """The records that a section can be: for `chain`, the settings of any method."""
    return [settings_class(name) for name in known_methods()] if section is MethodSettings else [section]


def check_method(method: str) -> None:
    """A method of that name exists.  Raises `UsageProblem`."""
    if method not in known_methods():
        raise UsageProblem(
            "unknown method",
            values={"expected": ", ".join(known_methods()), "found": method},
            hint="correct chain.method in the recipe, or --method",
        )


def with_method(settings: Settings, method: str) -> Settings:
    """The same recipe with another method and that method's default settings.

    Raises `UsageProblem` for an unknown method.
    """
    check_method(method)
    if settings.chain.method == method:
        return settings
    return settings.model_copy(update={"chain": default_settings(method)})


def _from_environment(environment: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    names = {_variable(path): where for path, where in _known_paths().items()}
    sections = tuple(_variable(f"{section}.") for section, _ in names.values() if section)
    for name in sorted(environment.keys() - names.keys()):
        if name.startswith(sections):
            raise _no_setting(name, list(names))
    return [(*names[name], _value(environment[name])) for name in sorted(names.keys() & environment.keys())]


def _variable(path: str) -> str:
    """The variable of the environment that sets a setting."""
    return ENVIRONMENT_PREFIX + path.replace(".", "_").upper()


def _no_setting(variable: str, known: Sequence[str]) -> UsageProblem:
    """The error where a variable looks like that of a setting, and would be ignored."""
    near = next(iter(get_close_matches(variable.replace("__", "_"), known, n=1)), _variable("chain.window_size"))
    return UsageProblem(
        f"the environment variable {variable} names no setting",
        values={"expected": f"{ENVIRONMENT_PREFIX}SECTION_KEY, such as {near}"},
        hint=f"correct its name: set {near}, or unset {variable}",
    )


def _from_override(override: str) -> tuple[str, str, Any]:
    path, equals, text = override.partition("=")
    where = _known_paths().get(path.strip())
    if not equals or where is None:
        raise UsageProblem(
            f"--set {override!r} names no setting",
            values={"expected": "section.key=value, such as chain.window_size=3"},
            hint="'chainctl recipe new -' prints every setting",
        )
    return (*where, _value(text.strip()))


def _value(text: str) -> Any:
    """A TOML value where `text` is one, otherwise the text itself (so that `sgd` needs no quotes)."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text  # several lines are not a value


def _set(document: dict[str, Any], section: str, key: str, value: Any) -> None:
    target = document.setdefault(section, {}) if section else document
    if isinstance(target, dict):
        target[key] = value


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, as strict validation expects them; everything else unchanged."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value
