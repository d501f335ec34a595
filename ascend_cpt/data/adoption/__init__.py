"""Writes manifests for packed datasets that other programs made."""
