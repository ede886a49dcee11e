//! Generates `crates/zoo/src/rewrite/generated` from the API modules of Kubernetes.
//!
//! A `.proto` file says which fields a message has on the wire; the Go struct next to it says what a field is called in JSON, and whether it
//! is a part of its parent there. Names, numbers and types are all that is taken.
//!
//! Invariant: the output depends on the modules named in `tests/tools/kubernetes/go.mod` alone. They aren't needed to build the workspace, or
//! to verify it: a test of this package compares, as it runs where the tools were built.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use protox::file::{File, FileResolver};

use crate::codegen::Output;

/// Where the output is.
pub(crate) const OUT_DIR: &str = "crates/zoo/src/rewrite/generated";

const HEADER: &str =
    "// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.\n";
const TOOLS: &str = "tests/tools/kubernetes";
const MODULES: [&str; 3] = ["k8s.io/api", "k8s.io/apimachinery", "k8s.io/apiextensions-apiserver"];

/// A Go package with a `.proto` file: its path, what the tables call it, the API group and version that it serves.
const PACKAGES: [(&str, &str, &str, &str); 26] = [
    ("k8s.io/apimachinery/pkg/api/resource", "quantity", "", ""),
    ("k8s.io/apimachinery/pkg/runtime", "runtime", "", ""),
    ("k8s.io/apimachinery/pkg/util/intstr", "intstr", "", ""),
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "meta.v1", "meta.k8s.io", "v1"),
    ("k8s.io/api/admissionregistration/v1", "admissionregistration.v1", "admissionregistration.k8s.io", "v1"),
    ("k8s.io/api/apps/v1", "apps.v1", "apps", "v1"),
    ("k8s.io/api/authentication/v1", "authentication.v1", "authentication.k8s.io", "v1"),
    ("k8s.io/api/authorization/v1", "authorization.v1", "authorization.k8s.io", "v1"),
    ("k8s.io/api/autoscaling/v1", "autoscaling.v1", "autoscaling", "v1"),
    ("k8s.io/api/autoscaling/v2", "autoscaling.v2", "autoscaling", "v2"),
    ("k8s.io/api/batch/v1", "batch.v1", "batch", "v1"),
    ("k8s.io/api/certificates/v1", "certificates.v1", "certificates.k8s.io", "v1"),
    ("k8s.io/api/coordination/v1", "coordination.v1", "coordination.k8s.io", "v1"),
    ("k8s.io/api/core/v1", "core.v1", "", "v1"),
    ("k8s.io/api/discovery/v1", "discovery.v1", "discovery.k8s.io", "v1"),
    ("k8s.io/api/events/v1", "events.v1", "events.k8s.io", "v1"),
    ("k8s.io/api/flowcontrol/v1", "flowcontrol.v1", "flowcontrol.apiserver.k8s.io", "v1"),
    ("k8s.io/api/networking/v1", "networking.v1", "networking.k8s.io", "v1"),
    ("k8s.io/api/node/v1", "node.v1", "node.k8s.io", "v1"),
    ("k8s.io/api/policy/v1", "policy.v1", "policy", "v1"),
    ("k8s.io/api/rbac/v1", "rbac.v1", "rbac.authorization.k8s.io", "v1"),
    ("k8s.io/api/resource/v1", "resource.v1", "resource.k8s.io", "v1"),
    ("k8s.io/api/scheduling/v1", "scheduling.v1", "scheduling.k8s.io", "v1"),
    ("k8s.io/api/storage/v1", "storage.v1", "storage.k8s.io", "v1"),
    ("k8s.io/apimachinery/pkg/runtime/schema", "schema", "", ""),
    ("k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1", "apiextensions.v1", "apiextensions.k8s.io", "v1"),
];

/// What a Go struct says of one of its fields.
#[derive(Clone, Default, Debug, PartialEq)]
struct Tag {
    /// The name in JSON; empty if the field's own fields stand in its place.
    json: String,
    /// The field isn't written when it is zero.
    omitempty: bool,
}

/// The structs of a Go package by name: whether it has a kind of its own, and the tags by field number.
type Structs = BTreeMap<String, (bool, BTreeMap<i32, Tag>)>;

