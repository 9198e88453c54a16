"""Sections of the model zoo's benchmark."""
