"""Choices of values: functions that return a Run."""
