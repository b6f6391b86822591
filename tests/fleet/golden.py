"""Names of the golden documents in `tests/golden/v1`: SHA-256 of their bytes."""

DIGESTS = {
    "profile": "e3934df9b2bc708a18a627d03a5fa04a07b19c8522083e5dca4ad10fe532ce9e",
    "plan": "f73df99b14d1418bc6bc272d1bdc1c7b02f06f926b74387ad6cfe5a1a0d2aada",
    "update": "113eca299e947ab8c18c05a7cd707f0ad6af909dea57864f910d18f310fe7580",
    "state": "31b2b0eaec8cbb2957b7b502aaded155f71be488f28f7aa96c6bf62483f5e7a9",
    "measured": "6ac7528b0a3eaba63b2e5e3b49aea4968a9c85cd2263b56a8c4efd02a3d94372",
    "evaluation": "5b81569611ffcb818516781d1c3e9ce92d3ac888b9b4abf6d0fede5d739f8773",
    "perplexity": "2f16aac1dbc762210441fc4c46d203b47a510589e8c050557b1886b67b9fe7e7",
    "benchmark": "300f76b9a86d0f84c4d71964d75ebcf945b987a1ec6311bdddf299245d190ac4",
    "checkpoint": "e86f3eec52578d0ee40906cfac604bb4acecccbc26755cdab4b7ba65a9adb547",
    "bundle": "603afbacab0666e05f2ad327ae35a459c85313588c8cc057a7b6c1733be7a9b6",
    "refusal": "dcb9bfe9d6f7b9b779184d2f7dc54899e01b36e5fc02fcdbc01dd8ebaf8b04e3",
    "federation": "28a307e62c3fddff0416aef68640cb601b1285372375000090c95c00d9acc34e",
    "simulation-summary": "a2cd92514a5ac4bba32aadf115b50ee9f086d6d08280fd976eb9a01b744d6c18",
    "demo-summary": "c502ea336970db495074268118e10c0f63487b2810d98936612df6dcfdbbea74",
}
