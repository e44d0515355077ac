"""Save an open_clip model with random weights as a checkpoint, to try the whole path at real size without a download.

The accuracy of what is built from it means nothing; sizes, speed, fusion and parity do.
"""

import argparse
import logging
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save

from p4q_edge.runtime.storage import atomic_write


def main() -> None:
    """Write the checkpoint that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32", help="a model name of open_clip (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write, *.safetensors")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    args = parser.parse_args()
    # open_clip warns that nothing was loaded, which is what is wanted here.
    logging.getLogger().setLevel(logging.ERROR)
    torch.manual_seed(args.seed)
    state = open_clip.create_model(args.model).state_dict()
    contents = {name: tensor.contiguous() for name, tensor in state.items()}
    atomic_write(args.output, save(contents, {"license": "none: random weights"}), force=args.force)
    print(f"{args.output}  {args.model}, random weights, seed {args.seed}")


if __name__ == "__main__":
    main()