/// The generated files.
pub(crate) fn generate(root: &Path) -> anyhow::Result<Output> {
    let modules = Modules::find(&root.join(TOOLS))?;
    let mut compiler = protox::Compiler::with_file_resolver(modules.clone());
    for (package, ..) in PACKAGES {
        compiler.open_file(proto_name(package))?;
    }
    let descriptors = compiler.include_imports(true).file_descriptor_set();

    let mut output = Output::new();
    let mut modules_text = String::new();
    let mut packages_text = String::new();
    for file in &descriptors.file {
        let Some((package, name, group, version)) =
            PACKAGES.iter().find(|(package, ..)| file.name() == proto_name(package))
        else {
            bail!("{} is imported, but is not in PACKAGES", file.name());
        };
        if file.message_type.is_empty() {
            continue;
        }
        let structs = read_structs(&modules.directory(package)?)?;
        let module = name.replace('.', "_");
        output.insert(format!("{module}.rs"), messages(file, name, &structs)?.into_bytes());
        writeln!(modules_text, "mod {module};")?;
        writeln!(
            packages_text,
            "    Package {{ name: \"{name}\", group: \"{group}\", version: \"{version}\", messages: {module}::MESSAGES }},"
        )?;
    }
    let index = format!(
        "{HEADER}//! The messages of the Kubernetes API: facts of the wire, no rules.\n\n{modules_text}\nuse super::schema::Package;\n\n\
         pub(super) static PACKAGES: &[Package] = &[\n{packages_text}];\n"
    );
    output.insert("mod.rs".to_owned(), index.into_bytes());
    Ok(output)
}

fn proto_name(package: &str) -> String {
    format!("{package}/generated.proto")
}

/// The messages of one file as a Rust array.
fn messages(file: &FileDescriptorProto, package: &str, structs: &Structs) -> anyhow::Result<String> {
    let mut text = format!(
        "{HEADER}\nuse crate::rewrite::schema::Type::*;\n\
         use crate::rewrite::schema::{{Message, inlined, many, map, one}};\n\n\
         pub(super) static MESSAGES: &[Message] = &[\n"
    );
    for message in &file.message_type {
        let name = message.name();
        let (root, tags) = structs.get(name).cloned().unwrap_or_default();
        // A Go slice that is a message on the wire.
        let bare = !structs.contains_key(name) && message.field.len() == 1 && message.field[0].name() == "items";
        write!(text, "    Message {{ name: \"{package}.{name}\", root: {root}, bare: {bare}, fields: &[")?;
        for (index, field) in message.field.iter().enumerate() {
            let tag = tags.get(&field.number()).cloned();
            let separator = if index == 0 { "" } else { ", " };
            write!(
                text,
                "{separator}{}",
                field_text(message, field, tag).with_context(|| format!("{package}.{name}"))?
            )?;
        }
        writeln!(text, "] }},")?;
    }
    text.push_str("];\n");
    Ok(text)
}

fn field_text(message: &DescriptorProto, field: &FieldDescriptorProto, tag: Option<Tag>) -> anyhow::Result<String> {
    let number = field.number();
    // Without a struct's word the two names are the same.
    let tag = tag.unwrap_or(Tag { json: field.name().to_owned(), omitempty: false });
    let entry = message
        .nested_type
        .iter()
        .find(|nested| field.r#type() == Type::Message && field.type_name().ends_with(&format!(".{}", nested.name())));
    let json = &tag.json;
    Ok(match (entry, field.label()) {
        (Some(entry), _) => {
            ensure!(entry.options.as_ref().is_some_and(|options| options.map_entry()), "{} is nested", entry.name());
            ensure!(entry.field[0].r#type() == Type::String, "a map by something that is no string");
            format!("map(\"{json}\", {number}, {})", type_text(&entry.field[1])?)
        }
        (None, Label::Repeated) => format!("many(\"{json}\", {number}, {})", type_text(field)?),
        (None, _) if json.is_empty() => format!("inlined({number}, {})", type_text(field)?),
        (None, _) => format!("one(\"{json}\", {number}, {}, {})", type_text(field)?, tag.omitempty),
    })
}

fn type_text(field: &FieldDescriptorProto) -> anyhow::Result<String> {
    Ok(match field.r#type() {
        Type::String => "Text".to_owned(),
        Type::Bytes => "Bytes".to_owned(),
        Type::Bool => "Bool".to_owned(),
        Type::Int32 | Type::Int64 => "Int".to_owned(),
        Type::Double => "Double".to_owned(),
        Type::Message => {
            let full = field.type_name().trim_start_matches('.');
            let (package, name) = full.rsplit_once('.').context("a message without a package")?;
            let package = package.replace('.', "/").replace("k8s/io/", "k8s.io/");
            // Protobuf names have no dashes: the module's path has one.
            let package = package.replace("apiextensions_apiserver", "apiextensions-apiserver");
            let Some((_, short, ..)) = PACKAGES.iter().find(|(known, ..)| *known == package) else {
                bail!("{full} is of a package that is not in PACKAGES");
            };
            format!("Of(\"{short}.{name}\")")
        }
        other => bail!("field {} is of type {other:?}, which no table knew so far", field.name()),
    })
}

/// The structs of all Go files of a directory, but for the tests and what was generated.
fn read_structs(dir: &Path) -> anyhow::Result<Structs> {
    let mut structs = Structs::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".go") && !name.ends_with("_test.go") && !name.starts_with("zz_") && name != "generated.pb.go"
        {
            let source = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            collect_structs(&source, &mut structs);
        }
    }
    Ok(structs)
}

