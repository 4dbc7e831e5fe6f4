"""Measure on a Ray cluster: tasks measure the SAEs of one model and site, the pytest process judges."""
