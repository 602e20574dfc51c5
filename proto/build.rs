//! Compiles the protos with protox, so that a build needs no protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: [&str; 7] = [
    "countersign/v1/auth.proto",
    "countersign/v1/reason.proto",
    "countersign/v1/role.proto",
    "countersign/v1/session.proto",
    "countersign/v1/token.proto",
    "countersign/v1/trust.proto",
    "countersign/v1/user.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=countersign");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Source info keeps the comments, so that `grpcurl describe` shows them.
    let descriptors = protox::Compiler::new(["."])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?
        .file_descriptor_set();
    fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(env::var_os("CARGO_FEATURE_CLIENT").is_some())
        .build_server(env::var_os("CARGO_FEATURE_SERVER").is_some())
        // Ordered maps, so that one message has one encoding.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
