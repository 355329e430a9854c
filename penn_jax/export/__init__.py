"""Enters: a trained network's variables. Leaves: the same network for other programs, and back.

Read ``penn_torch.py`` (network, scan to frames, frames to mask in PyTorch; it stands alone),
``weights.py`` (names and layouts there and back), ``torch.py``, ``onnx.py``, ``stablehlo.py``,
``monai.py`` with ``penn_monai.py`` (a bundle and the parts of it that are code), ``card.py`` (the
model card) and ``folder.py`` (an export's ``config.json``). What needs PyTorch, ONNX or MONAI is
imported only when it is asked for: they are optional extras.
"""
