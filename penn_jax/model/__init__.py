"""The network: a batch of patches enters, class scores at the same size leave.

Read ``convolution.py`` and ``blocks.py`` (the layers), ``network.py`` (how they are put together),
``loss.py`` (what is minimised), ``augment.py`` (random intensity changes on the device, before the
network) and ``corrupt.py`` (what pre-training has the network undo).
"""
