"""Names of the golden documents in `tests/golden/v1`: SHA-256 of their bytes."""

DIGESTS = {
    "profile": "ca685e436858de937a6d460c8ad16f5946d360bac8405605d64e2a00102edc16",
    "plan": "7f571e3823945ac8ffbb90651924606f4e4d0ca52fcb15beaea19bb0caa5a208",
    "update": "b724c1a2d6fe46f1823171a035a360c07e259224162f18fdcc866a5598816273",
    "state": "4de44e3bb50c274a13fd84a5b3d8c27d17e6560e52a9a71cfd5135216a226fdd",
    "measured": "c60ea87f2c9a24012ce854ab7ad1ff89b9575682067c988f6af4c99a9cc540ae",
    "evaluation": "cc00fe65f4c575a6bc7cbc1679789098aa6e1edd3b7d6929b65aede30deac066",
    "perplexity": "82f60e6581e612c3f1035431cd68ba7d73c146b7981787ddf9f529435a752302",
    "benchmark": "75f4ac57c1791459b6823ceb1627fd4bbc96d469bb852e3d8b0251d87e6b3e7f",
    "checkpoint": "f5c1876fec08a00d39500f52e28bd868ca09a5e1dec14140686e54cc2776689e",
    "bundle": "43760dac869df6ac1050d555803347de0cec8481e579215356fc60aa3e4ed86c",
    "refusal": "a99d3e7f34d300c9cba9e802e262c8dbaaa13fd44472cc67f1acd5170ca39263",
    "federation": "84b700e2485b43395322400a13a3f1560a7551b7e97a0e0f6f87cdeee018f7f2",
    "simulation-summary": "30e9173e0bfaed94df1aba7a0b18d504f1844b8efc6416666f042fbdd780f9b5",
    "demo-summary": "1f4f355da46d78bab641e8ea8d4c8c84e64a686b51d4107414cfbe330b8ea525",
}
