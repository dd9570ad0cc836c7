# syntax=docker/dockerfile:1
# `multibox serve` in a container:
#
#     docker build -t multibox .
#     export MULTIBOX_TOKEN=$(openssl rand -hex 16)
#     docker run --rm -p 8000:8000 -e MULTIBOX_TOKEN multibox
#     docker run --rm -p 8000:8000 -e MULTIBOX_TOKEN -v $PWD/models:/models:ro multibox cells.onnx
#
# docs/deploy.md tells more. OpenVINO, which runs exported files faster on many CPUs: --build-arg PACKAGES=openvino

FROM python:3.13-slim AS build
ARG PACKAGES=""
WORKDIR /build
RUN ["python", "-m", "venv", "/opt/multibox"]
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
# Without PyTorch: built-in models and exported files run without it
RUN /opt/multibox/bin/pip install --no-cache-dir --disable-pip-version-check '.[serve]' ${PACKAGES}

FROM python:3.13-slim
RUN ["useradd", "--system", "--uid", "10001", "--no-create-home", "--shell", "/usr/sbin/nologin", "multibox"]
COPY --from=build /opt/multibox /opt/multibox
ENV PATH=/opt/multibox/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001
# Mount model files here: a relative name means a file of this folder
WORKDIR /models
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
# As a list, without a shell, so that the server itself gets SIGTERM and answers what it has accepted. It listens to all
# addresses of the container and therefore refuses to start without MULTIBOX_TOKEN. Probes and proxies ask under names
# that the image cannot know; the token guards what --allow-host guards otherwise
ENTRYPOINT ["multibox", "serve", "--host", "0.0.0.0", "--port", "8000", "--log", "json", "--allow-host", "*"]
CMD ["coco"]
