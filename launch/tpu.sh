#!/bin/bash
# Runs this checkout on all hosts of a Cloud TPU, and again if it was interrupted.
#
#   TPU=my-v5e-64 ZONE=us-west4-a launch/tpu.sh \
#       --config configs/videomae_k400.py --workdir gs://my-bucket/runs/k400
#
# Data on gs:// too. PYTHON names the interpreter of the hosts, 3.11 to 3.13.
set -eu
: "${TPU:?set it to the name of the TPU}" "${ZONE:?set it to the zone of the TPU}"
code=$(mktemp)
trap 'rm -f "$code"' EXIT

git archive --format=tar.gz HEAD > "$code"
gcloud compute tpus tpu-vm scp "$code" "$TPU:mvm.tar.gz" --zone="$ZONE" --worker=all

arguments=$(printf '%q ' "$@")
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
    set -u
    mkdir -p mvm && tar -xzf mvm.tar.gz -C mvm && cd mvm || exit 1
    ${PYTHON:-python3} -m pip install -q 'jax[tpu]' gcsfs -r requirements.txt || exit 1
    # 75: saved, or another was lost. 134: aborted by JAX because one was lost. 137, 143: killed.
    # 142: a step took too long.
    for _ in \$(seq 50); do
        code=0
        ${PYTHON:-python3} main.py $arguments || code=\$?
        case \$code in 75 | 134 | 137 | 142 | 143) sleep 20 ;; *) exit \$code ;; esac
    done
    exit \$code
"
