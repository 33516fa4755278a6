# The reasoning service. With the bundled model:            docker build -t openzaya . && docker run -p 8000:8000 -e OPENZAYA_API_KEY=… openzaya
# Over other servers, without torch:  docker build --build-arg EXTRAS=serve,postgres . ; … openzaya --backend http://gpu:8000/v1
FROM python:3.12-slim AS build
ARG EXTRAS=local,serve,postgres
# An index with builds of torch for the CPU alone makes the image some gigabytes smaller.
ARG TORCH_INDEX=
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY src src
RUN python -m venv /openzaya \
    && case ",$EXTRAS," in *,local,*) /openzaya/bin/pip install --no-cache-dir \
       ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)" ;; esac \
    && /openzaya/bin/pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]"

FROM python:3.12-slim
# The compiled core of the CPU engine is built where it runs.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 openzaya && install -d -o openzaya /state
COPY --from=build /openzaya /openzaya
USER openzaya
ENV PATH=/openzaya/bin:$PATH XDG_STATE_HOME=/state PYTHONUNBUFFERED=1
VOLUME /state
EXPOSE 8000
HEALTHCHECK --interval=15s --start-period=60s CMD \
    python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=5)"
# Exec form: SIGTERM reaches the service, which drains.
ENTRYPOINT ["openzaya", "serve", "--host", "0.0.0.0"]
