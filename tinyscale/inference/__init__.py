"""A trained model in use: loaded, sampled, scored and exported."""
