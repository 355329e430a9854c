"""Scans enter, batches of patches leave; nothing here knows of jax.

Read ``files.py`` and ``header.py`` (what is refused), ``volume.py`` (NIfTI), ``grid.py`` (frames),
``raw.py`` (finding cases), ``prepare.py`` (checks and the prepared store, with ``fingerprint.py``
and ``leaks.py``), ``manifest.py`` and ``store.py`` (random access), ``patches.py`` (the patch
extraction module), ``loader.py`` (the stream of batches); ``phantom.py`` makes synthetic scans
(with ``spine.py``, ``painting.py``, ``anatomy.py``, ``tumours.py``, ``scanner.py``).
"""
