"""Enters: a trained network's variables. Leaves: the same network for other programs.

Read ``torch_network.py`` (the network in PyTorch, which stands alone), ``torch.py`` (weights to
it) and ``onnx.py`` (the network as an ONNX graph, and prediction with ONNX Runtime). Nothing here
is imported unless it is asked for: its libraries are optional extras.
"""
