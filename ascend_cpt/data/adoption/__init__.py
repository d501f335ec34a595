"""Writes manifests for packed datasets made by other programs."""
