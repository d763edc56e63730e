"""The steps of a run, which pipeline.py has in order; finished runs; recipes over seeds.

In: a recipe. Out: data, teachers, student and results of each step; the results of a finished run, shown again.
Never: decides in which order the steps of a run come.
"""

import lazy_loader

# What other rooms use stands in __init__.pyi; a module is imported when something of it is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
