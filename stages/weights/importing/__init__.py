"""What people have that is not safetensors: GGUF files and pickles."""
