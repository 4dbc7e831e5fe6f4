"""Past one machine: SAEs of one model and site are measured by tasks of a Ray cluster, and judged where pytest runs."""
