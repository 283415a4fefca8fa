"""Agent systems: tool use, judging, code search and tagging, over one interface to models."""
