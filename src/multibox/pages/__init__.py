"""Pages to see inside: inspector, report and monitor, each one HTML file without a network."""
