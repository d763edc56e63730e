"""From image files to embeddings: a parquet file, and the files that are most alike."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from meco_timm.common import ProgressBar, UserError, expand, get_logger, write_content
from meco_timm.evaluation.features import nearest
from meco_timm.evaluation.file_batches import list_files, load_file_network, outputs_of_files

logger = get_logger(__name__)
COMMAND = "embed"
NETWORK = b"network"  # in the metadata of the parquet file


class Embeddings(NamedTuple):
    """N files and their embeddings N×d, float32."""

    files: list[str]
    vectors: np.ndarray


def embed(model: str, paths: list[str], batch_size: int = 64) -> Embeddings:
    """Compute the pooled features before the head of image files, or of all images in folders.

    model: a timm name, `hf-hub:owner/name`, `local-dir:path` or the folder of a run. paths: also files that
    `write_embeddings` has written for this network, which are read. Images that cannot be read are left out and named.

    Raises:
        UserError: the network cannot be loaded or pools its features to no vector, a path is not there, a folder holds
            no images, no image can be read, or a parquet file is of another network.
    """
    written = [_read(Path(expand(path)), model) for path in paths if path.endswith(".parquet")]
    files = list_files([path for path in paths if not path.endswith(".parquet")], COMMAND)
    found = [*written, _embed_files(model, files, batch_size)] if files else written
    if len({one.vectors.shape[1] for one in found}) > 1:
        raise UserError(f"{COMMAND}: the embeddings of the parquet files have other lengths than those of {model}.")
    return Embeddings([file for one in found for file in one.files], np.concatenate([one.vectors for one in found]))


def _embed_files(model: str, files: list[str], batch_size: int) -> Embeddings:
    network = load_file_network(model, COMMAND)

    def pooled(image: Tensor) -> Tensor:
        embedding: Any = network.model.forward_head(network.model.forward_features(image), pre_logits=True)
        if embedding.ndim != 2:
            raise UserError(f"{COMMAND}: {model} has no embedding: timm pools its features to no vector.")
        return embedding

    vectors: dict[str, Tensor] = {}
    with ProgressBar("images", len(files)) as bar:
        for done, (file, vector) in enumerate(outputs_of_files(network, pooled, files, batch_size), 1):
            if isinstance(vector, str):
                logger.warning("%s: left out: %s", file, vector)
            else:
                vectors[file] = vector
            bar.step(done)
    if not vectors:
        raise UserError(f"{COMMAND}: none of the {len(files)} image(s) can be read.")
    return Embeddings(list(vectors), torch.stack(list(vectors.values())).numpy())


def write_embeddings(embeddings: Embeddings, model: str, file: Path) -> None:
    """Write a parquet file with the columns path and embedding (a list of float32 of fixed length).

    Raises:
        UserError: it cannot be written.
    """
    length = embeddings.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.vectors.reshape(-1), pa.float32()), length)
    table = pa.table({"path": pa.array(embeddings.files, pa.string()), "embedding": vectors})
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({NETWORK: model.encode()}), sink)
    try:
        write_content(file, sink.getvalue().to_pybytes())
    except OSError as error:
        raise UserError(f"{COMMAND}: --output: {file} cannot be written: {error.strerror}.") from None


def _read(file: Path, model: str) -> Embeddings:
    try:
        table = pq.read_table(file, columns=["path", "embedding"])
        network = (table.schema.metadata or {})[NETWORK].decode()
        vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(f"{COMMAND}: {file} is no file of embeddings that this command has written: {error}") from None
    if network != model:
        raise UserError(f"{COMMAND}: {file} has the embeddings of {network}, not of {model}.")
    return Embeddings(table["path"].to_pylist(), vectors)


def most_similar(embeddings: Embeddings, query: Embeddings, count: int) -> list[tuple[str, float]]:
    """The `count` files nearest to the one of `query` by cosine, nearest first; without that file itself."""
    cosine, places = nearest(torch.from_numpy(embeddings.vectors), torch.from_numpy(query.vectors), count + 1)
    found = [(embeddings.files[i], c) for i, c in zip(places[0].tolist(), cosine[0].tolist(), strict=True)]
    return [pair for pair in found if pair[0] != query.files[0]][:count]
