"""Scans enter, batches of patches leave; nothing here knows of jax.

Read ``volume.py`` (NIfTI), ``grid.py`` (frames), ``raw.py`` (finding cases), ``prepare.py``
(checks and the prepared store), ``store.py`` (random access), ``patches.py`` (the patch extraction
module), ``loader.py`` (the stream of batches); ``phantom.py`` makes synthetic scans
(with ``spine.py``, ``painting.py``, ``anatomy.py``, ``tumours.py``, ``scanner.py``).
"""
