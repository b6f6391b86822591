"""Names of the golden documents in `tests/golden/v1`: SHA-256 of their bytes."""

DIGESTS = {
    "profile": "ce523096b0d561564941d88eaa22d6cec016859a6cf3fd27e8411ae7a5d7f72f",
    "plan": "f783a42f090c73b679f268a5313305bd0b7c1c65a7401eee42500f8ab9648bec",
    "update": "f14be2b761aafc8e5b8c871bd4bab0f2ab5b098ebb7d20029318fabf90c8084b",
    "state": "745b9680da704a94f9f9c27ddd6256c50f5710f17e8e4de4b83212bd0635869f",
    "measured": "e957d8466cafae097b43a64480d4a5f72aa76137235e5cb99b2c2aed89d7ce50",
    "evaluation": "69868d8466cea134e07782e9943ddc399db56890188082308deeba3ca07f20ae",
    "perplexity": "ad6c6fa383189dc140ae0a02798890c645b622c5451d1912a239bc879c4a0c67",
    "benchmark": "bfcf4982c4b7d7c5ddd46add2999ff266922db4b7ab0da752237676e671b0e1e",
    "checkpoint": "e5019e068670715f18bef8fee244e05fff4f10a482e675e78c1533c56741ce9e",
    "bundle": "d64f7b1734899b7137a4e07a470a41eedcbbff7d7b870c8d80edda83656946fa",
    "refusal": "15c7679b0acd5758386754d88b1e2dd08d58f7a9119ede39b9fd40aba20311d8",
    "federation": "b254b2dfc8b80889de6c1b49129ef2180eff0a4a354708f9e827d8fc0d54741a",
    "simulation-summary": "928731c17099765de450a1e9d0784300468af4adee3b77c1d39a5e101b42ca87",
    "demo-summary": "f3e97db7c6a476cda5c0fdb195cba79915ff15598ed9e3ce5ac94d669bff71f8",
}
