"""tinyscale: how a language model's loss falls with parameters, data, context and compute."""
