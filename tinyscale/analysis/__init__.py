"""From a results folder to laws: runs, fits, comparisons, predictions and suggestions."""
