"""The contract on NVIDIA GPUs."""
