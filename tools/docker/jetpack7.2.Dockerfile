# P4Q Edge on JetPack 7.2: Ubuntu 24.04, Python 3.12, CUDA 13.2, TensorRT 10.16. Written from documentation; NOT RUN on
# a board. From JetPack 7.2 on, Orin and Thor run NVIDIA's ordinary ARM64 (SBSA) containers. Build in the root of a
# checkout:
#   docker build -f tools/docker/jetpack7.2.Dockerfile -t p4q-edge:jetpack7.2 .
#   docker run --rm --runtime nvidia -v "$PWD:/data" p4q-edge:jetpack7.2 build model.p4q --engine out.plan
# BASE is any image with TensorRT 10.16 for Python 3.12 whose CUDA the board's driver runs; plans belong to the
# TensorRT inside the image, not to the board's.
ARG BASE=nvcr.io/nvidia/tensorrt:26.04-py3
FROM ${BASE}
COPY runtime /opt/p4q-edge/runtime
RUN python3 -m venv --system-site-packages /opt/p4q-edge/venv \
    && /opt/p4q-edge/venv/bin/pip install --no-cache-dir /opt/p4q-edge/runtime
ENV PATH=/opt/p4q-edge/venv/bin:${PATH}
WORKDIR /data
ENTRYPOINT ["p4q-edge"]
CMD ["doctor", "--backend", "tensorrt"]
