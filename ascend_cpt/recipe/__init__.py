"""Token budgets and learning-rate schedules in plain Python and NumPy."""
