"""Methods by name.  Each half is imported on first use: the coordinator's half needs no torch."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from stages.methods.server import ServerMethod

if TYPE_CHECKING:
    from stages.methods.device import DeviceMethod

_SERVERS: dict[str, ServerMethod] = {}
_DEVICES: "dict[str, DeviceMethod]" = {}


def server_method(name: str) -> ServerMethod:
    """The coordinator's half of the method `name`, one of `schemas.methods.known_methods`."""
    if name not in _SERVERS:
        _SERVERS[name] = _half(name, "server").METHOD
    return _SERVERS[name]


def device_method(name: str) -> "DeviceMethod":
    """The device's half of the method `name`."""
    if name not in _DEVICES:
        _DEVICES[name] = _half(name, "device").METHOD
    return _DEVICES[name]


def register(server: ServerMethod, device: "DeviceMethod") -> None:
    """Add a method that has no folder here.  Its settings are added by `schemas.methods.register`."""
    _SERVERS[server.name], _DEVICES[server.name] = server, device


def unregister(name: str) -> None:
    """Remove a method that `register` added."""
    del _SERVERS[name], _DEVICES[name]


def _half(name: str, half: str) -> ModuleType:
    return importlib.import_module(f"stages.methods.{name.replace('-', '_')}.{half}")
