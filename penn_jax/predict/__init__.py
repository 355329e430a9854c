"""Prediction: frames of a scan and a network as a callable enter, scores or a mask leave.

Read ``dense.py`` (frames, tile by tile), ``case.py`` (a file in, a file out) and ``certainty.py``
(how sure the network is).
"""
