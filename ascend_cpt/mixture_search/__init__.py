"""Mixture search: trains proxies on sampled blends, fits laws and recommends a blend (docs/mixtures.md)."""
