# P4Q Edge on a CPU: the runtime with ONNX Runtime and nothing else, as a user without rights. NOT BUILT by its authors, who
# had no container engine: its packages were installed the same way (156 MB on x86_64, Python 3.12; the base image comes
# on top) and ran, and hadolint finds nothing. In the root of a
# checkout:
#   docker build -f tools/docker/cpu.Dockerfile -t p4q-edge:cpu .
#   docker run --rm -v "$PWD:/data" --user "$(id -u)" p4q-edge:cpu build model.p4q --engine out.onnx
#   docker run --rm -v "$PWD:/data:ro" --read-only --network none p4q-edge:cpu classify out.onnx photos
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
COPY runtime /opt/source/runtime
COPY tools/constraints.txt /opt/source/constraints.txt
# The last image gets neither pip nor what only it needs.
RUN python -m venv --without-pip /opt/p4q-edge \
    && pip --python /opt/p4q-edge/bin/python install --no-cache-dir --no-compile \
        --constraint /opt/source/constraints.txt "/opt/source/runtime[onnxruntime]"

FROM ${BASE}
COPY --from=build /opt/p4q-edge /opt/p4q-edge
# Compiled modules would go where this user may not write.
ENV PATH=/opt/p4q-edge/bin:${PATH} PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["p4q-edge"]
CMD ["doctor", "--backend", "onnxruntime"]
