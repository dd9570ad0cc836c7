"""How fast a detector is on this machine, part by part and beside others."""
