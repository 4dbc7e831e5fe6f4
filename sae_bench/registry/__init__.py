"""What is registered? SAEs, sites, and extensions of other packages."""
