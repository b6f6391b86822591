"""Names of the golden documents in `tests/golden/v1`: SHA-256 of their bytes."""

DIGESTS = {
    "profile": "ca685e436858de937a6d460c8ad16f5946d360bac8405605d64e2a00102edc16",
    "plan": "d894c07606ece1742eb6b924c06d72ae310d6ac8cd954b64eb7b469beb89aea0",
    "update": "832546ebb999d3dbdadfad7709372cd828ab5274a60ad77c7361c545ac7e2f1f",
    "state": "1b75aaad60235b1e2c9d28cc9ce65968fbb4ed431ea06414961daa333bb56e36",
    "measured": "7b7a7b0d0694553501bd1f948662baf1a30dbfbf3c67772f673ccc9f6cfe338d",
    "evaluation": "8d52c207d2cdfa107ec14a612689f8dab9c4b79c50ce6d601c767b2350c6378c",
    "perplexity": "2a179754ca6285bd79b929b17f1b0d93f1f69a54c8f4c0dff5ff7149a8a7477b",
    "benchmark": "b455a5bfa24ef6089cee1ec84aa1eafb320c50c46cfc9286cede259a0748e9f4",
    "checkpoint": "a1547fbfb025e979a05d50aa261605cdc4197fa1a5cb1ce06619d2d4a8a64130",
    "bundle": "e9244505e1f01d0b62948cd7b8a898400a0a0d72aa0ed53a2d351f25f76d178c",
    "refusal": "1d24305f1424312ed046a3464c32897524ba541c22734923f7349970715d0606",
    "federation": "abf5effebdcccdb063b3dbcb50cf9b6980a452d98a49315d95d9b75dc9616ec1",
    "simulation-summary": "4da02a8d0dacd22071bc9850680afe1b490b302ec436fdbcb3932f58376a202b",
    "demo-summary": "bbee1968d77e4209676fcee949c2b70175b2b30702a97b218d10f5453926622e",
}
