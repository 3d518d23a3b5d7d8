#!/bin/sh
# Starts tritonserver with everything closed that serving does not need. Further options are passed on.
#
# TEMPER_REPOSITORY           the model repository; /models/repository
# TEMPER_ADMIN_KEY_FILE       file with the key of the restricted calls; without it nobody can make them
# TEMPER_CLIENT_SHM           true: clients may send images through shared memory
# TEMPER_VERSION_COMPATIBLE   true: plans that were built version compatible may run the host code they carry
set -eu

restricted="model-repository,trace,logging"
set -- --allow-client-shm="${TEMPER_CLIENT_SHM:-false}" "$@"
if [ "${TEMPER_CLIENT_SHM:-false}" != true ]; then
    restricted="shared-memory,$restricted"
fi
if [ "${TEMPER_VERSION_COMPATIBLE:-false}" = true ]; then
    set -- --backend-config=tensorrt,version-compatible=true "$@"
fi
if [ -n "${TEMPER_ADMIN_KEY_FILE:-}" ]; then
    key=$(cat "$TEMPER_ADMIN_KEY_FILE")
else
    key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
fi

# No polling and no loading by request: a repository that changes is served by a new container. One model that does
# not load leaves the others served, and /v2/health/ready says no.
exec tritonserver \
    --model-repository="${TEMPER_REPOSITORY:-/models/repository}" \
    --model-control-mode=none \
    --disable-auto-complete-config \
    --exit-on-error=false \
    --strict-readiness=true \
    --exit-timeout-secs=30 \
    --allow-sagemaker=false \
    --allow-vertex-ai=false \
    --http-max-input-size=67108864 \
    --grpc-max-response-pool-size=1024 \
    --grpc-restricted-protocol="$restricted:admin-key=$key" \
    --http-restricted-api="$restricted:admin-key=$key" \
    "$@"
