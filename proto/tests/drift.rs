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

/// The standards of others, kept apart: an authority's reflection must not offer what only an agent serves.
const FOREIGN: &[(&str, &str)] = &[("workload/workload.proto", "workload.bin")];

/// Messages that carry a private key or a bearer token. `src/lib.rs` writes their `Debug` by hand.
const SECRETS: &[&str] =
    &[".X509SVID", ".JWTSVID", ".WITSVID", ".ValidateJWTSVIDRequest", ".rhizome.ca.v1.JwtSvid"];

/// Compiles the protocol into `out`: one Rust file for each package, and the descriptor sets without comments.
fn generate(out: &Path) {
    let is_foreign = |file: &PathBuf| FOREIGN.iter().any(|(name, _)| file.ends_with(name));
    let (foreign, ours): (Vec<_>, Vec<_>) = proto_files(&proto_root()).into_iter().partition(is_foreign);
    assert_eq!(foreign.len(), FOREIGN.len(), "every row of FOREIGN names a file");
    compile(&ours, "descriptor.bin", out);
    for (name, descriptors) in FOREIGN {
        compile(&[proto_root().join(name)], descriptors, out);
    }
}

fn compile(files: &[PathBuf], descriptors: &str, out: &Path) {
    let mut compiler = protox::Compiler::new([proto_root()]).unwrap();
    compiler.include_imports(true).include_source_info(true).open_files(files).unwrap();
    let with_comments = compiler.file_descriptor_set();

    let mut bare = with_comments.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    fs::write(out.join(descriptors), bare.encode_to_vec()).unwrap();

    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]).skip_debug(SECRETS).default_package_filename("workload").out_dir(out);
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .codec_path("crate::codec::Codec")
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
    assert_eq!(
        services(rhizome_proto::FILE_DESCRIPTOR_SET),
        [
            "rhizome.admin.v1.AdminIdentityService",
            "rhizome.admin.v1.AuthorityService",
            "rhizome.admin.v1.BundleAdminService",
            "rhizome.admin.v1.CertificateAdminService",
            "rhizome.admin.v1.ClusterService",
            "rhizome.admin.v1.ExplainService",
            "rhizome.admin.v1.FederationService",
            "rhizome.admin.v1.LedgerService",
            "rhizome.admin.v1.NodeAdminService",
            "rhizome.admin.v1.RotationService",
            "rhizome.admin.v1.RuleService",
            "rhizome.admin.v1.ServerService",
            "rhizome.admin.v1.TokenService",
            "rhizome.ca.v1.BundleService",
            "rhizome.ca.v1.CertificateService",
            "rhizome.ca.v1.JwtService",
            "rhizome.node.v1.NodeService",
            "rhizome.upstream.v1.UpstreamService",
        ]
    );
}

#[test]
fn the_workload_api_has_no_package_and_every_method_of_the_standard() {
    assert_eq!(services(rhizome_proto::workload::FILE_DESCRIPTOR_SET), [".SpiffeWorkloadAPI"]);
    assert_eq!(rhizome_proto::workload::spiffe_workload_api_server::SERVICE_NAME, "SpiffeWorkloadAPI");
    let set = prost_types::FileDescriptorSet::decode(rhizome_proto::workload::FILE_DESCRIPTOR_SET).unwrap();
    let methods = set.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
    let shown: Vec<String> = methods
        .map(|it| {
            let (asks, answers) = (it.input_type(), it.output_type());
            format!(
                "{}({asks}) -> {}{answers}",
                it.name(),
                if it.server_streaming() { "stream " } else { "" }
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "FetchX509SVID(.X509SVIDRequest) -> stream .X509SVIDResponse",
            "FetchX509Bundles(.X509BundlesRequest) -> stream .X509BundlesResponse",
            "FetchJWTSVID(.JWTSVIDRequest) -> .JWTSVIDResponse",
            "FetchJWTBundles(.JWTBundlesRequest) -> stream .JWTBundlesResponse",
            "ValidateJWTSVID(.ValidateJWTSVIDRequest) -> .ValidateJWTSVIDResponse",
            "FetchWITSVID(.WITSVIDRequest) -> stream .WITSVIDResponse",
            "FetchWITBundles(.WITBundlesRequest) -> stream .WITBundlesResponse",
        ]
    );
}

#[test]
fn a_message_with_a_key_or_a_token_does_not_show_it() {
    use rhizome_proto::workload::{Jwtsvid, ValidateJwtsvidRequest, Witsvid, X509svid, X509svidResponse};
    let svid =
        X509svid { spiffe_id: "spiffe://a/b".to_owned(), x509_svid_key: "KEY".into(), ..Default::default() };
    let shown = [
        format!("{:?}", X509svidResponse { svids: vec![svid], ..Default::default() }),
        format!("{:?}", Jwtsvid { svid: "KEY".to_owned(), ..Default::default() }),
        format!(
            "{:?}",
            Witsvid { wit_svid: "KEY".to_owned(), wit_svid_key: "KEY".to_owned(), ..Default::default() }
        ),
        format!("{:?}", ValidateJwtsvidRequest { svid: "KEY".to_owned(), ..Default::default() }),
    ];
    for text in &shown {
        assert!(text.contains("(hidden)") && !text.contains("KEY"), "{text}");
    }
    assert!(shown[0].contains("spiffe://a/b"));
}

/// Every service of an encoded descriptor set as `package.Name`, sorted.
fn services(descriptors: &[u8]) -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(descriptors).unwrap();
    let mut services: Vec<String> = set
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())))
        .collect();
    services.sort();
    services
}
