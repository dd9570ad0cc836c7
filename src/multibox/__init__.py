"""Single-shot detectors (SSD): train on your own pictures, see why it works or fails, ship one small file."""

__version__ = "0.1.0"
