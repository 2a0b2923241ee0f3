"""The only code that knows Ray: a Tune grid whose trials each run a TorchTrainer."""
