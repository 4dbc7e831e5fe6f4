"""Weight files and configs: where a target is, what its files hold, and how tensors become an SAE."""
