"""Names of the golden documents in `tests/golden/v1`: SHA-256 of their bytes."""

DIGESTS = {
    "profile": "ca685e436858de937a6d460c8ad16f5946d360bac8405605d64e2a00102edc16",
    "plan": "2191928d6ea80250fa2c7d51973ae5dd822b6c7e76add6ac14fad1ccb0250fe5",
    "update": "e61dc16ac7bb490448bd2666d1530fd41104e82a7b353f2eb5faef312e951d8b",
    "state": "52162a7815bcf02e6ad3151f20970f859c962297833344479e3f142791d9bc70",
    "measured": "2b65debce38aee4423feede9bf2a6ff1ba76e08ce13ff3a6eba5dcd997ac9875",
    "evaluation": "31fc17d4d2373312e39e74e74fa4562fca1d1db611c27a38af9a626ae1e21aa5",
    "perplexity": "30f3a5231578da52a18ecd05b5d35a098abb3ec58f499601ee334cd5976765d2",
    "benchmark": "2faa5f4afd5f3a5ce0e49b3b3d87e794f48574fec6aab62ac1729640b7d44d5c",
    "checkpoint": "9e320df003fe17e2858bef8880fa71eabda11de38f3fec9a1127bbae0b91c42c",
    "bundle": "a6efebd33e5c1349f02957f2416c3d44b0e6b4cb7635a6e764cea2610fae7484",
    "refusal": "b21683fdbc80d07ecc1ffa9329cd5af066f8f73ff64ba625f5ab09d1f3969423",
    "federation": "c005cb99f29d05b0461830a2669bc14e98e693d70299c27cbbef94edef22cd20",
    "simulation-summary": "430cc868f2e70c5d79b85966ae0d2e8cbf6251130e7c36cfd829fd8eb3a4605d",
    "demo-summary": "bafa93062a1e0f0516d8c16f593c23667b9bb81717ced71a567e7a8debecf557",
}
