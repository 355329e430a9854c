"""The update: an objective and a batch enter, a new training state leaves.

Read ``schedule.py`` (the rate), ``sgd.py`` (the enhanced SGD), ``step.py`` (one pure step),
``parallel.py`` (the step on many devices), ``checkpoint.py`` (the state on disk) and ``seal.py``
(its checksums).
"""
