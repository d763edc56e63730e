"""Write digits/train.parquet and digits/test.parquet: the UCI optical digits as scikit-learn ships them.

    pip install scikit-learn && python recipes/data/make_digits.py

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49, licence CC BY 4.0; the 1,797 images of its test part, 8 × 8 pixels with 17 grey levels, here as
PNG with 256. Every third image goes to the test split.
"""

import io
from pathlib import Path

import datasets
from PIL import Image
from sklearn.datasets import load_digits

HERE = Path(__file__).parent / "digits"


def png(image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((image * 255 / 16).round().astype("uint8")).save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    digits = load_digits()
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[str(n) for n in digits.target_names])
    )
    rows = [
        {"image": {"bytes": png(i), "path": None}, "label": int(t)}
        for i, t in zip(digits.images, digits.target, strict=True)
    ]
    for name, part in (("test", rows[::3]), ("train", [row for n, row in enumerate(rows) if n % 3])):
        split = datasets.Dataset.from_list(part, features=features)
        split.to_parquet(HERE / f"{name}.parquet")
        print(name, len(split))


if __name__ == "__main__":
    main()
