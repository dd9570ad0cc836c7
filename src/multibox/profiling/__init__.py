"""Where the time of a training run goes, and what to change."""
