"""Images and labels.

In: a folder, parquet files, tars, a Hub id, or a data set of Python.
Out: `Batch(image uint8 B×3×H×W, un-normalised; label; row; view)`.
Never: normalises images, or knows a network.
"""

import lazy_loader

# What other rooms use stands in __init__.pyi; a module is imported when something of it is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
