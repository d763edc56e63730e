"""Any network on any split.

In: streams and a data source. Out: rows of the table, predictions, agreement of blocks.
Never: changes a weight, or chooses one on the test split.
"""

from meco_timm.evaluation.agreement import block_agreement
from meco_timm.evaluation.one_network import evaluate
from meco_timm.evaluation.predictions import Predictions, keep_predictions, load_predictions, save_predictions
from meco_timm.evaluation.table import Judged, Row, make_table, print_table, styled_table, table_columns, validate

__all__ = [
    "Judged",
    "Predictions",
    "Row",
    "block_agreement",
    "evaluate",
    "keep_predictions",
    "load_predictions",
    "make_table",
    "print_table",
    "save_predictions",
    "styled_table",
    "table_columns",
    "validate",
]
