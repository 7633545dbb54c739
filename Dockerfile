# The server: `docker build -t optimd .`, or with database and Redis beside it `docker compose up` (docs/containers.md).
# torch's CUDA build, of several gigabytes, in place of the CPU build: --build-arg TORCH=2.13.0
FROM python:3.11-slim-bookworm AS dependencies
ARG TORCH=2.13.0+cpu
# Where pip finds torch's CPU build, and whatever else it is to look at beside its own index.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/optimd
RUN pip --python /opt/optimd/bin/python install -q "torch===$TORCH" || { \
      echo "pip knows no index of torch's CPU builds: taking the default build, several gigabytes (see README)"; \
      pip --python /opt/optimd/bin/python install "torch===${TORCH%+*}"; }
# What the server needs, ahead of the server itself: an edit of the code installs nothing anew.
COPY pyproject.toml /src/
WORKDIR /src
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *extras['server'], *extras['zoo'], sep='\n')" > requirements.txt \
 && pip --python /opt/optimd/bin/python install -q -r requirements.txt
# Headers, test programs and tests: a sixth of the whole.
RUN cd /opt/optimd/lib/python3.11/site-packages \
 && rm -rf torch/include torch/test numba/tests \
 && find torch/bin -type f ! -name torch_shm_manager -delete

FROM dependencies AS build
COPY README.md LICENSE ./
COPY client client
COPY service service
COPY migrations migrations
RUN pip --python /opt/optimd/bin/python install -q --no-deps --root /own .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin optimd \
 && install -d -o optimd -g optimd -m 700 /data \
 && install -d -o optimd -g optimd /var/cache/optimd
COPY --from=dependencies /opt/optimd /opt/optimd
COPY --from=build /own /
# numba keeps compiled updates in a folder that the server may write; those beside the code are not.
ENV PATH=/opt/optimd/bin:$PATH \
    NUMBA_CACHE_DIR=/var/cache/optimd \
    OPTIMD_HOST=0.0.0.0 \
    OPTIMD_PORT=8000 \
    OPTIMD_DATA=/data
# By number, so that whoever allows no root can see that this is none.
USER 10001:10001
RUN optimd-server --version
WORKDIR /data
EXPOSE 8000
# Alive, not ready: a server whose database is away goes on, and whoever ends unhealthy containers must not end it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["python", "-ISc", "import http.client, os, sys; \
server = http.client.HTTPConnection('127.0.0.1', int(os.environ['OPTIMD_PORT']), timeout=2); \
server.request('GET', '/healthz'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["optimd-server"]
CMD ["run"]
