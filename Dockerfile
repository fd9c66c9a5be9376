# An image that runs `lpa`.
#
#     docker build --tag lpa .
#     docker run --rm --volume "$PWD:/work" lpa demo
#
# With CUDA, for machines with NVIDIA's container toolkit:
#
#     docker build --tag lpa:cuda --build-arg DEVICE=cuda .
#     docker run --rm --gpus all --volume "$PWD:/work" lpa:cuda train recipe.yaml --data.path data --out runs/lpa
FROM python:3.12-slim

ARG DEVICE=cpu

# torch.compile builds its kernels with a compiler of the system, whichever the image's release has.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# torch changes seldom, so it has a layer of its own.
WORKDIR /opt/lpa
COPY constraints.txt ./
COPY scripts/install_torch scripts/
RUN scripts/install_torch python "$DEVICE"

COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY recipes recipes
RUN pip install --no-cache-dir --constraint constraints.txt ".[glue,harness,sentencepiece]"

RUN useradd --uid 1000 --create-home lpa && mkdir /work && chown 1000 /work
USER 1000
WORKDIR /work
ENTRYPOINT ["lpa"]
CMD ["--help"]
