# syntax=docker/dockerfile:1
# Linted by hadolint; not yet built or run, for want of a Docker engine.

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
# The caches keep crates and objects between builds; the binary is copied out,
# because a cache is no part of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin countersign \
    && install -D target/release/countersign /image/usr/local/bin/countersign \
    && install -d -m 0700 /image/data

# The example service: `docker build --target orders`. The server is named, too,
# so that the example takes the crates that it was built of.
FROM build AS build-orders
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked -p countersign -p orders --bin orders \
    && install -D target/release/orders /image/usr/local/bin/orders

FROM gcr.io/distroless/cc-debian12:nonroot AS orders
COPY --from=build-orders /image/usr/local/bin/orders /usr/local/bin/orders
USER 65532:65532
EXPOSE 9000
ENTRYPOINT ["/usr/local/bin/orders"]

# libc, libgcc_s and the certificates of the public authorities; no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/usr/local/bin/countersign /usr/local/bin/countersign
# The user of the image, by number, as Kubernetes' runAsNonRoot asks for.
COPY --from=build --chown=65532:65532 /image/data /data
USER 65532:65532
ENV COUNTERSIGN_LISTEN=0.0.0.0:50051 \
    COUNTERSIGN_HTTP_LISTEN=0.0.0.0:8081 \
    COUNTERSIGN_DATA_DIR=/data
VOLUME /data
EXPOSE 50051 8081
# No HEALTHCHECK: the orchestrator asks /livez and /readyz on port 8081.
ENTRYPOINT ["/usr/local/bin/countersign"]
CMD ["serve"]
