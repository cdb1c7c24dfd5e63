//! The committed code is what the `.proto` files give, byte for byte. `RHIZOME_BLESS=1` rewrites it.
#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;

/// Packages are found by walking this folder; the compiler resolves imports from it too.
fn proto_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto")
}

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen")
}

/// Every `.proto` below `folder`, sorted, so that the output does not depend on the file system.
fn proto_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(proto_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Compiles the protocol into `out`: one Rust file for each package, and the descriptor set without comments.
fn generate(out: &Path) {
    let mut compiler = protox::Compiler::new([proto_root()]).unwrap();
    compiler.include_imports(true).include_source_info(true).open_files(proto_files(&proto_root())).unwrap();
    let with_comments = compiler.file_descriptor_set();

    let mut bare = with_comments.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    fs::write(out.join("descriptor.bin"), bare.encode_to_vec()).unwrap();

    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]).out_dir(out);
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .out_dir(out)
        .compile_fds_with_config(with_comments, config)
        .unwrap();
}

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn committed_code_is_what_the_protocol_files_give() {
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());

    if std::env::var_os("RHIZOME_BLESS").is_some() {
        for name in listing(&committed()) {
            fs::remove_file(committed().join(name)).unwrap();
        }
        for name in listing(fresh.path()) {
            fs::copy(fresh.path().join(&name), committed().join(&name)).unwrap();
        }
    }

    let names = listing(fresh.path());
    assert_eq!(names, listing(&committed()), "files differ; run with RHIZOME_BLESS=1");
    for name in names {
        let same = fs::read(fresh.path().join(&name)).unwrap() == fs::read(committed().join(&name)).unwrap();
        assert!(same, "src/gen/{name} is stale; run with RHIZOME_BLESS=1");
    }
}

#[test]
fn the_descriptor_set_decodes_and_names_every_service() {
    let set = prost_types::FileDescriptorSet::decode(rhizome_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut services: Vec<String> = set
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())))
        .collect();
    services.sort();
    assert_eq!(
        services,
        [
            "rhizome.admin.v1.AdminIdentityService",
            "rhizome.admin.v1.AuthorityService",
            "rhizome.admin.v1.BundleAdminService",
            "rhizome.admin.v1.CertificateAdminService",
            "rhizome.admin.v1.ExplainService",
            "rhizome.admin.v1.LedgerService",
            "rhizome.admin.v1.NodeAdminService",
            "rhizome.admin.v1.RuleService",
            "rhizome.admin.v1.ServerService",
            "rhizome.admin.v1.TokenService",
            "rhizome.ca.v1.BundleService",
            "rhizome.ca.v1.CertificateService",
            "rhizome.node.v1.NodeService",
        ]
    );
}
