"""Drafting a family file for an unknown architecture, from its config."""
