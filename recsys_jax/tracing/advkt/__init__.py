"""AdvKT (arXiv 2504.04706): adversarial multi-step training for knowledge tracing."""
