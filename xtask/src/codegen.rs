//! Generates the messages of `crates/etcd-api` and `crates/engine-tikv` from their `.proto` files.
//!
//! The output is checked in, so building the workspace needs neither protoc nor the generators.
//! Invariant: the output depends on the `.proto` files and the locked generator versions alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use prost::Message;
use prost_build::Module;
use prost_types::FileDescriptorSet;

const DESCRIPTORS: &str = "descriptors.bin";
const HEADER: &str = "// Written by `cargo run -p xtask -- codegen` from the .proto files; do not edit.\n";

/// What one crate has generated.
struct Api {
    proto_dir: &'static str,
    out_dir: &'static str,
    /// Rust file of each protobuf package. A package that is not listed is an error, so that none is lost.
    files: &'static [(&'static str, &'static str)],
    /// Whether there are client stubs, and the descriptors for reflection, beside the messages.
    is_served: bool,
}

const APIS: [Api; 2] = [
    Api {
        proto_dir: "crates/etcd-api/proto",
        out_dir: "crates/etcd-api/src/generated",
        files: &[
            ("authpb", "authpb.rs"),
            ("etcdserverpb", "etcdserverpb.rs"),
            ("grpc.health.v1", "health.rs"),
            ("grpc.reflection.v1", "reflection_v1.rs"),
            ("grpc.reflection.v1alpha", "reflection_v1alpha.rs"),
            ("mvccpb", "mvccpb.rs"),
            ("v3electionpb", "v3electionpb.rs"),
            ("v3lockpb", "v3lockpb.rs"),
        ],
        is_served: true,
    },
    Api {
        proto_dir: "crates/engine-tikv/proto",
        out_dir: "crates/engine-tikv/src/generated",
        files: &[
            ("errorpb", "errorpb.rs"),
            ("keyspacepb", "keyspacepb.rs"),
            ("kvrpcpb", "kvrpcpb.rs"),
            ("metapb", "metapb.rs"),
            ("pdpb", "pdpb.rs"),
        ],
        is_served: false,
    },
];

/// File contents by file name.
pub(crate) type Output = BTreeMap<String, Vec<u8>>;

/// Writes the generated files and removes files that are generated no more.
pub(crate) fn write(root: &Path) -> anyhow::Result<()> {
    APIS.iter().try_for_each(|api| write_into(root, api.out_dir, &generate(root, api)?))
}

/// Fails when the checked-in files are not the ones [`fn@write`] would leave behind.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    APIS.iter().try_for_each(|api| check_against(root, api.out_dir, &generate(root, api)?, "codegen"))
}

/// Makes a directory of the workspace hold these files and no others.
pub(crate) fn write_into(root: &Path, directory: &str, wanted: &Output) -> anyhow::Result<()> {
    let out_dir = root.join(directory);
    fs::create_dir_all(&out_dir).with_context(|| format!("create {}", out_dir.display()))?;
    let present = read_dir(&out_dir)?;
    for (name, content) in wanted {
        // An unchanged file keeps its time stamp, so that cargo does not build it again.
        if present.get(name) != Some(content) {
            let path = out_dir.join(name);
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
            println!("wrote {directory}/{name}");
        }
    }
    for name in present.keys().filter(|name| !wanted.contains_key(*name)) {
        let path = out_dir.join(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        println!("removed {directory}/{name}");
    }
    Ok(())
}

/// Fails when a directory does not hold these files; says which task writes them.
pub(crate) fn check_against(root: &Path, directory: &str, wanted: &Output, task: &str) -> anyhow::Result<()> {
    let present = read_dir(&root.join(directory))?;
    let stale = differences(wanted, &present);
    if !stale.is_empty() {
        bail!("{directory} is stale ({}); run `cargo run -p xtask -- {task}`", stale.join(", "));
    }
    Ok(())
}

/// What keeps `present` from being `wanted`, one entry a file.
fn differences(wanted: &Output, present: &Output) -> Vec<String> {
    let missing_or_changed = wanted.iter().filter_map(|(name, content)| match present.get(name) {
        None => Some(format!("{name}: missing")),
        Some(found) if found != content => Some(format!("{name}: differs")),
        Some(_) => None,
    });
    let left_over = present.keys().filter(|name| !wanted.contains_key(*name)).map(|name| format!("{name}: left over"));
    missing_or_changed.chain(left_over).collect()
}

fn generate(root: &Path, api: &Api) -> anyhow::Result<Output> {
    let descriptors = compile(&root.join(api.proto_dir))?;

    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    if api.is_served {
        config.service_generator(
            tonic_prost_build::configure()
                .build_server(false)
                .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
                .service_generator(),
        );
    }
    let requests = descriptors
        .file
        .iter()
        .map(|file| (Module::from_protobuf_package_name(file.package()), file.clone()))
        .collect();
    let modules = config.generate(requests).context("generate Rust code")?;

    let files: BTreeMap<Module, &str> =
        api.files.iter().map(|(package, name)| (Module::from_protobuf_package_name(package), *name)).collect();
    let mut output = Output::new();
    for (module, code) in modules {
        let Some(name) = files.get(&module) else {
            bail!("package {module} has no file name in xtask/src/codegen.rs");
        };
        output.insert((*name).to_owned(), format!("{HEADER}{code}").into_bytes());
    }
    ensure!(output.len() == api.files.len(), "a package listed in xtask/src/codegen.rs has no .proto file");
    if api.is_served {
        output.insert(DESCRIPTORS.to_owned(), without_source_info(descriptors).encode_to_vec());
    }
    Ok(output)
}

/// Parses all `.proto` files below `proto_dir`; each file stands after the files it imports.
fn compile(proto_dir: &Path) -> anyhow::Result<FileDescriptorSet> {
    let mut protos = Vec::new();
    find_protos(proto_dir, &mut protos)?;
    // Directories list their entries in no fixed order.
    protos.sort();
    ensure!(!protos.is_empty(), "no .proto file in {}", proto_dir.display());

    let mut compiler = protox::Compiler::new([proto_dir])?;
    compiler.include_imports(true).include_source_info(true).open_files(&protos)?;
    Ok(compiler.file_descriptor_set())
}

fn find_protos(dir: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find_protos(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    Ok(())
}

/// Comments and positions are of no use to a reflection client, and they are most of the size.
fn without_source_info(mut descriptors: FileDescriptorSet) -> FileDescriptorSet {
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    descriptors
}

fn read_dir(dir: &Path) -> anyhow::Result<Output> {
    let mut output = Output::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let content = fs::read(entry.path()).with_context(|| format!("read {}", entry.path().display()))?;
        output.insert(name, content);
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(files: &[(&str, &str)]) -> Output {
        files.iter().map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_changed_a_missing_and_a_left_over_file_are_each_reported() {
        let wanted = output(&[("same", "1"), ("changed", "2"), ("missing", "3")]);
        let present = output(&[("same", "1"), ("changed", "x"), ("old", "4")]);
        assert_eq!(differences(&wanted, &present), ["changed: differs", "missing: missing", "old: left over"]);
        assert_eq!(differences(&wanted, &wanted), Vec::<String>::new());
    }

    #[test]
    fn the_output_is_the_same_each_time() {
        let root = crate::workspace_root().unwrap();
        for api in &APIS {
            let first = generate(&root, api).unwrap();
            let second = generate(&root, api).unwrap();
            assert!(differences(&first, &second).is_empty());
            assert_eq!(first.contains_key(DESCRIPTORS), api.is_served);
        }
    }
}
