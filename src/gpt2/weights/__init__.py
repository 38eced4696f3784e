"""Weights in and out: the folders that other tools read and write."""
