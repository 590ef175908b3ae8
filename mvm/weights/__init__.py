"""Weight files: official PyTorch, Hugging Face, the hub."""
