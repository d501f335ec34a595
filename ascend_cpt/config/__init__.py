"""The configuration schema (frozen dataclasses) and its strict loader."""
