# Builds and publishes a recipe's variants with the TensorRT of the server's month, on the GPU that will serve them.
FROM nvcr.io/nvidia/tensorrt:26.06-py3

RUN install -d -m 0755 -o 1000 -g 1000 /models /runs /recipes /home/temper
COPY pyproject.toml README.md LICENSE /opt/temper/
COPY builder /opt/temper/builder
COPY client /opt/temper/client
COPY imaging /opt/temper/imaging
COPY temper /opt/temper/temper
COPY backends /opt/temper/backends
COPY recipes /opt/temper/recipes
# The image's own Python, because its `tensorrt` must be the one that builds. The embedded server is not installed here,
# so plans are published for Triton's own backend.
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir "/opt/temper[builder]" \
    && python3 -c "import tensorrt; tensorrt.Builder; import temper.cli.main"

ENV HOME=/home/temper
WORKDIR /home/temper
VOLUME ["/models", "/runs"]
USER 1000:1000
ENTRYPOINT ["temper"]
CMD ["build", "/opt/temper/recipes/digits.toml", "--repository", "/models/repository", "--runs", "/runs"]
