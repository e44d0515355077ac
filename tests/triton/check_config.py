"""Reads configurations with Triton's own protobuf messages; runs in the environment of a server.

usage: check_config.py CONFIG [CONFIG ...]

Writes the messages as one JSON document by path. A field or word that the message lacks is an error.
"""

import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

found = {}
for path in sys.argv[1:]:
    message = text_format.Parse(Path(path).read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    found[path] = json_format.MessageToDict(message, preserving_proto_field_name=True)
sys.stdout.write(json.dumps(found))
