"""Any Hugging Face model as embed | layers | head, one layer in memory at a time.

Floors, lowest first: `weights` (bytes on disk), `skeleton` (transformers' own modules without weights), `backbone`
(both together: run any part), then what is built on them: `stream`, `adapters`, `objective`, `memory`, `check`.
"""
