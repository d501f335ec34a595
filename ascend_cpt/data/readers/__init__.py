"""From input files to documents."""
