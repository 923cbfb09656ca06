"""Measurements, and checks at a scale that is too large for the tests."""
