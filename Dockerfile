# For aarch64 (and x86-64) hosts with Ascend NPUs. CANN comes from the base image, the driver from the host:
#
#     docker build --build-arg CANN_IMAGE=<an image with CANN 8.2, 8.3, 8.5 or 9.0 and Python 3.10 or 3.11> -t ascend_cpt .
#     docker run --rm -it --network host --ipc host --privileged \
#         -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi:ro \
#         -v /etc/ascend_install.info:/etc/ascend_install.info:ro -v /data:/data ascend_cpt
#
# `--network host`: the nodes of a job connect via the host's address. `--privileged` gives access to all NPUs; to select some, use
# --device=/dev/davinci0 ... --device=/dev/davinci_manager --device=/dev/devmm_svm --device=/dev/hisi_hdc instead.
# Images of CANN: https://quay.io/repository/ascend/cann. Without network access, put a folder made by
# scripts/make_wheelhouse.sh into the build context as wheelhouse/ and add --build-arg PIP_OPTIONS="--no-index --find-links wheelhouse".
ARG CANN_IMAGE
FROM ${CANN_IMAGE}

ARG PIP_OPTIONS=""
WORKDIR /opt/ascend_cpt
COPY . .
RUN python3 -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])' \
    && python3 -m pip install --no-cache-dir ${PIP_OPTIONS} -r requirements/base.txt \
        -c "requirements/constraints-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt"
ENV ASCEND_CPT_PYTHON=python3
# Loads CANN's environment.
ENTRYPOINT ["/bin/bash", "-c", "source /usr/local/Ascend/ascend-toolkit/set_env.sh && exec \"$0\" \"$@\""]
CMD ["bash"]
