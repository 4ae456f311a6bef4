# An image of the executor. "make executor" makes what it copies.
#
# portainer: repository=portainer/executor cpus=0.5 mem=256m
FROM busybox
COPY dist/portainer-executor /usr/local/bin/portainer-executor
ENTRYPOINT ["/usr/local/bin/portainer-executor"]
