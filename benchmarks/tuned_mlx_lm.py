"""Run mlx_lm.server with what Osaurus gives MLX on this machine: the same BLAS, the same float32 weights.

    python benchmarks/tuned_mlx_lm.py MODEL_FOLDER --port 8080

What is left of the difference between the two servers is their own doing. The weights are written to a folder that is
removed at the end, by a process of its own, so that the memory it takes is not the server's; other options are
mlx_lm.server's.
"""

import json
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path

from osaurus.engine.backend import prepare


def expand(folder: Path, expanded: Path) -> None:
    """Write the model in `folder` to another, as float32."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import dequantize_model, load_model

    network, config = load_model(folder, lazy=True)
    dequantize_model(network)
    weights = {name: array.astype(mx.float32) for name, array in tree_flatten(network.parameters())}
    mx.save_safetensors(str(expanded / "model.safetensors"), weights, {"format": "mlx"})
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copy(path, expanded)
    config = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (expanded / "config.json").write_text(json.dumps(config))


def main() -> None:
    """Serve until interrupted."""
    prepare(Path.home() / ".osaurus" / "cache")
    from mlx_lm.server import main as serve

    folder, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as expanded:
        writer = multiprocessing.get_context("spawn").Process(target=expand, args=(Path(folder), Path(expanded)))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit(writer.exitcode)
        sys.argv = ["mlx_lm.server", "--model", expanded, *options]
        serve()


if __name__ == "__main__":
    main()
