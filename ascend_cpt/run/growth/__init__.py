"""Makes larger models for continued pretraining: new tokens, and new blocks."""
