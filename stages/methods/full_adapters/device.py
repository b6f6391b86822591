"""Nothing differs from the defaults on a device."""

from stages.methods.device import DeviceMethod

METHOD = DeviceMethod()
