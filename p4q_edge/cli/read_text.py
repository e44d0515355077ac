"""What the toolkit lends to `p4q-edge search`: the embedding of any words, by the text tower of a recipe's model."""

from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.recipe import read_recipe
from p4q_edge.runtime.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np


def text_embedding(recipe: Path, text: str, *, weights_sha256: str) -> "np.ndarray":
    """Return the embedding of a text, (dim,) float32, L2-normalized.

    Args:
        recipe: names the model and its weights.
        text: as it is; no template is filled.
        weights_sha256: digest of the checkpoint that the images were embedded with.

    Raises:
        UsageError: the recipe or its model cannot be used.
        ArtifactError: the recipe's model is another one.
    """
    # Imported here: it needs torch, and a wrong recipe shows before.
    chosen = read_recipe(recipe)
    import numpy as np

    from p4q_edge.models import encoder_of, template_embeddings
    from p4q_edge.stages import open_model

    model = open_model(chosen)
    if model.info.weights_sha256 != weights_sha256:
        raise ArtifactError(
            f"{recipe} names the model {model.info.name} ({model.info.weights_sha256[:12]}); the images were embedded "
            f"with another one ({weights_sha256[:12]}). Name the recipe that the engine was built from."
        )
    encode = encoder_of(model.clip)
    rows = template_embeddings(encode, model.tokenizer, [text], templates=(), class_prompts={text: [text]})
    return np.asarray(rows[0].numpy(), np.float32)
