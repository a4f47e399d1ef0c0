"""Makes one picture with grpcio and writes the PNG to standard output.

usage: generate.py GENERATED_CODE_FOLDER ADDRESS PROMPT SIZE SEED
"""

import sys

folder, address, prompt, size, seed = sys.argv[1:]
sys.path.insert(0, folder)

import grpc
from imagegen.v1 import image_pb2, image_pb2_grpc

with grpc.insecure_channel(address) as channel:
    stub = image_pb2_grpc.ImageServiceStub(channel)
    model = stub.GetModel(image_pb2.GetModelRequest(), timeout=10)
    if not model.ready:
        sys.exit(f"{model.name} is not ready")
    request = image_pb2.GenerateRequest(prompt=prompt, width=int(size), height=int(size), seed=int(seed), steps=4)
    steps = []
    picture = None
    for event in stub.Generate(request, timeout=60):
        kind = event.WhichOneof("event")
        if kind == "progress":
            steps.append(event.progress.step)
        elif kind == "image":
            picture = event.image.data
    if steps != sorted(steps) or not steps or steps[-1] != 4:
        sys.exit(f"progress came as {steps}")
    if picture is None:
        sys.exit("no picture came")
    sys.stdout.buffer.write(picture)
