"""The results folder: rows, states, leases, launches and provenance."""
