"""transformers' own forward pass around layers that are on disk: skeleton, backbone, language head."""
