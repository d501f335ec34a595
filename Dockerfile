# For aarch64 (and x86-64) hosts with Ascend NPUs. CANN comes from the base image, the driver from the host. The base image is
# named by its digest (`docker buildx imagetools inspect IMAGE:TAG` prints it): a tag can be moved to another image later.
#
#     docker build --build-arg CANN_IMAGE=quay.io/ascend/cann@sha256:<digest> \
#         --build-arg USER_ID="$(id -u)" --build-arg GROUP_ID="$(id -g)" -t ascend_cpt .
#     docker run --rm -it --network host --ipc host --cap-drop ALL --security-opt no-new-privileges \
#         $(printf -- '--device=%s ' /dev/davinci[0-9]* /dev/davinci_manager /dev/devmm_svm /dev/hisi_hdc) \
#         --group-add "$(stat -c %g /dev/davinci0)" \
#         -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi:ro \
#         -v /etc/ascend_install.info:/etc/ascend_install.info:ro -v /data:/data ascend_cpt
#
# CANN 8.2, 8.3, 8.5 or 9.0 with Python 3.10 or 3.11: https://quay.io/repository/ascend/cann. For an image of your own without a
# digest, add --build-arg ALLOW_TAG=1. The container runs as USER_ID:GROUP_ID, not as root: it needs write access to /data, and the
# group of the devices (--group-add) gives access to the NPUs. The devices are named one by one, so --privileged is not needed;
# name fewer to use some of the NPUs. `--network host`: the nodes of a job connect via the host's address.
# Without network access, put a folder made by scripts/make_wheelhouse.sh into the build context as wheelhouse/ and add
# --build-arg PIP_OPTIONS="--no-index --find-links wheelhouse".
ARG CANN_IMAGE
FROM ${CANN_IMAGE}

ARG CANN_IMAGE
ARG ALLOW_TAG=""
ARG USER_ID=1000
ARG GROUP_ID=1000
ARG PIP_OPTIONS=""
WORKDIR /opt/ascend_cpt
COPY . .
RUN case "$ALLOW_TAG$CANN_IMAGE" in \
        1*|*@sha256:*) ;; \
        *) echo "error: CANN_IMAGE=$CANN_IMAGE has no digest; give IMAGE@sha256:<digest>, or --build-arg ALLOW_TAG=1" >&2; exit 2 ;; \
    esac \
    && if [ "$USER_ID" = 0 ]; then echo "error: USER_ID is 0 (root); give that of an ordinary user, as --build-arg USER_ID=1000" >&2; exit 2; fi
# An environment of its own: the packages of the base image stay as CANN's operator compiler needs them, and are seen.
RUN python3 -m venv --system-site-packages /opt/venv \
    && version="$(/opt/venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" \
    && /opt/venv/bin/python -m pip install --no-cache-dir ${PIP_OPTIONS} --no-deps --require-hashes \
        -r "requirements/lock/installer-$version.txt" \
    && /opt/venv/bin/python -m pip install --no-cache-dir ${PIP_OPTIONS} --no-deps --require-hashes --no-build-isolation \
        -r "requirements/lock/base-$version.txt"
# The code belongs to root; the user may only add files beside it (output/, and CANN's kernel_meta/).
RUN groupadd --gid "$GROUP_ID" --non-unique cpt && useradd --uid "$USER_ID" --gid "$GROUP_ID" --non-unique --create-home cpt \
    && chown cpt /opt/ascend_cpt
USER cpt
ENV ASCEND_CPT_PYTHON=/opt/venv/bin/python
# Loads CANN's environment.
ENTRYPOINT ["/bin/bash", "-c", "source /usr/local/Ascend/ascend-toolkit/set_env.sh && exec \"$0\" \"$@\""]
CMD ["bash"]
