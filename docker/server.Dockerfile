# Triton with Temper's backends: serves what `temper build` published, on GPUs and on CPUs.
# 26.06 is the first release that is clear of Triton's security bulletins; builder.Dockerfile is of the same month, as
# a plan runs on the TensorRT that built it (builder/engines/containers.py).
FROM nvcr.io/nvidia/tritonserver:26.06-py3

COPY docker/server-requirements.txt /tmp/requirements.txt
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt \
    # Each in a process of its own, as each is used; a library that the image lacks ends the build.
    && for each in openvino cuda.bindings.runtime tensorrt_rtx tensorrt_bindings PIL cryptography; do \
        python3 -c "import $each" || exit 1; done \
    # TensorRT-RTX's kernels are code: nobody but the server's user may write them, or the plugin leaves them alone.
    && install -d -m 0700 -o 1000 -g 1000 /var/cache/temper

# Owned by root: the server cannot change the code that it runs.
COPY --chown=0:0 --chmod=0555 docker/serve.py /opt/temper/serve.py
COPY --chown=0:0 temper/serve/_launch.py temper/serve/_stubs.py /opt/temper/temper/serve/
COPY --chown=0:0 backends/temper/artifact.py backends/temper/verdict.py /opt/temper/temper/backends/temper/
COPY --chown=0:0 backends/temper /opt/tritonserver/backends/temper
COPY --chown=0:0 backends/temper_mean /opt/tritonserver/backends/temper_mean
COPY --chown=0:0 backends/temper_defence /opt/tritonserver/backends/temper_defence
# By name: the folder's link to imaging/ would lead nowhere there.
COPY --chown=0:0 backends/temper_decode/model.py /opt/tritonserver/backends/temper_decode/
COPY --chown=0:0 imaging /opt/tritonserver/backends/temper_decode/imaging

ENV TEMPER_CACHE_DIR=/var/cache/temper \
    PYTHONDONTWRITEBYTECODE=1
VOLUME ["/var/cache/temper"]

# The image's triton-server, by number, so that Kubernetes sees that it is not root.
USER 1000:1000
EXPOSE 8000 8001 8002
# Every model is asked for, as a server without any is alive as well, and those that are not ready are named. One that does
# not load is no reason to start the others anew, which Docker alone does not do; where it is (Swarm), ask /v2/health/live.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "/opt/temper/serve.py", "--check"]
CMD ["python3", "/opt/temper/serve.py"]
