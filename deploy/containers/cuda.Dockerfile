# OpenZAYA for NVIDIA GPUs:  docker build -f deploy/containers/cuda.Dockerfile -t openzaya:cuda .
#
# Any image with Python 3.11 or newer and torch 2.11 or newer will do; pin the digest that you have tested.
ARG BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-devel
FROM ${BASE}

# Extras of pyproject.toml, separated by commas.
ARG EXTRAS=local,train

# GPUs reach the container through the runtime:  docker run --gpus all --ipc host …
WORKDIR /opt/openzaya
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src src
COPY recipes recipes
COPY deploy deploy

# The image's torch was built for its CUDA: hold it, whatever other packages would like.
RUN python -c "import torch; print('torch==' + torch.__version__)" > /tmp/torch.txt \
    && python -m pip install --no-cache-dir -c /tmp/torch.txt ".[${EXTRAS}]" \
    && rm /tmp/torch.txt \
    && openzaya --version

CMD ["bash", "deploy/node.sh"]
