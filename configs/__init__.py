"""Configurations, one file per experiment family; `python launch.py --list` prints them."""
