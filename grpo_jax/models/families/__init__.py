"""One file a model family: how its Hugging Face configuration and parameter names map to ours."""
