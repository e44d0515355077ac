# P4Q Edge on JetPack 6.2: Ubuntu 22.04, Python 3.10, CUDA 12.6, TensorRT 10.3. Written from documentation; NOT RUN on a
# board. Build in the root of a checkout, run with NVIDIA's container runtime:
#   docker build -f tools/docker/jetpack6.Dockerfile -t p4q-edge:jetpack6 .
#   docker run --rm --runtime nvidia -v "$PWD:/data" p4q-edge:jetpack6 build model.p4q --engine out.plan
# The release must be the board's: `head -1 /etc/nv_tegra_release` says R36, REVISION: 4.0 for r36.4.0.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}
# TensorRT's Python module is an apt package of the system's Python; no index has it for JetPack 6.
# The release of JetPack decides the versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-libnvinfer python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY runtime /opt/p4q-edge/runtime
# The environment must see the system's packages, or it has no TensorRT.
RUN python3 -m venv --system-site-packages /opt/p4q-edge/venv \
    && /opt/p4q-edge/venv/bin/pip install --no-cache-dir /opt/p4q-edge/runtime
ENV PATH=/opt/p4q-edge/venv/bin:${PATH}
WORKDIR /data
# The GPU's libraries come from the board when a container starts, so nothing can be checked before.
ENTRYPOINT ["p4q-edge"]
CMD ["doctor", "--backend", "tensorrt"]
