"""Figures, plots, tables and the page."""
