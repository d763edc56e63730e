"""What people read beside the weights: the model card of a student."""

from huggingface_hub import ModelCardData

from meco_timm.evaluation import Row, markdown_table
from meco_timm.recipe import Recipe

CARD = """---
{front}
---

# {student} from an ensemble of {count}

One timm network that learned from the soft labels of {count} teachers ({teachers}) on {data}; made with meco_timm.

```python
import timm

model = timm.create_model("local-dir:PATH/TO/THIS/FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
```

Test split of {data}; the true ensemble is the mean of all teachers' softmax, *student alone* the same network with the
same budget trained on the labels only.

{table}
"""


def student_card(recipe: Recipe, rows: list[Row]) -> str:
    """The README.md of an exported student, with the table."""
    front = ModelCardData(
        library_name="timm", pipeline_tag="image-classification", tags=["image-classification", "timm"]
    )
    return CARD.format(
        front=front.to_yaml(),
        student=recipe.student.model,
        count=len(recipe.teachers),
        teachers=", ".join(teacher.model for teacher in recipe.teachers),
        data=recipe.data.source,
        table=markdown_table(rows),
    )
