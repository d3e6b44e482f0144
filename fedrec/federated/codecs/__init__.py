"""Stages of the payload codec: each turns one tensor into a few smaller ones, and back."""
