"""What a sweep file asks for: the configuration, the grid, each trial's identity, and what it costs."""
