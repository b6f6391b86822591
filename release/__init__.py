"""What stands between a commit and an upload: `just release` and `just image-check`.

Nothing here is in the wheel, and nothing here is imported by what is.
"""