/// Go sources are formatted: a struct begins and ends at the margin, and a field with its tags is one line.
fn collect_structs(source: &str, structs: &mut Structs) {
    let mut current: Option<&mut (bool, BTreeMap<i32, Tag>)> = None;
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("type ").and_then(|rest| rest.strip_suffix(" struct {")) {
            current = Some(structs.entry(name.to_owned()).or_default());
        } else if line == "}" {
            current = None;
        } else if let Some((root, tags)) = &mut current {
            let line = line.trim_start();
            if line.starts_with("metav1.TypeMeta ") || line.starts_with("TypeMeta ") {
                *root = true;
            } else if !line.starts_with("//")
                && let Some((declaration, rest)) = line.split_once('`')
                && let (Some(json), Some(protobuf)) = (quoted(rest, "json:\""), quoted(rest, "protobuf:\""))
                && let Some(number) = protobuf.split(',').nth(1).and_then(|number| number.parse().ok())
            {
                let (json, options) = json.split_once(',').unwrap_or((json, ""));
                let pointer = declaration.split_whitespace().nth(1).is_some_and(|kind| kind.starts_with('*'));
                let tag = Tag { json: json.to_owned(), omitempty: options.contains("omitempty") && !pointer };
                tags.insert(number, tag);
            }
        }
    }
}

fn quoted<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once('"').map(|(value, _)| value)
}

/// Where the modules lie.
#[derive(Clone, Debug)]
struct Modules(Vec<(&'static str, PathBuf)>);

impl Modules {
    fn find(tools: &Path) -> anyhow::Result<Self> {
        let output = Command::new("go")
            .args(["list", "-m", "-f", "{{.Path}} {{.Dir}}"])
            .args(MODULES)
            .current_dir(tools)
            .output()
            .context("run go list")?;
        ensure!(output.status.success(), "go list: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).context("go list's answer")?;
        let mut found = Vec::new();
        for module in MODULES {
            let Some(dir) = text.lines().find_map(|line| line.strip_prefix(module)?.strip_prefix(' ')) else {
                bail!("go list does not know {module}");
            };
            ensure!(!dir.is_empty(), "{module} is not downloaded; run `go mod download` in {TOOLS}");
            found.push((module, PathBuf::from(dir)));
        }
        Ok(Self(found))
    }

    fn directory(&self, package: &str) -> anyhow::Result<PathBuf> {
        let found =
            self.0.iter().find_map(|(module, dir)| Some(dir.join(package.strip_prefix(module)?.strip_prefix('/')?)));
        found.with_context(|| format!("{package} is in none of the modules"))
    }
}

impl FileResolver for Modules {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match self.directory(name) {
            Ok(path) => File::open(name, &path),
            Err(_) => Err(protox::Error::file_not_found(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structs_tags_are_read() {
        let source = "type A struct {\n\tmetav1.TypeMeta `json:\",inline\"`\n\t// text\n\tUID types.UID `json:\"uid,omitempty\" \
                      protobuf:\"bytes,4,opt,name=uID\"`\n\tSource `json:\",inline\" protobuf:\"bytes,1,req\"`\n\tN *int \
                      `json:\"n,omitempty\" protobuf:\"varint,2,opt,name=n\"`\n}\n";
        let mut structs = Structs::new();
        collect_structs(source, &mut structs);
        let (root, tags) = &structs["A"];
        assert!(root);
        assert_eq!(tags[&4], Tag { json: "uid".to_owned(), omitempty: true });
        assert_eq!(tags[&2], Tag { json: "n".to_owned(), omitempty: false }, "zero and absent differ in a pointer");
        assert_eq!(tags[&1].json, "");
    }

    #[test]
    fn the_checked_in_tables_are_what_the_modules_give() {
        let root = crate::workspace_root().unwrap();
        crate::codegen::check_against(&root, OUT_DIR, &generate(&root).unwrap(), "codegen-kubernetes").unwrap();
    }
}
