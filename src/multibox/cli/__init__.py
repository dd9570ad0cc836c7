"""The command line: one thin file per verb, with heavy imports inside the functions."""
