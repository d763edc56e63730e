"""One loop for any objective, on many devices, safe to interrupt.

In: an objective, a Job, the teachers' outputs. Out: the stream with its best weights, metrics, checkpoints.
Never: depends on which teachers there are, or what the losses mean.
"""

import lazy_loader

# What other rooms use stands in __init__.pyi; a module is imported when something of it is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
