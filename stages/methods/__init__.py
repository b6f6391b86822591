"""Who trains what, and how it becomes the next state: one folder for each method, nothing of it elsewhere.

    server.py          the coordinator's half of a method; numpy, no torch
    device.py          the device's half; torch
    registry.py        both halves by the name in `chain.method`
    NAME/server.py     METHOD, of a method
    NAME/device.py     METHOD, of a method

A new method is a folder here and a settings model in `schemas/methods/`.
"""
