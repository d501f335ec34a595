"""Read documents from input files."""
