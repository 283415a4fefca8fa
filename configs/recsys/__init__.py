"""Recommender configurations."""
