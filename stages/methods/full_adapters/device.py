"""The defaults of `DeviceMethod`."""

from stages.methods.device import DeviceMethod

METHOD = DeviceMethod()
