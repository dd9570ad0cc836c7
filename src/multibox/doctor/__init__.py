"""The doctor: what is wrong with a data set, why it matters, how to mend it, and a repaired copy."""
