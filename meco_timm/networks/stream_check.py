"""Try a stream with one image, so that what a network cannot do is said before any training."""

from typing import TYPE_CHECKING

from meco_timm.common import UserError, first_line, get_logger

if TYPE_CHECKING:  # a stream is checked where it is made
    from meco_timm.networks.streams import Stream

logger = get_logger(__name__)


def check_stream(stream: "Stream", name: str, role: str) -> "Stream":
    """Check the stream with one image, so that errors are found before any training."""
    available = len(stream.model.feature_info)
    if stream.taps and stream.alignment.blocks > available:
        raise UserError(
            f"alignment.blocks: {name} ({role}) has {available} blocks to compare, not {stream.alignment.blocks}."
        )
    if not (stream.taps or stream.has_logits or stream.has_embedding):
        raise UserError(
            f"{role}: it gives blocks only, but alignment.blocks is 0, so it would teach nothing. "
            "Have blocks compared, for example with losses.blocks=3."
        )
    device = next(stream.model.parameters()).device
    try:
        stream.to(device).eval()
        _try_embedding(stream, name, role)
        _ = stream.block_shapes
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"{role}: {name} has no head to classify with; as a teacher it can give blocks: {error}"
        ) from error
    except Exception as error:
        key = "data.image_size" if role == "student" else f"{role}.size"
        reason = first_line(error)
        raise UserError(f"{key}: {name} cannot take images of {stream.size} × {stream.size}: {reason}") from error
    return stream


def _try_embedding(stream: "Stream", name: str, role: str) -> None:
    """Without a pooled embedding, as timm's encoders `*_enc`, a teacher gives the rest."""
    if not stream.has_embedding:
        return
    try:
        embedding = stream.try_out().embedding
        missing = embedding is None or embedding.ndim != 2
    except (NotImplementedError, TypeError):  # TypeError: its forward_head knows no pre_logits
        missing = True
    if missing and (role == "student" or not (stream.taps or stream.has_logits)):
        raise UserError(f"{role}: {name} has no embedding: timm does not pool its features to a vector.")
    if missing:
        logger.info("%s: %s has no pooled embedding, so it gives the rest only", role, name)
        stream.has_embedding = False
