"""Elementwise losses, and the multibox loss that matches, encodes, mines and sums."""
