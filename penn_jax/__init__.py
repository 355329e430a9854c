"""Patch-based MRI segmentation in JAX: from a folder of scans to masks and a table of metrics.

The command line is ``penn`` (``cli.py``); the same steps from Python are ``data.prepare.prepare``,
``pretrain.pretrain``, ``train.train``, ``segment.predict`` and ``evaluate.evaluate``.
"""
