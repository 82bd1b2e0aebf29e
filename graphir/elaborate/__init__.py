"""Syntax and parameters become a graph."""
