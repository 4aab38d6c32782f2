"""Long runs and interrupted runs."""
