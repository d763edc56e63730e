"""Evaluation of any network on any split.

In: streams and a data source. Out: table rows, predictions, similarity of blocks (CKA).
Never: changes weights, or selects weights on the test split.
"""

import lazy_loader

# What other rooms use stands in __init__.pyi; a module is imported when something of it is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
