"""From a trained network to one file that runs where PyTorch is not installed."""
