"""Measurements of this project on the machine at hand. Ratios within one run are what can be compared."""
