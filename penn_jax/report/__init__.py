"""Enters: predicted and reference labels, and what a run wrote down.
Leaves: metrics with their intervals, tables, figures, pages.
Read in this order: metrics, intervals, surface, comparison; tables, figures; html, plots, then the
pages: study_tables and study_page, calibration, failures, slices, run_tables and run_page.
"""
