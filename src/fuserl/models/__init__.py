"""Causal language models that compute a prompt once for all its responses, and what scores with them."""
