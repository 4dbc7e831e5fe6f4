"""What `contract` tries an SAE with, and what it looks at."""
