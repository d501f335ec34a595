"""Makes a Hugging Face model larger: new blocks, and rows for new tokens."""
