"""What preference data are: lengths, duplicates, drops and padding, counted in one pass by `mps.stats`."""
