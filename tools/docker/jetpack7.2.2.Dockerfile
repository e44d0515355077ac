# P4Q Edge on JetPack 7.2.2 or newer with TensorRT 11.4.1: Ubuntu 24.04, Python 3.12, CUDA 13; AGX Orin and Thor only.
# Written from documentation; NOT RUN on a board. No image with TensorRT 11.4.1 is known to us, so BASE is the one of
# JetPack 7.2, and NVIDIA's SBSA packages of TensorRT 11.4.1, which you download into tools/docker/tensorrt11/, replace
# its TensorRT. Build in the root of a checkout:
#   docker build -f tools/docker/jetpack7.2.2.Dockerfile -t p4q-edge:jetpack7.2.2 .
#   docker run --rm --runtime nvidia -v "$PWD:/data" p4q-edge:jetpack7.2.2 build model.p4q --engine out.plan
ARG BASE=nvcr.io/nvidia/tensorrt:26.04-py3
FROM ${BASE}
COPY tools/docker/tensorrt11/*.deb /opt/tensorrt11/
# The release of JetPack decides the versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends --allow-downgrades /opt/tensorrt11/*.deb python3-venv \
    && rm -rf /var/lib/apt/lists/* /opt/tensorrt11
COPY runtime /opt/p4q-edge/runtime
RUN python3 -m venv --system-site-packages /opt/p4q-edge/venv \
    && /opt/p4q-edge/venv/bin/pip install --no-cache-dir /opt/p4q-edge/runtime
ENV PATH=/opt/p4q-edge/venv/bin:${PATH}
WORKDIR /data
# `doctor` names the TensorRT that is found; it must be 11.4.1 or newer.
ENTRYPOINT ["p4q-edge"]
CMD ["doctor", "--backend", "tensorrt"]
