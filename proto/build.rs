//! Compiles the protos with protox, so that a build needs no protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;

const FILES: [&str; 11] = [
    "countersign/v1/api_key.proto",
    "countersign/v1/audit.proto",
    "countersign/v1/auth.proto",
    "countersign/v1/key.proto",
    "countersign/v1/reason.proto",
    "countersign/v1/role.proto",
    "countersign/v1/session.proto",
    "countersign/v1/token.proto",
    "countersign/v1/trust.proto",
    "countersign/v1/user.proto",
    "envoy/service/auth/v3/external_auth.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for folder in ["countersign", "envoy", "google"] {
        println!("cargo:rerun-if-changed={folder}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Source info keeps the comments, so that `grpcurl describe` shows them.
    let descriptors = protox::Compiler::new(["."])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?
        .file_descriptor_set();
    fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec())?;
    let client = env::var_os("CARGO_FEATURE_CLIENT").is_some();
    let server = env::var_os("CARGO_FEATURE_SERVER").is_some();
    let generator = || {
        tonic_prost_build::configure()
            .build_client(client)
            .extern_path(".google.rpc", "::tonic_types::pb")
            // Ordered maps, so that one message has one encoding.
            .btree_map(".")
    };
    generator()
        .build_server(server)
        .compile_fds(without("envoy.", &descriptors))?;
    // Whoever serves Envoy must answer even what is no message, which a
    // generated server refuses.
    generator()
        .build_server(false)
        .compile_fds(without("countersign.", &descriptors))?;
    Ok(())
}

/// All files but those of some packages.
fn without(packages: &str, set: &FileDescriptorSet) -> FileDescriptorSet {
    let files = set.file.iter();
    FileDescriptorSet {
        file: files
            .filter(|file| !file.package().starts_with(packages))
            .cloned()
            .collect(),
    }
}
