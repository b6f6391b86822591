"""What each device trains, and how updates become the next state: one folder per method, nothing outside it.

    server.py          the coordinator's half of a method; numpy, no torch
    device.py          the device's half; torch
    registry.py        both halves by the name in `chain.method`
    NAME/server.py     METHOD, a `ServerMethod`
    NAME/device.py     METHOD, a `DeviceMethod`

A new method is a folder here and a settings model in `schemas/methods/`.
"""
