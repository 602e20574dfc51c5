//! The table against the descriptors.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::*;

fn rpcs(descriptors: &[u8]) -> Vec<String> {
    let set = FileDescriptorSet::decode(descriptors).unwrap();
    let mut paths = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let (package, service) = (file.package(), service.name());
                paths.push(format!("/{package}.{service}/{}", method.name()));
            }
        }
    }
    paths
}

#[test]
fn every_rpc_has_exactly_one_row_and_no_row_names_another() {
    let known: BTreeSet<String> = [
        countersign_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ]
    .into_iter()
    .flat_map(rpcs)
    .collect();
    let rows: Vec<String> = ROWS.iter().map(|row| row.path.to_owned()).collect();
    let unique: BTreeSet<String> = rows.iter().cloned().collect();
    assert!(known.len() > 25, "the descriptors hold few RPCs: {known:?}");
    assert_eq!(unique, known);
    assert_eq!(rows.len(), unique.len());
}

#[test]
fn what_validation_needs_never_needs_the_database() {
    let follows = |row: &Row| row.path == "/countersign.v1.AuditService/WatchEvents";
    for row in ROWS.iter().filter(|row| !follows(row)) {
        let from_memory = matches!(row.class, Class::Validate | Class::Stream);
        assert_eq!(row.needs_database, !from_memory, "{}", row.path);
    }
}
