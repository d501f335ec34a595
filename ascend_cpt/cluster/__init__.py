"""Launch arguments, environment and process supervision for msrun."""
