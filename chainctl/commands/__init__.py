"""One file a command: parse, call one stage, say one line.  Stages are imported inside the function bodies."""
