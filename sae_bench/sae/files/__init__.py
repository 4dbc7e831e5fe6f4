"""Weight files and configs of SAEs: resolve a target, read tensors and JSON, check shapes and orientation."""
