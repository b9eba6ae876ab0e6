"""Weights from anywhere become a teacher."""
