"""A timm network as a stream: one forward for teacher and student.

In: a network as the recipe names it, images uint8 B×3×H×W. Out: `Outputs(blocks, embedding, logits)`; a checkpoint.
Never: trains, compares two networks, or knows where images come from.
"""

import lazy_loader

# What other rooms use stands in __init__.pyi; a module is imported when something of it is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
