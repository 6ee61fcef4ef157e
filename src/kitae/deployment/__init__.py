"""From a trained network to one file that runs without PyTorch."""
