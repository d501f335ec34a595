"""The configuration: schema (frozen dataclasses) and the strict loader."""
