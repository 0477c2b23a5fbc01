"""Each protective measure, taken out again: does any test notice? See `tests/simulation/mutants.py`."""
