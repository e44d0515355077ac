"""Asks a running Triton server through NVIDIA's own clients; runs in the environment of that server.

usage: client.py HTTP_PORT GRPC_PORT MODEL CLIENTS IMAGE [IMAGE ...]

Writes one JSON document: the answers of each protocol, of all images in one request, of several clients at once, and
what becomes of a damaged image.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

OUTPUTS = ("label", "score", "index", "known")


def ask(module, client, model, images):
    """Return the answers to images in one request, or the server's refusal."""
    tensor = module.InferInput("encoded", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], dtype=object))
    try:
        result = client.infer(model, [tensor])
    except InferenceServerException as error:
        return {"error": str(error)}
    answer = {name: result.as_numpy(name) for name in OUTPUTS}
    answer["label"] = np.vectorize(lambda label: label.decode())(answer["label"])
    return {name: values.tolist() for name, values in answer.items()}


def main(http_port, grpc_port, model, clients, *paths):
    images = [Path(path).read_bytes() for path in paths]
    urls = {tritonclient.http: f"127.0.0.1:{http_port}", tritonclient.grpc: f"127.0.0.1:{grpc_port}"}
    found = {}
    for module, url in urls.items():
        name = module.__name__.rpartition(".")[2]
        client = module.InferenceServerClient(url)
        found[name] = {
            "one_by_one": [ask(module, client, model, [image]) for image in images],
            "together": ask(module, client, model, images),
            "damaged": ask(module, client, model, [images[0][: len(images[0]) // 3]]),
            "after": ask(module, client, model, images[:1]),
        }

    def work(number):
        client = tritonclient.grpc.InferenceServerClient(urls[tritonclient.grpc])
        answers = []
        for turn in range(len(images)):
            damaged = number == 0 and turn % 2 == 1
            image = b"no image" if damaged else images[(number + turn) % len(images)]
            answers.append([(number + turn) % len(images), damaged, ask(tritonclient.grpc, client, model, [image])])
        return answers

    with ThreadPoolExecutor(int(clients)) as pool:
        found["concurrent"] = [answer for answers in pool.map(work, range(int(clients))) for answer in answers]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
