"""All that trains with torch: the model, its optimizers, batches, evaluation and the loop."""
