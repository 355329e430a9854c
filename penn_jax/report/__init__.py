"""Enters: predicted and reference labels, and what a run wrote down.
Leaves: metrics with their intervals, tables, figures, pages.
Read in this order: metrics, surface, tables, figures.
"""
