"""Weights and memory that several methods share: heads, teacher, bank, decoder, norms."""
