"""Pre-training of a decoder on text: the experiment behind configs/pangu."""
