"""What a launch would run, how long it takes, and what it fills in for `auto`."""
