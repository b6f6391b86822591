"""The contract: every document that chainctl writes or reads.  Pydantic and the standard library only."""
