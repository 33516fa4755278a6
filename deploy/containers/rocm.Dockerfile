# OpenZAYA for AMD GPUs:  docker build -f deploy/containers/rocm.Dockerfile -t openzaya:rocm .
#
# ROCm's versions and torch's belong together; the tag moves, so give the one that fits your driver: --build-arg BASE=…
# Any image with Python 3.11 or newer and torch 2.11 or newer will do; pin the digest that you have tested.
ARG BASE=rocm/pytorch:latest
FROM ${BASE}

# Extras of pyproject.toml, separated by commas.
ARG EXTRAS=local,train

# GPUs reach the container as devices:  docker run --device /dev/kfd --device /dev/dri --group-add video --ipc host …
WORKDIR /opt/openzaya
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src src
COPY recipes recipes
COPY deploy deploy

# The image's torch was built for its ROCm: hold it, whatever other packages would like.
RUN python -c "import torch; print('torch==' + torch.__version__)" > /tmp/torch.txt \
    && python -m pip install --no-cache-dir -c /tmp/torch.txt ".[${EXTRAS}]" \
    && rm /tmp/torch.txt \
    && openzaya --version

CMD ["bash", "deploy/node.sh"]
